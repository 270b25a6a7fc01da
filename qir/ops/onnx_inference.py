"""The slow path of shape inference: onnx's own per-node inference, for ops that have no rule here.

Only the node, the types of its inputs and its small constants are handed over, never weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference

from qir.ir import (
    Attribute,
    AttrKind,
    DType,
    MapType,
    Node,
    OptionalType,
    SequenceType,
    SparseTensor,
    SparseTensorType,
    Tensor,
    TensorType,
    Type,
)
from qir.ops.schema import LARGEST_VERSION, OpSchema
from qir.ops.shape_rule import Content, Engine, RuleError, Unknown

__all__ = ["infer_with_onnx", "small_tensor_proto", "type_of_proto", "type_to_proto"]

_MOST_ELEMENTS = 4096


def infer_with_onnx(
    engine: Engine, node: Node, types: Sequence[Type | None], schema: OpSchema, imports: Mapping[str, int]
) -> list[Type | None]:
    """The types of the outputs. Raises Unknown where onnx can say nothing, RuleError where it objects."""
    assert schema.origin is not None
    proto = onnx.NodeProto(op_type=node.op, domain=node.domain)
    input_types: dict[str, onnx.TypeProto] = {}
    input_data: dict[str, onnx.TensorProto] = {}
    for index, value in enumerate(node.inputs):
        name = "" if value is None else f"i{index}"
        proto.input.append(name)
        if value is None:
            continue
        try:
            input_types[name] = type_to_proto(types[index])
        except ValueError:
            raise RuleError(f"input {index} has a dimension beyond 64 bits") from None
        if (tensor := engine.constant_of(value)) is not None and (data := small_tensor_proto(tensor)) is not None:
            input_data[name] = data
        elif isinstance(types[index], TensorType) and (content := engine.content_of(value)) is not None:
            if (known := _content_proto(content, types[index])) is not None:
                input_data[name] = known
    proto.output.extend(f"o{index}" if value.name else "" for index, value in enumerate(node.outputs))
    for attribute in node.attributes.values():
        resolved = engine.binding(attribute.ref) if attribute.ref else attribute
        if resolved is None:
            raise Unknown
        proto.attribute.append(_attribute_proto(attribute.name, resolved))
    opsets = [onnx.helper.make_opsetid(domain, min(version, LARGEST_VERSION)) for domain, version in imports.items()]
    try:
        found = onnx.shape_inference.infer_node_outputs(schema.origin, proto, input_types, input_data, None, opsets)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise RuleError(_first_line(error)) from None
    except (RuntimeError, ValueError, KeyError) as error:
        raise Unknown from error
    return [None if (t := found.get(name)) is None else type_of_proto(t) for name in proto.output]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def small_tensor_proto(tensor: Tensor) -> onnx.TensorProto | None:
    """A TensorProto of a small constant; None for a large one or a stub."""
    if tensor.size > _MOST_ELEMENTS or tensor.is_stub:
        return None
    proto = onnx.TensorProto(data_type=tensor.dtype.code, dims=tensor.shape)
    if tensor.dtype is DType.STRING:
        proto.string_data.extend(tensor.numpy().reshape(-1).tolist())
    else:
        proto.raw_data = tensor.packed().tobytes()
    return proto


def _content_proto(content: Content, type_: Type | None) -> onnx.TensorProto | None:
    if not isinstance(type_, TensorType) or type_.static_shape is None:
        return None
    if not all(isinstance(c, int | float) for c in content) or type_.dtype not in (DType.INT64, DType.INT32):
        return None
    return small_tensor_proto(Tensor.of(np.array(content, type_.dtype.numpy).reshape(type_.static_shape)))


def _attribute_proto(name: str, attribute: Attribute) -> onnx.AttributeProto:
    proto = onnx.AttributeProto(name=name, type=int(attribute.kind))  # type: ignore[arg-type]
    value: Any = attribute.value
    match attribute.kind:
        case AttrKind.FLOAT:
            proto.f = value
        case AttrKind.INT:
            proto.i = value
        case AttrKind.STRING:
            proto.s = value
        case AttrKind.FLOATS:
            proto.floats.extend(value)
        case AttrKind.INTS:
            proto.ints.extend(value)
        case AttrKind.STRINGS:
            proto.strings.extend(value)
        case AttrKind.TENSOR:
            tensor = small_tensor_proto(value)
            proto.t.CopyFrom(tensor or onnx.TensorProto(data_type=value.dtype.code, dims=value.shape))
        case AttrKind.TYPE:
            proto.tp.CopyFrom(type_to_proto(value))
        case AttrKind.SPARSE_TENSOR:
            assert isinstance(value, SparseTensor)
            proto.sparse_tensor.dims.extend(value.shape)
        case _:
            raise Unknown
    return proto


def type_to_proto(type_: Type | None) -> onnx.TypeProto:
    """An ONNX type; an unknown one is empty."""
    proto = onnx.TypeProto()
    match type_:
        case TensorType() | SparseTensorType():
            tensor: Any = proto.tensor_type if isinstance(type_, TensorType) else proto.sparse_tensor_type
            tensor.elem_type = type_.dtype.code
            if type_.shape is not None:
                tensor.shape.SetInParent()
                for dim in type_.shape:
                    made = tensor.shape.dim.add()
                    if isinstance(dim, int):
                        made.dim_value = dim
                    elif dim is not None:
                        made.dim_param = dim
        case SequenceType():
            proto.sequence_type.elem_type.CopyFrom(type_to_proto(type_.element))
        case OptionalType():
            proto.optional_type.elem_type.CopyFrom(type_to_proto(type_.element))
        case MapType():
            proto.map_type.key_type = type_.key.code
            proto.map_type.value_type.CopyFrom(type_to_proto(type_.value))
        case _:
            pass
    return proto


def type_of_proto(proto: onnx.TypeProto) -> Type | None:
    """The IR type; None for an empty one."""
    match proto.WhichOneof("value"):
        case "tensor_type" | "sparse_tensor_type" as kind:
            tensor: Any = getattr(proto, kind)
            if not tensor.elem_type:
                return None
            shape = None
            if tensor.HasField("shape"):
                shape = tuple(_dim(dim) for dim in tensor.shape.dim)
            dtype = DType.from_code(tensor.elem_type)
            return TensorType(dtype, shape) if kind == "tensor_type" else SparseTensorType(dtype, shape)
        case "sequence_type":
            return SequenceType(type_of_proto(proto.sequence_type.elem_type))
        case "optional_type":
            return OptionalType(type_of_proto(proto.optional_type.elem_type))
        case "map_type":
            return MapType(DType.from_code(proto.map_type.key_type), type_of_proto(proto.map_type.value_type))
    return None


def _dim(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) or None
