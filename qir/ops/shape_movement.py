"""Shape rules of ops that move data or make it: Reshape, Transpose, Concat, Gather, Slice, Pad, Shape, Range ..."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qir.ir import Dim, DType, Shape, SparseTensor, Tensor, TensorType, Type
from qir.ops import dims
from qir.ops.shape_math import broadcast_shapes
from qir.ops.shape_rule import Content, NodeView, RuleError, Unknown, axis_of, product, rule

__all__ = ["constant_tensor", "slice_length"]

_MOST_DIMS = 1024
"""No tensor has more; a file that says otherwise would only cost memory."""

Types = Sequence[Type | None]


def _as_shape(content: Content | None) -> Shape | None:
    """A tensor's elements as dimensions."""
    return None if content is None else tuple([c if isinstance(c, int | str) else None for c in content])


def _target_rank(view: NodeView, index: int) -> Shape | None:
    """Of a shape operand whose content is unknown at least the rank may be known."""
    shape = view.shape(index)
    if shape is not None and len(shape) == 1 and isinstance(shape[0], int):
        if shape[0] > _MOST_DIMS:
            raise RuleError(f"a shape of {shape[0]} dimensions")
        return (None,) * shape[0]
    return None


@rule("Reshape")
def _reshape(view: NodeView) -> Types:
    data = view.tensor(0)
    target = _as_shape(view.content(1)) if view.version >= 5 else tuple(view.attr("shape", ()))
    if target is None:
        return [TensorType(data.dtype, _target_rank(view, 1))]
    allow_zero = view.attr("allowzero", 0)
    sizes: list[Dim] = []
    for index, size in enumerate(target):
        if size == 0 and not allow_zero:
            if data.shape is not None and index >= len(data.shape):
                raise RuleError(f"axis {index} is to be copied from a tensor of rank {len(data.shape)}")
            sizes.append(None if data.shape is None else data.shape[index])
        else:
            sizes.append(size)
    if sizes.count(-1) > 1:
        raise RuleError("more than one size is -1")
    # An unknown element of the target may be -1 at run time, so then nothing can be solved for; it may not be two.
    if -1 in sizes:
        rest = [s for s in sizes if s != -1]
        total = None if data.shape is None else _quotient(data.shape, rest)
        sizes[sizes.index(-1)] = total
    elif data.shape is not None and all(isinstance(d, int) for d in (*data.shape, *sizes)):
        if math.prod(data.shape) != math.prod(sizes):  # type: ignore[arg-type]
            raise RuleError(f"{list(data.shape)} has another number of elements than {sizes}")
    return [TensorType(data.dtype, tuple(sizes))]


def _quotient(shape: Sequence[Dim], rest: Sequence[Dim]) -> Dim:
    """What -1 stands for: the number of elements of ``shape`` over that of ``rest``."""
    remaining = list(shape)
    divisors = []
    for size in rest:
        if isinstance(size, str) and size in remaining:
            remaining.remove(size)
        else:
            divisors.append(size)
    total, divisor = product(remaining), product(divisors)
    if isinstance(total, int) and isinstance(divisor, int) and (not divisor or total % divisor):
        if divisor == 0:
            return None
        raise RuleError(f"{total} elements do not divide by {divisor}")
    return dims.divide(total, divisor)


@rule("Flatten")
def _flatten(view: NodeView) -> Types:
    data = view.tensor(0)
    if data.shape is None:
        return [TensorType(data.dtype, (None, None))]
    axis = view.attr("axis", 1)
    if not -len(data.shape) <= axis <= len(data.shape):
        raise RuleError(f"axis {axis} of a tensor of rank {len(data.shape)}")
    axis += len(data.shape) if axis < 0 else 0
    return [TensorType(data.dtype, (product(data.shape[:axis]), product(data.shape[axis:])))]


@rule("Transpose")
def _transpose(view: NodeView) -> Types:
    data = view.tensor(0)
    if data.shape is None:
        return [TensorType(data.dtype)]
    order = view.attr("perm") or range(len(data.shape) - 1, -1, -1)
    if sorted(order) != list(range(len(data.shape))):
        raise RuleError(f"perm {list(order)} for a tensor of rank {len(data.shape)}")
    return [TensorType(data.dtype, tuple([data.shape[i] for i in order]))]


def _concat_shapes(shapes: Sequence[Shape | None], axis: int) -> Shape | None:
    known_shapes = [s for s in shapes if s is not None]
    if not known_shapes:
        return None
    rank = len(known_shapes[0])
    axis = axis_of(axis, rank)
    sizes: list[Dim] = [None] * rank
    for shape in known_shapes:
        if len(shape) != rank:
            raise RuleError(f"ranks {rank} and {len(shape)} differ")
        for index, dim in enumerate(shape):
            seen = sizes[index]
            if index == axis or dim is None or dim == seen:
                continue
            if isinstance(seen, int) and isinstance(dim, int):
                raise RuleError(f"sizes {seen} and {dim} of axis {index} differ")
            sizes[index] = seen if isinstance(seen, int) else dim
    total: Dim = 0
    for other in shapes:
        total = dims.add(total, None if other is None else other[axis])
    sizes[axis] = total
    return tuple(sizes)


@rule("Concat")
def _concat(view: NodeView) -> Types:
    count = len(view.types)
    axis = view.attr("axis", 1)
    return [TensorType(view.dtype(0), _concat_shapes([view.shape(i) for i in range(count)], axis))]


@rule("QLinearConcat", domain="com.microsoft")
def _qlinear_concat(view: NodeView) -> Types:
    data = range(2, len(view.types), 3)
    return [TensorType(view.dtype(1), _concat_shapes([view.shape(i) for i in data], view.attr("axis")))]


@rule("Split")
def _split(view: NodeView) -> Types:
    data = view.tensor(0)
    count = len(view.node.outputs)
    if data.shape is None:
        return [TensorType(data.dtype)] * count
    axis = axis_of(view.attr("axis", 0), len(data.shape))
    whole = data.shape[axis]
    if view.version >= 13 and view.has(1):
        parts: Shape = _as_shape(view.content(1)) or (None,) * count
    elif view.version < 13 and "split" in view.node.attributes:
        parts = tuple(view.attr("split"))
    elif not isinstance(whole, int):
        each = dims.divide(whole, count) if view.version < 18 else None
        parts = (each,) * count
    else:
        each = -(-whole // count)
        parts = (*([each] * (count - 1)), whole - each * (count - 1))
    if len(parts) != count:
        raise RuleError(f"{len(parts)} sizes for {count} outputs")
    return [TensorType(data.dtype, (*data.shape[:axis], p, *data.shape[axis + 1 :])) for p in parts]


def slice_length(size: Dim, start: int | float | str | None, end: int | float | str | None, step: int) -> Dim:
    """How many elements ``[start:end:step]`` takes of an axis."""
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(size)[slice(*_bounds(size, start, end, step), step)])
    if step == 1 and start == 0 and isinstance(end, int) and end >= 2**31 - 1:
        return size
    if step == 1 and start == 0 and end == size:
        return size
    if step == -1 and start == -1 and isinstance(end, int) and end <= -(2**31 - 1):
        return size
    if step == 1 and start == 0 and isinstance(end, int | str) and dims.nonnegative(end):
        return dims.least(end, size) if isinstance(end, str) else dims.least(size, end)
    return None


def _bounds(size: int, start: int, end: int, step: int) -> tuple[int, int | None]:
    """Slice's clamping (onnx Slice-13), in Python's terms: going down, an end before the first element is None."""
    start += size if start < 0 else 0
    end += size if end < 0 else 0
    if step > 0:
        return min(max(start, 0), size), min(max(end, 0), size)
    start = min(max(start, 0), size - 1) if size else 0
    end = min(max(end, -1), size - 1)
    return start, None if end < 0 else end


@rule("Slice")
def _slice(view: NodeView) -> Types:
    data = view.tensor(0)
    if data.shape is None:
        return [TensorType(data.dtype)]
    rank = len(data.shape)
    steps: tuple[int, ...] | None
    if view.version >= 10:
        starts, ends = view.content(1), view.content(2)
        axes = view.ints(3) if view.has(3) else tuple(range(len(starts or ends or ())))
        if axes is None or (starts is None and ends is None):
            return [TensorType(data.dtype, (None,) * rank)]
        steps = view.ints(4) if view.has(4) else (1,) * len(axes)
        starts, ends = starts or (None,) * len(axes), ends or (None,) * len(axes)
    else:
        starts, ends = view.attr("starts"), view.attr("ends")
        axes, steps = view.attr("axes") or tuple(range(len(starts))), (1,) * len(starts)
    sizes = list(data.shape)
    for index, axis in enumerate(axes):
        axis = axis_of(axis, rank)
        if steps is None or steps[index] == 0:
            sizes[axis] = None
        else:
            sizes[axis] = slice_length(sizes[axis], starts[index], ends[index], steps[index])
    return [TensorType(data.dtype, tuple(sizes))]


@rule("Gather")
def _gather(view: NodeView) -> Types:
    data, indices = view.tensor(0), view.shape(1)
    if data.shape is None or indices is None:
        return [TensorType(data.dtype)]
    axis = axis_of(view.attr("axis", 0), len(data.shape))
    return [TensorType(data.dtype, data.shape[:axis] + indices + data.shape[axis + 1 :])]


@rule("GatherBlockQuantized", domain="com.microsoft")
def _gather_block(view: NodeView) -> Types:
    data, indices = view.tensor(0), view.shape(1)
    if data.shape is None or indices is None:
        return [TensorType(view.dtype(2))]
    axis = axis_of(view.attr("gather_axis", 0), len(data.shape))
    sizes = list(data.shape)
    if data.dtype is DType.UINT8:  # two or one element a byte along the last axis
        sizes[-1] = dims.multiply(sizes[-1], 8 // view.attr("bits", 4))
    return [TensorType(view.dtype(2), (*sizes[:axis], *indices, *sizes[axis + 1 :]))]


@rule("GatherElements")
def _gather_elements(view: NodeView) -> Types:
    return [TensorType(view.dtype(0), view.shape(1))]


@rule("Squeeze")
def _squeeze(view: NodeView) -> Types:
    data = view.tensor(0)
    axes = view.axes(1 if view.version >= 13 else None)
    given = "axes" in view.node.attributes or (view.version >= 13 and view.has(1))
    if data.shape is None or axes is None:
        return [TensorType(data.dtype)]
    if not given:
        if not all(isinstance(d, int) for d in data.shape):
            return [TensorType(data.dtype)]
        return [TensorType(data.dtype, tuple(d for d in data.shape if d != 1))]
    gone = {axis_of(a, len(data.shape)) for a in axes}
    for axis in gone:
        if isinstance(data.shape[axis], int) and data.shape[axis] != 1:
            raise RuleError(f"axis {axis} has size {data.shape[axis]}, not 1")
    return [TensorType(data.dtype, tuple(d for i, d in enumerate(data.shape) if i not in gone))]


@rule("Unsqueeze")
def _unsqueeze(view: NodeView) -> Types:
    data = view.tensor(0)
    axes = view.axes(1 if view.version >= 13 else None)
    if data.shape is None or axes is None:
        return [TensorType(data.dtype)]
    rank = len(data.shape) + len(axes)
    new = {axis_of(a, rank) for a in axes}
    if len(new) != len(axes):
        raise RuleError(f"axes {list(axes)} repeat")
    old = iter(data.shape)
    return [TensorType(data.dtype, tuple([1 if i in new else next(old) for i in range(rank)]))]


@rule("Expand")
def _expand(view: NodeView) -> Types:
    data = view.tensor(0)
    target = _as_shape(view.content(1))
    if target is None:
        target = _target_rank(view, 1)
    return [TensorType(data.dtype, broadcast_shapes(data.shape, target))]


@rule("Tile")
def _tile(view: NodeView) -> Types:
    data = view.tensor(0)
    if data.shape is None:
        return [TensorType(data.dtype)]
    repeats = _as_shape(view.content(1)) if view.version >= 6 else None
    if repeats is None:
        return [TensorType(data.dtype, (None,) * len(data.shape))]
    return [TensorType(data.dtype, tuple(map(dims.multiply, data.shape, repeats)))]


@rule("Pad")
def _pad(view: NodeView) -> Types:
    data = view.tensor(0)
    if data.shape is None:
        return [TensorType(data.dtype)]
    rank = len(data.shape)
    pads: Content | None
    if view.version >= 11:
        pads = view.content(1)
        axes = view.ints(3) if view.has(3) else tuple(range(rank))
    else:
        pads, axes = view.attr("pads" if view.version >= 2 else "paddings"), tuple(range(rank))
    if pads is None or axes is None:
        return [TensorType(data.dtype, (None,) * rank)]
    if len(pads) != 2 * len(axes):
        raise RuleError(f"{len(pads)} pads for {len(axes)} axes")
    sizes = list(data.shape)
    for index, axis in enumerate(axes):
        axis = axis_of(axis, rank)
        for amount in (pads[index], pads[index + len(axes)]):
            sizes[axis] = dims.add(sizes[axis], None if isinstance(amount, float) else amount)
    return [TensorType(data.dtype, tuple(sizes))]


@rule("Resize", "Upsample")
def _resize(view: NodeView) -> Types:
    data = view.tensor(0)
    if data.shape is None:
        return [TensorType(data.dtype)]
    rank = len(data.shape)
    blank = [TensorType(data.dtype, (None,) * rank)]
    op, version = view.node.op, view.version
    if version >= 18 and "keep_aspect_ratio_policy" in view.node.attributes:
        if view.attr("keep_aspect_ratio_policy") != "stretch":
            return blank
    axes = tuple(axis_of(a, rank) for a in view.attr("axes", ())) or tuple(range(rank))
    scales_at = 1 if op == "Upsample" or version < 11 else 2
    sizes = list(data.shape)
    if op == "Resize" and version >= 11 and view.has(3):
        wanted = _as_shape(view.content(3))
        if wanted is None or len(wanted) != len(axes):
            return blank
        for axis, size in zip(axes, wanted, strict=True):
            sizes[axis] = size
        return [TensorType(data.dtype, tuple(sizes))]
    if op == "Upsample" and version < 9:
        scales: Content | None = view.attr("scales")
    else:
        scales = view.content(scales_at) if view.has(scales_at) else None
    if (
        scales is None
        or len(scales) != len(axes)
        or view.attr("coordinate_transformation_mode") == "tf_crop_and_resize"
    ):
        return blank
    for axis, scale in zip(axes, scales, strict=True):
        size = sizes[axis]
        if not isinstance(scale, int | float):
            sizes[axis] = None
        elif isinstance(size, int):
            sizes[axis] = math.floor(size * scale)
        elif scale != 1:
            sizes[axis] = dims.multiply(size, int(scale)) if float(scale).is_integer() else None
    return [TensorType(data.dtype, tuple(sizes))]


# Made from shapes or nothing


@rule("Shape")
def _shape(view: NodeView) -> Types:
    shape = view.shape(0)
    if shape is None:
        return [TensorType(DType.INT64, (None,))]
    return [TensorType(DType.INT64, (len(shape[view.attr("start", 0) : view.attr("end")]),))]


@rule("Size")
def _size(view: NodeView) -> Types:
    return [TensorType(DType.INT64, ())]


def constant_tensor(view: NodeView) -> TensorType:
    """The type of a Constant node's result. Raises Unknown."""
    for name in view.node.attributes:
        value = view.attr(name)
        if isinstance(value, Tensor | SparseTensor):
            return TensorType(value.dtype, value.shape)
        if name in _CONSTANTS:
            return TensorType(_CONSTANTS[name], (len(value),) if isinstance(value, tuple) else ())
    raise Unknown


_CONSTANTS = {
    "value_float": DType.FLOAT,
    "value_floats": DType.FLOAT,
    "value_int": DType.INT64,
    "value_ints": DType.INT64,
    "value_string": DType.STRING,
    "value_strings": DType.STRING,
}


@rule("Constant")
def _constant(view: NodeView) -> Types:
    return [constant_tensor(view)]


@rule("ConstantOfShape")
def _constant_of_shape(view: NodeView) -> Types:
    value = view.attr("value")
    dtype = value.dtype if isinstance(value, Tensor) else DType.FLOAT
    shape = _as_shape(view.content(0))
    return [TensorType(dtype, _target_rank(view, 0) if shape is None else shape)]


@rule("Range")
def _range(view: NodeView) -> Types:
    dtype = view.dtype(0)
    contents = [view.content(i) for i in range(3)]
    size: Dim = None
    if all(c is not None and len(c) == 1 for c in contents):
        start, limit, step = (c[0] for c in contents if c is not None)
        if isinstance(start, int | float) and isinstance(limit, int | float) and isinstance(step, int | float) and step:
            size = max(math.ceil((limit - start) / step), 0)
        elif start == 0 and step == 1 and isinstance(limit, str) and dims.nonnegative(limit):
            size = limit
    return [TensorType(dtype, (size,))]


@rule("OneHot")
def _one_hot(view: NodeView) -> Types:
    shape, depth = view.shape(0), view.content(1)
    if shape is None:
        return [TensorType(view.dtype(2))]
    rank = len(shape) + 1
    axis = axis_of(view.attr("axis", -1), rank)
    size: Dim = depth[0] if depth and isinstance(depth[0], int | str) else None
    return [TensorType(view.dtype(2), (*shape[:axis], size, *shape[axis:]))]


@rule("DepthToSpace", "SpaceToDepth")
def _depth_space(view: NodeView) -> Types:
    data = view.tensor(0)
    if data.shape is None or len(data.shape) != 4:
        return [TensorType(data.dtype, data.shape and (None,) * len(data.shape))]
    n, c, h, w = data.shape
    block = view.attr("blocksize")
    if view.node.op == "DepthToSpace":
        new = (n, dims.divide(c, block * block), dims.multiply(h, block), dims.multiply(w, block))
    else:
        new = (n, dims.multiply(c, block * block), dims.divide(h, block), dims.divide(w, block))
    return [TensorType(data.dtype, new)]


@rule("NonZero")
def _non_zero(view: NodeView) -> Types:
    shape = view.shape(0)
    return [TensorType(DType.INT64, (None if shape is None else len(shape), None))]
