"""Costs and memory of models whose numbers are known by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, parser

from qir.analysis.cost import model_cost, node_cost, value_bytes, with_input_shapes
from qir.analysis.liveness import last_uses, peak_memory
from qir.errors import OptionError
from qir.frontend.importer import import_model
from qir.ir import Model
from qir.ops.shape_inference import infer
from tests.analysis.running import build


def loaded(proto: onnx.ModelProto) -> Model:
    model = import_model(proto)
    infer(model)
    return model


def text(source: str) -> Model:
    return loaded(parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{source}'))


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_macs_of_each_kind_of_product() -> None:
    cases = [
        (helper.make_node("Conv", ["x", "w"], ["y"], group=2), (1, 4, 6, 6), zeros(8, 2, 3, 3), 8 * 16 * 2 * 9),
        (
            helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=2),
            (1, 4, 6, 6),
            zeros(4, 3, 2, 2),
            4 * 36 * 3 * 4,
        ),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (2, 5, 7), zeros(7, 3), 2 * 5 * 7 * 3),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1, transB=1), (7, 5), zeros(3, 7), 5 * 7 * 3),
        (helper.make_node("Add", ["x", "w"], ["y"]), (5, 7), zeros(7), 0),
    ]
    for node, shape, w, macs in cases:
        model = loaded(build([node], {"x": zeros(*shape)}, {"w": w}, ["y"]))
        cost = node_cost(next(iter(model.graph.nodes)))
        assert (cost.macs, cost.parameters, cost.parameter_bytes) == (macs, w.size, 4 * w.size), node.op_type
        assert cost.read_bytes == 4 * np.prod(shape)
        assert cost.written_bytes == value_bytes(next(iter(model.graph.nodes)).output)
    recurrent = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=5)
    model = loaded(build([recurrent], {"x": zeros(9, 2, 3)}, {"w": zeros(1, 20, 3), "r": zeros(1, 20, 5)}, ["y"]))
    assert model_cost(model).macs == 9 * 2 * 20 * (3 + 5)


def test_a_shared_weight_counts_once() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    cost = model_cost(loaded(build(nodes, {"x": zeros(2, 4)}, {"w": zeros(4, 4)}, ["y"])))
    assert (cost.nodes, cost.parameters, cost.macs, cost.parameter_bytes) == (2, 16, 2 * 2 * 16, 64)
    assert cost.moved_bytes == 4 * 4 * 8


def test_symbolic_shapes_are_bound_by_input_shapes() -> None:
    source = "g (float[N, 3] x) => (float[M, 3] y) { a = Relu(x) c = Concat <axis = 0> (a, x) y = MatMul(c, m) }"
    model = text(source.replace("{", "<float[3, 3] m = {1, 0, 0, 0, 1, 0, 0, 0, 1}> {"))
    assert len(model_cost(model).unknown) == 1
    bound = with_input_shapes(model, {"x": (5, 3)})
    assert model_cost(bound).unknown == []
    assert model_cost(bound).macs == 10 * 9
    assert bound.graph.outputs[0].shape == (10, 3)
    assert model.graph.inputs[0].shape == ("N", 3)
    with pytest.raises(OptionError, match="no input of the model"):
        with_input_shapes(model, {"z": (1,)})
    with pytest.raises(OptionError, match="cannot have the shape"):
        with_input_shapes(model, {"x": (1, 2, 3)})


def test_memory_of_a_chain_and_of_a_branch() -> None:
    chain = text("g (float[100] x) => (y) { a = Relu(x) b = Neg(a) y = Abs(b) }")
    assert peak_memory(chain.graph).bytes == 2 * 400
    held = text("g (float[100] x) => (y) { a = Relu(x) b = Neg(a) c = Abs(b) y = Add(c, a) }")
    peak = peak_memory(held.graph)
    assert (peak.bytes, peak.unknown) == (3 * 400, 0)
    assert peak.node is not None and peak.node.op == "Abs"
    last = {value.name: node.op for value, node in last_uses(held.graph).items()}
    assert last == {"x": "Relu", "a": "Add", "b": "Abs", "c": "Add"}


def test_memory_inside_a_body_counts_where_its_node_runs() -> None:
    model = text(
        """g (float[100] x, bool c) => (y) {
            y = If (c) <then_branch = t () => (float[100] d) { a = Exp(x) b = Neg(a) d = Add(a, b) },
                        else_branch = e () => (float[100] z) { z = Neg(x) }>
        }"""
    )
    peak = peak_memory(model.graph)
    assert peak.node is not None and peak.node.op == "If"
    assert peak.bytes == 400 + 1 + 400 + 3 * 400
    assert {value.name for value in last_uses(model.graph)} == {"x", "c"}


def test_unknown_sizes_are_counted() -> None:
    model = text("g (float[N] x) => (y) { y = Relu(x) }")
    assert peak_memory(model.graph).unknown == 2
