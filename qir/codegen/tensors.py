"""IR tensors to TensorProtos: the data as raw_data, in an external file, or, for strings, as string_data."""

from __future__ import annotations

from qir.codegen.residue import metadata_fields
from qir.codegen.wire import Message, bytes_field, ints_field, text_field, varint, varint_field
from qir.ir import DType, SparseTensor, Tensor

__all__ = ["ExternalEntry", "sparse_tensor_message", "tensor_message"]

ExternalEntry = tuple[str, int, int]
"""Location, offset and length of a tensor's data in a file."""


def tensor_message(tensor: Tensor, name: str, external: ExternalEntry | None = None) -> Message:
    """A TensorProto of that name."""
    message = Message()
    extra, metadata = metadata_fields(16, tensor.extra, tensor.metadata)
    message.add(extra)
    message.add(ints_field(1, tensor.shape))
    if tensor.dtype is not DType.UNDEFINED:
        message.add(varint_field(2, tensor.dtype.code))
    if tensor.dtype is DType.STRING:
        for string in tensor.numpy().reshape(-1):
            message.add(bytes_field(6, string))
    message.add(text_field(8, name))
    if external is None and tensor.dtype is not DType.STRING:
        message.add(_raw_data_head(tensor.nbytes))
        message.add_data(tensor)
    message.add(text_field(12, tensor.doc))
    if external is not None:
        location, offset, length = external
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
            message.add(bytes_field(13, text_field(1, key) + text_field(2, value)))
        message.add(varint_field(14, 1))
    message.add(metadata)
    return message


def sparse_tensor_message(tensor: SparseTensor, name: str | None = None) -> Message:
    """A SparseTensorProto; its name is that of the values."""
    message = Message()
    message.add(tensor.extra or b"")
    message.add_message(1, tensor_message(tensor.values, tensor.values.name if name is None else name))
    message.add_message(2, tensor_message(tensor.indices, tensor.indices.name))
    message.add(ints_field(3, tensor.shape))
    return message


def _raw_data_head(size: int) -> bytes:
    return varint(9 << 3 | 2) + varint(size)
