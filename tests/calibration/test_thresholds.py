"""Thresholds lie within what was seen, and are what their definition says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qir.calibration.histogram import Histogram
from qir.calibration.thresholds import entropy_range, mse_range, percentile_range
from qir.errors import OptionError
from qir.ir import DType, Interval
from qir.quant.arithmetic import fake_quantize
from qir.quant.schemes import activation_quant

METHODS = (mse_range, entropy_range, lambda histogram: percentile_range(histogram, 99))


def with_outlier(size: int = 30_000, outlier: float = 40.0, seed: int = 0) -> np.ndarray:
    array = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    array[0] = outlier
    return array


def four_bit_error(array: np.ndarray, chosen: Interval) -> float:
    quantized = fake_quantize(array, activation_quant(chosen, DType.UINT4))
    return float(np.square(quantized - array, dtype=np.float64).sum())


@settings(max_examples=25)
@given(arrays(np.float32, st.integers(0, 60), elements=st.floats(-1e6, 1e6, width=32)))
def test_a_threshold_never_leaves_the_exact_range_nor_cuts_on_the_side_of_zero(array: np.ndarray) -> None:
    whole = Histogram.of(array).interval
    for method in METHODS:
        chosen = method(Histogram.of(array))
        if whole.is_empty:
            assert chosen.is_empty
            continue
        assert whole.lower <= chosen.lower and chosen.upper <= whole.upper
        assert chosen.lower == whole.lower or whole.lower < 0
        assert chosen.upper == whole.upper or whole.upper > 0


def test_mse_finds_nearly_the_best_of_all_cuts() -> None:
    normal = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    for array in (normal, np.maximum(normal, 0), -np.abs(normal), np.maximum(normal, -0.2)):
        found = four_bit_error(array, mse_range(Histogram.of(array), levels=15))
        lo, hi = float(array.min()), float(array.max())
        cuts = np.linspace(0.1, 1, 20)
        best = min(four_bit_error(array, Interval(lo * a, hi * b)) for a in cuts for b in cuts)
        assert found <= 1.1 * best < four_bit_error(array, Interval(lo, hi))


def test_mse_keeps_a_range_that_is_used_evenly() -> None:
    array = np.random.default_rng(0).uniform(-3, 5, 5000).astype(np.float32)
    chosen = mse_range(Histogram.of(array))
    assert chosen.lower < -2.95 and chosen.upper > 4.95


def test_zeros_do_not_count_as_noise() -> None:
    few = np.random.default_rng(0).uniform(0, 1, 2000).astype(np.float32)
    array = np.concatenate([np.zeros(100_000, np.float32), few])
    assert mse_range(Histogram.of(array)).upper > 0.95
    assert entropy_range(Histogram.of(array)).upper > 0.95


def test_percentiles_are_those_of_numpy() -> None:
    array = with_outlier(8000, seed=1)
    chosen = percentile_range(Histogram.of(array), 99)
    expected = np.percentile(array, [0.5, 99.5])
    np.testing.assert_allclose((chosen.lower, chosen.upper), expected, atol=0.03)
    assert percentile_range(Histogram.of(array), 100) == Histogram.of(array).interval


@pytest.mark.parametrize("percentile", [50, 0, 100.1])
def test_a_senseless_percentile_is_refused(percentile: float) -> None:
    with pytest.raises(OptionError, match="percentile"):
        percentile_range(Histogram.of(np.ones(3, np.float32)), percentile)


def test_entropy_cuts_a_lonely_outlier_symmetrically() -> None:
    array = with_outlier()
    chosen = entropy_range(Histogram.of(array))
    assert 3 < chosen.upper < 20 and chosen.lower == max(float(array.min()), -chosen.upper)
