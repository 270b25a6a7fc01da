"""convert-float: 16-bit regions, what stays float32 and why, casts only at their borders."""

# ruff: noqa: E501  # a graph reads best with a node a line
from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from qir.codegen import to_bytes
from qir.errors import QirError
from qir.ir import DType, Model, Tensor
from qir.ops.shape_inference import infer
from qir.pipeline import Pipeline, PipelineResult
from qir.runtime.session import PLAIN, OrtRunner
from qir.validation.metrics import sqnr_db
from tests.passes.int8 import feeds, model
from tests.textual import CheckPass

MLP = "graph g(%x: f32[N,16]) -> (%y) {{ @w: f32[16,32] #1 @b: f32[32] #2 @v: f32[32,8] #3 %a = MatMul(%x, @w) %c = Add(%a, @b) {middle} %y = MatMul(%d, @v) }}"


def converted(source: Model, options: str = "", samples: list[dict[str, np.ndarray]] | None = None) -> PipelineResult:
    """Converted; loads with and without optimisations, and computes nearly the same."""
    result = Pipeline.parse(f"analyze-ranges,convert-float{{{options}}}").run(source, calibration=samples)
    infer(result.model)
    given = samples or feeds(source, 4)
    wanted = [OrtRunner(to_bytes(source), PLAIN).run(feed) for feed in given]
    for runner in (OrtRunner(to_bytes(result.model)), OrtRunner(to_bytes(result.model), PLAIN)):
        got = [runner.run(feed) for feed in given]
        for name in [name for name, array in wanted[0].items() if array.dtype.kind == "f"]:
            assert got[0][name].dtype == wanted[0][name].dtype
            assert sqnr_db([one[name] for one in wanted], [one[name] for one in got]) > 45
    return result


def types(result: PipelineResult) -> dict[str, list[str]]:
    """By operator, the type of each node's first result."""
    found: dict[str, list[str]] = {}
    for node in result.model.walk():
        found.setdefault(node.op, []).append(str(node.outputs[0].dtype))
    return found


def casts(result: PipelineResult) -> int:
    return sum(node.op == "Cast" for node in result.model.walk())


def reasons(result: PipelineResult) -> str:
    return "\n".join(remark.message for remark in result.remarks)


def test_a_region_has_casts_at_its_ends_only(check_pass: CheckPass) -> None:
    check_pass(
        "graph g(%x: f32[N,4]) -> (%y) { @w: f32[4,4] #1 %a = MatMul(%x, @w) %b = Relu(%a) %y = Add(%b, %a) }",
        "convert-float",
        """
        graph g(%x: f32[N,4]) -> (%y) {
          @w: f16[4,4] = [0.03455, 0.08215, 0.03305, -0.1304, 0.0905, 0.04465, -0.05368, 0.0581, 0.03647, 0.02942, 0.002842, 0.05466, -0.07367, -0.0163, -0.04822, 0.05988]
          %Cast_out: f16[N,4] = Cast(%x) {to=10} name="Cast"
          %a: f16[N,4] = MatMul(%Cast_out, @w)
          %b: f16[N,4] = Relu(%a)
          %y_1: f16[N,4] = Add(%b, %a)
          %y: f32[N,4] = Cast(%y_1) {to=1} name="Cast_1"
        }
        """,
    )


def test_the_whole_of_a_network() -> None:
    result = converted(model(MLP.format(middle="%d = Relu(%c)")))
    assert types(result) == {"Cast": ["f16", "f32"], "MatMul": ["f16", "f16"], "Add": ["f16"], "Relu": ["f16"]}
    assert all(value.dtype is DType.FLOAT16 for value in result.model.graph.initializers)
    assert "emulated on ort-cpu" in reasons(result)


def test_inputs_and_outputs_of_16_bits_on_request() -> None:
    source = model(MLP.format(middle="%d = Relu(%c)"))
    result = Pipeline.parse("convert-float{keep-io=false}").run(source)
    assert casts(result) == 0
    graph = result.model.graph
    assert {value.dtype for value in (*graph.inputs, *graph.outputs)} == {DType.FLOAT16}
    assert [str(spec.dtype) for spec in OrtRunner(to_bytes(result.model)).inputs] == ["float16"]


def test_what_the_user_keeps() -> None:
    source = model(MLP.format(middle="%d = Softmax(%c)"))
    result = converted(source, "keep-float=Softmax")
    assert types(result)["Softmax"] == ["f32"] and casts(result) == 4
    assert "Softmax stays float32: --keep-float says so ('Softmax')" in reasons(result)


def test_overflow_seen_on_samples() -> None:
    source = model(
        MLP.format(
            middle="%e = Mul(%c, @big) @big: f32[] = 30000 %f = Mul(%e, @big) %d = Mul(%f, @small) @small: f32[] = 1e-9"
        )
    )
    result = converted(source, samples=feeds(source, 4))
    assert "f16 holds 6.55e+04" in reasons(result)
    assert types(result)["MatMul"] == ["f16", "f16"]
    assert types(result)["Mul"] == ["f32"] * 3


def test_values_that_underflow() -> None:
    source = model(
        MLP.format(
            middle="%e = Mul(%c, @tiny) @tiny: f32[] = 1e-3 %f = Mul(%e, @tiny) %g = Mul(%f, @tiny) %d = Mul(%g, @huge) @huge: f32[] = 60000"
        )
    )
    result = converted(source, samples=feeds(source, 4))
    assert "f16 underflows" in reasons(result)
    assert types(result)["Mul"][2:] == ["f32", "f32"]


def test_an_epsilon_and_what_it_guards() -> None:
    norm = (
        "%m = ReduceMean(%c) {axes=[1], keepdims=1} %s = Sub(%c, %m) %q = Mul(%s, %s) %v1 = ReduceMean(%q) {axes=[1], keepdims=1}"
        " @eps: f32[] = 1e-12 %e = Add(%v1, @eps) %r = Sqrt(%e) %d = Div(%s, %r)"
    )
    result = converted(model(MLP.format(middle=norm)))
    found = types(result)
    assert found["Sqrt"] == found["Div"] == ["f32"] and found["Sub"] == ["f16"]
    assert "underflows in f16" in reasons(result) and "takes the root" in reasons(result)
    fine = converted(model(MLP.format(middle=norm.replace("1e-12", "1e-5"))))
    assert types(fine)["Sqrt"] == ["f16"]


@pytest.mark.parametrize("mask", [-3.4028235e38, -1e9, -np.inf])
def test_masks_are_clamped(mask: float) -> None:
    source = model(
        "graph g(%x: f32[4,16], %m: f32[4,32]) -> (%y) { @w: f32[16,32] #1 @v: f32[32,8] #2 @one: f32[] = 1 @low: f32[] = -1"
        " %a = MatMul(%x, @w) %i = Sub(@one, %m) %n = Mul(%i, @low) %s = Add(%a, %n) %p = Softmax(%s) %y = MatMul(%p, @v) }"
    )
    low = next(value for value in source.graph.initializers if value.name == "low")
    low.const = Tensor.of(np.array(max(mask, -3.4028235e38), np.float32))
    samples = [
        {**feed, "m": (np.arange(32) < 20).astype(np.float32) * np.ones((4, 1), np.float32)}
        for feed in feeds(source, 3)
    ]
    for data in (None, samples):
        result = Pipeline.parse("convert-float").run(source, calibration=data)
        wanted, got = (OrtRunner(to_bytes(one)).run(samples[0])["y"] for one in (source, result.model))
        assert np.isfinite(got).all() and sqnr_db([wanted], [got]) > 45
        assert set(types(result)["Softmax"]) == {"f16"}


def test_long_sums_and_what_grows() -> None:
    source = model(
        "graph g(%x: f32[2,5000]) -> (%y, %z, %e) { %y = ReduceSum(%x) %z = ReduceMean(%x) {axes=[1]} @w: f32[5000,4] #1 %a = MatMul(%x, @w)"
        " %h = Exp(%a) @v: f32[4,4] #2 %e = MatMul(%h, @v) }",
        opset=13,
    )
    result = converted(source)
    assert set(types(result)) >= {"ReduceSum", "ReduceMean", "Exp"}
    assert "sums 10000 numbers" in reasons(result) and "nothing bounds the results of Exp" in reasons(result)
    quiet = [{"x": feed["x"] * np.float32(0.01)} for feed in feeds(source, 3)]
    assert types(converted(source, samples=quiet))["Exp"] == ["f16"]


def test_positions_and_angles() -> None:
    source = model(
        "graph g(%i: s64[1,6], %x: f32[6,16]) -> (%y) { @f: f32[16] #1 @w: f32[16,16] #2 @shape: s64[2] = [6, 1] %p = Cast(%i) {to=1}"
        " %q = Reshape(%p, @shape) %a = Mul(%q, @f) %c = Cos(%a) %b = MatMul(%x, @w) %y = Mul(%b, %c) }"
    )
    samples: list[dict[str, np.ndarray]] = [{"i": np.arange(3000, 3006)[None], "x": np.ones((6, 16), np.float32)}]
    found = types(converted(source, samples=samples))
    assert found["Cos"] == ["f32"] and found["MatMul"] == ["f16"]
    assert found["Mul"][0] == "f32"


def test_light_nodes_between_float_neighbours_make_no_casts() -> None:
    source = model(
        "graph g(%x: f32[2,8]) -> (%y) { %a = Sin(%x) @s: s64[2] = [4, 4] %b = Reshape(%a, @s) %c = Transpose(%b) %d = Neg(%c) %y = Cos(%d) }"
    )
    result = converted(source)
    assert casts(result) == 0 and not result.passes[1].changed


def test_what_only_asks_for_a_shape_needs_no_cast() -> None:
    source = model(
        "graph g(%x: f32[N,8]) -> (%y, %n) { %n = Shape(%x) @w: f32[8,8] #1 %a = MatMul(%x, @w) %s = Shape(%a) %y = Reshape(%a, %s) }"
    )
    assert casts(converted(source)) == 2


def test_operands_that_have_no_16_bit_form() -> None:
    source = model(
        "graph g(%x: f32[1,4,8,8]) -> (%y) { @w: f32[4,4,1,1] #1 @roi: f32[0] = [] @scales: f32[4] = [1, 1, 2, 2]"
        ' %a = Conv(%x, @w) %b = Resize(%a, @roi, @scales) {mode="nearest"} %y = Conv(%b, @w) }'
    )
    result = converted(source)
    scales = next(value for value in result.model.graph.initializers if value.name == "scales")
    assert scales.dtype is DType.FLOAT and types(result)["Resize"] == ["f16"]


def test_a_constant_with_readers_of_both_kinds() -> None:
    source = model(
        "graph g(%x: f32[4,8]) -> (%y, %z) { @w: f32[8,8] #1 %y = MatMul(%x, @w) %s = Sin(%x) %z = MatMul(%s, @w) }"
    )
    result = converted(source, "keep-float=z")
    kinds = Counter(str(value.dtype) for value in result.model.graph.initializers)
    assert kinds == {"f16": 1, "f32": 1}


def test_bodies_keep_their_interface() -> None:
    source = model(
        "graph g(%c: bool[], %x: f32[2,8]) -> (%y) { @w: f32[8,8] #1 %h = MatMul(%x, @w)"
        " %o = If(%c) {then_branch=graph yes () -> (%a) { @v: f32[8,8] #2 %a = MatMul(%h, @v) }, else_branch=graph no () -> (%b) { %b = Neg(%h) }}"
        " %y = MatMul(%o, @w) }"
    )
    for flag in (True, False):
        samples = [{"c": np.array(flag), "x": np.ones((2, 8), np.float32)}]
        result = converted(source, samples=samples)
        assert types(result)["If"] == ["f32"] and types(result)["MatMul"] == ["f16"] * 3


def test_whole_loops() -> None:
    source = model(
        "graph g(%x: f32[1,4]) -> (%y) { @n: s64[] = 3 @t: bool[] = true @w: f32[4,4] #1"
        " %y = Loop(@n, @t, %x) {body=graph body (%i: s64[], %go: bool[], %h: f32[1,4]) -> (%go2, %h2) { %go2 = Identity(%go) %p = MatMul(%h, @w) %h2 = Tanh(%p) }} }"
    )
    assert types(converted(source))["MatMul"] == ["f16"]


def test_integer_regions_stay() -> None:
    source = model(MLP.format(middle="%d = LayerNormalization(%c, @g) @g: f32[32] #7"))
    result = Pipeline.parse("analyze-ranges,calibrate,quantize{linear=static},place,emit-qdq,convert-float").run(
        source, calibration=feeds(source)
    )
    found = types(result)
    assert found["LayerNormalization"] == ["f16"] and set(found["DequantizeLinear"]) == {"f32"}
    assert set(found["MatMul"]) == {"f32"}
    wanted, got = (OrtRunner(to_bytes(one)).run(feeds(source)[0])["y"] for one in (source, result.model))
    assert sqnr_db([wanted], [got]) > 25


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_storage_halves_the_file_and_leaves_the_computation(dtype: str) -> None:
    source = model(MLP.format(middle="%d = Relu(%c)"))
    result = Pipeline.parse(f"convert-float{{form=storage dtype={dtype} min-size=64}}").run(source)
    assert Counter(str(value.dtype) for value in result.model.graph.initializers) == {dtype: 2, "f32": 1}
    data = to_bytes(result.model)
    assert len(data) < 0.75 * len(to_bytes(source))
    sample = feeds(source)[0]
    wanted, got = OrtRunner(to_bytes(source)).run(sample)["y"], OrtRunner(data).run(sample)["y"]
    assert sqnr_db([wanted], [got]) > (60 if dtype == "f16" else 45)


def test_storage_keeps_what_does_not_fit() -> None:
    source = model("graph g(%x: f32[N,32]) -> (%y) { @w: f32[32,32] #1 %y = MatMul(%x, @w) }")
    weight = next(iter(source.graph.initializers))
    for factor, said in ((1e-9, True), (1e6, True), (1.0, False)):
        weight.const = Tensor.of(np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32) * np.float32(factor))
        result = Pipeline.parse("convert-float{form=storage}").run(source)
        assert ("do not fit f16" in reasons(result)) == said
        assert not Pipeline.parse("convert-float{form=storage dtype=bf16}").run(source).remarks


def test_bf16_computes_where_the_opset_has_it() -> None:
    source = model(MLP.format(middle="%d = Relu(%c)"), opset=17)
    result = Pipeline.parse("convert-float{dtype=bf16}").run(source)
    assert types(result)["MatMul"] == ["bf16", "bf16"]
    assert "does not load such a model" in reasons(result)


@pytest.mark.parametrize("op", ["MatMul(%a, %a)", "Add(%a, %a)", "Relu(%a)", "Softmax(%a)"])
def test_the_installed_runtime_refuses_bf16_computation(op: str) -> None:
    """What presets, remarks and documentation say of bf16; where this fails, the runtime has learned it."""
    text = f"graph g(%x: f32[4,4]) -> (%y) {{ %a = Cast(%x) {{to=16}} %b = {op} %y = Cast(%b) {{to=1}} }}"
    with pytest.raises(QirError, match=r"NOT_IMPLEMENTED|Could not find an implementation"):
        OrtRunner(to_bytes(model(text, opset=17)))


def test_stored_constants_of_nodes_that_a_recipe_keeps_stay_float32() -> None:
    source = model(
        "graph g(%x: f32[N,16]) -> (%y) { @w: f32[16,32] #1 @v: f32[32,16] #2 %a = MatMul(%x, @w) %y = MatMul(%a, @v) }"
    )
    for option in ("keep-float=y", 'recipe="[[node]]\\nmatch = \\"y\\"\\nprecision = \\"float\\""'):
        result = Pipeline.parse(f"convert-float{{form=storage {option}}}").run(source)
        assert [str(value.tensor.dtype) for value in result.model.graph.initializers if value.tensor] == ["f32", "f16"]


def test_what_reads_a_value_of_unknown_type_stays_float32() -> None:
    source = model(
        """
graph g(%x: f32[1,8,64]) -> (%y) {
  @w: f32[64,192] #31
  @b: f32[192] #32
  @v: f32[64,64] #33
  %a = com.microsoft.Attention(%x, @w, @b) {num_heads=4}
  %m = MatMul(%a, @v)
  %y: f32[1,8,64] = Relu(%m)
}
"""
    )
    result = Pipeline.parse("convert-float").run(source)
    assert any("the type of 'a' is not known" in str(remark) for remark in result.remarks)
    OrtRunner(to_bytes(result.model))


def test_a_target_file_of_the_runtime_is_that_runtime(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text('[target]\nbase = "ort-cpu"\nname = "server"\n')
    source = model(MLP.format(middle="%d = Relu(%c)"))
    result = Pipeline.parse("convert-float").run(source, target=str(tmp_path / "server.toml"))
    assert "emulated on ort-cpu" in reasons(result)


@pytest.mark.parametrize(("perm", "barriers"), [([1, 0, 2], 1), ([0, 2, 1], 0)])
def test_a_product_of_turned_rows_loads(perm: list[int], barriers: int) -> None:
    sizes = [8, 4, 16] if perm == [1, 0, 2] else [4, 16, 8]
    text = f"""
graph g(%x: f32[{",".join(map(str, sizes))}]) -> (%y) {{
  @v: f32[{sizes[2]},{sizes[2]}] #1
  @w: f32[16,32] #2
  %h = MatMul(%x, @v)
  %t = Transpose(%h) {{perm={perm}}}
  %y = MatMul(%t, @w)
}}
"""
    result = Pipeline.parse("convert-float").run(model(text))
    assert sum(node.op == "Max" for node in result.model.walk()) == barriers
    # In a process of its own: where this goes wrong, onnxruntime takes the process with it.
    program = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", program], input=to_bytes(result.model), check=True)
