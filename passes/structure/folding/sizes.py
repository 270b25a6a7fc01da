"""Shape operands whose elements are only partly known, written as constants all the same.

A Reshape may copy an axis of its input (0) and leave one to be worked out (-1), an Expand keeps an axis where it is
asked for 1, and a Slice to the end needs no size: so the arithmetic that exporters write around them can go.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qir.ir import Dim, Node, Shape, Value

__all__ = ["constant_operand", "named_sizes", "reshape_target"]

_END = (1 << 63) - 1


def named_sizes(value: Value) -> tuple[Dim, ...] | None:
    """The shape of a value; an open size without a name gets one that only this value's axis has."""
    if value.shape is None:
        return None
    return tuple(f"?{value.name}:{axis}" if dim is None else dim for axis, dim in enumerate(value.shape))


def reshape_target(source: Shape | None, wanted: Sequence[Dim]) -> tuple[int, ...] | None:
    """A constant target for a Reshape to ``wanted``, in which 0 copies an axis of ``source`` and -1 is what is left.

    In ``wanted`` 0 and -1 mean the same already. None where two sizes would be left.
    """
    target: list[int] = []
    for axis, size in enumerate(wanted):
        if isinstance(size, int):
            target.append(size)
        elif size is not None and source is not None and axis < len(source) and source[axis] == size:
            target.append(0)
        else:
            target.append(-1)
    if target.count(-1) > 1:
        return None
    return tuple(target)


def constant_operand(node: Node, operands: Sequence[np.ndarray | None], opset: int) -> dict[int, np.ndarray]:
    """New constant operands by index for a node whose shape operands are ``operands`` (None: not known).

    Those elements may be symbols or unknown. Empty where nothing can be said.
    """
    source = node.input(0)
    shape = None if source is None else named_sizes(source)
    found: dict[int, np.ndarray | None] = {}
    match node.op:
        case "Reshape" if opset >= 5 and not node.get("allowzero", 0):
            found[1] = _array(reshape_target(shape, _items(operands, 1) or (None, None)))
        case "Expand":
            found[1] = _array(_expand_target(shape, _items(operands, 1)))
        case "Slice" if opset >= 10:
            found[2] = _array(_slice_ends(shape, [_items(operands, index) for index in (1, 2, 3, 4)], node))
    return {index: array for index, array in found.items() if array is not None}


def _items(operands: Sequence[np.ndarray | None], index: int) -> list[Dim] | None:
    array = operands[index] if index < len(operands) else None
    return None if array is None else array.reshape(-1).tolist()


def _array(items: Sequence[int] | None) -> np.ndarray | None:
    return None if items is None else np.array(items, np.int64)


def _expand_target(shape: Shape | None, wanted: Sequence[Dim] | None) -> list[int] | None:
    if shape is None or wanted is None:
        return None
    lead = len(wanted) - len(shape)
    target: list[int] = []
    for axis, size in enumerate(wanted):
        own = shape[axis - lead] if axis >= lead else None
        if isinstance(size, int):
            target.append(size)
        elif size is not None and own == size:
            target.append(1)
        else:
            return None
    return target


def _slice_ends(shape: Shape | None, lists: Sequence[Sequence[Dim] | None], node: Node) -> list[int] | None:
    """Ends at the size of the axis itself become "to the end"."""
    starts, ends, axes, steps = lists
    if shape is None or starts is None or ends is None or (axes is None) != (node.input(3) is None):
        return None
    if (steps is None) != (node.input(4) is None) or any(not isinstance(s, int) or s < 1 for s in steps or ()):
        return None
    target: list[int] = []
    for position, end in enumerate(ends):
        axis = position if axes is None else axes[position]
        if isinstance(end, int):
            target.append(end)
        elif end is not None and isinstance(axis, int) and -len(shape) <= axis < len(shape) and shape[axis] == end:
            target.append(_END)
        else:
            return None
    return target
