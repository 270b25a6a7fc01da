"""IR tensors to TensorProtos: the data as raw_data, in an external file, or, for strings, as string_data."""

from __future__ import annotations

from qir.codegen.residue import metadata_fields
from qir.codegen.wire import Message, bytes_field, ints_field, text_field, varint, varint_field
from qir.ir import DType, SparseTensor, Tensor

__all__ = ["ExternalEntry", "sparse_tensor_message", "tensor_message"]

_SMALL = 4096
"""Up to so many bytes, data is copied at once instead of streamed."""

ExternalEntry = tuple[str, int, int]
"""Location, offset and length of a tensor's data in a file."""


def tensor_message(tensor: Tensor, name: str, external: ExternalEntry | None = None) -> Message:
    """A TensorProto of that name."""
    message = Message()
    extra = metadata = b""
    if tensor.extra is not None or tensor.metadata is not None:
        extra, metadata = metadata_fields(16, tensor.extra, tensor.metadata)
    parts = [extra, ints_field(1, tensor.shape)]
    if tensor.dtype is not DType.UNDEFINED:
        parts.append(varint_field(2, tensor.dtype.code))
    if tensor.dtype is DType.STRING:
        parts += [bytes_field(6, string) for string in tensor.numpy().reshape(-1)]
    parts.append(text_field(8, name))
    if external is None and tensor.dtype is not DType.STRING:
        size = tensor.nbytes
        parts.append(varint(9 << 3 | 2) + varint(size))
        if size <= _SMALL:
            parts.append(tensor.packed().tobytes())
        else:
            message.add(b"".join(parts))
            message.add_data(tensor)
            parts = []
    if tensor.doc:
        parts.append(text_field(12, tensor.doc))
    if external is not None:
        location, offset, length = external
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
            parts.append(bytes_field(13, text_field(1, key) + text_field(2, value)))
        parts.append(varint_field(14, 1))
    parts.append(metadata)
    message.add(b"".join(parts))
    return message


def sparse_tensor_message(tensor: SparseTensor, name: str | None = None) -> Message:
    """A SparseTensorProto; its name is that of the values."""
    message = Message()
    message.add(tensor.extra or b"")
    message.add_message(1, tensor_message(tensor.values, tensor.values.name if name is None else name))
    message.add_message(2, tensor_message(tensor.indices, tensor.indices.name))
    message.add(ints_field(3, tensor.shape))
    return message
