"""Histograms that merge exactly: bins of width 2^k, edges at multiples of it, k as small as the range seen allows.

Doubling the width joins pairs of neighbours, so it loses nothing but resolution, and which width is reached depends on
the union of the ranges alone: merging is associative and commutative to the last count. Range and count are exact over
all elements; the bins count a stratified subsample, because binning every element costs ten times its
inference; and the two extremes of each array.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from qir.calibration.statistics import MinMax
from qir.ir import Interval

__all__ = ["MOST_BINS", "Histogram"]

MOST_BINS = 4096
SAMPLED = 8192
"""Elements of one array that are counted at most."""
_FINEST = -120


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """``counts[i]`` of the sampled elements lie in [(first + i) 2^k, (first + i + 1) 2^k); each stands for as many
    elements as its array was thinned out by. ``seen`` is exact."""

    seen: MinMax = field(default_factory=MinMax)
    k: int = _FINEST
    first: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, array: np.ndarray) -> Histogram:
        """One array of any shape and float type; infinities and NaN are left out."""
        seen = MinMax.of(array)
        if seen.interval.is_empty:
            return cls(seen)
        k = _width_exponent(seen.lo, seen.hi)
        sample, stands_for = _subsample(array)
        if seen.nonfinite:
            sample = sample[np.isfinite(sample)]
        first = math.floor(math.ldexp(seen.lo, -k))
        last = math.floor(math.ldexp(seen.hi, -k))
        # Powers of two: the division is exact, so is the bin of every element.
        index = np.floor(np.ldexp(sample.astype(np.float64), -k)).astype(np.int64) - first
        counts = np.bincount(index, minlength=last - first + 1).astype(np.int64) * stands_for
        if stands_for > 1:
            # The extremes hold most of what a threshold may cut, and thinning out would miss them nearly always.
            counts[0] += 1
            counts[-1] += 1
        return cls(seen, k, first, counts)

    def merge(self, other: Histogram) -> Histogram:
        seen = self.seen.merge(other.seen)
        if not self.counts.size or not other.counts.size:
            full = self if self.counts.size else other
            return Histogram(seen, full.k, full.first, full.counts)
        k = max(self.k, other.k, _width_exponent(seen.lo, seen.hi))
        parts = [self._at(k), other._at(k)]
        first = min(start for start, _ in parts)
        counts = np.zeros(max(start + len(part) for start, part in parts) - first, np.int64)
        for start, part in parts:
            counts[start - first : start - first + len(part)] += part
        return Histogram(seen, k, first, counts)

    def _at(self, k: int) -> tuple[int, np.ndarray]:
        """First index and counts with bins of width 2^k, which must not be finer."""
        shift = k - self.k
        if not shift:
            return self.first, self.counts
        index = (self.first + np.arange(len(self.counts))) >> min(shift, 62)
        counts = np.zeros(int(index[-1] - index[0]) + 1, np.int64)
        np.add.at(counts, index - index[0], self.counts)
        return int(index[0]), counts

    @property
    def interval(self) -> Interval:
        """The exact range."""
        return self.seen.interval

    @property
    def width(self) -> float:
        """Of a bin."""
        return math.ldexp(1.0, self.k)

    @property
    def edges(self) -> np.ndarray:
        """(bins + 1,), the outermost ones drawn in to the exact range."""
        edges = np.ldexp(np.arange(self.first, self.first + len(self.counts) + 1, dtype=np.float64), self.k)
        return np.clip(edges, self.seen.lo, self.seen.hi)


def _width_exponent(lo: float, hi: float) -> int:
    """The least k for which [lo, hi] touches at most ``MOST_BINS`` bins of width 2^k."""
    if lo == hi == 0:
        return _FINEST
    span = max(hi - lo, abs(lo) * 2.0**-40, abs(hi) * 2.0**-40)
    k = max(_FINEST, math.frexp(span / MOST_BINS)[1] - 1)
    while math.floor(math.ldexp(hi, -k)) - math.floor(math.ldexp(lo, -k)) >= MOST_BINS:
        k += 1
    return k


def _subsample(array: np.ndarray) -> tuple[np.ndarray, int]:
    """One element of every ``stride`` neighbours, at a place in them that varies, and the stride.

    The place follows the golden ratio, so that no period of the data (channels, rows) is met always at one phase.
    """
    flat = array.reshape(-1)
    stride = -(-flat.size // SAMPLED)
    if stride <= 1:
        return flat, 1
    blocks = flat.size // stride
    place = (np.arange(blocks, dtype=np.uint64) * np.uint64(0x9E3779B1) >> np.uint64(8)) % np.uint64(stride)
    return flat[np.arange(blocks) * stride + place.astype(np.int64)], stride
