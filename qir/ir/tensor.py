"""Tensors: immutable, lazy and zero-copy. An edit makes a new one; clones of a model share them.

The content comes from a numpy array, from packed little-endian bytes (``TensorProto.raw_data``), from a
memory-mapped file, or from a seeded stub. Nothing is read before somebody asks for it.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qir.errors import ModelError
from qir.ir.dtypes import DType
from qir.ir.packing import pack, packed_size, unpack

__all__ = ["ExternalFile", "ExternalLocation", "SparseTensor", "Stub", "Tensor"]

_SAMPLE_BYTES = 4096
_SHORT_BYTES = 64
"""Contents up to this size are compared as they are, without a hash."""


class ExternalFile:
    """A data file beside a model, mapped once, when the first of its tensors is read."""

    __slots__ = ("_map", "_mapped", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        self._mapped: np.ndarray | None = None

    def view(self) -> np.ndarray:
        """The whole file as a read-only uint8 vector. Raises OSError."""
        if self._mapped is None:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
            self._mapped = np.frombuffer(self._map if self._map is not None else b"", np.uint8)
        return self._mapped

    def release(self, offset: int, length: int) -> None:
        """Give the memory of these bytes back; whoever reads them again gets them from the file."""
        if self._map is not None and hasattr(self._map, "madvise"):
            start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
            stop = (offset + length) // mmap.PAGESIZE * mmap.PAGESIZE
            if stop > start:
                self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)


@dataclass(frozen=True, slots=True)
class ExternalLocation:
    """``length`` bytes at ``offset`` of a data file."""

    file: ExternalFile
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Stub:
    """Stands for a content that is not at hand: the parser makes one for a constant that its store lacks."""

    seed: int


class Tensor:
    """A constant dense tensor.

    ``name``, ``doc``, ``metadata`` and ``extra`` are what a TensorProto may carry beside its data; an initializer's
    own name is that of its Value.
    """

    __slots__ = ("_array", "_bucket", "_content", "_digest", "doc", "dtype", "extra", "metadata", "name", "shape")

    def __init__(
        self,
        dtype: DType,
        shape: tuple[int, ...],
        content: np.ndarray | bytes | ExternalLocation | Stub,
        *,
        name: str = "",
        doc: str = "",
        metadata: Mapping[str, str] | None = None,
        extra: bytes | None = None,
    ) -> None:
        self.dtype = dtype
        self.shape = shape
        self.name = name
        self.doc = doc
        self.metadata = metadata
        self.extra = extra
        self._content = content
        self._digest: bytes | None = None
        self._bucket: tuple[object, ...] | None = None
        self._array: np.ndarray | None = None
        if isinstance(content, np.ndarray):
            if content.shape != shape or content.dtype != dtype.numpy:
                raise ValueError(f"array of {content.dtype}{list(content.shape)} for a tensor of {dtype}{list(shape)}")
            self._array = _read_only(content)
        elif isinstance(content, bytes) and len(content) != packed_size(dtype, self.size):
            raise ModelError(
                f"tensor {name!r} of {dtype}{list(shape)} needs {packed_size(dtype, self.size)} bytes of data, "
                f"the file has {len(content)}: the model is damaged, export it again"
            )

    @classmethod
    def of(cls, array: Any, dtype: DType | None = None, name: str = "") -> Tensor:
        """A tensor of anything that numpy takes. The array is not copied; do not write to it afterwards.

        Strings become UTF-8 bytes, as ONNX stores them.
        """
        array = np.asarray(array)
        dtype = dtype or DType.from_numpy(array.dtype)
        if dtype is DType.STRING:
            encoded = [s.encode() if isinstance(s, str) else bytes(s) for s in array.reshape(-1)]
            strings = np.empty(len(encoded), object)
            strings[:] = encoded
            array = strings.reshape(array.shape)
        elif array.dtype != dtype.numpy:
            array = array.astype(dtype.numpy)
        return cls(dtype, array.shape, array, name=name)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed data in a file; for strings, the sum of their lengths."""
        if self.dtype is DType.STRING:
            return sum(map(len, self.numpy().reshape(-1)))
        return packed_size(self.dtype, self.size)

    @property
    def location(self) -> ExternalLocation | None:
        """Where the data stands in a file, if it was never brought into memory as part of a model file."""
        return self._content if isinstance(self._content, ExternalLocation) else None

    @property
    def is_stub(self) -> bool:
        return isinstance(self._content, Stub)

    def numpy(self) -> np.ndarray:
        """The elements, read-only: shape ``shape``, dtype ``dtype.numpy``; strings are objects of type bytes.

        Data that stands in memory or in a mapped file as numpy lays it out is not copied, and nothing else is cached,
        except for stubs. Raises ModelError where the file is missing or too short.
        """
        if self._array is not None:
            return self._array
        if isinstance(self._content, Stub):
            self._array = _read_only(_stub_array(self.dtype, self.shape, self._content.seed))
            return self._array
        if isinstance(self._content, bytes) and self.dtype.bits >= 8 and sys.byteorder == "little":
            return np.frombuffer(self._content, self.dtype.numpy).reshape(self.shape)  # bytes cannot be written to
        raw = self._raw()
        if self.dtype.bits < 8:
            return _read_only(unpack(raw, self.dtype, self.shape))
        array = raw.view(self.dtype.numpy.newbyteorder("<") if sys.byteorder == "big" else self.dtype.numpy)
        return _read_only(array.reshape(self.shape))

    def packed(self) -> np.ndarray:
        """The bytes that a file holds, as a uint8 vector: little-endian, sub-byte elements packed; not for strings."""
        if self.dtype is DType.STRING:
            raise TypeError("string tensors have no packed form")
        if not isinstance(self._content, np.ndarray | Stub):
            return self._raw()
        array = self.numpy()
        if self.dtype.bits < 8:
            return pack(array, self.dtype)
        if sys.byteorder == "big":
            array = array.astype(array.dtype.newbyteorder("<"))
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def release(self) -> None:
        """Give back the memory of data that stands in a mapped file; it can be read again."""
        if isinstance(self._content, ExternalLocation):
            self._content.file.release(self._content.offset, self._content.length)

    def item(self) -> Any:
        """The one element, as a Python scalar. Raises ValueError for any other number of elements."""
        return self.numpy().item()

    def renamed(self, name: str) -> Tensor:
        """The same content under another name."""
        if name == self.name:
            return self
        other = Tensor(
            self.dtype, self.shape, self._content, name=name, doc=self.doc, metadata=self.metadata, extra=self.extra
        )
        other._digest, other._bucket = self._digest, self._bucket
        return other

    def bucket(self) -> tuple[object, ...]:
        """Equal for equal contents, cheap, and rarely equal otherwise: dtype, shape and a hash of a sample (few bytes
        are taken as they are)."""
        if self._bucket is None:
            self._bucket = self._new_bucket()
        return self._bucket

    def _new_bucket(self) -> tuple[object, ...]:
        if self.dtype is DType.STRING:
            return (self.dtype, self.shape, self.digest())
        if isinstance(self._content, Stub):
            return (self.dtype, self.shape, self._content.seed)
        if self.nbytes <= _SHORT_BYTES:
            content = self._content
            return (self.dtype, self.shape, content if isinstance(content, bytes) else self.packed().tobytes())
        packed = self.packed()
        step = max(1, len(packed) // _SAMPLE_BYTES)
        sample = packed[::step].tobytes()
        self.release()
        return (self.dtype, self.shape, hashlib.blake2b(sample, digest_size=8).digest())

    def key(self) -> object:
        """Equal for equal contents and for no others: few bytes as they are, of more the digest."""
        if self.dtype is DType.STRING or self.nbytes > _SHORT_BYTES:
            return self.digest()
        return self.bucket()

    def digest(self) -> bytes:
        """16 bytes that tell contents apart (dtype and shape included), the same on every machine. Reads everything."""
        if self._digest is None:
            state = hashlib.blake2b(f"{self.dtype}{self.shape}".encode(), digest_size=16)
            if self.dtype is DType.STRING:
                for string in self.numpy().reshape(-1):
                    state.update(len(string).to_bytes(8, "little") + string)
            else:
                state.update(np.ascontiguousarray(self.packed()).data)
            self._digest = state.digest()
        return self._digest

    def same_content(self, other: Tensor) -> bool:
        """Equal dtype, shape and, bit for bit, elements (so NaN equals NaN and 0.0 differs from -0.0)."""
        if self is other:
            return True
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        if self._content is other._content or (isinstance(self._content, Stub) and self._content == other._content):
            return True
        if self.bucket() != other.bucket():
            return False
        is_whole = self.dtype is not DType.STRING and self.nbytes <= _SHORT_BYTES
        return is_whole or self.digest() == other.digest()

    def __repr__(self) -> str:
        return f"Tensor({self.name + ': ' if self.name else ''}{self.dtype}{list(self.shape)})"

    def _raw(self) -> np.ndarray:
        if isinstance(self._content, ExternalLocation):
            return _map_file(self._content, self.name, packed_size(self.dtype, self.size))
        assert isinstance(self._content, bytes)
        return np.frombuffer(self._content, np.uint8)


class SparseTensor:
    """A constant in coordinate format (onnx.proto, SparseTensorProto): ``values`` at ``indices`` of shape ``shape``."""

    __slots__ = ("extra", "indices", "shape", "values")

    def __init__(self, values: Tensor, indices: Tensor, shape: tuple[int, ...], extra: bytes | None = None) -> None:
        self.values = values
        self.indices = indices
        self.shape = shape
        self.extra = extra

    @property
    def dtype(self) -> DType:
        return self.values.dtype

    @property
    def name(self) -> str:
        return self.values.name

    def __repr__(self) -> str:
        return f"SparseTensor({self.name}: {self.dtype}{list(self.shape)}, {self.values.size} values)"


def _read_only(array: np.ndarray) -> np.ndarray:
    if array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


def _map_file(location: ExternalLocation, name: str, needed: int) -> np.ndarray:
    if location.length != needed:
        raise ModelError(
            f"external data of tensor {name!r} is {location.length} bytes long, its type needs {needed}: "
            "the model is damaged, export it again"
        )
    try:
        data = location.file.view()
    except OSError as error:
        raise ModelError(
            f"external data file {str(location.file.path)!r} of tensor {name!r} cannot be read ({error.strerror}): "
            "put it beside the model"
        ) from error
    if location.offset + needed > len(data):
        raise ModelError(
            f"external data file {location.file.path.name!r} has {len(data)} bytes, tensor {name!r} needs bytes "
            f"{location.offset} to {location.offset + needed}: the file is truncated, copy it again"
        )
    return data[location.offset : location.offset + needed]


def _stub_array(dtype: DType, shape: tuple[int, ...], seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if dtype is DType.STRING:
        return Tensor.of(np.full(shape, "stub", object), dtype).numpy().copy()
    if dtype.is_float:
        return (generator.standard_normal(shape) * 0.1).astype(dtype.numpy)
    if dtype.is_integer:
        return generator.integers(max(dtype.qmin, -4), min(dtype.qmax, 4), shape, endpoint=True).astype(dtype.numpy)
    return generator.integers(0, 2, shape).astype(dtype.numpy)
