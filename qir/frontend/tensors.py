"""TensorProto and SparseTensorProto to IR tensors, whatever form the data has."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from qir.errors import ModelError
from qir.frontend.external import ExternalFiles
from qir.frontend.residue import make_residue, metadata_of
from qir.frontend.wire import Buffer, fields, read_varint, varints
from qir.ir import DType, ExternalLocation, SparseTensor, Stub, Tensor

__all__ = ["Span", "read_sparse_tensor", "read_tensor"]

_DTYPES = {dtype.code: dtype for dtype in DType}
# float_data, int32_data, string_data, int64_data, double_data, uint64_data; numbers packed or one by one.
_TYPED_KEYS = frozenset({0x22, 0x25, 0x28, 0x2A, 0x32, 0x38, 0x3A, 0x51, 0x52, 0x58, 0x5A})
_EXTERNAL = 1  # TensorProto.DataLocation


class Span(NamedTuple):
    """Where the payload of a message stands."""

    begin: int
    end: int


def read_tensor(buffer: Buffer, span: Span, external: ExternalFiles) -> Tensor:
    """The tensor; data inside of the file is copied out of the buffer, external data is only located."""
    shape: list[int] = []
    code = place = 0
    name = doc = ""
    raw: Span | None = None
    typed = False
    entries: list[bytes] = []
    metadata: list[bytes] = []
    metadata_fields: list[bytes] = []
    verbatim: list[bytes] = []
    for field in fields(buffer, span[0], span[1]):
        key, head, begin, end = field
        if key == 0x08 and end == begin + 1:
            shape.append(buffer[begin])
        elif key == 0x08 or key == 0x0A:
            shape += varints(buffer, field)
        elif key == 0x10:
            code = read_varint(buffer, begin)[0]
        elif key == 0x42 and end > begin:
            name = buffer[begin:end].decode()
        elif key == 0x4A:
            raw = Span(begin, end)
        elif key in _TYPED_KEYS:
            typed = True
        elif key == 0x62 and end > begin:
            doc = buffer[begin:end].decode()
        elif key == 0x70:
            place = read_varint(buffer, begin)[0]
        elif key == 0x6A:
            entries.append(buffer[begin:end])
        elif key == 0x82:
            metadata.append(buffer[begin:end])
            metadata_fields.append(buffer[head:end])
        else:
            verbatim.append(buffer[head:end])
    dtype = _DTYPES.get(code)
    if dtype is None:
        raise ModelError(f"tensor {name!r} has the unknown element type {code}: it needs a newer qir")
    dims = tuple(shape)
    if dims and min(dims) < 0:
        raise ModelError(f"tensor {name!r} has the impossible shape {list(dims)}: the model is damaged")
    content: np.ndarray | bytes | ExternalLocation | Stub
    if place == _EXTERNAL:
        if dtype is DType.STRING:
            raise ModelError(f"tensor {name!r} keeps strings as external data, which ONNX forbids: export it again")
        content = external.locate(name, metadata_of(entries)[0], (math.prod(dims) * dtype.bits + 7) // 8)
    elif raw is not None and dtype is not DType.STRING:
        content = buffer[raw.begin : raw.end]
    elif typed or dtype is DType.STRING:
        content = _typed_data(TensorProto.FromString(buffer[span.begin : span.end]), dtype, dims, name)
    else:
        content = b""
    if not metadata and not verbatim:
        return Tensor(dtype, dims, content, name=name, doc=doc)
    mapping, exact = metadata_of(metadata)
    if not exact:
        verbatim += metadata_fields
    return Tensor(dtype, dims, content, name=name, doc=doc, metadata=mapping or None, extra=make_residue(verbatim))


def read_sparse_tensor(buffer: Buffer, span: Span, external: ExternalFiles) -> SparseTensor:
    """The tensor in coordinate format. Raises ModelError where a part is missing."""
    values = indices = None
    dims: list[int] = []
    verbatim: list[bytes] = []
    for field in fields(buffer, *span):
        key, head, begin, end = field
        if key == 0x0A:
            values = read_tensor(buffer, Span(begin, end), external)
        elif key == 0x12:
            indices = read_tensor(buffer, Span(begin, end), external)
        elif key == 0x18 or key == 0x1A:
            dims += varints(buffer, field)
        else:
            verbatim.append(buffer[head:end])
    if values is None or indices is None:
        raise ModelError("a sparse tensor has no values or no indices: the model is damaged, export it again")
    return SparseTensor(values, indices, tuple(dims), make_residue(verbatim))


def _typed_data(proto: TensorProto, dtype: DType, dims: tuple[int, ...], name: str) -> np.ndarray | bytes:
    """The typed fields (float_data ...) as an array, or as packed bytes where they hold those (onnx.proto)."""
    if dtype in (DType.COMPLEX64, DType.COMPLEX128) and (len(proto.float_data) + len(proto.double_data)) % 2:
        raise ModelError(f"tensor {name!r} has half a complex number: the model is damaged, export it again")
    match dtype:
        case DType.STRING:
            array = np.fromiter(proto.string_data, object, len(proto.string_data))
        case DType.FLOAT | DType.COMPLEX64:
            array = np.array(proto.float_data, np.float32).view(dtype.numpy)
        case DType.DOUBLE | DType.COMPLEX128:
            array = np.array(proto.double_data, np.float64).view(dtype.numpy)
        case DType.INT64:
            array = np.array(proto.int64_data, np.int64)
        case DType.UINT64 | DType.UINT32:
            array = np.array(proto.uint64_data, np.uint64).astype(dtype.numpy)
        case DType.INT32:
            array = np.array(proto.int32_data, np.int32)
        case _ if dtype.bits == 16:
            array = np.array(proto.int32_data, np.int32).astype(np.uint16).view(dtype.numpy)
        case _ if dtype.bits in (6, 8):
            mask = (1 << dtype.bits) - 1
            array = (np.array(proto.int32_data, np.int32) & mask).astype(np.uint8).view(dtype.numpy)
        case _ if dtype.bits in (2, 4):
            return np.array(proto.int32_data, np.int32).astype(np.uint8).tobytes()
        case _:
            raise ModelError(f"tensor {name!r} has data but no element type: the model is damaged, export it again")
    if len(array) != math.prod(dims):
        raise ModelError(
            f"tensor {name!r} of {dtype}{list(dims)} needs {math.prod(dims)} elements, the file has {len(array)}: "
            "the model is damaged, export it again"
        )
    return array.reshape(dims)
