"""place: what the runtime does not fuse becomes float, and float nodes stay float."""

from __future__ import annotations

import pytest

from qir.codegen import to_bytes
from qir.ir import Model, UseQuantMarker
from qir.passes.annotation.place import Place, dequantize_node
from qir.pipeline import Pipeline
from qir.runtime.optimized import optimized_model
from tests.passes.int8 import EMIT, QUANTIZE, annotated, emit, feeds, kernels, model, node

W = "@w: f32[8,8,1,1] #01\n@v: f32[8,8,1,1] #02\n"


def graph(body: str, inputs: str = "%x: f32[1,8,8,8]", outputs: str = "%y") -> Model:
    return model(f"graph g({inputs}) -> ({outputs}) {{\n{body}\n}}")


def test_a_convolution_kept_float_between_quantizers_stays_float() -> None:
    source = graph(W + "%a = Conv(%x, @w)\n%b = Conv(%a, @v)\n%y = Conv(%b, @v)")
    passes = EMIT.replace("linear=static", "linear=static keep-float=b")
    emitted = emit(source, feeds(source), passes)
    assert emitted.ops["QLinearConv"] == 2 and emitted.ops["Conv"] == 1 and emitted.ops["Max"] == 1
    # The runtime would quantize that convolution's weight by itself, which costs far more than a decibel.
    assert emitted.on == pytest.approx(emitted.off, abs=0.5)


def test_a_kept_convolution_with_its_activation_stays_float() -> None:
    source = graph(W + "%a = Conv(%x, @w)\n%b = Conv(%a, @v)\n%r = Relu(%b)\n%y = Conv(%r, @v)")
    emitted = emit(source, feeds(source), EMIT.replace("linear=static", "linear=static keep-float=b"))
    assert emitted.ops["QLinearConv"] == 2 and emitted.ops["Conv"] + emitted.ops["FusedConv"] == 1
    assert emitted.on == pytest.approx(emitted.off, abs=0.5)


def test_an_average_pool_stays_float() -> None:
    emitted = emit(
        graph(W + "%a = Conv(%x, @w)\n%p = AveragePool(%a) {kernel_shape=[3, 3]}\n%y = Conv(%p, @v)"),
    )
    assert emitted.ops["AveragePool"] == 1 and emitted.ops["QLinearAveragePool"] == 0
    assert emitted.ops["QLinearConv"] == 2


def test_a_softmax_stays_float() -> None:
    emitted = emit(graph(W + "%a = Conv(%x, @w)\n%p = Softmax(%a) {axis=1}\n%y = Conv(%p, @v)"))
    assert emitted.ops["Softmax"] == 1 and emitted.ops["QLinearSoftmax"] == 0


@pytest.mark.parametrize("between", ["", "%t = Transpose(%p) {perm=[0, 1, 3, 2]}\n"])
def test_the_quantizer_after_a_float_max_pool_stays_after_it(between: str) -> None:
    # onnxruntime would move it before the pool, whose integer kernel is fast only between integer convolutions.
    kept = "[a, p, t]" if between else "[a, p]"
    last = "%y = Conv(%t, @v)" if between else "%y = Conv(%p, @v)"
    body = W + "%a = Conv(%x, @w)\n%r = Relu(%a)\n%p = MaxPool(%r) {kernel_shape=[3, 3]}\n" + between + last
    source = graph(body)
    emitted = emit(source, feeds(source), EMIT.replace("linear=static", f"linear=static keep-float={kept}"))
    assert emitted.ops["QLinearConv"] == 1 and emitted.ops["Max"] == 1
    executed = optimized_model(to_bytes(emitted.model)).proto.graph.node
    makers = {name: node.op_type for node in executed for name in node.output}
    pool = next(node for node in executed if node.op_type == "MaxPool")
    assert makers[pool.input[0]] in ("Conv", "FusedConv")


def test_a_pool_that_would_run_with_its_channels_first_becomes_float_and_so_does_the_concat_before_it() -> None:
    """One operand from a float convolution keeps the Concat, and the pool behind it, from channels last; the integer
    kernel for channels first takes dozens of times as long."""
    lines = [
        "%a = Conv(%x, @w)",
        "%l = Conv(%a, @w)",
        "%b = Relu(%l)",
        "%r = Conv(%a, @v)",
        "%c = Concat(%b, %r) {axis=1}",
    ]
    lines += ["@u: f32[8,16,1,1] #03", "%p = MaxPool(%c) {kernel_shape=[3, 3], strides=[2, 2]}", "%y = Conv(%p, @u)"]
    source = graph(W + "\n".join(lines))
    mixed = emit(source, feeds(source), EMIT.replace("linear=static", "linear=static keep-float=l"))
    assert mixed.ops["MaxPool"] == 1 and mixed.ops["NhwcMaxPool"] == mixed.ops["QLinearConcat"] == 0
    assert "channels first" in next(
        r.message for r in mixed.result.remarks if r.message.startswith("MaxPool stays float")
    )
    whole = emit(source, feeds(source))
    assert whole.ops["NhwcMaxPool"] == 1 and whole.ops["QLinearConcat"] == 1


def test_no_barrier_where_nobody_would_fuse() -> None:
    emitted = emit(graph(W + "%a = Conv(%x, @w)\n%y = AveragePool(%a) {kernel_shape=[3, 3]}"))
    assert "Max" not in emitted.emitted_ops()


def test_a_linear_operator_that_the_runtime_merges_with_a_float_bias_quantizes_at_run_time() -> None:
    # Without 'fuse' and 'legalize', MatMul + Add becomes a float Gemm that dequantizes its weight on every run.
    source = graph("@w: f32[8,8] #01\n@b: f32[8] #02\n%m = MatMul(%x, @w)\n%y = Add(%m, @b)", "%x: f32[3,8]")
    emitted = emit(source, passes="analyze-ranges,calibrate,quantize{linear=static},place,emit-qdq")
    assert emitted.ops["DequantizeLinear"] == emitted.ops["QuantizeLinear"] == 0
    assert emitted.ops["DynamicQuantizeMatMul"] == 1
    assert [r.message for r in emitted.result.remarks if r.pass_name == "place"] == [
        "MatMul quantizes its input at run time: its operands are dequantized, but nothing quantizes its result"
    ]
    kept = emit(source, passes=f"fuse,{EMIT}")
    assert kept.ops["QGemm"] == 1


def test_place_leaves_what_fuses_alone() -> None:
    source = graph(W + "%a = Conv(%x, @w)\n%r = Relu(%a)\n%y = Conv(%r, @v)")
    before = annotated(source).model
    after = Pipeline([Place()]).run(before, calibration=feeds(source))
    assert kernels(after.model) == kernels(before) and not after.changed
    assert after.passes[0].statistics["QLinearConv"] == 2


def test_place_without_annotations_runs_nothing() -> None:
    result = Pipeline([Place()]).run(graph("%y = Relu(%x)"))
    assert not result.changed and not result.passes[0].statistics


def test_a_dequantized_node_gives_its_readers_quantizers_of_their_own() -> None:
    source = annotated(
        graph(W + "%a = Conv(%x, @w)\n%r = Relu(%a)\n%y = Conv(%r, @v)\n%z = Softplus(%r)", outputs="%y, %z"),
        passes=QUANTIZE,
    ).model
    stored = node(source, "Relu").output.quant
    dequantize_node(node(source, "Conv"))
    relu = node(source, "Relu").output
    assert stored is not None and relu.quant is None
    reader, other = node(source, "Conv", 1).use(0), node(source, "Softplus").use(0)
    assert reader is not None and reader.quant == stored
    assert other is not None and other.quant is UseQuantMarker.INHERIT and other.effective_quant is None
    assert kernels(source) == ["Conv"]


def test_a_gemm_whose_merged_relu_is_read_as_floats_quantizes_at_run_time() -> None:
    # Gemm and Relu, with no quantizer behind them, become one float operator before the runtime looks for integers.
    lines = "%a = Gemm(%x, @w, @b)\n%r = Relu(%a)\n%m = Gemm(%r, @w, @b)\n%s = Relu(%m)\n%y = Gemm(%s, @w, @b)"
    source = graph(f"@w: f32[8,8] #01\n@b: f32[8] #02\n{lines}", "%x: f32[3,8]")
    emitted = emit(source, passes="analyze-ranges,calibrate,quantize{linear=static keep-float=y},place,emit-qdq")
    assert emitted.ops["DequantizeLinear"] == emitted.ops["QuantizeLinear"] == 0
    assert emitted.ops["DynamicQuantizeMatMul"] == 2
