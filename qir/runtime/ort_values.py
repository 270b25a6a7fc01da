"""Arrays of the element types that onnxruntime's numpy bridge lacks (bfloat16, fp8, 4 and 2 bits): moved byte by byte.

`InferenceSession.run` refuses bfloat16 and the packed types, and hands float8e4m3fn out as bare uint8 (seen on 1.31.1).
An OrtValue carries all of them, so their memory is copied and read as ml_dtypes here.
"""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort

from qir.errors import UnsupportedError
from qir.runtime.specs import DTYPES, PACKED_BITS

# onnx.proto TensorProto.DataType codes of the types that need this module.
_CODES = {
    "bfloat16": 16,
    "float8e4m3fn": 17,
    "float8e4m3fnuz": 18,
    "float8e5m2": 19,
    "float8e5m2fnuz": 20,
    "uint4": 21,
    "int4": 22,
    "float4e2m1": 23,
    "float8e8m0": 24,
    "uint2": 25,
    "int2": 26,
}
CODES = {DTYPES[name]: code for name, code in _CODES.items()}


def is_exotic(dtype: np.dtype[Any] | None) -> bool:
    """Whether arrays of this type have to travel as OrtValues."""
    return dtype in CODES


def pack(array: np.ndarray) -> np.ndarray:
    """The bytes of a sub-byte array as ONNX stores them: first element in the lowest bits, last byte padded with 0."""
    bits = PACKED_BITS[array.dtype]
    per_byte = 8 // bits
    codes = np.ascontiguousarray(array).reshape(-1).view(np.uint8) & np.uint8((1 << bits) - 1)
    padded = np.zeros(-(-codes.size // per_byte) * per_byte, np.uint8)
    padded[: codes.size] = codes
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    packed: np.ndarray = np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shifts, axis=1)
    return packed


def unpack(raw: np.ndarray, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `pack`."""
    bits = PACKED_BITS[dtype]
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    count = int(np.prod(shape, dtype=np.int64))
    codes = ((raw[:, None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(-1)[:count]
    if dtype in (np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.int2)):  # ml_dtypes keeps signed values sign-extended
        sign = np.uint8(1 << (bits - 1))
        codes = (codes ^ sign) - sign
    values: np.ndarray = codes.view(dtype).reshape(shape)
    return values


def to_ort(name: str, array: object) -> ort.OrtValue:
    """An OrtValue for any array but one of strings. Raises UnsupportedError for those and for lists."""
    if not isinstance(array, np.ndarray) or array.dtype == np.object_ or array.dtype.kind in "US":
        raise UnsupportedError(
            f"input '{name}': onnxruntime cannot take strings or sequences beside bfloat16, fp8 or packed tensors"
        )
    code = CODES.get(array.dtype)
    if code is None:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    raw = pack(array) if array.dtype in PACKED_BITS else np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), code)
    ctypes.memmove(value.data_ptr(), raw.ctypes.data, raw.size)
    return value


def from_ort(name: str, value: ort.OrtValue) -> np.ndarray | None:
    """The array in an OrtValue, None for an empty optional. Raises UnsupportedError for sequences and maps."""
    if not value.has_value():
        return None
    if not value.is_tensor():
        raise UnsupportedError(
            f"output '{name}': onnxruntime cannot hand out a {value.data_type()} together with bfloat16, fp8 or packed "
            "tensors; ask for it in a run of its own"
        )
    dtype = DTYPES[value.data_type().removeprefix("tensor(").removesuffix(")")]
    if dtype not in CODES:
        plain: np.ndarray = value.numpy()
        return plain
    size, shape = value.tensor_size_in_bytes(), tuple(value.shape())
    raw = np.empty(size, np.uint8)
    ctypes.memmove(raw.ctypes.data, value.data_ptr(), size)
    return unpack(raw, dtype, shape) if dtype in PACKED_BITS else raw.view(dtype).reshape(shape)
