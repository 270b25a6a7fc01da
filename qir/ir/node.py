"""Nodes: one application of an operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from qir.ir.attribute import Attribute, AttrKind
from qir.ir.journal import EditState, Journaled, journaled
from qir.ir.linked import Linked
from qir.ir.provenance import Provenance, flatten
from qir.ir.types import Type
from qir.ir.value import Use, Value

if TYPE_CHECKING:
    from qir.ir.graph import Graph

__all__ = ["Node", "OpId", "Region"]

_GRAPH, _GRAPHS = AttrKind.GRAPH, AttrKind.GRAPHS
OpId = tuple[str, str, str]
"""(domain, op type, overload); the default domain is ``""``."""


class Region(NamedTuple):
    """The nodes that carry an equal one stand for a single operation that the opset lacks, e.g. role ``gelu``."""

    role: str
    number: int


class Node(Linked):
    """An operator applied to values. Made by ``Graph.add_node``; lives until ``erase``.

    ``kernel`` is None (undecided, runs as float) or ``float``, ``integer``, ``dynamic``, ``weight-only``, or a name
    that the target defines. ``region`` tags the parts of a pattern that must stay whole.
    """

    __slots__ = (
        "_attributes",
        "_doc",
        "_domain",
        "_extra",
        "_graph",
        "_kernel",
        "_metadata",
        "_name",
        "_op",
        "_outputs",
        "_overload",
        "_provenance",
        "_region",
        "_state",
        "_uses",
    )
    is_graph: Literal[False] = False

    name: Journaled[str] = journaled("_name")
    doc: Journaled[str] = journaled("_doc")
    extra: Journaled[bytes | None] = journaled("_extra")
    metadata: Journaled[Mapping[str, str] | None] = journaled("_metadata")
    kernel: Journaled[str | None] = journaled("_kernel")
    region: Journaled[Region | None] = journaled("_region")
    provenance: Journaled[Provenance] = journaled("_provenance")

    def __init__(self, state: EditState, op: str, domain: str = "", overload: str = "", name: str = "") -> None:
        """For the graph's own use: ``Graph.add_node`` makes nodes."""
        self._state = state
        self._op = op
        self._domain = domain
        self._overload = overload
        self._name = name
        self._graph: Graph | None = None
        self._uses: list[Use | None] = []
        self._outputs: tuple[Value, ...] = ()
        self._attributes: dict[str, Attribute] = {}
        self._metadata: Mapping[str, str] | None = None
        self._doc = ""
        self._extra: bytes | None = None
        self._kernel: str | None = None
        self._region: Region | None = None
        self._provenance: Provenance = ()
        self._linked = False
        self._prev = self._next = None

    @property
    def op(self) -> str:
        return self._op

    @property
    def domain(self) -> str:
        return self._domain

    @property
    def overload(self) -> str:
        return self._overload

    @property
    def op_id(self) -> OpId:
        return (self._domain, self._op, self._overload)

    def set_op(self, op: str, domain: str = "", overload: str = "") -> None:
        """Turn this into another operator, operands and attributes as they are."""
        journal = self._state.journal
        if journal is not None:
            journal.record(self, "op", _restore_op, self, self.op_id)
        self._domain, self._op, self._overload = domain, op, overload

    @property
    def graph(self) -> Graph | None:
        """The graph in which the node stands; None once it was erased."""
        return self._graph

    @property
    def previous(self) -> Node | None:
        node: Node | None = self._prev
        return node

    @property
    def next(self) -> Node | None:
        node: Node | None = self._next
        return node

    @property
    def inputs(self) -> tuple[Value | None, ...]:
        """The operands; None where an optional one is missing."""
        return tuple([None if use is None else use._value for use in self._uses])

    @property
    def uses(self) -> Sequence[Use | None]:
        """The operands as uses, by input index."""
        return self._uses

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The results; one that nobody wants has the empty name."""
        return self._outputs

    @property
    def output(self) -> Value:
        """The first result. Raises IndexError where there is none."""
        return self._outputs[0]

    def add_output(self, name: str, type_: Type | None = None) -> Value:
        """One more result, after the others: for a node whose bodies hand out more. The name must be free."""
        state = self._state
        state.take(name)
        value = Value(state, name, type_)
        value._producer, value._index = self, len(self._outputs)
        if state.journal is not None:
            state.journal.record(self, "outputs", setattr, self, "_outputs", self._outputs)
        self._outputs = (*self._outputs, value)
        return value

    def drop_output(self, index: int) -> None:
        """Leave an optional result out: it loses its name, and its place where no named one follows.

        Raises ValueError while it has uses.
        """
        value = self._outputs[index]
        if value._uses._count:
            raise ValueError(f"output {value.name!r} of {self.label!r} is used, it cannot be dropped")
        value.name = ""
        kept = self._outputs
        while kept and not kept[-1]._name:
            kept = kept[:-1]
        if len(kept) < len(self._outputs):
            journal = self._state.journal
            if journal is not None:
                journal.record(self, "outputs", setattr, self, "_outputs", self._outputs)
            self._outputs = kept

    def input(self, index: int) -> Value | None:
        """The operand, None where it is missing or beyond the end."""
        use = self.use(index)
        return None if use is None else use._value

    def use(self, index: int) -> Use | None:
        """The use at an input index, None where it is missing or beyond the end."""
        return self._uses[index] if 0 <= index < len(self._uses) else None

    def set_input(self, index: int, value: Value | None) -> None:
        """Read another value (None: leave the optional operand out). Beyond the end, the list grows.

        Raises ValueError for a node that was erased.
        """
        if self._graph is None:
            raise ValueError(f"{self.label!r} was erased: it reads nothing any more")
        use = self.use(index)
        if use is not None and value is not None:
            use.value = value
            return
        if use is None and value is None:
            return
        journal = self._state.journal
        if journal is not None:
            journal.record(self, "inputs", setattr, self, "_uses", list(self._uses))
        if use is not None:
            _unlink_use(use)
            self._uses[index] = None
        else:
            assert value is not None
            self._uses += [None] * (index + 1 - len(self._uses))
            self._uses[index] = _link_use(self, index, value)

    def resize_inputs(self, count: int) -> None:
        """Cut the operand list to ``count``, or fill it up with missing ones."""
        self.set_inputs([*self.inputs[:count], *([None] * (count - len(self._uses)))])

    def set_inputs(self, values: Sequence[Value | None]) -> None:
        """Replace the whole operand list; an operand that stays in its place keeps its ``Use``.

        Raises ValueError for a node that was erased.
        """
        if self._graph is None:
            raise ValueError(f"{self.label!r} was erased: it reads nothing any more")
        journal = self._state.journal
        if journal is not None:
            journal.record(self, "inputs", setattr, self, "_uses", self._uses)
        old = self._uses
        self._uses = [None] * len(values)
        for index, value in enumerate(values):
            use = old[index] if index < len(old) else None
            if use is not None and use._value is value:
                self._uses[index] = use
            elif value is not None:
                self._uses[index] = _link_use(self, index, value)
        for index, use in enumerate(old):
            if use is not None and (index >= len(values) or self._uses[index] is not use):
                _unlink_use(use)

    @property
    def attributes(self) -> Mapping[str, Attribute]:
        """Read-only view, in the file's order; see ``set`` and ``remove``."""
        return MappingProxyType(self._attributes)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute's Python value (strings decoded), ``default`` where it is absent or a reference."""
        attribute = self._attributes.get(name)
        return default if attribute is None or attribute.ref else attribute.python

    def set(self, name: str, value: Any) -> None:
        """Set an attribute from a Python value or an Attribute. Raises TypeError for a value of no kind."""
        attribute = Attribute.of(name, value)
        self._edit_attributes({**self._attributes, name: attribute})
        for graph in attribute.graphs:
            graph._attach(self)

    def remove(self, name: str) -> None:
        """Remove an attribute if it is there."""
        if name in self._attributes:
            self._edit_attributes({key: value for key, value in self._attributes.items() if key != name})

    def _edit_attributes(self, new: dict[str, Attribute]) -> None:
        journal = self._state.journal
        if journal is not None:
            journal.record(self, "attributes", setattr, self, "_attributes", self._attributes)
        old = self.bodies
        self._attributes = new
        kept = self.bodies if old else ()
        for body in old:
            if body not in kept:
                body._drop_uses(self)

    @property
    def bodies(self) -> tuple[Graph, ...]:
        """The graphs in attributes (branches of If, bodies of Loop and Scan), in order."""
        found: tuple[Graph, ...] = ()
        if self._attributes:  # most nodes have none, and every walk asks
            for attribute in self._attributes.values():
                if attribute.kind is _GRAPH or attribute.kind is _GRAPHS:
                    found += attribute.graphs
        return found

    @property
    def is_read(self) -> bool:
        """Whether anything reads a result: a node, or a graph that hands it out."""
        for value in self._outputs:  # a plain loop: every walk asks
            if value._uses._count:
                return True
        return False

    def walk(self) -> Iterator[Node]:
        """This node and all nodes in its bodies."""
        yield self
        for body in self.bodies:
            yield from body.walk()

    @property
    def sources(self) -> list[str]:
        """Names of the nodes of the imported model that this one came from."""
        return flatten(self._provenance)

    @property
    def label(self) -> str:
        """For messages: the name where it has one, else the first source, else the first output."""
        if self._name:
            return self._name
        first_source = flatten(self._provenance, 1)
        first_output = self._outputs[0].name if self._outputs else ""
        return (first_source[0] if first_source else "") or first_output

    def erase(self) -> None:
        """Remove from its graph. Raises ValueError while a result has uses, bodies of its own not counted."""
        for output in self._outputs:
            if output._uses._count:
                reader = next(iter(output._uses))._owner
                who = "the graph's output" if reader.is_graph else f"{reader.op} {reader.label!r}"
                raise ValueError(f"{self.label!r} cannot be erased: its output {output.name!r} is used by {who}")
        graph = self._graph
        if graph is None:
            raise ValueError(f"{self.label!r} was erased before")
        for body in self.bodies:
            body._drop_uses(self)
        for use in self._uses:
            if use is not None:
                _unlink_use(use)
        journal = self._state.journal
        if journal is not None:
            journal.record(self, "erased", _restore_node, self, graph, self._prev, self._next)
        graph._nodes.unlink(self)
        self._graph = None

    def __repr__(self) -> str:
        return f"Node({self._op} {self.label!r})"


def _link_use(owner: Node | Graph, index: int, value: Value) -> Use:
    use = Use(owner, index, value)
    try:
        value._uses.link(use)
    except AttributeError:
        raise TypeError(f"an operand is a Value, not {value!r}: for a number, add a constant and read that") from None
    journal = value._state.journal  # the value's: a detached body that captures it is of no model yet
    if journal is not None:
        journal.record(use, "inputs", value._uses.unlink, use)
    return use


def _unlink_use(use: Use) -> None:
    """Take a use out of its value's list; it keeps naming the value, so that an undo can put it back."""
    value = use._value
    journal = value._state.journal
    if journal is not None:
        journal.record(use, "unlinked", _relink_use, use, value, use._prev, use._next)
    value._uses.unlink(use)


def _relink_use(use: Use, value: Value, before: Use | None, after: Use | None) -> None:
    use._prev, use._next = before, after
    value._uses.relink(use)


def _restore_node(node: Node, graph: Graph, before: Node | None, after: Node | None) -> None:
    node._prev, node._next = before, after
    graph._nodes.relink(node)
    node._graph = graph


def _restore_op(node: Node, op_id: OpId) -> None:
    node._domain, node._op, node._overload = op_id
