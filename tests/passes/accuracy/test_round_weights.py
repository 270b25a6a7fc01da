"""round-weights: less error in every layer's results, codes that stay what they are, limits kept."""

from __future__ import annotations

import numpy as np
import pytest

from qir.errors import DataError
from qir.ir import Model, Node, StaticQuant, Tensor
from qir.ir.printer import print_model
from qir.passes.accuracy.correct_bias import CorrectBias
from qir.passes.accuracy.round_weights import RoundWeights
from qir.passes.emission.emit_qdq import EmitQdq
from qir.pipeline.contract import PassContext, PassResult
from qir.quant.arithmetic import dequantize, quantize
from qir.quant.layer_rows import layer_rows
from qir.quant.pairs import PairLayout, pairs_fit
from tests.passes.int8 import Feed, annotated, kernels, model
from tests.passes.support import outputs

MATRIX = "@w: f32[20,12] #01\n@b: f32[12] #02\n"
FILTER = "@w: f32[8,40,3,3] #01\n@b: f32[8] #02\n"


def net(inputs: str, body: str) -> Model:
    return model(f"graph g(%x: f32[{inputs}]) -> (%y) {{\n{body}\n}}")


NETS = {
    "conv": ("1,40,9,9", FILTER + "%y = Conv(%x, @w, @b) {pads=[1, 1, 1, 1]}"),
    "strided": ("1,40,12,12", FILTER + "%y = Conv(%x, @w, @b) {pads=[1, 0, 1, 2], strides=[2, 1], dilations=[1, 2]}"),
    "grouped": ("1,6,9,9", "@w: f32[8,3,3,3] #01\n@b: f32[8] #02\n%y = Conv(%x, @w, @b) {group=2}"),
    "depthwise": ("1,6,12,12", "@w: f32[6,1,3,3] #01\n%y = Conv(%x, @w) {group=6, pads=[1, 1, 1, 1]}"),
    "gemm": ("16,20", MATRIX + "%y = Gemm(%x, @w, @b)"),
    "transB": ("16,21", "@w: f32[12,21] #01\n@b: f32[12] #02\n%y = Gemm(%x, @w, @b) {transB=1}"),
    "matmul": ("2,8,20", "@w: f32[20,12] #01\n%y = MatMul(%x, @w)"),
    "matmul and bias": ("2,8,20", MATRIX + "%m = MatMul(%x, @w)\n%y = Add(%m, @b)"),
}

DEEP = (
    "1,40,10,10",
    """
    @w1: f32[8,40,3,3] #01
    @b1: f32[8] #02
    @w2: f32[8,1,3,3] #03
    @b2: f32[8] #04
    @w3: f32[5,8] #05
    @b3: f32[5] #06
    %a = Conv(%x, @w1, @b1) {pads=[1, 1, 1, 1]}
    %r = Relu(%a)
    %d = Conv(%r, @w2, @b2) {group=8}
    %s = Relu(%d)
    %p = GlobalAveragePool(%s)
    %f = Flatten(%p)
    %y = Gemm(%f, @w3, @b3) {transB=1}
    """,
)


def smooth_feeds(source: Model, count: int = 16, seed: int = 0) -> list[Feed]:
    """Samples in which neighbours along every axis resemble each other, as in pictures and features."""
    draw = np.random.default_rng(seed)
    value = source.graph.inputs[0]
    assert value.shape is not None
    found = []
    for _ in range(count):
        array = draw.standard_normal([int(str(size)) for size in value.shape]) + 0.5
        for axis in range(array.ndim):
            array = array + np.roll(array, 1, axis) + np.roll(array, 2, axis)
        found.append({value.name: array.astype(np.float32)})
    return found


def context(samples: list[Feed], target: str = "ort-cpu") -> PassContext:
    return PassContext(calibration=samples, target=target)


def rounded(source: Model, samples: list[Feed], options: RoundWeights | None = None) -> tuple[Model, PassResult]:
    copy = source.clone()
    return copy, (options or RoundWeights()).run(copy, context(samples))


def layers(source: Model) -> list[Node]:
    return [node for node in source.graph.nodes if node.kernel == "integer" and node.op in ("Conv", "Gemm", "MatMul")]


def weight(node: Node) -> tuple[np.ndarray, StaticQuant]:
    use = node.use(1)
    assert use is not None and use.value.tensor is not None and isinstance(use.quant, StaticQuant)
    return use.value.tensor.numpy(), use.quant


def emitted(source: Model) -> Model:
    copy = source.clone()
    EmitQdq().run(copy, PassContext())
    return copy


def error(wanted: Model, got: Model, samples: list[Feed]) -> float:
    pairs = [(outputs(wanted, feed)["y"], outputs(got, feed)["y"]) for feed in samples]
    return float(np.mean([np.square(a - b, dtype=np.float64).mean() for a, b in pairs]))


def coarse(source: Model, samples: list[Feed]) -> Model:
    """Annotated, with weight scales so large that rounding them is what the error comes from."""
    copy = annotated(source, samples).model
    for node in layers(copy):
        use = node.use(1)
        assert use is not None and isinstance(use.quant, StaticQuant)
        use.quant = StaticQuant.per_axis(use.quant.dtype, use.quant.scale_array() * 12, use.quant.axis or 0)
    return copy


@pytest.mark.parametrize("case", NETS)
def test_results_of_a_layer_change_less_on_unseen_samples(case: str) -> None:
    source = net(*NETS[case])
    samples, unseen = smooth_feeds(source), smooth_feeds(source, seed=1)
    nearest = coarse(source, samples)
    second, result = rounded(nearest, samples, RoundWeights(correct_bias=False))
    assert kernels(nearest)[:1] == [layers(nearest)[0].op]
    assert result.statistics == {"rounded": 1} and result.changed
    assert error(source, emitted(second), unseen) < 0.6 * error(source, emitted(nearest), unseen)


@pytest.mark.parametrize("target", ["ort-cpu", "ort-cpu-vnni"])
@pytest.mark.parametrize("case", NETS)
def test_frozen_weights_quantize_to_the_same_codes_within_the_limits(case: str, target: str) -> None:
    source = net(*NETS[case])
    samples = smooth_feeds(source)
    found = annotated(source, samples).model
    before = weight(layers(found)[0])[0]
    RoundWeights().run(found, context(samples, target))
    numbers, quant = weight(layers(found)[0])
    use = layers(found)[0].use(1)
    assert use is not None and use.value.frozen
    assert not np.array_equal(numbers, before)
    codes = quantize(numbers, quant)
    np.testing.assert_array_equal(dequantize(codes, quant), numbers)
    assert np.abs(codes.astype(int)).max() <= 127
    layout = layer_rows(layers(found)[0], numbers.shape).layout
    assert target != "ort-cpu" or layout is None or pairs_fit(codes, layout)


def test_pairs_fit_where_rounding_alone_would_break_them() -> None:
    """Weights near the limit, inputs that make errors carry over, and a target without and with saturation."""
    source = net("16,40", "@w: f32[24,40] #07\n%y = Gemm(%x, @w) {transB=1}")
    use = next(iter(source.graph.nodes)).use(1)
    assert use is not None and use.value.tensor is not None
    noise = use.value.tensor.numpy()
    use.value.const = Tensor.of((np.sign(noise) * (0.5 - 0.02 * np.abs(noise))).astype(np.float32))
    samples = smooth_feeds(source)
    base = annotated(source, samples).model
    fits = {}
    for target in ("ort-cpu", "ort-cpu-vnni"):
        found = base.clone()
        RoundWeights().run(found, context(samples, target))
        numbers, quant = weight(layers(found)[0])
        fits[target] = pairs_fit(quantize(numbers, quant), PairLayout.ROWS)
    assert fits == {"ort-cpu": True, "ort-cpu-vnni": False}


def test_layers_and_biases_in_one_sweep() -> None:
    source = net(*DEEP)
    samples, unseen = smooth_feeds(source), smooth_feeds(source, seed=1)
    nearest = coarse(source, samples)
    corrected = nearest.clone()
    CorrectBias(samples=16).run(corrected, context(samples))
    both, result = rounded(nearest, samples)
    assert result.statistics["biases"] == 3 and result.statistics["rounded"] >= 2
    assert error(source, emitted(both), unseen) < error(source, emitted(corrected), unseen)
    assert error(source, emitted(corrected), unseen) < error(source, emitted(nearest), unseen)


def test_the_result_is_what_the_sweep_computed_with() -> None:
    """Rounding again finds nothing to round: every weight is on its grid, and codes and scales agree."""
    source = net(*DEEP)
    samples = smooth_feeds(source)
    once, first = rounded(annotated(source, samples).model, samples, RoundWeights(correct_bias=False))
    twice, result = rounded(once, samples, RoundWeights(correct_bias=False))
    assert first.statistics["rounded"] >= 2
    assert result.statistics == {"kept nearest": 3} and not result.changed
    assert print_model(twice) == print_model(once)


def test_the_same_each_time() -> None:
    source = net(*DEEP)
    samples = smooth_feeds(source)
    base = annotated(source, samples).model
    assert print_model(rounded(base, samples)[0]) == print_model(rounded(base, samples)[0])


def test_long_reductions_are_rounded_in_parts() -> None:
    source = net(*NETS["transB"])
    samples, unseen = smooth_feeds(source), smooth_feeds(source, seed=1)
    nearest = coarse(source, samples)
    parts, _ = rounded(nearest, samples, RoundWeights(max_columns=8))
    assert error(source, emitted(parts), unseen) < 0.9 * error(source, emitted(nearest), unseen)
    assert print_model(parts) != print_model(rounded(nearest, samples)[0])


def test_codes_that_another_layer_reads_stay() -> None:
    source = net("4,8", "@w: f32[8,8] #01\n%a = MatMul(%x, @w)\n%r = Relu(%a)\n%y = MatMul(%r, @w)")
    samples = smooth_feeds(source)
    found, result = rounded(annotated(source, samples).model, samples)
    first, second = (node.input(1) for node in layers(found))
    assert first is second and not result.changed
    assert [remark.message for remark in result.remarks] == [
        "weights are rounded to the nearest: another layer reads the same codes"
    ] * 2


def test_siblings_that_read_one_value_each_get_their_own_codes() -> None:
    weights = "@q: f32[12,10] #01\n@k: f32[12,10] #02\n"
    source = net("8,12", weights + "%a = MatMul(%x, @q)\n%b = MatMul(%x, @k)\n%c = Relu(%a)\n%y = Mul(%c, %b)")
    samples, unseen = smooth_feeds(source), smooth_feeds(source, seed=1)
    nearest = coarse(source, samples)
    found, result = rounded(nearest, samples)
    assert result.statistics == {"rounded": 2}
    assert error(source, emitted(found), unseen) < error(source, emitted(nearest), unseen)


def test_few_samples_do() -> None:
    source = net(*NETS["conv"])
    samples = smooth_feeds(source, 2)
    _, result = rounded(coarse(source, samples), samples)
    assert result.statistics["rounded"] == 1


def test_without_layers_nothing_and_without_samples_a_sentence() -> None:
    assert not RoundWeights().run(net(*NETS["conv"]), PassContext()).changed
    source = net(*NETS["conv"])
    with pytest.raises(DataError, match="no calibration data to round weights on"):
        RoundWeights().run(annotated(source, smooth_feeds(source)).model, PassContext())
