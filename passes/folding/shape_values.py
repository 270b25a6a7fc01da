"""Shape arithmetic without a runtime: small integer arrays, some of whose elements may be unknown.

A partly known shape is an array of Python ints and None (dtype object). Taking a known element out of it gives a
constant, which is how ``Gather(Shape(x), 1)`` folds where only axis 0 of x is open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qir.ir import DType, Node, TensorType

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
    if result.dtype == object and all(item is not None for item in result.reshape(-1)):
        return result.astype(np.int64)
    return result


def _shape(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
    dims = _dims(node, operands)
    return None if dims is None else _objects(dims[node.get("start", 0) : node.get("end")])


def _size(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
    dims = _dims(node, operands)
    return None if dims is None or None in dims else np.array(math.prod(d for d in dims if d is not None), np.int64)


def _dims(node: Node, operands: Sequence[np.ndarray | None]) -> list[int | None] | None:
    """The shape of the first operand: that of its content where this is at hand, else what its type says."""
    if operands and operands[0] is not None:
        return list(operands[0].shape)
    value = node.input(0)
    type_ = None if value is None else value.type
    if not isinstance(type_, TensorType) or type_.shape is None:
        return None
    return [dim if isinstance(dim, int) else None for dim in type_.shape]


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
    return np.asarray(np.take(_first(operands), indices.astype(np.int64), axis=node.get("axis", 0)))


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


def _arithmetic(function: Callable[[int, int], int | None]) -> Any:
    def apply(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
        a, b = operands[0], operands[1]
        if a is None or b is None or a.dtype.kind not in "iO" or b.dtype.kind not in "iO":
            return None
        if a.dtype != object and b.dtype != object and a.dtype != b.dtype:
            return None
        dtype = next((array.dtype for array in (a, b) if array.dtype != object), np.dtype(np.int64))
        a, b = np.broadcast_arrays(a.astype(object), b.astype(object))
        items = [
            None if x is None or y is None else function(x, y)
            for x, y in zip(a.reshape(-1), b.reshape(-1), strict=True)
        ]
        result = _objects(items).reshape(a.shape)
        known = [item for item in items if item is not None]
        bounds = np.iinfo(dtype)
        if not all(bounds.min <= item <= bounds.max for item in known):
            return None
        return result.astype(dtype) if len(known) == len(items) else (result if dtype == np.int64 else None)

    return apply


def _truncated(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _range(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> np.ndarray | None:
    # Operands of one element and rank 1 are common and wrong; the runtime refuses them once they are constants.
    if any(array is None or array.size != 1 or array.dtype.kind != "i" for array in operands):
        return None
    start, limit, delta = (int(array.reshape(())) for array in operands if array is not None)
    if len(range(start, limit, delta)) > MOST_ELEMENTS:
        return None
    return np.array(range(start, limit, delta), _first(operands).dtype)


_OPS: dict[str, Callable[[Node, Sequence[np.ndarray | None], int], np.ndarray | None]] = {
    "Add": _arithmetic(lambda a, b: a + b),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _arithmetic(_truncated),
    "Gather": _gather,
    "Identity": lambda node, operands, opset: _first(operands),
    "Range": _range,
    "Mul": _arithmetic(lambda a, b: a * b),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _arithmetic(lambda a, b: a - b),
    "Unsqueeze": _unsqueeze,
}
