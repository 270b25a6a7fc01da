"""Statistics are monoids: shards of the data, merged in order, say what all of it says."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qir.calibration.histogram import MOST_BINS, SAMPLED, Histogram
from qir.calibration.statistics import ChannelStatistics, MinMax, MovingRange

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SAMPLES = st.lists(arrays(np.float32, st.integers(0, 20), elements=FLOATS), min_size=1, max_size=5)
ODD = np.array([1, np.inf, -2, np.nan, 3], np.float32)


def same(a: Histogram, b: Histogram) -> bool:
    return (a.seen, a.k, a.first, a.counts.tolist()) == (b.seen, b.k, b.first, b.counts.tolist())


@settings(max_examples=40)
@given(SAMPLES, st.permutations(range(5)))
def test_histograms_merge_exactly_in_any_order_and_grouping(samples: list[np.ndarray], order: list[int]) -> None:
    parts = [Histogram.of(sample) for sample in samples]
    forwards = reduce(Histogram.merge, parts)
    shuffled = reduce(Histogram.merge, [parts[i] for i in order if i < len(parts)])
    grouped = reduce(lambda left, right: right.merge(left), reversed(parts))
    assert same(forwards, shuffled) and same(forwards, grouped)
    assert same(forwards, Histogram.of(np.concatenate(samples)))


@settings(max_examples=40)
@given(SAMPLES)
def test_every_element_is_counted_once_in_its_bin(samples: list[np.ndarray]) -> None:
    whole = np.concatenate(samples)
    histogram = reduce(Histogram.merge, map(Histogram.of, samples))
    assert histogram.counts.sum() == whole.size and len(histogram.counts) <= MOST_BINS
    if whole.size:
        assert (histogram.interval.lower, histogram.interval.upper) == (whole.min(), whole.max())
        bins = np.floor(np.ldexp(whole.astype(np.float64), -histogram.k)) - histogram.first
        expected = np.bincount(bins.astype(int), minlength=len(histogram.counts))
        np.testing.assert_array_equal(histogram.counts, expected)
        assert histogram.edges[0] == whole.min() and histogram.edges[-1] == whole.max()


def test_bins_are_as_fine_as_their_number_allows() -> None:
    histogram = Histogram.of(np.linspace(-1, 3, 5000, dtype=np.float32))
    assert MOST_BINS / 2 - 1 <= len(histogram.counts) <= MOST_BINS


def test_large_arrays_are_thinned_out_evenly_and_keep_their_extremes() -> None:
    array = np.zeros((1, 1000, 64), np.float32)
    array[..., 7] = 1  # a channel, met every 64 elements
    array[0, 500, 3] = 50
    histogram = Histogram.of(array)
    total = int(histogram.counts.sum())
    assert histogram.interval.upper == 50 and abs(total - array.size) < array.size / SAMPLED * 2 + 2
    share = histogram.counts[int(1 / histogram.width)] / total
    assert 0.6 / 64 < share < 1.6 / 64


def test_numbers_far_from_zero_do_not_need_endless_bins() -> None:
    histogram = Histogram.of(np.array([1e30, 1.0001e30], np.float32)).merge(Histogram.of(np.zeros(3, np.float32)))
    assert histogram.counts.sum() == 5 and len(histogram.counts) <= MOST_BINS


@pytest.mark.parametrize("kind", [Histogram, MovingRange])
def test_infinities_and_nan_are_counted_and_left_out(kind: type[Histogram] | type[MovingRange]) -> None:
    found = kind.of(ODD)
    assert (found.interval.lower, found.interval.upper) == (-2, 3)
    assert (found.seen.count, found.seen.nonfinite) == (5, 2)
    nothing = kind.of(np.array([np.nan], np.float32))
    assert nothing.interval.is_empty
    both = nothing.merge(found)  # type: ignore[arg-type]
    assert (both.interval.lower, both.interval.upper, both.seen.nonfinite) == (-2, 3, 3)


TRIPLES = st.lists(arrays(np.float32, 3, elements=st.floats(-10, 10, width=32)), min_size=1, max_size=6)


@given(TRIPLES, st.integers(0, 6))
def test_moving_averages_follow_the_formula_however_they_are_sharded(samples: list[np.ndarray], cut: int) -> None:
    low, high = float(samples[0].min()), float(samples[0].max())
    for sample in samples[1:]:
        low, high = 0.9 * low + 0.1 * float(sample.min()), 0.9 * high + 0.1 * float(sample.max())
    parts = [MovingRange.of(sample) for sample in samples]
    left = reduce(MovingRange.merge, parts[:cut], MovingRange())
    merged = left.merge(reduce(MovingRange.merge, parts[cut:], MovingRange()))
    np.testing.assert_allclose((merged.lo, merged.hi), (low, high), rtol=1e-9, atol=1e-9)
    assert merged.seen == reduce(MinMax.merge, map(MinMax.of, samples))


@given(st.lists(arrays(np.float32, (2, 3, 4), elements=st.floats(-8, 8, width=32)), min_size=1, max_size=4))
def test_channels_of_all_samples(samples: list[np.ndarray]) -> None:
    found = reduce(ChannelStatistics.merge, [ChannelStatistics.of(sample, 1) for sample in samples])
    whole = np.concatenate(samples).astype(np.float64)
    np.testing.assert_array_equal(found.magnitude, np.abs(whole).max(axis=(0, 2)))
    np.testing.assert_array_equal(found.highest, np.maximum(whole.max(axis=(0, 2)), 0))
    np.testing.assert_array_equal(found.lowest, np.minimum(whole.min(axis=(0, 2)), 0))
    np.testing.assert_allclose(found.mean_square, np.square(whole).mean(axis=(0, 2)), rtol=1e-6, atol=1e-12)
    assert found.arrays == len(samples)
    np.testing.assert_allclose(found.divided(np.full(3, 2.0)).magnitude, found.magnitude / 2)
    assert found.rows(slice(0, 1)).arrays == 1


def test_channels_of_an_empty_and_of_an_odd_array() -> None:
    found = ChannelStatistics.of(np.zeros((0, 2), np.float32), -1).merge(
        ChannelStatistics.of(np.array([[np.inf, 1], [2, np.nan]], np.float32), -1)
    )
    assert (found.arrays, found.magnitude.tolist()) == (1, [2, 1])
