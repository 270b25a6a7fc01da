"""Element types: every ONNX data type, its name in IR text, its numpy dtype and its width in bits.

Codes are those of ``TensorProto.DataType`` (onnx.proto); sub-byte types are stored packed on disk and one
element a byte in numpy (ml_dtypes).
"""

from __future__ import annotations

import enum
from functools import cached_property

import ml_dtypes
import numpy as np

__all__ = ["DType"]


class DType(enum.Enum):
    """An element type. ``value`` is (ONNX code, IR text name, bits per element in a file)."""

    UNDEFINED = (0, "undefined", 0)
    FLOAT = (1, "f32", 32)
    UINT8 = (2, "u8", 8)
    INT8 = (3, "s8", 8)
    UINT16 = (4, "u16", 16)
    INT16 = (5, "s16", 16)
    INT32 = (6, "s32", 32)
    INT64 = (7, "s64", 64)
    STRING = (8, "str", 0)
    BOOL = (9, "bool", 8)
    FLOAT16 = (10, "f16", 16)
    DOUBLE = (11, "f64", 64)
    UINT32 = (12, "u32", 32)
    UINT64 = (13, "u64", 64)
    COMPLEX64 = (14, "c64", 64)
    COMPLEX128 = (15, "c128", 128)
    BFLOAT16 = (16, "bf16", 16)
    FLOAT8E4M3FN = (17, "f8e4m3fn", 8)
    FLOAT8E4M3FNUZ = (18, "f8e4m3fnuz", 8)
    FLOAT8E5M2 = (19, "f8e5m2", 8)
    FLOAT8E5M2FNUZ = (20, "f8e5m2fnuz", 8)
    UINT4 = (21, "u4", 4)
    INT4 = (22, "s4", 4)
    FLOAT4E2M1 = (23, "f4e2m1", 4)
    FLOAT8E8M0 = (24, "f8e8m0", 8)
    UINT2 = (25, "u2", 2)
    INT2 = (26, "s2", 2)
    FLOAT6E2M3 = (27, "f6e2m3", 6)
    FLOAT6E3M2 = (28, "f6e3m2", 6)

    __hash__ = object.__hash__  # by identity, as members are compared; Enum's own calls into Python
    # Written out, not inherited from Enum's descriptor: these are read for every value of a 100,000-node graph.
    code: int
    text: str
    bits: int

    def __init__(self, code: int, text: str, bits: int) -> None:
        self.code = code
        self.text = text
        self.bits = bits

    def __repr__(self) -> str:
        return f"DType.{self.name}"

    def __str__(self) -> str:
        return self.text

    @classmethod
    def from_code(cls, code: int) -> DType:
        """The type with this ``TensorProto.DataType`` code. Raises KeyError for a code that ONNX does not define."""
        return _BY_CODE[code]

    @classmethod
    def from_text(cls, text: str) -> DType:
        """The type with this IR text name, e.g. ``f32``. Raises KeyError."""
        return _BY_TEXT[text]

    @classmethod
    def from_numpy(cls, dtype: np.dtype | type) -> DType:
        """The type stored as this numpy dtype (any string or object dtype is STRING). Raises KeyError."""
        dtype = np.dtype(dtype)
        if dtype.kind in "OSUT":
            return cls.STRING
        return _BY_NUMPY[dtype.newbyteorder("=") if dtype.isbuiltin else dtype]

    @cached_property
    def numpy(self) -> np.dtype:
        """The numpy dtype that holds one element (strings: object). Raises KeyError for UNDEFINED."""
        return _NUMPY[self]

    @cached_property
    def is_float(self) -> bool:
        """A real floating-point type, the 4 to 8 bit ones included."""
        return self.text.startswith(("f", "bf"))

    @cached_property
    def is_integer(self) -> bool:
        """A signed or unsigned integer type (not bool)."""
        return self.text[0] in "su" and self.text[1:].isdigit()

    @cached_property
    def is_signed(self) -> bool:
        """Can hold negative numbers."""
        return (self.is_float and self is not DType.FLOAT8E8M0) or (self.is_integer and self.text[0] == "s")

    @cached_property
    def qmin(self) -> int:
        """Smallest integer. Raises TypeError for a type that is no integer."""
        if not self.is_integer:
            raise TypeError(f"{self} is no integer type")
        return -(1 << (self.bits - 1)) if self.is_signed else 0

    @cached_property
    def qmax(self) -> int:
        """Largest integer. Raises TypeError for a type that is no integer."""
        if not self.is_integer:
            raise TypeError(f"{self} is no integer type")
        return (1 << (self.bits - 1)) - 1 if self.is_signed else (1 << self.bits) - 1


_NUMPY: dict[DType, np.dtype] = {
    DType.FLOAT: np.dtype(np.float32),
    DType.UINT8: np.dtype(np.uint8),
    DType.INT8: np.dtype(np.int8),
    DType.UINT16: np.dtype(np.uint16),
    DType.INT16: np.dtype(np.int16),
    DType.INT32: np.dtype(np.int32),
    DType.INT64: np.dtype(np.int64),
    DType.STRING: np.dtype(object),
    DType.BOOL: np.dtype(np.bool_),
    DType.FLOAT16: np.dtype(np.float16),
    DType.DOUBLE: np.dtype(np.float64),
    DType.UINT32: np.dtype(np.uint32),
    DType.UINT64: np.dtype(np.uint64),
    DType.COMPLEX64: np.dtype(np.complex64),
    DType.COMPLEX128: np.dtype(np.complex128),
    DType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    DType.FLOAT8E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn),
    DType.FLOAT8E4M3FNUZ: np.dtype(ml_dtypes.float8_e4m3fnuz),
    DType.FLOAT8E5M2: np.dtype(ml_dtypes.float8_e5m2),
    DType.FLOAT8E5M2FNUZ: np.dtype(ml_dtypes.float8_e5m2fnuz),
    DType.UINT4: np.dtype(ml_dtypes.uint4),
    DType.INT4: np.dtype(ml_dtypes.int4),
    DType.FLOAT4E2M1: np.dtype(ml_dtypes.float4_e2m1fn),
    DType.FLOAT8E8M0: np.dtype(ml_dtypes.float8_e8m0fnu),
    DType.UINT2: np.dtype(ml_dtypes.uint2),
    DType.INT2: np.dtype(ml_dtypes.int2),
    DType.FLOAT6E2M3: np.dtype(ml_dtypes.float6_e2m3fn),
    DType.FLOAT6E3M2: np.dtype(ml_dtypes.float6_e3m2fn),
}
_BY_CODE = {dtype.code: dtype for dtype in DType}
_BY_TEXT = {dtype.text: dtype for dtype in DType}
_BY_NUMPY = {numpy_dtype: dtype for dtype, numpy_dtype in _NUMPY.items()}
