"""Which values must share quantization parameters."""

from __future__ import annotations

from typing import Any

import numpy as np

from qir.ir import DType, Graph, Model, Node, TensorType, Value
from qir.quant.groups import shared_groups

F32 = TensorType(DType.FLOAT)


def chain(graph: Graph, op: str, source: Value | None, *more: Value | None, outputs: int = 1, **settings: Any) -> Node:
    return graph.add_node(op, [source, *more], settings, outputs=outputs, types=[F32] * outputs)


def names(graph: Graph) -> list[list[str]]:
    return [[value.name for value in group] for group in shared_groups(graph).groups()]


def partition(graph: Graph) -> list[list[str]]:
    return sorted(map(sorted, names(graph)))


def test_data_movement_forms_one_group() -> None:
    graph = Graph("g")
    x = graph.add_input("x", F32)
    shape = graph.add_constant(np.array([1, -1]), "shape")
    moved = chain(graph, "Transpose", chain(graph, "Reshape", x, shape).output)
    pooled = chain(graph, "MaxPool", moved.output)
    halves = chain(graph, "Split", pooled.output, outputs=2)
    relu = chain(graph, "Relu", halves.outputs[0])
    chain(graph, "Identity", relu.output)
    assert names(graph) == [
        ["x", "Reshape_out", "Transpose_out", "MaxPool_out", "Split_out", "Split_out1"],
        ["Relu_out", "Identity_out"],
    ]
    groups = shared_groups(graph)
    assert groups.leader(halves.outputs[1]) is x
    assert groups.leader(relu.output) is relu.output
    assert groups.members()[moved.output][0] is x


def test_arithmetic_constants_and_indices_do_not_share() -> None:
    graph = Graph("g")
    table = graph.add_constant(np.ones((4, 3), np.float32), "table")
    index = graph.add_input("i", TensorType(DType.INT64))
    row = chain(graph, "Gather", table, index)
    chain(graph, "Add", row.output, table)
    chain(graph, "Concat", row.output, row.output)
    graph.add_node("Reshape", [index, index], types=[TensorType(DType.INT64)])
    assert names(graph) == []


def test_resize_and_pad_depend_on_how() -> None:
    modes: list[tuple[dict[str, Any], bool]] = [({"mode": "nearest"}, True), ({"mode": "linear"}, False), ({}, True)]
    for settings, expected in modes:
        graph = Graph("g")
        chain(graph, "Resize", graph.add_input("x", F32), **settings)
        assert bool(names(graph)) is expected
    for fill, expected in [(0.0, True), (1.0, False)]:
        graph = Graph("g")
        x = graph.add_input("x", F32)
        pads = graph.add_constant(np.zeros(2, np.int64), "pads")
        chain(graph, "Pad", x, pads, graph.add_constant(np.array(fill, np.float32)))
        assert bool(names(graph)) is expected
        older = Graph("g")
        chain(older, "Pad", older.add_input("x", F32), value=fill)
        assert bool(names(older)) is expected


def test_arms_of_an_if() -> None:
    graph = Graph("g")
    condition = graph.add_input("c", TensorType(DType.BOOL))
    x = graph.add_input("x", F32)
    node = graph.add_node("If", [condition], {"then_branch": Graph("t"), "else_branch": Graph("e")}, types=[F32])
    then, other = node.bodies
    then.add_output(chain(then, "Relu", x).output)
    other.add_output(chain(other, "Identity", x).output)
    assert partition(graph) == [["Identity_out", "If_out", "Relu_out", "x"]]


def test_what_a_loop_carries_and_stacks() -> None:
    graph = Graph("g")
    trips = graph.add_input("n", TensorType(DType.INT64))
    x = graph.add_input("x", F32)
    node = graph.add_node("Loop", [trips, None, x], {"body": Graph("b")}, outputs=2, types=[F32, F32])
    (body,) = node.bodies
    body.add_input("i", TensorType(DType.INT64))
    condition = body.add_input("c", TensorType(DType.BOOL))
    state = body.add_input("s", F32)
    body.add_output(condition)
    body.add_output(chain(body, "Relu", state).output)
    body.add_output(chain(body, "Exp", state).output)
    assert partition(graph) == [["Exp_out", "Loop_out1"], ["Loop_out", "Relu_out", "s", "x"]]


def test_what_a_scan_carries_and_reads() -> None:
    graph = Graph("g")
    x, rows = graph.add_input("x", F32), graph.add_input("rows", F32)
    node = graph.add_node("Scan", [x, rows], {"body": Graph("b"), "num_scan_inputs": 1}, outputs=2, types=[F32, F32])
    (body,) = node.bodies
    state, row = body.add_input("s", F32), body.add_input("r", F32)
    body.add_output(chain(body, "Add", state, row).output)
    body.add_output(chain(body, "Exp", row).output)
    assert partition(graph) == [
        ["Add_out", "Scan_out", "s", "x"],
        ["Exp_out", "Scan_out1"],
        ["r", "rows"],
    ]


def test_long_chains_are_linear_and_found() -> None:
    model = Model(Graph("g"), {"": 17})
    value = model.graph.add_input("x", F32)
    for _ in range(20000):
        value = chain(model.graph, "Identity", value).output
    (group,) = shared_groups(model.graph).groups()
    assert len(group) == 20001
