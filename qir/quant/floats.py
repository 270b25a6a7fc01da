"""Short floats as number formats: what f16, bf16 and the 8, 6 and 4 bit ones hold, and how numbers are rounded to them.

All round to nearest, ties to even (IEEE 754). The 8-bit formats are those of Micikevicius et al., FP8 Formats for Deep
Learning, 2022 (e4m3fn, e5m2) and their FNUZ variants; the 4 and 6 bit ones of the OCP Microscaling specification 1.0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from qir.errors import OptionError
from qir.ir import DType

__all__ = ["FloatFormat", "float_format", "relative_loss", "round_float"]


_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """``mantissa``: stored fraction bits; ``bias`` of the exponent; ``largest`` finite number."""

    dtype: DType
    exponent: int
    mantissa: int
    bias: int
    largest: float
    has_infinity: bool
    has_nan: bool = True

    @property
    def smallest_normal(self) -> float:
        return math.ldexp(1.0, 1 - self.bias)

    @property
    def smallest(self) -> float:
        """The least positive number."""
        return math.ldexp(1.0, 1 - self.bias - self.mantissa)

    @property
    def epsilon(self) -> float:
        """Distance from 1 to the next number."""
        return math.ldexp(1.0, -self.mantissa)


_FORMATS = (
    FloatFormat(DType.FLOAT16, 5, 10, 15, 65504.0, True),
    FloatFormat(DType.BFLOAT16, 8, 7, 127, math.ldexp(1.9921875, 127), True),
    FloatFormat(DType.FLOAT8E4M3FN, 4, 3, 7, 448.0, False),
    FloatFormat(DType.FLOAT8E4M3FNUZ, 4, 3, 8, 240.0, False),
    FloatFormat(DType.FLOAT8E5M2, 5, 2, 15, 57344.0, True),
    FloatFormat(DType.FLOAT8E5M2FNUZ, 5, 2, 16, 57344.0, False),
    FloatFormat(DType.FLOAT6E2M3, 2, 3, 1, 7.5, False, False),
    FloatFormat(DType.FLOAT6E3M2, 3, 2, 3, 28.0, False, False),
    FloatFormat(DType.FLOAT4E2M1, 2, 1, 1, 6.0, False, False),
)


@cache
def float_format(dtype: DType) -> FloatFormat:
    """Raises OptionError for a type that is no float of at most 16 bits."""
    for format_ in _FORMATS:
        if format_.dtype is dtype:
            return format_
    raise OptionError(f"{dtype} is no float type of 4 to 16 bits")


def round_float(x: np.ndarray, dtype: DType, *, saturate: bool = False) -> np.ndarray:
    """The nearest numbers of a short float type, as float32; ties go to the even mantissa.

    ``saturate``: what is too large becomes the largest finite number, infinities too (ONNX Cast and QuantizeLinear with
    saturate=1); else infinity where the type has one, NaN where it has not, and in types with neither the largest
    number. NaN stays NaN; types without one give the largest number for it.

    The reference for the casts of ml_dtypes, in plain arithmetic: x is rounded to a multiple of the spacing of the
    format at its magnitude.
    """
    format_ = float_format(dtype)
    with np.errstate(all="ignore"):
        numbers = np.asarray(x, np.float32).astype(np.float64)
        exponent = np.frexp(numbers)[1] - 1
        spacing = np.exp2(np.maximum(exponent, 1 - format_.bias).astype(np.float64) - format_.mantissa)
        rounded = np.rint(numbers / spacing) * spacing
        finite = np.isfinite(numbers)
        rounded = np.where(finite, rounded, numbers)
        over = np.abs(rounded) > format_.largest
        if saturate or not (format_.has_infinity or format_.has_nan):
            beyond = np.copysign(format_.largest, numbers)
        else:
            beyond = np.copysign(np.inf, numbers) if format_.has_infinity else np.full(numbers.shape, np.nan)
        rounded = np.where(over & ~np.isnan(numbers), beyond, rounded)
    if not format_.has_nan:
        rounded = np.where(np.isnan(numbers), format_.largest, rounded)
    result = rounded.astype(np.float32)
    if dtype in (DType.FLOAT8E4M3FNUZ, DType.FLOAT8E5M2FNUZ):
        result = result + np.float32(0)  # there is no negative zero
    return np.asarray(result)


def relative_loss(x: np.ndarray, dtype: DType, below: float = math.inf) -> float:
    """Energy of the rounding error over that of the numbers of magnitude less than ``below``; inf where one of them
    overflows. Temporaries are small."""
    flat = np.asarray(x).reshape(-1)
    energy = lost = 0.0
    for start in range(0, flat.size, _PIECE):
        numbers = flat[start : start + _PIECE].astype(np.float32).astype(np.float64)
        numbers = numbers[np.abs(numbers) < below]
        with np.errstate(over="ignore"):
            error = numbers - numbers.astype(dtype.numpy).astype(np.float64)
        energy += float(np.square(numbers).sum())
        lost += float(np.square(error).sum()) if np.isfinite(error).all() else math.inf
    return lost / energy if energy else 0.0
