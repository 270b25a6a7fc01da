"""Weights that 16-bit pair sums cannot saturate: u8 x s8 kernels of x86 CPUs without VNNI instructions.

There vpmaddubsw multiplies unsigned activations by signed weights and adds two neighbouring products in a saturating
16-bit integer (Intel SDM, PMADDUBSW). With activations up to 255 the sum is exact whatever the data if and only if in
each pair the positive codes add up to at most 128 and so do the magnitudes of the negative ones (255 * 128 = 32640).
Halving the range of all weights would do; scaling up just the channels that have such a pair costs much less.

Which weights are neighbours was established on onnxruntime 1.31 with adversarial weights: elements 2j and 2j+1 of an
output's reduction, which runs along K for matrix products and over (kh, kw, c) for convolutions, grouped ones too. True
depthwise convolutions (one input and one output channel a group) multiply in 16 bits without pairs.
"""

from __future__ import annotations

import enum

import numpy as np

from qir.ir import DType
from qir.quant.schemes import channel_magnitude, code_limit, fill_degenerate

__all__ = ["PAIR_LIMIT", "PairLayout", "conv_layout", "pair_safe_scale", "pairs_fit"]

PAIR_LIMIT = 128
_CHUNK = 1 << 20


class PairLayout(enum.Enum):
    """Where the reduction of a weight runs, hence which codes are added in pairs."""

    COLUMNS = "columns"
    """[..., K, N]: B of MatMul, of Gemm with transB = 0. Channels are the last axis."""
    ROWS = "rows"
    """[..., N, K]: B of Gemm with transB = 1. Channels are the axis before the last."""
    CONV = "conv"
    """[M, C / group, *kernel]: reduction over (*kernel, C / group). Channels are axis 0."""
    ANY = "any"
    """Any two weights of a channel (axis 0) may meet: holds for whatever packing a kernel uses."""


def conv_layout(shape: tuple[int, ...], group: int) -> PairLayout | None:
    """The layout of a convolution's weight of this shape; None for a depthwise one, where nothing saturates."""
    return None if shape[1] == 1 and shape[0] == group else PairLayout.CONV


def pair_safe_scale(w: np.ndarray, axis: int | None, layout: PairLayout) -> np.ndarray:
    """The smallest s8 scales, at least max|w| / 127, under which no pair of rounded codes exceeds ``PAIR_LIMIT``.

    float32, per tensor () or along ``axis`` (C,), which must be the channel axis of the layout. Degenerate channels as
    in ``schemes.weight_scale``. Raises OptionError for infinities and NaN.
    """
    scale = fill_degenerate(channel_magnitude(w, axis) / code_limit(DType.INT8))
    flat = np.atleast_1d(scale).copy()
    first, second, channel = _hot_pairs(*_pairs(w, layout), flat)
    if axis is None:
        channel = np.zeros_like(channel)
    size = first + second
    # Bisection over the bit patterns of float32, which for positive numbers are in the order of the numbers.
    low = flat[channel].view(np.int32).astype(np.int64) - 1
    high = (size / np.float32(PAIR_LIMIT - 1.01)).astype(np.float32).view(np.int32).astype(np.int64)
    high = np.maximum(high, low + 1)
    while np.any(high - low > 1):
        middle = (low + high) // 2
        fits = _codes_fit(first, second, middle.astype(np.int32).view(np.float32))
        high = np.where(fits, middle, high)
        low = np.where(fits, low, middle)
    np.maximum.at(flat, channel, high.astype(np.int32).view(np.float32))
    return flat.reshape(scale.shape)


def pairs_fit(codes: np.ndarray, layout: PairLayout) -> bool:
    """Whether s8 codes satisfy the limit in every pair, so that no data can make a 16-bit sum saturate."""
    first, second = _pairs(codes.astype(np.int16), layout)
    positive = np.maximum(first, 0) + np.maximum(second, 0)
    negative = np.minimum(first, 0) + np.minimum(second, 0)
    return bool(np.all(positive <= PAIR_LIMIT) and np.all(negative >= -PAIR_LIMIT))


def _hot_pairs(first: np.ndarray, second: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Magnitudes and channel of the pairs that may exceed the limit at these scales (C,) or (1,); vectors.

    Rounding adds at most a half to each of the two quotients, so smaller pairs cannot, nor can opposite signs.
    """
    channels = first.shape[-2]
    limits = np.broadcast_to((PAIR_LIMIT - 1) * scale * np.float32(1 - 1e-6), (channels,))[:, None]
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    step = max(1, _CHUNK * channels // max(1, first.size))
    for start in range(0, channels, step):
        a, b = first[..., start : start + step, :], second[..., start : start + step, :]
        hot = np.nonzero((np.abs(a + b) > limits[start : start + step]) & ((a > 0) == (b > 0)))
        found.append((np.abs(a[hot], dtype=np.float32), np.abs(b[hot], dtype=np.float32), hot[-2] + start))
    if not found:
        return np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    firsts, seconds, places = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return firsts, seconds, places


def _codes_fit(first: np.ndarray, second: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.asarray(np.rint(first / scale) + np.rint(second / scale) <= PAIR_LIMIT)


def _pairs(w: np.ndarray, layout: PairLayout) -> tuple[np.ndarray, np.ndarray]:
    """The first and the second element of each pair, both [..., channels, pairs]; views where the layout allows."""
    match layout:
        case PairLayout.COLUMNS:
            rows = np.swapaxes(w if w.ndim > 1 else w[:, None], -1, -2)
        case PairLayout.ROWS:
            rows = w
        case PairLayout.CONV:
            rows = np.moveaxis(w, 1, -1).reshape(w.shape[0], -1)
        case PairLayout.ANY:
            return _largest_pairs(w.reshape(w.shape[0], -1))
    # An odd last element has no partner and cannot exceed the limit alone.
    second = rows[..., 1::2]
    return rows[..., 0::2][..., : second.shape[-1]], second


def _largest_pairs(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the two smallest and the two largest elements: no other pair of equal signs is worse."""
    if rows.shape[1] < 2:
        return rows[:, :0], rows[:, :0]
    ordered = np.partition(rows, (1, -2) if rows.shape[1] > 2 else 1, axis=1)
    return ordered[:, [0, -1]], ordered[:, [1, -2]]
