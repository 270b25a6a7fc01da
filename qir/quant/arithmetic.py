"""The reference arithmetic of quantization: what an integer or fp8 code stands for, and how a number becomes one.

Everything that rounds a number to a code goes through here, so that calibration, weight rounding and emission agree to
the bit. The formulas are those of the ONNX operators QuantizeLinear and DequantizeLinear as onnxruntime's CPU kernels
carry them out: the quotient x / scale in float32, saturation, then rounding half to even, then the zero point.
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from qir.errors import OptionError
from qir.ir import DType, StaticQuant

__all__ = [
    "bias_quant",
    "bias_scale",
    "dequantize",
    "fake_quantize",
    "quantize",
    "requantize",
    "round_half_even",
    "saturate",
    "scale_shape",
]

_PIECE = 1 << 18
_STORABLE_FLOATS = frozenset(
    {
        DType.FLOAT8E4M3FN,
        DType.FLOAT8E4M3FNUZ,
        DType.FLOAT8E5M2,
        DType.FLOAT8E5M2FNUZ,
        DType.FLOAT4E2M1,
        DType.FLOAT6E2M3,
        DType.FLOAT6E3M2,
    }
)


def round_half_even(x: np.ndarray) -> np.ndarray:
    """The nearest whole numbers, ties to the even one (IEEE 754 roundTiesToEven)."""
    return np.asarray(np.rint(x))


def saturate(x: np.ndarray, dtype: DType) -> np.ndarray:
    """Whole numbers (of any numpy type) clamped into the range of an integer type and stored as it."""
    return np.asarray(np.clip(x, dtype.qmin, dtype.qmax).astype(dtype.numpy))


def scale_shape(shape: tuple[int, ...], q: StaticQuant) -> tuple[int, ...]:
    """The shape of the scale tensor that ONNX wants for data of this shape: (), (C,), or one entry a block.

    Raises OptionError where the type does not go with the shape.
    """
    if q.axis is None:
        return ()
    if not -len(shape) <= q.axis < len(shape):
        raise OptionError(f"quantization axis {q.axis} is outside of a tensor of rank {len(shape)}")
    axis = q.axis % len(shape)
    if q.block_size is None:
        expected: tuple[int, ...] = (shape[axis],)
    else:
        expected = (*shape[:axis], -(-shape[axis] // q.block_size), *shape[axis + 1 :])
    if int(np.prod(expected, dtype=np.int64)) != len(q.scale):
        raise OptionError(
            f"quantization type has {len(q.scale)} scales along axis {axis}, a tensor of shape {list(shape)} "
            f"needs {int(np.prod(expected, dtype=np.int64))}"
        )
    return expected


def quantize(x: np.ndarray, q: StaticQuant) -> np.ndarray:
    """Codes of ``x`` (any real dtype and shape), in the storage dtype ``q.dtype.numpy``.

    Integers: saturate(round(x / scale) + zero_point); NaN becomes the smallest code, as x86 minps/maxps have it.
    (onnxruntime's 2- and 4-bit loops let quotients beyond 2^31 wrap around; here they saturate.)
    Floats: x / scale rounded half to even, saturated to the largest finite number; NaN stays NaN where the type has
    one. Raises OptionError where the type does not fit the data.
    """
    # 24 bits of a float32 quotient do not reach every 32-bit code, so those are computed in float64.
    work = np.dtype(np.float64 if q.dtype.is_integer and q.dtype.bits > 16 else np.float32)
    source = np.ascontiguousarray(x)
    codes = np.empty(source.shape, q.dtype.numpy)
    with np.errstate(over="ignore", invalid="ignore"):
        for (part, scale, zero), (target, _, _) in zip(_parts(source, q), _parts(codes, q), strict=True):
            target[...] = _encode(np.divide(part.astype(np.float32, copy=False), scale, dtype=work), zero, q.dtype)
    return codes.reshape(np.shape(x))  # a scalar became a vector on the way


def dequantize(codes: np.ndarray, q: StaticQuant) -> np.ndarray:
    """float32 numbers that codes stand for: (code - zero_point) * scale; float codes: code * scale."""
    source = np.ascontiguousarray(codes)
    numbers = np.empty(source.shape, np.float32)
    with np.errstate(over="ignore"):
        for (part, scale, zero), (target, _, _) in zip(_parts(source, q), _parts(numbers, q), strict=True):
            if q.dtype.bits > 16 and np.any(zero):
                target[...] = part.astype(np.int64) - zero
            else:  # in float32 these differences are exact
                target[...] = part
                target -= zero.astype(np.float32)
            target *= scale
    return numbers.reshape(np.shape(codes))


def fake_quantize(x: np.ndarray, q: StaticQuant) -> np.ndarray:
    """``dequantize(quantize(x, q), q)``: float32 numbers on the grid of ``q``."""
    return dequantize(quantize(x, q), q)


def bias_scale(input_scale: np.ndarray | float, weight_scale: np.ndarray | float) -> np.ndarray:
    """float32(s_x) * float32(s_w) in float32: the one scale at which integer kernels add a bias.

    Shape () or (C,). Raises OptionError where the product leaves the normal float32 numbers.
    """
    with np.errstate(over="ignore", under="ignore"):
        product = np.asarray(np.multiply(np.float32(input_scale), np.asarray(weight_scale, np.float32)))
    if not (np.isfinite(product).all() and (product >= np.finfo(np.float32).tiny).all()):
        raise OptionError(
            f"the product of input scale {float(np.max(input_scale)):g} and weight scale "
            f"{float(np.min(weight_scale)):g} is no normal float32 number: the ranges are too small or too large"
        )
    return product


def bias_quant(x: StaticQuant, w: StaticQuant, dtype: DType = DType.INT32) -> StaticQuant:
    """The type that a bias (axis 0) must have beside an input of type ``x`` (per tensor) and a weight of type ``w``."""
    if x.axis is not None or w.block_size is not None:
        raise OptionError("a bias can only be derived from a per-tensor input and an unblocked weight")
    scale = bias_scale(x.scale_array(), w.scale_array())
    return StaticQuant(dtype, tuple(np.atleast_1d(scale).tolist()), (0,), None if w.axis is None else 0)


def requantize(accumulators: np.ndarray, scale: np.ndarray | float, q: StaticQuant, axis: int = -1) -> np.ndarray:
    """Codes under ``q`` (per tensor, at most 16 bits) of integers at ``scale``: what QLinearConv, QLinearMatMul do.

    ``scale`` is () or, along ``axis`` of the accumulators, (C,), as ``bias_scale`` gives it. The multiplier
    scale / q.scale and its product with the accumulator are float32, as in onnxruntime.
    """
    if q.axis is not None or not q.dtype.is_integer or q.dtype.bits > 16:
        raise OptionError("accumulators are requantized to one per-tensor integer type of at most 16 bits")
    multiplier = np.asarray(np.asarray(scale, np.float32) / np.float32(q.scale[0]))
    if multiplier.ndim:
        shape = [1] * accumulators.ndim
        shape[axis] = -1
        multiplier = multiplier.reshape(shape)
    with np.errstate(over="ignore"):
        number = accumulators.astype(np.float32)
        number *= multiplier
    return _encode(number, q.zero_point_array(), q.dtype).astype(q.dtype.numpy)


def _encode(quotient: np.ndarray, zero: np.ndarray, dtype: DType) -> np.ndarray:
    """x / scale as codes; may overwrite ``quotient``. ``zero`` broadcasts to it."""
    if not dtype.is_integer:
        if dtype not in _STORABLE_FLOATS:
            raise OptionError(f"{dtype} is no type for quantized numbers: use an integer or a 4 to 8 bit float type")
        largest = np.float32(ml_dtypes.finfo(dtype.numpy).max)  # type: ignore[no-untyped-call]
        codes: np.ndarray = np.clip(quotient, -largest, largest).astype(dtype.numpy)
        return codes
    work = quotient.dtype
    # fmax and fmin drop NaN, so that it takes the lower bound.
    np.fmax(quotient, (dtype.qmin - zero).astype(work), out=quotient)
    np.fmin(quotient, (dtype.qmax - zero).astype(work), out=quotient)
    np.rint(quotient, out=quotient)
    if np.any(zero):
        quotient += zero.astype(work)
    # Sub-byte types convert from integers only without detours through float rounding.
    return quotient.astype(np.int8 if dtype.is_signed else np.uint8) if dtype.bits < 8 else quotient


def _parts(array: np.ndarray, q: StaticQuant) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Views of a C-contiguous array with the scale (float32) and zero point (int64) that broadcast to each.

    They depend on shape and type only. Scales are never repeated to the size of the data: blocks get an axis of their
    own, and where the axis is no multiple of the block size, the rest gets views of its own.
    """
    expected = scale_shape(array.shape, q)
    scale, zero = q.scale_array(), q.zero_point_array()
    if q.axis is None:
        yield from _pieces(array.reshape(-1), scale, zero)
        return
    axis = q.axis % array.ndim
    before, size = int(np.prod(array.shape[:axis], dtype=np.int64)), array.shape[axis]
    after = int(np.prod(array.shape[axis + 1 :], dtype=np.int64))
    flat = array.reshape(before, size, after)
    if q.block_size is None:
        yield from _pieces(flat, scale.reshape(1, size, 1), zero.reshape(1, size, 1))
        return
    grid = (before, expected[axis], 1, after)
    scale, zero = scale.reshape(grid), zero.reshape(grid)
    whole = size // q.block_size
    blocks = flat[:, : whole * q.block_size].reshape(before, whole, q.block_size, after)
    yield from _pieces(blocks, scale[:, :whole], zero[:, :whole])
    if whole * q.block_size < size:
        rest = flat[:, whole * q.block_size :]
        yield from _pieces(rest.reshape(before, 1, rest.shape[1], after), scale[:, whole:], zero[:, whole:])


def _pieces(
    view: np.ndarray, scale: np.ndarray, zero: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A view cut along its first long axis, so that temporaries stay small and in the cache."""
    axis = next((axis for axis, size in enumerate(view.shape) if size > 1), None)
    if axis is None or view.size <= _PIECE:
        yield view, scale, zero
        return
    step = max(1, _PIECE * view.shape[axis] // view.size)
    for start in range(0, view.shape[axis], step):
        cut = (slice(None),) * axis + (slice(start, start + step),)
        shared = scale.ndim == 0 or scale.shape[axis] == 1
        yield view[cut], scale if shared else scale[cut], zero if shared else zero[cut]
