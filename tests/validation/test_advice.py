"""The advice of `compare`: errors injected together are those of the model, and every line is worth its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qir.api.comparing import compare
from qir.api.quantizing import quantize
from qir.ir import Model
from qir.passes.accuracy.correct_bias import CorrectBias
from qir.pipeline import NoProgress, Pipeline
from qir.validation.advice import Suggestion
from qir.validation.injection import Plan, open_bench
from qir.validation.layers import compare_layers
from tests.passes.int8 import feeds, model
from tests.validation.test_layers import CHAIN, outlier, quantized

EVERYTHING = "legalize,quantize-static{activation=u8 weight=s8 results=true},emit-qdq"


def static(source: Model) -> Model:
    return Pipeline.parse(EVERYTHING).run(source, calibration=feeds(source, 8)).model


def test_all_errors_together_are_the_error_of_the_model() -> None:
    source = model(CHAIN)
    made, samples = static(source), feeds(source, 4)
    found = compare_layers(source, made, samples)
    nodes = list(dict.fromkeys(layer.unit.node for layer in found.layers if layer.own is not None))
    with open_bench(found, nodes) as bench:
        (injected,) = bench.together(samples, [Plan()], NoProgress())
        everything = Plan(tuple((node, "float") for node in nodes))
        (left,) = bench.together(samples, [everything], NoProgress())
    measured = compare(source, made, samples, lines=0).outputs.sqnr_min_db
    assert abs(injected - measured) < 1.0, (injected, measured)
    assert left > 100, "with every node in float no error is left"


def test_a_node_in_float_whose_readers_quantize_its_result_gains_next_to_nothing() -> None:
    source = model(CHAIN)
    found = compare_layers(source, static(source), feeds(source, 4))
    nodes = list(dict.fromkeys(layer.unit.node for layer in found.layers if layer.own is not None))
    first, second = (next(node for node in nodes if node.label == name) for name in ("first", "second"))
    with open_bench(found, nodes) as bench:
        assert second in bench.readers()[first]
        plans = [Plan(), Plan(((first, "float"),)), Plan(((first, "float"), (second, "float")))]
        none, alone, both = bench.together(feeds(source, 4), plans, NoProgress())
    assert both - none > alone - none


def test_no_line_makes_worse_what_those_before_it_reach() -> None:
    source = model(CHAIN)
    samples = outlier(feeds(source, 8), 30.0)
    advice = compare(source, quantized(source, samples), samples).advice
    assert advice.suggestions and all(one.gain_db > 0 for one in advice.suggestions)
    assert advice.predicted_db > advice.injected_db


def test_a_correction_stands_above_all_tables_and_adds_its_pass() -> None:
    line = Suggestion(("*",), "all means", None, None, 2.0, 0.0, "bias")
    assert line.recipe.to_toml() == 'corrections = ["bias"]\n'
    source, samples = model(CHAIN), feeds(model(CHAIN), 8)
    done = quantize(
        source, calibration=samples, preset=EVERYTHING, recipe=line.recipe, latency_seconds=0, golden=samples
    )
    assert CorrectBias.name in done.compilation.pipeline
    again = quantize(source, calibration=samples, preset="int8-fast", recipe=line.recipe, latency_seconds=0)
    assert again.compilation.pipeline.count(CorrectBias.name) == 1, "the preset has one already"


def test_what_the_recipe_corrects_is_not_advised_again(tmp_path: Path) -> None:
    source = model(CHAIN)
    # Inputs far from 0 make the errors of weights a shift of the results.
    samples = [{name: array + np.float32(10) for name, array in feed.items()} for feed in feeds(source, 8)]
    made = Pipeline.parse(EVERYTHING).run(source, calibration=samples).model
    recipe = tmp_path / "r.toml"
    recipe.write_text('corrections = ["bias"]\n')
    first, again = (compare(source, made, samples, recipe=one).advice for one in (None, recipe))
    assert first.suggestions[0].correction == "bias"
    assert again.suggestions and all(one.correction is None for one in again.suggestions)
