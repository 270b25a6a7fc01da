"""What says the same in other words: operands that say no more than their absence, nodes that only pass a value on,
an axis counted from the other end, a constant with leading 1s in its shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qir.diff.view import Constant, View, content_of
from qir.ir import Node, OpId, Shape, Tensor, TensorType, Type, Value

__all__ = ["TypeOf", "is_default_operand", "node_axis", "passes_on", "rank_of", "same_row"]

TypeOf = Callable[[Value], Type | None]
"""What is known of a value's type, inferred where the file does not say."""


def is_default_operand(op: OpId, index: int, constant: Constant | None) -> bool:
    """Whether leaving this constant operand out means the same: Pad's value 0, Slice's steps 1, LSTM's state 0."""
    if not isinstance(constant, Tensor) or op[0] != "" or constant.size > 64:
        return False
    array = constant.numpy()
    match op[1], index:
        case ("Pad", 2) | ("Dropout", 2) | ("LSTM" | "GRU" | "RNN", 5) | ("LSTM", 6):
            return not np.any(array)
        case ("Slice", 4):
            return bool(np.all(array == 1))
        case ("Clip", 1):
            return bool(np.all(array <= np.finfo(np.float32).min))
        case ("Clip", 2):
            return bool(np.all(array >= np.finfo(np.float32).max))
    return False


def passes_on(view: View, number: int, type_of: TypeOf) -> bool:
    """Whether the node's result is its first operand, whatever that holds."""
    op = view.ops[number]
    node = view.nodes[number]
    source = node.input(0) if node.inputs else None
    if op[0] != "" or source is None or any(view.consumers[made] for made in view.results[number][1:]):
        return False
    match op[1]:
        case "Identity":
            return True
        case "Dropout":
            training = node.input(2)
            return training is None or (isinstance(given := content_of(training), Tensor) and not given.numpy().any())
        case "Max" | "Min" | "Sum" | "Mean" | "Concat":
            return len(node.inputs) == 1
        case "Transpose":
            perm = node.get("perm")
            return perm is not None and list(perm) == list(range(len(perm)))
        case "Slice":
            return _takes_all(view, number, type_of(source))
        case "Cast" | "CastLike":
            one, two = type_of(source), type_of(node.output)
            return isinstance(one, TensorType) and isinstance(two, TensorType) and one.dtype is two.dtype
        case "Reshape" | "Expand" | "Squeeze" | "Unsqueeze" | "Flatten":
            shape = _shape(type_of(source))
            return shape is not None and None not in shape and shape == _shape(type_of(node.output))
    return False


def _takes_all(view: View, number: int, source: Type | None) -> bool:
    """A Slice from 0 to beyond the end in steps of 1."""
    given: dict[int, np.ndarray] = {}
    for slot in view.slots[number][1:]:
        constant = view.values[slot.value].constant
        if not isinstance(constant, Tensor):
            return False
        given[slot.index] = constant.numpy().reshape(-1)
    starts, ends = given.get(1), given.get(2)
    if starts is None or ends is None or starts.any() or (4 in given and (given[4] != 1).any()):
        return False
    shape = _shape(source)
    axes = given.get(3, np.arange(len(ends)))
    if len(axes) != len(ends):
        return False  # no valid Slice
    for axis, end in zip(axes.tolist(), ends.tolist(), strict=True):
        size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
        if end < 2**31 - 1 and not (isinstance(size, int) and end >= size):
            return False
    return True


def rank_of(type_: Type | None) -> int | None:
    shape = _shape(type_)
    return None if shape is None else len(shape)


def same_row(one: Constant, two: Constant, rank: int | None) -> bool:
    """Whether two constants are the same to an operator that broadcasts to this rank: equal but for leading 1s."""
    if rank is None or not isinstance(one, Tensor) or not isinstance(two, Tensor) or one.dtype is not two.dtype:
        return False
    if max(len(one.shape), len(two.shape)) > rank or _trimmed(one.shape) != _trimmed(two.shape):
        return False
    return one.packed().tobytes() == two.packed().tobytes()


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape[:1] == (1,):
        shape = shape[1:]
    return shape


def _shape(type_: Type | None) -> Shape | None:
    return type_.shape if isinstance(type_, TensorType) else None


def node_axis(node: Node, default: int | None, rank: int | None) -> int | None:
    """The axis that a node names, counted from the front; None where that is not known."""
    axis = node.get("axis", default)
    if not isinstance(axis, int) or rank is None or not -rank <= axis < rank:
        return None
    return axis % rank
