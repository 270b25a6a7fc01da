"""Writing protobuf's wire format (see qir.frontend.wire): fields as bytes, messages as pieces of known length.

A piece that is a Tensor stands for its packed data, which is fetched when the piece is written; so a model is written
without a copy of its weights in memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from qir.ir import Tensor

__all__ = ["Message", "bytes_field", "data_of", "floats_field", "ints_field", "text_field", "varint", "varint_field"]

_SMALL = [bytes((number,)) for number in range(128)]


def varint(number: int) -> bytes:
    """An int32 or int64 (negative numbers take ten bytes) or an unsigned number."""
    if 0 <= number < 128:
        return _SMALL[number]
    number &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def bytes_field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def text_field(number: int, text: str) -> bytes:
    """Empty where the text is: absent and empty are told apart by the residue."""
    return bytes_field(number, text.encode()) if text else b""


def varint_field(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def ints_field(number: int, values: tuple[int, ...]) -> bytes:
    """Repeated, not packed, as onnx.proto declares ``AttributeProto.ints`` and ``TensorProto.dims``."""
    key = varint(number << 3)
    return b"".join([key + varint(value) for value in values])


def floats_field(number: int, values: tuple[float, ...]) -> bytes:
    """Repeated, not packed, as onnx.proto declares ``AttributeProto.floats``."""
    key = varint(number << 3 | 5)
    return b"".join([key + struct.pack("<f", value) for value in values])


def data_of(tensor: Tensor) -> memoryview:
    """The packed data; of a mapped file without a copy."""
    return np.ascontiguousarray(tensor.packed()).data


class Message:
    """A message in the making: pieces and their total length in bytes."""

    __slots__ = ("pieces", "size")

    def __init__(self) -> None:
        self.pieces: list[bytes | Tensor] = []
        self.size = 0

    def add(self, piece: bytes) -> None:
        if piece:
            self.pieces.append(piece)
            self.size += len(piece)

    def add_data(self, tensor: Tensor) -> None:
        self.pieces.append(tensor)
        self.size += tensor.nbytes

    def add_message(self, number: int, message: Message) -> None:
        self.add(varint(number << 3 | 2) + varint(message.size))
        self.pieces += message.pieces
        self.size += message.size

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes in order; weights as views of what they are mapped from, fetched one after another."""
        pending: list[bytes] = []
        for piece in self.pieces:
            if isinstance(piece, bytes):
                pending.append(piece)
            else:
                yield b"".join(pending)
                pending = []
                yield data_of(piece)
        yield b"".join(pending)

    def to_bytes(self) -> bytes:
        return b"".join(self.chunks())
