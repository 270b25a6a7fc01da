"""Where a model keeps weights that can be stored in few bits while everything computes in float."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from qir.ir import DType, Model, Node, Use, Value
from qir.quant.layer_rows import RECURRENT

__all__ = ["Role", "WeightSlot", "weight_slots"]


class Role(enum.Enum):
    """What reads a weight."""

    LINEAR = "linear"
    """A MatMul or Gemm with a constant matrix on the right: x [..., K] times [K, N]; kernels for few bits exist."""
    LOOKUP = "lookup"
    """A Gather of rows of a matrix."""
    OTHER = "other"
    """Anything else: the weight is widened when the model is loaded."""


@dataclass(frozen=True, slots=True)
class WeightSlot:
    """One use of a float constant by ``node``.

    Its sums run along ``axis`` (of a table: the axis within a row), so that blocks lie along it; ``channel_axis`` is
    the one along which scales without blocks stand. ``transposed``: a matrix of a linear operator that is [N, K], by
    ``transB`` or through a Transpose that nothing else reads; then the use is the Transpose's, ``node`` still the
    operator.
    """

    node: Node
    use: Use
    role: Role
    axis: int
    channel_axis: int
    transposed: bool = False

    @property
    def value(self) -> Value:
        return self.use.value

    @property
    def shape(self) -> tuple[int, ...]:
        tensor = self.value.tensor
        assert tensor is not None
        return tensor.shape


def weight_slots(model: Model) -> Iterator[WeightSlot]:
    """Every slot, in graph order, bodies included."""
    for node in model.walk():
        if node.domain == "":
            yield from _slots_of(node)
        elif (node.domain, node.op) == ("com.microsoft", "Attention"):
            use = _constant(node, 1)
            if use is not None and len(_shape(use)) == 2:
                yield WeightSlot(node, use, Role.OTHER, 0, 1)


def _slots_of(node: Node) -> Iterator[WeightSlot]:
    if node.op == "MatMul":
        yield from _matmul(node)
    elif node.op == "Gemm":
        yield from _gemm(node)
    elif node.op in ("Conv", "ConvTranspose"):
        use = _constant(node, 1)
        if use is not None and len(_shape(use)) >= 3:
            axes = (1, 0) if node.op == "Conv" else (0, 1)
            yield WeightSlot(node, use, Role.OTHER, *axes)
    elif node.op in RECURRENT:
        for index in (1, 2):
            use = _constant(node, index)
            if use is not None and len(_shape(use)) == 3:
                yield WeightSlot(node, use, Role.OTHER, 2, 1)
    elif node.op == "Einsum":
        yield from _einsum(node)
    elif node.op == "Gather":
        use = _constant(node, 0)
        if use is not None and len(_shape(use)) >= 2:
            rank = len(_shape(use))
            rows = rank == 2 and node.get("axis", 0) in (0, -2)
            yield WeightSlot(node, use, Role.LOOKUP if rows else Role.OTHER, rank - 1, 0)


def _matmul(node: Node) -> Iterator[WeightSlot]:
    left, right = _constant(node, 0), _constant(node, 1)
    turned = _turned(node)
    if right is not None and len(_shape(right)) >= 2:
        rank = len(_shape(right))
        yield WeightSlot(node, right, Role.LINEAR if rank == 2 else Role.OTHER, rank - 2, rank - 1)
    elif turned is not None:
        yield WeightSlot(node, turned, Role.LINEAR, 1, 0, transposed=True)
    elif left is not None and len(_shape(left)) >= 2:
        rank = len(_shape(left))
        yield WeightSlot(node, left, Role.OTHER, rank - 1, rank - 2)


def _turned(node: Node) -> Use | None:
    """What the right operand transposes, if nothing else reads that: a head that is the embedding."""
    operand = node.input(1)
    maker = None if operand is None else operand.producer
    if operand is None or maker is None or (maker.domain, maker.op) != ("", "Transpose"):
        return None
    use = _constant(maker, 0)
    alone = len(operand.uses) == 1 and not operand.is_output
    plain = use is not None and len(_shape(use)) == 2 and list(maker.get("perm", (1, 0))) == [1, 0]
    return use if alone and plain else None


def _einsum(node: Node) -> Iterator[WeightSlot]:
    """The one constant operand, with the axis that is summed last and the first that is kept."""
    constants = [use for index in range(len(node.inputs)) if (use := _constant(node, index)) is not None]
    left, arrow, result = str(node.get("equation", "")).replace(" ", "").partition("->")
    if len(constants) != 1 or not arrow or "." in left:
        return
    letters = left.split(",")[constants[0].index]
    summed = [axis for axis, letter in enumerate(letters) if letter not in result]
    kept = [axis for axis, letter in enumerate(letters) if letter in result]
    if summed and kept and len(letters) == len(_shape(constants[0])):
        yield WeightSlot(node, constants[0], Role.OTHER, summed[-1], kept[0])


def _gemm(node: Node) -> Iterator[WeightSlot]:
    left, right = _constant(node, 0), _constant(node, 1)
    if right is not None and len(_shape(right)) == 2:
        transposed = bool(node.get("transB", 0))
        axes = (1, 0) if transposed else (0, 1)
        columns = _shape(right)[axes[1]]
        bias = node.input(2)
        plain = not node.get("transA", 0) and node.get("alpha", 1.0) == 1.0
        plain = plain and (bias is None or (node.get("beta", 1.0) == 1.0 and bias.shape == (columns,)))
        yield WeightSlot(node, right, Role.LINEAR if plain else Role.OTHER, *axes, transposed)
    elif left is not None and len(_shape(left)) == 2:
        yield WeightSlot(node, left, Role.OTHER, *((0, 1) if node.get("transA", 0) else (1, 0)))


def _constant(node: Node, index: int) -> Use | None:
    """The use of a non-empty float32 constant."""
    use = node.use(index)
    tensor = None if use is None else use.value.tensor
    if use is None or tensor is None or use.value.is_input or tensor.dtype is not DType.FLOAT or tensor.size == 0:
        return None
    return use


def _shape(use: Use) -> tuple[int, ...]:
    assert use.value.tensor is not None
    return use.value.tensor.shape
