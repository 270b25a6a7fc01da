"""What second-order rounding of weight-only layers is judged by, and that it makes good what earlier layers lost."""

from __future__ import annotations

import numpy as np

from qir.ir import Model
from qir.passes.accuracy.round_blocks import _side
from qir.pipeline import Pipeline
from qir.validation.metrics import sqnr_db
from tests.passes.emission.test_codebooks import run
from tests.passes.int8 import model


def test_the_error_is_how_far_the_results_are_from_the_float_models() -> None:
    draw = np.random.default_rng(0)
    whole = [np.rint(draw.normal(size=(2, 30, 7)) * 50).astype(np.float32) for _ in range(3)]
    ahead = [np.rint(draw.normal(size=(2, 30, 7)) * 5).astype(np.float32) for _ in range(3)]
    targets, numbers = draw.normal(size=(2, 4, 7)), draw.normal(size=(2, 4, 7))
    side = _side(whole, ahead, np.ones((2, 7, 7)))
    x, d = np.concatenate(whole, axis=1).astype(np.float64), np.concatenate(ahead, axis=1).astype(np.float64)
    missed = (x + d) @ np.swapaxes(targets, 1, 2) - x @ np.swapaxes(numbers, 1, 2)
    np.testing.assert_allclose(side.error(targets, numbers), (missed**2).mean(axis=1).sum())


def test_later_layers_make_good_what_earlier_ones_lost() -> None:
    """Eight layers in a row: rounded by mean square errors alone, their errors add up."""
    layers = "".join(f" @w{i}: f32[48,48] #{i + 1}\n %h{i + 1} = MatMul(%h{i}, @w{i})\n" for i in range(8))
    source: Model = model(f"graph g(%h0: f32[N,48]) -> (%h8) {{\n{layers}}}", opset=21)
    draw = np.random.default_rng(1)
    samples = [{"h0": draw.normal(size=(24, 48)).astype(np.float32)} for _ in range(40)]

    def quality(rounding: str) -> float:
        text = f"quantize-weights{{rounding={rounding}}},emit-weight-only{{form=fold}}"
        made = Pipeline.parse(text).run(source, calibration=samples[:32]).model
        wanted, got = run(source, samples[32:]), run(made, samples[32:])
        return sqnr_db([one["h8"] for one in wanted], [one["h8"] for one in got])

    assert quality("gptq") > quality("mse") + 3
