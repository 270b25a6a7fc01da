"""Scales and zero points of weights that are stored in blocks: chosen by extremes, or by least squared error.

A weight's *units* are what shares one scale: blocks of consecutive elements along an axis (ONNX DequantizeLinear-21),
or, without a block size, the slices of one index of an axis. They are looked at as rows of a matrix, in the order in
which the scale tensor lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from qir.errors import OptionError
from qir.ir import DType, StaticQuant
from qir.quant.schemes import SMALLEST_SCALE

__all__ = ["Fit", "block_quant", "code_dtype", "unit_rows", "units_like"]

Fit = Literal["nearest", "mse"]

_PIECE = 1 << 20
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Parts of a unit's range that a smaller scale may cover: the rest is clipped, and all else is stored finer."""
_REFINEMENTS = 3


def code_dtype(bits: int, symmetric: bool) -> DType:
    """The type that weight codes are stored in."""
    types = {(4, True): DType.INT4, (4, False): DType.UINT4, (8, True): DType.INT8, (8, False): DType.UINT8}
    if (bits, symmetric) not in types:
        raise OptionError(f"weights are stored in 4 or 8 bits, not {bits}")
    return types[bits, symmetric]


def block_quant(
    weight: np.ndarray,
    axis: int,
    block_size: int | None,
    bits: int,
    *,
    symmetric: bool = True,
    fit: Fit = "mse",
    importance: np.ndarray | None = None,
) -> StaticQuant:
    """The type under which ``weight`` (float, any shape) is stored with one scale a unit.

    ``fit``: ``nearest`` covers the extremes of each unit; ``mse`` looks for the scale of least squared error, each
    square counted ``importance`` times (shape of the weight, or broadcastable to it). Zero is always a code. Raises
    OptionError for infinite and NaN weights.
    """
    axis %= weight.ndim
    dtype = code_dtype(bits, symmetric)
    scales, zeros = [], []
    counted = None if importance is None else np.broadcast_to(importance, weight.shape)
    for rows, squares in _pieces(weight, counted, axis, block_size):
        scale, zero = _extremes(rows, bits, symmetric)
        if fit == "mse":
            scale, zero = _least_squares(rows, scale, zero, bits, symmetric, squares)
        scales.append(scale)
        zeros.append(zero)
    scale = np.concatenate(scales) if scales else np.zeros(0, np.float32)
    if not np.isfinite(scale).all():
        raise OptionError("a weight is infinite or NaN, so it has no scale: repair the model")
    zero = np.zeros(1) if symmetric or not zeros else np.concatenate(zeros)
    return StaticQuant(dtype, tuple(scale.tolist()), tuple(zero.astype(np.int64).tolist()), axis, block_size)


def unit_rows(array: np.ndarray, axis: int, block_size: int | None) -> np.ndarray:
    """(units, elements of a unit): where the axis is no multiple of the block, the last blocks are filled with 0."""
    axis %= array.ndim
    if block_size is None:
        return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    blocks = -(-array.shape[axis] // block_size)
    missing = blocks * block_size - array.shape[axis]
    if missing:
        array = np.pad(array, [(0, missing if index == axis else 0) for index in range(array.ndim)])
    split = array.reshape(*array.shape[:axis], blocks, block_size, *array.shape[axis + 1 :])
    return np.moveaxis(split, axis + 1, -1).reshape(-1, block_size)


def units_like(numbers: np.ndarray, shape: tuple[int, ...], axis: int, block_size: int | None) -> np.ndarray:
    """One number a unit, repeated to the shape of the weight."""
    if block_size is None:
        return np.broadcast_to(numbers.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)
    grid = (*shape[:axis], -(-shape[axis] // block_size), *shape[axis + 1 :])
    repeated = np.repeat(numbers.reshape(grid), block_size, axis=axis)
    return repeated[(slice(None),) * axis + (slice(shape[axis]),)]


def _pieces(
    weight: np.ndarray, importance: np.ndarray | None, axis: int, block_size: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Units of slices of the weight, in order, so that temporaries stay small: float32 rows and what squares count."""
    if weight.size == 0:
        return
    along = 0
    step = max(1, _PIECE * weight.shape[0] // weight.size)
    if axis == 0 and block_size is not None:
        step = -(-step // block_size) * block_size
    elif block_size is None and axis != 0:
        weight, importance = (
            np.moveaxis(weight, axis, 0),
            None if importance is None else np.moveaxis(importance, axis, 0),
        )
        axis, step = 0, max(1, _PIECE * weight.shape[0] // weight.size)
    for start in range(0, weight.shape[along], step):
        cut = slice(start, start + step)
        rows = unit_rows(weight[cut].astype(np.float32), axis, block_size)
        yield rows, None if importance is None else unit_rows(importance[cut].astype(np.float32), axis, block_size)


def _bounds(bits: int, symmetric: bool) -> tuple[int, int]:
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if symmetric else (0, (1 << bits) - 1)


def _extremes(rows: np.ndarray, bits: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.minimum(rows.min(axis=1), 0), np.maximum(rows.max(axis=1), 0)
    if symmetric:
        scale = np.maximum(-low, high) / ((1 << bits - 1) - 1)
        return _usable(scale), np.zeros(len(rows), np.float32)
    scale = _usable((high - low) / ((1 << bits) - 1))
    return scale, np.clip(np.rint(-low / scale), 0, (1 << bits) - 1).astype(np.float32)


def _usable(scale: np.ndarray) -> np.ndarray:
    """float32; a unit of zeros has them under any scale."""
    return np.maximum(np.where(scale == 0, 1.0, scale), SMALLEST_SCALE).astype(np.float32)


def _codes(rows: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int, symmetric: bool) -> np.ndarray:
    """Codes less their zero point."""
    low, high = _bounds(bits, symmetric)
    codes = np.rint(rows / scale[:, None])
    return np.asarray(np.clip(codes, (low - zero)[:, None], (high - zero)[:, None], out=codes))


def _least_squares(
    rows: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int, symmetric: bool, squares: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The best of some shares of the range; then in turn the best scale for the codes and the codes for the scale."""
    low = np.minimum(rows.min(axis=1), 0)
    limit = (1 << bits) - 1
    best = np.full(len(rows), np.inf, np.float32)
    best_scale, best_zero = scale, zero
    full = 1.0 if not symmetric else ((1 << bits - 1) - 1) / (1 << bits - 1)  # the most negative code reaches further
    for share in sorted({*_SHRINK, full}, reverse=True):
        tried = _usable(scale * np.float32(share))
        offset = zero if symmetric else np.clip(np.rint(-low * np.float32(share) / tried), 0, limit).astype(np.float32)
        codes = _codes(rows, tried, offset, bits, symmetric)
        error = _error(rows, codes, tried, squares)
        better = error < best
        best = np.where(better, error, best)
        best_scale, best_zero = np.where(better, tried, best_scale), np.where(better, offset, best_zero)
    for _ in range(_REFINEMENTS):
        codes = _codes(rows, best_scale, best_zero, bits, symmetric)
        weighted = codes if squares is None else codes * squares
        norm = np.einsum("ij,ij->i", weighted, codes)
        fitted = np.einsum("ij,ij->i", weighted, rows) / np.where(norm > 0, norm, 1)
        tried = np.where((norm > 0) & (fitted > 0), fitted, best_scale)
        tried = _usable(tried)
        error = _error(rows, _codes(rows, tried, best_zero, bits, symmetric), tried, squares)
        better = error < best
        if not better.any():
            break
        best, best_scale = np.where(better, error, best), np.where(better, tried, best_scale)
    return best_scale.astype(np.float32), best_zero


def _error(rows: np.ndarray, codes: np.ndarray, scale: np.ndarray, squares: np.ndarray | None) -> np.ndarray:
    difference = codes * scale[:, None]
    difference -= rows
    if squares is None:
        return np.asarray(np.einsum("ij,ij->i", difference, difference))
    return np.asarray(np.einsum("ij,ij,ij->i", difference, difference, squares))
