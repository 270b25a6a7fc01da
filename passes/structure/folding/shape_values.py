"""Shape arithmetic without a runtime: small integer arrays, some of whose elements may be symbols or unknown.

A partly known shape is an array of Python ints, dimensions by name (``N``, ``2*N+1``: what shape inference calls
them) and None (dtype object). Taking a known element out of it gives a constant, which is how ``Gather(Shape(x), 1)``
folds where only axis 0 of x is open; a name says that two unknown sizes are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qir.ir import Dim, DType, Node
from qir.ops import dims
from qir.passes.structure.folding.sizes import named_sizes

__all__ = ["MOST_ELEMENTS", "compute", "is_complete"]

MOST_ELEMENTS = 1024
"""Larger arrays are left to the runtime."""


def is_complete(array: np.ndarray) -> bool:
    """No element is unknown."""
    return array.dtype != object


def compute(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
    """The first result of a shape op, partly unknown where dtype is object; None where this is no such op.

    ``operands``: None where one is absent; for Shape and Size, where it is no constant: then its type is asked.
    """
    function = _OPS.get(node.op)
    if function is None or len(node.outputs) != 1:
        return None
    try:
        result = function(node, operands, opset)
    except (ValueError, IndexError, TypeError, ZeroDivisionError, OverflowError):
        return None  # the operands contradict the op: the runtime will say so
    if result is None or result.size > MOST_ELEMENTS:
        return None
    if result.dtype == object and all(isinstance(item, int) for item in result.reshape(-1)):
        return result.astype(np.int64)
    return result


def _shape(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
    sizes = _sizes(node, operands)
    return None if sizes is None else _objects(sizes[node.get("start", 0) : node.get("end")])


def _size(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
    sizes = _sizes(node, operands)
    return None if sizes is None else _scalar(_fold(dims.multiply, sizes, 1))


def _fold(function: Callable[[Dim, Dim], Dim], sizes: Sequence[Dim], total: Dim) -> Dim:
    for size in sizes:
        total = function(total, size)
    return total


def _scalar(item: object) -> np.ndarray:
    array = np.empty((), object)
    array[()] = item
    return array


def _sizes(node: Node, operands: Sequence[np.ndarray | None]) -> list[Dim] | None:
    """The shape of the first operand: that of its content where this is at hand, else what its type says."""
    if operands and operands[0] is not None:
        return list(operands[0].shape)
    value = node.input(0)
    sizes = None if value is None else named_sizes(value)
    return None if sizes is None else list(sizes)


def _objects(items: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def _first(operands: Sequence[np.ndarray | None]) -> np.ndarray:
    array = operands[0]
    if array is None:
        raise ValueError("the first operand is missing")
    return array


def _ints(operands: Sequence[np.ndarray | None], index: int) -> list[int] | None:
    array = operands[index] if index < len(operands) else None
    return None if array is None else [int(item) for item in array.reshape(-1)]


def _gather(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
    indices = operands[1]
    if indices is None or indices.dtype == object:
        return None
    array = _first(operands)
    return np.asarray(np.take(array, indices.astype(np.int64), axis=node.get("axis", 0)), array.dtype)


def _slice(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
    array = _first(operands)
    if opset >= 10:
        starts, ends, axes, steps = (_ints(operands, index) for index in range(1, 5))
    else:
        starts, ends, axes, steps = node.get("starts"), node.get("ends"), node.get("axes"), None
    if starts is None or ends is None:
        return None
    for position, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = position if axes is None else axes[position]
        step = 1 if steps is None else steps[position]
        if step < 0:
            return None
        array = array[(slice(None),) * (axis % array.ndim) + (slice(start, end, step),)]
    return array


def _concat(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
    arrays = [array for array in operands if array is not None]
    if any(array.dtype == object for array in arrays):
        arrays = [array.astype(object) for array in arrays]
    return np.concatenate(arrays, axis=node.get("axis", 0))


def _axes(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> list[int] | None:
    return _ints(operands, 1) if opset >= 13 else node.get("axes")


def _unsqueeze(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
    axes = _axes(node, operands, opset)
    return None if axes is None else np.expand_dims(_first(operands), tuple(axes))


def _squeeze(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
    axes = _axes(node, operands, opset)
    return _first(operands).squeeze(None if axes is None else tuple(axes))


def _reshape(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
    target = _ints(operands, 1)
    return None if target is None or 0 in target else _first(operands).reshape(target)


def _cast(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
    array = _first(operands)
    to = DType.from_code(node.get("to"))
    if to not in (DType.INT64, DType.INT32) or array.dtype.kind not in "iO":
        return None
    if to is DType.INT32:
        # An unknown element may be outside of int32, and the cast of a known one has to fit.
        return array.astype(np.int32) if array.dtype != object and np.all(array == array.astype(np.int32)) else None
    return array if array.dtype == object else array.astype(np.int64)


def _arithmetic(function: Callable[[Dim, Dim], Dim]) -> Any:
    """``function`` elementwise on 64-bit (or equal) integers, of which it gets None for those that are unknown."""

    def apply(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
        a, b = operands[0], operands[1]
        if a is None or b is None or a.dtype.kind not in "iO" or b.dtype.kind not in "iO":
            return None
        if a.dtype != object and b.dtype != object and a.dtype != b.dtype:
            return None
        dtype = next((array.dtype for array in (a, b) if array.dtype != object), np.dtype(np.int64))
        a, b = np.broadcast_arrays(a.astype(object), b.astype(object))
        items = [function(x, y) for x, y in zip(a.reshape(-1), b.reshape(-1), strict=True)]
        result = _objects(items).reshape(a.shape)
        known = [item for item in items if isinstance(item, int)]
        bounds = np.iinfo(dtype)
        if not all(bounds.min <= item <= bounds.max for item in known):
            return None
        return result.astype(dtype) if len(known) == len(items) else (result if dtype == np.int64 else None)

    return apply


def _divide(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    return dims.floor_divide(a, b) if isinstance(b, int) and b > 0 and dims.nonnegative(a) else None


def _modulo(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
    def modulo(a: Dim, b: Dim) -> Dim:
        return a % b if isinstance(a, int) and isinstance(b, int) and b > 0 and a >= 0 else None

    array: np.ndarray | None = _arithmetic(modulo)(node, operands, opset)
    return array


def _comparison(function: Callable[[Dim, Dim], bool | None]) -> Any:
    """``function`` elementwise; nothing is answered unless all of it is known."""

    def apply(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
        a, b = operands[0], operands[1]
        if a is None or b is None or a.dtype.kind not in "iO" or b.dtype.kind not in "iO":
            return None
        a, b = np.broadcast_arrays(a.astype(object), b.astype(object))
        items = [function(x, y) for x, y in zip(a.reshape(-1), b.reshape(-1), strict=True)]
        return None if None in items else np.array(items, np.bool_).reshape(a.shape)

    return apply


def _equal(a: Dim, b: Dim) -> bool | None:
    if a is None or b is None:
        return None
    if (isinstance(a, int) and isinstance(b, int)) or a == b:
        return a == b
    # Sizes are not negative; exporters compare them with -1.
    for size, other in ((a, b), (b, a)):
        if isinstance(other, int) and other < 0 and dims.nonnegative(size):
            return False
    return None


def _greater(a: Dim, b: Dim) -> bool | None:
    if isinstance(a, int) and isinstance(b, int):
        return a > b
    return True if isinstance(b, int) and b < 0 and a is not None and dims.nonnegative(a) else None


def _where(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
    condition, a, b = operands
    if condition is None or a is None or b is None or condition.dtype != np.bool_:
        return None
    if any(array.dtype not in (np.dtype(object), np.dtype(np.int64)) for array in (a, b)):
        return None
    return np.asarray(np.where(condition, a.astype(object), b.astype(object)), object)


def _reduce(function: Callable[[Dim, Dim], Dim], start: int) -> Any:
    """Over all elements, or over the only axis."""

    def apply(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
        array = _first(operands)
        listed = node.get("axes") if len(operands) < 2 else _ints(operands, 1)
        if array.ndim > 1 or array.dtype not in (np.dtype(object), np.dtype(np.int64)):
            return None
        if listed is None and node.get("noop_with_empty_axes", 0):
            return None
        if listed is not None and [axis % 1 for axis in listed] != [0] * array.ndim:
            return None
        total = _scalar(_fold(function, array.reshape(-1).tolist(), start))
        return total.reshape((1,) * array.ndim) if node.get("keepdims", 1) else total

    return apply


def _filled(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
    shape, fill = _ints(operands, 0), node.get("value")
    if shape is None or fill is None or fill.dtype is not DType.INT64 or math.prod(shape) > MOST_ELEMENTS:
        return None
    return np.full(shape, fill.item(), np.int64)


def _range(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
    # Operands of one element and rank 1 are common and wrong; the runtime refuses them once they are constants.
    if any(array is None or array.size != 1 or array.dtype.kind != "i" for array in operands):
        return None
    start, limit, delta = (int(array.reshape(())) for array in operands if array is not None)
    if len(range(start, limit, delta)) > MOST_ELEMENTS:
        return None
    return np.array(range(start, limit, delta), _first(operands).dtype)


_OPS: dict[str, Callable[[Node, Sequence[np.ndarray | None], int], np.ndarray | None]] = {
    "Add": _arithmetic(dims.add),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Div": _arithmetic(_divide),
    "Equal": _comparison(_equal),
    "Gather": _gather,
    "Greater": _comparison(_greater),
    "Identity": lambda node, operands, opset: _first(operands),
    "Less": _comparison(lambda a, b: _greater(b, a)),
    "Mod": _modulo,
    "Mul": _arithmetic(dims.multiply),
    "Range": _range,
    "ReduceProd": _reduce(dims.multiply, 1),
    "ReduceSum": _reduce(dims.add, 0),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _arithmetic(lambda a, b: dims.add(a, b, -1)),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
