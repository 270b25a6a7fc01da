"""Attributes of nodes: a kind, a Python value, and what else an AttributeProto may carry."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qir.ir.tensor import SparseTensor, Tensor
from qir.ir.types import MapType, OpaqueType, OptionalType, SequenceType, SparseTensorType, TensorType

if TYPE_CHECKING:
    from qir.ir.graph import Graph

__all__ = ["AttrKind", "Attribute"]


class AttrKind(enum.IntEnum):
    """Kinds of attribute values; the numbers are those of ``AttributeProto.AttributeType``."""

    UNDEFINED = 0
    FLOAT = 1
    INT = 2
    STRING = 3
    TENSOR = 4
    GRAPH = 5
    FLOATS = 6
    INTS = 7
    STRINGS = 8
    TENSORS = 9
    GRAPHS = 10
    SPARSE_TENSOR = 11
    SPARSE_TENSORS = 12
    TYPE = 13
    TYPES = 14

    @property
    def is_list(self) -> bool:
        return self in _LISTS


_LISTS = frozenset(
    {AttrKind.FLOATS, AttrKind.INTS, AttrKind.STRINGS, AttrKind.TENSORS, AttrKind.GRAPHS}
    | {AttrKind.SPARSE_TENSORS, AttrKind.TYPES}
)
_TYPES = (TensorType, SparseTensorType, SequenceType, OptionalType, MapType, OpaqueType)


@dataclass(frozen=True, slots=True, eq=False)
class Attribute:
    """An immutable named value.

    ``value`` is float, int, bytes (STRING), Tensor, Graph, SparseTensor or Type by kind; a tuple of those for the list
    kinds; None where ``ref`` names an attribute of the enclosing function instead.
    """

    name: str
    kind: AttrKind
    value: Any
    ref: str = ""
    doc: str = ""
    extra: bytes | None = None

    @classmethod
    def of(cls, name: str, value: Any) -> Attribute:
        """An attribute of the kind that fits a Python value.

        Raises TypeError for a value of no kind, and for an empty list, whose kind only its user knows.
        """
        from qir.ir.graph import Graph

        match value:
            case Attribute():
                return value
            case tuple() | list() if {*map(type, value)} == {int}:
                return cls(name, AttrKind.INTS, tuple(value))
            case bool() | int() | np.integer():
                return cls(name, AttrKind.INT, int(value))
            case float() | np.floating():
                return cls(name, AttrKind.FLOAT, float(np.float32(value)))
            case str():
                return cls(name, AttrKind.STRING, value.encode())
            case bytes():
                return cls(name, AttrKind.STRING, value)
            case Tensor():
                return cls(name, AttrKind.TENSOR, value)
            case np.ndarray():
                return cls(name, AttrKind.TENSOR, Tensor.of(value))
            case SparseTensor():
                return cls(name, AttrKind.SPARSE_TENSOR, value)
            case Graph():
                return cls(name, AttrKind.GRAPH, value)
            case _ if isinstance(value, _TYPES):
                return cls(name, AttrKind.TYPE, value)
            case Sequence() if len(value):
                items = [cls.of(name, item) for item in value]
                kinds = {item.kind for item in items}
                if kinds == {AttrKind.INT, AttrKind.FLOAT}:
                    return cls(name, AttrKind.FLOATS, tuple(float(np.float32(v)) for v in value))
                if len(kinds) == 1 and (kind := _LIST_OF.get(items[0].kind)) is not None:
                    return cls(name, kind, tuple(item.value for item in items))
        raise TypeError(f"attribute {name!r}: no attribute kind holds {value!r}")

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """The graphs inside."""
        if self.kind is AttrKind.GRAPH and self.value is not None:
            return (self.value,)
        return self.value if self.kind is AttrKind.GRAPHS and self.value is not None else ()

    @property
    def python(self) -> Any:
        """The value with strings decoded (bytes that are no UTF-8 stay bytes) and tuples as they are."""
        if self.kind is AttrKind.STRING and self.value is not None:
            return _decode(self.value)
        if self.kind is AttrKind.STRINGS and self.value is not None:
            return tuple(map(_decode, self.value))
        return self.value

    def same(self, other: Attribute) -> bool:
        """Equal name, kind, reference and value; tensors by content. Graphs are equal only to themselves."""
        if (self.name, self.kind, self.ref) != (other.name, other.kind, other.ref):
            return False
        a, b = (self.value, other.value) if self.kind.is_list else ((self.value,), (other.value,))
        if a is None or b is None:
            return a is b
        return len(a) == len(b) and all(map(_same_value, a, b))


_LIST_OF = {
    AttrKind.FLOAT: AttrKind.FLOATS,
    AttrKind.INT: AttrKind.INTS,
    AttrKind.STRING: AttrKind.STRINGS,
    AttrKind.TENSOR: AttrKind.TENSORS,
    AttrKind.GRAPH: AttrKind.GRAPHS,
    AttrKind.SPARSE_TENSOR: AttrKind.SPARSE_TENSORS,
    AttrKind.TYPE: AttrKind.TYPES,
}


def _decode(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _same_value(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.same_content(b)
    if isinstance(a, SparseTensor) and isinstance(b, SparseTensor):
        return a.shape == b.shape and a.values.same_content(b.values) and a.indices.same_content(b.indices)
    if isinstance(a, float) and isinstance(b, float):
        return np.float64(a).tobytes() == np.float64(b).tobytes()
    return a is b or bool(a == b)
