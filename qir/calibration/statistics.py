"""What calibration remembers of a value: a few numbers that can be merged, never the samples.

Statistics form a monoid: ``merge`` is associative, the empty statistic is its unit, so shards of the data can be
observed apart and put together. They are merged in sample order, which makes the result independent of who ran first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from qir.ir import Interval

__all__ = ["ChannelStatistics", "MinMax", "MovingRange"]


@dataclass(frozen=True, slots=True)
class MinMax:
    """The exact range of all elements seen, of which there were ``count``; ``nonfinite`` of them were inf or NaN."""

    lo: float = float("inf")
    hi: float = float("-inf")
    count: int = 0
    nonfinite: int = 0

    @classmethod
    def of(cls, array: np.ndarray) -> MinMax:
        """One array of any shape, also an empty one. Infinities and NaN are counted, not taken into the range."""
        if array.size == 0:
            return cls()
        lo, hi = float(array.min()), float(array.max())
        if np.isfinite(lo) and np.isfinite(hi):
            return cls(lo, hi, array.size)
        finite = array[np.isfinite(array)]
        nonfinite = array.size - finite.size
        if finite.size == 0:
            return cls(count=array.size, nonfinite=nonfinite)
        return cls(float(finite.min()), float(finite.max()), array.size, nonfinite)

    def merge(self, other: MinMax) -> MinMax:
        return MinMax(
            min(self.lo, other.lo),
            max(self.hi, other.hi),
            self.count + other.count,
            self.nonfinite + other.nonfinite,
        )

    @property
    def interval(self) -> Interval:
        """Empty (lo > hi) where no finite element was seen."""
        return Interval(self.lo, self.hi)


@dataclass(frozen=True, slots=True)
class MovingRange:
    """Exponential moving averages of each array's minimum and maximum: average <- keep * average + (1 - keep) * new,
    beginning with the first array.

    ``lo`` and ``hi`` are that. Since a step is affine in the average before it, so is the effect of many arrays:
    average -> decay * average + (``lo_step``, ``hi_step``). That makes it a monoid, though no commutative one.
    """

    seen: MinMax = field(default_factory=MinMax)
    lo: float = 0.0
    hi: float = 0.0
    decay: float = 1.0
    lo_step: float = 0.0
    hi_step: float = 0.0

    @classmethod
    def of(cls, array: np.ndarray, keep: float = 0.9) -> MovingRange:
        """One array; without a finite element it changes nothing."""
        seen = MinMax.of(array)
        if seen.interval.is_empty:
            return cls(seen)
        new = 1 - keep
        return cls(seen, seen.lo, seen.hi, keep, new * seen.lo, new * seen.hi)

    def merge(self, other: MovingRange) -> MovingRange:
        seen = self.seen.merge(other.seen)
        if self.seen.interval.is_empty or other.seen.interval.is_empty:
            full = other if self.seen.interval.is_empty else self
            return MovingRange(seen, full.lo, full.hi, full.decay, full.lo_step, full.hi_step)
        return MovingRange(
            seen,
            other.decay * self.lo + other.lo_step,
            other.decay * self.hi + other.hi_step,
            self.decay * other.decay,
            other.decay * self.lo_step + other.lo_step,
            other.decay * self.hi_step + other.hi_step,
        )

    @property
    def interval(self) -> Interval:
        """The averages, within the exact range; empty where nothing finite was seen."""
        if self.seen.interval.is_empty:
            return self.seen.interval
        return Interval(max(self.lo, self.seen.lo), min(self.hi, self.seen.hi))


@dataclass(frozen=True, slots=True, eq=False)
class ChannelStatistics:
    """Per array seen (rows) and index of one axis (columns), (N, C): the range ``lo``, ``hi`` and the mean square
    ``power``; ``weight`` (N,) is how many elements went into each. Rows stay apart, so that one can ask how well some
    of the samples foretell the others; N times C is small beside what was seen."""

    lo: np.ndarray
    hi: np.ndarray
    power: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray, axis: int) -> ChannelStatistics:
        """One array, one row; none where it is empty. Infinities and NaN count as 0."""
        axis %= array.ndim
        others = tuple(i for i in range(array.ndim) if i != axis)
        size = array.shape[axis]
        if array.size == 0:
            return cls(np.zeros((0, size)), np.zeros((0, size)), np.zeros((0, size)), np.zeros(0))
        finite = array if np.isfinite(array.min()) and np.isfinite(array.max()) else np.nan_to_num(array, True, 0, 0, 0)
        power = np.asarray(np.square(finite, dtype=np.float64).mean(axis=others))
        lo, hi = np.asarray(finite.min(axis=others)), np.asarray(finite.max(axis=others))
        return cls(lo[None].astype(np.float64), hi[None].astype(np.float64), power[None], np.full(1, array.size / size))

    def merge(self, other: ChannelStatistics) -> ChannelStatistics:
        return ChannelStatistics(
            np.concatenate([self.lo, other.lo]),
            np.concatenate([self.hi, other.hi]),
            np.concatenate([self.power, other.power]),
            np.concatenate([self.weight, other.weight]),
        )

    def divided(self, scale: np.ndarray) -> ChannelStatistics:
        """Of the same values with each channel divided by a positive number, (C,)."""
        return ChannelStatistics(self.lo / scale, self.hi / scale, self.power / scale**2, self.weight)

    def rows(self, which: slice) -> ChannelStatistics:
        """Of some of the arrays."""
        return ChannelStatistics(self.lo[which], self.hi[which], self.power[which], self.weight[which])

    @property
    def arrays(self) -> int:
        return len(self.weight)

    @property
    def lowest(self) -> np.ndarray:
        """The least element of each channel and 0, (C,)."""
        return np.asarray(self.lo.min(axis=0, initial=0.0))

    @property
    def highest(self) -> np.ndarray:
        """The greatest element of each channel and 0, (C,)."""
        return np.asarray(self.hi.max(axis=0, initial=0.0))

    @property
    def magnitude(self) -> np.ndarray:
        """max|x| of each channel, (C,); 0 where nothing was seen."""
        return np.asarray(np.maximum(self.highest, -self.lowest))

    @property
    def mean_square(self) -> np.ndarray:
        """(C,)"""
        return np.asarray(self.weight @ self.power / max(float(self.weight.sum()), 1.0))
