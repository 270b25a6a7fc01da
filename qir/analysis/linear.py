"""Interval transfer functions of sums: products with weights, normalisation with constants, pooling, reductions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from qir.analysis.bounds import Bounds, gamma
from qir.analysis.elementwise import multiply
from qir.analysis.transfer import At, Transfer, Transfers

__all__ = ["CONTRIB", "TRANSFERS", "dot"]

_CHUNK = 1 << 22
_LONG_SUM = 1 << 20
"""Elements of a sum whose length is not known, for its rounding error."""


def dot(w: np.ndarray, x: Bounds, unit: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of w @ x for all x in the vector bounds (k,) (or (1,): for all alike); w is (n, k). float64, (n,).
    Bounds of shape (n, k) give each row of w a vector of its own.

    Positive weights take the upper bound of their input to the upper bound of the sum, negative ones the lower.
    """
    n, k = w.shape
    low, high = (np.broadcast_to(b, (k,)) if b.ndim == 1 else b for b in (x.lo, x.hi))
    reach = np.maximum(np.abs(low), np.abs(high))
    error = gamma(k, unit)
    results: list[tuple[np.ndarray, np.ndarray]] = []
    step = max(1, _CHUNK // max(1, k))
    for start in range(0, n, step):
        rows = w[start : start + step].astype(np.float64)
        up, down = np.maximum(rows, 0), np.minimum(rows, 0)
        a, b, c = (v if v.ndim == 1 else v[start : start + step] for v in (low, high, reach))
        with np.errstate(invalid="ignore"):
            slack = error * _finite_dot(np.abs(rows), c) + k * 1e-44
            least = _finite_dot(up, a) + _finite_dot(down, b) - slack
            most = _finite_dot(up, b) + _finite_dot(down, a) + slack
        results.append((np.asarray(least), np.asarray(most)))
    if not results:
        return np.zeros(0), np.zeros(0)
    return np.concatenate([r[0] for r in results]), np.concatenate([r[1] for r in results])


def _finite_dot(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """w @ x, or each row of w times the same row of x, where 0 * infinity is 0; no row of w has both signs."""
    if x.ndim == 2:
        return np.asarray(np.where(w == 0, 0.0, w * x).sum(axis=1))
    if np.isfinite(x).all():
        return np.asarray(w @ x)
    above, below = w @ (x == np.inf).astype(np.float64), w @ (x == -np.inf).astype(np.float64)
    up, down = (above > 0) | (below < 0), (above < 0) | (below > 0)
    result = w @ np.where(np.isinf(x), 0.0, x)
    return np.where(up & down, np.nan, np.where(up, np.inf, np.where(down, -np.inf, result)))


def _conv(at: At) -> Bounds | None:
    """Per channel: each tap reads its input channel or, where there is padding, perhaps 0."""
    w, bias = at.constant(1), at.constant(2)
    if w is None or at.x.special or (bias is None and at.node.input(2) is not None):
        return None
    group = int(at.get("group", 1))
    x = at.x.last_axis_only(w.ndim - 1)
    if x.lo.size not in (1, w.shape[1] * group):
        return None
    if _is_padded(at):
        x = Bounds.of(np.minimum(x.lo, 0), np.maximum(x.hi, 0))
    return _channels(at, _grouped(w, x, group, at.unit), bias, w.ndim - 2)


def _is_padded(at: At) -> bool:
    return any(at.get("pads", ())) or at.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def _grouped(w: np.ndarray, x: Bounds, group: int, unit: float) -> tuple[np.ndarray, np.ndarray]:
    """``dot`` for a weight (M, C / group, *kernel) and channel bounds (C,) or (1,)."""
    taps = math.prod(w.shape[2:])
    rows = w.reshape(w.shape[0], -1)
    if x.lo.size == 1:
        return dot(rows, x, unit)
    if group == 1:
        return dot(rows, Bounds(np.repeat(x.lo, taps), np.repeat(x.hi, taps)), unit)
    channels = np.arange(w.shape[0])[:, None] // (w.shape[0] // group) * w.shape[1] + np.arange(w.shape[1])
    return dot(rows, Bounds(np.repeat(x.lo[channels], taps, 1), np.repeat(x.hi[channels], taps, 1)), unit)


def _channels(at: At, sums: tuple[np.ndarray, np.ndarray], bias: np.ndarray | None, spatial: int) -> Bounds:
    """Sums a channel with their bias, as bounds along the channel axis of an image."""
    added = 0.0 if bias is None else bias.astype(np.float64)
    shape = (-1, *[1] * spatial)
    return Bounds.of((sums[0] + added).reshape(shape), (sums[1] + added).reshape(shape)).outward(at.unit)


def _conv_transpose(at: At) -> Bounds | None:
    """Each output adds up some of the taps of its channel: every tap's product, or 0."""
    w, bias = at.constant(1), at.constant(2)
    if w is None or at.x.special or (bias is None and at.node.input(2) is not None):
        return None
    group = int(at.get("group", 1))
    x = at.x.last_axis_only(w.ndim - 1)
    if x.lo.size not in (1, w.shape[0]):
        return None
    x = Bounds.of(np.broadcast_to(np.minimum(x.lo, 0), w.shape[:1]), np.broadcast_to(np.maximum(x.hi, 0), w.shape[:1]))
    # [C, M / group, *kernel] -> [M, C / group, *kernel]
    split = w.reshape(group, w.shape[0] // group, *w.shape[1:])
    turned = np.swapaxes(split, 1, 2).reshape(group * w.shape[1], w.shape[0] // group, *w.shape[2:])
    return _channels(at, _grouped(turned, x, group, at.unit), bias, w.ndim - 2)


def _matmul(at: At) -> Bounds | None:
    a, b = at.bounds(0), at.bounds(1)
    left, right = at.constant(0), at.constant(1)
    if a.special or b.special:
        return None
    if right is not None and right.ndim == 2:
        x = a.last_axis_only()
        return Bounds.of(*dot(right.T, x, at.unit)).outward(at.unit) if x.lo.size in (1, len(right)) else None
    if left is not None and left.ndim == 2 and (at.rank(1) or 0) >= 2:
        x = b.last_axis_only(2)
        if x.lo.size not in (1, left.shape[1]):
            return None
        lo, hi = dot(left, x, at.unit)
        return Bounds.of(lo[:, None], hi[:, None]).outward(at.unit)
    depth = _size(at, 0, -1)
    if depth is None:
        depth = _size(at, 1, -2 if (at.rank(1) or 2) > 1 else 0)
    return _products(at, a.collapsed(), b.collapsed(), depth)


def _products(at: At, a: Bounds, b: Bounds, depth: int | None) -> Bounds:
    """A sum of ``depth`` products of anything in ``a`` and ``b``."""
    lo, hi = multiply(a, b)
    if depth is None:
        return Bounds.of(np.where(lo >= 0, 0.0, -np.inf), np.where(hi <= 0, 0.0, np.inf))
    slack = depth * gamma(depth, at.unit) * np.maximum(np.abs(lo), np.abs(hi))
    with np.errstate(invalid="ignore"):
        return Bounds.of(depth * lo - slack, depth * hi + slack).outward(at.unit)


def _gemm(at: At) -> Bounds | None:
    if at.x.special or at.bounds(1).special or (at.node.input(2) is not None and at.bounds(2).special):
        return None
    alpha, beta = float(at.get("alpha", 1.0)), float(at.get("beta", 1.0))
    x = at.x.last_axis_only(2 if at.get("transA", 0) else 1)
    w = at.constant(1)
    if w is not None and w.ndim == 2:
        rows = w if at.get("transB", 0) else w.T
        if x.lo.size not in (1, rows.shape[1]):
            return None
        product = Bounds.of(*dot(rows, x, at.unit))
    else:
        product = _products(
            at, at.x.collapsed(), at.bounds(1).collapsed(), _size(at, 0, 0 if at.get("transA", 0) else -1)
        )
    if alpha != 1:
        product = Bounds.of(*multiply(product, Bounds.of(alpha, alpha))).outward(at.unit)
    if at.node.input(2) is None:
        return product.outward(at.unit)
    added = Bounds.of(*multiply(at.bounds(2), Bounds.of(beta, beta))).outward(at.unit)
    return Bounds.of(product.lo + added.lo, product.hi + added.hi).outward(at.unit)


def _batch_norm(at: At) -> Bounds | None:
    """x * a + b with a = scale / sqrt(var + eps), b = bias - mean * a, each rounded a few times."""
    constants = [at.constant(i) for i in range(1, 5)]
    rank = at.rank(0)
    if at.x.special or rank is None or rank < 2 or at.get("training_mode", 0):
        return None
    scale, bias, mean, var = (None if c is None else c.astype(np.float64) for c in constants)
    if scale is None or bias is None or mean is None or var is None:
        return None
    if (var + float(at.get("epsilon", 1e-5)) <= 0).any():
        return None
    shape = (-1, *[1] * (rank - 2))
    factor = (scale / np.sqrt(var + float(at.get("epsilon", 1e-5)))).reshape(shape)
    offset = bias.reshape(shape) - mean.reshape(shape) * factor
    lo, hi = multiply(at.x, Bounds.of(factor, factor))
    terms = np.abs(mean.reshape(shape) * factor) + np.abs(bias.reshape(shape))
    with np.errstate(invalid="ignore"):
        size = at.x.magnitude * np.abs(factor)
    slack = 16 * at.unit * (np.where(np.isfinite(size), size, 0) + terms)
    return Bounds.of(lo + offset - slack, hi + offset + slack).outward(at.unit)


def _size(at: At, index: int, axis: int) -> int | None:
    shape = at.shape(index)
    dim = shape[axis] if shape and -len(shape) <= axis < len(shape) else None
    return dim if isinstance(dim, int) else None


def _average(at: At, count: int | None) -> Bounds:
    """The mean of ``count`` elements lies among them, rounding aside."""
    error = gamma(count or _LONG_SUM, at.unit)
    slack = at.x.magnitude * error
    with np.errstate(invalid="ignore"):
        return Bounds.of(at.x.lo - slack, at.x.hi + slack, at.x.special).outward(2 * at.unit)


def _average_pool(at: At) -> Bounds | None:
    kernel = at.get("kernel_shape", ())
    if at.x.special or not kernel:
        return None
    averaged = _pooled(at, _average(at, math.prod(kernel)), len(kernel))
    padded = (
        any(at.get("pads", ())) or at.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or at.get("ceil_mode", 0)
    )
    return Bounds.of(np.minimum(averaged.lo, 0), np.maximum(averaged.hi, 0)) if padded else averaged


def _pooled(at: At, x: Bounds, spatial: int) -> Bounds:
    for axis in range(1, spatial + 1):
        x = x.joined_along(axis)
    return x


def _global_average(at: At) -> Bounds | None:
    shape = at.shape(0)
    if at.x.special or shape is None:
        return None
    sizes = [d for d in shape[2:] if isinstance(d, int)]
    count = math.prod(sizes) if len(sizes) == len(shape) - 2 else None
    return _pooled(at, _average(at, count), len(shape) - 2)


def _max_pool(at: At) -> Bounds | None:
    spatial = len(at.get("kernel_shape", ())) or ((at.rank(0) or 0) - 2)
    if at.x.special or spatial <= 0:
        return None
    result = _pooled(at, at.x, spatial)
    # With ceil_mode a window may lie in the padding alone.
    return Bounds.of(-np.inf, result.hi) if at.get("ceil_mode", 0) else result


def _reduction(compute: Callable[[At, Bounds, int | None], Bounds | None], axes_operand_since: int = 18) -> Transfer:
    """``compute`` gets the operand's bounds joined along the reduced axes, and how many elements are reduced."""

    def transfer(at: At) -> Bounds | None:
        axes = at.integers("axes", 1 if at.count > 1 else None)
        rank = at.rank(0)
        if axes == [] or (axes is None and at.count > 1 and at.node.input(1) is not None):
            axes = None
        if rank is None:
            result = compute(at, at.x.collapsed(), None)
            return None if result is None else result.collapsed()
        if axes is None and at.get("noop_with_empty_axes", 0):
            return None
        every = range(rank) if axes is None else sorted({axis % rank for axis in axes})
        if axes is None and at.count > 1 and at.node.input(1) is not None:
            result = compute(at, at.x.collapsed(), None)
            return None if result is None else result.collapsed()
        x = at.x
        for axis in every:
            x = x.joined_along(rank - axis)
        shape = at.shape(0) or ()
        sizes = [d for axis in every if isinstance(d := shape[axis], int)]
        count = math.prod(sizes) if len(sizes) == len(every) else None
        if count == 0:
            return None
        result = compute(at, x, count)
        if result is None or at.get("keepdims", 1):
            return result
        gone = tuple(axis - rank + result.lo.ndim for axis in every if axis - rank + result.lo.ndim >= 0)
        return Bounds(result.lo.squeeze(gone), result.hi.squeeze(gone), result.special)

    return transfer


def _total(lo: np.ndarray, hi: np.ndarray, at: At, count: int | None) -> Bounds:
    if count is None:
        return Bounds.of(np.where(lo >= 0, 0.0, -np.inf), np.where(hi <= 0, 0.0, np.inf), at.x.special)
    slack = count * np.maximum(np.abs(lo), np.abs(hi)) * gamma(count, at.unit)
    with np.errstate(invalid="ignore"):
        return Bounds.of(count * lo - slack, count * hi + slack, at.x.special).outward(at.unit)


def _squares(x: Bounds) -> tuple[np.ndarray, np.ndarray]:
    inner = np.where((x.lo <= 0) & (x.hi >= 0), 0.0, np.minimum(x.lo**2, x.hi**2))
    return inner, x.magnitude**2


def _reduce_mean(at: At, x: Bounds, count: int | None) -> Bounds:
    slack = x.magnitude * gamma(count or _LONG_SUM, at.unit)
    lo, hi = x.lo, x.hi
    if at.maybe_integer:
        lo, hi = np.minimum(lo, np.trunc(lo)), np.maximum(hi, np.trunc(hi))
    with np.errstate(invalid="ignore"):
        return Bounds.of(lo - slack, hi + slack, x.special).outward(2 * at.unit)


def _reduce_extreme(at: At, x: Bounds, count: int | None) -> Bounds | None:
    return None if x.special else x


def _reduce_l1(at: At, x: Bounds, count: int | None) -> Bounds:
    inner = np.where((x.lo <= 0) & (x.hi >= 0), 0.0, np.minimum(np.abs(x.lo), np.abs(x.hi)))
    return _total(inner, x.magnitude, at, count).meet(0, np.inf)


def _reduce_square(at: At, x: Bounds, count: int | None) -> Bounds:
    return _total(*_squares(x), at, count).meet(0, np.inf)


def _reduce_l2(at: At, x: Bounds, count: int | None) -> Bounds:
    total = _reduce_square(at, x, count)
    return Bounds.of(np.sqrt(total.lo), np.sqrt(total.hi), x.special).outward(2 * at.unit)


def _reduce_logsumexp(at: At, x: Bounds, count: int | None) -> Bounds:
    hi = x.hi + (math.log(count) if count else np.inf)
    return Bounds.of(x.lo, hi, True).outward(at.unit, relative=2.0**-12, absolute=1e-3)


TRANSFERS: Transfers = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "BatchNormalization": _batch_norm,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "MaxPool": _max_pool,
    "GlobalMaxPool": _max_pool,
    "ReduceSum": _reduction(lambda at, x, count: _total(x.lo, x.hi, at, count)),
    "ReduceMean": _reduction(_reduce_mean),
    "ReduceMax": _reduction(_reduce_extreme),
    "ReduceMin": _reduction(_reduce_extreme),
    "ReduceL1": _reduction(_reduce_l1),
    "ReduceL2": _reduction(_reduce_l2),
    "ReduceSumSquare": _reduction(_reduce_square),
    "ReduceLogSumExp": _reduction(_reduce_logsumexp),
}
CONTRIB: Transfers = {}
