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
from qir.ir import DType, ExternalLocation, SparseTensor, Tensor

__all__ = ["Span", "read_sparse_tensor", "read_tensor"]

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
    for field in fields(buffer, *span):
        key, head, begin, end = field
        match key:
            case 0x4A:
                raw = Span(begin, end)
            case 0x08 | 0x0A:
                shape += varints(buffer, field)
            case 0x10:
                code = read_varint(buffer, begin)[0]
            case 0x42 if end > begin:
                name = buffer[begin:end].decode()
            case 0x62 if end > begin:
                doc = buffer[begin:end].decode()
            case 0x70:
                place = read_varint(buffer, begin)[0]
            case 0x6A:
                entries.append(buffer[begin:end])
            case 0x82:
                metadata.append(buffer[begin:end])
                metadata_fields.append(buffer[head:end])
            case 0x22 | 0x25 | 0x28 | 0x2A | 0x32 | 0x38 | 0x3A | 0x51 | 0x52 | 0x58 | 0x5A:
                typed = True
            case _:
                verbatim.append(buffer[head:end])
    dtype = _dtype(code, name)
    dims = tuple(shape)
    if dims and min(dims) < 0:
        raise ModelError(f"tensor {name!r} has the impossible shape {list(dims)}: the model is damaged")
    content: np.ndarray | bytes | ExternalLocation
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
    mapping, exact = metadata_of(metadata)
    if not exact:
        verbatim += metadata_fields
    return Tensor(
        dtype,
        dims,
        content,
        name=name,
        doc=doc,
        metadata=mapping or None,
        extra=make_residue(verbatim) if verbatim else None,
    )


def read_sparse_tensor(buffer: Buffer, span: Span, external: ExternalFiles) -> SparseTensor:
    values = indices = None
    dims: list[int] = []
    verbatim: list[bytes] = []
    for field in fields(buffer, *span):
        match field.key:
            case 0x0A:
                values = read_tensor(buffer, Span(field.begin, field.end), external)
            case 0x12:
                indices = read_tensor(buffer, Span(field.begin, field.end), external)
            case 0x18 | 0x1A:
                dims += varints(buffer, field)
            case _:
                verbatim.append(buffer[field.head : field.end])
    if values is None or indices is None:
        raise ModelError("a sparse tensor has no values or no indices: the model is damaged, export it again")
    return SparseTensor(values, indices, tuple(dims), make_residue(verbatim))


def _dtype(code: int, name: str) -> DType:
    try:
        return DType.from_code(code)
    except KeyError:
        raise ModelError(f"tensor {name!r} has the unknown element type {code}: it needs a newer qir") from None


def _typed_data(proto: TensorProto, dtype: DType, dims: tuple[int, ...], name: str) -> np.ndarray | bytes:
    """The typed fields (float_data ...) as an array, or as packed bytes where they hold those (onnx.proto)."""
    match dtype:
        case DType.STRING:
            array = np.empty(len(proto.string_data), object)
            array[:] = list(proto.string_data)
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
