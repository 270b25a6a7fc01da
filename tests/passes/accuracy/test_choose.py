"""choose: more work never gives less accuracy, and the default's choices stay unless another is surely better."""

from __future__ import annotations

import pytest

from qir.passes.accuracy.choose import Choose
from qir.passes.pipelines import INT8, INT8_BEST
from qir.pipeline import Pipeline
from tests.passes.int8 import annotated, feeds, model

SOURCE = """graph g(%x: f32[4,32]) -> (%y) {
@w: f32[32,16] #01
@v: f32[16,8] #02
%a = MatMul(%x, @w)
%y = MatMul(%a, @v)
}"""
PASSES = "legalize,analyze-ranges,calibrate,quantize"


def chosen(of: str, count: int = 24) -> list[str]:
    source = model(SOURCE)
    found = annotated(source, feeds(source, count), f"{PASSES},choose{{of=[{of}]}}")
    return [remark.message for remark in found.remarks if remark.pass_name == "choose"]


def test_a_better_pipeline_takes_the_place_of_the_first() -> None:
    [said, *_] = chosen('"round-weights","mixed-precision{min-sqnr=100}"')
    assert said.startswith("mixed-precision{min-sqnr=100} kept: +")


def test_without_a_sure_gain_the_first_stays() -> None:
    [said, *_] = chosen('"round-weights","round-weights"')
    assert said.startswith("round-weights left out: +0.00 dB")


def test_few_samples_do_not_choose() -> None:
    [said, *_] = chosen('"round-weights","round-weights{sweeps=2}"', count=6)
    assert said == "round-weights runs: 6 samples are too few to choose by"


@pytest.mark.parametrize("option", ["prepare", "calibrate"])
def test_the_thorough_preset_tries_first_what_the_default_tries(option: str) -> None:
    default, best = (
        next(getattr(pass_, option) for pass_ in Pipeline.parse(preset.text).passes if pass_.name == "tune")
        for preset in (INT8, INT8_BEST)
    )
    assert best[: len(default)] == default


def test_the_thorough_preset_rounds_as_the_default_does_unless_more_is_better() -> None:
    rounding = next(p for p in Pipeline.parse(INT8.text).passes if p.name == "round-weights")
    [choice] = [p for p in Pipeline.parse(INT8_BEST.text).passes if isinstance(p, Choose)]
    assert list(Pipeline.parse(choice.of[0]).passes) == [rounding]
