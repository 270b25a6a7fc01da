"""Models: the main graph, local functions, opset imports, and transactions over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from qir.ir.function import Function
from qir.ir.graph import Graph, _adopt
from qir.ir.journal import EditState, Journal, Journaled, journaled
from qir.ir.node import Node, OpId
from qir.ir.value import Value

__all__ = ["Clone", "Model"]


class Clone(NamedTuple):
    """A copy, and for each original object what stands for it there."""

    model: Model
    values: dict[Value, Value]
    nodes: dict[Node, Node]


class Model:
    """What one ONNX file holds.

    ``ir_version`` None means: what the features in use need. ``opset_imports`` maps domain to version; the default
    domain is ``""``. ``extra`` is the residue of the ModelProto (training info, device configurations, the spelling
    "ai.onnx" of the default domain, unknown fields).
    """

    __slots__ = (
        "_doc",
        "_domain",
        "_extra",
        "_functions",
        "_graph",
        "_ir_version",
        "_metadata",
        "_model_version",
        "_opset_imports",
        "_producer_name",
        "_producer_version",
        "_state",
    )

    ir_version: Journaled[int | None] = journaled("_ir_version")
    opset_imports: Journaled[Mapping[str, int]] = journaled("_opset_imports")
    producer_name: Journaled[str] = journaled("_producer_name")
    producer_version: Journaled[str] = journaled("_producer_version")
    domain: Journaled[str] = journaled("_domain")
    model_version: Journaled[int | None] = journaled("_model_version")
    doc: Journaled[str] = journaled("_doc")
    extra: Journaled[bytes | None] = journaled("_extra")
    metadata: Journaled[Mapping[str, str] | None] = journaled("_metadata")
    functions: Journaled[Mapping[OpId, Function]] = journaled("_functions")

    def __init__(
        self,
        graph: Graph | None = None,
        opset_imports: Mapping[str, int] | None = None,
        ir_version: int | None = None,
    ) -> None:
        self._graph = graph or Graph()
        self._state: EditState = self._graph._state
        self._state.model = self
        self._opset_imports: Mapping[str, int] = dict(opset_imports or {})
        self._ir_version = ir_version
        self._producer_name = ""
        self._producer_version = ""
        self._domain = ""
        self._model_version: int | None = None
        self._doc = ""
        self._extra: bytes | None = None
        self._metadata: Mapping[str, str] | None = None
        self._functions: Mapping[OpId, Function] = {}

    @property
    def graph(self) -> Graph:
        return self._graph

    def add_function(self, function: Function) -> None:
        """Raises ValueError where one of that domain, name and overload is there already."""
        if function.op_id in self._functions:
            raise ValueError(f"function {function.domain}.{function.name} is defined twice")
        if function.graph._state is not self._state:
            _adopt(function.graph, self._state)
        self.functions = {**self._functions, function.op_id: function}

    def opset(self, domain: str = "") -> int | None:
        """The imported version of an operator domain ("" and "ai.onnx" are the same); None where it is not imported."""
        version = self._opset_imports.get(domain)
        if version is None and domain in ("", "ai.onnx"):
            return self._opset_imports.get("ai.onnx" if domain == "" else "")
        return version

    def graphs(self) -> Iterator[Graph]:
        """The main graph and its bodies, then those of the functions."""
        yield from self._graph.graphs()
        for function in self._functions.values():
            yield from function.graph.graphs()

    def walk(self) -> Iterator[Node]:
        """All nodes: the main graph, bodies after the node that holds them, functions last."""
        yield from self._graph.walk()
        for function in self._functions.values():
            yield from function.graph.walk()

    def values(self) -> Iterator[Value]:
        """All values of all graphs."""
        for graph in self.graphs():
            yield from graph.values()

    # Transactions

    @property
    def journal(self) -> Journal | None:
        """The open transaction."""
        return self._state.journal

    def begin(self, label: str) -> Journal:
        """Open a transaction. Raises RuntimeError where one is open: they do not nest, use ``Journal.mark``."""
        if self._state.journal is not None:
            raise RuntimeError(f"transaction {self._state.journal.label!r} is still open")
        self._state.journal = Journal(label)
        return self._state.journal

    def commit(self, *, keeps_observed: bool = False) -> Journal:
        """Close the transaction and keep its edits.

        Calibration data downstream of an edited node or constant becomes stale, unless the caller vouches that every
        value still holds the same numbers (``keeps_observed``).
        """
        journal = self._close()
        if self._state.calibrated and not keeps_observed:
            journal.drop_observed()
        return journal

    def rollback(self) -> None:
        """Close the transaction and undo its edits."""
        self._close().undo_to(0)

    @contextmanager
    def transaction(self, label: str, *, keeps_observed: bool = False) -> Iterator[Journal]:
        """Commits at the end of the block, rolls back where it raises."""
        journal = self.begin(label)
        try:
            yield journal
        except BaseException:
            self.rollback()
            raise
        self.commit(keeps_observed=keeps_observed)

    def _close(self) -> Journal:
        journal = self._state.journal
        if journal is None:
            raise RuntimeError("no transaction is open")
        self._state.journal = None
        return journal

    def clone(self) -> Model:
        """A copy that shares the tensors."""
        return self.clone_with_map().model

    def clone_with_map(self) -> Clone:
        """A copy that shares the tensors, and what became what."""
        from qir.ir.clone import clone_model
        from qir.ir.collector import collector_paused

        with collector_paused():
            return clone_model(self)

    def __repr__(self) -> str:
        return f"Model({self._graph!r}, opset {self.opset()})"
