"""What a model's inputs and outputs look like from outside: names, element types, shapes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

Model = bytes | str | os.PathLike[str]
"""A serialized ModelProto, or the path of its file."""

Output = Any
"""What a model hands out: an array, a list (sequence), a dict (map), or None (an empty optional)."""

# numpy's stand-in for each ONNX element type, under the name that onnxruntime prints (`tensor(float)`).
# Source: onnx.proto, TensorProto.DataType.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(scalar)
    for name, scalar in {
        "float": np.float32,
        "double": np.float64,
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "float8e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
        "float8e5m2": ml_dtypes.float8_e5m2,
        "float8e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
        "float8e8m0": ml_dtypes.float8_e8m0fnu,
        "float4e2m1": ml_dtypes.float4_e2m1fn,
        "int64": np.int64,
        "int32": np.int32,
        "int16": np.int16,
        "int8": np.int8,
        "int4": ml_dtypes.int4,
        "int2": ml_dtypes.int2,
        "uint64": np.uint64,
        "uint32": np.uint32,
        "uint16": np.uint16,
        "uint8": np.uint8,
        "uint4": ml_dtypes.uint4,
        "uint2": ml_dtypes.uint2,
        "bool": np.bool_,
        "string": np.object_,
        "complex64": np.complex64,
        "complex128": np.complex128,
    }.items()
}

# Elements that ONNX packs below a byte: dtype -> bits.
PACKED_BITS = {DTYPES[name]: 4 for name in ("int4", "uint4", "float4e2m1")} | {DTYPES[n]: 2 for n in ("int2", "uint2")}


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input or output of a model.

    `dtype`: numpy's (ml_dtypes') element type; object for strings; None where the value is no tensor.
    `shape`: sizes, symbol names, None for an axis of unknown size; None as a whole for an unknown rank or no tensor.
    `kind`: `tensor`, `sequence`, `optional`, `map`, `sparse` or `opaque`.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...] | None
    kind: str = "tensor"

    def __str__(self) -> str:
        if self.kind != "tensor":
            return f"{self.name}: {self.kind}"
        element = "string" if self.dtype == np.object_ else str(self.dtype)
        return f"{self.name}: {element}{format_shape(self.shape)}"


OutputSpec = InputSpec


def format_shape(shape: Iterable[int | str | None] | None) -> str:
    """`[N, 3, ?]`; `[...]` for an unknown rank."""
    return "[...]" if shape is None else f"[{', '.join('?' if d is None else str(d) for d in shape)}]"


def specs_from_value_infos(infos: Iterable[Any]) -> tuple[InputSpec, ...]:
    """Specs of `onnx.ValueInfoProto`s, exactly as declared (a scalar and an unknown rank are told apart)."""
    return tuple(_from_type(info.name, info.type) for info in infos)


def _from_type(name: str, type_: Any) -> InputSpec:
    from onnx import TensorProto

    kind = type_.WhichOneof("value")
    if kind != "tensor_type":
        word = {"sparse_tensor_type": "sparse", "sequence_type": "sequence", "optional_type": "optional"}
        return InputSpec(name, None, None, word.get(kind, "map" if kind == "map_type" else "opaque"))
    tensor = type_.tensor_type
    element = TensorProto.DataType.Name(tensor.elem_type).lower()
    shape = tuple(_dim(d) for d in tensor.shape.dim) if tensor.HasField("shape") else None
    return InputSpec(name, DTYPES.get(element), shape)


def _dim(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return dim.dim_param or None


def spec_from_runtime(name: str, type_: str, shape: Iterable[int | str | None]) -> InputSpec:
    """The spec behind onnxruntime's description of an input or output, such as `tensor(float)` and `['N', 3]`."""
    head, _, rest = type_.partition("(")
    if head != "tensor":
        word = {"seq": "sequence", "sparse_tensor": "sparse"}.get(head, head)
        return InputSpec(name, None, None, word if word in ("sequence", "optional", "map", "sparse") else "opaque")
    return InputSpec(name, DTYPES.get(rest.removesuffix(")")), tuple(shape))
