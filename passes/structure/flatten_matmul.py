"""The pass ``flatten-matmul``: linear layers side by side over one batched input become Gemms over one flat one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.ir import DType, Graph, Model, Node, Tensor, TensorType, Value
from qir.passes.structure.simplifications.common import keeps_order
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.rewriting.edits import add_constant, constant_of, is_annotated, is_standard, merge_origin, opset_of

__all__ = ["FlattenMatmul"]

_RESHAPES = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"))


@dataclass(frozen=True)
class FlattenMatmul(Pass):
    """MatMul + bias over more than two axes, whose result is reshaped anyway -> Gemm over a matrix.

    For linear layers that read the same value, as query, key and value of attention do: one Reshape makes a matrix of
    it, each MatMul and Add becomes a Gemm, and the Reshape behind each takes its result as it is. Only where all sizes
    are known, since a runtime then makes Gemms of them too (onnxruntime does, and keeps two Reshapes for each), and
    only where fewer nodes are left.

    Before::

        %a: f32[2,3,4] = MatMul(%x, @q)
        %b: f32[2,3,4] = Add(%a, @q_bias)
        %u: f32[2,3,2,2] = Reshape(%b, @heads)
        %c: f32[2,3,4] = MatMul(%x, @k)
        %d: f32[2,3,4] = Add(%c, @k_bias)
        %v: f32[2,3,2,2] = Reshape(%d, @heads)

    After::

        %r: f32[6,4] = Reshape(%x, @flat)
        %b: f32[6,4] = Gemm(%r, @q, @q_bias)
        %u: f32[2,3,2,2] = Reshape(%b, @heads)
        %d: f32[6,4] = Gemm(%r, @k, @k_bias)
        %v: f32[2,3,2,2] = Reshape(%d, @heads)
    """

    name: ClassVar[str] = "flatten-matmul"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        result = PassResult()
        for graph in model.graphs():
            if opset_of(model, graph) < 7:  # Gemm broadcasts its bias from then on
                continue
            for value, layers in _layers(graph).items():
                if len(layers) > (0 if _is_reshaped(value) else 1):
                    _flatten(value, layers, ctx, result)
        result.changed = bool(result.statistics)
        return result


@dataclass(frozen=True, slots=True)
class _Layer:
    """A MatMul by a constant matrix, the Add of its bias, and the Reshapes or the like that read that."""

    product: Node
    sum: Node
    bias: Value
    readers: tuple[Node, ...]


def _layers(graph: Graph) -> dict[Value, list[_Layer]]:
    """Those of a graph that may be flattened, by what they read."""
    found: dict[Value, list[_Layer]] = {}
    for node in graph.nodes:
        if node.op == "MatMul" and is_standard(node):
            layer = _layer(node)
            source = node.input(0)
            if layer is not None and source is not None:
                found.setdefault(source, []).append(layer)
    return found


def _layer(product: Node) -> _Layer | None:
    source, weight = product.input(0), constant_of(product.input(1))
    if source is None or weight is None or len(weight.shape) != 2 or not weight.dtype.is_float:
        return None
    if not isinstance(source.type, TensorType) or not source.type.is_static or len(source.shape or ()) < 3:
        return None
    if 0 in (source.shape or ()):
        return None
    readers = product.output.users
    if len(product.output.uses) != 1 or len(readers) != 1 or readers[0].graph is not product.graph:
        return None
    total = readers[0]
    if total.op != "Add" or not is_standard(total) or is_annotated(product) or is_annotated(total):
        return None
    if product.region is not None or total.region is not None:
        return None
    bias = next((value for value in total.inputs if value is not None and value is not product.output), None)
    tensor = constant_of(bias)
    if bias is None or tensor is None or tensor.size != weight.shape[1] or tensor.shape[-1:] != (tensor.size,):
        return None
    if len(tensor.shape) > len(source.shape or ()) or total.output.is_output:
        return None
    users = tuple(total.output.users)
    return _Layer(product, total, bias, users) if users and all(map(_only_reshapes, users)) else None


def _only_reshapes(node: Node) -> bool:
    """It leaves the elements in their order, so that a Reshape could stand in its place; all sizes are known."""
    if not is_standard(node) or is_annotated(node) or node.op not in _RESHAPES:
        return False
    type_ = node.output.type
    if not isinstance(type_, TensorType) or not type_.is_static or 0 in (type_.shape or ()):
        return False
    return node.op != "Transpose" or keeps_order(node)


def _is_reshaped(value: Value) -> bool:
    """Made by a Reshape or the like that nobody else needs, so that another one costs nothing."""
    maker = value.producer
    return maker is not None and _only_reshapes(maker) and len(value.uses) == 1


def _flatten(value: Value, layers: list[_Layer], ctx: PassContext, result: PassResult) -> None:
    first = layers[0].product
    if not ctx.numbering.allow("flatten-matmul", *(layer.product for layer in layers)):
        return
    graph, shape = first.graph, value.shape
    assert graph is not None and shape is not None, "checked for each layer"
    sizes = [size for size in shape if isinstance(size, int)]
    rows, depth = math.prod(sizes[:-1]), sizes[-1]
    target = add_constant(first, np.array([rows, depth], np.int64), f"{value.name}_matrix")
    matrix = graph.insert_before(
        first, "Reshape", [value, target], types=[TensorType(_dtype(value), (rows, depth))], source=[first]
    ).output
    for layer in layers:
        _make_gemm(layer, matrix, rows)
        result.count("flatten-matmul")


def _make_gemm(layer: _Layer, matrix: Value, rows: int) -> None:
    product, total = layer.product, layer.sum
    weight, bias = product.input(1), constant_of(layer.bias)
    assert weight is not None and bias is not None, "checked for the layer"
    vector = layer.bias
    if len(bias.shape) != 1:
        vector = add_constant(total, Tensor.of(bias.numpy().reshape(-1), bias.dtype), layer.bias.name)
    for reader in layer.readers:
        wanted = reader.output.shape
        assert wanted is not None, "checked for the layer"
        for name in list(reader.attributes):
            reader.remove(name)
        reader.set_op("Reshape", reader.domain)
        reader.set_inputs([total.output, add_constant(reader, np.array(wanted, np.int64), f"{reader.label}_shape")])
    total.set_op("Gemm")
    total.set_inputs([matrix, weight, vector])
    total.output.type = TensorType(_dtype(matrix), (rows, bias.size))
    merge_origin(total, product)
    product.erase()


def _dtype(value: Value) -> DType:
    assert value.dtype is not None, "its type is known"
    return value.dtype
