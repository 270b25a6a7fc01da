"""What describes values and models beside the graph: ValueInfoProto, TensorAnnotation, OperatorSetIdProto."""

from __future__ import annotations

from typing import NamedTuple

from qir.frontend.residue import make_residue, metadata_of
from qir.frontend.types import decode_type
from qir.frontend.wire import fields, read_varint
from qir.ir import Type, Value

__all__ = ["Info", "InfoReader", "annotations_of", "describe", "describes", "opsets_of"]


class Info(NamedTuple):
    """A ValueInfoProto."""

    name: bytes
    type: Type | None
    doc: str
    metadata: dict[str, str] | None
    extra: bytes | None


class InfoReader:
    """Reads ValueInfoProtos; equal types are read once and shared."""

    def __init__(self) -> None:
        self._types: dict[bytes, tuple[Type | None, bool]] = {}

    def read(self, raw: bytes) -> Info:
        """From the serialized message. Raises Damaged."""
        name = b""
        doc = ""
        type_: Type | None = None
        metadata: list[bytes] = []
        metadata_fields: list[bytes] = []
        verbatim: list[bytes] = []
        for key, head, begin, end in fields(raw, 0, len(raw)):
            if key == 0x0A and end > begin:
                name = raw[begin:end]
            elif key == 0x12:
                payload = raw[begin:end]
                known = self._types.get(payload)
                if known is None:
                    known = self._types[payload] = decode_type(payload)
                type_ = known[0]
                if not known[1]:
                    verbatim.append(raw[head:end])
            elif key == 0x1A and end > begin:
                doc = raw[begin:end].decode()
            elif key == 0x22:
                metadata.append(raw[begin:end])
                metadata_fields.append(raw[head:end])
            else:
                verbatim.append(raw[head:end])
        if not metadata and not verbatim:
            return Info(name, type_, doc, None, None)
        mapping, exact = metadata_of(metadata)
        if not exact:
            verbatim += metadata_fields
        return Info(name, type_, doc, mapping or None, make_residue(verbatim))


def describe(value: Value, info: Info) -> None:
    value._doc, value._metadata, value._extra = info.doc, info.metadata, info.extra


def describes(value: Value, info: Info) -> bool:
    """The value says all that the entry says."""
    return (value._type, value._doc, value._metadata, value._extra) == (info.type, info.doc, info.metadata, info.extra)


def annotations_of(entries: list[bytes]) -> dict[str, dict[str, str]]:
    """TensorAnnotations as a mapping: tensor name to (parameter to name of the tensor that holds it)."""
    found: dict[str, dict[str, str]] = {}
    for entry in entries:
        name = ""
        pairs: list[bytes] = []
        for key, _, begin, end in fields(entry, 0, len(entry)):
            if key == 0x0A:
                name = entry[begin:end].decode()
            elif key == 0x12:
                pairs.append(entry[begin:end])
        found[name] = metadata_of(pairs)[0]
    return found


def opsets_of(entries: list[bytes]) -> tuple[dict[str, int], bool]:
    """OperatorSetIdProtos as a mapping from domain to version, "ai.onnx" as "" unless both are there.

    Also whether the mapping, written with every domain present, says all they say.
    """
    found: list[tuple[str, int]] = []
    exact = True
    for entry in entries:
        domain, version = "", 0
        keys = []
        for key, _, begin, end in fields(entry, 0, len(entry)):
            keys.append(key)
            if key == 0x0A:
                domain = entry[begin:end].decode()
            elif key == 0x10:
                version = read_varint(entry, begin)[0]
        exact = exact and sorted(keys) == [0x0A, 0x10]
        found.append((domain, version))
    domains = [domain for domain, _ in found]
    exact = exact and len(set(domains)) == len(domains) and "ai.onnx" not in domains
    if "" not in domains:
        found = [("" if domain == "ai.onnx" else domain, version) for domain, version in found]
    return dict(found), exact
