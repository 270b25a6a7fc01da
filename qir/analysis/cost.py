"""What a model costs: multiply-accumulates, parameters and bytes moved, per node and in all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from qir.errors import OptionError, suggest
from qir.ir import Graph, Model, Node, Tensor, TensorType, Value
from qir.ops.shape_inference import infer

__all__ = [
    "ModelCost",
    "NodeCost",
    "model_cost",
    "node_cost",
    "open_batch",
    "value_bytes",
    "with_input_shapes",
    "with_symbols",
]


@dataclass(frozen=True, slots=True)
class NodeCost:
    """Of one run of a node; None where a shape is not known. Bodies are not included."""

    macs: int | None
    """Multiply-accumulates of products (Conv, MatMul, Gemm, recurrent ops); 0 for all other ops."""
    parameters: int
    """Elements of the constants that it reads."""
    parameter_bytes: int
    read_bytes: int | None
    """Of activations."""
    written_bytes: int | None


@dataclass(slots=True)
class ModelCost:
    """Sums over all nodes, those of bodies counted once. ``unknown`` names nodes whose MACs a missing shape hides."""

    macs: int = 0
    parameters: int = 0
    parameter_bytes: int = 0
    moved_bytes: int = 0
    nodes: int = 0
    unknown: list[str] = field(default_factory=list)


def with_input_shapes(model: Model, shapes: Mapping[str, Sequence[int]]) -> Model:
    """A copy with inputs of these shapes (by name) in which all other shapes are inferred from them.

    Raises OptionError for the name of no input and for another rank.
    """
    copy = model.clone()
    inputs = {value.name: value for value in copy.graph.inputs}
    graphs = [copy.graph, *(function.graph for function in copy.functions.values())]
    # Symbols stand for the old sizes: forget them everywhere, so that inference fills in the new ones.
    for value in (value for top in graphs for graph in top.graphs() for value in graph.values()):
        if isinstance(value.type, TensorType) and value.shape is not None and not value.type.is_static:
            value.type = replace(value.type, shape=tuple(d if isinstance(d, int) else None for d in value.shape))
    for name, shape in shapes.items():
        value_or_none = inputs.get(name)
        if value_or_none is None:
            raise OptionError(f"a shape is given for {name!r}, which is no input of the model{suggest(name, inputs)}")
        old = value_or_none.type
        if isinstance(old, TensorType) and old.rank == 0 and math.prod(shape) == 1:
            continue  # runtimes take one-element arrays for scalars
        if not isinstance(old, TensorType) or (old.rank is not None and old.rank != len(shape)):
            raise OptionError(f"input {name!r} cannot have the shape {list(shape)}")
        value_or_none.type = replace(old, shape=tuple(shape))
    infer(copy)
    return copy


def open_batch(model: Model, given: Mapping[str, int] | None = None) -> dict[str, int]:
    """The symbols that stand for the first axis of inputs, each as 1: costs of one sample. ``given`` sizes aside."""
    shapes = [value.shape for value in model.graph.inputs if value.const is None and value.shape]
    return {shape[0]: 1 for shape in shapes if isinstance(shape[0], str) and shape[0] not in (given or {})}


def with_symbols(model: Model, sizes: Mapping[str, int]) -> Model:
    """A copy in which symbols of the inputs' shapes have these sizes; see ``with_input_shapes``."""
    shapes = {
        value.name: tuple(sizes.get(size, size) if isinstance(size, str) else size for size in value.shape)
        for value in model.graph.inputs
        if value.const is None and value.shape is not None
    }
    fixed = {name: [size for size in shape if isinstance(size, int)] for name, shape in shapes.items()}
    return with_input_shapes(model, {name: found for name, found in fixed.items() if len(found) == len(shapes[name])})


def model_cost(model: Model) -> ModelCost:
    """Costs of a model with inferred shapes; see ``with_input_shapes`` where they are symbolic.

    A constant counts once however many nodes read it.
    """
    total = ModelCost()
    seen: dict[int, None] = {}
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in (inner for top in graphs for inner in top.graphs()):
        _add_constants(graph, total, seen)
        for node in graph.nodes:
            cost = node_cost(node)
            total.nodes += 1
            if cost.macs is None:
                total.unknown.append(node.label)
            total.macs += cost.macs or 0
            total.moved_bytes += (cost.read_bytes or 0) + (cost.written_bytes or 0)
    return total


def node_cost(node: Node) -> NodeCost:
    """The cost of one node from the shapes of its operands and results."""
    constants = {v: None for v in node.inputs if v is not None and isinstance(v.const, Tensor) and not v.is_input}
    tensors = [value.const for value in constants if isinstance(value.const, Tensor)]
    reads = [value_bytes(v) for v in node.inputs if v is not None and v not in constants]
    writes = [value_bytes(v) for v in node.outputs if v.name]
    return NodeCost(
        _macs(node),
        sum(tensor.size for tensor in tensors),
        sum(tensor.nbytes for tensor in tensors),
        _sum(reads),
        _sum(writes),
    )


def value_bytes(value: Value) -> int | None:
    """Bytes that the value takes in memory (sub-byte elements packed); None where dtype or shape is not known."""
    elements = _elements(value)
    return None if elements is None or value.dtype is None else (elements * value.dtype.bits + 7) // 8


def _add_constants(graph: Graph, total: ModelCost, seen: dict[int, None]) -> None:
    for value in graph.initializers:
        if isinstance(value.const, Tensor) and id(value.const) not in seen:
            seen[id(value.const)] = None
            total.parameters += value.const.size
            total.parameter_bytes += value.const.nbytes


def _sum(parts: list[int | None]) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _dims(value: Value | None) -> tuple[int, ...] | None:
    return value.type.static_shape if value is not None and isinstance(value.type, TensorType) else None


def _elements(value: Value) -> int | None:
    dims = _dims(value)
    return None if dims is None else math.prod(dims)


def _macs(node: Node) -> int | None:
    match node.op:
        case "Conv" | "ConvInteger" | "FusedConv":
            return _conv_macs(node, 1)
        case "QLinearConv":
            return _conv_macs(node, 3)
        case "ConvTranspose":
            # Every input element meets every tap of its group's filters.
            source, w = _elements_of(node, 0), _dims(node.input(1))
            return None if source is None or w is None else source * math.prod(w[1:])
        case "MatMul" | "MatMulInteger" | "Gemm" | "FusedMatMul" | "FusedGemm" | "QLinearMatMul" | "QGemm":
            return _matmul_macs(node, bool(node.get("transA", 0)))
        case "MatMulIntegerToFloat" | "DynamicQuantizeMatMul" | "MatMulNBits":
            return _matmul_macs(node, False)
        case "LSTM" | "GRU" | "RNN" | "DynamicQuantizeLSTM":
            return _recurrent_macs(node)
    return 0


def _elements_of(node: Node, index: int) -> int | None:
    dims = _dims(node.input(index))
    return None if dims is None else math.prod(dims)


def _conv_macs(node: Node, weight: int) -> int | None:
    """Outputs times taps."""
    result, w = _elements(node.output), _dims(node.input(weight))
    return None if result is None or w is None else result * math.prod(w[1:])


def _matmul_macs(node: Node, transposed: bool) -> int | None:
    """Outputs times the length of the reduction."""
    result, a = _elements(node.output), _dims(node.input(0))
    return None if result is None or not a else result * a[0 if transposed and len(a) == 2 else -1]


def _recurrent_macs(node: Node) -> int | None:
    """Per step and sample: the products of W (directions, gates * hidden, inputs) and R (.., .., hidden)."""
    x, w, r = (_dims(node.input(index)) for index in range(3))
    if x is None or w is None or r is None or len(x) != 3:
        return None
    return x[0] * x[1] * (math.prod(w) + math.prod(r))
