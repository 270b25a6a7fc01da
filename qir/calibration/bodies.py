"""Handing the numbers of a body's values out of it, because a runtime only returns what the main graph returns.

A branch of an If hands out all numbers of a value, as a vector; the other branch an empty one. A Loop or Scan hands out
the smallest and largest number of each round: its results must have the same shape in every round. Where a branch in a
loop was not taken these are infinite, and are filtered out behind the loop.
"""

from __future__ import annotations

import numpy as np

from qir.ir import DType, Graph, Node, Tensor, TensorType, Value

__all__ = ["hand_out"]

_VECTOR = TensorType(DType.FLOAT, (None,))
_PAIR = TensorType(DType.FLOAT, (2,))


def hand_out(value: Value) -> Value | None:
    """A new value of the main graph with numbers of ``value`` (f32, of a body): all of them, or those that bound them.

    Edits the model, which should be a copy, of opset 13 or later. None where that is impossible: in a function, or in
    the body of an operator that qir does not know.
    """
    graph = value.graph
    if graph is None:
        return None
    path = _owners(graph)
    if path is None or not path:
        return None
    made = _flat(graph, value)
    for owner in path:
        if owner.op == "If":
            made = _through_if(owner, made)
        else:
            made = _through_loop(owner, made)
    return made


def _owners(graph: Graph) -> list[Node] | None:
    """The nodes around a body, innermost first; None where one of them is not understood."""
    owners = []
    while graph.owner is not None:
        owner = graph.owner
        if owner.domain not in ("", "ai.onnx") or owner.op not in ("If", "Loop", "Scan") or owner.graph is None:
            return None
        owners.append(owner)
        graph = owner.graph
    return owners if graph.function is None else None


def _through_if(owner: Node, made: Value) -> Value:
    for body in owner.bodies:
        if body is made.graph:
            body.add_output(made)
        else:
            empty = np.zeros(0, np.float32)
            node = body.add_node("Constant", [], {"value": Tensor.of(empty)}, types=[_VECTOR])
            body.add_output(node.output)
    return _result(owner, _VECTOR)


def _through_loop(owner: Node, made: Value) -> Value:
    body, graph = made.graph, owner.graph
    assert body is not None and graph is not None
    bounds = []
    for op, unit in (("ReduceMin", np.inf), ("ReduceMax", -np.inf)):
        never_empty = body.add_node("Concat", [made, _constant(body, unit)], {"axis": 0}, types=[_VECTOR]).output
        attributes = {"keepdims": 1}
        bounds.append(body.add_node(op, [never_empty], attributes, types=[TensorType(DType.FLOAT, (1,))]).output)
    body.add_output(body.add_node("Concat", bounds, {"axis": 0}, types=[_PAIR]).output)
    if owner.op == "Scan" and (axes := owner.get("scan_output_axes")) is not None:
        owner.set("scan_output_axes", [*axes, 0])
    if owner.op == "Scan" and (directions := owner.get("scan_output_directions")) is not None:
        owner.set("scan_output_directions", [*directions, 0])
    rounds = _flat(graph, _result(owner, TensorType(DType.FLOAT, (None, 2))), after=owner)
    size = graph.insert_after(_producer(rounds), "Abs", [rounds], types=[_VECTOR])
    finite = graph.insert_after(
        size, "Less", [size.output, _constant(graph, np.inf)], types=[TensorType(DType.BOOL, (None,))]
    )
    return graph.insert_after(
        finite, "Compress", [rounds, finite.output], attributes={"axis": 0}, types=[_VECTOR]
    ).output


def _result(owner: Node, type_: TensorType) -> Value:
    graph = owner.graph
    assert graph is not None
    return owner.add_output(graph.fresh_name(f"{owner.label}_statistic"), type_)


def _flat(graph: Graph, value: Value, after: Node | None = None) -> Value:
    """At the end of a body; in an outer graph right behind the node that made the value."""
    shape = graph.add_constant(np.array([-1], np.int64), "flat")
    node = graph.add_node("Reshape", [value, shape], types=[_VECTOR], before=after.next if after is not None else None)
    return node.output


def _constant(graph: Graph, number: float) -> Value:
    return graph.add_constant(np.array([number], np.float32), "bound")


def _producer(value: Value) -> Node:
    assert value.producer is not None
    return value.producer
