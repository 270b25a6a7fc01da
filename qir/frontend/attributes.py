"""AttributeProto to IR attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnx import TypeProto

from qir.errors import ModelError
from qir.frontend.external import ExternalFiles
from qir.frontend.residue import make_residue
from qir.frontend.tensors import Span, read_sparse_tensor, read_tensor
from qir.frontend.types import read_type
from qir.frontend.wire import Buffer, Damaged, Field, fields, floats, read_varint, signed, varints
from qir.ir import Attribute, AttrKind, Graph

__all__ = ["VALUE_FIELDS", "read_attribute"]

VALUE_FIELDS = {
    AttrKind.FLOAT: 2,
    AttrKind.INT: 3,
    AttrKind.STRING: 4,
    AttrKind.TENSOR: 5,
    AttrKind.GRAPH: 6,
    AttrKind.FLOATS: 7,
    AttrKind.INTS: 8,
    AttrKind.STRINGS: 9,
    AttrKind.TENSORS: 10,
    AttrKind.GRAPHS: 11,
    AttrKind.TYPE: 14,
    AttrKind.TYPES: 15,
    AttrKind.SPARSE_TENSOR: 22,
    AttrKind.SPARSE_TENSORS: 23,
}
"""The number of the field of AttributeProto that holds the value."""

_KIND_OF_FIELD = {number: kind for kind, number in VALUE_FIELDS.items()}
_DEFAULTS = {AttrKind.FLOAT: 0.0, AttrKind.INT: 0, AttrKind.STRING: b""}
_TYPE_FIELD = 20


def read_attribute(
    buffer: Buffer, span: Span, external: ExternalFiles, read_body: Callable[[Buffer, Span], Graph]
) -> Attribute:
    """The attribute; graphs inside are read by ``read_body``.

    Files of the first ONNX versions give no kind; it is then told by the field that has a value. Raises ModelError,
    Damaged.
    """
    name = doc = ref = ""
    kind = AttrKind.UNDEFINED
    absent = {_TYPE_FIELD}
    values: dict[int, list[Field]] = {}
    verbatim: list[bytes] = []
    for field in fields(buffer, *span):
        key, head, begin, end = field
        match key:
            case 0x0A:
                name = buffer[begin:end].decode()
            case 0xA0:
                code = read_varint(buffer, begin)[0]
                if code not in AttrKind._value2member_map_:
                    raise ModelError(f"attribute {name!r} is of the unknown kind {code}: it needs a newer qir")
                kind = AttrKind(code)
                if kind:
                    absent.discard(_TYPE_FIELD)
                else:
                    verbatim.append(buffer[head:end])
            case 0xAA if end > begin:
                ref = buffer[begin:end].decode()
            case 0x6A if end > begin:
                doc = buffer[begin:end].decode()
            case _ if key >> 3 in _KIND_OF_FIELD:
                values.setdefault(key >> 3, []).append(field)
            case _:
                verbatim.append(buffer[head:end])
    if not kind and values:
        kind = _KIND_OF_FIELD[next(iter(values))]
    elif not kind:
        absent.discard(_TYPE_FIELD)
    mine = [] if ref or not kind else values.pop(VALUE_FIELDS[kind], [])
    verbatim += [buffer[head:end] for others in values.values() for _, head, _, end in others]
    value: Any
    if ref or not kind:
        value = None
    elif kind.is_list:
        value = tuple(item for field in mine for item in _items(buffer, field, kind, external, read_body))
    elif mine:
        (value,) = _items(buffer, mine[-1], kind, external, read_body)
    else:
        value = _DEFAULTS.get(kind)
        absent.add(VALUE_FIELDS[kind])
    return Attribute(name, kind, value, ref, doc, make_residue(verbatim, absent))


def _items(
    buffer: Buffer, field: Field, kind: AttrKind, external: ExternalFiles, read_body: Callable[[Buffer, Span], Graph]
) -> tuple[Any, ...]:
    """The values that one field holds: many where numbers are packed."""
    _, _, begin, end = field
    match kind:
        case AttrKind.INT:
            return (signed(read_varint(buffer, begin)[0]),)
        case AttrKind.INTS:
            return tuple(varints(buffer, field))
        case AttrKind.FLOAT | AttrKind.FLOATS:
            return floats(buffer, field)
        case AttrKind.STRING | AttrKind.STRINGS:
            return (buffer[begin:end],)
        case AttrKind.TENSOR | AttrKind.TENSORS:
            return (read_tensor(buffer, Span(begin, end), external),)
        case AttrKind.SPARSE_TENSOR | AttrKind.SPARSE_TENSORS:
            return (read_sparse_tensor(buffer, Span(begin, end), external),)
        case AttrKind.GRAPH | AttrKind.GRAPHS:
            return (read_body(buffer, Span(begin, end)),)
        case AttrKind.TYPE | AttrKind.TYPES:
            type_ = read_type(TypeProto.FromString(buffer[begin:end]))
            if type_ is None:
                raise ModelError("an attribute holds a type without content: the model is damaged, export it again")
            return (type_,)
    raise Damaged
