"""smooth: the same function from flatter activations, less noise as int8, and a reason where it keeps away."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from qir.calibration.statistics import ChannelStatistics
from qir.errors import DataError
from qir.ir import Interval, Model, Tensor
from qir.passes.accuracy.scaling.layers import Layer, layer_of
from qir.passes.accuracy.scaling.noise import Reader, best_scale, noise_ratio, smoothing_scale
from qir.passes.accuracy.smooth import Smooth
from qir.pipeline import PassContext, PassReport, Pipeline, RemarkKind
from qir.quant.arithmetic import fake_quantize
from qir.quant.schemes import activation_quant, weight_quant
from tests.passes.accuracy.test_equalize import CHAINS, uneven
from tests.passes.int8 import emit, feeds, model, node
from tests.passes.support import assert_close, outputs

TOKENS = "%x: f32[2,6,16]"
OUTLIERS = {1: 40.0, 7: -25.0}
"""Channels of a norm's scale that stick out, as those of trained transformers do."""

CONSTANTS = (
    "@g: f32[16] #01\n@b: f32[16] #02\n@w: f32[16,24] #03\n@v: f32[16,16] #04\n@u: f32[24,16] #05\n"
    "@two: f32[] = 2.0\n@eps: f32[] = 0.00001\n"
)
NORM = "%n = LayerNormalization(%x, @g, @b) {axis=-1}\n"
PARTS = (
    "%mean = ReduceMean(%x) {axes=[-1]}\n%d = Sub(%x, %mean)\n%sq = Pow(%d, @two)\n%var = ReduceMean(%sq) {axes=[-1]}\n"
    "%e = Add(%var, @eps)\n%s = Sqrt(%e)\n%z = Div(%d, %s)\n%zg = Mul(%z, @g)\n%n = Add(%zg, @b)\n"
)
RMS = (
    "%sq = Pow(%x, @two)\n%ms = ReduceMean(%sq) {axes=[-1]}\n%e = Add(%ms, @eps)\n%s = Sqrt(%e)\n%z = Div(%x, %s)\n"
    "%n = Mul(@g, %z)\n"
)
FEED_FORWARD = "%h = MatMul(%n, @w)\n%r = Relu(%h)\n%y = MatMul(%r, @u)\n"
SIBLINGS = "%h = MatMul(%n, @w)\n%k = MatMul(%n, @v)\n%r = Sigmoid(%h)\n%y = MatMul(%r, @u)\n%z = Softmax(%k)\n"


def graph(body: str, results: str = "%y") -> Model:
    source = model(f"graph g({TOKENS}) -> ({results}) {{\n{CONSTANTS}{body}}}")
    for value in source.graph.initializers:
        if value.name in ("g", "b") and value.tensor is not None:
            array = 1 + value.tensor.numpy()
            for channel, factor in OUTLIERS.items():
                array[channel] *= factor
            value.const = Tensor.of(array)
        elif value.name in ("w", "v") and value.tensor is not None:
            array = value.tensor.numpy().copy()
            for channel, factor in OUTLIERS.items():
                array[channel] /= abs(factor)  # so that they do not drown the others in the result
            value.const = Tensor.of(array)
    used = {value for one in source.graph.nodes for value in one.inputs}
    for value in list(source.graph.initializers):
        if value not in used:
            source.graph.remove_initializer(value)
    return source


def run(source: Model, pass_: Smooth | None = None) -> tuple[Model, PassReport]:
    """The smoothed copy and what the pass said; its outputs on other samples are checked."""
    result = Pipeline([pass_ or Smooth()]).run(source, calibration=feeds(source, 8))
    for feed in feeds(source, 3, seed=5):
        assert_close(outputs(result.model, feed), outputs(source, feed), 2e-5)
    return result.model, result.passes[-1]


def spread_of(source: Model, name: str) -> float:
    """Largest over median channel maximum of a value."""
    copy = source.clone()
    value = next(value for value in copy.graph.values() if value.name == name)
    copy.graph.add_output(value)
    peaks = np.max([np.abs(outputs(copy, feed)[name]).max(axis=(0, 1)) for feed in feeds(source, 4)], axis=0)
    return float(peaks.max() / np.median(peaks))


def int8_sqnr(source: Model) -> float:
    """In dB, with ranges of linear operators that calibration fixes."""
    return emit(source, passes="legalize,analyze-ranges,calibrate,quantize{linear=static},emit-qdq").off


def reasons(report: PassReport) -> str:
    return " ".join(remark.message for remark in report.remarks if remark.kind is RemarkKind.MISSED)


@pytest.mark.parametrize("norm", [NORM, PARTS, RMS], ids=["operator", "parts", "rms"])
@pytest.mark.parametrize("readers", [FEED_FORWARD, SIBLINGS], ids=["one", "siblings"])
def test_the_scale_goes_into_the_norm(norm: str, readers: str) -> None:
    body = (norm if norm is NORM else norm.replace("%z", "%unit")) + readers
    source = graph(body, "%y, %z" if readers is SIBLINGS else "%y")
    done, report = run(source)
    assert report.statistics == {"folded": 1}
    assert [one.op for one in done.walk()] == [one.op for one in source.walk()]
    assert spread_of(done, "n") < spread_of(source, "n") / 3
    # With one reader the noise of its own result, which nobody smooths, hides most of the gain.
    assert int8_sqnr(done) > int8_sqnr(source) + (2 if readers is SIBLINGS else -0.2)


@pytest.mark.parametrize("norm", [NORM, PARTS], ids=["operator", "parts"])
def test_a_residual_keeps_the_norm_and_the_layers_get_one_mul(norm: str) -> None:
    source = graph(norm + "%h = MatMul(%n, @w)\n%k = MatMul(%n, @v)\n%y = Add(%n, %k)\n", "%y, %h")
    done, report = run(source)
    assert report.statistics == {"inserted": 1}
    first, second = node(done, "MatMul"), node(done, "MatMul", 1)
    product = first.input(0)
    assert product is not None and product is second.input(0)
    assert product.producer is not None and product.producer.op == "Mul"
    assert node(done, "Add", -1).input(0) is product.producer.input(0)
    assert int8_sqnr(done) > int8_sqnr(source) + 2
    kept, report = run(source, Smooth(insert=False))
    assert not report.changed and "Add" in reasons(report)
    assert len(list(kept.walk())) == len(list(source.walk()))


def test_a_linear_layer_before_is_asked_for() -> None:
    source = graph("%h = MatMul(%x, @w)\n%r = Relu(%h)\n%y = MatMul(%r, @u)\n")
    for index, factor in enumerate((60, 1 / 60)):
        weight = node(source, "MatMul", index).input(1)
        assert weight is not None and weight.tensor is not None
        array = weight.tensor.numpy().copy()
        array[(slice(None), 5) if index == 0 else 5] *= factor
        weight.const = Tensor.of(array)
    assert not run(source)[1].changed
    done, report = run(source, Smooth(scope="linear"))
    assert report.statistics == {"folded": 1} and spread_of(done, "r") < spread_of(source, "r") / 3
    assert run(source, Smooth(scope="products"))[1].statistics == {"folded": 1}


def test_products_leave_convolutions_alone() -> None:
    inputs, constants, nodes = CHAINS["depthwise"]
    source = uneven(model(f"graph g({inputs}) -> (%y) {{\n{constants}\n{nodes}\n}}"))
    assert not run(source, Smooth(alpha=0.5, scope="products", min_gain=-100))[1].changed


@pytest.mark.parametrize("name", CHAINS)
def test_the_function_stays_through_whatever_commutes(name: str) -> None:
    inputs, constants, nodes = CHAINS[name]
    source = uneven(model(f"graph g({inputs}) -> ({'%y, %z' if '%z' in nodes else '%y'}) {{\n{constants}\n{nodes}\n}}"))
    _, report = run(source, Smooth(alpha=0.5, scope="all", min_gain=-100))
    assert report.statistics["folded"] == (2 if name == "depthwise" else 1)


def test_nothing_to_gain_is_nothing_done() -> None:
    constants = "@g: f32[16] #01\n@w: f32[16,24] #03\n"
    nodes = "%n = LayerNormalization(%x, @g)\n%y = MatMul(%n, @w)\n"
    source = model(f"graph g({TOKENS}) -> (%y) {{\n{constants}{nodes}}}")
    done, report = run(source, Smooth(min_gain=20))
    assert not report.changed and "below 20" in reasons(report)
    assert spread_of(done, "n") == spread_of(source, "n")


def test_a_second_run_gains_little() -> None:
    source = graph(NORM + FEED_FORWARD)
    once, _ = run(source)
    assert not run(once, Smooth(min_gain=0.5))[1].changed


def test_it_needs_samples_only_where_there_is_something_to_smooth() -> None:
    with pytest.raises(DataError, match="--calib"):
        Smooth().run(graph(NORM + FEED_FORWARD), PassContext())
    assert not Smooth().run(graph("%y = MatMul(%x, @v)\n"), PassContext()).changed


@pytest.mark.parametrize("options", [{"alpha": 1.5}, {"alpha": -0.1}, {"samples": 0}, {"margin": -1.0}])
def test_senseless_options_are_refused(options: Mapping[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Smooth(**options)  # type: ignore[arg-type]


# The estimate


def reader(samples: list[np.ndarray], weight: np.ndarray) -> Reader:
    rows, columns = weight.shape
    source = model(f"graph g(%x: f32[1,{rows}]) -> (%y) {{\n@w: f32[{rows},{columns}] #01\n%y = MatMul(%x, @w)\n}}")
    value = node(source, "MatMul").input(1)
    assert value is not None
    value.const = Tensor.of(weight)
    layer = layer_of(node(source, "MatMul"))
    assert isinstance(layer, Layer)
    seen = ChannelStatistics.of(samples[0], -1)
    for sample in samples[1:]:
        seen = seen.merge(ChannelStatistics.of(sample, -1))
    return Reader(layer, seen)


def data(channels: int = 24, outlier: float = 20.0) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    samples = [rng.uniform(-1, 1, (40, channels)).astype(np.float32) for _ in range(8)]
    for sample in samples:
        sample[:, 3] *= outlier
    return samples, rng.standard_normal((channels, 32)).astype(np.float32)


def measured(samples: list[np.ndarray], weight: np.ndarray) -> float:
    """noise / signal of the product of quantized operands."""
    x = np.concatenate(samples)
    xq = fake_quantize(x, activation_quant(Interval(float(x.min()), float(x.max()))))
    wq = fake_quantize(weight, weight_quant(weight, 1))
    exact = x.astype(np.float64) @ weight
    return float(np.square(xq.astype(np.float64) @ wq - exact).sum() / np.square(exact).sum())


@pytest.mark.parametrize("alpha", [None, 0.0, 0.5, 1.0])
def test_the_estimate_is_what_quantization_does(alpha: float | None) -> None:
    samples, weight = data()
    one = reader(samples, weight)
    scale = np.ones(len(weight)) if alpha is None else smoothing_scale([one], alpha)
    found = measured([(x / scale).astype(np.float32) for x in samples], (weight * scale[:, None]).astype(np.float32))
    assert abs(10 * np.log10(noise_ratio([one], scale) / found)) < 1


def test_the_largest_activation_stays_and_no_other_passes_it() -> None:
    samples, weight = data()
    one = reader(samples, weight)
    for headroom in (1.0, 2.0):
        reached = one.seen.magnitude / smoothing_scale([one], 0.7, headroom)
        np.testing.assert_allclose(reached.max(), one.seen.magnitude.max(), rtol=1e-9)
    others = np.delete(reached, 3)
    assert others.max() <= one.seen.magnitude.max() / 2 * (1 + 1e-9)


def test_a_channel_of_rare_peaks_is_not_pulled_up_to_the_end_of_the_range() -> None:
    samples, weight = data(outlier=1.0)
    for number, sample in enumerate(samples):
        sample[:, 5] = 0.001
        sample[7, 5] = 0.01 * 3.0**number
    one = reader(samples, weight)
    steady = reader([np.clip(sample, -1, 1) for sample in samples], weight)
    assert best_scale([one], None, None).gain < best_scale([steady], None, None).gain + 1
    assert best_scale([one], None, None).scale[5] > 0.9 * samples[-1][7, 5] / one.seen.magnitude.max()


def test_bounds_of_clips_are_kept() -> None:
    samples, weight = data()
    least = np.full(len(weight), 0.4)
    least[2] = np.nan
    scale = best_scale([reader(samples, weight)], None, least).scale
    assert scale[2] == 1 and (np.delete(scale, 2) >= 0.4).all()


def test_few_samples_are_enough_to_choose() -> None:
    samples, weight = data()
    assert best_scale([reader(samples[:1], weight)], None, None).gain > 3
