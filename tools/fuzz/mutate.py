"""Mutations of bytes, of text and of protobuf messages, all drawn from one seeded generator."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

__all__ = ["mutate_bytes", "mutate_message", "mutate_text"]

_NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 65535, 1 << 31, (1 << 31) - 1, 1 << 40, (1 << 63) - 1, -(1 << 63), 10**12)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"))
_WORDS = (
    "",
    "x",
    "\0",
    "é",
    "../x",
    "/etc/passwd",
    "a" * 300,
    "Conv",
    "Loop",
    "If",
    "Constant",
    "%",
    "\n",
    '"',
    "{",
    "}",
)
_TEXT_PIECES = (
    *_WORDS,
    *(
        "(",
        ")",
        "[",
        "]",
        ",",
        ":",
        "=",
        "@",
        "->",
        "f32",
        "f32[",
        "u8(0.1, 3)",
        "#",
        "-1",
        "1e999",
        "nan",
        "99999999999999",
    ),
    *("{a=1}", "{}", "true", "'", "\t", "\r", "\u2028", "func", "graph", "0x", "[[", "]]", "..."),
)


def mutate_bytes(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A few random edits: flips, cuts, repeats, splices with another input, lengths that lie."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(result) + 1)
        match rng.randrange(7):
            case 0 if at < len(result):
                result[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(result):
                result[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del result[at : at + rng.choice((1, 2, 8, 64, 4096))]
            case 3:
                result[at:at] = result[at : at + rng.choice((1, 4, 32, 256))] * rng.choice((1, 2, 8))
            case 4:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                result[at:at] = other[start : start + rng.choice((4, 16, 128, 1024))]
            case 5:
                result[at:at] = rng.randbytes(rng.choice((1, 3, 9)))
            case 6:
                result[at : at + 1] = b"\xff" * rng.randrange(1, 10) + b"\x01"  # a varint, long or huge
    return bytes(result)


def mutate_text(rng: random.Random, text: str, others: Sequence[str]) -> str:
    """A few random edits with pieces that mean something to our grammars."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, span = rng.randrange(len(text) + 1), rng.choice((0, 1, 2, 8, 40))
        match rng.randrange(5):
            case 0:
                text = text[:at] + text[at + span :]
            case 1:
                text = text[:at] + rng.choice(_TEXT_PIECES) + text[at + span :]
            case 2:
                text = text[:at] + text[at : at + span] * rng.choice((2, 3, 50)) + text[at + span :]
            case 3:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                text = text[:at] + other[start : start + rng.choice((3, 20, 200))] + text[at:]
            case 4:
                text = text[:at] + rng.choice("([{") * rng.choice((1, 5, 3000)) + text[at:]
    return text


def mutate_message(rng: random.Random, message: Message, others: Sequence[Message]) -> None:
    """Edit a message in place, keeping it well-formed protobuf: what remains wrong is what it says."""
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        _mutate_one(rng, _some_part(rng, message), others)


def _some_part(rng: random.Random, message: Message) -> Message:
    """A message inside of this one, deeper ones as likely as outer ones."""
    while True:
        parts = [
            part
            for field, value in message.ListFields()
            if field.message_type is not None
            for part in (value if field.is_repeated else [value])
        ]
        if not parts or rng.random() < 0.15:
            return message
        message = rng.choice(parts)


def _mutate_one(rng: random.Random, part: Message, others: Sequence[Message]) -> None:
    fields = part.DESCRIPTOR.fields
    present = [field for field, _ in part.ListFields()]
    field = rng.choice(present) if present and rng.random() < 0.8 else rng.choice(fields)
    if rng.random() < 0.15:
        part.ClearField(field.name)
        return
    if field.is_repeated:
        _mutate_list(rng, part, field, others)
    elif field.message_type is not None:
        donor = _same_kind(rng, field, others)
        if donor is not None:
            getattr(part, field.name).CopyFrom(donor)
        else:
            getattr(part, field.name).SetInParent()
    else:
        setattr(part, field.name, _scalar(rng, field, getattr(part, field.name)))


def _mutate_list(rng: random.Random, part: Message, field: FieldDescriptor, others: Sequence[Message]) -> None:
    items: Any = getattr(part, field.name)
    at = rng.randrange(len(items)) if items else 0
    match rng.randrange(4):
        case 0 if items:
            del items[at]
        case 1 if items:
            if field.message_type is None:
                items.append(items[at])
            else:
                items.add().CopyFrom(items[at])
        case 2 if field.message_type is not None:
            donor = _same_kind(rng, field, others)
            if donor is not None:
                items.add().CopyFrom(donor)
        case _ if field.message_type is None:
            if items and rng.random() < 0.7:
                items[at] = _scalar(rng, field, items[at])
            else:
                items.append(_scalar(rng, field, None))


def _same_kind(rng: random.Random, field: FieldDescriptor, others: Sequence[Message]) -> Message | None:
    for _ in range(8):
        found = _some_part(rng, rng.choice(others))
        if found.DESCRIPTOR is field.message_type:
            return found
    return None


def _scalar(rng: random.Random, field: FieldDescriptor, old: Any) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return mutate_bytes(rng, old or b"", [b"0123456789abcdef"])
        return rng.choice((*_WORDS, (old or "")[:-1], (old or "") + "_"))
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice(_FLOATS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return not old
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice([value.number for value in field.enum_type.values])
    bits = 32 if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 64
    signed = kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
    number = rng.choice((*_NUMBERS, rng.randrange(-2, 40), (old or 0) + rng.choice((-1, 1))))
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return min(max(number, low), high)
