"""Closed intervals of real numbers, one for a tensor or one per index of an axis; the IR's ranges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Interval"]


@dataclass(frozen=True, slots=True)
class Interval:
    """All x with lo <= x <= hi. Per channel: ``axis`` is set, ``lo`` and ``hi`` are tuples with one bound an index.

    Empty (lo > hi) means that no number was seen or is possible. NaN bounds are refused.
    """

    lo: float | tuple[float, ...]
    hi: float | tuple[float, ...]
    axis: int | None = None

    def __post_init__(self) -> None:
        lo, hi = np.asarray(self.lo), np.asarray(self.hi)
        if lo.shape != hi.shape or lo.ndim != (0 if self.axis is None else 1):
            raise ValueError(f"bounds of shapes {lo.shape} and {hi.shape} make no interval with axis {self.axis}")
        if np.isnan(lo).any() or np.isnan(hi).any():
            raise ValueError("an interval's bound is NaN")

    @classmethod
    def of_arrays(cls, lo: np.ndarray, hi: np.ndarray, axis: int | None) -> Interval:
        """From arrays of shape () or (C,)."""
        if axis is None:
            return cls(float(lo), float(hi))
        return cls(tuple(np.asarray(lo, float).tolist()), tuple(np.asarray(hi, float).tolist()), axis)

    @property
    def lower(self) -> float:
        """The least bound over all channels (inf where there is none)."""
        return self.lo if isinstance(self.lo, float | int) else min(self.lo, default=float("inf"))

    @property
    def upper(self) -> float:
        """The greatest bound over all channels (-inf where there is none)."""
        return self.hi if isinstance(self.hi, float | int) else max(self.hi, default=float("-inf"))

    @property
    def is_empty(self) -> bool:
        return self.lower > self.upper

    @property
    def is_bounded(self) -> bool:
        return bool(np.isfinite(self.lower) and np.isfinite(self.upper))

    @property
    def magnitude(self) -> float:
        """The largest absolute value."""
        return max(abs(self.lower), abs(self.upper))

    def per_tensor(self) -> Interval:
        return self if self.axis is None else Interval(self.lower, self.upper)

    def contains(self, other: Interval, tolerance: float = 0.0) -> bool:
        """Whether every number of ``other`` lies inside, at any index: channel by channel where both have the same
        axis; else the whole of ``other`` inside of each channel, as a number of it may stand in any."""
        if other.is_empty:
            return True
        if not _are_alike(self, other):
            lower, upper = (float(np.max(self.lo, initial=-np.inf)), float(np.min(self.hi, initial=np.inf)))
            return lower - tolerance <= other.lower and other.upper <= upper + tolerance
        lo = np.asarray(self.lo) - tolerance <= np.asarray(other.lo)
        return bool(lo.all() and (np.asarray(other.hi) <= np.asarray(self.hi) + tolerance).all())

    def meet(self, other: Interval) -> Interval:
        """The intersection (per tensor where the axes differ)."""
        a, b = _alike(self, other)
        return Interval.of_arrays(np.maximum(a.lo, b.lo), np.minimum(a.hi, b.hi), a.axis)

    def join(self, other: Interval) -> Interval:
        """The smallest interval that holds both (per tensor where the axes differ)."""
        a, b = _alike(self, other)
        return Interval.of_arrays(np.minimum(a.lo, b.lo), np.maximum(a.hi, b.hi), a.axis)


def _alike(a: Interval, b: Interval) -> tuple[Interval, Interval]:
    return (a, b) if _are_alike(a, b) else (a.per_tensor(), b.per_tensor())


def _are_alike(a: Interval, b: Interval) -> bool:
    return a.axis == b.axis and np.shape(a.lo) == np.shape(b.lo)
