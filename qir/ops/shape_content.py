"""Propagation of small tensors' contents: the arithmetic on shapes that exporters write into graphs.

Contents are computed on demand: only where a rule asks for the elements of a shape operand are its producers looked
at. Elements are numbers, symbols (dimensions) or unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qir.ir import DType, Tensor, TensorType
from qir.ops import dims
from qir.ops.shape_movement import slice_length
from qir.ops.shape_rule import Content, NodeView, product

__all__ = ["CONTENT_OPS", "LARGEST", "content_of_tensor", "evaluate", "follows"]

LARGEST = 256
"""Tensors of more elements are not followed."""

Element = int | float | str | None


def content_of_tensor(tensor: Tensor) -> Content | None:
    """The elements of a small constant of rank 0 or 1 that holds real numbers or booleans."""
    if len(tensor.shape) > 1 or tensor.size > LARGEST or tensor.is_stub or tensor.dtype is DType.STRING:
        return None
    if not (tensor.dtype.is_integer or tensor.dtype in _KINDS):
        return None
    values = tensor.numpy().reshape(-1)
    if tensor.dtype is DType.FLOAT16 or (tensor.dtype.is_integer and tensor.dtype.bits < 8):
        values = values.astype(np.float32 if tensor.dtype.is_float else np.int64)
    return tuple(int(v) if isinstance(v, bool) else v for v in values.tolist())


_KINDS = frozenset({DType.FLOAT, DType.DOUBLE, DType.FLOAT16, DType.BOOL})


def evaluate(view: NodeView) -> Content | None:
    """The content of a node's first output; None where it is not known or not small."""
    found = CONTENT_OPS[view.node.op](view)
    return found if found is not None and len(found) <= LARGEST else None


def _shape(view: NodeView) -> Content | None:
    shape = view.shape(0)
    return None if shape is None else shape[view.attr("start", 0) : view.attr("end")]


def _size(view: NodeView) -> Content | None:
    shape = view.shape(0)
    return None if shape is None else (product(shape),)


def _constant(view: NodeView) -> Content | None:
    for name in view.node.attributes:
        value: Any = view.attr(name)
        if isinstance(value, Tensor):
            return content_of_tensor(value)
        if name in ("value_int", "value_float"):
            return (value,)
        if name in ("value_ints", "value_floats"):
            return tuple(value)
    return None


def _same(view: NodeView) -> Content | None:
    return view.content(0)


def _cast(view: NodeView) -> Content | None:
    content = view.content(0)
    to = DType.from_code(view.attr("to", 0))
    if content is None or to is DType.STRING:
        return None
    if to is DType.BOOL:
        return tuple(None if not isinstance(c, int | float) else int(bool(c)) for c in content)
    if to.is_integer:
        return tuple(_to_int(c, to) for c in content)
    return tuple(float(c) if isinstance(c, int) else c for c in content)


def _to_int(element: Element, to: DType) -> Element:
    if isinstance(element, float):
        element = int(element) if math.isfinite(element) else None
    return element if not isinstance(element, int) or to.qmin <= element <= to.qmax else None


def _reshape(view: NodeView) -> Content | None:
    shape = view.ints(1)
    return view.content(0) if shape is not None and len(shape) <= 1 else None


def _squeeze(view: NodeView) -> Content | None:
    return view.content(0)


def _unsqueeze(view: NodeView) -> Content | None:
    shape = view.shape(0)
    axes = view.axes(1 if view.version >= 13 else None)
    return view.content(0) if shape == () and axes is not None and len(axes) == 1 else None


def _concat(view: NodeView) -> Content | None:
    # An unknown part of known length leaves the others where they are.
    total: tuple[Element, ...] = ()
    for index in range(len(view.types)):
        part = view.content(index)
        if part is None:
            shape = view.shape(index)
            if shape is None or len(shape) != 1 or not isinstance(shape[0], int) or shape[0] > LARGEST:
                return None
            part = (None,) * shape[0]
        total += part
    return total


def _gather(view: NodeView) -> Content | None:
    data, indices = view.content(0), view.ints(1)
    shape = view.shape(0)
    if data is None or indices is None or shape is None or len(shape) != 1:
        return None
    if not all(-len(data) <= i < len(data) for i in indices):
        return None
    return tuple([data[i] for i in indices])


def _slice(view: NodeView) -> Content | None:
    data = view.content(0)
    if data is None:
        return None
    if view.version >= 10:
        starts, ends = view.ints(1), view.ints(2)
        steps = view.ints(4) if view.has(4) else (1,)
    else:
        starts, ends, steps = view.attr("starts"), view.attr("ends"), (1,)
    if starts is None or ends is None or steps is None or not len(starts) == len(ends) == len(steps) == 1:
        return None
    start, end, step = starts[0], ends[0], steps[0]
    if step < 1:
        return data[::-1] if step == -1 and slice_length(len(data), start, end, -1) == len(data) else None
    return data[slice(start, end, step)]


def _binary(view: NodeView, apply: Callable[[Element, Element], Element]) -> Content | None:
    a, b = view.content(0), view.content(1)
    if a is None or b is None:
        return None
    if len(a) != len(b):
        if len(a) == 1:
            a = a * len(b)
        elif len(b) == 1:
            b = b * len(a)
        else:
            return None
    return tuple(map(apply, a, b))


def _number(a: Element, b: Element) -> bool:
    return isinstance(a, int | float) and isinstance(b, int | float)


def _add(view: NodeView) -> Content | None:
    return _binary(view, lambda a, b: _linear(a, b, 1))


def _sub(view: NodeView) -> Content | None:
    return _binary(view, lambda a, b: _linear(a, b, -1))


def _linear(a: Element, b: Element, sign: int) -> Element:
    if isinstance(a, float) or isinstance(b, float):
        # float32, as the runtime computes it
        return float(np.float32(a) + sign * np.float32(b)) if _number(a, b) else None
    return dims.add(a, b, sign)


def _mul(view: NodeView) -> Content | None:
    def apply(a: Element, b: Element) -> Element:
        if isinstance(a, float) or isinstance(b, float):
            return float(np.float32(a) * np.float32(b)) if _number(a, b) else None
        return dims.multiply(a, b)

    return _binary(view, apply)


def _div(view: NodeView) -> Content | None:
    def apply(a: Element, b: Element) -> Element:
        if isinstance(a, float) or isinstance(b, float):
            return float(np.float32(a) / np.float32(b)) if _number(a, b) and b else None
        if isinstance(a, int) and isinstance(b, int):
            return (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) if b else None
        if isinstance(a, str) and isinstance(b, int) and b > 0 and dims.nonnegative(a):
            return dims.floor_divide(a, b)
        return dims.divide(a, b)

    return _binary(view, apply)


def _compare(view: NodeView) -> Content | None:
    def apply(a: Element, b: Element) -> Element:
        if _number(a, b):
            return int(a == b)
        if a is not None and a == b:
            return 1
        # Sizes are never negative: the test for -1 in a target shape.
        for symbol, other in ((a, b), (b, a)):
            if isinstance(symbol, str) and isinstance(other, int) and other < 0 and dims.nonnegative(symbol):
                return 0
        return None

    return _binary(view, apply)


def _where(view: NodeView) -> Content | None:
    condition, a, b = view.content(0), view.content(1), view.content(2)
    if condition is None or a is None or b is None:
        return None
    size = max(len(condition), len(a), len(b))
    parts = [c * size if len(c) == 1 else c for c in (condition, a, b)]
    if not all(len(p) == size for p in parts):
        return None
    return tuple(x if c == 1 else y if c == 0 else x if x == y else None for c, x, y in zip(*parts, strict=True))


def _extreme(view: NodeView) -> Content | None:
    pick = min if view.node.op == "Min" else max

    def apply(a: Element, b: Element) -> Element:
        if a == b:
            return a
        return pick(a, b) if _number(a, b) else None  # type: ignore[type-var]

    return _binary(view, apply) if len(view.types) == 2 else None


def _map(view: NodeView, apply: Callable[[Any], Element]) -> Content | None:
    content = view.content(0)
    return None if content is None else tuple(apply(c) if isinstance(c, int | float) else None for c in content)


def _neg(view: NodeView) -> Content | None:
    return _map(view, lambda c: -c)


def _floor(view: NodeView) -> Content | None:
    return _map(view, lambda c: float(math.floor(c)) if math.isfinite(c) else None)


def _ceil(view: NodeView) -> Content | None:
    return _map(view, lambda c: float(math.ceil(c)) if math.isfinite(c) else None)


def _not(view: NodeView) -> Content | None:
    return _map(view, lambda c: int(not c))


def _constant_of_shape(view: NodeView) -> Content | None:
    shape = view.ints(0)
    if shape is None or len(shape) > 1 or (shape and not 0 <= shape[0] <= LARGEST):
        return None
    value = view.attr("value")
    fill = content_of_tensor(value) if isinstance(value, Tensor) else (0.0,)
    return None if fill is None else fill * (shape[0] if shape else 1)


def _range(view: NodeView) -> Content | None:
    bounds = [view.ints(i) for i in range(3)]
    if any(b is None or len(b) != 1 for b in bounds):
        return None
    start, limit, step = (b[0] for b in bounds if b is not None)
    return None if not step or abs((limit - start) // step) > LARGEST else tuple(range(start, limit, step))


def _expand(view: NodeView) -> Content | None:
    data, shape = view.content(0), view.ints(1)
    if data is None or shape is None or len(shape) > 1:
        return None
    if len(data) == 1 and shape and 0 <= shape[0] <= LARGEST:
        return data * shape[0]
    return data if not shape or shape[0] in (1, len(data)) else None


def _reduce_prod(view: NodeView) -> Content | None:
    data = view.content(0)
    if data is None or any(isinstance(c, float) for c in data):
        return None
    return (product([c for c in data if not isinstance(c, float)]),)


CONTENT_OPS: dict[str, Callable[[NodeView], Content | None]] = {
    "Add": _add,
    "Cast": _cast,
    "Ceil": _ceil,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Div": _div,
    "Equal": _compare,
    "Expand": _expand,
    "Floor": _floor,
    "Gather": _gather,
    "Identity": _same,
    "Max": _extreme,
    "Min": _extreme,
    "Mul": _mul,
    "Neg": _neg,
    "Not": _not,
    "Range": _range,
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _sub,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}


def follows(type_: object) -> bool:
    """Whether contents of this type are followed at all."""
    return isinstance(type_, TensorType) and (type_.shape is None or len(type_.shape) <= 1)
