"""What interval analysis computes with: lower and upper bounds of a value, as arrays that broadcast to it.

Soundness. Bounds hold for what float32 (or float16 ...) execution computes, not only for exact arithmetic: results are
computed in float64 and then widened. Single operations that IEEE 754 rounds correctly are monotone, so a step outwards
to the next float32 covers them; approximations (exp, tanh ...) get a relative allowance; sums of n products get
gamma(n) * sum |a b|, which holds for every order of summation, fused or not (Higham, Accuracy and Stability, 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qir.ir import DType, Interval

__all__ = ["Bounds", "gamma", "unit_roundoff"]

_LARGEST = 16384
"""More elements than this are not kept: bounds are joined along axes, the longest first."""


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """lo <= x <= hi for every element x of a value that is not NaN; ``lo`` and ``hi`` are float64 arrays.

    They have one common shape that broadcasts (right-aligned, as numpy does) to the value's; an axis longer than 1 has
    the length that the value's axis has. An infinite bound means: not known. ``special`` says that an element may be
    NaN or infinite; without it all are finite, assuming that no finite arithmetic overflowed.
    """

    lo: np.ndarray
    hi: np.ndarray
    special: bool = False

    @classmethod
    def of(cls, lo: np.ndarray | float, hi: np.ndarray | float, special: bool = False) -> Bounds:
        """Bounds from arrays or numbers, broadcast to each other and joined down to a size worth keeping."""
        low, high = np.broadcast_arrays(np.asarray(lo, np.float64), np.asarray(hi, np.float64))
        # A bound can come out as NaN (inf - inf, 0 * inf): then nothing is known.
        if np.isnan(low).any() or np.isnan(high).any():
            low, high = np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
        return _small(cls(low, high, special))

    @classmethod
    def unknown(cls, special: bool = True) -> Bounds:
        return cls(np.float64(-np.inf) * np.ones(()), np.float64(np.inf) * np.ones(()), special)

    @classmethod
    def of_constant(cls, array: np.ndarray) -> Bounds:
        """Exact bounds of a numeric constant, joined where it is large."""
        if array.size == 0:
            return cls.of(np.inf, -np.inf)
        if array.dtype.kind not in "fiub":  # bfloat16, fp8, int4 ...
            array = array.astype(np.float32)
        if array.dtype.kind != "f" or np.isfinite(array).all():
            return _small(cls(array, array))
        nan = np.isnan(array)
        return _small(cls(np.where(nan, np.inf, array), np.where(nan, -np.inf, array), True))

    @classmethod
    def of_interval(cls, interval: Interval, rank: int | None) -> Bounds:
        """From an annotation; per channel only where the rank says which axis from the right it is."""
        if interval.axis is None or rank is None:
            return cls.of(interval.lower, interval.upper)
        shape = [-1] + [1] * (rank - 1 - interval.axis)
        return cls.of(np.asarray(interval.lo).reshape(shape), np.asarray(interval.hi).reshape(shape))

    def to_interval(self, rank: int | None) -> Interval | None:
        """The annotation: per channel where exactly one axis of the bounds is longer than 1, None where all is open."""
        if not (np.isfinite(self.lo).any() or np.isfinite(self.hi).any()):
            return None
        long = [axis for axis, size in enumerate(self.lo.shape) if size > 1]
        uniform = (
            bool((self.lo == self.lo.flat[0]).all() and (self.hi == self.hi.flat[0]).all()) if self.lo.size else True
        )
        if len(long) != 1 or rank is None or uniform:
            low, high = self.total()
            return Interval(low, high)
        axis = rank - self.lo.ndim + long[0]
        return Interval.of_arrays(self.lo.reshape(-1), self.hi.reshape(-1), axis)

    def total(self) -> tuple[float, float]:
        """(least lower bound, greatest upper bound); (inf, -inf) for no elements."""
        return float(self.lo.min(initial=np.inf)), float(self.hi.max(initial=-np.inf))

    def collapsed(self) -> Bounds:
        """One interval for all elements."""
        return self if self.lo.ndim == 0 else Bounds(np.asarray(self.lo.min()), np.asarray(self.hi.max()), self.special)

    def joined_along(self, axis_from_right: int) -> Bounds:
        """Forget differences along one axis; 1 is the last."""
        axis = self.lo.ndim - axis_from_right
        if axis < 0 or self.lo.shape[axis] == 1:
            return self
        return Bounds(self.lo.min(axis=axis, keepdims=True), self.hi.max(axis=axis, keepdims=True), self.special)

    def last_axis_only(self, from_right: int = 1) -> Bounds:
        """Vectors along one axis counted from the right (shape (n,) or (1,)), joined over all others."""
        axis = self.lo.ndim - from_right
        if axis < 0:
            low, high = self.total()
            return Bounds(np.array([low]), np.array([high]), self.special)
        others = tuple(i for i in range(self.lo.ndim) if i != axis)
        return Bounds(self.lo.min(axis=others), self.hi.max(axis=others), self.special)

    def join(self, other: Bounds) -> Bounds:
        """Bounds of a value whose elements come from either, at the same place."""
        return Bounds.of(np.minimum(self.lo, other.lo), np.maximum(self.hi, other.hi), self.special or other.special)

    def meet(self, lo: np.ndarray | float, hi: np.ndarray | float) -> Bounds:
        """Also known to lie in [lo, hi] (where not NaN)."""
        return Bounds.of(np.maximum(self.lo, lo), np.minimum(self.hi, hi), self.special)

    def outward(self, unit: float, relative: float = 0.0, absolute: float = 0.0) -> Bounds:
        """Widened by a relative and an absolute error, then by one rounding of unit roundoff ``unit``.

        ``unit`` 0 means exact arithmetic (integers). What passes the largest float32 becomes infinite.
        """
        if unit == 0:
            return self
        # 2 * unit covers the step to the next number below or above; 1e-44 the spacing of subnormal float32 numbers,
        # which does not matter at 0: nothing rounds across it.
        slack = max(2 * unit, relative)
        with np.errstate(invalid="ignore", over="ignore"):
            low = self.lo - np.abs(self.lo) * slack - np.where(self.lo != 0, 1e-44, 0) - absolute
            high = self.hi + np.abs(self.hi) * slack + np.where(self.hi != 0, 1e-44, 0) + absolute
        largest = 3.4028235e38
        return Bounds.of(np.where(low < -largest, -np.inf, low), np.where(high > largest, np.inf, high), self.special)

    @property
    def magnitude(self) -> np.ndarray:
        """max|x|, of the bounds' shape."""
        return np.asarray(np.maximum(np.abs(self.lo), np.abs(self.hi)))

    @property
    def is_bounded(self) -> bool:
        return bool(np.isfinite(self.lo).all() and np.isfinite(self.hi).all())

    @property
    def is_empty(self) -> bool:
        """No element is possible."""
        return bool((self.lo > self.hi).any())

    def __repr__(self) -> str:
        low, high = self.total()
        return f"Bounds([{low:g}, {high:g}], {list(self.lo.shape)}{', special' if self.special else ''})"


def unit_roundoff(dtype: DType | None) -> float:
    """Half the distance from 1 to the next number of the type that a result is rounded to; 0 for integers."""
    match dtype:
        case DType.FLOAT16:
            return 2.0**-11
        case DType.BFLOAT16:
            return 2.0**-8
        case DType.DOUBLE:
            return 2.0**-50  # bounds are float64 themselves: leave room for their own rounding
        case _ if dtype is not None and not dtype.is_float:
            return 0.0
    return 2.0**-24


def gamma(count: float, unit: float) -> float:
    """The relative error bound of a sum of ``count`` products, infinite where there is none."""
    product = (count + 2) * unit
    return float(product / (1 - product)) if product < 0.5 else float("inf")


def _small(bounds: Bounds) -> Bounds:
    """float64 arrays of at most ``_LARGEST`` elements."""
    low, high = bounds.lo, bounds.hi
    while low.size > _LARGEST:
        sizes = low.shape
        long = [axis for axis in range(low.ndim) if sizes[axis] > 1]
        # The longest axis first: what is left longest tends to be the channels.
        axis = max(long, key=lambda i: (sizes[i], -i))
        low, high = low.min(axis=axis, keepdims=True), high.max(axis=axis, keepdims=True)
    return Bounds(low.astype(np.float64), high.astype(np.float64), bounds.special)
