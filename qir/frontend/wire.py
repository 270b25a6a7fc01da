"""Reading protobuf's wire format: the fields of one message as places in a buffer.

A field is a key (``number << 3 | wire type``, a varint) and a payload (protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

__all__ = ["Damaged", "Field", "fields", "floats", "read_varint", "signed", "varints"]

Buffer = bytes | mmap.mmap


class Damaged(Exception):
    """The bytes are no message."""


Field = tuple[int, int, int, int]
"""(key, head, begin, end): the field starts at ``head``, its payload is ``begin`` to ``end`` without the length prefix.

A plain tuple: millions are made while a large model loads.
"""


def read_varint(buffer: Buffer, at: int) -> tuple[int, int]:
    """The unsigned number at a place, and where the next thing starts. Raises IndexError at the end, Damaged."""
    byte = buffer[at]
    if byte < 0x80:
        return byte, at + 1
    result = byte & 0x7F
    shift = 7
    while True:
        at += 1
        byte = buffer[at]
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFFFFFFFFFFFFFF, at + 1
        shift += 7
        if shift > 63:
            raise Damaged


def signed(number: int) -> int:
    """A varint as the signed 64-bit number of an int32 or int64 field."""
    return number - (1 << 64) if number >= 1 << 63 else number


def fields(buffer: Buffer, begin: int, end: int) -> Iterator[Field]:
    """The fields of the message that stands there. Raises Damaged."""
    at = begin
    try:
        while at < end:
            head = at
            key = buffer[at]
            at += 1
            if key >= 0x80:
                key, at = read_varint(buffer, head)
            kind = key & 7
            if kind == 2:
                size = buffer[at]
                at += 1
                if size >= 0x80:
                    size, at = read_varint(buffer, at - 1)
                start, at = at, at + size
            else:
                start, at = at, _skip(buffer, key, at)
            if at > end or key < 8:
                raise Damaged
            yield key, head, start, at
    except IndexError:
        raise Damaged from None


def _skip(buffer: Buffer, key: int, at: int) -> int:
    """Where the payload of a field other than bytes ends."""
    match key & 7:
        case 0:
            return read_varint(buffer, at)[1]
        case 1:
            return at + 8
        case 5:
            return at + 4
        case 3:
            while True:
                inner, at = read_varint(buffer, at)
                if inner == (key & ~7) | 4:
                    return at
                if inner & 7 == 2:
                    size, at = read_varint(buffer, at)
                    at += size
                else:
                    at = _skip(buffer, inner, at)
    raise Damaged


def varints(buffer: Buffer, field: Field) -> list[int]:
    """The signed numbers of a repeated integer field: one, or packed many."""
    _, _, at, end = field
    numbers = []
    while at < end:
        number, at = read_varint(buffer, at)
        numbers.append(signed(number))
    if at != end:
        raise Damaged
    return numbers


def floats(buffer: Buffer, field: Field) -> tuple[float, ...]:
    """The float32 numbers of a repeated float field: one, or packed many."""
    _, _, begin, end = field
    if (end - begin) % 4:
        raise Damaged
    return struct.unpack(f"<{(end - begin) // 4}f", buffer[begin:end])
