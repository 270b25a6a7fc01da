"""Interval transfer functions of operators that move, pick or make numbers, and of those with known result ranges."""

from __future__ import annotations

import math

import numpy as np

from qir.analysis.bounds import Bounds
from qir.analysis.transfer import At, Transfer, Transfers
from qir.ir import DType, Shape, Tensor

__all__ = ["CONTRIB", "TRANSFERS"]


def _everywhere(at: At) -> Bounds:
    """The result's elements are elements of the first operand, no matter which."""
    return at.x.collapsed()


def _each(at: At) -> list[Bounds]:
    return [at.x.collapsed()] * len(at.node.outputs)


def _reshape(at: At) -> Bounds:
    """Bounds along one axis survive where an axis of its size has as many elements behind it."""
    long = [axis for axis, size in enumerate(at.x.lo.shape) if size > 1]
    before, after = at.shape(0), at.out_shape
    if len(long) != 1 or before is None or after is None:
        return at.x.collapsed()
    from_right = at.x.lo.ndim - long[0]
    behind = _product(before[len(before) - from_right + 1 :])
    for axis in range(1, len(after) + 1):
        same_size = after[-axis] == at.x.lo.size
        if same_size and behind is not None and _product(after[len(after) - axis + 1 :]) == behind:
            shape = (-1, *[1] * (axis - 1))
            return Bounds(at.x.lo.reshape(shape), at.x.hi.reshape(shape), at.x.special)
    return at.x.collapsed()


def _product(dims: Shape) -> int | None:
    sizes = [d for d in dims if isinstance(d, int)]
    return math.prod(sizes) if len(sizes) == len(dims) else None


def _full(x: Bounds, rank: int) -> Bounds:
    """With leading axes of length 1 up to the rank."""
    shape = (1,) * (rank - x.lo.ndim) + x.lo.shape
    return Bounds(x.lo.reshape(shape), x.hi.reshape(shape), x.special)


def _transpose(at: At) -> Bounds:
    rank = at.rank(0)
    if rank is None or at.x.lo.ndim > rank:
        return at.x.collapsed()
    x = _full(at.x, rank)
    order = at.get("perm", tuple(reversed(range(rank))))
    return Bounds(x.lo.transpose(order), x.hi.transpose(order), x.special)


def _squeeze(at: At) -> Bounds:
    axes, rank = at.integers("axes", 1), at.rank(0)
    if axes is None or rank is None:
        return at.x.collapsed()
    x, gone = _full(at.x, rank), tuple(axis % rank for axis in axes)
    return Bounds(x.lo.squeeze(gone), x.hi.squeeze(gone), x.special)


def _unsqueeze(at: At) -> Bounds:
    axes, rank = at.integers("axes", 1), at.rank(0)
    if axes is None or rank is None:
        return at.x.collapsed()
    x, new = _full(at.x, rank), tuple(axis % (rank + len(axes)) for axis in axes)
    return Bounds(np.expand_dims(x.lo, new), np.expand_dims(x.hi, new), x.special)


def _slice(at: At) -> Bounds:
    """Bounds along the sliced axes are joined, the others stay."""
    starts, axes, rank = at.integers("starts", 1), at.integers("axes", 3), at.rank(0)
    if rank is None or starts is None or (axes is None and at.node.input(3) is not None):
        return at.x.collapsed()
    x = at.x
    for axis in range(len(starts)) if axes is None else axes:
        x = x.joined_along(rank - axis % rank)
    return x


def _split(at: At) -> list[Bounds]:
    axis, rank = int(at.get("axis", 0)), at.rank(0)
    if rank is None:
        return _each(at)
    from_right = rank - axis % rank
    place = at.x.lo.ndim - from_right
    sizes = [value.dim(axis) for value in at.node.outputs]
    known = [size for size in sizes if isinstance(size, int)]
    if place < 0 or at.x.lo.shape[place] == 1 or len(known) != len(sizes) or sum(known) != at.x.lo.shape[place]:
        return [at.x.joined_along(from_right)] * len(at.node.outputs)
    cuts = np.cumsum(known)[:-1]
    pairs = zip(np.split(at.x.lo, cuts, place), np.split(at.x.hi, cuts, place), strict=True)
    return [Bounds(lo, hi, at.x.special) for lo, hi in pairs]


def _concat(at: At) -> Bounds:
    rank = at.out_rank or next((r for i in range(at.count) if (r := at.rank(i)) is not None), None)
    sizes = [(at.shape(i) or (None,))[int(at.get("axis", 0))] if at.shape(i) else None for i in range(at.count)]
    known = [size for size in sizes if isinstance(size, int)]
    special = any(b.special for b in at.operands)
    if rank is None or len(known) != len(sizes) or sum(known) > 8192:
        parts = [b.collapsed() for b in at.operands if not b.is_empty]
        if not parts:
            return Bounds.of(np.inf, -np.inf)
        return Bounds.of(min(b.lo.min() for b in parts), max(b.hi.max() for b in parts), special)
    axis = int(at.get("axis", 0)) % rank
    operands = [_full(b, rank) for b in at.operands]
    common = [max(b.lo.shape[i] for b in operands) for i in range(rank)]
    if math.prod(common[:axis] + common[axis + 1 :]) > 64:  # differences along other axes are not worth keeping
        common = [1] * rank
        operands = [_full(b.last_axis_only(rank - axis), 1) for b in operands]
        shapes = [(*[1] * axis, -1, *[1] * (rank - axis - 1))] * len(operands)
        operands = [Bounds(b.lo.reshape(s), b.hi.reshape(s), b.special) for b, s in zip(operands, shapes, strict=True)]
    lows, highs = [], []
    for bounds, size in zip(operands, known, strict=True):
        shape = (*common[:axis], size, *common[axis + 1 :])
        lows.append(np.broadcast_to(bounds.lo, shape))
        highs.append(np.broadcast_to(bounds.hi, shape))
    return Bounds.of(np.concatenate(lows, axis), np.concatenate(highs, axis), special)


def _gather(at: At) -> Bounds:
    """Rows of a table: what differs along the axes behind the gathered one stays."""
    rank = at.rank(0)
    if rank is None:
        return at.x.collapsed()
    behind = rank - 1 - int(at.get("axis", 0)) % rank
    axes = tuple(range(at.x.lo.ndim - behind))
    if at.x.lo.ndim <= behind:
        return at.x
    return Bounds(at.x.lo.min(axis=axes), at.x.hi.max(axis=axes), at.x.special)


def _expand(at: At) -> Bounds:
    return at.x if at.rank(0) is not None else at.x.collapsed()


def _tile(at: At) -> Bounds:
    """Bounds along a repeated axis no longer fit its length."""
    repeats = at.constant(1)
    if repeats is None or at.rank(0) is None:
        return at.x.collapsed()
    x = at.x
    for from_right, times in enumerate(reversed(repeats.tolist()), 1):
        x = x if times == 1 else x.joined_along(from_right)
    return x


def _pad(at: At) -> Bounds:
    x = at.x.collapsed()
    if at.get("mode", "constant") != "constant":
        return x
    if at.opset < 11:
        fill = float(at.get("value", 0.0))
        return x.join(Bounds.of(fill, fill))
    return x.join(Bounds.of(0.0, 0.0) if at.node.input(2) is None else at.bounds(2).collapsed())


def _resize(at: At) -> Bounds | None:
    """Nearest picks, linear mixes with weights that add up to 1; cubic overshoots."""
    mode = at.get("mode", "nearest")
    x = at.x
    for axis in range(1, x.lo.ndim + 1):
        # Channels of images are not resized in practice, but nothing forbids it.
        shape, after = at.shape(0), at.out_shape
        same = shape and after and axis <= min(len(shape), len(after)) and shape[-axis] == after[-axis]
        x = x if same and isinstance(shape[-axis] if shape else None, int) else x.joined_along(axis)
    if at.get("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        fill = float(at.get("extrapolation_value", 0.0))
        x = x.join(Bounds.of(fill, fill))
    if mode == "nearest":
        return x
    if mode not in ("linear", "bilinear") or x.special:
        return None
    slack = x.magnitude * 32 * at.unit
    with np.errstate(invalid="ignore"):
        return Bounds.of(x.lo - slack, x.hi + slack, x.special).outward(at.unit)


def _scatter(at: At) -> Bounds | None:
    if at.get("reduction", "none") not in ("none", "max", "min"):
        return None
    return at.x.collapsed().join(at.bounds(2).collapsed())


def _one_hot(at: At) -> Bounds:
    return at.bounds(2).collapsed()


def _constant_of_shape(at: At) -> Bounds:
    value = at.get("value")
    return Bounds.of_constant(value.numpy()) if isinstance(value, Tensor) else Bounds.of(0.0, 0.0)


def _range(at: At) -> Bounds:
    """From start on, limit excluded; which is larger depends on the sign of the step."""
    start, limit = at.bounds(0).collapsed(), at.bounds(1).collapsed()
    both = start.join(limit)
    return both.outward(at.unit and 2.0**-12)


def _top_k(at: At) -> list[Bounds]:
    return [at.x.collapsed(), Bounds.of(0.0, np.inf)]


def _trilu(at: At) -> Bounds:
    return at.x.collapsed().join(Bounds.of(0.0, 0.0))


def _max_unpool(at: At) -> Bounds:
    return at.x.collapsed().join(Bounds.of(0.0, 0.0))


def _cumulative(at: At) -> Bounds | None:
    axis = at.constant(1)
    shape = at.shape(0)
    if axis is None or shape is None or at.x.special:
        return None
    size = shape[int(axis.reshape(()))]
    x = at.x.collapsed()
    if not isinstance(size, int):
        return Bounds.of(np.where(x.lo >= 0, 0.0, -np.inf), np.where(x.hi <= 0, 0.0, np.inf))
    slack = size * float(x.magnitude) * 2 * size * at.unit
    with np.errstate(invalid="ignore"):
        return Bounds.of(np.minimum(0, size * x.lo) - slack, np.maximum(0, size * x.hi) + slack).outward(at.unit)


def _count(at: At) -> Bounds:
    return Bounds.of(0.0, np.inf)


def _unit(at: At) -> Bounds:
    """Zeros and ones."""
    return Bounds.of(0.0, 1.0, any(b.special for b in at.operands))


def _softmax(at: At) -> Bounds:
    """Probabilities. Where a runtime multiplies by the rounded reciprocal of the sum, 1 may be passed by roundings."""
    return Bounds.of(0.0, 1 + 16 * at.unit, any(b.special for b in at.operands))


def _log_softmax(at: At) -> Bounds:
    return Bounds.of(-np.inf, 1e-5, True)


def _lp_normalization(at: At) -> Bounds:
    return Bounds.of(-1.00001, 1.00001, True)


def _recurrent(at: At) -> list[Bounds] | None:
    """Hidden states are tanh times a gate, or a mix of such with the initial state; cell states are not bounded."""
    activations = [str(name).lower() for name in at.get("activations", ())]
    if any(name not in ("sigmoid", "tanh", "hardsigmoid", "softsign") for name in activations):
        return None
    state = Bounds.of(-1.00001, 1.00001, any(b.special for b in at.operands))
    if at.node.op == "GRU" and at.node.input(5) is not None:
        # h = (1 - z) n + z h_previous keeps what the initial state brings in.
        state = state.join(at.bounds(5).collapsed())
    return [state, state, Bounds.unknown()][: len(at.node.outputs)]


def _dequantize(at: At) -> Bounds | None:
    """From the dtype of the codes where all parameters are known."""
    scale, zero = at.constant(1), at.constant(2)
    value = at.node.input(0)
    kind = DType.from_numpy(zero.dtype) if zero is not None else (None if value is None else value.dtype)
    if scale is None or kind is None or not kind.is_integer or (zero is None and at.node.input(2) is not None):
        return None
    shift = 0.0 if zero is None else zero.astype(np.float64)
    low, high = (kind.qmin - shift) * scale.astype(np.float64), (kind.qmax - shift) * scale.astype(np.float64)
    if scale.ndim == 1 and scale.size > 1 and not at.get("block_size", 0) and at.rank(0) is not None:
        rank = at.rank(0) or 1
        shape = (-1, *[1] * (rank - 1 - int(at.get("axis", 1)) % rank))
        return Bounds.of(low.reshape(shape), high.reshape(shape)).outward(at.unit or 2.0**-24)
    return Bounds.of(np.min(low), np.max(high)).outward(2.0**-24)


def _quantize(at: At) -> Bounds | None:
    zero = at.constant(2)
    kind = at.node.output.dtype or (DType.from_numpy(zero.dtype) if zero is not None else None)
    if kind is None and at.node.input(2) is None and not at.get("output_dtype", 0):
        kind = DType.UINT8
    return Bounds.of(kind.qmin, kind.qmax) if kind is not None and kind.is_integer else None


def _dynamic_quantize(at: At) -> list[Bounds]:
    return [Bounds.of(0.0, 255.0), Bounds.of(0.0, np.inf, True), Bounds.of(0.0, 255.0)]


def _random_uniform(at: At) -> Bounds:
    return Bounds.of(float(at.get("low", 0.0)), float(at.get("high", 1.0))).outward(at.unit)


_NUMBERS_OF: dict[str, Transfer] = dict.fromkeys(
    ("ReverseSequence", "Compress", "GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth", "Unique", "Upsample"),
    _everywhere,
)

TRANSFERS: Transfers = {
    **_NUMBERS_OF,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Gather": _gather,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "Resize": _resize,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "Scatter": _scatter,
    "OneHot": _one_hot,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "TopK": _top_k,
    "Trilu": _trilu,
    "MaxUnpool": _max_unpool,
    "CumSum": _cumulative,
    "EyeLike": _unit,
    "Bernoulli": _unit,
    **dict.fromkeys(("Shape", "Size", "NonZero", "ArgMax", "ArgMin", "NonMaxSuppression"), _count),
    "Softmax": _unit,
    "Hardmax": _unit,
    "LogSoftmax": _log_softmax,
    "LpNormalization": _lp_normalization,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "RandomUniform": _random_uniform,
    "RandomUniformLike": _random_uniform,
}
CONTRIB: Transfers = {"DequantizeLinear": _dequantize, "QuantizeLinear": _quantize}
