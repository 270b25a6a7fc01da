"""Codebooks: weights stored as indices into small tables of numbers.

A weight is ``scale[channel] * table[part of the channel][code]``; see ``ir.CodebookQuant``. Tables are found by
weighted k-means in one dimension (Lloyd, Least squares quantization in PCM, 1982) or, for codes that stand for several
numbers, in several; the codes either by the nearest level or, where the second moments of a layer's inputs are known,
column after column as in ``quant.gptq``.
"""

from __future__ import annotations

import math

import numpy as np

from qir.errors import OptionError
from qir.ir import CodebookQuant

__all__ = [
    "HALF_FROM",
    "SCALE_BITS",
    "coded_bytes",
    "decode",
    "encode",
    "from_rows",
    "learn_tables",
    "learn_vectors",
    "level_count",
    "narrow_scales",
    "part_count",
    "row_levels",
    "to_rows",
]

SCALE_BITS = 16
"""Of a scale and of a level, both numbers that f16 holds."""
HALF_FROM = 32
"""So many levels or scales are stored as f16: the node that widens them takes as much as fewer ones save."""
_ROUNDS = 40
_OFFSET = 4.0
"""Apart enough for rows of normalised numbers, |x| < 2, to be searched as one sorted sequence."""


def level_count(quant: CodebookQuant) -> int:
    """How many codes have a meaning."""
    return len(quant.table[0]) // quant.dim


def to_rows(array: np.ndarray, quant: CodebookQuant) -> np.ndarray:
    """(channels, elements of one) of a tensor; (1, all) without an axis."""
    if quant.axis is None:
        return array.reshape(1, -1)
    return np.moveaxis(array, quant.axis, 0).reshape(array.shape[quant.axis], -1)


def from_rows(rows: np.ndarray, quant: CodebookQuant, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of ``to_rows``; contiguous."""
    if quant.axis is None:
        return rows.reshape(shape)
    axis = quant.axis % len(shape)
    moved = rows.reshape(shape[axis], *shape[:axis], *shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(moved, 0, axis))


def row_levels(quant: CodebookQuant, channels: int) -> np.ndarray:
    """What each code stands for in each channel, float32: (channels, levels), times ``dim`` where that is not 1.

    One float32 product of scale and level, as the emitted nodes compute it. Raises OptionError where the tables or
    scales do not go with the number of channels.
    """
    if channels % len(quant.table) or len(quant.scale) not in (1, channels):
        raise OptionError(f"{len(quant.table)} tables and {len(quant.scale)} scales do not go with {channels} channels")
    table = np.array(quant.table, np.float32)
    scale = np.broadcast_to(np.array(quant.scale, np.float32), (channels,))
    levels = np.repeat(table, channels // len(table), axis=0) * scale[:, None]
    return levels if quant.dim == 1 else levels.reshape(channels, -1, quant.dim)


def decode(codes: np.ndarray, quant: CodebookQuant, shape: tuple[int, ...]) -> np.ndarray:
    """float32 numbers of ``shape`` that codes stand for; ``codes`` are as ``encode`` gives them."""
    channels = 1 if quant.axis is None else shape[quant.axis]
    levels = row_levels(quant, channels)
    rows = codes.reshape(channels, -1)
    if quant.dim == 1:
        numbers = np.take_along_axis(levels, rows.astype(np.int64), axis=1)
    else:
        numbers = levels[np.arange(channels)[:, None], rows].reshape(channels, -1)
    return from_rows(numbers, quant, shape)


def encode(array: np.ndarray, quant: CodebookQuant) -> np.ndarray:
    """The codes of the nearest levels, uint8, (channels, elements of one / dim); of equally near ones the least code.

    What ``decode`` gives is encoded without error. Raises OptionError where ``dim`` does not divide a channel's
    elements, or the numbers are not finite.
    """
    rows = to_rows(np.asarray(array, np.float32), quant).astype(np.float64)
    if not np.isfinite(rows).all():
        raise OptionError("a weight is infinite or NaN, so it has no code: repair the model")
    if rows.shape[1] % quant.dim:
        raise OptionError(f"codes for {quant.dim} numbers each do not cut channels of {rows.shape[1]} elements evenly")
    levels = row_levels(quant, len(rows)).astype(np.float64)
    if quant.dim > 1:
        vectors = rows.reshape(len(rows), -1, quant.dim)
        found = [_nearest_vector(row, own) for row, own in zip(vectors, levels, strict=True)]
        return np.stack(found).astype(np.uint8)
    codes = np.empty(rows.shape, np.uint8)
    for channel, (row, own) in enumerate(zip(rows, levels, strict=True)):
        order = np.argsort(own, kind="stable")
        ranked = own[order]
        order = order[np.searchsorted(ranked, ranked, side="left")]  # of equal levels, the first code
        middles = (ranked[1:] + ranked[:-1]) / 2
        codes[channel] = order[np.searchsorted(middles, row, side="left")]
    return codes


def part_count(channels: int, elements: int, bits: int, overhead: float) -> int:
    """Into how many equal parts the channels are cut, each with a table of its own.

    ``overhead``: what tables may take, relative to the codes of ``bits`` bits a number. At least 1; a divisor of
    ``channels``.
    """
    affordable = int(channels * elements * bits * overhead / ((1 << bits) * SCALE_BITS))
    return max(part for part in range(1, channels + 1) if channels % part == 0 and (part == 1 or part <= affordable))


def coded_bytes(numbers: int, bits: int, tables: int, scales: int) -> int:
    """What codes, full tables and scales take in a file."""
    stored = [(count, 2 if count >= HALF_FROM else 4) for count in (tables << bits, scales)]
    return -(-numbers * bits // 8) + sum(count * width for count, width in stored)


def narrow_scales(scale: np.ndarray) -> np.ndarray:
    """The nearest numbers that f16 holds, as float32; of float32 where f16 lacks the range for one of them."""
    size = np.abs(scale[scale != 0])
    limits = np.finfo(np.float16)
    fits = size.size == 0 or (size.min() >= limits.smallest_normal and size.max() <= limits.max)
    return np.asarray(scale.astype(np.float16 if fits else np.float32).astype(np.float32))


def learn_tables(rows: np.ndarray, weights: np.ndarray, levels: int) -> np.ndarray:
    """Tables (R, levels) of ascending float64 for ``rows`` (R, n) of numbers in about [-1, 1], with a weight >= 0 each.

    Least weighted squared error that Lloyd's iteration reaches from the better of two starts: levels at equal
    distances, and at equal shares of the weighted distribution to the power 1/3 (Panter and Dite, 1951). Deterministic.
    """
    order = np.argsort(rows, axis=1, kind="stable")
    ranked = np.take_along_axis(rows, order, axis=1).astype(np.float64)
    mass = np.take_along_axis(np.broadcast_to(weights, rows.shape), order, axis=1).astype(np.float64)
    total = mass.sum(axis=1, keepdims=True)
    mass = np.where(total > 0, mass, 1.0)
    sums = _Sums(ranked, mass)
    spread = np.linspace(ranked[:, :1], ranked[:, -1:], levels, axis=1)[:, :, 0]
    starts = [spread, sums.companded(levels)]
    tables = [sums.refined(start) for start in starts]
    errors = np.stack([sums.error(table) for table in tables])
    best = errors.argmin(axis=0)
    return np.asarray(np.stack(tables)[best, np.arange(len(rows))])


def learn_vectors(vectors: np.ndarray, weights: np.ndarray, levels: int, rounds: int = 25) -> np.ndarray:
    """Codewords (levels, D), float64, for vectors (n, D) with a weight each (n,): weighted k-means, deterministic.

    Starts from the vectors at equal steps of their first principal coordinate; a codeword that nothing is near to
    moves to the vector of the greatest error.
    """
    vectors = vectors.astype(np.float64)
    weights = np.where(weights.sum() > 0, weights, 1.0).astype(np.float64)
    axis = np.linalg.eigh((vectors * weights[:, None]).T @ vectors)[1][:, -1]
    along = np.argsort(np.round(vectors @ axis, 9), kind="stable")
    words = vectors[along[np.linspace(0, len(along) - 1, levels).round().astype(np.int64)]].copy()
    for _ in range(rounds):
        near = _nearly_nearest(vectors, words)
        mass = np.bincount(near, weights, levels)
        error = ((vectors - words[near]) ** 2).sum(axis=1) * weights
        moved = np.stack([np.bincount(near, weights * column, levels) for column in vectors.T], axis=1)
        used = mass > 0
        words[used] = moved[used] / mass[used, None]
        empty = np.flatnonzero(~used)
        words[empty] = vectors[np.argsort(-error, kind="stable")[: len(empty)]]
    return words


def _nearest_vector(vectors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Index of the nearest word for each vector, piece by piece to bound memory."""
    found = np.empty(len(vectors), np.int64)
    step = max(1, (1 << 22) // max(words.size, 1))
    for start in range(0, len(vectors), step):
        part = vectors[start : start + step]
        found[start : start + step] = ((part[:, None] - words) ** 2).sum(axis=-1).argmin(axis=1)
    return found


def _nearly_nearest(vectors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The same but for words that are equally near within rounding: a matrix product, several times faster."""
    found = np.empty(len(vectors), np.int64)
    half = (words**2).sum(axis=1) / 2
    step = max(1, (1 << 22) // len(words))
    for start in range(0, len(vectors), step):
        found[start : start + step] = (vectors[start : start + step] @ words.T - half).argmax(axis=1)
    return found


class _Sums:
    """Running sums over sorted rows: a Lloyd step costs two searches a level, whatever the number of elements."""

    def __init__(self, ranked: np.ndarray, mass: np.ndarray) -> None:
        self.ranked, self.mass = ranked, mass
        self.rows, self.count = ranked.shape
        # All rows as one ascending sequence.
        self.sequence = (ranked + _OFFSET * np.arange(self.rows)[:, None]).reshape(-1)
        zero = np.zeros((self.rows, 1))
        self.weight = np.concatenate([zero, mass.cumsum(axis=1)], axis=1)
        self.moment = np.concatenate([zero, (mass * ranked).cumsum(axis=1)], axis=1)
        self.energy = (mass * ranked**2).sum(axis=1)

    def refined(self, table: np.ndarray) -> np.ndarray:
        for _ in range(_ROUNDS):
            weight, moment = self._cells(table)
            mean = moment / np.maximum(weight, 1e-300)
            # An empty cell keeps its level; order holds, since every mean lies in its cell.
            table = np.sort(np.where(weight > 0, mean, table), axis=1)
        return table

    def error(self, table: np.ndarray) -> np.ndarray:
        weight, moment = self._cells(table)
        return np.asarray(self.energy - 2 * (moment * table).sum(axis=1) + (weight * table**2).sum(axis=1))

    def companded(self, levels: int) -> np.ndarray:
        """Levels at equal shares of the density to the power 1/3, taken from a histogram of each row."""
        bins = min(512, max(4 * levels, int(math.sqrt(self.count))))
        cell = np.clip(((self.ranked + 1) / 2 * bins).astype(np.int64), 0, bins - 1)
        flat = (cell + bins * np.arange(self.rows)[:, None]).reshape(-1)
        density = np.bincount(flat, self.mass.reshape(-1), self.rows * bins).reshape(self.rows, bins) ** (1 / 3)
        share = density.cumsum(axis=1) / density.sum(axis=1, keepdims=True)
        wanted = (np.arange(levels) + 0.5) / levels
        sequence = (share + 2 * np.arange(self.rows)[:, None]).reshape(-1)
        place = np.searchsorted(sequence, (wanted + 2 * np.arange(self.rows)[:, None]).reshape(-1))
        place = place.reshape(self.rows, levels) - bins * np.arange(self.rows)[:, None]
        return np.asarray((np.clip(place, 0, bins - 1) + 0.5) / bins * 2 - 1)

    def _cells(self, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weight and first moment of what is nearest to each level, (rows, levels)."""
        middles = (table[:, 1:] + table[:, :-1]) / 2 + _OFFSET * np.arange(self.rows)[:, None]
        place = np.searchsorted(self.sequence, middles.reshape(-1)).reshape(self.rows, -1)
        place -= self.count * np.arange(self.rows)[:, None]
        edge = np.concatenate(
            [np.zeros((self.rows, 1), np.int64), place, np.full((self.rows, 1), self.count, np.int64)], axis=1
        )
        weight, moment = (np.take_along_axis(sums, edge, axis=1) for sums in (self.weight, self.moment))
        return np.diff(weight, axis=1), np.diff(moment, axis=1)
