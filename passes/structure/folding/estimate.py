"""How large a node's results would be, before anything is computed: a small file can ask for a terabyte.

Recorded types are not believed here, they come from the same file. What is exact is computed from the operands' real
shapes and contents; where only a bound is known, the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from qir.ir import Node

__all__ = ["FOLDABLE", "QUANTIZERS", "Size", "Unknown", "elements", "result_sizes"]

Size = tuple[int, ...] | int
"""The shape of a result, or, where that depends on the data, a bound on its number of elements."""


class Unknown(Exception):
    """The size depends on the content or shape of an operand that is not computed yet."""


QUANTIZERS = frozenset(("QuantizeLinear", "DequantizeLinear"))
_SAME_AS_FIRST = QUANTIZERS | frozenset(
    """Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh CumSum Elu Erf Exp Floor Gelu
    HardSigmoid HardSwish Hardmax Identity IsInf IsNaN LeakyRelu Log LogSoftmax LpNormalization Mish Neg Not Reciprocal
    Relu Round ScatterElements ScatterND Selu Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh
    ThresholdedRelu Trilu""".split()
)
_BROADCAST = frozenset(
    """Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min
    Mod Mul Or PRelu Pow Sub Sum Where Xor""".split()
)
_NO_LARGER = frozenset(
    """ArgMax ArgMin Compress DepthToSpace ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Slice SpaceToDepth Split TopK Unique""".split()
)


def elements(size: Size) -> int:
    """Number of elements, or its bound."""
    return size if isinstance(size, int) else math.prod(size)


class _Operands:
    """What is known of a node's operands: real shapes, and the content of short integer ones."""

    def __init__(
        self, node: Node, shapes: Sequence[tuple[int, ...] | None], ints: Callable[[int], tuple[int, ...]]
    ) -> None:
        self.node = node
        self.shapes = shapes
        self.ints = ints

    def shape(self, index: int) -> tuple[int, ...]:
        shape = self.shapes[index] if index < len(self.shapes) else None
        if shape is None:
            raise Unknown
        return shape

    def has(self, index: int) -> bool:
        return self.node.input(index) is not None


_Rule = Callable[[_Operands], Size]


def _reshape(o: _Operands) -> Size:
    size, target = math.prod(o.shape(0)), o.ints(1)
    shape = [o.shape(0)[i] if d == 0 and not o.node.get("allowzero", 0) else d for i, d in enumerate(target)]
    known = math.prod(d for d in shape if d != -1)
    return tuple(size // known if d == -1 and known else max(d, 0) for d in shape)


def _transpose(o: _Operands) -> Size:
    shape = o.shape(0)
    perm = o.node.get("perm") or tuple(reversed(range(len(shape))))
    return tuple(shape[axis] for axis in perm)


def _concat(o: _Operands) -> Size:
    shapes = [o.shape(i) for i in range(len(o.shapes))]
    axis = o.node.get("axis", 1) % max(len(shapes[0]), 1)
    return (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])


def _gather(o: _Operands) -> Size:
    shape = o.shape(0)
    axis = o.node.get("axis", 0) % max(len(shape), 1)
    return (*shape[:axis], *o.shape(1), *shape[axis + 1 :])


def _gather_nd(o: _Operands) -> Size:
    data, indices = o.shape(0), o.shape(1)
    return (*indices[:-1], *data[o.node.get("batch_dims", 0) + indices[-1] :])


def _matmul(o: _Operands) -> Size:
    a, b = o.shape(0), o.shape(1)
    left = () if len(a) == 1 else (a[-2],)
    right = () if len(b) == 1 else (b[-1],)
    return (*_broadcast(a[:-2], b[:-2]), *left, *right)


def _gemm(o: _Operands) -> Size:
    a, b = o.shape(0), o.shape(1)
    return (a[1 if o.node.get("transA", 0) else 0], b[0 if o.node.get("transB", 0) else 1])


def _one_hot(o: _Operands) -> Size:
    return math.prod(o.shape(0)) * max(o.ints(1)[0], 0)


def _tile(o: _Operands) -> Size:
    return tuple(d * max(r, 0) for d, r in zip(o.shape(0), o.ints(1), strict=True))


def _range(o: _Operands) -> Size:
    (start,), (limit,), (delta,) = o.ints(0), o.ints(1), o.ints(2)
    return (max(0, -((start - limit) // delta)) if delta else 0,)


def _pad(o: _Operands) -> Size:
    shape = o.shape(0)
    widths = o.ints(1) if o.has(1) else tuple(o.node.get("pads", ()))
    return math.prod(shape) if not any(widths) else math.prod(d + sum(map(abs, widths)) for d in shape)


def _expand(o: _Operands) -> Size:
    return _broadcast(o.shape(0), o.ints(1))


_RULES: dict[str, _Rule] = {
    "Concat": _concat,
    "ConstantOfShape": lambda o: tuple(max(d, 0) for d in o.ints(0)),
    "Expand": _expand,
    "EyeLike": lambda o: o.shape(0),
    "Flatten": lambda o: math.prod(o.shape(0)),
    "Gather": _gather,
    "GatherElements": lambda o: o.shape(1),
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "NonZero": lambda o: max(len(o.shape(0)), 1) * math.prod(o.shape(0)),
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Squeeze": lambda o: math.prod(o.shape(0)),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": lambda o: math.prod(o.shape(0)),
}

FOLDABLE = (_SAME_AS_FIRST - QUANTIZERS) | _BROADCAST | _NO_LARGER | frozenset(_RULES) | {"Shape", "Size"}
"""Ops of the default domain that are computed; no other is."""


def _broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(map(len, shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(max(sizes) if min(sizes) > 0 else 0 for sizes in zip(*padded, strict=True))


def result_sizes(
    node: Node, shapes: Sequence[tuple[int, ...] | None], ints: Callable[[int], tuple[int, ...]]
) -> list[Size]:
    """The size of each result of a node whose op is in ``FOLDABLE``.

    ``shapes``: of the operands that are computed (None: absent or only bounded); ``ints(i)``: content of operand i as
    integers, raising Unknown where it is not at hand. Raises Unknown, ValueError or IndexError where the operands
    contradict the op.
    """
    operands = _Operands(node, shapes, ints)
    count = len(node.outputs)
    if node.op == "Size":
        return [()]
    if node.op == "Shape":
        return [(len(operands.shape(0)[node.get("start", 0) : node.get("end")]),)]
    if node.op in _SAME_AS_FIRST:
        return [operands.shape(0)] * count
    if node.op in _BROADCAST:
        return [_broadcast(*[operands.shape(i) for i in range(len(shapes)) if operands.has(i)])] * count
    if node.op in _NO_LARGER:
        return [math.prod(max(d, 1) for d in operands.shape(0))] * count  # an empty axis is reduced to 1
    return [_RULES[node.op](operands)] * count
