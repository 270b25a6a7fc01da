"""Writing what an object's ``extra`` keeps (see qir.frontend.residue)."""

from __future__ import annotations

from collections.abc import Mapping

from qir.codegen.wire import bytes_field
from qir.frontend.residue import metadata_of, take

__all__ = ["metadata_fields"]


def metadata_fields(number: int, extra: bytes | None, metadata: Mapping[str, str] | None) -> tuple[bytes, bytes]:
    """(residue without metadata, metadata entries as fields of that number).

    Entries in the residue say exactly how the file spelled the mapping; they are used while they still mean the same.
    """
    verbatim: list[bytes] = []
    if extra:
        key = number << 3 | 2
        verbatim, extra = take(extra, key)
    if verbatim and metadata_of(verbatim)[0] == (metadata or {}):
        return extra or b"", b"".join([bytes_field(number, entry) for entry in verbatim])
    if not metadata:
        return extra or b"", b""
    entries = [
        bytes_field(number, bytes_field(1, key.encode()) + bytes_field(2, value.encode()))
        for key, value in metadata.items()
    ]
    return extra or b"", b"".join(entries)
