"""Local functions of a model (onnx.proto, FunctionProto)."""

from __future__ import annotations

from collections.abc import Mapping

from qir.ir.attribute import Attribute
from qir.ir.graph import Graph
from qir.ir.journal import EditState, Journaled, journaled
from qir.ir.node import OpId

__all__ = ["Function"]


class Function:
    """An operator that is defined by a graph. ``graph.name`` is not used; names of values are local to it.

    ``attributes`` are the names of required attributes, ``defaults`` those with a default.
    """

    __slots__ = ("_attributes", "_defaults", "_extra", "_opset_imports", "domain", "graph", "name", "overload")

    attributes: Journaled[tuple[str, ...]] = journaled("_attributes")
    defaults: Journaled[tuple[Attribute, ...]] = journaled("_defaults")
    opset_imports: Journaled[Mapping[str, int]] = journaled("_opset_imports")
    extra: Journaled[bytes | None] = journaled("_extra")

    def __init__(
        self,
        domain: str,
        name: str,
        graph: Graph,
        *,
        overload: str = "",
        attributes: tuple[str, ...] = (),
        defaults: tuple[Attribute, ...] = (),
        opset_imports: Mapping[str, int] | None = None,
        extra: bytes | None = None,
    ) -> None:
        self.domain = domain
        self.name = name
        self.overload = overload
        self.graph = graph
        self._attributes = attributes
        self._defaults = defaults
        self._opset_imports: Mapping[str, int] = dict(opset_imports or {})
        self._extra = extra
        graph.function = self

    @property
    def _state(self) -> EditState:
        return self.graph._state

    @property
    def op_id(self) -> OpId:
        return (self.domain, self.name, self.overload)

    def __repr__(self) -> str:
        return f"Function({self.domain}.{self.name})"
