"""IR attributes to AttributeProtos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qir.codegen.tensors import sparse_tensor_message, tensor_message
from qir.codegen.wire import bytes_field, floats_field, ints_field, text_field, varint_field
from qir.frontend.attributes import VALUE_FIELDS
from qir.frontend.residue import absent_fields
from qir.frontend.types import encode_type
from qir.ir import Attribute, AttrKind, Graph

__all__ = ["attribute_bytes"]


def attribute_bytes(attribute: Attribute, body_bytes: Callable[[Graph], bytes]) -> bytes:
    """The serialized AttributeProto; ``body_bytes`` serializes graphs inside."""
    absent: frozenset[int] = frozenset()
    rest = b""
    if attribute.extra is not None:
        absent, rest = absent_fields(attribute.extra)
    kind = attribute.kind
    parts = [rest, text_field(1, attribute.name)]
    if attribute.value is not None and kind is not AttrKind.UNDEFINED:
        number = VALUE_FIELDS[kind]
        if number not in absent or attribute.value not in (0, 0.0, b""):
            parts.append(_value(number, kind, attribute.value, body_bytes))
    parts.append(text_field(13, attribute.doc))
    if kind is not AttrKind.UNDEFINED and 20 not in absent:
        parts.append(varint_field(20, kind))
    parts.append(text_field(21, attribute.ref))
    return b"".join(parts)


def _value(number: int, kind: AttrKind, value: Any, body_bytes: Callable[[Graph], bytes]) -> bytes:
    items = value if kind.is_list else (value,)
    match kind:
        case AttrKind.INT | AttrKind.INTS:
            return ints_field(number, items)
        case AttrKind.FLOAT | AttrKind.FLOATS:
            return floats_field(number, items)
        case AttrKind.STRING | AttrKind.STRINGS:
            payloads = items
        case AttrKind.TENSOR | AttrKind.TENSORS:
            payloads = [tensor_message(item, item.name).to_bytes() for item in items]
        case AttrKind.SPARSE_TENSOR | AttrKind.SPARSE_TENSORS:
            payloads = [sparse_tensor_message(item).to_bytes() for item in items]
        case AttrKind.GRAPH | AttrKind.GRAPHS:
            payloads = [body_bytes(item) for item in items]
        case _:
            payloads = [encode_type(item) for item in items]
    return b"".join([bytes_field(number, payload) for payload in payloads])
