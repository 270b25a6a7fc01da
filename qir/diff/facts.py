"""One model in numbers: operators, parameters, multiply-accumulates, bytes, and which numbers it computes in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from qir.analysis.cost import node_cost, open_batch, with_symbols
from qir.diff.changes import ModelFacts
from qir.diff.describe import MOST_INFERRED
from qir.diff.folding import Note
from qir.diff.view import Constant, View, all_views
from qir.ir import DType, Model, Node, SparseTensor, Tensor, TensorType, Value, format_type
from qir.ir.packing import packed_size

__all__ = ["model_facts"]

_PRODUCTS = frozenset(
    {
        *("Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN", "Attention", "FusedMatMul", "FusedConv"),
        *("FusedGemm", "MultiHeadAttention", "GroupQueryAttention", "QAttention", "Einsum", "DeformConv"),
    }
)
_INTEGER_PRODUCTS = frozenset(
    {
        *("QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat"),
        *("DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits"),
    }
)
_UNCOUNTED = frozenset({"Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention", "Einsum", "DeformConv"})
"""Products of which nobody says how many multiply-accumulates they take."""


def model_facts(model: Model, views: Iterable[View]) -> ModelFacts:
    """``views`` are those of the main graph and of all functions."""
    views = [inner for view in views for inner in all_views(view)]
    nodes = list(model.walk())
    ops = Counter(node.op_id for node in nodes)
    names: Counter[str] = Counter()
    for (domain, op, _), count in ops.items():
        if op != "Constant":
            names[f"{domain}.{op}" if domain not in ("", "ai.onnx") else op] += count
    constants = _constants(model, nodes if any(op == "Constant" for _, op, _ in ops) else ())
    kinds = Counter((tensor.dtype, tensor.shape) for tensor in constants)  # most are alike in a large graph
    bytes_by_dtype: Counter[str] = Counter()
    for (dtype, shape), count in kinds.items():
        if dtype is not DType.STRING:
            bytes_by_dtype[str(dtype)] += count * packed_size(dtype, math.prod(shape))
    for tensor in constants:
        if tensor.dtype is DType.STRING:
            bytes_by_dtype[str(tensor.dtype)] += tensor.nbytes
    products = any(op in _PRODUCTS or op in _INTEGER_PRODUCTS for _, op, _ in ops)
    macs, unknown = _macs(nodes) if products else (0, 0)
    batch: dict[str, int] = {}
    if unknown and len(nodes) <= MOST_INFERRED and (batch := open_batch(model)):
        macs, unknown = _macs(with_symbols(model, batch).walk())
        if unknown and (ordered := _in_order(model)) is not None:
            macs, unknown = _macs(with_symbols(ordered, batch).walk())
    graph = model.graph
    return ModelFacts(
        nodes=names.total(),
        ops=_most_first(names),
        parameters=sum(count * math.prod(shape) for (_, shape), count in kinds.items()),
        bytes_by_dtype=_most_first(bytes_by_dtype),
        macs=macs,
        macs_unknown=unknown,
        macs_batch=batch,
        precision=_most_first(_precision(views)),
        opsets={domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        inputs={value.name: format_type(value.type) for value in graph.inputs if value.const is None},
        outputs={value.name: format_type(value.type) for value in graph.outputs},
    )


def _in_order(model: Model) -> Model | None:
    """A copy in which types can be inferred front to back; None where nothing stands out of order, or in a circle."""
    copy = model.clone()
    try:
        moved = [graph.sort() for graph in copy.graphs()]
    except ValueError:
        return None
    return copy if any(moved) else None


def _most_first(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _constants(model: Model, nodes: Iterable[Node]) -> list[Tensor]:
    """Dense tensors of initializers and of Constants among the nodes; a sparse one stands for its values and indices.
    Each once."""
    found: dict[int, Tensor] = {}

    def add(content: Constant | None) -> None:
        if isinstance(content, SparseTensor):
            add(content.values)
            add(content.indices)
        elif content is not None:
            found[id(content)] = content

    for graph in model.graphs():
        for value in graph.initializers:
            add(value.const)
    for node in nodes:
        if node.op == "Constant":
            for attribute in node.attributes.values():
                if isinstance(attribute.value, Tensor | SparseTensor):
                    add(attribute.value)
    return list(found.values())


def _macs(nodes: Iterable[Node]) -> tuple[int | None, int]:
    total = unknown = known = 0
    for node in nodes:
        if node.op not in _PRODUCTS and node.op not in _INTEGER_PRODUCTS:
            continue
        macs = None if node.op in _UNCOUNTED else node_cost(node).macs
        if macs is None:
            unknown += 1
        elif macs:
            known += 1
            total += macs
    return (total if known or not unknown else None), unknown


def _precision(views: list[View]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for view in views:
        for number, op in enumerate(view.ops):
            if op[1] in _PRODUCTS or op[1] in _INTEGER_PRODUCTS:
                counts[_numbers_of(view, number)] += 1
    return counts


def _numbers_of(view: View, number: int) -> str:
    """``u8 x s8``, ``dynamic u8 x s8``, ``s4 weights``, ``f32``."""
    activation: Note | None = None
    weight: Note | None = None
    for slot in view.slots[number]:
        if slot.note is None or slot.index > 2:
            continue
        if view.values[slot.value].constant is None:
            activation = activation or slot.note
        elif weight is None:
            weight = slot.note
    if activation is None and weight is None:
        return _float_type(view, number)
    if activation is None:
        assert weight is not None
        return f"{weight.dtype} weights"
    dynamic = "dynamic " if activation.dynamic else ""
    return f"{dynamic}{activation.dtype} x {weight.dtype if weight is not None else activation.dtype}"


def _float_type(view: View, number: int) -> str:
    for slot in view.slots[number]:
        content = view.values[slot.value]
        dtype = content.constant.dtype if content.constant is not None else _dtype(content.value)
        if dtype is not None:
            return str(dtype)
    for value in view.nodes[number].outputs:
        if (dtype := _dtype(value)) is not None:
            return str(dtype)
    return "?"


def _dtype(value: Value | None) -> object:
    return value.type.dtype if value is not None and isinstance(value.type, TensorType) else None
