"""Random small graphs through random orders of the exact passes keep their outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qir.frontend import import_model
from qir.ir.printer import print_model
from qir.ops.shape_inference import infer
from qir.passes.structure.canonicalize import Canonicalize
from qir.passes.structure.fold_constants import FoldConstants
from qir.passes.structure.fuse import Fuse
from qir.pipeline.contract import Pass, PassContext
from tests.passes.support import apply, assert_close, outputs

SHAPE = (1, 2, 4, 4)
PASSES: tuple[Pass, ...] = (Canonicalize(), FoldConstants(), Fuse())

UNARY = ("Identity", "Relu", "Neg", "Abs", "Sigmoid", "HardSwish")
BINARY = ("Add", "Mul", "Sub")


@st.composite
def model_bytes(draw: st.DrawFn) -> bytes:
    """Nodes over values of one shape, so that any operand fits anywhere; the constants differ in shape."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    constants = [
        rng.standard_normal(shape).astype(np.float32) for shape in ((), (1,), (2, 1, 1), (1, 2, 1, 1), (4,), SHAPE)
    ]
    weights = [numpy_helper.from_array(array, f"c{i}") for i, array in enumerate(constants)]
    weights.append(numpy_helper.from_array(rng.standard_normal((2, 2, 1, 1)).astype(np.float32), "w"))
    weights.append(numpy_helper.from_array(rng.standard_normal((2, 1, 3, 3)).astype(np.float32), "dw"))
    weights.append(numpy_helper.from_array(np.abs(rng.standard_normal(2)).astype(np.float32) + 0.1, "p"))
    weights.append(numpy_helper.from_array(np.array(SHAPE, np.int64), "shape"))
    weights.append(numpy_helper.from_array(np.array([1, 2, 16], np.int64), "flat"))
    values = ["x"]
    nodes: list[onnx.NodeProto] = []

    def add(op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"v{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    for _ in range(draw(st.integers(1, 12))):
        value = draw(st.sampled_from(values))
        match draw(st.integers(0, 8)):
            case 0:
                made = add(draw(st.sampled_from(UNARY)), [value])
            case 1:
                made = add(draw(st.sampled_from(BINARY)), [value, draw(st.sampled_from(values))])
            case 2:
                pair = [value, f"c{draw(st.integers(0, len(constants) - 1))}"]
                made = add(draw(st.sampled_from(BINARY)), pair if draw(st.booleans()) else pair[::-1])
            case 3:
                made = add("Conv", [value, "w"])
            case 4:
                made = add("Conv", [value, "dw"], group=2, pads=[1, 1, 1, 1])
            case 5:
                made = add("BatchNormalization", [value, "p", "p", "p", "p"])
            case 6:
                made = add("Transpose", [add("Transpose", [value], perm=[0, 1, 3, 2])], perm=[0, 1, 3, 2])
            case 7:
                made = add("Reshape", [add("Reshape", [value, "flat"]), "shape"])
            case _:
                made = add("Mul", [value, add("Neg", [add("Exp", ["c5"])])])
        values.append(made)
    names = draw(st.lists(st.sampled_from(values[1:]), min_size=1, max_size=3, unique=True))
    graph = helper.make_graph(
        nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in names],
        weights,
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


@settings(max_examples=60)
@given(model_bytes(), st.lists(st.sampled_from(PASSES), min_size=1, max_size=4), st.booleans())
def test_outputs_stay_and_undo_restores(data: bytes, pipeline: list[Pass], undo: bool) -> None:
    model = import_model(onnx.ModelProto.FromString(data))
    infer(model)
    feed = {"x": np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)}
    expected = outputs(model, feed)
    if undo:
        before = print_model(model)
        model.begin("undone")
        for pass_ in pipeline:
            pass_.run(model, PassContext())
        model.rollback()
        assert print_model(model) == before
    for pass_ in pipeline:
        apply(pass_, model)
        infer(model)
    assert_close(outputs(model, feed), expected, 1e-3)
