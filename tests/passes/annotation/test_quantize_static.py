"""quantize-static: fp8 and 16-bit activations as QDQ, beside the reference arithmetic."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from qir.codegen import to_bytes
from qir.errors import DataError, OptionError
from qir.ir import DType, Model, StaticQuant, Tensor
from qir.pipeline import Pipeline, PipelineResult
from qir.pipeline.registry import load_target
from qir.quant.arithmetic import fake_quantize
from qir.runtime.session import PLAIN, OrtRunner
from qir.targets.lint import lint
from qir.validation.metrics import sqnr_db
from tests.passes.int8 import feeds, model, types

DRAW = np.random.default_rng
FLOAT8 = ["f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz"]
NET = """
graph net(%x: f32[N,8,10,10]) -> (%y) {
  @w: f32[16,8,3,3] #1  @b: f32[16] #2  @v: f32[16,16,3,3] #3  @k: f32[144,12] #4  @l: f32[12] #5
  %a = Conv(%x, @w, @b)
  %r = Relu(%a)
  %p = MaxPool(%r) {kernel_shape=[2, 2]}
  %c = Conv(%p, @v) {pads=[1, 1, 1, 1]}
  %s = Add(%c, %p)
  %t = MaxPool(%s) {kernel_shape=[3, 3], strides=[2, 2]}
  %f = Flatten(%t)
  %y = Gemm(%f, @k, @l)
}"""
ATTENTION = """
graph net(%x: f32[3,8,16]) -> (%y) {
  @q: f32[16,16] #1  @k: f32[16,16] #2  @v: f32[16,16] #3
  %a = MatMul(%x, @q)
  %b = MatMul(%x, @k)
  %t = Transpose(%b) {perm=[0, 2, 1]}
  %s = MatMul(%a, %t)
  %p = Softmax(%s)
  %c = MatMul(%x, @v)
  %y = MatMul(%p, %c)
}"""


def run(text: str, options: str, target: str = "ort-cpu", samples: int = 8) -> tuple[Model, PipelineResult]:
    source = model(text, opset=21)
    pipeline = Pipeline.parse(f"quantize-static{{{options}}},emit-qdq")
    return source, pipeline.run(source, calibration=feeds(source, samples), target=target)


def outputs(source: Model, plain: bool = False) -> list[np.ndarray]:
    runner = OrtRunner(to_bytes(source), PLAIN) if plain else OrtRunner(to_bytes(source))
    return [runner.run(feed)["y"] for feed in feeds(source)]


@pytest.mark.parametrize("text", [NET, ATTENTION], ids=["cnn", "attention"])
@pytest.mark.parametrize(
    ("options", "least"),
    [
        *((f"activation={name} weight={name}", 18 if "e4m3" in name else 12) for name in FLOAT8),
        ("activation=u16 weight=s8 results=true", 30),
        ("activation=s16 weight=s8", 30),
        ("activation=u16 weight=s16 results=true", 60),
    ],
)
def test_it_loads_and_computes_the_same_with_optimisations_on(text: str, options: str, least: float) -> None:
    source, result = run(text, options)
    wanted, off, on = outputs(source), outputs(result.model, plain=True), outputs(result.model)
    assert sqnr_db(wanted, off) > least
    assert sqnr_db(off, on) > sqnr_db(wanted, off) + 10
    assert any("emulated on ort-cpu" in remark.message for remark in result.remarks)


@pytest.mark.parametrize("name", [*FLOAT8, "u16", "s16"])
def test_the_numbers_are_those_of_the_reference_arithmetic(name: str) -> None:
    weight = name if name.startswith("f8") else "s8"
    source = model("graph net(%x: f32[N,24]) -> (%y) { @w: f32[24,10] #1 %y = MatMul(%x, @w) }", opset=21)
    options = f"activation={name} weight={weight}"
    annotated = Pipeline.parse(f"quantize-static{{{options}}}").run(
        source, calibration=feeds(source), target="tensorrt"
    )
    x_type, w_type = types(annotated.model, "MatMul")
    assert isinstance(x_type, StaticQuant) and isinstance(w_type, StaticQuant)
    assert (x_type.dtype.text, w_type.dtype.text, w_type.axis) == (name, weight, 1)
    emitted = Pipeline.parse("emit-qdq").run(annotated.model).model
    tensor = next(iter(source.graph.initializers)).tensor
    assert tensor is not None
    w = fake_quantize(tensor.numpy(), w_type)
    for feed, got in zip(feeds(source), outputs(emitted, plain=True), strict=True):
        np.testing.assert_allclose(got, fake_quantize(feed["x"], x_type) @ w, rtol=1e-5, atol=1e-5)


def test_scales_reach_the_largest_number() -> None:
    source = model("graph net(%x: f32[N,4]) -> (%y) { @w: f32[4,3] #1 %y = MatMul(%x, @w) }", opset=21)
    sample = [{"x": np.array([[1, -7, 2, 0.5]], np.float32)}]
    for name, largest in (("f8e4m3fn", 448), ("f8e5m2", 57344), ("f8e4m3fnuz", 240)):
        annotated = Pipeline.parse(f"quantize-static{{activation={name}}}").run(source, calibration=sample).model
        operand = types(annotated, "Max", 1)[0] if any(n.op == "Max" for n in annotated.walk()) else None
        assert operand is not None and operand.scale[0] == pytest.approx(7 / largest)


def test_other_targets_get_plain_qdq() -> None:
    _, result = run(NET, "", target="tensorrt")
    ops = Counter(node.op for node in result.model.walk())
    assert ops["Max"] == 0 and ops["QuantizeLinear"] == 3 and ops["DequantizeLinear"] == 6
    assert not any("emulated" in remark.message for remark in result.remarks)
    _, result = run(NET, "")
    ops = Counter(node.op for node in result.model.walk())
    assert ops["Max"] == 6 and ops["QuantizeLinear"] == 3


def test_a_clean_relu_stays_beside_fp8() -> None:
    """onnxruntime takes a quantizer of zero point 0 for one that starts at 0, and drops the Relu before it."""
    source, result = run(NET, "")
    assert sqnr_db(outputs(source), outputs(result.model)) > 18


@pytest.mark.parametrize("weight", ["s8", "u8"])
def test_a_target_of_one_scale_a_weight_gets_one_and_biases_follow(weight: str) -> None:
    source = model(NET.replace("f32[N,", "f32[1,"), opset=21)
    options = f"quantize-static{{activation=u16 weight={weight} results=true}}"
    result = Pipeline.parse(options).run(source, calibration=feeds(source, 8), target="qnn-htp")
    gemm, conv = types(result.model, "Gemm")[1], types(result.model, "Conv")[1]
    assert isinstance(gemm, StaticQuant) and isinstance(conv, StaticQuant)
    assert gemm.axis is None and conv.axis == 0
    made = Pipeline.parse("emit-qdq").run(result.model).model
    rules = {one.rule for one in lint(made, load_target("qnn-htp"))}
    assert rules == (
        set() if weight == "s8" else {"symmetric-channels"}
    )  # of the convolutions: their zero point is 128
    assert sqnr_db(outputs(source), outputs(made, plain=True)) > 25


def test_biases() -> None:
    _, result = run(NET, "activation=u16 weight=s8 results=true")
    kinds = Counter(v.dtype for v in result.model.graph.initializers if len(v.shape or ()) == 1 and "b_q" in v.name)
    assert kinds == {DType.INT32: 1}
    _, result = run(NET, "")
    assert next(v for v in result.model.graph.initializers if v.name == "b").dtype is DType.FLOAT


def test_what_stays_float() -> None:
    source = model(NET, opset=21)
    with pytest.raises(DataError, match="no calibration data"):
        Pipeline.parse("quantize-static").run(source)
    result = Pipeline.parse("quantize-static{keep-float=Gemm}").run(source, calibration=feeds(source))
    assert [r.message for r in result.remarks if r.subject == "y"] == [
        "Gemm stays float: --keep-float says so ('Gemm')"
    ]
    weight = next(value for value in source.graph.initializers if value.name == "l")
    weight.const = Tensor.of(np.full(12, 1e5, np.float32))
    result = Pipeline.parse("quantize-static{activation=u16 weight=s8},emit-qdq").run(source, calibration=feeds(source))
    assert sqnr_db(outputs(source), outputs(result.model)) > 60


def test_scalars_beside_activations() -> None:
    text = "graph net(%x: f32[2,8]) -> (%y) { @s: f32[] = 0.3 %a = Mul(%x, @s) @w: f32[8,8] #1 %y = MatMul(%a, @w) }"
    source, result = run(text, "activation=u16 weight=s8 results=true")
    assert sqnr_db(outputs(source), outputs(result.model)) > 30


def test_a_recipe_keeps_nodes_float_and_chooses_their_ranges() -> None:
    source = model(NET, opset=21)
    options = "quantize-static{activation=u8 weight=s8 results=true recipe="
    first = '"[[node]]\\nmatch = [\\"Gemm\\"]\\nprecision = \\"float\\"\\n"},emit-qdq'
    result = Pipeline.parse(options + first).run(source, calibration=feeds(source))
    assert any("stays float: the recipe, [[node]] 1 says so ('Gemm')" in str(remark) for remark in result.remarks)

    def scales(text: str) -> list[float]:
        annotated = Pipeline.parse(text).run(source, calibration=feeds(source)).model
        conv = next(node for node in annotated.walk() if node.op == "Conv")
        return [use.quant.scale[0] for use in conv.uses[:1] if use is not None and isinstance(use.quant, StaticQuant)]

    mse = '"[[node]]\\nmatch = \\"Conv\\"\\nmethod = \\"mse\\"\\n"}'
    assert scales(options + mse) < scales("quantize-static{activation=u8 weight=s8 results=true}")
    wanted = '"[[node]]\\nmatch = \\"Gemm\\"\\nprecision = \\"int8-dynamic\\"\\n"}'
    made = Pipeline.parse(options + wanted + ",emit-qdq").run(source, calibration=feeds(source)).model
    assert "DynamicQuantizeLinear" in {node.op for node in made.walk()}
    assert sqnr_db(outputs(source), outputs(made)) > 25
    with pytest.raises(OptionError, match="has no dynamic kernels for u16"):
        Pipeline.parse((options + wanted).replace("=u8", "=u16")).run(source, calibration=feeds(source))


def test_weights_of_the_targets_own_types_do_not_saturate() -> None:
    """u8 by s8 runs on integers on ort-cpu, whose products of neighbours fit 16 bits only where weights leave room."""
    source = model(NET, opset=21)
    made = Pipeline.parse("quantize-static{activation=u8 weight=s8 results=true},emit-qdq").run(
        source, calibration=feeds(source)
    )
    plain, fused = outputs(made.model, plain=True), outputs(made.model)
    assert sqnr_db(plain, fused) > 35
    assert not any("emulated" in str(remark) for remark in made.remarks)


def test_a_product_for_readers_that_a_recipe_keeps_in_float_hands_out_floats() -> None:
    text = "graph g(%x: f32[4,16]) -> (%y) { @w: f32[16,16] #1  @b: f32[16] #2 %a = MatMul(%x, @w) %y = Add(%a, @b) }"
    options = "activation=u8 weight=s8 results=true"
    _, stored = run(text, options)
    _, bare = run(text, f"{options} keep-float=Add")
    counts = [Counter(node.op for node in one.model.walk())["QuantizeLinear"] for one in (stored, bare)]
    assert counts == [3, 1], "of x, of the product, of the sum; then of x alone"


def test_a_target_file_of_the_runtime_is_that_runtime(tmp_path: Path) -> None:
    """onnxruntime mistakes float codes for integers whatever the target's file is called."""
    (tmp_path / "server.toml").write_text('[target]\nbase = "ort-cpu"\nname = "server"\n')
    options = "activation=f8e4m3fn weight=f8e4m3fn"
    _, wanted = run(NET, options)
    _, made = run(NET, options, target=str(tmp_path / "server.toml"))
    assert to_bytes(made.model) == to_bytes(wanted.model), "with barriers, as for the target itself"
    assert any("emulated" in remark.message for remark in made.remarks)
