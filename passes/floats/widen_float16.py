"""``widen-float16``: compute a half-precision model in float32, with its inputs and outputs as they were."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from qir.ir import Attribute, AttrKind, DType, Graph, Model, Node, SequenceType, Tensor, TensorType, Type, Value
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult

__all__ = ["WidenFloat16"]

_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


@dataclass(frozen=True)
class WidenFloat16(Pass):
    """Turn f16 constants, values and casts into f32, and cast at the model's inputs and outputs.

    The integer kernels take and give f32; half precision between them would cost a cast each. A model without f16 is
    left alone.

    Before::

        %y: f16[1,8] = MatMul(%x, @w)          // %x: f16[1,4], a graph input

    After::

        %x_f32: f32[1,4] = Cast(%x) {to=1}
        %y_f32: f32[1,8] = MatMul(%x_f32, @w)
        %y: f16[1,8] = Cast(%y_f32) {to=10}
    """

    name: ClassVar[str] = "widen-float16"
    effect: ClassVar[Effect] = Effect.LOSSY

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        result = PassResult()
        half = [use.index for use in model.graph.output_uses if use.value.dtype is DType.FLOAT16]
        for graph in model.graphs():
            interface = set(graph.inputs) if graph is model.graph else set()
            for value in list(graph.values()):
                if value in interface or not _holds_half(value.type):
                    continue
                tensor = value.const
                if isinstance(tensor, Tensor) and tensor.dtype is DType.FLOAT16:
                    value.const = Tensor.of(tensor.numpy().astype(np.float32), name=tensor.name)
                    result.count("constants")
                value.type = _widened(value.type)
                result.count("values")
            _widen_attributes(graph, result)
        _cast_inputs(model.graph, result)
        _cast_outputs(model.graph, half, result)
        result.changed = bool(result.statistics)
        return result


def _holds_half(type_: Type | None) -> bool:
    match type_:
        case TensorType(dtype=dtype):
            return dtype is DType.FLOAT16
        case SequenceType(element=element):
            return _holds_half(element)
    return False


def _widened(type_: Type | None) -> Type | None:
    match type_:
        case TensorType():
            return replace(type_, dtype=DType.FLOAT)
        case SequenceType():
            return replace(type_, element=_widened(type_.element))
    return type_


def _widen_attributes(graph: Graph, result: PassResult) -> None:
    """Casts to f16 become casts to f32, and constants in attributes are widened."""
    for node in graph.nodes:
        for attribute in list(node.attributes.values()):
            value = attribute.value
            if attribute.kind is AttrKind.TENSOR and isinstance(value, Tensor) and value.dtype is DType.FLOAT16:
                wide = Tensor.of(value.numpy().astype(np.float32), name=value.name)
                node.set(attribute.name, Attribute(attribute.name, AttrKind.TENSOR, wide, doc=attribute.doc))
            elif attribute.name in _TYPE_ATTRIBUTES and value == DType.FLOAT16.code:
                node.set(attribute.name, DType.FLOAT.code)
            else:
                continue
            result.count("attributes")


def _cast_inputs(graph: Graph, result: PassResult) -> None:
    first = graph.nodes.first
    for value in graph.inputs:
        if value.dtype is DType.FLOAT16:
            readers = list(value.uses)
            wide = _cast(graph, value, DType.FLOAT, first)
            for use in readers:
                if not use.is_graph_output:
                    use.value = wide
            result.count("casts")


def _cast_outputs(graph: Graph, half: list[int], result: PassResult) -> None:
    """``half``: indices of the outputs that were f16."""
    for index in half:
        use = graph.output_uses[index]
        if use.value.dtype is DType.FLOAT:
            use.replace(_cast(graph, use.value, DType.FLOAT16, None))
            result.count("casts")


def _cast(graph: Graph, value: Value, to: DType, before: Node | None) -> Value:
    assert isinstance(value.type, TensorType)
    node = graph.add_node("Cast", [value], {"to": to.code}, types=[replace(value.type, dtype=to)], before=before)
    return node.output
