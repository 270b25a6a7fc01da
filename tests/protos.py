"""Comparing ModelProtos field by field, presence included, except for the storage form of tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

_STORAGE = frozenset(
    {"float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data", "raw_data"}
    | {"external_data", "data_location"}
)


def difference(a: Message, b: Message, path: str = "") -> str | None:
    """The first place where two messages differ, None where they are equal."""
    if isinstance(a, onnx.TensorProto) and isinstance(b, onnx.TensorProto):
        return _tensor_difference(a, b, path)
    return _field_difference(a, b, path, frozenset())


def stored_alike(a: onnx.ModelProto, b: onnx.ModelProto) -> bool:
    """Equal, the storage form of tensors included."""
    return bool(a == b)


def _field_difference(a: Message, b: Message, path: str, skip: frozenset[str]) -> str | None:
    ours = {field.name: value for field, value in a.ListFields() if field.name not in skip}
    theirs = {field.name: value for field, value in b.ListFields() if field.name not in skip}
    for name in sorted(ours.keys() ^ theirs.keys()):
        return f"{path}.{name}: only in the {'first' if name in ours else 'second'}"
    for name, value in ours.items():
        if found := _value_difference(value, theirs[name], f"{path}.{name}"):
            return found
    if (first := _unknown(UnknownFieldSet(a))) != (second := _unknown(UnknownFieldSet(b))):
        return f"{path}: unknown fields {first} and {second}"
    return None


def _unknown(fields: Any) -> list[Any]:
    """Unknown fields as comparable data; groups (wire type 3) nest."""
    return [(f.field_number, f.wire_type, _unknown(f.data) if f.wire_type == 3 else f.data) for f in fields]


def _value_difference(a: Any, b: Any, path: str) -> str | None:
    if isinstance(a, Message):
        return difference(a, b, path)
    if hasattr(a, "MergeFrom"):  # a repeated field
        if len(a) != len(b):
            return f"{path}: {len(a)} and {len(b)} entries"
        if a and not isinstance(a[0], Message):
            return None if np.array_equal(np.asarray(a), np.asarray(b)) or _bits(a) == _bits(b) else f"{path}: differ"
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            if found := difference(one, other, f"{path}[{index}]"):
                return found
        return None
    return None if a == b or (a != a and b != b) else f"{path}: {a!r} and {b!r}"


def _bits(values: Any) -> list[Any]:
    return [np.float32(v).tobytes() if isinstance(v, float) else v for v in values]


def _tensor_difference(a: onnx.TensorProto, b: onnx.TensorProto, path: str) -> str | None:
    if found := _field_difference(a, b, path, _STORAGE):
        return found
    if a.data_type == onnx.TensorProto.UNDEFINED:
        return None
    if a.data_type == onnx.TensorProto.STRING:
        return None if list(a.string_data) == list(b.string_data) else f"{path}: strings differ"
    one, other = (onnx.numpy_helper.to_array(_with_data(t)) for t in (a, b))
    same = one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    return None if same else f"{path}: data of {a.name!r} differs"


def _with_data(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """onnx reads no tensor with a segment; the data is the same without."""
    if tensor.HasField("segment"):
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        copy.ClearField("segment")
        return copy
    return tensor
