"""Values and their uses: the edges of the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from qir.errors import StaleError
from qir.ir.interval import Interval
from qir.ir.journal import EditState, Journaled, Stale, journaled
from qir.ir.linked import Linked, LinkedList
from qir.ir.quant_types import QuantType, UseQuant, UseQuantMarker
from qir.ir.tensor import SparseTensor, Tensor
from qir.ir.types import Dim, Shape, TensorType, Type

if TYPE_CHECKING:
    from qir.ir.dtypes import DType
    from qir.ir.graph import Graph
    from qir.ir.node import Node

__all__ = ["Use", "Value"]


class Use(Linked):
    """One operand: input ``index`` of a node, or output ``index`` of a graph.

    ``quant`` says what this consumer reads: INHERIT (what the value is), FLOAT (past the quantizer), or a type of its
    own, which means a quantizer of its own.
    """

    __slots__ = ("_index", "_owner", "_quant", "_state", "_value")

    quant: Journaled[UseQuant] = journaled("_quant")

    def __init__(self, owner: Node | Graph, index: int, value: Value) -> None:
        self._owner = owner
        self._index = index
        self._value = value
        self._quant: UseQuant = UseQuantMarker.INHERIT
        self._state = owner._state
        self._linked = False
        self._prev = self._next = None

    @property
    def value(self) -> Value:
        return self._value

    @value.setter
    def value(self, new: Value) -> None:
        old = self._value
        if new is old:
            return
        if not self._linked:
            raise ValueError(f"the reader of {old.name!r} was erased: it reads nothing any more")
        journal = new._state.journal
        if journal is not None:
            journal.record(self, "inputs", _restore_use, self, old, self._prev, self._next)
        old._uses.unlink(self)
        self._value = new
        new._uses.link(self)

    @property
    def node(self) -> Node | None:
        """The node that reads the value; None where the use is a graph's output."""
        owner = self._owner
        return None if owner.is_graph else owner

    @property
    def graph(self) -> Graph:
        """The graph in which the value is used."""
        owner = self._owner
        graph = owner if owner.is_graph else owner.graph
        assert graph is not None, "a use of an erased node"
        return graph

    @property
    def index(self) -> int:
        return self._index

    @property
    def is_graph_output(self) -> bool:
        return self._owner.is_graph

    @property
    def is_capture(self) -> bool:
        """The value comes from a scope around the graph that uses it."""
        return self._value.graph is not self.graph

    def replace(self, new: Value) -> bool:
        """Read ``new``; a graph output keeps its name, as of ``Value.replace_all_uses``. False where it has to stay."""
        if self._owner.is_graph and new is not self._value:
            return self._owner._replace_output(self, new)
        self.value = new
        return True

    @property
    def effective_quant(self) -> QuantType | None:
        """What the consumer reads, INHERIT resolved; None is float."""
        if isinstance(self._quant, UseQuantMarker):
            return self._value.quant if self._quant is UseQuantMarker.INHERIT else None
        return self._quant

    def __repr__(self) -> str:
        return f"Use({self._value.name!r} by {self._owner!r} at {self._index})"


class Value(Linked):
    """A named edge: a graph's input, an initializer (``const`` is set), or an output of a node.

    ``range`` is sound (proved or declared), ``observed`` is what calibration saw, ``quant`` is what the producer
    stores. ``frozen`` marks a constant whose numbers lie on the grid of its quantization and must stay there.
    """

    __slots__ = (
        "_annotation",
        "_const",
        "_doc",
        "_extra",
        "_frozen",
        "_graph",
        "_index",
        "_metadata",
        "_name",
        "_observed",
        "_producer",
        "_quant",
        "_range",
        "_state",
        "_type",
        "_uses",
    )

    type: Journaled[Type | None] = journaled("_type")
    doc: Journaled[str] = journaled("_doc")
    extra: Journaled[bytes | None] = journaled("_extra")
    metadata: Journaled[Mapping[str, str] | None] = journaled("_metadata")
    range: Journaled[Interval | None] = journaled("_range")
    quant: Journaled[QuantType | None] = journaled("_quant")
    frozen: Journaled[bool] = journaled("_frozen")
    const: Journaled[Tensor | SparseTensor | None] = journaled("_const")
    annotation: Journaled[tuple[tuple[str, str], ...]] = journaled("_annotation")
    """ONNX's quantization_annotation of this tensor: pairs of (parameter, name of the tensor that holds it)."""

    def __init__(self, state: EditState, name: str, type_: Type | None = None) -> None:
        """For the graph's own use: values are made by ``Graph.add_node``, ``add_input`` and ``add_initializer``."""
        self._state = state
        self._name = name
        self._type = type_
        self._producer: Node | None = None
        self._graph: Graph | None = None
        self._index = 0
        self._uses: LinkedList[Use] = LinkedList()
        self._const: Tensor | SparseTensor | None = None
        self._range: Interval | None = None
        self._observed: Interval | Stale | None = None
        self._quant: QuantType | None = None
        self._frozen = False
        self._metadata: Mapping[str, str] | None = None
        self._doc = ""
        self._extra: bytes | None = None
        self._annotation: tuple[tuple[str, str], ...] = ()
        self._linked = False
        self._prev = self._next = None

    @property
    def name(self) -> str:
        """Unique in its model's scopes; empty for a node output that nobody wants."""
        return self._name

    @name.setter
    def name(self, new: str) -> None:
        journal = self._state.journal
        if journal is not None:
            journal.record(self, "name", setattr, self, "_name", self._name)
        self._name = new
        self._state.take(new)

    @property
    def producer(self) -> Node | None:
        """The node whose output this is; None for inputs and initializers."""
        return self._producer

    @property
    def index(self) -> int:
        """Which output of its producer this is."""
        return self._index

    @property
    def graph(self) -> Graph | None:
        """The graph whose scope defines this value; None once it was removed."""
        return self._graph if self._producer is None else self._producer._graph

    @property
    def uses(self) -> LinkedList[Use]:
        """All uses in order of their making, those in bodies and as graph outputs included."""
        return self._uses

    @property
    def users(self) -> list[Node]:
        """The distinct nodes that read this value."""
        return list({node: None for use in self._uses if (node := use.node) is not None})

    @property
    def is_initializer(self) -> bool:
        return self._linked

    @property
    def is_constant(self) -> bool:
        """The content is known and nobody can override it at run time: an initializer that is no graph input."""
        return self._const is not None and not self.is_input

    @property
    def is_input(self) -> bool:
        return self._producer is None and self._graph is not None and self in self._graph.input_set

    @property
    def is_output(self) -> bool:
        for use in self._uses:  # a plain loop: every replacement asks
            if use._owner.is_graph:
                return True
        return False

    @property
    def tensor(self) -> Tensor | None:
        """The dense constant, where this is one that nobody can override."""
        return self._const if isinstance(self._const, Tensor) and not self.is_input else None

    @property
    def dtype(self) -> DType | None:
        return self._type.dtype if isinstance(self._type, TensorType) else None

    @property
    def shape(self) -> Shape | None:
        return self._type.shape if isinstance(self._type, TensorType) else None

    def dim(self, axis: int) -> Dim:
        """The size of one axis where it is known (negative counts from the back)."""
        shape = self.shape
        return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None

    @property
    def observed(self) -> Interval | None:
        """What calibration saw. Raises StaleError where an edit has made that untrue since."""
        if isinstance(self._observed, Stale):
            raise StaleError(
                f"calibration data of value {self.name!r} was dropped because {self._observed.edit!r} changed what it "
                "is computed from: run 'calibrate' after that pass"
            )
        return self._observed

    @observed.setter
    def observed(self, new: Interval | None) -> None:
        journal = self._state.journal
        if journal is not None:
            journal.record(self, "observed", setattr, self, "_observed", self._observed)
        self._observed = new
        self._state.calibrated = True

    @property
    def is_stale(self) -> bool:
        return isinstance(self._observed, Stale)

    def replace_all_uses(self, new: Value, where: Callable[[Use], bool] | None = None) -> int:
        """Let every use (that ``where`` accepts) read ``new``; returns how many were moved. O(1) a use.

        A graph output keeps its name: ``new`` takes it over where it may be renamed (it is made in that graph and is
        no input or output of it), else an Identity is put between. Only where this value is an input and an output of
        the main graph, that output stays. Types are left to ``new``.
        """
        if new is self:
            return 0
        moved = 0
        for use in list(self._uses):  # a snapshot: moving a use links it into the other value's list
            if (where is None or where(use)) and use.replace(new):
                moved += 1
        return moved

    def __repr__(self) -> str:
        return f"Value({self._name!r})"


def _restore_use(use: Use, old: Value, before: Use | None, after: Use | None) -> None:
    use._value._uses.unlink(use)
    use._value = old
    use._prev, use._next = before, after
    old._uses.relink(use)
