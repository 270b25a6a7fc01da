"""correct-bias: mean errors leave, and one odd sample among many does not decide what a mean is."""

from __future__ import annotations

import numpy as np

from qir.pipeline import Pipeline
from tests.passes.int8 import Feed, annotated, model

SOURCE = (
    "graph g(%x: f32[1,16,4,4]) -> (%y) {\n@w: f32[16,16,1,1] #01\n@v: f32[16,16,1,1] #02\n"
    "%a = Conv(%x, @w)\n%r = Relu(%a)\n%y = Conv(%r, @v)\n}"
)


def samples(count: int) -> list[Feed]:
    draw = np.random.default_rng(3)
    return [{"x": draw.normal(size=(1, 16, 4, 4)).astype(np.float32)} for _ in range(count)]


def biases(feeds: list[Feed], calibration: list[Feed]) -> np.ndarray:
    """Of the last convolution, with ranges of ``calibration`` and corrections by ``feeds``."""
    ranged = annotated(model(SOURCE), calibration, "legalize,analyze-ranges,calibrate,quantize").model
    done = Pipeline.parse("correct-bias{samples=10}").run(ranged, calibration=feeds).model
    bias = [node for node in done.walk() if node.op == "Conv"][-1].input(2)
    assert bias is not None and bias.tensor is not None
    return bias.tensor.numpy()


def test_one_sample_that_saturates_hardly_moves_the_correction() -> None:
    usual = samples(10)
    odd = [*usual[:9], {"x": usual[9]["x"] * 50}]
    plain, disturbed = biases(usual, usual), biases(odd, usual)
    assert np.abs(plain).max() > 0
    # A plain mean would move by a tenth of what that sample lacks, which is some fifty times its usual size.
    assert np.abs(disturbed - plain).max() < 0.02


def test_the_order_of_the_samples_does_not_matter() -> None:
    usual = samples(10)
    assert np.allclose(biases(usual, usual), biases(usual[::-1], usual), atol=1e-6)
