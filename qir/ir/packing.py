"""Sub-byte elements: one a byte in numpy, packed little end first in files (onnx.proto, TensorProto.raw_data)."""

from __future__ import annotations

import numpy as np

from qir.ir.dtypes import DType

__all__ = ["pack", "packed_size", "unpack"]


def packed_size(dtype: DType, count: int) -> int:
    """Bytes that ``count`` elements take in a file."""
    return (count * dtype.bits + 7) // 8


def pack(array: np.ndarray, dtype: DType) -> np.ndarray:
    """The elements of ``array`` (any shape, dtype of ``dtype.numpy``) as a packed uint8 vector."""
    codes = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if dtype.bits == 4:
        if len(codes) % 2:
            codes = np.append(codes, np.uint8(0))
        return (codes[0::2] & 0xF) | ((codes[1::2] & 0xF) << 4)
    bits = np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, : dtype.bits]
    return np.packbits(bits.reshape(-1), bitorder="little")


def unpack(packed: np.ndarray, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of ``pack``: ``packed`` is a uint8 vector of at least ``packed_size`` bytes."""
    count = int(np.prod(shape, dtype=np.int64))
    if dtype.bits == 4:
        codes = np.empty(2 * len(packed), np.uint8)
        codes[0::2] = packed & 0xF
        codes[1::2] = packed >> 4
        codes = codes[:count]
    else:
        bits = np.unpackbits(packed, bitorder="little")[: count * dtype.bits].reshape(count, dtype.bits)
        codes = np.packbits(bits, axis=1, bitorder="little").reshape(count)
    if dtype.is_integer and dtype.is_signed:
        sign = np.uint8(1 << (dtype.bits - 1))
        signed = (codes ^ sign).astype(np.int16) - sign
        return signed.astype(dtype.numpy).reshape(shape)
    return codes.view(dtype.numpy).reshape(shape)
