"""Reads what stands inside a line of IR text: types, quantization types, intervals, tensors. See ``qir.ir.printer``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from qir.errors import OptionError
from qir.ir.dtypes import DType
from qir.ir.interval import Interval
from qir.ir.lexer import Cursor, Kind
from qir.ir.literals import array_of, residue_bytes
from qir.ir.packing import packed_size
from qir.ir.quant_types import (
    CodebookQuant,
    DerivedQuant,
    DynamicQuant,
    QuantType,
    StaticQuant,
    UseQuant,
    UseQuantMarker,
)
from qir.ir.tensor import SparseTensor, Stub, Tensor
from qir.ir.types import Dim, MapType, OpaqueType, OptionalType, SequenceType, SparseTensorType, TensorType, Type

__all__ = [
    "TensorReader",
    "bracketed",
    "parse_interval",
    "parse_metadata",
    "parse_quant",
    "parse_residue",
    "parse_type",
    "parse_use_quant",
]

T = TypeVar("T")


def bracketed(at: Cursor, item: Callable[[], T], opening: str = "[", closing: str = "]") -> list[T]:
    """Items between brackets, separated by commas."""
    at.need(opening)
    items: list[T] = []
    while not at.take(closing):
        if items:
            at.need(",")
        items.append(item())
    return items


def parse_dtype(at: Cursor) -> DType:
    if at.kind == Kind.WORD:
        try:
            dtype = DType.from_text(at.text)
        except KeyError:
            pass
        else:
            at.advance()
            return dtype
    at.expected(_other_name(at.text) or "an element type such as f32 or s8")


def _other_name(text: str) -> str | None:
    """Ours for the name that ONNX, numpy or MLIR has for an element type: s64 for INT64, int64 and i64."""
    for dtype in DType:
        if text.upper() == dtype.name or (text == f"float{dtype.bits}" and dtype.text == f"f{dtype.bits}"):
            return dtype.text
        if text == f"i{dtype.bits}" and dtype.text == f"s{dtype.bits}":
            return dtype.text
    return None


def parse_residue(at: Cursor) -> bytes:
    position = at.position
    try:
        return residue_bytes(at.string())
    except ValueError as error:
        at.fail(str(error), position)


def parse_metadata(at: Cursor) -> dict[str, str]:
    return dict(parse_pairs(at))


def parse_pairs(at: Cursor) -> list[tuple[str, str]]:
    """``{"key": "value", ...}``."""

    def pair() -> tuple[str, str]:
        key = at.string()
        at.need(":")
        return key, at.string()

    return bracketed(at, pair, "{", "}")


# Types


def parse_type(at: Cursor) -> Type | None:
    """A type, or None for ``?``."""
    at.deeper()
    type_ = _parse_type(at)
    at.shallower()
    return type_


def _parse_type(at: Cursor) -> Type | None:
    if at.take("?"):
        return None
    if at.take("seq"):
        element = _in_parentheses(at)
        return SequenceType(element, _denotation(at))
    if at.take("optional"):
        element = _in_parentheses(at)
        return OptionalType(element, _denotation(at))
    if at.take("map"):
        at.need("(")
        key = parse_dtype(at)
        at.need(",")
        value = parse_type(at)
        at.need(")")
        return MapType(key, value, _denotation(at))
    if at.take("opaque"):
        at.need("(")
        domain = at.string()
        at.need(",")
        name = at.string()
        at.need(")")
        return OpaqueType(domain, name, _denotation(at))
    sparse = at.take("sparse")
    dtype = parse_dtype(at)
    if not at.at("["):
        at.expected(f"'[' and sizes ({dtype.text}[] is one element)")
    shape, meanings = _parse_shape(at)
    return (SparseTensorType if sparse else TensorType)(dtype, shape, _denotation(at), meanings)


def _in_parentheses(at: Cursor) -> Type | None:
    at.need("(")
    element = parse_type(at)
    at.need(")")
    return element


def _denotation(at: Cursor) -> str:
    return at.string("a denotation in quotes") if at.take("!") else ""


def _parse_shape(at: Cursor) -> tuple[tuple[Dim, ...] | None, tuple[str, ...]]:
    at.need("[")
    if at.take("*"):
        at.need("]")
        return None, ()
    dims: list[Dim] = []
    meanings: list[str] = []
    while not at.take("]"):
        if dims:
            at.need(",")
        dims.append(_parse_dim(at))
        if at.text == "!":
            meanings += [""] * (len(dims) - 1 - len(meanings))
            meanings.append(_denotation(at))
    if meanings:
        meanings += [""] * (len(dims) - len(meanings))
    return tuple(dims), tuple(meanings)


def _parse_dim(at: Cursor) -> Dim:
    if at.kind == Kind.NUMBER:
        return at.integer("a size")
    return None if at.take("?") else at.word("a size, a symbol or ?")


# Annotations


def parse_interval(at: Cursor) -> Interval:
    position = at.position
    at.need("[")
    try:
        if not at.at("["):
            lo = at.number("a bound")
            at.need(",")
            interval = Interval(lo, at.number("a bound"))
        else:
            lows = tuple(bracketed(at, at.number))
            at.need(",")
            highs = tuple(bracketed(at, at.number))
            at.need(",")
            interval = Interval(lows, highs, _keyed_integer(at, "axis"))
    except ValueError as error:
        at.fail(str(error), position)
    at.need("]")
    return interval


def parse_use_quant(at: Cursor) -> UseQuant:
    for marker in UseQuantMarker:
        if at.take(marker.value):
            return marker
    return parse_quant(at)


def parse_quant(at: Cursor) -> QuantType:
    position = at.position
    try:
        return _parse_quant(at)
    except (OptionError, ValueError) as error:
        at.fail(str(error), position)


def _parse_quant(at: Cursor) -> QuantType:
    if at.take("dynamic"):
        at.need("(")
        dtype = parse_dtype(at)
        symmetric = at.take(",")
        if symmetric:
            at.need("symmetric")
        at.need(")")
        return DynamicQuant(dtype, symmetric)
    if at.take("derived"):
        at.need("(")
        dtype = parse_dtype(at)
        at.need(",")
        input_index = at.integer("the index of the input")
        at.need(",")
        weight_index = at.integer("the index of the weight")
        at.need(")")
        return DerivedQuant(input_index, weight_index, dtype)
    if at.take("codebook"):
        axis, _ = _parse_axis(at)
        at.need("(")
        bits = at.integer("a number of bits")
        at.need(",")
        table = tuple(bracketed(at, lambda: tuple(bracketed(at, at.number))))
        scale: tuple[float, ...] = (1.0,)
        dim = 1
        while at.take(","):
            if at.take("scale"):
                at.need("=")
                scale = tuple(bracketed(at, at.number))
            else:
                at.need("dim")
                at.need("=")
                dim = at.integer("how many numbers a code stands for")
        at.need(")")
        return CodebookQuant(bits, table, axis, scale, dim)
    if at.kind != Kind.WORD:
        at.expected("a quantization type such as u8(0.1, 128)")
    dtype = parse_dtype(at)
    axis, block = _parse_axis(at)
    at.need("(")
    scale = tuple(bracketed(at, at.number)) if at.at("[") else (at.number("a scale"),)
    zeros: tuple[int, ...] = (0,)
    if at.take(","):
        zeros = tuple(bracketed(at, at.integer)) if at.at("[") else (at.integer("a zero point"),)
    at.need(")")
    return StaticQuant(dtype, scale, zeros, axis, block)


def _parse_axis(at: Cursor) -> tuple[int | None, int | None]:
    if not at.take("["):
        return None, None
    axis = _keyed_integer(at, "axis")
    block = _keyed_integer(at, "block") if at.take(",") else None
    at.need("]")
    return axis, block


def _keyed_integer(at: Cursor, key: str) -> int:
    at.need(key)
    at.need("=")
    return at.integer()


# Tensors


class TensorReader:
    """Reads tensors; contents named by hash come from a store, by hash or by name, else a seeded stub is made."""

    def __init__(self, at: Cursor, store: Mapping[str, Tensor]) -> None:
        self._at = at
        self._store = store
        self.stubs: list[str] = []
        """``name #hash`` of each content that the store lacks, in the text's order."""

    def typed(self, owner: str) -> Tensor:
        """``f32[2] content``; ``owner`` names it for messages and for the store."""
        dtype, shape = self.signature()
        return self.content(dtype, shape, owner, keep_name=True)

    def signature(self) -> tuple[DType, tuple[int, ...]]:
        """``f32[2,3]``, sizes known."""
        at = self._at
        position = at.position
        dtype = parse_dtype(at)
        shape = self._sizes()
        if dtype is DType.UNDEFINED:
            at.fail("a tensor of undefined element type", position)
        return dtype, shape

    def _sizes(self) -> tuple[int, ...]:
        at = self._at
        position = at.position
        shape = tuple(bracketed(at, lambda: at.integer("the size of a constant's axis")))
        if any(size < 0 for size in shape):
            at.fail("a constant's axis has a negative size", position)
        return shape

    def content(self, dtype: DType, shape: tuple[int, ...], owner: str, *, keep_name: bool) -> Tensor:
        """``#hash``, ``[...]``, one bare element or ``0x...``, and the braces behind it."""
        at = self._at
        position = at.position
        try:
            if at.kind == Kind.HASH:
                tensor = self._stored(dtype, shape, owner, at.next_text()[1:])
            elif at.kind == Kind.HEX:
                tensor = _from_hex(dtype, shape, at.next_text()[2:])
            elif at.at("["):
                tensor = Tensor(dtype, shape, array_of(dtype, shape, bracketed(at, lambda: self._element(dtype))))
            else:
                tensor = Tensor(dtype, shape, array_of(dtype, shape, [self._element(dtype)]))
        except (ValueError, OverflowError) as error:
            at.fail(str(error), position)
        return self._notes(tensor, keep_name)

    def sparse(self, owner: str) -> SparseTensor:
        """``sparse[100](values, indices)``."""
        at = self._at
        at.need("sparse")
        shape = self._sizes()
        at.need("(")
        values = self.typed(owner)
        at.need(",")
        indices = self.typed(f"{owner}/indices")
        extra = None
        if at.take(","):
            at.need("extra")
            at.need("=")
            extra = parse_residue(at)
        at.need(")")
        return SparseTensor(values, indices, shape, extra)

    def _element(self, dtype: DType) -> Any:
        at = self._at
        if dtype is DType.STRING:
            content = at.content("a string")
            if isinstance(content, bytes):
                return content
            return content.encode()  # a lone surrogate raises UnicodeEncodeError, a ValueError
        if dtype is DType.BOOL:
            if at.at("true") or at.at("false"):
                return at.next_text() == "true"
            at.expected("true or false")
        if dtype.is_integer:
            return at.integer()
        if dtype in (DType.COMPLEX64, DType.COMPLEX128):
            at.need("(")
            real = self._plain_number()
            at.need(",")
            imaginary = self._plain_number()
            at.need(")")
            return complex(real, imaginary)
        return self._plain_number()

    def _plain_number(self) -> float:
        """Not rounded to float32: the tensor's dtype says what to round to."""
        at = self._at
        if at.kind != Kind.NUMBER:
            at.expected("a number")
        value = float(at.text.removesuffix("d"))
        if math.isinf(value) and "inf" not in at.text:
            at.fail("a number beyond double precision")
        at.advance()
        return value

    def _stored(self, dtype: DType, shape: tuple[int, ...], owner: str, hash_: str) -> Tensor:
        found = self._store.get(hash_) or self._store.get(owner)
        if found is None:
            if len(hash_) > 16:
                raise ValueError("a hash has at most 16 digits")
            self.stubs.append(f"{owner} #{hash_}")
            return Tensor(dtype, shape, Stub(int(hash_, 16)))
        if (found.dtype, found.shape) != (dtype, shape):
            raise ValueError(f"the store's tensor for {owner} #{hash_} is {found.dtype}{list(found.shape)}")
        return Tensor(dtype, shape, found._content)

    def _notes(self, tensor: Tensor, keep_name: bool) -> Tensor:
        at = self._at
        if not at.take("{"):
            return tensor
        notes: dict[str, Any] = {}
        while not at.take("}"):
            if notes:
                at.need(",")
            key = at.word("name, doc, meta or extra")
            at.need("=")
            match key:
                case "name" | "doc":
                    notes[key] = at.string()
                case "meta":
                    notes["metadata"] = parse_metadata(at)
                case "extra":
                    notes["extra"] = parse_residue(at)
                case _:
                    at.fail(f"a tensor has no {key!r} (known: name, doc, meta, extra)")
        return Tensor(tensor.dtype, tensor.shape, tensor._content, **notes)


def _from_hex(dtype: DType, shape: tuple[int, ...], digits: str) -> Tensor:
    if dtype is DType.STRING:
        raise ValueError("strings are not written as 0x...")
    size = 1
    for axis in shape:
        size *= axis
    if len(digits) != 2 * packed_size(dtype, size):
        raise ValueError(f"{dtype}{list(shape)} takes {packed_size(dtype, size)} bytes, here are {len(digits) / 2:g}")
    return Tensor(dtype, shape, bytes.fromhex(digits))
