"""Which version of the ONNX file format a model needs (onnx.proto, enum Version)."""

from __future__ import annotations

from qir.ir import DType, Model, SparseTensor, Tensor, TensorType

__all__ = ["needed_ir_version"]

_OF_DTYPE = {
    DType.BFLOAT16: 4,
    DType.FLOAT8E4M3FN: 9,
    DType.FLOAT8E4M3FNUZ: 9,
    DType.FLOAT8E5M2: 9,
    DType.FLOAT8E5M2FNUZ: 9,
    DType.UINT4: 10,
    DType.INT4: 10,
    DType.FLOAT4E2M1: 11,
    DType.FLOAT8E8M0: 12,
    DType.UINT2: 13,
    DType.INT2: 13,
    DType.FLOAT6E2M3: 14,
    DType.FLOAT6E3M2: 14,
}
_OF_OPSET = ((8, 3), (9, 4), (10, 5), (11, 6), (14, 7), (18, 8), (20, 9), (22, 10), (23, 11), (24, 12))
"""(last default opset, IR version of the ONNX release that brought it), from onnx's docs/Versioning.md."""
_NEWEST = 13
"""onnxruntime 1.31 loads no later one. Only the 6-bit types need more."""


def needed_ir_version(model: Model) -> int:
    """The lowest version that has what the model uses."""
    opset = model.opset() or 1
    version = next((ir for last, ir in _OF_OPSET if opset <= last), _NEWEST)
    if model.functions:
        version = max(version, 10 if any(function.overload for function in model.functions.values()) else 8)
    for graph in model.graphs():
        if graph.metadata:
            version = max(version, 10)
        for value in graph.values():
            if isinstance(value.type, TensorType):
                version = max(version, _OF_DTYPE.get(value.type.dtype, 0))
            if isinstance(value.const, SparseTensor):
                version = max(version, 6)
            elif isinstance(value.const, Tensor) and not value.is_input:
                version = max(version, 4)
        if version < 10 and any(node.metadata or node.overload for node in graph.nodes):
            version = 10
    return version
