"""Weights in few bits: their forms, sizes, budgets; ``test_weight_only_matrix`` has types, blocks and readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qir
from qir import golden_models
from qir.cli import main
from qir.codegen import to_bytes
from qir.errors import DataError, OptionError
from qir.ir import Model, StaticQuant, Tensor
from qir.pipeline import Pipeline
from qir.runtime.optimized import optimized_model
from qir.runtime.session import PLAIN, OrtRunner
from tests.passes.int8 import feeds, model

FORMS = ("contrib", "qdq", "fold")
LEVEL_4 = 2e-2  # accuracy level 4 quantizes activations to 8 bits


def linear(k: int, n: int) -> Model:
    text = f"graph g(%x: f32[2,2,{k}]) -> (%y) {{\n  @w: f32[{k},{n}] #aa\n  %y: f32[2,2,{n}] = MatMul(%x, @w)\n}}\n"
    return model(text, opset=21)


def quantized(source: Model, form: str, options: str = "") -> Model:
    text = f"quantize-weights{{min-size=1 {options}}},emit-weight-only{{form={form}}}"
    return Pipeline.parse(text).run(source).model


def reference(source: Model, options: str) -> Model:
    """The float model with the numbers that the codes stand for."""
    annotated = Pipeline.parse(f"quantize-weights{{min-size=1 {options}}}").run(source).model
    from qir.quant.arithmetic import fake_quantize

    for node in annotated.walk():
        node.kernel = None
        for use in node.uses:
            if use is not None and isinstance(use.quant, StaticQuant):
                tensor = use.value.tensor
                assert tensor is not None
                use.value.const = Tensor.of(fake_quantize(tensor.numpy(), use.quant))
                use.quant = qir.ir.UseQuantMarker.INHERIT
    return annotated


def outputs(source: Model, plain: bool, samples: list[dict[str, np.ndarray]]) -> np.ndarray:
    runner = OrtRunner(to_bytes(source), PLAIN) if plain else OrtRunner(to_bytes(source))
    return np.stack([np.asarray(runner.run(feed)["y"]) for feed in samples])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-9))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", ["true", "false"])
@pytest.mark.parametrize("width", [64, 50, 33])
def test_tables_come_out_exact(form: str, bits: int, symmetric: str, width: int) -> None:
    text = f"graph g(%i: s64[2,3]) -> (%y) {{\n  @t: f32[9,{width}] #77\n  %y: f32[2,3,{width}] = Gather(@t, %i)\n}}\n"
    source, options = model(text, opset=21), f"bits={bits} symmetric={symmetric}"
    made, samples = quantized(source, form, options), feeds(source, 2)
    wanted = outputs(reference(source, options), True, samples)
    for plain in (True, False):
        np.testing.assert_allclose(outputs(made, plain, samples), wanted, rtol=1e-5, atol=1e-6)
    if form == "qdq" and bits == 8:
        ops = optimized_model(to_bytes(made)).op_counts
        assert sum(count for op, count in ops.items() if op.endswith("Gather")) >= 2  # codes and scales, not the table


CONV = """
graph g(%x: f32[1,40,6,6]) -> (%y) {
  @w: f32[8,40,3,3] #31
  @v: f32[8,1,3,3] #32
  %c: f32[1,8,4,4] = Conv(%x, @w)
  %y: f32[1,8,2,2] = Conv(%c, @v) {group=8}
}
"""


@pytest.mark.parametrize("bits", [4, 8])
def test_convolutions_are_folded_to_float_when_loaded(bits: int) -> None:
    source, options = model(CONV, opset=21), f"bits={bits}"
    made, samples = quantized(source, "auto", options), feeds(source, 2)
    wanted = outputs(reference(source, options), True, samples)
    for plain in (True, False):
        assert distance(outputs(made, plain, samples), wanted) < 1e-5
    executed = {op.rpartition("::")[2] for op in optimized_model(to_bytes(made)).op_counts}
    assert not executed & {"Cast", "Mul", "DequantizeLinear"}


TIED = """
graph g(%i: s64[1,3]) -> (%y) {
  @t: f32[48,64] #41
  @shape: s64[2] = [3, 64]
  %e: f32[1,3,64] = Gather(@t, %i)
  %r: f32[3,64] = Reshape(%e, @shape)
  %y: f32[3,48] = Gemm(%r, @t) {transB=1}
}
"""


def test_a_tied_embedding_and_head_are_stored_once() -> None:
    source = model(TIED, opset=21)
    made, samples = quantized(source, "contrib"), feeds(source, 2)
    wanted = outputs(reference(source, ""), True, samples)
    assert distance(outputs(made, False, samples), wanted) < LEVEL_4
    large = [value for value in made.graph.initializers if value.tensor is not None and value.tensor.nbytes > 1000]
    assert [value.tensor.shape for value in large if value.tensor is not None] == [(48, 32)]
    assert {node.op for node in made.walk()} >= {"MatMulNBits", "GatherBlockQuantized"}


def test_qdq_and_contrib_run_on_the_same_kernel() -> None:
    source = linear(64, 32)
    for form in ("qdq", "contrib"):
        counts = optimized_model(to_bytes(quantized(source, form))).op_counts
        assert [op.rpartition("::")[2] for op in counts] == ["MatMulNBits"]


def test_auto_folds_many_rows_and_keeps_few() -> None:
    def form(rows: int) -> set[str]:
        body = f"  @w: f32[256,256] #51\n  %y: f32[{rows},256] = MatMul(%x, @w)\n"
        text = f"graph g(%x: f32[{rows},256]) -> (%y) {{\n{body}}}\n"
        return {node.op for node in quantized(model(text, opset=21), "auto").walk()}

    assert "MatMulNBits" in form(2) and "MatMulNBits" not in form(4)


def test_auto_folds_what_blocks_would_lengthen() -> None:
    def ops(k: int) -> set[str]:
        text = f"graph g(%x: f32[1,{k}]) -> (%y) {{\n  @w: f32[{k},600] #51\n  %y: f32[1,600] = MatMul(%x, @w)\n}}\n"
        return {node.op for node in quantized(model(text, opset=21), "auto", "bits=8 block-size=128").walk()}

    assert "MatMulNBits" in ops(256) and "MatMulNBits" not in ops(260)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", ["true", "false"])
@pytest.mark.parametrize(
    "body",
    [
        "f32[45,{n}] = MatMul(%x, @w)|f32[45,{k}]|f32[{k},{n}]",
        "f32[1,7,2,2] = Conv(%x, @w)|f32[1,{k},2,2]|f32[7,{k},1,1]",
    ],
)
def test_folded_blocks_are_filled_up_when_the_model_is_loaded(bits: int, symmetric: str, body: str) -> None:
    made_by, given, weight = (part.format(k=1030, n=7) for part in body.split("|"))
    text = f"graph g(%x: {given}) -> (%y) {{\n  @w: {weight} #51\n  %y: {made_by}\n}}\n"
    source, options = model(text, opset=21), f"bits={bits} symmetric={symmetric} block-size=256"
    made, samples = quantized(source, "fold", options), feeds(source, 2)
    stored = sum(value.tensor.nbytes for value in made.graph.initializers if value.tensor is not None)
    assert stored < (1030 * 7 * bits // 8 + 7 * 5 * 6) * 1.05 + 200  # blocks of 256 would make it 1280 long
    wanted = outputs(reference(source, options), True, samples)
    for plain in (True, False):
        assert distance(outputs(made, plain, samples), wanted) < 1e-5


def test_auto_folds_small_tables() -> None:
    def ops(entries: int) -> set[str]:
        body = f"  @t: f32[{entries},64] #77\n  %y: f32[1,3,64] = Gather(@t, %i)\n"
        source = model(f"graph g(%i: s64[1,3]) -> (%y) {{\n{body}}}\n", opset=21)
        return {node.op for node in quantized(source, "auto").walk()}

    assert "GatherBlockQuantized" not in ops(4096) and "GatherBlockQuantized" in ops(4097)


# Choices


def test_small_and_named_weights_stay_float_with_a_reason() -> None:
    source = linear(64, 32)
    result = Pipeline.parse("quantize-weights{min-size=4096}").run(source)
    assert "fewer than min-size=4096" in str(result.remarks[-1])
    result = Pipeline.parse("quantize-weights{min-size=1 keep-float=MatMul}").run(source)
    assert "--keep-float says so" in str(result.remarks[-1]) and not list(_types(result.model))


def _types(source: Model) -> list[StaticQuant]:
    return [u.quant for n in source.walk() for u in n.uses if u is not None and isinstance(u.quant, StaticQuant)]


def test_a_budget_mixes_bits_and_says_what_is_out_of_reach() -> None:
    folder = golden_models.path("encoder-moods")
    source = qir.load(folder / "model.onnx")
    prepare = "canonicalize,convert-opset{to=21},fold-constants,fuse,canonicalize"
    whole = len(to_bytes(source))
    sizes = []
    for share in (0.6, 0.8, 1.0):
        text = f"{prepare},quantize-weights{{min-size=256 target-size={share}}},emit-weight-only"
        made = Pipeline.parse(text).run(source).model
        sizes.append(len(to_bytes(made)) / whole)
        assert sizes[-1] <= share * 1.02
    assert sizes[0] < sizes[1]
    with pytest.raises(
        OptionError, match=r"target-size=0.05 is out of reach: with every weight in 4 bits the file has"
    ):
        Pipeline.parse(f"{prepare},quantize-weights{{target-size=0.05}}").run(source)


def test_gptq_needs_samples_and_auto_uses_them() -> None:
    folder = golden_models.path("encoder-moods")
    source = qir.load(folder / "model.onnx")
    prepare = "canonicalize,convert-opset{to=21},fold-constants,fuse,canonicalize"
    with pytest.raises(DataError, match="no calibration data to round weights on"):
        Pipeline.parse(f"{prepare},quantize-weights{{rounding=gptq}}").run(source)
    run = Pipeline.parse(f"{prepare},quantize-weights{{min-size=256}}").run(source, calibration=folder / "calib.npz")
    assert run.passes[-1].statistics["rounded"] > 0


@pytest.mark.parametrize("block", ["8", "48"])
def test_block_sizes_that_no_kernel_has(block: str) -> None:
    with pytest.raises(OptionError, match=f"block-size={block} is no power of two from 16 on"):
        Pipeline.parse(f"quantize-weights{{block-size={block}}}")


def test_the_preset_runs_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = golden_models.path("mlp-digits"), tmp_path / "out.onnx"
    assert main(["quantize", str(folder / "model.onnx"), "-o", str(out), "--preset", "int4-weights"]) == 0
    assert "no data" in capsys.readouterr().out
    report = qir.quantize(
        folder / "model.onnx", out, golden=folder / "eval.npz", preset="int8-weights", latency_seconds=0
    )
    assert report.sqnr_min_db is not None and report.sqnr_min_db > 30


def test_target_size_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["quantize", str(golden_models.path("mlp-digits") / "model.onnx"), "-o", str(tmp_path / "out.onnx")]
    assert main([*arguments, "--preset", "int4-weights", "--target-size", "60%"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--preset", "int4-weights", "--target-size", "small"]) == 2
    assert "--target-size 'small' is no share of the float file: write 30% or 0.3" in capsys.readouterr().err
    assert main([*arguments, "--preset", "optimize", "--target-size", "30%"]) == 2
    assert "--target-size is for int4-weights: 'optimize' gives no weight" in capsys.readouterr().err


TWO = """graph g(%x: f32[4,64]) -> (%y) {
  @w: f32[64,64] #1
  @v: f32[64,64] #2
  %a: f32[4,64] = MatMul(%x, @w)
  %y: f32[4,64] = MatMul(%a, @v)
}"""
EIGHT, FLOAT = (f'[[node]]\nmatch = "y"\nprecision = "{one}"\n' for one in ("int8", "float"))


@pytest.mark.parametrize(("recipe", "wanted"), [(EIGHT, ["u4", "u8"]), (FLOAT, ["u4", None])])
def test_a_recipe_gives_a_weight_eight_bits_or_leaves_it_float(recipe: str, wanted: list[str | None]) -> None:
    from dataclasses import replace

    from qir.passes.annotation.quantize_weights import QuantizeWeights

    made = Pipeline([replace(QuantizeWeights(min_size=1), recipe=recipe)]).run(model(TWO, opset=21)).model
    types = [node.use(1).quant for node in made.walk()]  # type: ignore[union-attr]
    assert [str(one.dtype) if isinstance(one, StaticQuant) else None for one in types] == wanted


@pytest.mark.parametrize("preset", ["int4-weights", "codebook4", "fp16-weights"])
def test_compare_ranks_rounded_weights_and_its_lines_keep_their_promise(preset: str) -> None:
    folder = golden_models.path("mlp-digits")
    source, samples = folder / "model.onnx", folder / "calib.npz"
    made = qir.quantize(source, preset=preset, latency_seconds=0, golden=samples).compilation.model
    report = qir.compare(source, made, samples, lines=1, samples=8)
    assert report.ranked() and all(layer.own_db < 110 for layer in report.ranked())
    if preset == "codebook4" and not report.advice.suggestions:
        return  # its tables make so small a file that float is no advice for any node
    assert report.advice.suggestions and report.predicted_db is not None, str(report)
    assert "% size" in str(report)
    better = qir.quantize(source, preset=preset, latency_seconds=0, golden=samples, recipe=report.recipe)
    assert better.accuracy is not None
    assert abs(better.accuracy.sqnr_min_db - report.predicted_db) < 2, (better.accuracy.sqnr_min_db, str(report))


@pytest.mark.parametrize("calibration", [None, "calib.npz"])
@pytest.mark.parametrize("share", [0.48, 0.5, 0.55, 0.7])
def test_the_file_keeps_to_its_target_size(share: float, calibration: str | None, tmp_path: Path) -> None:
    """With widths that fill no block and names that are long, in the form that takes most nodes."""
    folder, out = golden_models.path("encoder-moods"), tmp_path / "out.onnx"
    settings = [f"quantize-weights.target-size={share}"]
    samples = None if calibration is None else folder / calibration
    qir.quantize(
        folder / "model.onnx", out, preset="int4-weights", settings=settings, calibration=samples, latency_seconds=0
    )
    assert share - 0.08 < out.stat().st_size / (folder / "model.onnx").stat().st_size <= share


def test_blocks_that_are_filled_up_at_load_take_no_room() -> None:
    """A sum of 33 numbers has blocks of 64, whose filling no file holds: a size that is met is not refused."""
    source = model("graph g(%x: f32[8,33]) -> (%y) {\n  @w: f32[33,600] #51\n  %y = MatMul(%x, @w)\n}\n", opset=21)
    made = Pipeline.parse("quantize-weights{target-size=0.27},emit-weight-only").run(source).model
    assert 0.2 < len(to_bytes(made)) / len(to_bytes(source)) <= 0.27


@pytest.mark.parametrize("rounding", ["mse", "gptq"])
def test_a_layer_may_read_the_models_input_itself(rounding: str) -> None:
    weights = "  @w: f32[64,32] #51\n  @v: f32[32,32] #52\n"
    body = "  %h: f32[N,32] = MatMul(%x, @w)\n  %y: f32[N,32] = MatMul(%h, @v)\n"
    source = model(f"graph g(%x: f32[N,64]) -> (%y) {{\n{weights}{body}}}\n", opset=21)
    samples = [{"x": np.random.default_rng(seed).normal(size=(8, 64)).astype(np.float32)} for seed in range(4)]
    text = f"quantize-weights{{min-size=1 rounding={rounding}}},emit-weight-only"
    made = Pipeline.parse(text).run(source, calibration=samples).model
    assert 0 < distance(outputs(made, False, samples), outputs(source, False, samples)) < 0.2
    assert {node.op for node in made.walk()} >= {"Cast", "Mul"}  # 8 rows, as the samples have it


@pytest.mark.parametrize(
    ("op", "gates", "attributes"),
    [("LSTM", 4, ""), ("GRU", 3, ""), ("GRU", 3, ", linear_before_reset=1"), ("RNN", 1, ', direction="reverse"')],
)
def test_recurrent_layers_are_rounded_by_what_they_read(op: str, gates: int, attributes: str) -> None:
    source = model(
        f"""graph g(%x: f32[24,2,32]) -> (%y) {{
          @w: f32[1,{gates * 32},32] #51
          @r: f32[1,{gates * 32},32] #52
          %y: f32[24,1,2,32], _ = {op}(%x, @w, @r) {{hidden_size=32{attributes}}}
        }}
        """,
        opset=21,
    )
    mixing = np.random.default_rng(0).normal(size=(6, 32))  # inputs that span few directions
    samples = [
        {"x": (np.random.default_rng(seed).normal(size=(24, 2, 6)) @ mixing).astype(np.float32)} for seed in range(12)
    ]
    wanted = outputs(source, False, samples[8:])

    def error(rounding: str) -> float:
        text = f"quantize-weights{{rounding={rounding}}},emit-weight-only"
        run = Pipeline.parse(text).run(source, calibration=samples[:8])
        if rounding == "gptq":
            assert run.passes[0].statistics["rounded"] == 2
        return float(((outputs(run.model, False, samples[8:]) - wanted) ** 2).mean())

    assert 0 < error("gptq") < 0.6 * error("mse")


def test_recurrent_layers_in_bodies_keep_the_nearest_codes() -> None:
    source = model(
        """graph g(%c: bool[], %x: f32[4,1,32]) -> (%y) {
          @one: s64[1] = [1]
          @w: f32[1,128,32] #51
          @r: f32[1,128,32] #52
          %y: f32[4,1,1,32] = If(%c) {
            then_branch=graph t() -> (%h) { %h: f32[4,1,1,32], _, _ = LSTM(%x, @w, @r) {hidden_size=32} },
            else_branch=graph e() -> (%u) { %u: f32[4,1,1,32] = Unsqueeze(%x, @one) }
          }
        }
        """,
        opset=21,
    )
    samples = [{"c": np.array(True), "x": np.random.default_rng(0).normal(size=(4, 1, 32)).astype(np.float32)}]
    made = Pipeline.parse("quantize-weights,emit-weight-only").run(source, calibration=samples).model
    assert 0 < distance(outputs(made, False, samples), outputs(source, False, samples)) < 0.2


TURNED = """
graph g(%i: s64[1,3]) -> (%y) {
  @t: f32[1000,96] #41
  %e: f32[1,3,96] = Gather(@t, %i)
  %h: f32[96,1000] = Transpose(@t) {perm=[1, 0]}
  %y: f32[1,3,1000] = MatMul(%e, %h)
}
"""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_tied_head_through_a_transpose_is_stored_once(form: str, bits: int) -> None:
    source = model(TURNED, opset=21)
    made, samples = quantized(source, form, f"bits={bits}"), feeds(source, 2)
    wanted = outputs(reference(source, f"bits={bits}"), True, samples)
    for plain in (True, False):
        assert distance(outputs(made, plain, samples), wanted) < LEVEL_4
    large = [value.tensor for value in made.graph.initializers if value.tensor is not None]
    codes = sum(tensor.nbytes for tensor in large if tensor.nbytes > 20_000)
    copies = 2 if form == "qdq" else 1  # DequantizeLinear in front of a MatMul wants [K, N]
    assert codes == copies * 96_000 * bits // 8
    ops = {node.op for node in made.walk()}
    assert ("MatMulNBits" in ops) == (form == "contrib") and ("Transpose" in ops) == (form == "fold")


@pytest.mark.parametrize("between", ["Identity(%e)", "Reshape(%e, @shape)"])
def test_gathered_codes_do_not_meet_a_product(between: str) -> None:
    text = """
    graph g(%i: s64[1,3]) -> (%y) {
      @t: f32[1000,96] #41
      @shape: s64[2] = [3, 96]
      @h: f32[96,1000] #42
      %e: f32[1,3,96] = Gather(@t, %i)
      %r = BETWEEN
      %y = MatMul(%r, @h)
    }
    """.replace("BETWEEN", between)
    source = model(text, opset=21)
    made, samples = quantized(source, "qdq", "bits=8"), feeds(source, 2)
    wanted = outputs(reference(source, "bits=8"), True, samples)
    for plain in (True, False):
        assert distance(outputs(made, plain, samples), wanted) < LEVEL_4


def test_an_embedding_and_its_transposed_copy_become_one() -> None:
    text = TURNED.replace("%h: f32[96,1000] = Transpose(@t) {perm=[1, 0]}", "").replace("%h", "@h")
    source = model(text.replace("#41\n", "#41\n  @h: f32[96,1000] #42\n"), opset=21)
    table, head = (next(v for v in source.graph.initializers if v.name == name) for name in "th")
    assert table.tensor is not None
    head.const = Tensor.of(table.tensor.numpy().T.copy())
    report = qir.quantize(source, preset="int8-weights")
    assert report.size_after < 0.15 * report.size_before


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "line",
    [
        "%y: f32[1,6,128] = Einsum(%x, @w) {equation='bsd,df->bsf'}",
        "%y: f32[1,6,4,32] = Einsum(%x, @w) {equation='bsd,dhk->bshk'}",
        "%y: f32[1,6,64] = com.microsoft.Attention(%x, @w, @b) {num_heads=4}",
    ],
)
def test_other_readers_are_folded(bits: int, line: str) -> None:
    shape = "64,192" if "Attention" in line else "64,4,32" if "dhk" in line else "64,128"
    line = line.replace("'", '"')
    text = f"graph g(%x: f32[1,6,64]) -> (%y) {{\n  @w: f32[{shape}] #51\n  @b: f32[192] #52\n  {line}\n}}\n"
    source, options = model(text, opset=21), f"bits={bits}"
    made, samples = quantized(source, "auto", options), feeds(source, 2)
    wanted = outputs(reference(source, options), True, samples)
    assert any(node.op == "Cast" for node in made.walk())
    for plain in (True, False):
        assert distance(outputs(made, plain, samples), wanted) < 1e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_body_reads_weights_from_outside(form: str, bits: int) -> None:
    text = """
    graph g(%x: f32[4,64]) -> (%y) {
      @w: f32[64,64] #41
      @k: f32[] = 0
      %m: f32[] = ReduceMean(%x) {keepdims=0}
      %c: bool[] = Greater(%m, @k)
      %y: f32[4,64] = If(%c) {
        then_branch=graph t() -> (%t) { %t: f32[4,64] = MatMul(%x, @w) },
        else_branch=graph e() -> (%e) {
          %n: f32[4,64] = MatMul(%x, @w)
          %e: f32[4,64] = Neg(%n)
        }
      }
    }
    """
    source = model(text, opset=21)
    made, samples = quantized(source, form, f"bits={bits}"), feeds(source, 4)
    wanted = outputs(reference(source, f"bits={bits}"), True, samples)
    for plain in (True, False):
        assert distance(outputs(made, plain, samples), wanted) < LEVEL_4
