"""TypeProto to IR types and back."""

from __future__ import annotations

from onnx import TypeProto

from qir.ir import DType, MapType, OpaqueType, OptionalType, SequenceType, SparseTensorType, TensorType, Type
from qir.ir.types import Dim

__all__ = ["decode_type", "encode_type", "read_type"]


def decode_type(payload: bytes) -> tuple[Type | None, bool]:
    """The type that a serialized TypeProto says, and whether ``encode_type`` says the same again.

    An element type that ONNX does not define makes the type None. Raises google.protobuf's DecodeError.
    """
    proto = TypeProto.FromString(payload)
    type_ = read_type(proto)
    exact = type_ is not None and TypeProto.FromString(encode_type(type_)) == proto
    return type_, exact


def read_type(proto: TypeProto) -> Type | None:
    denotation = proto.denotation
    try:
        match proto.WhichOneof("value"):
            case "tensor_type":
                return TensorType(*_tensor(proto.tensor_type), denotation, _denotations(proto.tensor_type))
            case "sparse_tensor_type":
                sparse = proto.sparse_tensor_type
                return SparseTensorType(*_tensor(sparse), denotation, _denotations(sparse))
            case "sequence_type":
                sequence = proto.sequence_type
                return SequenceType(
                    read_type(sequence.elem_type) if sequence.HasField("elem_type") else None, denotation
                )
            case "optional_type":
                optional = proto.optional_type
                return OptionalType(
                    read_type(optional.elem_type) if optional.HasField("elem_type") else None, denotation
                )
            case "map_type":
                mapping = proto.map_type
                value = read_type(mapping.value_type) if mapping.HasField("value_type") else None
                return MapType(DType.from_code(mapping.key_type), value, denotation)
            case "opaque_type":
                return OpaqueType(proto.opaque_type.domain, proto.opaque_type.name, denotation)
    except KeyError:
        return None
    return None


def encode_type(type_: Type) -> bytes:
    """The serialized TypeProto."""
    proto = TypeProto()
    _fill(proto, type_)
    payload: bytes = proto.SerializeToString(deterministic=True)
    return payload


def _tensor(tensor: TypeProto.Tensor | TypeProto.SparseTensor) -> tuple[DType, tuple[Dim, ...] | None]:
    shape: tuple[Dim, ...] | None = None
    if tensor.HasField("shape"):
        dims: list[Dim] = []
        for dim in tensor.shape.dim:
            kind = dim.WhichOneof("value")
            dims.append(None if kind is None else dim.dim_value if kind == "dim_value" else dim.dim_param or None)
        shape = tuple(dims)
    return DType.from_code(tensor.elem_type), shape


def _denotations(tensor: TypeProto.Tensor | TypeProto.SparseTensor) -> tuple[str, ...]:
    denotations = tuple(dim.denotation for dim in tensor.shape.dim)
    return denotations if any(denotations) else ()


def _fill(proto: TypeProto, type_: Type) -> None:
    match type_:
        case TensorType():
            _fill_tensor(proto.tensor_type, type_)
        case SparseTensorType():
            _fill_tensor(proto.sparse_tensor_type, type_)
        case SequenceType():
            proto.sequence_type.SetInParent()
            if type_.element is not None:
                _fill(proto.sequence_type.elem_type, type_.element)
        case OptionalType():
            proto.optional_type.SetInParent()
            if type_.element is not None:
                _fill(proto.optional_type.elem_type, type_.element)
        case MapType():
            proto.map_type.SetInParent()
            if type_.key is not DType.UNDEFINED:
                proto.map_type.key_type = type_.key.code
            if type_.value is not None:
                _fill(proto.map_type.value_type, type_.value)
        case OpaqueType():
            proto.opaque_type.SetInParent()
            if type_.domain:
                proto.opaque_type.domain = type_.domain
            if type_.name:
                proto.opaque_type.name = type_.name
    if type_.denotation:
        proto.denotation = type_.denotation


def _fill_tensor(proto: TypeProto.Tensor | TypeProto.SparseTensor, type_: TensorType | SparseTensorType) -> None:
    proto.SetInParent()
    if type_.dtype is not DType.UNDEFINED:
        proto.elem_type = type_.dtype.code
    if type_.shape is None:
        return
    proto.shape.SetInParent()
    for index, dim in enumerate(type_.shape):
        made = proto.shape.dim.add()
        if isinstance(dim, int):
            made.dim_value = dim
        elif dim is not None:
            made.dim_param = dim
        if index < len(type_.dim_denotations) and type_.dim_denotations[index]:
            made.denotation = type_.dim_denotations[index]
