"""int8-dynamic: no data needed, never a node that the runtime refuses, whatever the shapes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import qir
from qir import golden_models
from qir.codegen import to_bytes
from qir.errors import OptionError
from qir.ir import DType, Model, StaticQuant
from qir.passes.pipelines import INT8_DYNAMIC
from qir.pipeline import Pipeline, PipelineResult, RemarkKind
from qir.runtime.optimized import optimized_model
from qir.runtime.session import PLAIN, OrtRunner
from qir.validation.metrics import sqnr_db
from tests.passes.int8 import feeds, model, node


def compiled(source: Model, passes: str = "quantize-dynamic,place,emit-dynamic") -> PipelineResult:
    return Pipeline.parse(passes).run(source)


def worst_sqnr(source: Model, quantized: Model, count: int = 3) -> float:
    """Of the worst output, with optimisations on and off."""
    samples = feeds(source, count)
    wanted = [OrtRunner(to_bytes(source), PLAIN).run(feed) for feed in samples]
    worst = np.inf
    for runner in (OrtRunner(to_bytes(quantized)), OrtRunner(to_bytes(quantized), PLAIN)):
        got = [runner.run(feed) for feed in samples]
        worst = min(worst, *(sqnr_db([a[name] for a in wanted], [b[name] for b in got]) for name in wanted[0]))
    return worst


@pytest.mark.parametrize("contrib", ["true", "false"])
@pytest.mark.parametrize("rows", ["1", "3", "N"])
@pytest.mark.parametrize(("inner", "columns"), [(1, 1), (7, 3), (8, 8), (33, 5), (64, 64)])
def test_products_of_any_shape_run(rows: str, inner: int, columns: int, contrib: str) -> None:
    source = model(f"""
    graph (%x: f32[2,{rows},{inner}]) -> (%y, %z) {{
      @w: f32[{inner},{columns}] #0041
      @v: f32[{inner},{columns}] #0042
      @b: f32[{columns}] #0043
      %m: f32[2,{rows},{columns}] = MatMul(%x, @w)
      %y: f32[2,{rows},{columns}] = Add(%m, @b)
      %z: f32[2,{rows},{columns}] = MatMul(%x, @v)
    }}""")
    result = compiled(source, f"quantize-dynamic{{linear=always}},place,emit-dynamic{{contrib={contrib}}}")
    found = Counter(one.op for one in result.model.walk())
    assert found["DynamicQuantizeLinear"] == 1, "siblings share it"
    assert found["MatMul"] == 0
    assert worst_sqnr(source, result.model) > 25


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("contrib", ["true", "false"])
def test_gemm(transposed: int, bias: bool, contrib: str) -> None:
    shape = "5,9" if transposed else "9,5"
    source = model(f"""
    graph (%x: f32[3,9]) -> (%y) {{
      @w: f32[{shape}] #0051
      @b: f32[5] #0052
      %y: f32[3,5] = Gemm(%x, @w{", @b" if bias else ""}) {{transB={transposed}}}
    }}""")
    result = compiled(source, f"quantize-dynamic{{linear=always}},emit-dynamic{{contrib={contrib}}}")
    assert Counter(one.op for one in result.model.walk())["Gemm"] == 0
    assert worst_sqnr(source, result.model) > 25


CONV = """
graph (%x: f32[N,{channels},9,7]) -> (%y) {{
  @w: f32[{out},{weight},{kernel}] #0061
  @b: f32[{out}] #0062
  %y: f32[N,{out},?,?] = Conv(%x, @w{bias}) {{{attributes}}}
}}"""


@pytest.mark.parametrize("bias", ["", ", @b"])
@pytest.mark.parametrize(
    ("channels", "out", "weight", "kernel", "attributes"),
    [
        (3, 5, 3, "3,3", "pads=[1, 1, 1, 1]"),
        (4, 6, 2, "1,1", "group=2"),
        (5, 5, 1, "3,3", "group=5, strides=[2, 2]"),
        (2, 1, 2, "2,3", "dilations=[2, 1]"),
    ],
)
def test_convolutions_of_any_shape_run(
    channels: int, out: int, weight: int, kernel: str, attributes: str, bias: str
) -> None:
    text = CONV.format(channels=channels, out=out, weight=weight, kernel=kernel, attributes=attributes, bias=bias)
    source = model(text)
    result = compiled(source, "quantize-dynamic{conv=always},emit-dynamic")
    assert Counter(one.op for one in result.model.walk())["ConvInteger"] == 1
    conv = node(result.model, "ConvInteger")
    assert conv.input(1) is not None and conv.input(1).dtype is DType.UINT8  # type: ignore[union-attr]
    assert worst_sqnr(source, result.model) > 25


@pytest.mark.parametrize(("sizes", "kernel"), [("9", "3"), ("5,6,7", "3,2,1")])
def test_convolutions_of_any_rank_run(sizes: str, kernel: str) -> None:
    result_shape = ",".join("?" * len(sizes.split(",")))
    source = model(f"""
    graph (%x: f32[2,4,{sizes}]) -> (%y) {{
      @w: f32[5,4,{kernel}] #0073
      @b: f32[5] #0074
      %y: f32[2,5,{result_shape}] = Conv(%x, @w, @b)
    }}""")
    result = compiled(source, "quantize-dynamic{conv=always},emit-dynamic")
    assert node(result.model, "ConvInteger")
    assert worst_sqnr(source, result.model) > 25


def test_convolutions_are_taken_where_the_runtime_gains() -> None:
    text = CONV.format(channels=3, out=5, weight=3, kernel="3,3", attributes="", bias="")
    few = compiled(model(text))
    assert not any(one.op == "ConvInteger" for one in few.model.walk())
    missed = [remark.message for remark in few.remarks if remark.kind is RemarkKind.MISSED]
    assert any("no faster than float" in message for message in missed)
    wide = text.replace("N,3,9,7", "N,256,H,9").replace("5,3,3,3", "5,256,3,3")
    assert any(one.op == "ConvInteger" for one in compiled(model(wide)).model.walk()), "its sizes are open"
    for rows, taken in ((9, False), (800, True)):
        sample = {"x": np.zeros((1, 256, rows, 9), np.float32)}
        by_shape = compiled(model(wide.replace("H", str(rows))))
        by_sample = Pipeline.parse("quantize-dynamic,emit-dynamic").run(model(wide), calibration=[sample])
        for made in (by_shape, by_sample):
            assert any(one.op == "ConvInteger" for one in made.model.walk()) == taken
            assert any("products the dynamic kernel is no faster" in one.message for one in made.remarks) != taken


@pytest.mark.parametrize(
    "text",
    [
        "graph (%x: f32[2,3,4]) -> (%y) { @w: f32[2,4,5] #0071  %y: f32[2,3,5] = MatMul(%x, @w) }",
        "graph (%x: f32[3,4], %w: f32[4,5]) -> (%y) { %y: f32[3,5] = MatMul(%x, %w) }",
        "graph (%x: f32[4,3]) -> (%y) { @w: f32[4,5] #0072  %y: f32[3,5] = Gemm(%x, @w) {transA=1} }",
        "graph (%x: f32[3,4]) -> (%y) { @w: f32[4,5] #0074  %y: f32[3,5] = Gemm(%x, @w) {alpha=0.5} }",
    ],
    ids=["weight-of-3-axes", "no-constant", "transposed-input", "alpha"],
)
def test_what_the_kernels_cannot_do_stays_float_with_a_remark(text: str) -> None:
    source = model(text)
    result = compiled(source, "quantize-dynamic{conv=always},place,emit-dynamic")
    assert [one.op for one in result.model.walk()] == [one.op for one in source.walk()]
    assert any(remark.kind is RemarkKind.MISSED and "stays float" in remark.message for remark in result.remarks)
    OrtRunner(to_bytes(result.model))


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("heads", [1, 4])
def test_attention(heads: int, mask: bool) -> None:
    source = model(f"""
    graph (%x: f32[2,5,16]) -> (%y) {{
      @w: f32[16,48] #00a1
      @b: f32[48] #00a2
      @lengths: s32[2] = [5, 3]
      %y: f32[2,5,16] = com.microsoft.Attention(%x, @w, @b{", @lengths" if mask else ""}) {{num_heads={heads}}}
    }}""")
    result = compiled(source)
    assert [one.op for one in result.model.walk()] == ["DynamicQuantizeLinear", "QAttention"]
    assert worst_sqnr(source, result.model) > 25
    lifted = compiled(result.model, "lift")
    assert [(one.domain, one.op) for one in lifted.model.walk()] == [("com.microsoft", "Attention")]
    again = compiled(lifted.model, "emit-dynamic").model
    feed = feeds(source, 1)[0]
    np.testing.assert_array_equal(
        OrtRunner(to_bytes(result.model)).run(feed)["y"], OrtRunner(to_bytes(again)).run(feed)["y"]
    )


def test_attention_without_a_kernel_stays() -> None:
    source = model("""
    graph (%x: f32[2,5,16], %extra: f32[2,4,5,5]) -> (%y) {
      @w: f32[16,48] #00a1
      @b: f32[48] #00a2
      %y: f32[2,5,16] = com.microsoft.Attention(%x, @w, @b, _, _, %extra) {num_heads=4}
    }""")
    result = compiled(source)
    assert [one.op for one in result.model.walk()] == ["Attention"]
    assert any("no attention bias" in remark.message for remark in result.remarks)


def test_a_target_without_such_kernels_keeps_all_float() -> None:
    source = model("graph (%x: f32[2,4]) -> (%y) { @w: f32[4,3] #0091  %y: f32[2,3] = MatMul(%x, @w) }")
    result = Pipeline.parse("quantize-dynamic").run(source, target="tensorrt")
    assert node(result.model, "MatMul").kernel == "float"
    assert any("no kernels that quantize at run time" in remark.message for remark in result.remarks)


def test_the_runtime_fuses_what_stands_alone() -> None:
    source = model("graph (%x: f32[2,16]) -> (%y) { @w: f32[16,8] #0081  %y: f32[2,8] = MatMul(%x, @w) }")
    made = compiled(source, "quantize-dynamic{linear=always},emit-dynamic").model
    assert dict(optimized_model(to_bytes(made)).op_counts) == {"com.microsoft::DynamicQuantizeMatMul": 1}


@pytest.mark.parametrize("name", golden_models.names())
def test_golden_models(name: str) -> None:
    source = qir.load(golden_models.path(name) / "model.onnx")
    result = Pipeline.parse(INT8_DYNAMIC.text.replace("dynamic", "dynamic{linear=always}", 1)).run(source)
    for config in (None, PLAIN):
        OrtRunner(to_bytes(result.model)) if config is None else OrtRunner(to_bytes(result.model), config)
    heavy = [one for one in result.model.walk() if one.op in ("GRU", "LSTM")]
    assert all(any(remark.subject == one.label for remark in result.remarks) for one in heavy), "a reason for each"


def test_patterns_and_options() -> None:
    source = model('graph (%x: f32[2,4]) -> (%y) { @w: f32[4,3] #0091  %y: f32[2,3] = MatMul(%x, @w) name="head" }')
    kept = compiled(source, "quantize-dynamic{keep-float=[head]},emit-dynamic").model
    assert [one.op for one in kept.walk()] == ["MatMul"]
    with pytest.raises(OptionError, match=r"never"):
        compiled(source, "quantize-dynamic{conv=nevr}")
    annotated = compiled(source, "quantize-dynamic{linear=always}").model
    use = node(annotated, "MatMul").use(1)
    assert use is not None and isinstance(use.quant, StaticQuant) and use.quant.axis == 1


@pytest.mark.parametrize(
    ("rows", "inner", "columns", "taken"),
    [
        ("1", 64, 12, False),
        ("N", 64, 12, False),  # a row more costs more than it saves
        ("N", 1280, 10, False),
        ("N", 64, 64, True),  # pays for many rows
        ("1", 64, 64, False),
        ("1", 256, 256, True),
        ("17", 48, 96, False),
        ("N,17", 48, 96, True),
        ("64", 256, 256, True),
    ],
)
def test_a_product_that_is_faster_in_float_stays_so(rows: str, inner: int, columns: int, taken: bool) -> None:
    text = f"""
    graph (%x: f32[{rows},{inner}]) -> (%y) {{
      @w: f32[{inner},{columns}] #0095
      %y: f32[{rows},{columns}] = MatMul(%x, @w) name="head"
    }}"""
    result = compiled(model(text), "quantize-dynamic")
    assert (node(result.model, "MatMul").kernel == "dynamic") == taken
    assert any("quantizing its input takes longer" in one.message for one in result.remarks) != taken
    always = compiled(model(text), "quantize-dynamic{linear=always}")
    assert node(always.model, "MatMul").kernel == "dynamic"


def test_what_a_recipe_names_is_taken_whatever_its_size(tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text('[[node]]\nmatch = "head"\nprecision = "int8-dynamic"\n')
    source = model('graph (%x: f32[2,4]) -> (%y) { @w: f32[4,3] #0091  %y: f32[2,3] = MatMul(%x, @w) name="head" }')
    assert node(compiled(source, f'quantize-dynamic{{recipe="{recipe}"}}').model, "MatMul").kernel == "dynamic"


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_lstm_weights_with_a_scale_a_direction(direction: str) -> None:
    d = 2 if direction == "bidirectional" else 1
    source = model(f"""
    graph (%x: f32[9,2,64]) -> (%y) {{
      @w: f32[{d},256,64] #0097
      @r: f32[{d},256,64] #0098
      %y: f32[9,{d},2,64], _, _ = LSTM(%x, @w, @r) {{hidden_size=64, direction="{direction}"}}
    }}""")

    def made(scales: str) -> tuple[tuple[int, ...], float]:
        quantized = compiled(source, f"quantize-dynamic{{lstm-scales={scales}}},place,emit-dynamic").model
        scale = node(quantized, "DynamicQuantizeLSTM").input(8)
        assert scale is not None and scale.tensor is not None
        return scale.tensor.shape, worst_sqnr(source, quantized)

    (fine, fine_db), (coarse, coarse_db) = made("channel"), made("tensor")
    assert fine == (d, 256) and coarse == (d,)
    assert 25 < coarse_db < fine_db + 0.5
