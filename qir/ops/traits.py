"""Traits: what passes may assume of an op, as frozen tables.

Names are of ONNX's default domain. An op in no table has no trait: a pass
that asks then does nothing, which is always right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qir.ir import Node, Value

__all__ = [
    "ASSOCIATIVE",
    "COMMUTATIVE",
    "DATA_MOVEMENT",
    "ELEMENTWISE_BINARY",
    "ELEMENTWISE_UNARY",
    "HEAVY",
    "IDEMPOTENT",
    "KEEPS_RANGE",
    "MONOTONE_DECREASING",
    "MONOTONE_INCREASING",
    "NONDETERMINISTIC",
    "SHAPE_INPUTS",
    "HeavyOp",
    "WeightUse",
    "activation_inputs",
    "data_inputs",
    "heavy",
    "is_commutative",
    "is_data_movement",
    "is_deterministic",
    "is_elementwise",
    "is_shape_input",
    "weight_uses",
]


def _ops(names: str) -> frozenset[str]:
    return frozenset(names.split())


COMMUTATIVE = _ops(
    """
    Add Mul And Or Xor Equal Max Min Sum Mean BitwiseAnd BitwiseOr BitwiseXor
    """
)
"""Operands may be given in any order."""

ASSOCIATIVE = _ops(
    """
    Add Mul Max Min Sum And Or Xor BitwiseAnd BitwiseOr BitwiseXor
    """
)
"""(a o b) o c = a o (b o c) but for rounding; Max and Min exactly."""

ELEMENTWISE_UNARY = _ops(
    """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu
    HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink
    Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
    """
)
"""Each element of the output depends on that element of input 0 and on scalars; the shape is that of input 0."""

ELEMENTWISE_BINARY = _ops(
    """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean
    Min Mod Mul Or PRelu Pow Sub Sum Where Xor
    """
)
"""Elementwise over broadcast operands (two, three for Where, any number for Max, Mean, Min and Sum)."""

DATA_MOVEMENT = _ops(
    """
    Compress Concat ConcatFromSequence DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Reshape
    ReverseSequence Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze
    """
)
"""Output elements are input elements, unchanged, in other places (Trilu: or zero)."""

KEEPS_RANGE = DATA_MOVEMENT - {"Trilu"} | {
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Max",
    "MaxPool",
    "Mean",
    "Min",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
}
"""The output lies within the range that all data inputs share (averages: where count_include_pad=0 or 0 is inside)."""

MONOTONE_INCREASING = _ops(
    """
    Asinh Atan Ceil Celu Clip Erf Exp Floor Identity Log Relu Round Sigmoid Sign Sinh Softplus Softsign Sqrt Tanh
    """
)
"""x <= y gives f(x) <= f(y) on the op's domain, whatever the attributes (so not Elu or LeakyRelu: alpha may be < 0)."""

MONOTONE_DECREASING = frozenset(("Acos", "Neg"))

IDEMPOTENT = frozenset(("Abs", "Ceil", "Clip", "Floor", "Identity", "Relu", "Round", "Sign", "Trilu"))
"""f(f(x)) = f(x), for the same attributes and other operands."""

NONDETERMINISTIC = _ops(
    """
    Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike
    """
)
"""Two runs on equal inputs may differ. Dropout that trains does so too: see ``is_deterministic``."""

_ALL_BUT_FIRST = frozenset(range(1, 16))

SHAPE_INPUTS: Mapping[str, frozenset[int]] = {
    "AffineGrid": frozenset({1}),
    "CenterCropPad": frozenset({1}),
    "Compress": frozenset({1}),
    "ConstantOfShape": frozenset({0}),
    "CumSum": frozenset({1}),
    "Expand": frozenset({1}),
    "Gather": frozenset({1}),
    "GatherElements": frozenset({1}),
    "GatherND": frozenset({1}),
    "MaxUnpool": frozenset({1, 2}),
    "OneHot": frozenset({0, 1}),
    "Pad": frozenset({1, 3}),
    "ReduceL1": frozenset({1}),
    "ReduceL2": frozenset({1}),
    "ReduceLogSum": frozenset({1}),
    "ReduceLogSumExp": frozenset({1}),
    "ReduceMax": frozenset({1}),
    "ReduceMean": frozenset({1}),
    "ReduceMin": frozenset({1}),
    "ReduceProd": frozenset({1}),
    "ReduceSum": frozenset({1}),
    "ReduceSumSquare": frozenset({1}),
    "Reshape": frozenset({1}),
    "Resize": frozenset({1, 2, 3}),
    "ReverseSequence": frozenset({1}),
    "RoiAlign": frozenset({2}),
    "ScatterElements": frozenset({1}),
    "ScatterND": frozenset({1}),
    "Slice": _ALL_BUT_FIRST,
    "Split": frozenset({1}),
    "SplitToSequence": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Tile": frozenset({1}),
    "TopK": frozenset({1}),
    "Trilu": frozenset({1}),
    "Unsqueeze": frozenset({1}),
    "Upsample": frozenset({1}),
}
"""Operands that say where or how much (shapes, axes, indices, pads, scales): they are never quantized."""


@dataclass(frozen=True, slots=True)
class WeightUse:
    """An operand that holds parameters when it is constant. ``axis`` is the output channel's, None where it has none.

    ``reduced`` are the axes that are summed over for one output channel.
    """

    index: int
    axis: int | None
    reduced: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class HeavyOp:
    """An op whose cost is multiply-accumulates: indices of its operands by role (bias None: it has none)."""

    activations: tuple[int, ...]
    weights: tuple[int, ...]
    bias: int | None = None


HEAVY: Mapping[str, HeavyOp] = {
    "Attention": HeavyOp((0, 1, 2), ()),
    "Conv": HeavyOp((0,), (1,), 2),
    "ConvTranspose": HeavyOp((0,), (1,), 2),
    "DeformConv": HeavyOp((0,), (1,), 3),
    "Einsum": HeavyOp((0, 1), (1,)),
    "GRU": HeavyOp((0, 5), (1, 2), 3),
    "Gather": HeavyOp((), (0,)),
    "Gemm": HeavyOp((0,), (1,), 2),
    "LSTM": HeavyOp((0, 5, 6), (1, 2), 3),
    "MatMul": HeavyOp((0,), (1,)),
    "RNN": HeavyOp((0, 5), (1, 2), 3),
}
"""Gather counts for its table's bytes. MatMul, Gemm and Einsum take a constant at input 0 too: see ``weight_uses``."""


def _standard(node: Node) -> bool:
    return node.domain in ("", "ai.onnx")


def is_commutative(node: Node) -> bool:
    """Whether all operands may be swapped."""
    return _standard(node) and node.op in COMMUTATIVE


def is_elementwise(node: Node) -> bool:
    return _standard(node) and (node.op in ELEMENTWISE_UNARY or node.op in ELEMENTWISE_BINARY)


def is_data_movement(node: Node) -> bool:
    """Whether every output element is an element of a data input."""
    return _standard(node) and node.op in DATA_MOVEMENT


def is_deterministic(node: Node) -> bool:
    """Whether equal inputs give equal outputs. Bodies and calls of local functions are not looked into."""
    if not _standard(node):
        return True
    if node.op == "Dropout":
        training = node.input(2)
        if training is None:
            return True
        return training.tensor is not None and not bool(training.tensor.item())
    if node.op == "BatchNormalization":
        return not node.get("training_mode", 0)
    return node.op not in NONDETERMINISTIC


def is_shape_input(node: Node, index: int) -> bool:
    """Whether an operand says where or how much, and is no data."""
    return _standard(node) and index in SHAPE_INPUTS.get(node.op, ())


def data_inputs(node: Node) -> list[int]:
    """Indices of the operands that are there and hold data."""
    shape_like = SHAPE_INPUTS.get(node.op, frozenset()) if _standard(node) else frozenset()
    return [index for index, use in enumerate(node.uses) if use is not None and index not in shape_like]


def heavy(node: Node) -> HeavyOp | None:
    """The roles of a heavy op's operands."""
    return HEAVY.get(node.op) if _standard(node) else None


def activation_inputs(node: Node) -> list[int]:
    """Operands of a heavy op that are there and hold activations: those of the role, and computed weights."""
    roles = heavy(node)
    if roles is None:
        return []
    candidates = sorted({*roles.activations, *roles.weights})
    return [i for i in candidates if (value := node.input(i)) is not None and not value.is_constant]


def weight_uses(node: Node) -> list[WeightUse]:
    """The constant operands of a heavy op that are parameters (no bias), with output-channel and reduction axes.

    Conv [M, C/g, k...]: axis 0. ConvTranspose [C, M/g, k...]: axis 1 (of each group). Gemm B [K, N]: axis 1, with
    transB 0; A mirrored. MatMul B [..., K, N]: the last axis, none for a vector. LSTM, GRU and RNN [D, gates * H, K]:
    axis 1. A Gather table [V, E] along axis 0: axis 0, a scale a row, nothing is reduced.
    """
    roles = heavy(node)
    if roles is None:
        return []
    indices = (0, 1) if node.op in ("MatMul", "Gemm", "Einsum") else roles.weights
    found = []
    for index in indices:
        value = node.input(index)
        if value is not None and value.tensor is not None:
            found.append(_weight_use(node, index, value, len(value.tensor.shape)))
    return found


def _weight_use(node: Node, index: int, value: Value, rank: int) -> WeightUse:
    match node.op:
        case "Conv" | "DeformConv":
            return WeightUse(index, 0, tuple(range(1, rank)))
        case "ConvTranspose":
            return WeightUse(index, 1, (0, *range(2, rank)))
        case "Gemm":
            channel = int(not node.get("transB", 0)) if index == 1 else int(bool(node.get("transA", 0)))
            return WeightUse(index, channel, (1 - channel,))
        case "MatMul":
            if rank < 2:
                return WeightUse(index, None, (0,) if rank else ())
            channel, reduced = (rank - 1, rank - 2) if index == 1 else (rank - 2, rank - 1)
            return WeightUse(index, channel, (reduced,))
        case "LSTM" | "GRU" | "RNN":
            return WeightUse(index, 1, (2,))
        case "Gather":
            axis = node.get("axis", 0)
            return WeightUse(index, axis + rank if axis < 0 else axis)
        case _:
            return WeightUse(index, None)
