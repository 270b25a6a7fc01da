"""split-outliers: the same function, the rest in finer steps, and nothing done where channels are alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qir.errors import DataError
from qir.ir import Model, Tensor
from qir.passes.accuracy.split_outliers import SplitOutliers
from qir.passes.annotation.placement import placement
from qir.passes.annotation.quantize import Quantize
from qir.pipeline import PassContext, PassReport, Pipeline, RemarkKind
from tests.passes.int8 import emit, feeds, model, node
from tests.passes.support import assert_close, outputs

CONSTANTS = "@s: f32[64] #01\n@w: f32[64,24] #02\n@v: f32[64,24] #03\n@b: f32[24] #04\n@u: f32[24,16] #05\n"
OUTLIERS = (3, 51)
FEED_FORWARD = "%n = Mul(%x, @s)\n%h = MatMul(%n, @w)\n%a = Add(%h, @b)\n%r = Relu(%a)\n%y = MatMul(%r, @u)\n"


def graph(body: str, results: str = "%y", high: float = 200.0) -> Model:
    """Channels of ``@s`` are about 1, the outliers ``high``, and their rows of the weights as much smaller."""
    source = model(f"graph g(%x: f32[2,6,64]) -> ({results}) {{\n{CONSTANTS}{body}}}")
    for value in list(source.graph.initializers):
        assert value.tensor is not None
        array = value.tensor.numpy().copy()
        if value.name == "s":
            array = 1 + array
            array[list(OUTLIERS)] = high
        elif value.name in ("w", "v"):
            axis = 1 if array.shape[0] == 24 else 0
            array[(slice(None),) * axis + (list(OUTLIERS),)] /= high
        value.const = Tensor.of(array)
        if not value.uses:
            source.graph.remove_initializer(value)
    return source


def run(source: Model, **options: float) -> tuple[Model, PassReport]:
    """The split copy and what the pass said; its outputs on other samples are checked."""
    pass_ = SplitOutliers(**{"min_weights": 1, **options})  # type: ignore[arg-type]
    result = Pipeline([pass_]).run(source, calibration=feeds(source, 8))
    for feed in feeds(source, 3, seed=5):
        assert_close(outputs(result.model, feed), outputs(source, feed), 2e-5)
    return result.model, result.passes[-1]


def sqnr(source: Model, before: str = "") -> float:
    """Of int8 with ranges of linear operators that calibration fixes, in dB."""
    return emit(source, passes=f"{before}legalize,analyze-ranges,calibrate,quantize{{linear=static}},emit-qdq").off


def test_outliers_are_multiplied_in_float_and_the_rest_in_finer_steps() -> None:
    source = graph(FEED_FORWARD)
    done, report = run(source)
    assert report.statistics == {"values": 1, "channels": 2}
    pick = node(done, "Gather").input(1)
    assert pick is not None and pick.tensor is not None
    assert tuple(pick.tensor.numpy()) == OUTLIERS
    rest, small = node(done, "MatMul").input(1), node(done, "MatMul", 1)
    assert rest is not None and rest.tensor is not None and small.kernel == "float"
    assert not rest.tensor.numpy()[list(OUTLIERS)].any()
    assert sqnr(source, "split-outliers{min-weights=1},") > sqnr(source) + 6


def test_the_sum_stands_behind_the_bias_which_kernels_add_themselves() -> None:
    done, _ = run(graph(FEED_FORWARD))
    bias, total = node(done, "Add"), node(done, "Add", 1)
    assert bias.input(0) is node(done, "MatMul").output
    assert total.input(0) is bias.output and node(done, "Relu").input(0) is total.output


def test_a_product_that_is_there_takes_the_mask_along() -> None:
    done, _ = run(graph(FEED_FORWARD))
    assert [one.op for one in done.walk()].count("Mul") == 1
    shared = graph(FEED_FORWARD.replace("%r = Relu(%a)", "%t = Softmax(%n)\n%r = Relu(%a)"), "%y, %t")
    assert [one.op for one in run(shared)[0].walk()].count("Mul") == 2


def test_readers_of_one_value_share_the_mask_and_the_channels() -> None:
    source = graph(
        "%n = Mul(%x, @s)\n%h = MatMul(%n, @w)\n%k = MatMul(%n, @v)\n%y = Relu(%h)\n%z = Relu(%k)\n", "%y, %z"
    )
    done, report = run(source)
    ops = [one.op for one in done.walk()]
    assert (ops.count("Gather"), ops.count("Mul"), ops.count("MatMul"), ops.count("Add")) == (1, 1, 4, 2)
    assert report.statistics == {"values": 1, "channels": 2}


def test_a_gemm_with_a_transposed_weight() -> None:
    body = "%m = Mul(%x, @s)\n%n = Reshape(%m, @shape)\n%h = Gemm(%n, @w, @b) {transB=1}\n%y = Relu(%h)\n"
    constants = CONSTANTS.replace("@w: f32[64,24]", "@w: f32[24,64]") + "@shape: s64[2] = [12, 64]\n"
    source = model(f"graph g(%x: f32[2,6,64]) -> (%y) {{\n{constants}{body}}}")
    scale = next(value for value in source.graph.initializers if value.name == "s")
    scale.const = Tensor.of(np.where(np.isin(np.arange(64), OUTLIERS), 500, 1).astype(np.float32))
    weight = next(value for value in source.graph.initializers if value.name == "w")
    assert weight.tensor is not None
    array = weight.tensor.numpy().copy()
    array[:, list(OUTLIERS)] /= 500
    weight.const = Tensor.of(array)
    assert run(source)[1].statistics == {"values": 1, "channels": 2}


@pytest.mark.parametrize(
    ("options", "source"),
    [
        ({}, graph(FEED_FORWARD, high=1.0)),
        ({"min_weights": 10_000}, graph(FEED_FORWARD)),
        ({"min_gain": 90.0}, graph(FEED_FORWARD)),
        ({}, graph("%n = Mul(%x, @s)\n%y = MatMul(%n, @w)\n")),
    ],
    ids=["alike", "small", "little", "output"],
)
def test_where_it_does_not_pay_nothing_is_done(options: dict[str, float], source: Model) -> None:
    _, report = run(source, **options)
    assert not report.changed and not report.statistics


def test_what_is_not_split_is_said() -> None:
    _, report = run(graph(FEED_FORWARD, high=1.0))
    assert {remark.kind for remark in report.remarks} == {RemarkKind.MISSED}
    assert "below 4" in report.remarks[0].message


def test_samples_are_needed() -> None:
    with pytest.raises(DataError, match="--calib"):
        SplitOutliers(min_weights=1).run(graph(FEED_FORWARD), PassContext())


def test_quantize_leaves_the_small_product_and_the_sum_in_float() -> None:
    result = emit(
        graph(FEED_FORWARD), passes="split-outliers{min-weights=1},analyze-ranges,calibrate,quantize,emit-qdq"
    )
    remarks = [one for one in result.result.remarks if one.pass_name == "quantize" and "before this one" in one.message]
    assert [one.message.split()[0] for one in remarks] == ["MatMul"]


def test_a_recipe_made_of_the_placement_gives_it_again() -> None:
    source = graph(FEED_FORWARD)
    for one in source.walk():
        one.name = f"{one.op}-{one.output.name}"
    passes = "split-outliers{min-weights=1},analyze-ranges,calibrate,quantize"
    data = feeds(source, 8)
    first = Pipeline.parse(passes).run(source, calibration=data, reference=source).model
    pipeline = Pipeline.parse(passes)
    recipe = placement(first).to_toml()
    chosen = [replace(one, recipe=recipe) if isinstance(one, Quantize) else one for one in pipeline.passes]
    again = Pipeline(chosen).run(source, calibration=data, reference=source).model
    assert [one.kernel for one in again.walk()] == [one.kernel for one in first.walk()]
