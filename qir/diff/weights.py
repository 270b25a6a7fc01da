"""How far two constants of the same shape are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from qir.ir import DType, Tensor

__all__ = ["Histogram", "WeightStats", "weight_stats"]

_BINS = 32
_CHUNK = 1 << 20
"""Elements that are compared at a time, so that a large weight takes no multiple of its memory."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of equally wide bins over [low, high], for either side; values that are not finite are left out."""

    low: float
    high: float
    before: tuple[int, ...]
    after: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "before": list(self.before), "after": list(self.after)}


@dataclass(frozen=True, slots=True)
class WeightStats:
    """Old against new, element by element."""

    elements: int
    changed: int
    """Elements that differ; NaN equals NaN, and 0.0 equals -0.0 (a change of nothing but that has ``changed`` 0)."""
    max_error: float
    """Largest absolute difference."""
    mean_error: float
    """Mean absolute difference."""
    sqnr_db: float | None
    """10 log10(sum old^2 / sum (new - old)^2); None where either sum is 0 or not finite."""
    sparsity_before: float
    """Share of exact zeros."""
    sparsity_after: float
    sign_flips: int
    """Elements with a positive number on one side and a negative one on the other."""
    same_multiset: bool
    """The same numbers in another order: rows or channels were permuted."""
    histogram: Histogram | None
    """None where no value is finite."""

    def to_json(self) -> dict[str, Any]:
        return {
            "elements": self.elements,
            "changed": self.changed,
            "max_error": self.max_error if math.isfinite(self.max_error) else None,
            "mean_error": self.mean_error if math.isfinite(self.mean_error) else None,
            "sqnr_db": self.sqnr_db,
            "sparsity_before": self.sparsity_before,
            "sparsity_after": self.sparsity_after,
            "sign_flips": self.sign_flips,
            "same_multiset": self.same_multiset,
            "histogram": None if self.histogram is None else self.histogram.to_json(),
        }


def weight_stats(before: Tensor | None, after: Tensor | None) -> WeightStats | None:
    """Two constants compared; other dtypes are fine (float32 against float16), other shapes, strings and complex
    numbers are not: None."""
    if before is None or after is None or before.shape != after.shape or not (_real(before) and _real(after)):
        return None
    old, new = before.numpy().reshape(-1), after.numpy().reshape(-1)
    if old.size == 0:
        return WeightStats(0, 0, 0.0, 0.0, None, 0.0, 0.0, 0, True, None)
    low, high = _range(old, new)
    edges = np.linspace(low, high, _BINS + 1) if low < high else np.array([low - 0.5, low + 0.5])
    changed = zeros_old = zeros_new = flips = 0
    largest = total = signal = noise = 0.0
    counts_old = np.zeros(len(edges) - 1, np.int64)
    counts_new = np.zeros(len(edges) - 1, np.int64)
    for start in range(0, old.size, _CHUNK):
        a = old[start : start + _CHUNK].astype(np.float64)
        b = new[start : start + _CHUNK].astype(np.float64)
        differs = (a != b) & ~(np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.where(differs, np.abs(b - a), 0.0)
            signal += float(np.sum(a * a))
            noise += float(np.sum(error * error))
        changed += int(np.count_nonzero(differs))
        largest = max(largest, float(error.max()))
        total += float(error.sum())
        zeros_old += int(np.count_nonzero(a == 0))
        zeros_new += int(np.count_nonzero(b == 0))
        flips += int(np.count_nonzero((np.sign(a) * np.sign(b)) < 0))
        counts_old += np.histogram(a[np.isfinite(a)], edges)[0]
        counts_new += np.histogram(b[np.isfinite(b)], edges)[0]
    comparable = math.isfinite(signal) and math.isfinite(noise) and signal > 0 and noise > 0
    histogram = Histogram(float(edges[0]), float(edges[-1]), tuple(map(int, counts_old)), tuple(map(int, counts_new)))
    return WeightStats(
        elements=old.size,
        changed=changed,
        max_error=largest,
        mean_error=total / old.size,
        sqnr_db=10 * math.log10(signal / noise) if comparable else None,
        sparsity_before=zeros_old / old.size,
        sparsity_after=zeros_new / old.size,
        sign_flips=flips,
        same_multiset=bool(changed) and _same_multiset(old, new),
        histogram=histogram if counts_old.sum() or counts_new.sum() else None,
    )


def _real(tensor: Tensor) -> bool:
    return tensor.dtype not in (DType.STRING, DType.UNDEFINED, DType.COMPLEX64, DType.COMPLEX128)


def _range(old: np.ndarray, new: np.ndarray) -> tuple[float, float]:
    low, high = math.inf, -math.inf
    for array in (old, new):
        for start in range(0, array.size, _CHUNK):
            part = array[start : start + _CHUNK].astype(np.float64)
            part = part[np.isfinite(part)]
            if part.size:
                low, high = min(low, float(part.min())), max(high, float(part.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _same_multiset(old: np.ndarray, new: np.ndarray) -> bool:
    if old.dtype != new.dtype or old.size > 1 << 24:
        return False
    a, b = old.astype(np.float64), new.astype(np.float64)
    a.sort()
    b.sort()
    return bool(np.array_equal(a, b, equal_nan=True))
