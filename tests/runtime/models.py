"""Ten-line models that the runtime tests share."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def build(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 21,
    ir_version: int = 10,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def tensor(name: str, element: int, shape: list[int | str | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def mlp(width: int = 8, seed: int = 0) -> onnx.ModelProto:
    """x: f32[N, width] -> relu(x @ w + b)."""
    random = np.random.default_rng(seed)
    return build(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="mm"),
            helper.make_node("Add", ["m", "b"], ["a"], name="add"),
            helper.make_node("Relu", ["a"], ["y"], name="relu"),
        ],
        [tensor("x", TensorProto.FLOAT, ["N", width])],
        [tensor("y", TensorProto.FLOAT, ["N", width])],
        {
            "w": random.standard_normal((width, width)).astype(np.float32),
            "b": random.standard_normal(width).astype(np.float32),
        },
    )


def cast(source: int, to: int, opset: int = 25, ir_version: int = 11) -> bytes:
    """x: source[N, 3] -> y: to[N, 3]."""
    node = helper.make_node("Cast", ["x"], ["y"], to=to)
    model = build([node], [tensor("x", source, ["N", 3])], [tensor("y", to, ["N", 3])], None, opset, ir_version)
    return model.SerializeToString()
