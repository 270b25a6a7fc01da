"""IR text of types, quantization types, intervals and tensors: what stands inside a line. See ``qir.ir.printer``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from qir.ir.interval import Interval
from qir.ir.literals import (
    element_texts,
    float_text,
    quote,
    residue_text,
    word,
)
from qir.ir.quant_types import (
    CodebookQuant,
    DerivedQuant,
    DynamicQuant,
    StaticQuant,
    UseQuant,
    UseQuantMarker,
)
from qir.ir.tensor import SparseTensor, Stub, Tensor
from qir.ir.types import (
    Dim,
    MapType,
    OpaqueType,
    OptionalType,
    SequenceType,
    SparseTensorType,
    TensorType,
    Type,
)

__all__ = [
    "hash_text",
    "interval_text",
    "is_inline",
    "metadata_text",
    "quant_text",
    "sparse_text",
    "tensor_content",
    "tensor_text",
    "type_text",
]

_MOST_INLINE = 16
_MOST_SHORT = 4


def type_text(type_: Type | None) -> str:
    """``f32[N,3]``, ``sparse f32[3]``, ``seq(...)``, ``map(s64, ...)``, ``opaque("domain", "name")``; None: ``?``.

    An unknown dimension is ``?``, an unknown rank ``[*]``.
    """
    match type_:
        case None:
            return "?"
        case TensorType() | SparseTensorType():
            text = f"{type_.dtype.text}[{_dims(type_)}]"
            if isinstance(type_, SparseTensorType):
                text = f"sparse {text}"
        case SequenceType():
            text = f"seq({type_text(type_.element)})"
        case OptionalType():
            text = f"optional({type_text(type_.element)})"
        case MapType():
            text = f"map({type_.key}, {type_text(type_.value)})"
        case OpaqueType():
            text = f"opaque({quote(type_.domain)}, {quote(type_.name)})"
    return f"{text}!{quote(type_.denotation)}" if type_.denotation else text


def _dims(type_: TensorType | SparseTensorType) -> str:
    if type_.shape is None:
        return "*"
    dims = [_dim_text(dim) for dim in type_.shape]
    if type_.dim_denotations:
        dims = [f"{dim}!{quote(meaning)}" for dim, meaning in zip(dims, type_.dim_denotations, strict=False)]
    return ",".join(dims)


def _dim_text(dim: Dim) -> str:
    if dim is None:
        return "?"
    return str(dim) if isinstance(dim, int) else word(dim)


def interval_text(interval: Interval, brief: bool = False) -> str:
    """``[lo, hi]``, or ``[[lo, ...], [hi, ...], axis=1]``."""
    if interval.axis is None:
        return f"[{float_text(interval.lower)}, {float_text(interval.upper)}]"
    lo, hi = (_numbers(bounds, float_text, brief) for bounds in (interval.lo, interval.hi))  # type: ignore[arg-type]
    return f"[{lo}, {hi}, axis={interval.axis}]"


def quant_text(quant: UseQuant, brief: bool = False) -> str:
    """``u8(0.02, 3)``, ``s8[axis=0]([0.1, 0.2], 0)``, ``s4[axis=0, block=32](...)``, ``dynamic(u8)``,
    ``derived(s32, 0, 1)``, ``codebook[axis=0](4, [[...], ...], scale=[...])``;
    for a use also ``float`` and ``inherit``."""
    match quant:
        case UseQuantMarker():
            return quant.value
        case DynamicQuant():
            return f"dynamic({quant.dtype}{', symmetric' if quant.symmetric else ''})"
        case DerivedQuant():
            return f"derived({quant.dtype}, {quant.input_index}, {quant.weight_index})"
        case CodebookQuant():
            axis = "" if quant.axis is None else f"[axis={quant.axis}]"
            rows = ", ".join(_numbers(row, float_text, brief) for row in quant.table[: _MOST_SHORT if brief else None])
            more = ", ..." if brief and len(quant.table) > _MOST_SHORT else ""
            scale = "" if quant.scale == (1.0,) else f", scale={_numbers(quant.scale, float_text, brief)}"
            dim = "" if quant.dim == 1 else f", dim={quant.dim}"
            return f"codebook{axis}({quant.bits}, [{rows}{more}]{scale}{dim})"
        case StaticQuant():
            if quant.axis is None:
                return f"{quant.dtype}({float_text(quant.scale[0])}, {quant.zero_point[0]})"
            place = f"axis={quant.axis}"
            if quant.block_size is not None:
                place += f", block={quant.block_size}"
            zeros = quant.zero_point
            zero = str(zeros[0]) if len(zeros) == 1 else _numbers(zeros, str, brief)
            return f"{quant.dtype}[{place}]({_numbers(quant.scale, float_text, brief)}, {zero})"


def _numbers(numbers: Sequence[float], text: Callable[[float], str], brief: bool) -> str:
    if brief and len(numbers) > _MOST_SHORT:
        return f"[{', '.join(map(text, numbers[: _MOST_SHORT - 1]))}, ...]"
    return f"[{', '.join(map(text, numbers))}]"


def is_inline(tensor: Tensor) -> bool:
    """Its elements are printed, not a hash of them."""
    return not tensor.is_stub and tensor.size <= _MOST_INLINE


def hash_text(tensor: Tensor) -> str:
    """``#`` and 16 hex digits: the start of the digest, or a stub's seed, so that a stub prints what it stood for."""
    content = tensor._content
    return f"#{content.seed:016x}" if isinstance(content, Stub) else f"#{tensor.digest()[:8].hex()}"


def tensor_content(tensor: Tensor, brief: bool = False) -> str:
    """``#hash``, ``[1, 2]``, a scalar's bare element, or ``0x...`` (packed bytes) where decimals would lose bits."""
    if brief and (tensor.location is not None or not is_inline(tensor)):
        return "#..."  # a message must not need the weights
    if not is_inline(tensor):
        return hash_text(tensor)
    texts = element_texts(tensor)
    if texts is None:
        return f"0x{tensor.packed().tobytes().hex()}"
    return f"[{', '.join(texts)}]" if tensor.shape else texts[0]


def tensor_text(tensor: Tensor, brief: bool = False, *, name: bool = True, typed: bool = True) -> str:
    """``f32[2] [1, 2] {name="t"}``: dtype and shape (unless not ``typed``), content, what else it carries."""
    text = tensor_content(tensor, brief)
    if typed:
        text = f"{tensor.dtype}[{','.join(map(str, tensor.shape))}] {text}"
    if not ((name and tensor.name) or tensor.doc or tensor.metadata is not None or tensor.extra is not None):
        return text
    clauses = []
    if name and tensor.name:
        clauses.append(f"name={quote(tensor.name)}")
    if tensor.doc:
        clauses.append(f"doc={quote(tensor.doc)}")
    if tensor.metadata is not None:
        clauses.append(f"meta={metadata_text(tensor.metadata)}")
    if tensor.extra is not None:
        clauses.append(f"extra={residue_text(tensor.extra)}")
    return f"{text} {{{', '.join(clauses)}}}"


def sparse_text(sparse: SparseTensor, brief: bool = False, *, name: bool = True) -> str:
    """``sparse[100](values, indices)``."""
    parts = [tensor_text(sparse.values, brief, name=name), tensor_text(sparse.indices, brief)]
    if sparse.extra is not None:
        parts.append(f"extra={residue_text(sparse.extra)}")
    return f"sparse[{','.join(map(str, sparse.shape))}]({', '.join(parts)})"


def metadata_text(metadata: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{quote(key)}: {quote(value)}" for key, value in metadata.items()) + "}"
