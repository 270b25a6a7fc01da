"""Graphs: nodes in order, inputs, outputs and initializers. Every edit costs O(1) and goes through the journal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from qir.ir.attribute import Attribute
from qir.ir.journal import EditState, Journaled, journaled
from qir.ir.linked import LinkedList
from qir.ir.node import Node, _link_use, _unlink_use
from qir.ir.provenance import Provenance, merge
from qir.ir.tensor import SparseTensor, Tensor
from qir.ir.types import TensorType, Type
from qir.ir.value import Use, Value

if TYPE_CHECKING:
    from qir.ir.function import Function

__all__ = ["Graph"]


class Graph:
    """A model's main graph, a body in a node's attribute (``owner`` is that node), or a function's body.

    ``Graph()`` makes a detached one; it joins a model when it becomes the model's graph or an attribute.
    """

    __slots__ = (
        "__weakref__",
        "_doc",
        "_extra",
        "_initializers",
        "_inputs",
        "_metadata",
        "_name",
        "_nodes",
        "_outputs",
        "_state",
        "function",
        "input_set",
        "owner",
        "recorded_types",
    )
    is_graph: Literal[True] = True

    name: Journaled[str] = journaled("_name")
    doc: Journaled[str] = journaled("_doc")
    extra: Journaled[bytes | None] = journaled("_extra")
    metadata: Journaled[Mapping[str, str] | None] = journaled("_metadata")

    def __init__(self, name: str = "", state: EditState | None = None) -> None:
        self._state = state or EditState()
        self._name = name
        self._nodes: LinkedList[Node] = LinkedList()
        self._inputs: tuple[Value, ...] = ()
        self._outputs: tuple[Use, ...] = ()
        self._initializers: LinkedList[Value] = LinkedList()
        self._metadata: Mapping[str, str] | None = None
        self._doc = ""
        self._extra: bytes | None = None
        self.owner: Node | None = None
        """The node whose body this is."""
        self.function: Function | None = None
        """The function whose body this is."""
        self.input_set: frozenset[Value] = frozenset()
        self.recorded_types: dict[Value, None] = {}
        """Values whose type the file records in ``value_info``, in the file's order."""

    # Reading

    @property
    def nodes(self) -> LinkedList[Node]:
        """In topological order, as long as passes keep it (see ``sort``). Safe to edit while iterating."""
        return self._nodes

    @property
    def inputs(self) -> tuple[Value, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[Value, ...]:
        return tuple([use._value for use in self._outputs])

    @property
    def output_uses(self) -> tuple[Use, ...]:
        return self._outputs

    @property
    def initializers(self) -> LinkedList[Value]:
        """Values with a constant content; those that are inputs too can be overridden at run time."""
        return self._initializers

    @property
    def outer(self) -> Graph | None:
        """The graph around this body."""
        return None if self.owner is None else self.owner.graph

    def walk(self) -> Iterator[Node]:
        """All nodes, those of bodies after the node that holds them."""
        for node in self._nodes:
            yield node
            if node._attributes:
                for body in node.bodies:
                    yield from body.walk()

    def graphs(self) -> Iterator[Graph]:
        """This graph and all bodies inside, outermost first."""
        yield self
        for node in self._nodes:
            if node._attributes:
                for body in node.bodies:
                    yield from body.graphs()

    def values(self) -> Iterator[Value]:
        """All values that this graph defines: inputs, initializers, results in node order; bodies not included."""
        yield from self._inputs
        for value in self._initializers:
            if value not in self.input_set:
                yield value
        for node in self._nodes:
            yield from node._outputs

    # Nodes

    def add_node(
        self,
        op: str,
        inputs: Sequence[Value | None] = (),
        attributes: Mapping[str, Any] | None = None,
        *,
        outputs: int | Sequence[str] = 1,
        types: Sequence[Type | None] = (),
        domain: str = "",
        overload: str = "",
        name: str | None = None,
        before: Node | None = None,
        source: Iterable[Node | Provenance] = (),
    ) -> Node:
        """Make a node at the end, or before another.

        ``outputs`` is how many results there are, or their names ("" for one that nobody wants); unnamed ones are
        called after the node. ``name=None`` makes a name from the op. ``source`` says which nodes this one stands
        for; their provenance is merged. Raises TypeError for an attribute value of no kind.
        """
        state = self._state
        if name is None:
            name = self.fresh_name(op)
        else:
            state.take(name)
        node = Node(state, op, domain, overload, name)
        if isinstance(outputs, int):
            hint = name or op
            names = [self.fresh_name(f"{hint}_out" if i == 0 else f"{hint}_out{i}") for i in range(outputs)]
        else:
            names = list(outputs)
            for output in names:
                state.take(output)
        results = []
        for index, output in enumerate(names):
            value = Value(state, output, types[index] if index < len(types) else None)
            value._producer = node
            value._index = index
            results.append(value)
        node._outputs = tuple(results)
        if source:
            node._provenance = merge(s._provenance if isinstance(s, Node) else s for s in source)
        self._nodes.link(node, before)
        node._graph = self
        if state.journal is not None:
            state.journal.record(node, "node", _remove_node, node)
        for index, value_or_none in enumerate(inputs):
            node._uses.append(None if value_or_none is None else _link_use(node, index, value_or_none))
        for key, attribute in (attributes or {}).items():
            node._attributes[key] = made = Attribute.of(key, attribute)
            for graph in made.graphs:
                graph._attach(node)
        return node

    def insert_before(self, anchor: Node, op: str, inputs: Sequence[Value | None] = (), **arguments: Any) -> Node:
        """``add_node`` before ``anchor``, which must stand in this graph."""
        return self.add_node(op, inputs, before=anchor, **arguments)

    def insert_after(self, anchor: Node, op: str, inputs: Sequence[Value | None] = (), **arguments: Any) -> Node:
        """``add_node`` right after ``anchor``, which must stand in this graph."""
        return self.add_node(op, inputs, before=anchor.next, **arguments)

    def move(self, node: Node, before: Node | None) -> None:
        """Move a node of this model before another of this graph, or to its end; out of a body too."""
        graph = node._graph
        assert graph is not None, "an erased node cannot be moved"
        if node is before:
            return
        journal = self._state.journal
        if journal is not None:
            journal.record(node, "order", _restore_place, node, graph, node._prev, node._next)
        graph._nodes.unlink(node)
        self._nodes.link(node, before)
        node._graph = self

    # Inputs, outputs, initializers

    def add_input(self, name: str, type_: Type | None = None) -> Value:
        value = self._new_value(name, type_)
        self._set_inputs((*self._inputs, value))
        return value

    def remove_input(self, value: Value) -> None:
        """``remove_inputs`` of one."""
        self.remove_inputs([value])

    def remove_inputs(self, values: Iterable[Value]) -> None:
        """No longer list these as inputs; an overridable initializer becomes a constant.

        Raises ValueError where a value has uses but no content.
        """
        gone = set(values)
        for value in gone:
            if value._uses and value._const is None:
                raise ValueError(f"input {value.name!r} is used, it cannot be removed")
        self._set_inputs(tuple(v for v in self._inputs if v not in gone))

    def make_input(self, value: Value) -> None:
        """List an initializer of this graph as an input too, so that it can be overridden."""
        self._set_inputs((*self._inputs, value))

    def add_output(self, value: Value) -> Use:
        use = _link_use(self, len(self._outputs), value)
        self._set_outputs((*self._outputs, use))
        return use

    def remove_output(self, index: int) -> None:
        _unlink_use(self._outputs[index])
        kept = self._outputs[:index] + self._outputs[index + 1 :]
        for position, use in enumerate(kept):
            if use._index != position:
                if self._state.journal is not None:
                    self._state.journal.record(use, "index", setattr, use, "_index", use._index)
                use._index = position
        self._set_outputs(kept)

    def add_initializer(self, name: str, tensor: Tensor | SparseTensor, type_: Type | None = None) -> Value:
        """A constant. The name is made unique if it is taken; the type is that of the tensor unless given."""
        value = self._new_value(self.fresh_name(name), type_ or TensorType(tensor.dtype, tensor.shape))
        value._const = tensor
        self._link_initializer(value)
        return value

    def add_constant(self, array: Any, hint: str = "constant") -> Value:
        """An initializer from a Tensor or anything that numpy takes."""
        return self.add_initializer(hint, array if isinstance(array, Tensor) else Tensor.of(array))

    def remove_initializer(self, value: Value) -> None:
        """Raises ValueError where it is still used; an input of the same name stays."""
        if value._uses and not value.is_input:
            raise ValueError(f"initializer {value.name!r} is used, it cannot be removed")
        if self._state.journal is not None:
            self._state.journal.record(
                self, "initializers", _restore_initializer, self, value, value._prev, value._next, value._const
            )
        self._initializers.unlink(value)
        value._const = None

    # Names and order

    def fresh_name(self, hint: str) -> str:
        """A name that no value or node of the whole model has, ``hint`` itself where it is free."""
        return self._state.fresh_name(hint, self._taken_names)

    def sort(self) -> bool:
        """Put the nodes of this graph into topological order, keeping the order where it is right already.

        Linear. Returns whether anything moved. Raises ValueError on a cycle, naming a node of it. Bodies count as
        reading what they capture; their own order is not touched.
        """
        from qir.ir.order import topological_order

        order = topological_order(self)
        if all(a is b for a, b in zip(order, self._nodes, strict=True)):
            return False
        for node in order:
            self.move(node, None)
        return True

    # Internals

    def _new_value(self, name: str, type_: Type | None) -> Value:
        value = Value(self._state, name, type_)
        value._graph = self
        self._state.take(name)
        return value

    def _link_initializer(self, value: Value) -> None:
        self._initializers.link(value)
        if self._state.journal is not None:
            self._state.journal.record(self, "initializers", self._initializers.unlink, value)

    def _set_inputs(self, new: tuple[Value, ...]) -> None:
        if self._state.journal is not None:
            self._state.journal.record(self, "interface", _assign_inputs, self, self._inputs)
        _assign_inputs(self, new)

    def _set_outputs(self, new: tuple[Use, ...]) -> None:
        if self._state.journal is not None:
            self._state.journal.record(self, "interface", setattr, self, "_outputs", self._outputs)
        self._outputs = new

    def _replace_output(self, use: Use, new: Value) -> bool:
        """Let an output use read ``new`` under the old name; False where that is impossible, since an input has it."""
        old = use._value
        if old.is_input and self.outer is None:
            return False
        renamable = new.graph is self and not new.is_input and not new.is_output and self.outer is None
        if self.outer is not None:
            # Outputs of a body are taken by position, so no name needs keeping; a captured value needs a node, though.
            if new.graph is not self:
                new = self.add_node("Identity", [new], types=[new.type], name=None).output
            use.value = new
            return True
        name = old.name
        if renamable:
            old.name = self.fresh_name(name)
            new.name = name
            use.value = new
            return True
        node = self.add_node("Identity", [new], types=[new.type])
        old.name = self.fresh_name(name)
        node.output.name = name
        use.value = node.output
        return True

    def _attach(self, owner: Node) -> None:
        """Become a body of ``owner``; a graph of another state (made detached) joins the model's."""
        journal = owner._state.journal
        if journal is not None:
            journal.record(self, "owner", setattr, self, "owner", self.owner)
        self.owner = owner
        if self._state is not owner._state:
            _adopt(self, owner._state)

    def _drop_uses(self, owner: Node) -> None:
        """Unlink every use in this body, because ``owner`` gives it up; not if it is another node's by now."""
        if self.owner is not owner:
            return
        for node in self._nodes:
            for use in node._uses:
                if use is not None:
                    _unlink_use(use)
            for body in node.bodies:
                body._drop_uses(node)
        for use in self._outputs:
            _unlink_use(use)

    def _root(self) -> Graph:
        graph = self
        while graph.owner is not None and graph.owner.graph is not None:
            graph = graph.owner.graph
        return graph

    def _taken_names(self) -> set[str]:
        """Of the whole model; of a detached graph, in it and its bodies."""
        names: set[str] = set()
        model = self._state.model
        for graph in self._root().graphs() if model is None else model.graphs():
            names.update(value._name for value in graph.values())
            names.update(node._name for node in graph._nodes)
            # A file may record types of values that it does not have: one of that name would take them over.
            names.update(value._name for value in graph.recorded_types)
        return names

    def __repr__(self) -> str:
        return f"Graph({self._name!r}, {len(self._nodes)} nodes)"


def _assign_inputs(graph: Graph, inputs: tuple[Value, ...]) -> None:
    graph._inputs = inputs
    graph.input_set = frozenset(inputs)


def _remove_node(node: Node) -> None:
    assert node._graph is not None
    node._graph._nodes.unlink(node)
    node._graph = None


def _restore_place(node: Node, graph: Graph, before: Node | None, after: Node | None) -> None:
    assert node._graph is not None
    node._graph._nodes.unlink(node)
    node._prev, node._next = before, after
    graph._nodes.relink(node)
    node._graph = graph


def _restore_initializer(
    graph: Graph, value: Value, before: Value | None, after: Value | None, const: Tensor | SparseTensor | None
) -> None:
    value._prev, value._next = before, after
    graph._initializers.relink(value)
    value._const = const


def _adopt(graph: Graph, state: EditState) -> None:
    for inner in graph.graphs():
        inner._state = state
        for value in inner.values():
            value._state = state
            state.take(value._name)
        for node in inner._nodes:
            node._state = state
            state.take(node._name)
            for use in node._uses:
                if use is not None:
                    use._state = state
        for use in inner._outputs:
            use._state = state
