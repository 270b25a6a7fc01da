"""A Loop that runs a known, small number of times becomes that many copies of its body."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qir.ir import Graph, Node, TensorType, Value
from qir.passes.structure.folding.estimate import FOLDABLE
from qir.rewriting.edits import add_constant, constant_of, forward, is_annotated, is_standard, merge_origin

__all__ = ["unroll"]

_MOST_CONSTANT = 1024
"""Copied nodes of a Loop over constants, which are computed afterwards."""


def unroll(node: Node, opset: int, most: int) -> bool:
    """Put the iterations of a Loop behind it, where nothing but a constant count ends it; whether that was done.

    Only where it makes at most ``most`` nodes, no more than the body has, or nodes that compute on constants alone.
    """
    loop = _counted(node)
    if loop is None:
        return False
    made = loop.trips * max(1, len(loop.body.nodes))
    if loop.trips > 1 and made > most and not (made <= _MOST_CONSTANT and _is_constant(loop)):
        return False
    if loop.trips == 0 and loop.stacked:
        return False  # nothing would say how large the empty results are
    _Unroller(loop, opset).run()
    return True


@dataclass(frozen=True, slots=True)
class _Loop:
    node: Node
    body: Graph
    trips: int
    carried: int
    """How many values go from one iteration to the next."""

    @property
    def stacked(self) -> int:
        """How many results gather a value of each iteration."""
        return len(self.node.outputs) - self.carried


def _counted(node: Node) -> _Loop | None:
    """The Loop, where its count is a constant and its condition always holds; its body has no bodies inside."""
    graph, body = node.graph, node.get("body")
    count, condition = constant_of(node.input(0)), node.input(1)
    if graph is None or not isinstance(body, Graph) or count is None or count.size != 1 or is_annotated(node):
        return None
    carried = len(node.inputs) - 2
    if carried < 0 or None in node.inputs[2:] or len(body.inputs) != carried + 2:
        return None
    if len(body.outputs) != len(node.outputs) + 1 or len(node.outputs) < carried:
        return None
    if condition is not None and not _is_true(condition):
        return None
    if not _is_true(body.outputs[0], body.inputs[1]):
        return None
    if any(inner.bodies or is_annotated(inner) for inner in body.nodes):
        return None
    if _root(graph).function is not None and body.initializers:
        return None  # a function has no initializers to move them to
    return _Loop(node, body, max(0, int(count.numpy().reshape(-1)[0])), carried)


def _is_true(value: Value, given: Value | None = None) -> bool:
    """A constant true, or what is ``given`` as such, as it is."""
    while value is not given and value.producer is not None and value.producer.op == "Identity":
        source = value.producer.input(0)
        if source is None or not is_standard(value.producer):
            return False
        value = source
    if value is given:
        return True
    tensor = constant_of(value)
    return tensor is not None and tensor.size == 1 and bool(tensor.numpy().reshape(-1)[0])


def _is_constant(loop: _Loop) -> bool:
    """All that goes in is constant, and all that is done with it can be computed."""
    operands = [value for node in loop.body.nodes for value in node.inputs if value is not None]
    outside = [value for value in operands if value.graph is not loop.body]
    known = all(constant_of(value) is not None for value in [*loop.node.inputs[2:], *outside] if value is not None)
    return known and all(is_standard(node) and node.op in FOLDABLE | {"Constant"} for node in loop.body.nodes)


class _Unroller:
    def __init__(self, loop: _Loop, opset: int) -> None:
        graph = loop.node.graph
        assert graph is not None, "an erased node is not unrolled"
        self.loop = loop
        self.opset = opset
        self.graph = graph
        self.anchor = loop.node.next
        self.fixed: dict[Value, Value] = {}
        """Constants of the body, by what stands for them outside."""

    def run(self) -> None:
        node, body, carried = self.loop.node, self.loop.body, self.loop.carried
        for constant in list(body.initializers):
            if constant.const is not None and not constant.is_input:
                moved = self.graph.add_initializer(constant.name, constant.const, constant.type)
                moved.range, moved.frozen = constant.range, constant.frozen
                self.fixed[constant] = moved
        state = [value for value in node.inputs[2:] if value is not None]
        rounds: list[list[Value]] = []
        for number in range(self.loop.trips):
            made = self.iteration(number, state)
            state = made[1 : carried + 1]
            rounds.append(made[carried + 1 :])
        stacked = [self.stack([values[index] for values in rounds]) for index in range(self.loop.stacked)]
        for old, new in zip(node.outputs, [*state, *stacked], strict=True):
            self.hand_over(old, new)
        node.erase()

    def iteration(self, number: int, state: list[Value]) -> list[Value]:
        """One copy of the body; its outputs."""
        body = self.loop.body
        values = dict(self.fixed)
        for formal, actual in zip(body.inputs[2:], state, strict=True):
            values[formal] = actual
        for formal, array in ((body.inputs[0], np.array(number, np.int64)), (body.inputs[1], np.array(True))):
            if formal.uses:
                values[formal] = self.constant(array, formal.name)
        for inner in body.nodes:
            self.copy(inner, values)
        return [values.get(value, value) for value in body.outputs]

    def copy(self, inner: Node, values: dict[Value, Value]) -> None:
        fresh = self.graph.fresh_name
        made = self.graph.add_node(
            inner.op,
            [None if value is None else values.get(value, value) for value in inner.inputs],
            dict(inner.attributes),
            outputs=[fresh(value.name) if value.name else "" for value in inner.outputs],
            types=[value.type for value in inner.outputs],
            domain=inner.domain,
            overload=inner.overload,
            name=fresh(inner.name) if inner.name else None,
            before=self.anchor,
            source=[inner],
        )
        made.doc, made.extra, made.metadata = inner.doc, inner.extra, inner.metadata
        merge_origin(made, self.loop.node)
        values.update(zip(inner.outputs, made.outputs, strict=True))

    def stack(self, parts: list[Value]) -> Value:
        """The values of all iterations along a new first axis."""
        raised = [self.unsqueeze(part) for part in parts]
        return raised[0] if len(raised) == 1 else self.add("Concat", raised, {"axis": 0})

    def unsqueeze(self, part: Value) -> Value:
        if self.opset < 13:
            return self.add("Unsqueeze", [part], {"axes": [0]})
        return self.add("Unsqueeze", [part, self.constant(np.array([0], np.int64), "axes")], {})

    def add(self, op: str, inputs: list[Value], attributes: dict[str, object]) -> Value:
        node = self.graph.add_node(op, inputs, attributes, before=self.anchor, source=[self.loop.node])
        return node.output

    def constant(self, array: np.ndarray, hint: str) -> Value:
        return add_constant(self.loop.node, array, hint)

    def hand_over(self, old: Value, new: Value) -> None:
        if new.type is None or (isinstance(new.type, TensorType) and new.type.shape is None):
            new.type = old.type
        forward(old, new)
        if old.uses:
            copy = self.graph.add_node("Identity", [new], types=[old.type], before=self.anchor, source=[self.loop.node])
            old.replace_all_uses(copy.output)


def _root(graph: Graph) -> Graph:
    while graph.outer is not None:
        graph = graph.outer
    return graph
