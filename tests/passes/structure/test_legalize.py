"""legalize: constants in the shapes that integer kernels fuse with, the function unchanged."""

from __future__ import annotations

import numpy as np
import pytest

from qir.codegen import to_bytes
from qir.ir import Model
from qir.passes.structure.legalize import Legalize
from qir.pipeline import PassContext, Pipeline
from qir.runtime.session import PLAIN, OrtRunner
from tests.passes.int8 import feeds, model, node
from tests.passes.support import assert_close, onnx_text, outputs
from tests.textual import CheckPass


def graph(body: str, inputs: str, outputs: str = "%y") -> Model:
    return model(f"graph g({inputs}) -> ({outputs}) {{\n{body}\n}}")


def legal(source: Model) -> Model:
    """Legalized, and checked to compute the same."""
    result = Pipeline([Legalize()]).run(source).model
    before, after = OrtRunner(to_bytes(source), PLAIN), OrtRunner(to_bytes(result), PLAIN)
    for feed in feeds(source, 2):
        assert_close(after.run(feed), before.run(feed), 1e-5)
    return result


def bias_shape(source: Model, op: str, index: int) -> tuple[int, ...]:
    value = node(source, op).input(index)
    assert value is not None and value.tensor is not None
    return value.tensor.shape


def test_a_bias_becomes_a_row(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[2,8,2]) -> (%y) {
          @w: f32[2,2] = [1, 2, 3, 4]
          @b: f32[2] = [1, 2]
          %m: f32[2,8,2] = MatMul(%x, @w)
          %y: f32[2,8,2] = Add(@b, %m)
        }
        """,
        "legalize",
        """
        graph (%x: f32[2,8,2]) -> (%y) {
          @w: f32[2,2] = [1, 2, 3, 4]
          @b_row: f32[1,2] = [1, 2]
          %m: f32[2,8,2] = MatMul(%x, @w)
          %y: f32[2,8,2] = Add(@b_row, %m)
        }
        """,
    )


@pytest.mark.parametrize("shape", ["1", "5", "1,5", "1,1", ""])
@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemms_bias_becomes_a_number_a_column(shape: str, transposed: int) -> None:
    weight = "5,8" if transposed else "8,5"
    source = graph(
        f"@w: f32[{weight}] #01\n@b: f32[{shape}] #02\n%y = Gemm(%x, @w, @b) {{transB={transposed}}}", "%x: f32[3,8]"
    )
    assert bias_shape(legal(source), "Gemm", 2) == (5,)


@pytest.mark.parametrize("shape", ["3,5", "3,1"])
def test_a_bias_that_differs_by_row_stays(shape: str) -> None:
    source = graph(f"@w: f32[8,5] #01\n@b: f32[{shape}] #02\n%y = Gemm(%x, @w, @b)", "%x: f32[3,8]")
    assert bias_shape(legal(source), "Gemm", 2) == tuple(map(int, shape.split(",")))


def test_a_bias_that_others_use_keeps_its_shape_for_them() -> None:
    source = graph(
        "@w: f32[8,5] #01\n@b: f32[1,5] #02\n%y = Gemm(%x, @w, @b)\n%z = Mul(%y, @b)", "%x: f32[3,8]", "%y, %z"
    )
    result = legal(source)
    assert bias_shape(result, "Gemm", 2) == (5,) and bias_shape(result, "Mul", 1) == (1, 5)


def test_x_times_its_sigmoid_becomes_one_kernel() -> None:
    for product in ("Mul(%x, %s)", "Mul(%s, %x)"):
        result = legal(graph(f"%s = Sigmoid(%x)\n%y = {product}", "%x: f32[1,8]"))
        assert [(found.domain, found.op) for found in result.graph.nodes] == [("com.microsoft", "QuickGelu")]
        assert result.graph.outputs[0].name == "y" and result.opset("com.microsoft") == 1


@pytest.mark.parametrize(
    "body",
    ["%s = Sigmoid(%x)\n%y = Mul(%s, %u)", "%s = Sigmoid(%x)\n%m = Mul(%s, %x)\n%y = Add(%m, %s)", "%y = Mul(%x, %x)"],
)
def test_what_only_looks_like_it_stays(body: str) -> None:
    source = graph(body, "%x: f32[1,8], %u: f32[1,8]")
    assert "QuickGelu" not in {found.op for found in legal(source).graph.nodes}


def test_a_sigmoid_that_is_an_output_stays() -> None:
    result = legal(graph("%s = Sigmoid(%x)\n%y = Mul(%x, %s)", "%x: f32[1,8]", "%y, %s"))
    assert [found.op for found in result.graph.nodes] == ["Sigmoid", "Mul"]


def test_a_model_with_nothing_to_do_is_unchanged() -> None:
    assert not Pipeline([Legalize()]).run(graph("%y = Relu(%x)", "%x: f32[1,8]")).changed


def test_in_a_function_the_contrib_domain_is_imported_by_the_function_too() -> None:
    model = onnx_text(
        """main (float[2,4] x) => (float[2,4] y) { y = local.Swish(x) }
        <domain: "local", opset_import: ["" : 17]>
        Swish (a) => (b) { s = Sigmoid(a)  b = Mul(a, s) }"""
    )
    model.opset_imports = {**model.opset_imports, "local": 1}
    feed = {"x": np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)}
    expected = outputs(model, feed)
    result = Pipeline(["legalize"]).run(model)
    (function,) = result.model.functions.values()
    assert [node.op for node in function.graph.nodes] == ["QuickGelu"]
    assert function.opset_imports == {"": 17, "com.microsoft": 1}
    assert_close(outputs(result.model, feed), expected)
    model.begin("undone")
    Legalize().run(model, PassContext())
    model.rollback()
    (function,) = model.functions.values()
    assert function.opset_imports == {"": 17}


def test_silu_in_another_type_than_float32_stays() -> None:
    text = "main (double[2,4] x) => (double[2,4] y) { s = Sigmoid(x)  y = Mul(x, s) }"
    assert not Legalize().run(onnx_text(text), PassContext()).changed


def test_silu_stays_two_operators_for_targets_without_onnxruntimes_own() -> None:
    text = "graph g(%x: f32[1,8]) -> (%y) {\n  %s = Sigmoid(%x)\n  %y = Mul(%x, %s)\n}"
    for target, ops in (("ort-cpu", ["QuickGelu"]), ("tensorrt", ["Sigmoid", "Mul"]), ("qnn-htp", ["Sigmoid", "Mul"])):
        made = Pipeline.parse("legalize").run(model(text), target=target).model
        assert [node.op for node in made.graph.nodes] == ops
