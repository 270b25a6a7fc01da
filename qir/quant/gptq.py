"""Second-order weight rounding: codes that disturb a layer's results least, given what its inputs look like.

Rounding a weight row w to codes q makes the error (w - q) x for each input x, on average (w - q) H (w - q)^T with H the
second moment of the inputs. Rounding every weight to its nearest code minimises that only where H is diagonal. Here the
columns are fixed one after the other, each at the best place given the errors of those before it, which the ones after
it thereby make good (Frantar and Alistarh, Optimal Brain Compression, 2022; Frantar et al., GPTQ, 2022). With
H = R R^T, R upper triangular, the best place of column i is

    w_i + sum over j < i of R_ji (w_j - q_j) / R_ii

which is Babai's nearest plane in the lattice that R spans; no inverse of H is needed. Coordinate descent over the
columns then repairs what an early column could not know.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from qir.quant.pairs import PAIR_LIMIT

__all__ = ["Moments", "damped_moments", "output_error", "round_codes", "round_levels", "round_numbers"]

_BLOCK = 128
_EXACT_IN_FLOAT32 = 1 << 24
_EXACT_IN_FLOAT64 = 1 << 53


class Moments:
    """Second moments of a layer's inputs, which are whole numbers: ``groups`` times ``columns`` of them a row.

    The sums are exact, hence the same whatever the number of threads or the order of rows.
    """

    def __init__(self, groups: int, columns: int) -> None:
        self._products = np.zeros((groups, columns, columns))
        self._sums = np.zeros((groups, columns))
        self._rows = 0

    def add(self, rows: np.ndarray) -> None:
        """``rows``: whole numbers of magnitude at most 2^12, shape (groups, any number, columns); float32, or float64,
        which is faster for magnitudes above 2^9."""
        largest = max(1, int(np.abs(rows).max(initial=0)))
        exact = _EXACT_IN_FLOAT64 if rows.dtype == np.float64 else _EXACT_IN_FLOAT32
        step = max(1, exact // largest**2)  # so many products add up without rounding
        for start in range(0, rows.shape[1], step):
            part = rows[:, start : start + step]
            self._products += np.swapaxes(part, 1, 2) @ part
        self._sums += rows.sum(axis=1, dtype=np.float64)
        self._rows += rows.shape[1]

    @property
    def rows(self) -> int:
        return self._rows

    def hessian(self, mean_weight: float = 1.0) -> np.ndarray:
        """Mean of x x^T, shape (groups, columns, columns), float64, of which the part that is the mean of x times
        itself counts ``mean_weight``: 0 is the covariance, what is left where a bias takes the mean error away."""
        count = max(self._rows, 1)
        moment = self._products / count
        if mean_weight != 1.0:
            mean = self._sums / count
            moment -= (1 - mean_weight) * (mean[:, :, None] * mean[:, None, :])
        return moment


def round_codes(
    targets: np.ndarray,
    hessian: np.ndarray,
    *,
    limit: int = 127,
    pairs: bool = False,
    damping: float = 0.01,
    activation_order: bool = True,
    sweeps: int = 1,
) -> np.ndarray:
    """Codes (groups, rows, columns), int8, for weights in units of their scales: ``targets``, of the same shape.

    ``hessian``: (groups, columns, columns). ``limit``: largest magnitude of a code. ``pairs``: columns 2j and 2j+1 are
    added in 16 bits, and no two codes in such places pass ``pairs.PAIR_LIMIT``. ``damping``: added to the diagonal, as
    a part of its mean; it must not be 0 where the inputs do not span all columns. ``activation_order``: columns of
    strong inputs first, when there is most room to make up for them. ``sweeps`` of coordinate descent follow.
    """
    order, damped, wanted = _ordered(targets, hessian, damping, activation_order)
    bounds = _Bounds(order, limit, pairs)
    found = np.empty(targets.shape, np.int8)
    found[..., order] = np.swapaxes(_rounded(wanted, damped, bounds, sweeps), 1, 2)
    return found


def round_levels(
    targets: np.ndarray,
    hessian: np.ndarray,
    levels: np.ndarray,
    *,
    damping: float = 0.01,
    activation_order: bool = True,
    sweeps: int = 1,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Levels (groups, rows, columns), float64, for the weights ``targets`` of the same shape: as ``round_codes``, onto
    the ascending ``levels`` (groups, rows, L) of each row. ``start``: numbers on those levels, which the sweeps then
    start from."""
    order, damped, wanted = _ordered(targets, hessian, damping, activation_order)
    first = None if start is None else np.ascontiguousarray(np.swapaxes(start[..., order], 1, 2), dtype=np.float64)
    found = np.empty(targets.shape)
    found[..., order] = np.swapaxes(_rounded(wanted, damped, _Levels(levels), sweeps, first), 1, 2)
    return found


def round_numbers(
    weights: np.ndarray,
    hessian: np.ndarray,
    scale: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    *,
    damping: float = 0.01,
    activation_order: bool = True,
    sweeps: int = 1,
) -> np.ndarray:
    """``round_codes`` for scales that differ from weight to weight: the numbers, float64, that the codes stand for.

    ``weights``, ``scale`` and the bounds ``low`` and ``high`` of the multiples of ``scale`` are (groups, rows,
    columns), or broadcast to it.
    """
    columns = weights.shape[-1]
    damped = damped_moments(hessian, damping)
    strength = np.diagonal(damped, axis1=1, axis2=2).sum(axis=0)
    order = np.argsort(-strength, kind="stable") if activation_order else np.arange(columns)
    damped = damped[:, order[:, None], order]
    by_column = [np.swapaxes(np.broadcast_to(one, weights.shape)[..., order], 1, 2) for one in (scale, low, high)]
    wanted = np.ascontiguousarray(np.swapaxes(weights[..., order], 1, 2), dtype=np.float64)
    grid = _Grid(*by_column)
    numbers = _nearest_plane(wanted, damped, grid)
    for _ in range(sweeps):
        _descend(wanted, damped, grid, numbers)
    found = np.empty(weights.shape)
    found[..., order] = np.swapaxes(numbers, 1, 2)
    return found


def output_error(errors: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """Mean square error of each result, (groups, rows), that weight errors (groups, rows, columns) make."""
    errors = errors.astype(np.float64, copy=False)
    return np.asarray(np.maximum(((errors @ hessian) * errors).sum(axis=-1), 0))


def _ordered(
    targets: np.ndarray, hessian: np.ndarray, damping: float, activation_order: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The order of columns, and in that order the damped moments and the targets (groups, columns, rows)."""
    damped = damped_moments(hessian, damping)
    strength = np.diagonal(damped, axis1=1, axis2=2).sum(axis=0)
    order = np.argsort(-strength, kind="stable") if activation_order else np.arange(targets.shape[-1])
    # Columns are visited as rows, which lie together in memory.
    wanted = np.ascontiguousarray(np.swapaxes(targets[..., order], 1, 2), dtype=np.float64)
    return order, damped[:, order[:, None], order], wanted


def _rounded(
    wanted: np.ndarray, damped: np.ndarray, rounder: _Rounder, sweeps: int, start: np.ndarray | None = None
) -> np.ndarray:
    codes = _nearest_plane(wanted, damped, rounder) if start is None else start
    for _ in range(sweeps):
        _descend(wanted, damped, rounder, codes)
    return codes


class _Rounder(Protocol):
    """Rounds column ``index``, (groups, rows), given the first ``known`` columns of ``codes`` (groups, columns,
    rows)."""

    def round(self, ideal: np.ndarray, codes: np.ndarray, index: int, known: int) -> np.ndarray: ...


class _Levels:
    """Rounds to the nearest of a row's levels."""

    def __init__(self, levels: np.ndarray) -> None:
        self._levels = levels.astype(np.float64)
        self._middles = (self._levels[..., 1:] + self._levels[..., :-1]) / 2

    def round(self, ideal: np.ndarray, codes: np.ndarray, index: int, known: int) -> np.ndarray:
        place = (ideal[..., None] > self._middles).sum(axis=-1, dtype=np.int64)
        return np.take_along_axis(self._levels, place[..., None], axis=-1)[..., 0]


class _Bounds:
    """Rounds a column within what the limit, and the code of the column beside it, allow."""

    def __init__(self, order: np.ndarray, limit: int, pairs: bool) -> None:
        self._limit = limit
        self._partner: list[int | None] = [None] * len(order)
        if pairs:
            place = np.argsort(order)
            for index, column in enumerate(order):
                if column ^ 1 < len(order):
                    self._partner[index] = int(place[column ^ 1])

    def round(self, ideal: np.ndarray, codes: np.ndarray, index: int, known: int) -> np.ndarray:
        """Codes of column ``index``, given those of the first ``known`` columns."""
        partner = self._partner[index]
        if partner is None or partner >= known:
            return np.asarray(np.rint(np.clip(ideal, -self._limit, self._limit)))
        beside = codes[:, partner]
        most = np.minimum(PAIR_LIMIT - np.maximum(beside, 0), self._limit)
        least = np.maximum(-PAIR_LIMIT - np.minimum(beside, 0), -self._limit)
        return np.asarray(np.rint(np.clip(ideal, least, most)))


class _Grid:
    """Rounds a column to multiples of its scales; (groups, columns, rows) each."""

    def __init__(self, scale: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        self._scale = np.ascontiguousarray(scale, dtype=np.float64)
        self._low, self._high = np.ascontiguousarray(low), np.ascontiguousarray(high)

    def round(self, ideal: np.ndarray, codes: np.ndarray, index: int, known: int) -> np.ndarray:
        """The nearest numbers of column ``index``."""
        scale = self._scale[:, index]
        return np.asarray(np.clip(np.rint(ideal / scale), self._low[:, index], self._high[:, index]) * scale)


def damped_moments(hessian: np.ndarray, damping: float) -> np.ndarray:
    """``hessian`` (groups, columns, columns) with ``damping`` times the mean of its diagonal added to that."""
    columns = hessian.shape[-1]
    mean = np.diagonal(hessian, axis1=1, axis2=2).mean(axis=1)
    # An input that never varies says nothing: any positive diagonal then means rounding to the nearest.
    extra = np.where(mean > 0, damping * mean, 1.0)
    return hessian + extra[:, None, None] * np.eye(columns)


def _nearest_plane(wanted: np.ndarray, hessian: np.ndarray, bounds: _Rounder) -> np.ndarray:
    """Codes (groups, columns, rows), column after column."""
    # The Cholesky factor of the reversed matrix, reversed, is the upper factor R with H = R R^T.
    factor = np.linalg.cholesky(hessian[:, ::-1, ::-1])[:, ::-1, ::-1]
    factor = np.ascontiguousarray(np.swapaxes(factor / np.diagonal(factor, axis1=1, axis2=2)[:, None, :], 1, 2))
    columns = wanted.shape[1]
    codes, errors = np.zeros_like(wanted), np.zeros_like(wanted)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        owed = factor[:, start:stop, :start] @ errors[:, :start]
        for index in range(start, stop):
            ideal = wanted[:, index] + owed[:, index - start]
            if index > start:
                ideal += (factor[:, index, None, start:index] @ errors[:, start:index])[:, 0]
            codes[:, index] = bounds.round(ideal, codes, index, index)
            errors[:, index] = wanted[:, index] - codes[:, index]
    return codes


def _descend(wanted: np.ndarray, hessian: np.ndarray, bounds: _Rounder, codes: np.ndarray) -> None:
    """Move each column once to its best place given all others; the error never grows. Changes ``codes``."""
    columns = wanted.shape[1]
    errors = wanted - codes
    slope = hessian @ errors
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        before = errors[:, start:stop].copy()
        for index in range(start, stop):
            own = hessian[:, index, index, None]
            ideal = codes[:, index] + slope[:, index] / own
            codes[:, index] = bounds.round(ideal, codes, index, columns)
            change = wanted[:, index] - codes[:, index] - errors[:, index]
            if change.any():
                errors[:, index] += change
                slope[:, start:stop] += hessian[:, start:stop, index, None] * change[:, None, :]
        moved = errors[:, start:stop] - before
        slope[:, :start] += hessian[:, :start, start:stop] @ moved
        slope[:, stop:] += hessian[:, stop:, start:stop] @ moved
