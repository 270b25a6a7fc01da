"""emit-dynamic: kernels that quantize at run time and look-ups in integer tables, beside numpy and the float model."""

# ruff: noqa: E501  # a graph reads best with a node a line
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qir.codegen import to_bytes
from qir.errors import UnsupportedError
from qir.ir import DType, DynamicQuant, Model, StaticQuant, Tensor, TensorType, UseQuantMarker
from qir.passes.emission.emit_dynamic import EmitDynamic
from qir.passes.emission.emit_qdq import EmitQdq
from qir.pipeline.contract import PassContext
from qir.quant.arithmetic import dequantize, quantize
from qir.quant.pairs import PairLayout, pairs_fit
from qir.runtime.optimized import optimized_model
from qir.runtime.session import PLAIN, OrtRunner
from qir.targets.kernels import make_dynamic, make_lookup, make_recurrent
from qir.targets.ort_cpu import ORT_CPU, ORT_CPU_VNNI
from qir.validation.metrics import sqnr_db
from tests.passes.int8 import EMIT, annotated, emit, feeds, model, node
from tests.textual import CheckPass

DRAW = np.random.default_rng


def emitted(source: Model) -> Model:
    """A copy with everything spelled as nodes."""
    copy = source.clone()
    EmitQdq().run(copy, PassContext())
    return copy


def run(source: Model, feed: dict[str, np.ndarray], plain: bool = False) -> dict[str, np.ndarray]:
    return OrtRunner(to_bytes(source), PLAIN).run(feed) if plain else OrtRunner(to_bytes(source)).run(feed)


def dynamic_codes(x: np.ndarray) -> tuple[np.ndarray, np.float32, int]:
    """DynamicQuantizeLinear: u8 over the range of the data widened to 0."""
    lo, hi = np.float32(min(x.min(), 0)), np.float32(max(x.max(), 0))
    scale = np.float32((hi - lo) / np.float32(255)) or np.float32(1)
    zero = int(np.clip(np.rint(-lo / scale), 0, 255))
    return np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64), scale, zero


def dynamic_product(x: np.ndarray, weight: np.ndarray, quant: StaticQuant) -> np.ndarray:
    """x [M, K] by weight [N, K], in integers of any size: what a kernel that does not saturate computes."""
    codes, scale, zero = dynamic_codes(x)
    sums = (codes - zero) @ quantize(weight, quant).astype(np.int64).T
    return np.asarray(sums.astype(np.float32) * (scale * quant.scale_array().reshape(-1)))


# Text in, text out


def test_siblings_share_a_quantizer_and_the_bias_goes_inside(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[1,2]) -> (%y, %z) {
          @w: f32[2,2] = [1, -1, 0.5, 0.25]
          @v: f32[2,2] = [1, 2, 3, 4]
          @b: f32[1,2] = [1, 2]
          %m: f32[1,2] = MatMul(%x : dynamic(u8), @w : s8[axis=1]([0.25, 0.5])) kernel=dynamic
          %y: f32[1,2] = Add(%m, @b)
          %z: f32[1,2] = Gemm(%x : dynamic(u8), @v : s8[axis=0]([1, 1])) {transB=1} kernel=dynamic
        }
        """,
        "emit-dynamic",
        """
        model opset=[17, com.microsoft 1]
        graph (%x: f32[1,2]) -> (%y, %z) {
          @w_quantized: s8[2,2] = [4, -2, 2, 0]
          @w_scale: f32[2] = [0.25, 0.5]
          @b_vector: f32[2] = [1, 2]
          @v_quantized: s8[2,2] = [1, 3, 2, 4]
          @v_scale: f32[2] = [1, 1]
          %x_quantized: u8[1,2], %x_scale: f32[], %x_zero_point: u8[] = DynamicQuantizeLinear(%x) name="x_DynamicQuantizeLinear"
          %y: f32[1,2] = com.microsoft.MatMulIntegerToFloat(%x_quantized, @w_quantized, %x_scale, @w_scale, %x_zero_point, _, @b_vector)
          %z: f32[1,2] = com.microsoft.MatMulIntegerToFloat(%x_quantized, @v_quantized, %x_scale, @v_scale, %x_zero_point)
        }
        """,
    )


def test_a_lookup(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%i: s64[3]) -> (%y) {
          @t: f32[2,2] = [1, -1, 0.5, 0.25]
          %y: f32[3,2] = Gather(@t : s8[axis=0]([0.25, 0.5]), %i) {axis=0} kernel=integer
        }
        """,
        "emit-dynamic",
        """
        graph (%i: s64[3]) -> (%y) {
          @t_quantized: s8[2,2] = [4, -4, 1, 0]
          @t_scale: f32[2,1] = [0.25, 0.5]
          %Gather_out: s8[3,2] = Gather(@t_quantized, %i) {axis=0} name="Gather"
          %Cast_out: f32[3,2] = Cast(%Gather_out) {to=1} name="Cast"
          %Gather_1_out: f32[3,1] = Gather(@t_scale, %i) {axis=0} name="Gather_1"
          %y: f32[3,2] = Mul(%Cast_out, %Gather_1_out)
        }
        """,
    )


def test_nothing_to_do_leaves_the_model(check_pass: CheckPass) -> None:
    text = """
        graph (%x: f32[1,2]) -> (%y) {
          @w: f32[2,2] = [1, -1, 0.5, 0.25]
          %y: f32[1,2] = MatMul(%x, @w)
        }
        """
    check_pass(text, "emit-dynamic", text)


# Linear operators


LINEAR = {
    "MatMul": "%y: f32[1,6,12] = MatMul(%x, @w)",
    "MatMul and bias": "%m: f32[1,6,12] = MatMul(%x, @w)\n%y: f32[1,6,12] = Add(@b, %m)",
    "Gemm": "%f: f32[6,33] = Flatten(%x) {axis=2}\n%y: f32[6,12] = Gemm(%f, @w, @b)",
    "Gemm transposed": "%f: f32[6,33] = Flatten(%x) {axis=2}\n%y: f32[6,12] = Gemm(%f, @wt, @b) {transB=1}",
}


@pytest.mark.parametrize("case", LINEAR)
def test_a_linear_operator_computes_what_numpy_does(case: str) -> None:
    """Bit for bit, apart from the order in which the bias is added; with optimisations and without."""
    source = model(
        "graph g(%x: f32[1,6,33]) -> (%y) {\n@w: f32[33,12] = #01\n@wt: f32[12,33] = #02\n@b: f32[12] = #03\n"
        + LINEAR[case]
        + "\n}"
    )
    linear = node(source, "Gemm" if "Gemm" in case else "MatMul")
    make_dynamic(linear, ORT_CPU)
    use = linear.use(1)
    assert use is not None and isinstance(use.quant, StaticQuant) and use.value.tensor is not None
    weight = use.value.tensor.numpy()
    rows = weight if "transposed" in case else weight.T
    quant = StaticQuant(use.quant.dtype, use.quant.scale, (0,), 0)
    bias = next(v for v in source.graph.initializers if v.name == "b").tensor
    assert bias is not None
    x = DRAW(0).normal(size=(1, 6, 33)).astype(np.float32)
    wanted = dynamic_product(x.reshape(6, 33), rows, quant) + (0 if case == "MatMul" else bias.numpy())
    copy = emitted(source)
    assert [n.op for n in copy.walk() if n.op != "Flatten"] == ["DynamicQuantizeLinear", "MatMulIntegerToFloat"]
    for plain in (False, True):
        got = run(copy, {"x": x}, plain)["y"]
        np.testing.assert_allclose(got.reshape(6, 12), wanted, rtol=2e-6, atol=2e-6)


def test_full_columns_of_large_weights_do_not_saturate() -> None:
    """All inputs 255 beside weights of one sign: where two products of u8 and s8 are added in 16 bits they must fit."""
    source = model("graph g(%x: f32[4,64]) -> (%y) {\n@w: f32[64,8] = #01\n%y: f32[4,8] = MatMul(%x, @w)\n}")
    weight = np.abs(DRAW(1).normal(size=(64, 8))).astype(np.float32)
    matmul = node(source, "MatMul")
    matmul.set_input(1, source.graph.add_constant(weight, "heavy"))
    make_dynamic(matmul, ORT_CPU)
    use = matmul.use(1)
    assert use is not None and isinstance(use.quant, StaticQuant)
    assert pairs_fit(quantize(weight, use.quant), PairLayout.COLUMNS)
    x = np.ones((4, 64), np.float32)
    wanted = dynamic_product(x, weight.T, StaticQuant(use.quant.dtype, use.quant.scale, (0,), 0))
    np.testing.assert_allclose(run(emitted(source), {"x": x})["y"], wanted, rtol=1e-6)


def test_a_recipe_and_the_option_choose_dynamic_kernels(tmp_path: Path) -> None:
    text = """graph g(%x: f32[2,16]) -> (%z) {
        @w: f32[16,16] = #01
        @v: f32[16,16] = #02
        %y: f32[2,16] = MatMul(%x, @w) name="first"
        %z: f32[2,16] = MatMul(%y, @v) name="second"
    }"""
    source = model(text)
    both = emit(source, passes=EMIT.replace("static", "dynamic"))
    assert both.ops["DynamicQuantizeMatMul"] == 2
    assert both.on > 30 and both.between > 60
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[node]]\nmatch = "first"\nprecision = "int8-dynamic"\n')
    one = annotated(source, passes=f"legalize,calibrate,quantize{{recipe={recipe}}}").model
    assert [n.kernel for n in one.walk()] == ["dynamic", "integer"]
    first = node(one, "MatMul").use(0)
    assert first is not None and first.quant == DynamicQuant(DType.UINT8)


AUTO = EMIT.replace("static", "auto")


def test_by_default_kernels_that_stand_between_floats_are_dynamic() -> None:
    source = model(
        """graph g(%x: f32[2,16]) -> (%y) {
        @w: f32[16,16] = #01
        @b: f32[16] = #02
        %m: f32[2,16] = MatMul(%x, @w)
        %a: f32[2,16] = Add(%m, @b)
        %g: f32[2,16] = Tanh(%a)
        %y: f32[2,16] = MatMul(%g, @w)
    }"""
    )
    done = emit(source, passes=AUTO)
    assert done.ops["DynamicQuantizeMatMul"] == 2 and not done.ops["Add"]
    assert done.on > 30 and done.between > 60


def test_by_default_a_chain_of_linear_operators_hands_integers_on() -> None:
    """A kernel that writes integers itself saves the quantizer: that needs static parameters."""
    source = model(
        """graph g(%x: f32[2,16]) -> (%y) {
        @w: f32[16,16] = #01
        @b: f32[16] = #02
        %a: f32[2,16] = Gemm(%x, @w, @b)
        %r: f32[2,16] = Relu(%a)
        %y: f32[2,16] = Gemm(%r, @w, @b)
    }"""
    )
    done = emit(source, passes=AUTO)
    assert done.ops["QGemm"] == 2 and done.ops["QuantizeLinear"] == 1 and not done.ops["Relu"]


@pytest.mark.parametrize("transposed", [False, True])
def test_biases_are_corrected_and_weights_rounded_as_for_static_kernels(transposed: bool) -> None:
    gemm = "Gemm(%g, @v, @c) {transB=1}" if transposed else "Gemm(%g, @w, @c)"
    source = model(
        f"""graph g(%x: f32[6,48]) -> (%y) {{
        @w: f32[48,48] = #01
        @v: f32[48,48] = #04
        @u: f32[48,48] = #05
        @b: f32[1,48] = #02
        @c: f32[48] = #03
        %m: f32[6,48] = MatMul(%x, @u)
        %a: f32[6,48] = Add(%m, @b)
        %g: f32[6,48] = Sigmoid(%a)
        %y: f32[6,48] = {gemm}
    }}"""
    )
    samples = feeds(source, 24)
    plain = emit(source, passes=AUTO).on
    front = AUTO.removesuffix(",emit-qdq")
    corrected = annotated(source, samples, f"{front},correct-bias")
    rounded = annotated(source, samples, f"{front},round-weights")
    assert [n.kernel for n in rounded.model.walk() if n.op in ("MatMul", "Gemm")] == ["dynamic", "dynamic"]
    assert any("rounded to second order" in str(remark) for remark in rounded.remarks)
    unseen = feeds(source, 8, seed=1)
    wanted = [run(source, feed)["y"] for feed in unseen]
    scores = [
        sqnr_db(wanted, [run(emitted(result.model), feed)["y"] for feed in unseen]) for result in (corrected, rounded)
    ]
    assert scores[0] > plain + 1 and scores[1] > scores[0]


def test_an_old_opset_is_refused() -> None:
    source = model("graph g(%x: f32[1,2]) -> (%y) {\n@w: f32[2,2] = #01\n%y: f32[1,2] = MatMul(%x, @w)\n}", opset=10)
    make_dynamic(node(source, "MatMul"), ORT_CPU)
    with pytest.raises(UnsupportedError, match="opset 11"):
        EmitDynamic().run(source, PassContext())


# LSTM


def lstm(directions: int = 1, inputs: int = 48, hidden: int = 64, heavy: bool = False) -> Model:
    attribute = ', direction="bidirectional"' if directions == 2 else ""
    source = model(
        f"""graph g(%x: f32[S,1,{inputs}], %h: f32[{directions},1,{hidden}], %c: f32[{directions},1,{hidden}]) -> (%y, %last) {{
        @b: f32[{directions},{8 * hidden}] = #03
        %y: f32[S,{directions},1,{hidden}], %last: f32[{directions},1,{hidden}], _ = LSTM(%x, %x, %x, @b, _, %h, %c) {{hidden_size={hidden}{attribute}}}
        }}"""
    )
    draw = DRAW(4)
    for index, size in ((1, inputs), (2, hidden)):
        weight = draw.normal(size=(directions, 4 * hidden, size)) / np.sqrt(size)
        weight = np.abs(weight) if heavy else weight
        node(source, "LSTM").set_input(index, source.graph.add_constant(weight.astype(np.float32), "WR"[index - 1]))
    make_recurrent(node(source, "LSTM"), ORT_CPU)
    return source


def numpy_lstm(source: Model, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Y of a one-directional LSTM of batch 1 (ONNX gates i, o, f, c) with dynamically quantized products: the input of
    all steps at once, the state step by step."""
    found = node(source, "LSTM")
    types, weights = [], []
    for index in (1, 2):
        use = found.use(index)
        assert use is not None and isinstance(use.quant, StaticQuant) and use.value.tensor is not None
        types.append(StaticQuant(use.quant.dtype, use.quant.scale, (0,), 0))
        weights.append(use.value.tensor.numpy()[0])
    bias_value = found.input(3)
    assert bias_value is not None and bias_value.tensor is not None
    bias = bias_value.tensor.numpy()[0].reshape(2, -1).sum(0)
    projected = dynamic_product(x[:, 0], weights[0], types[0]) + bias
    state, cell, steps = h[0], c[0], []

    def sigmoid(z: np.ndarray) -> np.ndarray:
        return np.asarray(1 / (1 + np.exp(-z)))

    for row in projected:
        gates = row + dynamic_product(state, weights[1], types[1])
        i, o, f, g = np.split(gates, 4, axis=1)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        state = (sigmoid(o) * np.tanh(cell)).astype(np.float32)
        steps.append(state)
    return np.stack(steps)[:, None]


@pytest.mark.parametrize("heavy", [False, True], ids=["normal", "all of one sign"])
def test_an_lstm_computes_what_numpy_does(heavy: bool) -> None:
    """With weights of one sign and inputs at their largest, pairs of products would saturate under plain scales."""
    source = lstm(heavy=heavy)
    draw = DRAW(5)
    x = np.ones((6, 1, 48), np.float32) if heavy else draw.normal(size=(6, 1, 48)).astype(np.float32)
    h, c = (draw.normal(size=(1, 1, 64)).astype(np.float32) * 0.3 for _ in range(2))
    wanted = numpy_lstm(source, x, h, c)
    copy = emitted(source)
    assert [n.op for n in copy.walk()] == ["DynamicQuantizeLSTM"]
    for plain in (False, True):
        # A state that lies next to a rounding edge may fall to either side: an LSB of one number, not more.
        assert sqnr_db([wanted], [run(copy, {"x": x, "h": h, "c": c}, plain)["y"]]) > 55


def test_plain_scales_are_kept_where_nothing_saturates() -> None:
    source = lstm(heavy=True)
    found = node(source, "LSTM")
    use = found.use(2)
    assert use is not None and isinstance(use.quant, StaticQuant)
    safe = np.array(use.quant.scale)
    make_recurrent(found, ORT_CPU_VNNI)
    assert isinstance(use.quant, StaticQuant)
    assert (np.array(use.quant.scale) < safe).mean() > 0.9


def test_both_directions_have_scales_of_their_own() -> None:
    source = lstm(directions=2)
    draw = DRAW(6)
    feed = {"x": draw.normal(size=(5, 1, 48)).astype(np.float32)}
    feed.update({name: draw.normal(size=(2, 1, 64)).astype(np.float32) * np.float32(0.3) for name in "hc"})
    wanted = OrtRunner(to_bytes(cleared(source)), PLAIN).run(feed)
    got = run(emitted(source), feed)
    assert min(sqnr_db([wanted[name]], [got[name]]) for name in wanted) > 33


def test_sequence_lengths_and_peepholes_keep_their_places() -> None:
    source = lstm()
    found = node(source, "LSTM")
    operands = list(found.inputs)
    operands[4] = source.graph.add_constant(np.array([3], np.int32), "lengths")
    operands.append(source.graph.add_constant(DRAW(9).normal(size=(1, 192)).astype(np.float32), "peepholes"))
    found.set_inputs(operands)
    draw = DRAW(6)
    feed = {"x": draw.normal(size=(5, 1, 48)).astype(np.float32)}
    feed.update({name: draw.normal(size=(1, 1, 64)).astype(np.float32) * np.float32(0.3) for name in "hc"})
    wanted = OrtRunner(to_bytes(cleared(source)), PLAIN).run(feed)
    got = run(emitted(source), feed)
    assert not wanted["y"][3:].any() and not got["y"][3:].any()
    assert min(sqnr_db([wanted[name]], [got[name]]) for name in wanted) > 33


def cleared(source: Model) -> Model:
    copy = source.clone()
    found = node(copy, "LSTM")
    found.kernel = None
    for use in found.uses:
        if use is not None:
            use.quant = UseQuantMarker.INHERIT
    return copy


def test_the_preset_takes_an_lstm_that_is_large_enough_and_says_why_not_a_small_one() -> None:
    text = """graph g(%x: f32[4,1,{i}]) -> (%y) {{
        @w: f32[1,{g},{i}] = #01
        @r: f32[1,{g},{h}] = #02
        %y: f32[4,1,1,{h}], _, _ = LSTM(%x, @w, @r) {{hidden_size={h}}}
    }}"""
    large = emit(model(text.format(i=64, g=256, h=64)), passes="int8")
    assert large.ops["DynamicQuantizeLSTM"] == 1 and large.on > 30
    small = annotated(model(text.format(i=8, g=32, h=8)))
    assert node(small.model, "LSTM").kernel == "float"
    assert any("512 weights a direction" in str(remark) for remark in small.remarks)


# Look-ups


def test_a_table_has_a_scale_a_row_and_loses_little() -> None:
    source = model(
        """graph g(%i: s64[2,5]) -> (%y) {
        @t: f32[300,64] = #01
        %y: f32[2,5,64] = Gather(@t, %i)
    }"""
    )
    table = next(iter(source.graph.initializers)).tensor
    assert table is not None
    indices = np.array([[0, 1, 2, 299, -1], [7, 7, 8, -300, 3]])
    result = annotated(source, [{"i": indices}], "calibrate,quantize,place,emit-qdq")
    got = run(result.model, {"i": indices})["y"]
    assert sqnr_db([table.numpy()[indices]], [got]) > 40
    stored = sum(v.tensor.nbytes for v in result.model.graph.initializers if v.tensor is not None)
    assert stored < 0.28 * table.nbytes
    # row by row, the same as quantizing the table itself
    magnitude = np.abs(table.numpy()).max(axis=1)
    quant = StaticQuant.per_axis(DType.INT8, (magnitude / 127).astype(np.float32), 0)
    np.testing.assert_array_equal(got, dequantize(quantize(table.numpy(), quant), quant)[indices])


def test_a_table_that_a_head_shares_is_stored_once_a_type() -> None:
    """Tied embeddings: rows for the look-up, columns for the product; nothing keeps the float table alive."""
    source = model(
        """graph g(%i: s64[4]) -> (%y) {
        @t: f32[300,64] = #01
        %e: f32[4,64] = Gather(@t, %i)
        %f: f32[4,64] = Gather(@t, %i)
        %s: f32[4,64] = Add(%e, %f)
        %y: f32[4,300] = Gemm(%s, @t) {transB=1}
    }"""
    )
    done = emit(source, [{"i": np.arange(4) * k} for k in range(1, 9)])
    large = [v for v in done.model.graph.initializers if v.tensor is not None and v.tensor.size == 300 * 64]
    assert sorted(str(v.dtype) for v in large) == ["s8", "s8"]
    assert done.on > 30 and done.between > 50


def test_a_small_table_and_one_of_other_axes_stay_float() -> None:
    source = model(
        """graph g(%i: s64[2]) -> (%y, %z) {
        @t: f32[8,64] = #01
        @u: f32[64,300] = #02
        %y: f32[2,64] = Gather(@t, %i)
        %z: f32[64,2] = Gather(@u, %i) {axis=1}
    }"""
    )
    result = annotated(source, [{"i": np.array([1, 2])}])
    assert [n.kernel for n in result.model.walk()] == [None, None]


# In bodies


def test_a_body_has_a_quantizer_of_its_own() -> None:
    """A branch may never run, so what it reads is quantized inside of it."""
    source = model(
        """graph g(%p: bool[], %x: f32[2,8]) -> (%y) {
        @w: f32[8,8] = #01
        %m: f32[2,8] = MatMul(%x, @w)
        %y: f32[2,8] = If(%p) {then_branch=graph t() -> (%a) { %a: f32[2,8] = MatMul(%x, @w) }, else_branch=graph e() -> (%c) { %c: f32[2,8] = Identity(%m) }}
    }"""
    )
    for found in list(source.walk()):
        if found.op == "MatMul":
            make_dynamic(found, ORT_CPU)
    copy = emitted(source)
    assert [n.op for n in copy.walk()].count("DynamicQuantizeLinear") == 2
    x = DRAW(7).normal(size=(2, 8)).astype(np.float32)
    yes, no = (run(copy, {"p": np.array(p), "x": x})["y"] for p in (True, False))
    np.testing.assert_array_equal(yes, no)
    assert len([v for v in copy.graph.initializers if v.dtype is DType.INT8]) == 1


def test_what_the_runtime_executes_is_what_was_emitted() -> None:
    source = lstm()
    table = source.graph.add_constant(Tensor.of(DRAW(8).normal(size=(300, 48)).astype(np.float32)), "table")
    index = source.graph.add_input("i", None)
    index.type = TensorType(DType.INT64, (6, 1))
    first = source.graph.nodes.first
    assert first is not None
    gather = source.graph.insert_before(first, "Gather", [table, index], types=[TensorType(DType.FLOAT, (6, 1, 48))])
    first.set_input(0, gather.output)
    make_lookup(gather)
    counts = optimized_model(to_bytes(emitted(source))).op_counts
    assert counts["com.microsoft::DynamicQuantizeLSTM"] == 1 and counts["Gather"] == 2 and counts["Mul"] == 1
