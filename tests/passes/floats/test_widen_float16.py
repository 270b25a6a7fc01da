"""widen-float16: half-precision models computed in float, their interface as it was."""

from __future__ import annotations

import numpy as np

from qir.codegen import to_bytes
from qir.ir import DType, Model
from qir.ops.shape_inference import infer
from qir.passes.floats.widen_float16 import WidenFloat16
from qir.pipeline import Pipeline
from qir.runtime.session import PLAIN, OrtRunner
from tests.passes.int8 import feeds, model
from tests.passes.support import assert_close


def graph(body: str, inputs: str, outputs: str = "%y") -> Model:
    return model(f"graph g({inputs}) -> ({outputs}) {{\n{body}\n}}")


def widened(source: Model) -> Model:
    """Widened; runs, with the same interface, and gives nearly the same."""
    result = Pipeline([WidenFloat16()]).run(source).model
    infer(result)
    before, after = OrtRunner(to_bytes(source), PLAIN), OrtRunner(to_bytes(result), PLAIN)
    assert (before.inputs, before.outputs) == (after.inputs, after.outputs)
    for feed in feeds(source, 2):
        assert_close(after.run(feed), before.run(feed), 1e-2)
    return result


def ops(source: Model) -> list[str]:
    return [node.op for node in source.walk()]


def halves(source: Model) -> int:
    """Values inside that are still f16."""
    inside = set(source.graph.values()) - set(source.graph.inputs) - set(source.graph.outputs)
    return sum(value.dtype is DType.FLOAT16 for value in inside)


def test_weights_and_values_become_float() -> None:
    result = widened(graph("@w: f16[4,8] #01\n%a = MatMul(%x, @w)\n%y = Relu(%a)", "%x: f16[3,4]"))
    assert ops(result) == ["Cast", "MatMul", "Relu", "Cast"] and halves(result) == 0
    assert {v.dtype for v in result.graph.initializers} == {DType.FLOAT}


def test_a_float_model_is_left_alone() -> None:
    assert not Pipeline([WidenFloat16()]).run(graph("%y = Relu(%x)", "%x: f32[4]")).changed


def test_only_half_of_the_interface_is_half() -> None:
    result = widened(
        graph(
            "%a = Cast(%x) {to=10}\n%b = Add(%a, %u)\n%y = Cast(%b) {to=1}\n%z = Neg(%b)",
            "%x: f32[4], %u: f16[4]",
            "%y, %z",
        )
    )
    assert [value.dtype for value in result.graph.outputs] == [DType.FLOAT, DType.FLOAT16]
    assert halves(result) == 0


def test_an_input_that_is_an_output_too() -> None:
    result = widened(graph("%y = Relu(%x)", "%x: f16[4]", "%y, %x"))
    assert [value.name for value in result.graph.outputs][1] == "x"


def test_one_value_under_two_outputs() -> None:
    result = widened(graph("%y = Relu(%x)\n%z = Identity(%y)", "%x: f16[4]", "%y, %z"))
    assert [value.name for value in result.graph.outputs] == ["y", "z"]


def test_bodies_and_constants_in_attributes() -> None:
    result = widened(
        graph(
            "%y = If(%c) {then_branch=graph then() -> (%t) {\n"
            "%k = Constant() {value=f16[1] [0.5]}\n%t = Mul(%x, %k)\n}, "
            "else_branch=graph else() -> (%e) {\n@two: f16[1] = [2]\n%e = Mul(%x, @two)\n}}",
            "%x: f16[4], %c: bool[]",
        )
    )
    assert halves(result) == 0 and "Constant" in ops(result)


def test_the_largest_half_numbers_survive() -> None:
    source = graph("@big: f16[2] = [65504, -65504]\n%y = Add(%x, @big)", "%x: f16[2]")
    result = Pipeline([WidenFloat16()]).run(source).model
    got = OrtRunner(to_bytes(result), PLAIN).run({"x": np.zeros(2, np.float16)})["y"]
    np.testing.assert_array_equal(got, np.array([65504, -65504], np.float16))
