"""From a histogram to the range that quantization parameters should cover: what to cut so that the rest is finer.

Every method answers an interval inside of the exact range. Zero is always representable, so a bound that does not lie
beyond zero (the lower one of a Relu's result) is not searched.
"""

from __future__ import annotations

import numpy as np

from qir.calibration.histogram import Histogram
from qir.errors import OptionError
from qir.ir import Interval

__all__ = ["entropy_range", "mse_range", "percentile_range"]

_CANDIDATES = 96
_NARROWEST = 0.1
"""Of the exact bound: no method cuts more than that off."""
_ENTROPY_BINS = 2048


def percentile_range(histogram: Histogram, percentile: float) -> Interval:
    """The range between the percentiles (100 - p) / 2 and (100 + p) / 2 of all elements, linear within a bin.

    Raises OptionError where ``percentile`` is not in (50, 100].
    """
    if not 50 < percentile <= 100:
        raise OptionError(f"percentile {percentile:g}: give one above 50, up to 100")
    whole = histogram.interval
    total = float(histogram.counts.sum())
    if whole.is_empty or not total or percentile == 100:
        return whole
    below = np.concatenate([[0.0], np.cumsum(histogram.counts)]) / total
    tail = (1 - percentile / 100) / 2
    lo, hi = np.interp([tail, 1 - tail], below, histogram.edges)
    return _within(whole, float(lo), float(hi))


def mse_range(histogram: Histogram, levels: int = 255) -> Interval:
    """The range of least expected squared error: step^2 / 12 for each element inside, the squared distance for each
    that is cut. Elements of the bin that holds zero, where a Relu puts many, are counted as exact.
    """
    whole, counts = histogram.interval, histogram.counts.astype(np.float64)
    if whole.is_empty or not counts.any():
        return whole
    edges = histogram.edges
    centre = (edges[:-1] + edges[1:]) / 2
    power = [np.concatenate([[0.0], np.cumsum(counts * centre**n)]) for n in range(3)]
    inexact = counts.copy()
    if 0 <= -histogram.first < len(counts):
        inexact[-histogram.first] = 0
    inner = np.concatenate([[0.0], np.cumsum(inexact)])
    lows = _candidates(whole.lower) if whole.lower < 0 else np.array([whole.lower])
    highs = _candidates(whole.upper) if whole.upper > 0 else np.array([whole.upper])
    from_below = np.clip(np.searchsorted(centre, lows), 0, len(counts))
    from_above = np.clip(np.searchsorted(centre, highs, "right"), 0, len(counts))
    cut_below = power[2][from_below] - 2 * lows * power[1][from_below] + lows**2 * power[0][from_below]
    rest = [p[-1] - p[from_above] for p in power]
    cut_above = rest[2] - 2 * highs * rest[1] + highs**2 * rest[0]
    step = (np.maximum(highs, 0)[None, :] - np.minimum(lows, 0)[:, None]) / levels
    inside = inner[from_above][None, :] - inner[from_below][:, None]
    error = step**2 / 12 * inside + cut_below[:, None] + cut_above[None, :]
    i, j = np.unravel_index(int(np.argmin(error)), error.shape)
    return _within(whole, float(lows[i]), float(highs[j]))


def entropy_range(histogram: Histogram, levels: int = 128) -> Interval:
    """The symmetric threshold whose quantized distribution of magnitudes is nearest to the true one by
    Kullback-Leibler divergence (Migacz, 8-bit Inference with TensorRT, 2017), within the exact range.
    """
    whole = histogram.interval
    top = whole.magnitude
    if whole.is_empty or not histogram.counts.any() or not top:
        return whole
    edges = histogram.edges
    magnitude = np.abs((edges[:-1] + edges[1:]) / 2)
    bins, _ = np.histogram(magnitude, _ENTROPY_BINS, (0.0, top), weights=histogram.counts.astype(np.float64))
    if bins[0] == bins.sum():
        return whole
    bins[0] = 0  # zeros are exact, and their mass would hide everything else
    first = max(levels, int(_ENTROPY_BINS * _NARROWEST))
    ends = np.arange(first, _ENTROPY_BINS + 1, 8)
    divergences = [_divergence(bins, int(end), levels) for end in ends]
    threshold = top * float(ends[int(np.argmin(divergences))]) / _ENTROPY_BINS
    return _within(whole, -threshold, threshold)


def _divergence(bins: np.ndarray, end: int, levels: int) -> float:
    """KL(P || Q) of the first ``end`` bins: P with the rest piled onto the last, Q quantized to ``levels`` and spread
    evenly over the bins that P fills."""
    kept = bins[:end]
    p = kept.copy()
    p[-1] += bins[end:].sum()
    level = np.arange(end) * levels // end
    filled = kept > 0
    mass = np.bincount(level, kept, levels)
    number = np.bincount(level, filled, levels)
    q = np.where(filled, (mass / np.maximum(number, 1))[level], 0.0)
    p, q = p / p.sum(), q / max(float(q.sum()), 1e-30)
    both = p > 0
    return float(np.sum(p[both] * np.log(p[both] / np.maximum(q[both], 1e-12))))


def _candidates(bound: float) -> np.ndarray:
    """From the exact bound inwards, denser near it."""
    return bound * (1 - (1 - _NARROWEST) * np.linspace(0, 1, _CANDIDATES) ** 1.5)


def _within(whole: Interval, lo: float, hi: float) -> Interval:
    """Cut only what lies beyond zero."""
    lower = max(whole.lower, lo) if whole.lower < 0 else whole.lower
    upper = min(whole.upper, hi) if whole.upper > 0 else whole.upper
    return Interval(lower, upper)
