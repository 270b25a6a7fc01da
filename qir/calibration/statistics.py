"""What calibration remembers of a value: a few numbers that can be merged, never the samples.

Statistics form a monoid: ``merge`` is associative, the empty statistic is its unit, so shards of the data can be
observed apart and put together. They are merged in sample order, which makes the result independent of who ran first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qir.ir import Interval

__all__ = ["MinMax"]


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
