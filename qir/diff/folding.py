"""Quantization folded: what a quantized model computes, read as a float graph with notes at its operands.

Quantizers and dequantizers disappear, a QLinearConv is a Conv, a MatMulInteger with its casts is a MatMul; each operand
carries a note of how it is stored. So a float model and its integer form have the same shape, and a diff of the two is
a diff of notes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from qir.ir import Attribute, DType, Model, Node, OpId, Tensor, Value

__all__ = ["Folding", "Note", "Operand", "fold_model", "resolve"]


@dataclass(frozen=True, slots=True)
class Note:
    """How an operand is stored: in which type, with which parameters (None where they are computed at run time)."""

    dtype: DType | None
    scale: Value | None
    zero: Value | None
    axis: int | None = None
    block: int = 0
    dynamic: bool = False
    integer: bool = False
    """The node itself takes integers (QLinearConv, MatMulInteger ...), it needs no dequantizer."""
    nodes: tuple[Node, ...] = ()
    """The quantizers and dequantizers that it stands for."""
    others: tuple[Value | Attribute, ...] = ()
    """Whatever else says how: parameters of further quantizers on the way, attributes such as ``saturate``."""


Operand = tuple[Value | None, Note | None]
"""What a folded node reads (None: a missing optional operand), and how it is stored (None: as it is)."""


@dataclass(slots=True)
class Folding:
    """``gone``: nodes that notes stand for. ``alias``: what a value is without quantization. ``nodes``: operator and
    operands of integer kernels as their float operator has them."""

    gone: set[Node]
    alias: dict[Value, Operand]
    nodes: dict[Node, tuple[OpId, list[Operand]]]


def fold_model(model: Model) -> Folding:
    """Linear. Quantizers whose integers leave a graph stay, and what reads them."""
    folding = Folding(set(), {}, {})
    for node in model.walk():
        if node.op in _FOLDS and node.domain in ("", "ai.onnx", "com.microsoft"):
            _FOLDS[node.op](node, folding)
    return folding


def resolve(value: Value | None, folding: Folding) -> Operand:
    """The value behind quantizers, with the note nearest to the reader."""
    note: Note | None = None
    while value is not None and (alias := folding.alias.get(value)) is not None:
        value = alias[0]
        note = _merged(note, alias[1])
    return value, note


def _merged(near: Note | None, far: Note | None) -> Note | None:
    if near is None or far is None:
        return near or far
    scale, zero = near.scale or far.scale, near.zero or far.zero
    rest = (value for value in (far.scale, far.zero) if value is not None and value is not scale and value is not zero)
    return Note(
        near.dtype or far.dtype, scale, zero,
        near.axis if near.axis is not None else far.axis, near.block or far.block,
        near.dynamic or far.dynamic, near.integer or far.integer, near.nodes + far.nodes,
        (*near.others, *far.others, *rest),
    )  # fmt: skip


def _constant(value: Value | None) -> bool:
    if value is None or value.const is not None:
        return True
    producer = value.producer
    return producer is not None and producer.op == "Constant"


def _dtype(value: Value | None) -> DType | None:
    if value is None:
        return None
    if isinstance(value.const, Tensor):
        return value.const.dtype
    producer = value.producer
    if producer is not None and producer.op == "Constant" and isinstance(tensor := producer.get("value"), Tensor):
        return tensor.dtype
    return value.dtype


def _quantizer(node: Node, folding: Folding) -> None:
    scale, zero = node.input(1), node.input(2)
    if not _constant(scale) or not _constant(zero) or node.output.is_output or node.input(0) is None:
        return
    dtype = _dtype(zero) or DType.UINT8
    if not all(_reads_integers(user) for user in node.output.users) or not node.output.uses:
        return
    folding.gone.add(node)
    note = _note(node, dtype, scale, zero)
    source = node.input(0)
    barrier = None if source is None else source.producer
    if barrier is not None and _is_barrier(barrier):
        folding.gone.add(barrier)
        folding.alias[barrier.output] = (barrier.input(0), None)
        note = replace(note, nodes=(barrier, *note.nodes))
    folding.alias[node.output] = (source, note)


def _is_barrier(node: Node) -> bool:
    """A Max of one value that only quantizers read: it keeps a runtime from fusing what stands before it."""
    return (
        node.op == "Max"
        and node.domain in ("", "ai.onnx")
        and len(node.inputs) == 1
        and not node.output.is_output
        and all(user.op == "QuantizeLinear" for user in node.output.users)
    )


def _note(node: Node, dtype: DType | None, scale: Value | None, zero: Value | None) -> Note:
    axis = node.get("axis", 1) if scale is not None and scale.shape not in ((), (1,)) else None
    said = tuple(a for name, a in sorted(node.attributes.items()) if name not in ("axis", "block_size"))
    return Note(dtype, scale, zero, axis, int(node.get("block_size", 0) or 0), nodes=(node,), others=said)


def _reads_integers(user: Node) -> bool:
    return user.op == "DequantizeLinear" or user.op == "QLinearConcat" or user.op in _KERNELS


def _dequantizer(node: Node, folding: Folding) -> None:
    data, scale, zero = node.input(0), node.input(1), node.input(2)
    if data is None or not _constant(scale) or not _constant(zero):
        return
    source, _ = resolve(data, folding)
    made_here = source is not None and source.producer is not None and source.producer.op != "Constant"
    if not made_here and node.output.is_output:
        return  # nothing would be left of the path from an input to an output
    folding.gone.add(node)
    folding.alias[node.output] = (data, _note(node, _dtype(data) or _dtype(zero), scale, zero))


def _dynamic_quantizer(node: Node, folding: Folding) -> None:
    codes = node.outputs[0]
    if not codes.is_output and all(_reads_integers(user) for user in codes.users):
        folding.gone.add(node)
        note = Note(DType.UINT8, None, None, dynamic=True, integer=True, nodes=(node,))
        folding.alias[codes] = (node.input(0), note)


@dataclass(frozen=True, slots=True)
class _Kernel:
    """An integer kernel: its float operator, for each of its operands (data, scale, zero point) by input index, then
    the parameters of its result. -1: it has none there."""

    op: str
    operands: tuple[tuple[int, int, int], ...]
    result: tuple[int, int] | None = None


_PLAIN = (-1, -1)
_KERNELS = {
    "QLinearConv": _Kernel("Conv", ((0, 1, 2), (3, 4, 5), (8, *_PLAIN)), (6, 7)),
    "QLinearMatMul": _Kernel("MatMul", ((0, 1, 2), (3, 4, 5)), (6, 7)),
    "QLinearAdd": _Kernel("Add", ((0, 1, 2), (3, 4, 5)), (6, 7)),
    "QLinearMul": _Kernel("Mul", ((0, 1, 2), (3, 4, 5)), (6, 7)),
    "QLinearSigmoid": _Kernel("Sigmoid", ((0, 1, 2),), (3, 4)),
    "QLinearLeakyRelu": _Kernel("LeakyRelu", ((0, 1, 2),), (3, 4)),
    "QLinearSoftmax": _Kernel("Softmax", ((0, 1, 2),), (3, 4)),
    "QLinearGlobalAveragePool": _Kernel("GlobalAveragePool", ((0, 1, 2),), (3, 4)),
    "QLinearAveragePool": _Kernel("AveragePool", ((0, 1, 2),), (3, 4)),
    "QGemm": _Kernel("Gemm", ((0, 1, 2), (3, 4, 5), (6, *_PLAIN)), (7, 8)),
    "MatMulInteger": _Kernel("MatMul", ((0, -1, 2), (1, -1, 3))),
    "ConvInteger": _Kernel("Conv", ((0, -1, 2), (1, -1, 3))),
    "MatMulIntegerToFloat": _Kernel("MatMul", ((0, 2, 4), (1, 3, 5), (6, *_PLAIN))),
    "DynamicQuantizeMatMul": _Kernel("MatMul", ((0, *_PLAIN), (1, 2, 3), (4, *_PLAIN))),
    "DynamicQuantizeLSTM": _Kernel(
        "LSTM",
        ((0, *_PLAIN), (1, 8, 9), (2, 10, 11), *((index, *_PLAIN) for index in range(3, 8))),
    ),
    "MatMulNBits": _Kernel("MatMul", ((0, *_PLAIN), (1, 2, 3), (5, *_PLAIN), (4, *_PLAIN))),
    "GatherBlockQuantized": _Kernel("Gather", ((0, 2, 3), (1, *_PLAIN))),
}
_DYNAMIC = frozenset({"DynamicQuantizeMatMul", "DynamicQuantizeLSTM"})
_PACKED = {"MatMulNBits": 0, "GatherBlockQuantized": 128}
"""Kernels whose weights are several to a byte, with the default of their blocks (onnxruntime, ContribOperators.md)."""
_UNPACKED = {2: DType.UINT2, 4: DType.UINT4, 8: DType.UINT8}


def _kernel(node: Node, folding: Folding) -> None:
    kernel = _KERNELS[node.op]
    operands = [_kernel_operand(node, *places, folding) for places in kernel.operands]
    while operands and operands[-1][0] is None:
        operands.pop()
    if node.op in _DYNAMIC:
        value, note = operands[0]
        operands[0] = (value, _merged(Note(DType.UINT8, None, None, dynamic=True, integer=True), note))
    folding.nodes[node] = (("", kernel.op, ""), operands)
    if kernel.result is not None:
        scale, zero = node.input(kernel.result[0]), node.input(kernel.result[1])
        _store(operands, Note(_dtype(zero), scale, zero, integer=True))
    if node.op in ("MatMulInteger", "ConvInteger"):
        _fold_rescaling(node, operands, folding)


def _sum(node: Node, folding: Folding) -> None:
    """A Sum of two is an Add, in a spelling that keeps a runtime from fusing it."""
    if node.domain in ("", "ai.onnx") and len(node.inputs) == 2:
        folding.nodes[node] = (("", "Add", ""), [resolve(value, folding) for value in node.inputs])


def _concat(node: Node, folding: Folding) -> None:
    count = (len(node.inputs) - 2) // 3
    operands = [_kernel_operand(node, 2 + 3 * i, 3 + 3 * i, 4 + 3 * i, folding) for i in range(count)]
    folding.nodes[node] = (("", "Concat", ""), operands)
    _store(operands, Note(_dtype(node.input(1)), node.input(0), node.input(1), integer=True))


def _store(operands: list[Operand], result: Note) -> None:
    """What a kernel stores its result in; said with its first operand, since what reads the result says it too."""
    value, note = operands[0]
    operands[0] = (value, _merged(note, Note(None, None, None, others=_values(result))))


def _values(note: Note) -> tuple[Value, ...]:
    return tuple(value for value in (note.scale, note.zero) if value is not None)


def _kernel_operand(node: Node, data: int, scale: int, zero: int, folding: Folding) -> Operand:
    value, note = resolve(node.input(data), folding)
    if value is None:
        return None, None
    if scale < 0 and zero < 0:
        return value, note
    own_scale = node.input(scale) if scale >= 0 else None
    own_zero = node.input(zero) if zero >= 0 else None
    dtype = _dtype(node.input(data)) or _dtype(own_zero)
    if node.op in _PACKED and dtype is DType.UINT8:
        dtype = _UNPACKED.get(node.get("bits", 4), dtype)
    dynamic = own_scale is not None and not _constant(own_scale)
    own = Note(
        dtype,
        None if dynamic else own_scale,
        None if dynamic or not _constant(own_zero) else own_zero,
        block=int(node.get("block_size", _PACKED.get(node.op, 0))),
        integer=node.op not in _PACKED,
    )
    return value, _merged(own, note)


def _lookup(node: Node, folding: Folding) -> None:
    """Gather of codes, Cast, Mul with a Gather of scales by the same indices: a look-up in a quantized table."""
    table = node.input(0)
    if table is None or not _constant(table) or (dtype := _dtype(table)) is None or not dtype.is_integer:
        return
    cast = _only_user(node.output)
    product = _only_user(cast.output) if cast is not None and cast.op == "Cast" else None
    if cast is None or product is None or product.op != "Mul":
        return
    other = product.input(0) if product.input(1) is cast.output else product.input(1)
    scales = None if other is None else other.producer
    if scales is None or scales.op != "Gather" or not _constant(scales.input(0)) or len(scales.output.uses) != 1:
        return
    if scales.input(1) is not node.input(1):
        return
    folding.gone |= {cast, product, scales}
    folding.alias[product.output] = (node.output, None)
    note = Note(dtype, scales.input(0), None, axis=0, integer=True, nodes=(scales, cast, product))
    folding.nodes[node] = (node.op_id, [(table, note), resolve(node.input(1), folding)])


def _fold_rescaling(node: Node, operands: list[Operand], folding: Folding) -> None:
    """MatMulInteger or ConvInteger, Cast, and products with the scales: one operator. What is not found stays."""
    cast = _only_user(node.output)
    if cast is None or cast.op != "Cast":
        return
    product = _only_user(cast.output)
    if product is None or product.op != "Mul":
        return
    scale = product.input(0) if product.input(1) is cast.output else product.input(1)
    if scale is None:
        return
    gone = {cast, product}
    weight_scale: Value | None = None
    for factor in _factors(scale, gone):
        producer = factor.producer
        if _constant(factor):
            weight_scale = factor
        elif producer is None or producer.op != "DynamicQuantizeLinear":
            return
    folding.gone |= gone
    folding.alias[product.output] = (node.output, None)
    if weight_scale is not None and len(operands) > 1:
        value, note = operands[1]
        operands[1] = (value, _merged(Note(None, weight_scale, None, integer=True), note))


def _factors(scale: Value, gone: set[Node]) -> Iterator[Value]:
    producer = scale.producer
    if producer is not None and producer.op == "Mul" and not scale.is_output and len(scale.uses) == 1:
        gone.add(producer)
        for value in producer.inputs:
            if value is not None:
                yield value
    else:
        yield scale


def _only_user(value: Value) -> Node | None:
    uses = list(value.uses)
    return uses[0].node if len(uses) == 1 else None


_FOLDS = {
    "QuantizeLinear": _quantizer,
    "DequantizeLinear": _dequantizer,
    "DynamicQuantizeLinear": _dynamic_quantizer,
    "QLinearConcat": _concat,
    "Gather": _lookup,
    "Sum": _sum,
    **dict.fromkeys(_KERNELS, _kernel),
}
