"""Simplifications of data movement: reshapes of reshapes, slices of concatenations, expansions before broadcasting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qir.ir import Dim, Node, Tensor, TensorType, Value
from qir.passes.structure.folding.sizes import reshape_target
from qir.passes.structure.simplifications.common import (
    Scope,
    feeder,
    is_quantized,
    keeps_order,
    list_operand,
    pass_through,
    replace_value,
    rule_table,
)
from qir.rewriting.edits import constant_of, ints_of, is_standard, merge_origin

__all__ = ["RULES"]

RULES, _rule = rule_table()

_END = (1 << 31) - 1
_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


# Reshapes


@_rule("reshape-chain", *_RESHAPES)
def _reshape_chain(node: Node, scope: Scope) -> bool:
    """Unsqueeze(Reshape(x)) -> Reshape(x): elements keep their order, so only the last shape counts."""
    source = node.input(0)
    inner = feeder(source, *_RESHAPES, "Transpose")
    if inner is None or source is None or scope.opset < 5 or is_quantized(source) or is_quantized(node.output):
        return False
    if inner.op == "Transpose" and not keeps_order(inner):
        return False
    is_open = not isinstance(source.type, TensorType) or not source.type.is_static
    if inner.op == node.op == "Unsqueeze" and is_open:
        return False  # two in a row around a mask are what runtimes know attention by, while sizes are open
    if node.op == "Reshape" and inner.op != "Transpose" and ints_of(node.input(1)) is not None:
        return False  # the plain rule for reshapes has tried
    origin, shape = inner.input(0), node.output.shape
    if origin is None or shape is None or 0 in shape or (node.op == "Reshape" and node.get("allowzero", 0)):
        return False
    target = reshape_target(origin.shape, shape)
    if target is None:
        return False
    hint = f"{node.name or node.op}_shape"
    constant = scope.make_constant(node, np.array(target, np.int64), hint)
    for name in list(node.attributes):
        node.remove(name)
    node.set_op("Reshape", node.domain)
    node.set_inputs([origin, constant])
    merge_origin(node, inner)
    return True


# Concatenations


def _axis_of(node: Node, value: Value | None) -> int | None:
    """The axis of a Concat or Split, counted from the front."""
    axis = node.get("axis", 0 if node.op == "Split" else None)
    shape = None if value is None else value.shape
    if axis is None or (axis < 0 and shape is None):
        return None
    return int(axis if axis >= 0 else axis + len(shape or ()))


def _bounds(values: Sequence[Value | None], axis: int) -> list[int | None]:
    """Where each part begins, and the total; None from the first open size on."""
    bounds: list[int | None] = [0]
    for value in values:
        size: Dim = None if value is None else value.dim(axis)
        last = bounds[-1]
        bounds.append(last + size if last is not None and isinstance(size, int) else None)
    return bounds


def _sliced(node: Node, scope: Scope) -> tuple[int, int, int] | None:
    """(axis, start, end) of a Slice along one axis in steps of 1, both counted from the front; end may be endless."""
    starts, ends = list_operand(node, "starts", 1, 10, scope), list_operand(node, "ends", 2, 10, scope)
    axes: tuple[int, ...] | None = (0,)
    if scope.opset >= 10:
        if node.input(4) is not None and ints_of(node.input(4)) != (1,):
            return None
        axes = ints_of(node.input(3)) if node.input(3) is not None else axes
    else:
        axes = tuple(node.get("axes", axes))
    source = node.input(0)
    if (
        source is None
        or starts is None
        or ends is None
        or axes is None
        or not len(starts) == len(ends) == len(axes) == 1
    ):
        return None
    shape = source.shape
    axis, start, end = axes[0], starts[0], ends[0]
    if axis < 0:
        if shape is None:
            return None
        axis += len(shape)
    size = source.dim(axis)
    if isinstance(size, int):
        start, end = (max(0, at + size) if at < 0 else at for at in (start, end))
        end = _END if end >= size else end
    return None if start < 0 or end < 0 else (axis, start, end)


@_rule("slice-of-concat", "Slice")
def _slice_of_concat(node: Node, scope: Scope) -> bool:
    """Slice(Concat(a, b)) -> b where it takes exactly that."""
    concat = feeder(node.input(0), "Concat")
    sliced = _sliced(node, scope)
    if concat is None or sliced is None or is_quantized(concat.output):
        return False
    axis, start, end = sliced
    if _axis_of(concat, concat.output) != axis:
        return False
    bounds = _bounds(concat.inputs, axis)
    for index, part in enumerate(concat.inputs):
        last = index == len(concat.inputs) - 1
        if bounds[index] == start and (end >= _END if last else bounds[index + 1] == end):
            return start < end and pass_through(node, part)
    return False


@_rule("split-of-concat", "Split")
def _split_of_concat(node: Node, scope: Scope) -> bool:
    """The parts of a Split are what was concatenated."""
    concat = feeder(node.input(0), "Concat")
    if len(node.outputs) == 1:
        return pass_through(node, node.input(0))
    if concat is None or is_quantized(concat.output) or len(concat.inputs) != len(node.outputs):
        return False
    axis = _axis_of(node, node.input(0))
    if axis is None or _axis_of(concat, concat.output) != axis:
        return False
    sizes = [(part.dim(axis), out.dim(axis)) for part, out in zip(concat.inputs, node.outputs, strict=True) if part]
    if len(sizes) != len(node.outputs) or any(not isinstance(a, int) or a != b for a, b in sizes):
        return False
    changed = False
    for part, out in zip(concat.inputs, node.outputs, strict=True):
        changed |= part is not None and replace_value(out, part)
    return changed


@_rule("concat-of-parts", "Concat")
def _concat_of_parts(node: Node, scope: Scope) -> bool:
    """Concat of all the parts of a Split, or of slices that cover x, -> x."""
    axis = _axis_of(node, node.output)
    first = node.input(0)
    producer = None if first is None else first.producer
    if axis is None or producer is None or not is_standard(producer) or len(node.inputs) < 2:
        return False
    source = producer.input(0)
    if source is None or any(is_quantized(value) for value in node.inputs):
        return False
    if producer.op == "Split":
        whole = node.inputs == producer.outputs and _axis_of(producer, source) == axis
        return whole and pass_through(node, source)
    at = 0
    for index, value in enumerate(node.inputs):
        part = feeder(value, "Slice")
        sliced = None if part is None or part.input(0) is not source else _sliced(part, scope)
        if sliced is None or sliced[:2] != (axis, at) or (sliced[2] >= _END) != (index == len(node.inputs) - 1):
            return False
        at = sliced[2]
    return pass_through(node, source)


@_rule("gather-of-concat", "Gather")
def _gather_of_concat(node: Node, scope: Scope) -> bool:
    """Gather(Concat(a, b), [1]) -> b where that has one element; with a scalar index, what b was unsqueezed from."""
    concat, indices = feeder(node.input(0), "Concat"), constant_of(node.input(1))
    if concat is None or indices is None or indices.size != 1 or len(indices.shape) > 1 or is_quantized(concat.output):
        return False
    shape = concat.output.shape
    index = int(indices.item())
    if shape is None or len(shape) != 1 or node.get("axis", 0) not in (0, -1) or index < 0:
        return False
    bounds = _bounds(concat.inputs, 0)
    for position, part in enumerate(concat.inputs):
        if bounds[position] != index or bounds[position + 1] != index + 1:
            continue
        if indices.shape:
            return pass_through(node, part)
        inner = feeder(part, "Unsqueeze")
        scalar = None if inner is None else inner.input(0)
        return scalar is not None and scalar.shape == () and pass_through(node, scalar)
    return False


# Broadcasting


_BROADCASTING = (
    *("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less", "GreaterOrEqual"),
    *("LessOrEqual", "Max", "Min", "Sum", "Where"),
)


@_rule("broadcast-operand", *_BROADCASTING)
def _broadcast_operand(node: Node, scope: Scope) -> bool:
    """Mul(x, Expand(y, shape of x)) -> Mul(x, y): the operator broadcasts by itself. Also for ConstantOfShape."""
    if scope.opset < 8:  # since which all of these broadcast
        return False
    for index, value in enumerate(node.inputs):
        maker = feeder(value, "Expand", "ConstantOfShape")
        if maker is None or is_quantized(value):
            continue
        small = maker.input(0) if maker.op == "Expand" else None
        others = [other for position, other in enumerate(node.inputs) if position != index]
        known = [*others, small] if maker.op == "Expand" else others
        if not _gives(known, node.output.shape):
            continue
        if small is None:
            small = scope.make_constant(node, _fill(maker), f"{maker.name or maker.op}_fill")
        node.set_input(index, small)
        merge_origin(node, maker)
        return True
    return False


def _gives(values: Sequence[Value | None], shape: tuple[Dim, ...] | None) -> bool:
    """Broadcasting ``values`` gives ``shape``: some value has each of its axes in full."""
    if shape is None or any(value is None or value.shape is None for value in values):
        return False
    shapes = [value.shape or () for value in values if value is not None]
    return all(
        size is not None and any(len(own) >= len(shape) - axis and own[axis - len(shape)] == size for own in shapes)
        for axis, size in enumerate(shape)
    )


def _fill(node: Node) -> np.ndarray:
    """The number that a ConstantOfShape fills with, as a scalar."""
    value = node.get("value")
    return np.zeros((), np.float32) if not isinstance(value, Tensor) else value.numpy().reshape(())


# States that begin with zeros


@_rule("zero-state", "LSTM", "GRU", "RNN")
def _zero_state(node: Node, scope: Scope) -> bool:
    """An initial state of zeros is what these operators begin with anyway."""
    zeros = [index for index in (5, 6) if index < len(node.uses) and _is_zero(node.input(index))]
    if node.op != "LSTM":
        zeros = [index for index in zeros if index == 5]
    for index in zeros:
        node.set_input(index, None)
    last = max((index for index, value in enumerate(node.inputs) if value is not None), default=0)
    if zeros:
        node.resize_inputs(last + 1)
    return bool(zeros)


def _is_zero(value: Value | None) -> bool:
    while value is not None:
        tensor = constant_of(value)
        if tensor is not None:
            return tensor.size <= 1 << 16 and not tensor.numpy().any()
        filled = feeder(value, "ConstantOfShape")
        if filled is not None:
            return not _fill(filled).any()
        mover = feeder(value, "Expand", "Tile", "Slice", "Identity", "Transpose", *_RESHAPES)
        value = None if mover is None else mover.input(0)
    return False
