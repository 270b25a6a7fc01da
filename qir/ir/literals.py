"""Numbers, strings and names of the IR text form, both ways: what one function here prints, another reads back.

Floats are float32: the shortest decimal that rounds to the number is printed, and a decimal is read as the nearest
float32. A number that float32 cannot hold ends in ``d`` and is read as a double.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from qir.ir.dtypes import DType
from qir.ir.tensor import Tensor

__all__ = [
    "array_of",
    "bytes_text",
    "element_texts",
    "float_text",
    "is_word",
    "parse_float",
    "quote",
    "residue_bytes",
    "residue_text",
    "to_float32",
    "unquote",
    "value_name",
    "word",
]

_BARE_NAME = re.compile(r"(?!:)(?:[A-Za-z0-9_./]++|-(?!>)|:++(?=[A-Za-z0-9_./\-]))++")
_WORD = re.compile(r"(?!(?:inf|nan)(?![A-Za-z0-9_]))[A-Za-z_][A-Za-z0-9_]*+(?:-[A-Za-z0-9_]++)*+")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u\{([0-9a-fA-F]{1,6})\}|(.))", re.DOTALL)
_SIMPLE_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}
_NAN = struct.pack("<d", math.nan)
_HEX_ESCAPED = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


# Strings and names


def quote(text: str) -> str:
    """A string in double quotes, on one line whatever it holds."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join(_escaped(char) for char in text) + '"'


def _escaped(char: str) -> str:
    if char in _HEX_ESCAPED:
        return _HEX_ESCAPED[char]
    return char if char.isprintable() else f"\\u{{{ord(char):x}}}"


def bytes_text(data: bytes) -> str:
    """UTF-8 as a string, anything else as ``b"..."``."""
    try:
        return quote(data.decode())
    except UnicodeDecodeError:
        chars = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in data)
        return 'b"' + "".join(chars) + '"'


def unquote(token: str) -> str | bytes:
    """The content of a ``"..."`` token as a string, of a ``b"..."`` token as bytes. Raises ValueError."""
    if token[0] == '"':
        body = token[1:-1]
        return _ESCAPE.sub(_unescape, body) if "\\" in body else body
    text = _ESCAPE.sub(_unescape_byte, token[2:-1])
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError('b"..." holds ASCII characters and \\xNN escapes only') from None


def _unescape(match: re.Match[str]) -> str:
    _, code, char = match.groups()
    if code is not None and int(code, 16) < 0x110000:
        return chr(int(code, 16))
    if char in _SIMPLE_ESCAPES:
        return _SIMPLE_ESCAPES[char]
    raise ValueError(f'unknown escape {match.group()} (known: \\n \\r \\t \\" \\\\ \\u{{hex}}; \\xNN in b"...")')


def _unescape_byte(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] is not None else _unescape(match)


def value_name(name: str) -> str:
    """A value's name behind its sigil: bare where it is plain (``/``, ``.``, ``:`` and ``-`` are), else quoted."""
    return name if _BARE_NAME.fullmatch(name) else quote(name)


def is_word(text: str) -> bool:
    return _WORD.fullmatch(text) is not None and text != "_"


def word(text: str) -> str:
    """An attribute's name, a symbol, a kernel ...: bare where it is an identifier, hyphens inside allowed."""
    return text if is_word(text) else quote(text)


def residue_text(data: bytes) -> str:
    return f'"{base64.b64encode(data).decode()}"'


def residue_bytes(text: str) -> bytes:
    """Raises ValueError for what is no base64."""
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("the bytes of 'extra' are not base64") from None


# Numbers


def to_float32(value: float) -> float:
    """The nearest float32; beyond its range, infinite."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def float_text(value: float) -> str:
    """The shortest text that ``parse_float`` reads as exactly this number, NaN payloads included."""
    if value != value:
        bits = struct.pack("<d", value)
        return "nan" if bits == _NAN else f"nan(0x{int.from_bytes(bits, 'little'):016x})"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if to_float32(value) == value:
        for digits in (6, 7, 8, 9):
            text = f"{value:.{digits}g}"
            if to_float32(float(text)) == value:
                return text
    return f"{float(value)!r}d"


def parse_float(token: str) -> float:
    """The number that a token means. Raises ValueError where it is too large for its width."""
    value = float(token[:-1]) if token[-1] == "d" else to_float32(float(token))
    if math.isinf(value) and "inf" not in token:
        raise ValueError(f"{token} is too large for {'a double' if token[-1] == 'd' else 'float32 (append d)'}")
    return value


# Elements of tensors


def element_texts(tensor: Tensor) -> list[str] | None:
    """One text an element, in C order; None where decimals would lose bits (a NaN that is not the usual one)."""
    array = tensor.numpy().reshape(-1)
    dtype = tensor.dtype
    if dtype is DType.STRING:
        return [bytes_text(item) for item in array]
    if dtype is DType.BOOL:
        return ["true" if item else "false" for item in array]
    if dtype.is_integer:
        return [str(int(item)) for item in array]
    if dtype in (DType.COMPLEX64, DType.COMPLEX128):
        part = DType.FLOAT if dtype is DType.COMPLEX64 else DType.DOUBLE
        texts = [f"({_decimal(item.real, part)}, {_decimal(item.imag, part)})" for item in array]
        read: list[Any] = [complex(float(re), float(im)) for re, im in (text[1:-1].split(", ") for text in texts)]
    else:
        texts = [_decimal(item, dtype) for item in array]
        read = [float(text) for text in texts]
    again = array_of(dtype, array.shape, read)
    return texts if again.tobytes() == array.tobytes() else None


def _decimal(item: Any, dtype: DType) -> str:
    value = float(item)
    if value != value:
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if dtype is DType.DOUBLE:
        return repr(value)
    for digits in (1, 2, 3, 4, 5, 6, 7, 8):
        text = f"{value:.{digits}g}"
        with np.errstate(over="ignore"):
            if np.asarray(float(text)).astype(dtype.numpy) == item:
                return text
    return f"{value:.9g}"


def array_of(dtype: DType, shape: tuple[int, ...], elements: Sequence[Any]) -> np.ndarray:
    """Elements as read (bytes, bool, int, float or complex) in C order. Raises ValueError where they do not fit."""
    if math.prod(shape) != len(elements):
        raise ValueError(f"{len(elements)} elements for shape [{','.join(map(str, shape))}]")
    if dtype is DType.STRING:
        strings = np.empty(len(elements), object)
        strings[:] = elements
        return strings.reshape(shape)
    if dtype.is_integer:
        for element in elements:
            if not dtype.qmin <= element <= dtype.qmax:
                raise ValueError(f"{element} does not fit into {dtype}")
        wide = np.uint64 if dtype is DType.UINT64 else np.int64
        return np.array(elements, wide).astype(dtype.numpy).reshape(shape)
    if dtype in (DType.COMPLEX64, DType.COMPLEX128, DType.BOOL):
        return np.array(elements, dtype.numpy).reshape(shape)
    given = np.array(elements, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        array = given.astype(dtype.numpy)
    for lost in given[np.isfinite(given) & ~np.isfinite(array.astype(np.float64))][:1]:
        raise ValueError(f"{lost:g} does not fit into {dtype}")
    return array.reshape(shape)
