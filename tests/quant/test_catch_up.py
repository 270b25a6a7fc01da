"""Targets that make good what earlier layers lost."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qir.quant.catch_up import caught_up, cross_moment, gain
from qir.quant.gptq import Moments


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (2, 5, 6), inputs (2, 60, 6) of two groups, and what the float model's inputs are ahead of those."""
    draw = np.random.default_rng(seed)
    mix = draw.normal(size=(6, 6))
    inputs = np.rint(draw.normal(size=(2, 60, 6)) @ mix * 20 + 10)
    ahead = np.rint(inputs @ (0.1 * draw.normal(size=(6, 6))) + draw.normal(size=inputs.shape))
    return draw.normal(size=(2, 5, 6)), inputs, ahead


def results(weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    return inputs @ np.swapaxes(weights, 1, 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_gain_is_what_the_results_win(seed: int) -> None:
    weights, inputs, ahead = drawn(seed)
    moments = Moments(2, 6)
    moments.add(inputs)
    hessian, cross = moments.hessian(), cross_moment(ahead, inputs, 1.0)
    change = caught_up(weights, hessian, cross, 1e-6)
    wanted = results(weights, inputs + ahead)
    before, after = (((results(one, inputs) - wanted) ** 2).mean(axis=1).sum() for one in (weights, weights + change))
    np.testing.assert_allclose(before - after, gain(change, weights, hessian, cross), rtol=1e-6)
    assert after < before


def test_nothing_ahead_nothing_to_do() -> None:
    weights, inputs, _ = drawn(0)
    moments = Moments(2, 6)
    moments.add(inputs)
    cross = cross_moment(np.zeros_like(inputs), inputs, 0.5)
    assert not caught_up(weights, moments.hessian(0.5), cross, 0.1).any()


def test_a_bias_takes_the_means() -> None:
    """What is ahead by a constant is no reason to change a weight whose layer has a bias."""
    _, inputs, _ = drawn(1)
    cross = cross_moment(np.full_like(inputs, 7), inputs, 0.0)
    np.testing.assert_allclose(cross, 0, atol=1e-9)
    assert np.abs(cross_moment(np.full_like(inputs, 7), inputs, 1.0)).max() > 1
