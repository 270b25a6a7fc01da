"""What a message holds beside the fields that the IR models, kept as bytes in an object's ``extra``.

The bytes are fields in wire format, copied as they stood: unknown ones, known ones without a place in the IR, fields
that are present but empty, and lists whose exact form the IR cannot say (duplicate metadata keys). The exporter writes
them first, so that what the IR knows overrides them. Fields that are absent although the exporter would write them are
listed in a prefix: a zero byte (no field starts with one), their count, their numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from qir.frontend.wire import fields

__all__ = ["absent_fields", "make_residue", "metadata_of", "take"]


def make_residue(verbatim: Iterable[bytes], absent: Collection[int] = ()) -> bytes | None:
    """The residue of these fields (key and length included), where fields of the numbers ``absent`` are missing."""
    rest = b"".join(verbatim)
    prefix = bytes((0, len(absent), *sorted(absent))) if absent else b""
    return prefix + rest or None


def absent_fields(extra: bytes) -> tuple[frozenset[int], bytes]:
    """Numbers of the fields that must not be written, and the rest of the residue."""
    if not extra.startswith(b"\0"):
        return frozenset(), extra
    return frozenset(extra[2 : 2 + extra[1]]), extra[2 + extra[1] :]


def take(rest: bytes, key: int) -> tuple[list[bytes], bytes]:
    """The payloads of the fields of one key, and the residue without them."""
    taken, kept = [], []
    for found, head, begin, end in fields(rest, 0, len(rest)):
        if found == key:
            taken.append(rest[begin:end])
        else:
            kept.append(rest[head:end])
    return taken, b"".join(kept)


def metadata_of(entries: Iterable[bytes]) -> tuple[dict[str, str], bool]:
    """StringStringEntryProtos as a mapping (the last of equal keys counts), and whether that says all they say."""
    mapping: dict[str, str] = {}
    exact = True
    for entry in entries:
        found: dict[int, str] = {}
        for key, _, begin, end in fields(entry, 0, len(entry)):
            exact = exact and key in (0x0A, 0x12) and key not in found
            if key & 7 == 2:
                found[key] = entry[begin:end].decode()
        name = found.get(0x0A, "")
        exact = exact and len(found) == 2 and name not in mapping
        mapping[name] = found.get(0x12, "")
    return mapping, exact
