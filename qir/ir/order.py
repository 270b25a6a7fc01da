"""Topological order of a graph's nodes, stable and linear."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from qir.ir.node import Node

if TYPE_CHECKING:
    from qir.ir.graph import Graph
    from qir.ir.value import Value

__all__ = ["topological_order"]


def topological_order(graph: Graph) -> list[Node]:
    """The nodes so that each stands after those whose results it, or a body of it, reads.

    An order that is right already is kept, else the earliest possible node comes first (Kahn's algorithm with the old
    position as priority). Raises ValueError on a cycle, naming a node of it.
    """
    position = {node: index for index, node in enumerate(graph.nodes)}
    waiting: dict[Node, int] = {}
    readers: dict[Node, list[Node]] = {}
    in_order = True
    for node, index in position.items():
        producers = {p for value in operands(node) if (p := value.producer) is not None and p is not node}
        local = [p for p in producers if p in position]
        waiting[node] = len(local)
        for producer in local:
            readers.setdefault(producer, []).append(node)
            in_order = in_order and position[producer] < index
    nodes = list(position)
    if in_order:
        return nodes
    ready = [position[node] for node, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    order: list[Node] = []
    while ready:
        node = nodes[heapq.heappop(ready)]
        order.append(node)
        for reader in readers.get(node, ()):
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, position[reader])
    if len(order) < len(nodes):
        stuck = next(node for node in nodes if waiting[node])
        raise ValueError(f"the graph has a cycle through or before node {stuck.label!r}")
    return order


def operands(node: Node) -> list[Value]:
    """What the node reads, including what its bodies read (some of that made inside of them)."""
    found = [use.value for use in node.uses if use is not None]
    for body in node.bodies:
        for inner in body.walk():
            found += [use.value for use in inner.uses if use is not None]
        for nested in body.graphs():
            found += nested.outputs
    return found
