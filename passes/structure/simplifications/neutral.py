"""Simplifications of what changes nothing: identities, and movements of data that end where they began."""

from __future__ import annotations

import numpy as np

from qir.ir import Node, TensorType, Value
from qir.passes.structure.simplifications.common import (
    Scope,
    feeder,
    is_quantized,
    list_operand,
    pass_through,
    rule_table,
)
from qir.rewriting.edits import constant_of, ints_of, merge_origin, scalar_of

__all__ = ["RULES"]

_ENDLESS = (1 << 31) - 1  # Slice: any end from here on means "to the end" (ONNX operator Slice)

RULES, _rule = rule_table()


@_rule("identity", "Identity")
def _identity(node: Node, scope: Scope) -> bool:
    return pass_through(node, node.input(0))


@_rule("dropout", "Dropout")
def _dropout(node: Node, scope: Scope) -> bool:
    if any(mask.uses for mask in node.outputs[1:]):
        return False
    if scope.opset >= 12:
        training = node.input(2)
        flag = constant_of(training)
        if training is not None and (flag is None or flag.size != 1 or bool(flag.item())):
            return False
    elif scope.opset < 7 and not node.get("is_test", 0):
        return False
    return pass_through(node, node.input(0))


_EXACTLY_INSIDE = {
    "f16": {"f32", "f64"},
    "bf16": {"f32", "f64"},
    "f32": {"f64"},
    "u8": {"u16", "s16", "u32", "s32", "u64", "s64", "f16", "f32", "f64"},
    "s8": {"s16", "s32", "s64", "f16", "f32", "f64"},
    "u16": {"u32", "s32", "u64", "s64", "f32", "f64"},
    "s16": {"s32", "s64", "f32", "f64"},
    "u32": {"u64", "s64", "f64"},
    "s32": {"s64", "f64"},
    "bool": {"u8", "s8", "s32", "s64", "f32"},
}
"""Types that hold every number of the key, so that a cast there and back changes nothing."""


@_rule("cast", "Cast")
def _cast(node: Node, scope: Scope) -> bool:
    source = node.input(0)
    to = node.get("to")
    if source is None or source.dtype is None or to is None:
        return False
    if source.dtype.code == to:
        return pass_through(node, source)
    inner = feeder(source, "Cast")
    origin = None if inner is None else inner.input(0)
    if origin is None or origin.dtype is None or origin.dtype.code != to or is_quantized(source):
        return False
    return source.dtype.text in _EXACTLY_INSIDE.get(origin.dtype.text, ()) and pass_through(node, origin)


@_rule("reshape", "Reshape")
def _reshape(node: Node, scope: Scope) -> bool:
    source = node.input(0)
    if source is None or scope.opset < 5:
        return False
    same_static = isinstance(source.type, TensorType) and source.type.is_static and source.shape == node.output.shape
    target = ints_of(node.input(1))
    if same_static or (target is not None and _reshapes_to_itself(source, target, bool(node.get("allowzero", 0)))):
        return pass_through(node, source)
    return False


def _reshapes_to_itself(source: Value, target: tuple[int, ...], allow_zero: bool) -> bool:
    shape = source.shape
    if shape is None or len(shape) != len(target):
        return False
    free = 0
    for wanted, dim in zip(target, shape, strict=True):
        if wanted == -1:
            free += 1
        elif not (wanted == dim or (wanted == 0 and not allow_zero)):
            return False
    # With an axis of size 0 among the others, what -1 stands for is open.
    return free == 0 or (free == 1 and 0 not in shape)


@_rule("reshape-chain", "Reshape")
def _reshape_chain(node: Node, scope: Scope) -> bool:
    """Reshape(Reshape(x, a), b) -> Reshape(x, b): elements keep their order, so only the last shape counts."""
    source = node.input(0)
    inner = feeder(source, "Reshape", "Flatten", "Squeeze", "Unsqueeze")
    target = ints_of(node.input(1))
    if inner is None or source is None or target is None or scope.opset < 5 or is_quantized(source):
        return False
    origin = inner.input(0)
    if origin is None:
        return False
    if 0 in target and not node.get("allowzero", 0):
        # A 0 copies an axis of the middle shape: it can go only where that is a number, or x's own axis.
        resolved = [_copied_axis(source, origin, axis) if wanted == 0 else wanted for axis, wanted in enumerate(target)]
        if None in resolved:
            return False
        numbers = tuple(wanted for wanted in resolved if wanted is not None)
        if numbers != target:
            node.set_input(1, scope.make_constant(node, np.array(numbers, np.int64), f"{node.name or 'Reshape'}_shape"))
    node.set_input(0, origin)
    merge_origin(node, inner)
    return True


def _copied_axis(middle: Value, origin: Value, axis: int) -> int | None:
    size = middle.dim(axis)
    if isinstance(size, int):
        return size if size > 0 else None
    return 0 if size is not None and origin.dim(axis) == size else None


@_rule("reshape", "Flatten")
def _flatten(node: Node, scope: Scope) -> bool:
    source = node.input(0)
    if source is None or source.shape is None or len(source.shape) != 2:
        return False
    return node.get("axis", 1) in (1, -1) and pass_through(node, source)


def _permutation(node: Node) -> tuple[int, ...] | None:
    perm = node.get("perm")
    if perm is not None:
        return tuple(perm)
    source = node.input(0)
    shape = node.output.shape if source is None or source.shape is None else source.shape
    return None if shape is None else tuple(reversed(range(len(shape))))


@_rule("transpose-chain", "Transpose")
def _transpose_chain(node: Node, scope: Scope) -> bool:
    source = node.input(0)
    inner = feeder(source, "Transpose")
    if inner is None or is_quantized(source):
        return False
    first, second = _permutation(inner), _permutation(node)
    origin = inner.input(0)
    if first is None or second is None or origin is None or len(first) != len(second):
        return False
    both = [first[axis] for axis in second]
    if both == sorted(both) and pass_through(node, origin):
        return True
    node.set_input(0, origin)
    node.set("perm", both or [0])
    merge_origin(node, inner)
    return True


@_rule("transpose", "Transpose")
def _transpose(node: Node, scope: Scope) -> bool:
    perm = _permutation(node)
    return perm is not None and perm == tuple(range(len(perm))) and pass_through(node, node.input(0))


@_rule("pad", "Pad")
def _pad(node: Node, scope: Scope) -> bool:
    pads = list_operand(node, "pads" if scope.opset >= 2 else "paddings", 1, 11, scope)
    return pads is not None and not any(pads) and pass_through(node, node.input(0))


@_rule("slice", "Slice")
def _slice(node: Node, scope: Scope) -> bool:
    source = node.input(0)
    starts = list_operand(node, "starts", 1, 10, scope)
    ends = list_operand(node, "ends", 2, 10, scope)
    steps: tuple[int, ...] | None = ()
    if scope.opset >= 10 and node.input(4) is not None:
        steps = ints_of(node.input(4))
    has_axes = node.input(3) is not None if scope.opset >= 10 else node.get("axes") is not None
    axes = list_operand(node, "axes", 3, 10, scope) if has_axes else tuple(range(len(starts or ())))
    if source is None or starts is None or ends is None or axes is None or steps is None or len(axes) != len(ends):
        return False
    if any(starts) or any(step != 1 for step in steps):
        return False
    for axis, end in zip(axes, ends, strict=True):
        dim = source.dim(axis)
        if end < _ENDLESS and not (isinstance(dim, int) and end >= dim):
            return False
    return pass_through(node, source)


@_rule("concat", "Concat")
def _concat(node: Node, scope: Scope) -> bool:
    return len(node.uses) == 1 and pass_through(node, node.input(0))


@_rule("expand", "Expand")
def _expand(node: Node, scope: Scope) -> bool:
    source, target = node.input(0), ints_of(node.input(1))
    if source is None or source.shape is None or target is None or len(target) > len(source.shape):
        return False
    tail = source.shape[len(source.shape) - len(target) :]
    if any(wanted not in (1, dim) for wanted, dim in zip(target, tail, strict=True)):
        return False
    return pass_through(node, source)


@_rule("tile", "Tile")
def _tile(node: Node, scope: Scope) -> bool:
    repeats = ints_of(node.input(1))
    return scope.opset >= 6 and repeats is not None and set(repeats) <= {1} and pass_through(node, node.input(0))


@_rule("squeeze-unsqueeze", "Squeeze", "Unsqueeze")
def _squeeze_pair(node: Node, scope: Scope) -> bool:
    """Squeeze and Unsqueeze of the same axes undo one another: both count axes in the tensor that has them."""
    source = node.input(0)
    inner = feeder(source, "Unsqueeze" if node.op == "Squeeze" else "Squeeze")
    if inner is None or is_quantized(source):
        return False
    outer_axes = list_operand(node, "axes", 1, 13, scope)
    inner_axes = list_operand(inner, "axes", 1, 13, scope)
    if not outer_axes or not inner_axes or sorted(outer_axes) != sorted(inner_axes):
        return False
    return pass_through(node, inner.input(0))


@_rule("dead-clip", "Relu", "Clip")
def _dead_clip(node: Node, scope: Scope) -> bool:
    """A bound that the proved range never reaches does nothing."""
    source = node.input(0)
    if source is None:
        return False
    if node.op == "Relu":
        low, high = 0.0, float("inf")
    elif scope.opset >= 11:
        bounds = [(node.input(1), float("-inf")), (node.input(2), float("inf"))]
        found = [default if value is None else scalar_of(value) for value, default in bounds]
        if found[0] is None or found[1] is None:
            return False
        low, high = found[0], found[1]
    else:
        low, high = node.get("min", float("-inf")), node.get("max", float("inf"))
    if low == float("-inf") and high == float("inf"):
        return pass_through(node, source)
    known = source.range
    if known is None or known.is_empty or not (low <= known.lower and known.upper <= high):
        return False
    return pass_through(node, source)
