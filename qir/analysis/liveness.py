"""How long values live, and how much memory the activations of a run need at once."""

from __future__ import annotations

from dataclasses import dataclass

from qir.analysis.cost import value_bytes
from qir.ir import Graph, Node, Value
from qir.ir.order import operands

__all__ = ["MemoryPeak", "last_uses", "peak_memory"]


@dataclass(frozen=True, slots=True)
class MemoryPeak:
    """The largest sum of the sizes of values alive at once while the nodes run in order, without reuse in place."""

    bytes: int
    node: Node | None
    """Where the peak is first reached; None for a graph without nodes."""
    unknown: int
    """Values left out because their size is not known."""


def last_uses(graph: Graph) -> dict[Value, Node]:
    """The last node, in the graph's order, that reads each value of this graph, itself or in a body of it.

    Constants are not listed, nor are outputs of the graph: they live on.
    """
    last: dict[Value, Node] = {}
    for node in graph.nodes:
        for value in operands(node):
            if value.graph is graph and value.const is None:
                last[value] = node
    for value in graph.outputs:
        last.pop(value, None)
    return last


def peak_memory(graph: Graph) -> MemoryPeak:
    """The peak of the activations of one graph, inputs included and constants not; a body counts where its node runs.

    Linear. Needs shapes; see ``cost.with_input_shapes`` where they are symbolic.
    """
    last = last_uses(graph)
    dying: dict[Node, list[Value]] = {}
    for value, node in last.items():
        dying.setdefault(node, []).append(value)
    unknown = 0
    alive: dict[Value, int] = {}

    def enter(value: Value) -> int:
        nonlocal unknown
        size = value_bytes(value)
        unknown += size is None
        alive[value] = size or 0
        return alive[value]

    now = sum(enter(value) for value in graph.inputs if value.const is None)
    peak, place = now, None
    outputs = set(graph.outputs)
    for node in graph.nodes:
        now += sum(enter(value) for value in node.outputs if value.name)
        inside = 0
        for body in node.bodies:
            inner = peak_memory(body)
            inside = max(inside, inner.bytes)
            unknown += inner.unknown
        if now + inside > peak or place is None:
            peak, place = max(peak, now + inside), node
        now -= sum(alive.pop(value, 0) for value in dying.get(node, ()))
        # What nobody reads dies at once.
        now -= sum(alive.pop(v, 0) for v in node.outputs if v not in last and v not in outputs)
    return MemoryPeak(peak, place, unknown)
