"""calibrate: what was seen, of which values, from which samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from qir.errors import DataError, StaleError
from qir.ir import Interval, Model
from qir.passes.annotation.calibrate import Calibrate
from qir.pipeline import Pipeline
from tests.passes.int8 import Feed, feeds, model

W = "@w: f32[40,40,3,3] #01\n@v: f32[2,40,3,3] #02\n"


def graph(body: str, inputs: str = "%x: f32[1,40,8,8]", outputs: str = "%y") -> Model:
    return model(f"graph g({inputs}) -> ({outputs}) {{\n{body}\n}}")


def seen(source: Model) -> dict[str, Interval]:
    return {value.name: value.observed for value in source.graph.values() if value.observed is not None}


def test_exact_extremes_of_what_will_be_quantized() -> None:
    source = graph(W + "%a = Conv(%x, @w)\n%r = Relu(%a)\n%y = Conv(%r, @v)")
    samples = feeds(source, 5)
    result = Pipeline([Calibrate()]).run(source, calibration=samples).model
    found = seen(result)
    assert set(found) == {"x", "r", "y"}
    whole = np.stack([feed["x"] for feed in samples])
    assert (found["x"].lower, found["x"].upper) == (whole.min(), whole.max())
    assert found["r"].lower == 0 < found["r"].upper


def test_the_order_and_number_of_walks_do_not_matter() -> None:
    source = graph(W + "%y = Conv(%x, @w)")
    samples = feeds(source, 6)

    def walk() -> Iterator[Feed]:
        yield from reversed(samples)

    forwards = Pipeline([Calibrate()]).run(source, calibration=samples).model
    backwards = Pipeline([Calibrate()]).run(source, calibration=walk).model
    assert seen(forwards) == seen(backwards)


def test_a_value_of_a_single_matmul_is_its_input_alone() -> None:
    source = graph("@w: f32[8,5] #01\n%y = MatMul(%x, @w)", "%x: f32[N,8]")
    assert set(seen(Pipeline([Calibrate()]).run(source, calibration=feeds(source, 2)).model)) == {"x"}


def test_samples_of_differing_shape_and_empty_ones() -> None:
    source = graph("@w: f32[8,5] #01\n%a = Neg(%x)\n%y = MatMul(%a, @w)", "%x: f32[N,8]")
    samples = [{"x": np.full((rows, 8), rows, np.float32)} for rows in (1, 0, 4)]
    found = seen(Pipeline([Calibrate()]).run(source, calibration=samples).model)
    assert (found["a"].lower, found["a"].upper) == (-4, -1)


def test_numbers_that_are_none_are_left_out_and_reported() -> None:
    source = graph("@w: f32[8,5] #01\n%a = Log(%x)\n%y = MatMul(%a, @w)", "%x: f32[1,8]")
    samples = [{"x": np.array([[0, 1, 1, 1, 1, 1, 1, 2]], np.float32)}]
    result = Pipeline([Calibrate()]).run(source, calibration=samples)
    assert seen(result.model)["a"].upper == pytest.approx(np.log(2)) and seen(result.model)["a"].lower == 0
    assert [r.message for r in result.remarks] == ["1 of 8 numbers seen are infinite or NaN, left out"]


def test_what_cannot_be_is_reported() -> None:
    source = graph("@w: f32[8,5] #01\n%y = MatMul(%x, @w)", "%x: f32[1,8] range=[0, 1]")
    result = Pipeline([Calibrate()]).run(source, calibration=[{"x": np.full((1, 8), 2, np.float32)}])
    assert ["lies outside of what is possible" in r.message for r in result.remarks] == [True]


def test_a_model_without_integer_forms_needs_no_walk() -> None:
    result = Pipeline([Calibrate()]).run(graph("%y = Tanh(%x)"), calibration=[])
    assert [r.message for r in result.remarks] == ["the target has no integer form for any node of this model"]


def test_no_data() -> None:
    source = graph(W + "%y = Conv(%x, @w)")
    with pytest.raises(DataError, match="no calibration data: give samples"):
        Pipeline([Calibrate()]).run(source)
    with pytest.raises(DataError, match="no sample"):
        Pipeline([Calibrate()]).run(source, calibration=[])


def test_an_edit_makes_what_was_seen_behind_it_stale() -> None:
    source = graph(W + "%a = Conv(%x, @w)\n%y = Conv(%a, @v)")
    result = Pipeline([Calibrate()]).run(source, calibration=feeds(source, 2)).model
    first = result.graph.nodes.first
    assert first is not None
    result.begin("edit")
    first.set("strides", [2, 2])
    result.commit()
    with pytest.raises(StaleError):
        _ = first.output.observed


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy", "moving-average"])
def test_a_threshold_method_narrows_what_is_quantized_and_says_so(method: str) -> None:
    source = graph(W + "%a = Conv(%x, @w)\n%r = Relu(%a)\n%y = Conv(%r, @v)")
    samples = feeds(source, 8)
    for sample in samples:
        sample["x"] = sample["x"] ** 5  # heavy tails
    exact = seen(Pipeline([Calibrate()]).run(source, calibration=samples).model)
    result = Pipeline([Calibrate(method=method, percentile=99.0)]).run(source, calibration=samples)  # type: ignore[arg-type]
    found = seen(result.model)
    assert set(found) == set(exact)
    assert all(exact[name].contains(found[name]) for name in exact)
    assert any(found[name].upper < exact[name].upper for name in exact)
    assert all(found[name].lower == 0 for name in exact if exact[name].lower == 0)
    assert any("narrower" in remark.message and method in remark.message for remark in result.remarks)


@pytest.mark.parametrize("options", [{"percentile": 50.0}, {"percentile": 101.0}, {"keep": 1.0}, {"keep": -0.1}])
def test_senseless_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Calibrate(**options)  # type: ignore[arg-type]
