"""The types of values: tensors with partly known shapes, and ONNX's containers of them."""

from __future__ import annotations

from dataclasses import dataclass

from qir.ir.dtypes import DType

__all__ = [
    "Dim",
    "MapType",
    "OpaqueType",
    "OptionalType",
    "SequenceType",
    "Shape",
    "SparseTensorType",
    "TensorType",
    "Type",
    "format_type",
]

Dim = int | str | None
"""One axis: its size, the name of a symbol shared within the model, or None where nothing is known."""

Shape = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class TensorType:
    """A dense tensor. ``shape`` is None where not even the rank is known.

    ``denotation`` and ``dim_denotations`` are ONNX's free-text meanings (docs/DimensionDenotation.md); the latter is
    empty or has one text an axis.
    """

    dtype: DType
    shape: Shape | None = None
    denotation: str = ""
    dim_denotations: tuple[str, ...] = ()

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    @property
    def is_static(self) -> bool:
        """Every axis has a known size."""
        return self.shape is not None and all(isinstance(d, int) for d in self.shape)

    @property
    def static_shape(self) -> tuple[int, ...] | None:
        """The shape where every axis has a known size, else None."""
        if self.shape is None:
            return None
        dims = tuple(d for d in self.shape if isinstance(d, int))
        return dims if len(dims) == len(self.shape) else None


@dataclass(frozen=True, slots=True)
class SparseTensorType:
    """A sparse tensor of this dense shape."""

    dtype: DType
    shape: Shape | None = None
    denotation: str = ""
    dim_denotations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceType:
    element: Type | None = None
    denotation: str = ""


@dataclass(frozen=True, slots=True)
class OptionalType:
    element: Type | None = None
    denotation: str = ""


@dataclass(frozen=True, slots=True)
class MapType:
    key: DType = DType.UNDEFINED
    value: Type | None = None
    denotation: str = ""


@dataclass(frozen=True, slots=True)
class OpaqueType:
    domain: str = ""
    name: str = ""
    denotation: str = ""


Type = TensorType | SparseTensorType | SequenceType | OptionalType | MapType | OpaqueType


def format_dim(dim: Dim) -> str:
    return "?" if dim is None else str(dim)


def format_type(type_: Type | None) -> str:
    """A type for messages: ``f32[N,3,224,224]``, ``seq(f32[*])``; ``?`` where there is none."""
    match type_:
        case None:
            return "?"
        case TensorType() | SparseTensorType():
            prefix = "sparse " if isinstance(type_, SparseTensorType) else ""
            dims = "*" if type_.shape is None else ",".join(map(format_dim, type_.shape))
            return f"{prefix}{type_.dtype}[{dims}]"
        case SequenceType():
            return f"seq({format_type(type_.element)})"
        case OptionalType():
            return f"optional({format_type(type_.element)})"
        case MapType():
            return f"map({type_.key}, {format_type(type_.value)})"
        case OpaqueType():
            return f"opaque({type_.domain!r}, {type_.name!r})"
