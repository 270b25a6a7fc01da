"""Fitting levels to codes: once the codes of a layer's weights are chosen, the tables and scales that they stand for
are least squares problems, with the error weighed as the layer's results feel it.

With H the second moment of the inputs, the error of channel c is e H e^T for e = w - scale[c] * table[code]. It is
quadratic in the tables and, apart from those, in each scale, as in additive quantization of language models (Egiazarian
et al., Extreme Compression of Large Language Models via Additive Quantization, 2024, section 3.3). Tables are bettered
by a few steps of conjugate gradients, which never make the error larger; scales in one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qir.ir import CodebookQuant
from qir.quant.codebook import narrow_scales, row_levels

__all__ = ["refit_levels"]

_STEPS = 4
"""Of conjugate gradients, for some dozens of levels that are nearly right."""


def refit_levels(
    quant: CodebookQuant, targets: np.ndarray, numbers: np.ndarray, hessian: np.ndarray, *, tables: bool
) -> tuple[CodebookQuant, np.ndarray]:
    """Better scales, and with ``tables`` better tables, for the codes of ``numbers``; and the numbers on those levels.

    ``targets``, ``numbers``: (groups, rows, columns), float64, ``numbers`` on the levels of ``quant``, which has a
    scale for each of the groups * rows channels and ``dim`` 1. ``hessian``: (groups, columns, columns), damped, so
    that it is positive definite. Tables are rounded to f16, scales where that has the range for them.
    """
    shape = targets.shape
    channels = shape[0] * shape[1]
    codes = _codes(quant, numbers.reshape(channels, -1))
    table, scale = np.array(quant.table), np.array(quant.scale, np.float64)
    if tables:
        table = _fit_tables(table, scale, codes, targets, hessian).astype(np.float16).astype(np.float64)
    levels = np.repeat(table, channels // len(table), axis=0)
    scale = _fit_scales(np.take_along_axis(levels, codes, axis=1).reshape(shape), scale, targets, hessian)
    fitted = replace(quant, table=tuple(map(tuple, table.tolist())), scale=tuple(scale.tolist()))
    made = np.take_along_axis(row_levels(fitted, channels), codes, axis=1)
    return fitted, made.reshape(shape).astype(np.float64)


def _codes(quant: CodebookQuant, rows: np.ndarray) -> np.ndarray:
    """Of numbers (channels, columns) on the levels, (channels, columns)."""
    levels = row_levels(quant, len(rows)).astype(np.float64)
    found = np.empty(rows.shape, np.int64)
    for channel, (row, own) in enumerate(zip(rows, levels, strict=True)):
        order = np.argsort(own, kind="stable")
        found[channel] = order[np.searchsorted(own[order], row)]
    return found


def _fit_tables(
    table: np.ndarray, scale: np.ndarray, codes: np.ndarray, targets: np.ndarray, hessian: np.ndarray
) -> np.ndarray:
    """Tables (T, levels) of less error; a level that no number has stays."""
    parts, levels = table.shape
    channels = len(codes)
    place = codes + (np.arange(channels) // (channels // parts) * levels)[:, None]

    def felt(numbers: np.ndarray) -> np.ndarray:
        """What each level's numbers (channels, columns) have to do with the results, (T, levels)."""
        weighed = (numbers.reshape(targets.shape) @ hessian).reshape(channels, -1) * scale[:, None]
        return np.bincount(place.reshape(-1), weighed.reshape(-1), parts * levels).reshape(parts, levels)

    def made(of: np.ndarray) -> np.ndarray:
        return np.asarray(of.reshape(-1)[place] * scale[:, None])

    found = table.copy()
    residual = felt(targets.reshape(channels, -1) - made(found))
    # Each part is a problem of its own: one step length a part.
    direction, power = residual.copy(), (residual**2).sum(axis=1)
    for _ in range(_STEPS):
        image = felt(made(direction))
        curvature = (direction * image).sum(axis=1)
        step = np.where(curvature > 0, power / np.where(curvature > 0, curvature, 1), 0)
        found += step[:, None] * direction
        residual -= step[:, None] * image
        before, power = power, (residual**2).sum(axis=1)
        direction = residual + np.where(before > 0, power / np.where(before > 0, before, 1), 0)[:, None] * direction
    return found


def _fit_scales(numbers: np.ndarray, scale: np.ndarray, targets: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """The best scale of each channel of unscaled numbers (groups, rows, columns)."""
    felt = numbers @ hessian
    wanted, own = (felt * targets).sum(axis=-1).reshape(-1), (felt * numbers).sum(axis=-1).reshape(-1)
    best = np.where(own > 0, wanted / np.where(own > 0, own, 1), scale)
    return narrow_scales(np.where(best > 0, best, scale))
