"""emit-qoperator: the integer spelling of what emit-qdq spells with quantizers, the same numbers to a step."""

# ruff: noqa: E501  # a graph reads best with a node a line
from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import qir
from qir import golden_models
from qir.codegen import to_bytes
from qir.ir import Model
from qir.pipeline import Pipeline, RemarkKind
from qir.runtime.session import PLAIN, OrtRunner
from tests.passes.int8 import annotated, feeds, model
from tests.passes.lifting.test_lift import CONV, LINEAR, golden_feeds
from tests.textual import CheckPass


def ops(source: Model) -> Counter[str]:
    return Counter(node.op for node in source.walk())


def emitted(source: Model, passes: str, samples: list[dict[str, np.ndarray]] | None = None) -> Model:
    return Pipeline.parse(passes).run(annotated(source, samples).model).model


def worst_steps(a: Model, b: Model, samples: list[dict[str, np.ndarray]], plain: bool) -> float:
    """The largest difference of any output in 255ths of its largest number."""
    runners = [OrtRunner(to_bytes(one), PLAIN) if plain else OrtRunner(to_bytes(one)) for one in (a, b)]
    worst = 0.0
    for feed in samples:
        wanted, got = (runner.run(feed) for runner in runners)
        for name, array in wanted.items():
            if array.dtype.kind == "f":
                step = np.abs(array).max() / 255
                worst = max(worst, float(np.abs(array - got[name]).max() / step))
    return worst


def test_a_convolution_with_its_activation(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[1,1,2,2]) -> (%y) {
          @w: f32[1,1,1,1] frozen = [1]
          @b: f32[1] frozen = [1]
          %c: f32[1,1,2,2] = Conv(%x : u8(0.5, 128), @w : s8(0.25, 0), @b : derived(s32, 0, 1)) kernel=integer name="c"
          %y: f32[1,1,2,2] q=u8(0.125, 0) = Relu(%c)
        }
        """,
        "emit-qoperator",
        """
        graph (%x: f32[1,1,2,2]) -> (%y) {
          @x_scale: f32[] = 0.5
          @x_zero_point: u8[] = 128
          @w_quantized: s8[1,1,1,1] = [4]
          @w_scale: f32[] = 0.25
          @w_zero_point: s8[] = 0
          @b_quantized: s32[1] = [8]
          @y_scale: f32[] = 0.125
          @y_zero_point: u8[] = 0
          %x_quantized: u8[1,1,2,2] = QuantizeLinear(%x, @x_scale, @x_zero_point) name="x_QuantizeLinear"
          %c_codes: u8[1,1,2,2] = QLinearConv(%x_quantized, @x_scale, @x_zero_point, @w_quantized, @w_scale, @w_zero_point, @y_scale, @y_zero_point, @b_quantized) name="c_1"
          %y: f32[1,1,2,2] = DequantizeLinear(%c_codes, @y_scale, @y_zero_point) name="y_DequantizeLinear"
        }
        """,
    )


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "optimized"])
@pytest.mark.parametrize("form", ["emit-qoperator", "emit-qoperator{contrib=false}"])
@pytest.mark.parametrize("text", [CONV, LINEAR], ids=["convolutions", "linear"])
def test_the_same_as_quantizers_to_two_steps(text: str, form: str, plain: bool) -> None:
    source = model(text)
    samples = feeds(source, 4)
    assert worst_steps(emitted(source, "emit-qdq", samples), emitted(source, form, samples), samples, plain) <= 2.5


@pytest.mark.parametrize("name", ["resnet-shapes", "mobile-sounds", "vit-digits", "detector-shapes"])
def test_golden_models_are_the_same_to_two_steps(name: str) -> None:
    source = Pipeline.parse("canonicalize,convert-opset{to=13},fold-constants,fuse,canonicalize,legalize").run(
        qir.load(golden_models.path(name) / "model.onnx")
    ).model  # fmt: skip
    samples = golden_feeds(name, 6)
    quantized = annotated(source, samples).model
    qdq, integer = (Pipeline.parse(form).run(quantized).model for form in ("emit-qdq", "emit-qoperator"))
    assert any(op.startswith(("QLinear", "QGemm", "MatMulInteger")) for op in ops(integer))
    # Steps of the outputs' own scales would be coarser than these.
    assert worst_steps(qdq, integer, samples, plain=False) <= 2.5


def test_standard_operators_only() -> None:
    found = emitted(model(CONV), "emit-qoperator{contrib=false}")
    # QuickGelu is legalize's, and computes in float.
    assert {node.op for node in found.walk() if node.domain == "com.microsoft"} <= {"QuickGelu"}
    assert ops(found)["QLinearConv"] == 2
    integers = emitted(model(LINEAR), "emit-qoperator{contrib=false}")
    assert ops(integers)["MatMulInteger"] + ops(integers)["QLinearMatMul"] == 2


def test_what_keeps_its_quantizers_is_named_with_the_reason() -> None:
    """A scale for each row of a square weight: kernels would read it as one for each column."""
    text = """
    graph (%x: f32[2,4]) -> (%y) {
      @w: f32[4,4] #0031
      %y: f32[2,4] q=u8(0.1, 128) = MatMul(%x : u8(0.1, 128), @w : s8[axis=0]([0.1, 0.2, 0.3, 0.4], 0)) kernel=integer
    }"""
    source = model(text)
    result = Pipeline.parse("emit-qoperator").run(source)
    assert ops(result.model)["MatMul"] == 1
    missed = [remark.message for remark in result.remarks if remark.kind is RemarkKind.MISSED]
    assert any("axis 0" in message for message in missed)


def test_a_clip_that_codes_reach_beyond_stays() -> None:
    text = """
    graph (%x: f32[1,1,4,4]) -> (%y) {
      @w: f32[1,1,1,1] = [1]
      @lo: f32[] = 0
      @hi: f32[] = 6
      %c: f32[1,1,4,4] = Conv(%x : u8(0.1, 128), @w : s8(0.01, 0)) kernel=integer
      %y: f32[1,1,4,4] q=u8(UPPER, 0) = Clip(%c, @lo, @hi)
    }"""
    reached = Pipeline.parse("emit-qoperator").run(model(text.replace("UPPER", "0.05"))).model
    assert ops(reached)["Clip"] == 1 and ops(reached)["QLinearConv"] == 0
    covered = Pipeline.parse("emit-qoperator").run(model(text.replace("UPPER", "0.02"))).model
    assert ops(covered)["Clip"] == 0 and ops(covered)["QLinearConv"] == 1


def test_s8_activations_take_s8_weights_only() -> None:
    text = """
    graph (%x: f32[2,4]) -> (%y) {
      @w: f32[4,3] #0032
      %y: f32[2,3] q=s8(0.1, 0) = MatMul(%x : s8(0.1, 0), @w : WEIGHT) kernel=integer
    }"""
    signed = Pipeline.parse("emit-qoperator").run(model(text.replace("WEIGHT", "s8(0.01, 0)"))).model
    assert ops(signed)["QLinearMatMul"] == 1
    OrtRunner(to_bytes(signed))
    mixed = Pipeline.parse("emit-qoperator").run(model(text.replace("WEIGHT", "u8(0.01, 128)"))).model
    assert ops(mixed)["QLinearMatMul"] == 0
    OrtRunner(to_bytes(mixed))
