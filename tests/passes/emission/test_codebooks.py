"""cluster-weights, quantize-log and emit-codebook: weights as packed codes that the runtime decodes at load."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from qir.codegen import to_bytes
from qir.errors import OptionError, UnsupportedError
from qir.ir import CodebookQuant, DType, Model, Tensor
from qir.ops.shape_inference import infer
from qir.passes.annotation.cluster_weights import ClusterWeights
from qir.passes.emission.emit_codebook import EmitCodebook
from qir.pipeline import Pipeline
from qir.pipeline.contract import PassContext
from qir.quant.codebook import coded_bytes, decode, encode
from qir.quant.logarithmic import log_levels
from qir.runtime.optimized import optimized_model
from qir.runtime.session import PLAIN, OrtRunner
from qir.validation.metrics import sqnr_db
from tests.passes.int8 import feeds, model
from tests.textual import CheckPass

DRAW = np.random.default_rng

NET = """
graph net(%x: f32[N,16,12,12]) -> (%y) {
  @w1: f32[64,16,3,3] #1  @b1: f32[64] #2  @w2: f32[64,1,3,3] #3
  @w3: f32[64,64,1,1] #4  @w4: f32[64,40] #5  @b4: f32[40] #6
  %a = Conv(%x, @w1, @b1) {pads=[1, 1, 1, 1]}
  %b = Relu(%a)
  %c = Conv(%b, @w2) {group=64, pads=[1, 1, 1, 1]}
  %d = Conv(%c, @w3) {strides=[2, 2]}
  %e = GlobalAveragePool(%d)
  %f = Flatten(%e)
  %y = Gemm(%f, @w4, @b4)
}"""
RUNTIME = {"Conv", "FusedConv", "Gemm", "Relu", "GlobalAveragePool", "Flatten", "ReorderInput", "ReorderOutput"}
EVERY_READER = """
graph net(%ids: s64[5], %x: f32[5,3,24], %z: f32[1,24,8,8]) -> (%y, %h, %t, %g, %p) {
  @table: f32[300,24] #1  @w: f32[1,64,24] #2  @r: f32[1,64,16] #3  @k: f32[24,10,3,3] #4  @v: f32[2,24,50] #5
  @position: f32[40,24] #6  @where: s64[2] = [2, 12]
  %y = Gather(@table, %ids)
  %s, %h = LSTM(%x, @w, @r) {hidden_size=16}
  %t = ConvTranspose(%z, @k)
  %q = Transpose(%x) {perm=[1, 0, 2]}
  %u = Slice(%q, @start, @end)
  @start: s64[1] = [0]  @end: s64[1] = [2]
  %g = MatMul(%u, @v)
  %p = Mul(@position, @position)
}"""


def decoded(source: Model) -> Model:
    """A copy with the codes spelled out."""
    copy = source.clone()
    EmitCodebook().run(copy, PassContext())
    infer(copy)
    return copy


def run(source: Model, samples: list[dict[str, np.ndarray]], plain: bool = False) -> list[dict[str, np.ndarray]]:
    runner = OrtRunner(to_bytes(source), PLAIN) if plain else OrtRunner(to_bytes(source))
    return [runner.run(feed) for feed in samples]


def ops(source: Model) -> Counter[str]:
    found = optimized_model(to_bytes(source)).op_counts
    return Counter({op.rpartition("::")[2]: count for op, count in found.items()})


def quality(wanted: list[dict[str, np.ndarray]], got: list[dict[str, np.ndarray]]) -> float:
    return min(sqnr_db([a[name] for a in wanted], [b[name] for b in got]) for name in wanted[0])


# Emission: every shape of a codebook, decoded by onnxruntime to the bit


def with_codebook(shape: tuple[int, ...], quant: CodebookQuant, opset: int) -> tuple[Model, np.ndarray]:
    """A model that hands out its one weight, on the levels of ``quant``."""
    text = ",".join(map(str, shape))
    source = model(f"graph g(%x: f32[{text}]) -> (%y) {{ @w: f32[{text}] #1 %y = Add(%x, @w) }}", opset=opset)
    weight = next(iter(source.graph.initializers))
    assert weight.tensor is not None
    numbers = decode(encode(weight.tensor.numpy(), quant), quant, shape)
    weight.const = Tensor.of(numbers)
    weight.quant = quant
    return source, numbers


@pytest.mark.parametrize("opset", [11, 21])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(
    ("shape", "axis", "tables", "scaled"),
    [
        ((7, 5), None, 1, False),
        ((6, 7, 3), 0, 1, True),
        ((6, 7, 3), 0, 3, True),
        ((5, 6), 1, 6, True),
        ((3, 4, 6), 2, 2, False),
        ((3, 4, 6), -2, 4, True),
        ((9,), 0, 1, False),
        ((1, 1), 0, 1, True),
    ],
    ids=str,
)
def test_decoding_is_exact(
    shape: tuple[int, ...], axis: int | None, tables: int, scaled: bool, bits: int, opset: int
) -> None:
    draw = DRAW(7)
    table = draw.normal(size=(tables, 1 << bits)).astype(np.float32) * 0.1
    channels = 1 if axis is None else shape[axis]
    scale = tuple(draw.uniform(0.5, 2, channels).astype(np.float32).tolist()) if scaled else (1.0,)
    quant = CodebookQuant(bits, tuple(tuple(row) for row in table.tolist()), axis, scale)
    source, numbers = with_codebook(shape, quant, opset)
    zero = {"x": np.zeros(shape, np.float32)}
    for plain in (True, False):
        np.testing.assert_array_equal(run(decoded(source), [zero], plain)[0]["y"], numbers)
    assert ops(decoded(source)) == Counter({"Add": 1})


def test_vectors_are_decoded_exactly() -> None:
    words = DRAW(3).normal(size=(256, 4)).astype(np.float32).reshape(-1)
    quant = CodebookQuant(8, (tuple(words.tolist()),), 1, tuple([0.5, 1.0, 2.0] * 4), 4)
    source, numbers = with_codebook((8, 12, 3), quant, 13)
    zero = {"x": np.zeros((8, 12, 3), np.float32)}
    np.testing.assert_array_equal(run(decoded(source), [zero], True)[0]["y"], numbers)
    assert ops(decoded(source)) == Counter({"Add": 1})


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_are_packed(bits: int) -> None:
    quant = CodebookQuant(bits, (tuple(np.linspace(-1, 1, 1 << bits).astype(np.float16).tolist()),), 0)
    for opset, nibble in ((13, DType.UINT8), (21, DType.UINT4)):
        source, _ = with_codebook((33, 31), quant, opset)
        codes = [v.tensor for v in decoded(source).graph.initializers if "_codes" in v.name]
        planes = [width for width in (8, 4, 2, 1) if bits & width]
        assert [one.nbytes for one in codes if one] == [-(-33 * 31 * width // 8) for width in planes]
        assert [one.dtype for one in codes if one] == [nibble if width == 4 else DType.UINT8 for width in planes]


def test_below_opset_11_there_is_no_shift() -> None:
    quant = CodebookQuant(4, ((0.0, 1.0),))
    source, _ = with_codebook((2, 2), quant, 9)
    with pytest.raises(UnsupportedError, match="opset 11"):
        EmitCodebook().run(source, PassContext())


# Choosing


@pytest.mark.parametrize(
    "passes", ["cluster-weights", "quantize-log", "cluster-weights{bits=8}", "quantize-log{bits=8}"]
)
def test_the_annotated_model_is_the_emitted_one(passes: str) -> None:
    source = model(NET)
    samples = feeds(source)
    annotated = Pipeline.parse(passes).run(source, calibration=samples).model
    bare = annotated.clone()
    for value in bare.graph.initializers:
        value.quant = None
    emitted = decoded(annotated)
    for plain in (True, False):
        for wanted, got in zip(run(bare, samples, plain), run(emitted, samples, plain), strict=True):
            np.testing.assert_array_equal(got["y"], wanted["y"])
    assert set(ops(emitted)) <= RUNTIME


@pytest.mark.parametrize(
    ("passes", "least", "most"),
    [
        ("cluster-weights", 18, 0.16),
        ("cluster-weights{bits=8}", 40, 0.31),
        ("cluster-weights{bits=8 dim=2 overhead=0.1}", 14, 0.21),
        ("quantize-log", 12, 0.16),
        ("quantize-log{bits=8}", 18, 0.29),
        ("quantize-log{base=2 power-of-two-scale}", 8, 0.16),
    ],
)
def test_size_and_error(passes: str, least: float, most: float) -> None:
    source = model(NET)
    samples, unseen = feeds(source), feeds(source, 4, seed=1)
    result = Pipeline.parse(f"{passes},emit-codebook").run(source, calibration=samples).model
    assert quality(run(source, unseen), run(result, unseen)) > least
    names = {value.name for value in result.graph.initializers}
    before = sum(
        value.tensor.nbytes
        for value in source.graph.initializers
        if value.tensor is not None and f"{value.name}_codes" in names
    )
    kept = {value.name for value in source.graph.initializers}
    after = sum(
        value.tensor.nbytes
        for value in result.graph.initializers
        if value.tensor is not None and value.name not in kept and not value.name.endswith(("_corrected", "_bias"))
    )
    assert before > 0.9 * sum(value.tensor.nbytes for value in source.graph.initializers if value.tensor is not None)
    assert after / before < most


def test_samples_make_it_better() -> None:
    """Inputs that hang together: errors of some weights make good those of others."""
    source = model("graph g(%x: f32[N,64]) -> (%y) { @w: f32[64,48] #1 %y = MatMul(%x, @w) }")
    mix = DRAW(9).normal(size=(24, 64))
    samples = [{"x": (DRAW(seed).normal(size=(32, 24)) @ mix).astype(np.float32)} for seed in range(12)]
    for passes in ("cluster-weights", "quantize-log"):
        blind = Pipeline.parse(f"{passes},emit-codebook").run(source).model
        seeing = Pipeline.parse(f"{passes},emit-codebook").run(source, calibration=samples[:8]).model
        wanted = run(source, samples[8:])
        assert quality(wanted, run(seeing, samples[8:])) > quality(wanted, run(blind, samples[8:])) + 3


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_samples_make_recurrent_layers_better(op: str, direction: str) -> None:
    directions, rows = 2 if direction == "bidirectional" else 1, {"LSTM": 4, "GRU": 3}[op] * 32
    source = model(
        f"""graph g(%x: f32[20,2,32]) -> (%y) {{
          @w: f32[{directions},{rows},32] #1  @r: f32[{directions},{rows},32] #2
          %y, _ = {op}(%x, @w, @r) {{hidden_size=32, direction="{direction}"}}
        }}"""
    )
    mix = DRAW(9).normal(size=(8, 32))
    samples = [{"x": (DRAW(seed).normal(size=(20, 2, 8)) @ mix).astype(np.float32)} for seed in range(12)]
    for passes in ("cluster-weights", "quantize-log"):
        blind = Pipeline.parse(f"{passes},emit-codebook").run(source).model
        seeing = Pipeline.parse(f"{passes},emit-codebook").run(source, calibration=samples[:8]).model
        wanted = run(source, samples[8:])
        assert quality(wanted, run(seeing, samples[8:])) > quality(wanted, run(blind, samples[8:])) + 2


def test_a_budget_goes_where_the_results_feel_it() -> None:
    """A weight in front of large factors gets more bits than the one that is hardly heard; all stay in the budget."""
    source = model(
        "graph g(%x: f32[N,64]) -> (%y) { @w: f32[64,64] #1 @v: f32[64,64] #2 @tiny: f32[1] = [0.01]"
        " %a = MatMul(%x, @w) %b = MatMul(%x, @v) %c = Mul(%b, @tiny) %y = Add(%a, %c) }"
    )
    samples, unseen = feeds(source), feeds(source, 4, seed=1)
    spent = Pipeline.parse("cluster-weights{overhead=0 budget=0.16}").run(source, calibration=samples)
    even = Pipeline.parse("cluster-weights{overhead=0}").run(source, calibration=samples)
    bits = {v.name: v.quant.bits for v in spent.model.graph.initializers if isinstance(v.quant, CodebookQuant)}
    assert bits["w"] > bits["v"] == 4
    stored = [
        coded_bytes(4096, quant.bits, len(quant.table), len(quant.scale))
        for value in spent.model.graph.initializers
        if isinstance(quant := value.quant, CodebookQuant)
    ]
    assert sum(stored) <= 0.16 * 2 * 4 * 4096
    gain = quality(run(source, unseen), run(decoded(spent.model), unseen)) - quality(
        run(source, unseen), run(decoded(even.model), unseen)
    )
    assert gain > 4
    assert spent.passes[0].statistics["4 bits"] == 1
    blind = Pipeline.parse("cluster-weights{budget=0.16}").run(source)
    assert any(remark.message.startswith("4 bits everywhere: without samples") for remark in blind.remarks)


def test_the_weight_that_is_felt_most_stays_float_where_the_budget_allows_it() -> None:
    source = model(
        "graph g(%x: f32[N,64]) -> (%y) { @w: f32[64,16] #1 @v: f32[16,384] #2 @u: f32[384,64] #3"
        " @large: f32[1] = [1000]"
        " %a = MatMul(%x, @w) %b = MatMul(%a, @v) %c = MatMul(%b, @u) %d = MatMul(%a, @t) %e = Mul(%d, @large)"
        " @t: f32[16,64] #4 %y = Add(%c, %e) }"
    )
    result = Pipeline.parse("cluster-weights{budget=0.25 min-channel=16}").run(source, calibration=feeds(source))
    floats = [value.name for value in result.model.graph.initializers if value.quant is None and value.name != "large"]
    assert floats == [remark.subject for remark in result.remarks if remark.message.startswith("stays float: the res")]
    assert floats and set(floats) <= {"w", "t"}


def test_every_reader_of_weights() -> None:
    source = model(EVERY_READER, opset=17)
    source.graph.sort()
    samples = [
        {
            "ids": np.array([0, 299, 7, 7, 12]),
            "x": DRAW(0).normal(size=(5, 3, 24)).astype(np.float32),
            "z": DRAW(1).normal(size=(1, 24, 8, 8)).astype(np.float32),
        }
    ]
    result = Pipeline.parse("cluster-weights{min-channel=16}").run(source)
    assert result.passes[0].statistics["4 bits"] == 5
    remark = next(remark for remark in result.remarks if remark.subject == "position")
    assert remark.message == "stays float: Mul does not read it as a weight"
    assert quality(run(source, samples), run(decoded(result.model), samples)) > 15


def test_einsum_and_fused_attention_read_weights_too() -> None:
    source = model(
        "graph g(%x: f32[1,6,32]) -> (%y, %a) { @w: f32[4,32,16] #1 @q: f32[32,96] #2 @b: f32[96] #3"
        ' %y = Einsum(%x, @w) {equation="bsd,hdk->bhsk"}'
        " %a = com.microsoft.Attention(%x, @q, @b) {num_heads=4} }",
        opset=17,
    )
    for passes in ("cluster-weights{min-channel=16}", "quantize-log{min-channel=16}"):
        result = Pipeline.parse(passes).run(source, calibration=feeds(source))
        assert {v.name for v in result.model.graph.initializers if v.quant is not None} == {"w", "q"}
        assert quality(run(source, feeds(source)), run(decoded(result.model), feeds(source))) > 12


def test_a_shared_weight_is_stored_once() -> None:
    source = model(
        "graph g(%x: f32[N,32], %i: s64[M]) -> (%y, %z) {"
        " @w: f32[32,32] #1 %a = MatMul(%x, @w) %y = MatMul(%a, @w) %z = Gather(@w, %i) }"
    )
    result = Pipeline.parse("cluster-weights,emit-codebook").run(source, calibration=feeds(source)).model
    assert sum(value.name.endswith("_codes") for value in result.graph.initializers) == 1
    assert quality(run(source, feeds(source)), run(result, feeds(source))) > 12


def test_bodies_have_weights_too() -> None:
    source = model(
        "graph g(%c: bool[], %x: f32[2,32]) -> (%y) {"
        " %y = If(%c) {then_branch=graph yes () -> (%a) { @w: f32[32,32] #1 %a = MatMul(%x, @w) },"
        " else_branch=graph no () -> (%b) { %b = Neg(%x) }} }"
    )
    result = Pipeline.parse("cluster-weights,emit-codebook").run(source).model
    samples = [{"c": np.array(True), "x": DRAW(0).normal(size=(2, 32)).astype(np.float32)}]
    assert quality(run(source, samples), run(result, samples)) > 15
    assert "Gather" not in ops(result) and "GatherElements" not in ops(result)


def test_what_stays_float() -> None:
    source = model(NET)
    result = Pipeline.parse("cluster-weights{min-size=600 keep-float=Gemm}").run(source)
    typed = {v.name for v in source.graph.initializers} - {
        v.name for v in result.model.graph.initializers if v.quant is None
    }
    assert typed == {"w1", "w3"}
    messages = {remark.subject: remark.message for remark in result.remarks}
    assert messages["w4"] == "stays float: --keep-float says so ('Gemm')"
    assert messages[""] == "3 small tensors (2720 bytes: biases, norms, under 600 numbers) stay float"


def test_zeros_and_huge_numbers() -> None:
    source = model("graph g(%x: f32[N,64]) -> (%y) { @w: f32[64,64] #1 %y = MatMul(%x, @w) }")
    weight = next(iter(source.graph.initializers))
    assert weight.tensor is not None
    array = np.array(weight.tensor.numpy())
    array[:, :3] = 0
    array[:, 3] *= 1e-30
    array[:, 4] *= 1e30
    weight.const = Tensor.of(array)
    for passes in ("cluster-weights", "quantize-log"):
        for samples in (None, feeds(source)):
            result = Pipeline.parse(passes).run(source, calibration=samples).model
            found = next(iter(result.graph.initializers)).tensor
            assert found is not None
            np.testing.assert_array_equal(found.numpy()[:, :3], 0)
            for column in (3, 4):
                assert sqnr_db([array[:, column].astype(np.float64)], [found.numpy()[:, column].astype(np.float64)]) > 8
    array[0, 0] = np.nan
    weight.const = Tensor.of(array)
    assert not Pipeline.parse("cluster-weights").run(source).passes[0].changed


def test_log_tables_are_powers(check_pass: CheckPass) -> None:
    source = model(NET)
    result = Pipeline.parse("quantize-log{base=2}").run(source).model
    quants = [value.quant for value in result.graph.initializers if value.quant is not None]
    assert len(quants) == 3
    for quant in quants:
        assert isinstance(quant, CodebookQuant)
        np.testing.assert_array_equal(np.array(quant.table[0], np.float32), log_levels(4, "2"))


def test_same_bytes_twice() -> None:
    source = model(NET)
    samples = feeds(source)
    pipeline = Pipeline.parse("cluster-weights,emit-codebook")
    first, second = (to_bytes(pipeline.run(source, calibration=samples).model) for _ in range(2))
    assert first == second


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="bits"):
        ClusterWeights(bits=9)
    for option in ("dim=3", "tables=0", "overhead=-1", "budget=7", "budget=0", "probes=0"):
        with pytest.raises(OptionError, match=option.partition("=")[0]):
            Pipeline.parse(f"cluster-weights{{{option}}}")
