"""From ranges and weights to quantization parameters: scales and zero points that no kernel stumbles over.

Scales are float32 values between ``SMALLEST_SCALE`` and the largest float32, so that the product of two of them, at
which a bias is stored, is a normal number too.
"""

from __future__ import annotations

import numpy as np

from qir.errors import OptionError
from qir.ir import DType, Interval, StaticQuant

__all__ = [
    "BIAS_LIMIT",
    "SMALLEST_SCALE",
    "activation_quant",
    "bias_safe_scale",
    "channel_magnitude",
    "code_limit",
    "weight_quant",
    "weight_scale",
]

SMALLEST_SCALE = 2.0**-60
BIAS_LIMIT = 2**30
"""Largest magnitude of a bias code: leaves as much of the 32-bit accumulator to the products."""


def code_limit(dtype: DType, reduce_range: bool = False) -> int:
    """The largest code of a symmetric type: the most negative one stays unused, so that -w is as exact as w.

    ``reduce_range`` gives up one bit: with s8 weights at most 64, two products with u8 inputs fit 16 bits
    (2 * 255 * 64 = 32640).
    """
    if not dtype.is_integer:
        raise OptionError(f"{dtype} is no integer type, it has no largest code")
    half = 1 << (dtype.bits - 1)
    return max(1, half // 2) if reduce_range else max(1, half - 1)


def activation_quant(
    range_: Interval, dtype: DType = DType.UINT8, *, symmetric: bool = False, reduce_range: bool = False
) -> StaticQuant:
    """Per-tensor parameters that cover a range, widened to hold 0, which is always represented exactly.

    Asymmetric: scale = (hi - lo) / levels, the zero point rounded and clamped; it is the smallest code exactly where
    lo >= 0. Symmetric: zero point 0, or the middle code 2^(bits-1) of an unsigned type. ``reduce_range`` uses one bit
    less (0..127 of u8). An empty range counts as [0, 0]. Raises OptionError for an infinite range.
    """
    bounds = range_.per_tensor()
    if bounds.is_empty:
        bounds = Interval(0.0, 0.0)
    if not bounds.is_bounded:
        raise OptionError(f"no scale covers the infinite range [{bounds.lower}, {bounds.upper}]: clip or calibrate it")
    lo, hi = min(bounds.lower, 0.0), max(bounds.upper, 0.0)
    if symmetric:
        middle = 0 if dtype.is_signed else 1 << (dtype.bits - 1)
        return StaticQuant(dtype, (_float32(max(-lo, hi) / code_limit(dtype, reduce_range)),), (middle,))
    least, most = dtype.qmin, dtype.qmax
    if reduce_range:
        least, most = -(-least // 2), most // 2
    scale = _float32(hi / (most - least) - lo / (most - least))
    zero = int(np.clip(np.rint(least - lo / scale), least, most))
    return StaticQuant(dtype, (scale,), (zero,))


_SIGNED = {
    DType.UINT4: (DType.INT4, 1 << 3),
    DType.UINT8: (DType.INT8, 1 << 7),
    DType.UINT16: (DType.INT16, 1 << 15),
}


def weight_quant(
    w: np.ndarray, axis: int | None, dtype: DType = DType.INT8, *, reduce_range: bool = False
) -> StaticQuant:
    """Symmetric parameters of a weight: one scale, or one an index of ``axis``. See ``weight_scale``.

    Codes of an unsigned type are those of the signed one, moved: the zero point is the middle of the type.
    """
    signed, zero = _SIGNED.get(dtype, (dtype, 0))
    scale = weight_scale(w, axis, signed, reduce_range=reduce_range)
    return StaticQuant(dtype, tuple(np.atleast_1d(scale).tolist()), (zero,), None if axis is None else axis % w.ndim)


def weight_scale(
    w: np.ndarray, axis: int | None, dtype: DType = DType.INT8, *, reduce_range: bool = False
) -> np.ndarray:
    """max|w| / largest code, per tensor () or per index of ``axis`` (C,), float32.

    A channel of zeros gets the median scale of the others: its codes are 0 under any scale, and its bias is then
    stored as finely as theirs. Raises OptionError where a weight is infinite or NaN.
    """
    return fill_degenerate(channel_magnitude(w, axis) / code_limit(dtype, reduce_range))


def bias_safe_scale(scale: np.ndarray, bias: np.ndarray, input_scale: float) -> np.ndarray:
    """Weight scales (C,), raised where the bias (C,) at input_scale * scale would not fit ``BIAS_LIMIT``.

    That happens to channels of tiny weights with an ordinary bias; unguarded, the bias saturates.
    """
    needed = np.abs(bias.astype(np.float64)) / (float(input_scale) * BIAS_LIMIT)
    return np.asarray(np.maximum(scale, _round_up(needed)))


def channel_magnitude(w: np.ndarray, axis: int | None) -> np.ndarray:
    """max|w| over all other axes, float64: shape () or (C,). Raises OptionError for infinities and NaN."""
    others = None if axis is None else tuple(i for i in range(w.ndim) if i != axis % w.ndim)
    if w.size == 0:
        return np.zeros(() if axis is None else (w.shape[axis],))
    # min and max instead of abs: no copy of the weight.
    magnitude = np.maximum(w.max(axis=others).astype(np.float64), -w.min(axis=others).astype(np.float64))
    if not np.isfinite(magnitude).all():
        raise OptionError("a weight is infinite or NaN, so it has no scale: repair the model")
    return np.asarray(magnitude)


def fill_degenerate(scale: np.ndarray) -> np.ndarray:
    """float32 scales with the zero ones replaced (see ``weight_scale``) and the tiny ones raised."""
    used = scale > 0
    fallback = float(np.median(scale[used])) if used.any() else 1.0 / 127
    return np.maximum(np.where(used, scale, fallback), SMALLEST_SCALE).astype(np.float32)


def _float32(scale: float) -> float:
    return float(np.float32(max(scale, SMALLEST_SCALE))) if scale > 0 else float(np.float32(1.0 / 127))


def _round_up(x: np.ndarray) -> np.ndarray:
    """The least float32 numbers that are not below."""
    near = x.astype(np.float32)
    return np.where(near.astype(np.float64) < x, np.nextafter(near, np.float32(np.inf)), near)
