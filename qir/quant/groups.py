"""Values that must share one set of quantization parameters, found before parameters are chosen.

An operator that only moves numbers (or picks among them) runs on integers as they are, if its input and output have the
same scale and zero point; so do the arms of an If and the values carried around a Loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from qir.ir import Graph, Node, Value

__all__ = ["SharedGroups", "shared_groups", "shared_pairs"]

_MOVES = frozenset(
    {
        *(
            "Compress",
            "DepthToSpace",
            "Dropout",
            "Expand",
            "Flatten",
            "Gather",
            "GatherElements",
            "GatherND",
            "Identity",
        ),
        *("Reshape", "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu"),
        *("Unsqueeze", "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "TopK"),
    }
)
"""Ops whose output elements are elements of input 0, or 0, which every quantization represents exactly."""

_SECOND_OUTPUT_IS_NO_DATA = frozenset({"Dropout", "MaxPool", "TopK"})


class SharedGroups:
    """A partition of values. Groups and their members are in the order of the graph, so are all answers."""

    def __init__(self) -> None:
        self._parent: dict[Value, Value] = {}
        self._rank: dict[Value, int] = {}

    def add(self, value: Value) -> None:
        """Know a value, in a group of its own unless it is in one."""
        if value not in self._parent:
            self._parent[value] = value
            self._rank[value] = len(self._rank)

    def leader(self, value: Value) -> Value:
        """The member that came first; the value itself where it is in no group."""
        root = value
        while (parent := self._parent.get(root, root)) is not root:
            root = parent
        while (parent := self._parent.get(value, value)) is not root and parent is not value:
            self._parent[value] = root
            value = parent
        return root

    def unite(self, a: Value, b: Value) -> None:
        """Put two values, and all that share with them, into one group."""
        self.add(a)
        self.add(b)
        first, second = sorted((self.leader(a), self.leader(b)), key=self._rank.__getitem__)
        self._parent[second] = first

    def groups(self) -> list[list[Value]]:
        """All groups of at least two values."""
        found: dict[Value, list[Value]] = {}
        for value in self._parent:
            found.setdefault(self.leader(value), []).append(value)
        return [members for members in found.values() if len(members) > 1]

    def members(self) -> dict[Value, list[Value]]:
        """The group of each value that shares with another."""
        return {value: members for members in self.groups() for value in members}


def shared_pairs(node: Node) -> Iterator[tuple[Value, Value]]:
    """Pairs of values that this node forces to share parameters; constants have parameters of their own.

    Resize shares where it picks the nearest element, Pad where it pads with elements or zeros.
    """
    if node.domain not in ("", "ai.onnx"):
        return
    source = node.input(0)
    match node.op:
        case "If":
            for body in node.bodies:
                yield from zip(node.outputs, body.outputs, strict=False)
        case "Loop":
            yield from _carried(node, first_input=2, first_output=1, body_offset=2, states=len(node.inputs) - 2)
        case "Scan":
            states = len(node.inputs) - int(node.get("num_scan_inputs", 0))
            yield from _carried(node, first_input=0, first_output=0, body_offset=0, states=states)
            for body in node.bodies:
                yield from _present(node.inputs[states:], body.inputs[states:])
        case "Resize" | "Upsample" if node.get("mode", "nearest") == "nearest":
            yield from _present([source], node.outputs[:1])
        case "Pad" if _pads_with_zero(node):
            yield from _present([source], node.outputs[:1])
        case op if op in _MOVES:
            outputs = node.outputs[:1] if op in _SECOND_OUTPUT_IS_NO_DATA else node.outputs
            yield from _present([source] * len(outputs), outputs)


def shared_groups(graph: Graph, pairs: Callable[[Node], Iterable[tuple[Value, Value]]] = shared_pairs) -> SharedGroups:
    """The groups of a graph with its bodies. ``pairs`` says what a node forces; a target may force more or less.

    Only values that are computed or fed and of a float type (or of an unknown one) take part. Near linear.
    """
    found = SharedGroups()
    for node in graph.walk():
        for a, b in pairs(node):
            if _takes_part(a) and _takes_part(b):
                found.unite(a, b)
    return found


def _carried(
    node: Node, *, first_input: int, first_output: int, body_offset: int, states: int
) -> Iterator[tuple[Value, Value]]:
    """What goes into a loop, around it and out of it; further results are stacked from the body's."""
    for body in node.bodies:
        yield from _present(node.inputs[first_input : first_input + states], body.inputs[body_offset:])
        yield from _present(body.outputs[first_output : first_output + states], body.inputs[body_offset:])
        yield from zip(node.outputs, body.outputs[first_output:], strict=False)


def _present(first: Iterable[Value | None], second: Iterable[Value | None]) -> Iterator[tuple[Value, Value]]:
    for a, b in zip(first, second, strict=False):
        if a is not None and b is not None:
            yield a, b


def _pads_with_zero(node: Node) -> bool:
    if node.get("mode", "constant") != "constant":
        return True
    if "value" in node.attributes:
        return bool(node.get("value") == 0)
    fill = node.input(2)
    return fill is None or (fill.tensor is not None and not fill.tensor.numpy().any())


def _takes_part(value: Value) -> bool:
    return value.const is None and bool(value.name) and (value.dtype is None or value.dtype.is_float)
