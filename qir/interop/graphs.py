"""The IR as a networkx graph, for its algorithms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qir.ir import Graph

if TYPE_CHECKING:
    import networkx

__all__ = ["to_networkx"]


def to_networkx(graph: Graph) -> networkx.MultiDiGraph:
    """A directed multigraph whose vertices are the IR's own objects.

    Vertices: each Node (``kind="node"``, ``op``, ``domain``, ``label``), each input and initializer as its Value
    (``kind="input"`` or ``"constant"``, ``label``), each graph output as its Use (``kind="output"``, ``label``). Edges
    follow the data and carry ``value`` (the Value), ``operand`` (input index) and ``result`` (output index, None from
    a Value). What bodies of ``graph`` capture is an edge to the node that holds them, with ``operand`` None; a value
    from around ``graph`` is an ``"input"``.
    """
    import networkx

    made = networkx.MultiDiGraph(name=graph.name)
    for value in [*graph.inputs, *(value for value in graph.initializers if value not in graph.input_set)]:
        made.add_node(value, kind="input" if value in graph.input_set else "constant", label=value.name)
    for node in graph.nodes:
        made.add_node(node, kind="node", op=node.op, domain=node.domain, label=node.label)
    for node in graph.nodes:
        for use in node.uses:
            if use is not None:
                _connect(made, graph, use.value, node, use.index)
        captured = {
            use.value: None
            for body in node.bodies
            for inner in body.graphs()
            for use in [*(u for n in inner.nodes for u in n.uses if u is not None), *inner.output_uses]
            if use.value.graph is graph
        }
        for value in captured:
            _connect(made, graph, value, node, None)
    for use in graph.output_uses:
        made.add_node(use, kind="output", label=use.value.name)
        _connect(made, graph, use.value, use, 0)
    return made


def _connect(made: networkx.MultiDiGraph, graph: Graph, value: object, reader: object, operand: int | None) -> None:
    from qir.ir import Value

    assert isinstance(value, Value)
    producer = value.producer if value.graph is graph else None
    if producer is None and value not in made:
        made.add_node(value, kind="input", label=value.name)
    source = value if producer is None else producer
    result = None if producer is None else value.index
    made.add_edge(source, reader, value=value, operand=operand, result=result)
