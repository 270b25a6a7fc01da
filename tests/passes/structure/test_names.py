"""What the exact passes do to names: none is taken twice, outputs keep theirs, new nodes have one."""

from __future__ import annotations

import numpy as np
import pytest

from qir.codegen import export_model
from qir.ir import Model
from qir.pipeline import Pipeline
from tests.passes.support import assert_close, onnx_text, outputs

CONV_BN = """
main (float[1,2,4,4] x) => ({outputs})
<float[2,2,1,1] w = {{1, 2, 3, 4}}, float[2] p = {{1, 2}}, float[2] bias = {{5, 6}}, float[2] c_bias = {{7, 8}}> {{
  c = Conv(x, w)
  n = BatchNormalization(c, p, bias, p, p)
  d = Conv(n, w)
  m = BatchNormalization(d, p, c_bias, p, p)
  y = Relu(m)
}}
"""
FEED = {"x": np.linspace(-1, 1, 32, dtype=np.float32).reshape(1, 2, 4, 4)}


def optimized(model: Model) -> Model:
    result = Pipeline(["optimize"]).run(model).model
    assert_close(outputs(result, FEED), outputs(model, FEED))
    return result


def test_names_stay_unique_when_constants_are_made() -> None:
    """The hints for the biases that the fusions make are names that the model has already."""
    model = onnx_text(CONV_BN.format(outputs="float[1,2,4,4] y"))
    for node, result in zip(model.walk(), ("c", "c.bias", "d", "d.bias", "y"), strict=True):
        node.name = node.output.name
        node.output.name = result
    graph = export_model(optimized(model)).graph
    names = [tensor.name for tensor in graph.initializer] + [name for node in graph.node for name in node.output]
    assert len(names) == len(set(names))
    assert [node.op_type for node in graph.node] == ["Conv", "Conv", "Relu"]


@pytest.mark.parametrize("wanted", ["c", "n", "d", "m"])
def test_a_result_in_the_midst_of_a_fusion_that_is_asked_for_is_still_there(wanted: str) -> None:
    model = onnx_text(CONV_BN.format(outputs=f"float[1,2,4,4] y, float[1,2,4,4] {wanted}"))
    assert [value.name for value in optimized(model).graph.outputs] == ["y", wanted]


def test_new_nodes_have_names_where_the_old_ones_had() -> None:
    gelu = """
    main (float[2,4] x) => (float[2,4] y)
    <float[4,4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4, 3, 2}, float[4] b = {1, 2, 3, 4},
     float root = {1.4142135}, float one = {1.0}, float half = {0.5}> {
      m = MatMul(x, w)
      a = Add(m, b)
      d = Div(a, root)
      e = Erf(d)
      f = Add(e, one)
      g = Mul(a, f)
      y = Mul(g, half)
    }
    """
    model = onnx_text(gelu, opset=20)
    for index, node in enumerate(model.walk()):
        node.name = f"node{index}"
    result = Pipeline(["optimize"]).run(model).model
    assert [node.op for node in result.walk()] == ["Gemm", "Gelu"]
    assert all(node.name for node in result.walk())
