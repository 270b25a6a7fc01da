"""Interval transfer functions of operators that work element by element."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from qir.analysis.bounds import Bounds
from qir.analysis.transfer import At, Transfer, Transfers

__all__ = ["CONTRIB", "TRANSFERS", "multiply"]

_Function = Callable[[np.ndarray], np.ndarray]
_BOOLEAN = (0.0, 1.0)


def multiply(a: Bounds, b: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of a * b in exact arithmetic: 0 * infinity is 0, since an infinite bound only stands for large numbers."""
    with np.errstate(invalid="ignore", over="ignore"):
        corners = [a.lo * b.lo, a.lo * b.hi, a.hi * b.lo, a.hi * b.hi]
    corners = [np.where(np.isnan(c), 0.0, c) for c in corners]
    return np.minimum.reduce(corners), np.maximum.reduce(corners)


def _add(at: At) -> Bounds:
    a, b = at.bounds(0), at.bounds(1)
    return at.rounded(a.lo + b.lo, a.hi + b.hi)


def _sub(at: At) -> Bounds:
    a, b = at.bounds(0), at.bounds(1)
    return at.rounded(a.lo - b.hi, a.hi - b.lo)


def _mul(at: At) -> Bounds:
    a, b = at.bounds(0), at.bounds(1)
    first, second = at.node.input(0), at.node.input(1)
    lo, hi = multiply(a, b)
    if first is second:
        lo = np.maximum(lo, 0.0)
    for x, gate in ((first, second), (second, first)):
        # x * Sigmoid(x) has its minimum, -0.27846, at x = -1.2785.
        maker = None if gate is None else gate.producer
        if maker is not None and maker.op == "Sigmoid" and not maker.domain and maker.input(0) is x:
            lo = np.maximum(lo, -0.278465)
    return at.rounded(lo, hi)


def _div(at: At) -> Bounds:
    a, b = at.bounds(0), at.bounds(1)
    if not ((b.lo > 0).all() or (b.hi < 0).all()) or b.special:
        return Bounds.unknown()
    with np.errstate(divide="ignore"):
        lo, hi = multiply(a, Bounds.of(1 / b.hi, 1 / b.lo))
    if at.maybe_integer:
        # Integer division drops the fraction.
        lo, hi = np.minimum(lo, np.trunc(lo)), np.maximum(hi, np.trunc(hi))
    return Bounds.of(lo, hi, a.special).outward(max(at.unit, 2.0**-50))


def _pow(at: At) -> Bounds | None:
    exponent = at.constant(1)
    if exponent is None or exponent.size != 1:
        return at.approximate(0.0, np.inf, True) if (at.x.lo > 0).all() else None
    p = float(exponent.reshape(()))
    x = at.x
    if p == 2:
        inner = np.where((x.lo <= 0) & (x.hi >= 0), 0.0, np.minimum(x.lo**2, x.hi**2))
        return at.approximate(inner, x.magnitude**2)
    if p > 0 and p == int(p):
        even = int(p) % 2 == 0
        low, high = x.lo**p, x.hi**p
        if not even:
            return at.approximate(low, high)
        return at.approximate(np.where((x.lo <= 0) & (x.hi >= 0), 0.0, np.minimum(low, high)), np.maximum(low, high))
    if (x.lo > 0).all():
        low, high = x.lo**p, x.hi**p
        return at.approximate(np.minimum(low, high), np.maximum(low, high))
    return at.approximate(0.0, np.abs(x.hi) ** p) if p > 0 and (x.lo >= 0).all() else None


def _increasing(
    function: _Function, least: float = -np.inf, most: float = np.inf, exact: bool = False, absolute: float = 0.0
) -> Transfer:
    """A non-decreasing function whose results lie in [least, most] in the runtime too."""

    def transfer(at: At) -> Bounds:
        with np.errstate(all="ignore"):
            lo, hi = function(at.x.lo), function(at.x.hi)
        result = at.rounded(lo, hi) if exact else at.approximate(lo, hi)
        return Bounds.of(result.lo - absolute, result.hi + absolute, result.special).meet(least, most)

    return transfer


def _valley(function: _Function, bottom: float) -> Transfer:
    """A function that falls up to ``bottom`` and rises from there on (the falling part staying below 0)."""

    def transfer(at: At) -> Bounds:
        lo, hi = np.clip(at.x.lo, -1e30, None), at.x.hi
        with np.errstate(all="ignore"):
            ends = function(lo), np.where(np.isinf(hi), hi, function(np.clip(hi, -1e30, 1e30)))
            least = np.where((lo < bottom) & (hi > bottom), function(np.array(bottom)), np.minimum(*ends))
        return at.approximate(least, np.maximum(*ends)).outward(at.unit, absolute=1e-6)

    return transfer


def _bounded(least: float, most: float) -> Transfer:
    return lambda at: Bounds.of(least, most, any(b.special for b in at.operands))


def _always(at: At) -> Bounds:
    """Comparisons and tests: false or true whatever comes in."""
    return Bounds.of(*_BOOLEAN)


def _same(at: At) -> Bounds:
    return at.x


def _neg(at: At) -> Bounds:
    return Bounds.of(-at.x.hi, -at.x.lo, at.x.special)


def _abs(at: At) -> Bounds:
    inner = np.where((at.x.lo <= 0) & (at.x.hi >= 0), 0.0, np.minimum(np.abs(at.x.lo), np.abs(at.x.hi)))
    return Bounds.of(inner, at.x.magnitude, at.x.special)


def _sqrt(at: At) -> Bounds:
    result = at.rounded(np.sqrt(np.maximum(at.x.lo, 0)), np.sqrt(np.maximum(at.x.hi, 0)))
    return Bounds.of(result.lo, result.hi, at.x.special or bool((at.x.lo < 0).any()))


def _log(at: At) -> Bounds:
    with np.errstate(divide="ignore", invalid="ignore"):
        lo, hi = np.log(np.maximum(at.x.lo, 0)), np.log(np.maximum(at.x.hi, 0))
    special = at.x.special or bool((at.x.lo <= 0).any())
    return Bounds.of(lo, hi, special).outward(at.unit, relative=2.0**-16, absolute=2.0**-20)


def _exp(at: At) -> Bounds:
    with np.errstate(over="ignore"):
        lo, hi = np.exp(at.x.lo), np.exp(at.x.hi)
    # Beyond 88 float32 overflows (float16 beyond 11); that is ordinary enough to reckon with.
    overflow = bool((at.x.hi > (11 if at.unit > 2.0**-12 else 88)).any())
    return at.approximate(lo, hi, at.x.special or overflow).meet(0, np.inf)


def _reciprocal(at: At) -> Bounds:
    if not ((at.x.lo > 0).all() or (at.x.hi < 0).all()) or at.x.special:
        return Bounds.unknown()
    return at.rounded(1 / at.x.hi, 1 / at.x.lo)


def _relu(at: At) -> Bounds:
    if at.x.special:
        return Bounds.of(0.0, np.inf, True)
    return Bounds.of(np.maximum(at.x.lo, 0), np.maximum(at.x.hi, 0))


def _leaky(at: At) -> Bounds:
    return _sloped(at, Bounds.of(float(at.get("alpha", 0.01)), float(at.get("alpha", 0.01))))


def _prelu(at: At) -> Bounds:
    return _sloped(at, at.bounds(1))


def _sloped(at: At, slope: Bounds) -> Bounds:
    below = multiply(Bounds.of(np.minimum(at.x.lo, 0), np.minimum(at.x.hi, 0)), slope)
    lo = np.where(at.x.lo >= 0, at.x.lo, np.where(at.x.hi >= 0, np.minimum(below[0], 0), below[0]))
    hi = np.where(at.x.hi <= 0, below[1], np.maximum(below[1], at.x.hi))
    hi = np.where(at.x.lo >= 0, at.x.hi, hi)
    return at.rounded(lo, hi)


def _elu(at: At) -> Bounds | None:
    alpha = float(at.get("alpha", 1.0))
    return _with_exponential(at, alpha, 1.0, 1.0) if alpha >= 0 else None


def _selu(at: At) -> Bounds | None:
    alpha, scale = float(at.get("alpha", 1.67326319)), float(at.get("gamma", 1.05070102))
    return _with_exponential(at, alpha, scale, 1.0) if alpha >= 0 and scale >= 0 else None


def _celu(at: At) -> Bounds | None:
    alpha = float(at.get("alpha", 1.0))
    return _with_exponential(at, alpha, 1.0, alpha) if alpha > 0 else None


def _with_exponential(at: At, alpha: float, scale: float, width: float) -> Bounds:
    """scale * (x where positive, else alpha * (exp(x / width) - 1)), which is non-decreasing."""

    def function(x: np.ndarray) -> np.ndarray:
        return np.asarray(scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / width)))

    # exp(x) - 1 loses digits near 0: its error is one of exp, hence absolute.
    return at.approximate(function(at.x.lo), function(at.x.hi)).outward(at.unit, absolute=4e-6 * scale * alpha)


def _thresholded(at: At) -> Bounds:
    alpha = float(at.get("alpha", 1.0))
    return Bounds.of(np.minimum(0, np.maximum(at.x.lo, alpha)), np.maximum(0, at.x.hi), at.x.special)


def _shrink(at: At) -> Bounds:
    bias = abs(float(at.get("bias", 0.0)))
    return at.rounded(np.minimum(0, at.x.lo - bias), np.maximum(0, at.x.hi + bias))


def _clip(at: At) -> Bounds:
    if at.opset < 11:
        low, high = float(at.get("min", -np.inf)), float(at.get("max", np.inf))
        least, most = Bounds.of(low, low), Bounds.of(high, high)
    else:
        least = Bounds.of(-np.inf, -np.inf) if at.node.input(1) is None else at.bounds(1)
        most = Bounds.of(np.inf, np.inf) if at.node.input(2) is None else at.bounds(2)
    if at.x.special:
        return Bounds.of(np.minimum(least.lo, most.lo), np.maximum(most.hi, least.hi), True)
    return Bounds.of(
        np.minimum(np.maximum(at.x.lo, least.lo), most.lo), np.minimum(np.maximum(at.x.hi, least.hi), most.hi)
    )


def _extreme(pick: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Transfer:
    def transfer(at: At) -> Bounds:
        result = at.operands[0]
        for other in at.operands[1:]:
            if result.special or other.special:
                # A runtime may answer the other operand where one is NaN.
                result = result.join(other)
            else:
                result = Bounds.of(pick(result.lo, other.lo), pick(result.hi, other.hi))
        return result

    return transfer


def _sum(at: At) -> Bounds:
    result, *others = at.operands
    for other in others:
        result = at.rounded(result.lo + other.lo, result.hi + other.hi, result, other)
    return result


def _mean(at: At) -> Bounds:
    total = _sum(at)
    return Bounds.of(total.lo / at.count, total.hi / at.count, total.special).outward(2 * at.unit)


def _where(at: At) -> Bounds:
    return at.bounds(1).join(at.bounds(2))


def _mod(at: At) -> Bounds | None:
    if not at.bounds(1).is_bounded:
        return None
    most = float(at.bounds(1).magnitude.max())
    return Bounds.of(-most, most, True)


def _cast(at: At) -> Bounds | None:
    kind = at.node.output.dtype
    if kind is None or not (kind.is_integer or kind.is_float):
        return Bounds.of(*_BOOLEAN) if kind is not None and kind.text == "bool" else None
    if kind.is_float and kind.bits >= 32:
        return at.x.outward(at.unit)
    if kind.is_float:
        return at.x.outward(at.unit) if at.x.is_bounded and at.x.magnitude.max() < 6e4 and kind.bits == 16 else None
    inside = bool((at.x.lo >= kind.qmin).all() and (at.x.hi <= kind.qmax).all()) and not at.x.special
    return Bounds.of(np.trunc(at.x.lo), np.trunc(at.x.hi)) if inside else None


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.logaddexp(0, x))


def _hard_sigmoid(at: At) -> Bounds:
    alpha, beta = float(at.get("alpha", 0.2)), float(at.get("beta", 0.5))
    lo, hi = multiply(at.x, Bounds.of(alpha, alpha))
    inner = Bounds.of(lo + beta, hi + beta).outward(at.unit, absolute=at.unit * 4 * (abs(beta) + 1))
    if at.x.special:
        return Bounds.of(0.0, 1.0, True)
    return Bounds.of(np.clip(inner.lo, 0, 1), np.clip(inner.hi, 0, 1))


def _softsign(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(np.isinf(x), np.sign(x), x / (1 + np.abs(x))))


def _erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(v) for v in x.reshape(-1)]).reshape(x.shape)


def _gelu(at: At) -> Bounds | Sequence[Bounds] | None:
    result = _EXACT_GELU(at)
    if isinstance(result, Bounds) and at.get("approximate", "none") == "tanh":
        return result.outward(at.unit, absolute=5e-4)  # at most 4.8e-4 away from the exact one
    return result


def _gelu_of(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * x * (1 + _erf(np.asarray(x / 2**0.5))))


def _silu(default_alpha: float) -> Transfer:
    """x * sigmoid(alpha * x); its minimum is where alpha * x is -1.2785."""

    def transfer(at: At) -> Bounds | Sequence[Bounds] | None:
        alpha = float(at.get("alpha", default_alpha))
        return _valley(lambda x: x * _sigmoid(alpha * x), -1.278464542761 / alpha)(at) if alpha > 0 else None

    return transfer


_EXACT_GELU = _valley(_gelu_of, -0.7517915)

TRANSFERS: Transfers = {
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Pow": _pow,
    "Neg": _neg,
    "Abs": _abs,
    "Sqrt": _sqrt,
    "Log": _log,
    "Exp": _exp,
    "Reciprocal": _reciprocal,
    "Sum": _sum,
    "Mean": _mean,
    "Where": _where,
    "Mod": _mod,
    "Max": _extreme(np.maximum),
    "Min": _extreme(np.minimum),
    "Clip": _clip,
    "Cast": _cast,
    "CastLike": _cast,
    "Identity": _same,
    "Dropout": _same,
    "Relu": _relu,
    "LeakyRelu": _leaky,
    "PRelu": _prelu,
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "ThresholdedRelu": _thresholded,
    "Shrink": _shrink,
    **{op: _increasing(f, exact=True) for op, f in {"Floor": np.floor, "Ceil": np.ceil, "Round": np.rint}.items()},
    "Sign": _increasing(np.sign, -1, 1, exact=True),
    # onnxruntime's approximations reach 1 + 2^-23 and 1 + 2^-22; its sigmoid is 0 below -18.
    "Sigmoid": _increasing(_sigmoid, 0, 1 + 2.0**-22, absolute=1e-7),
    "Tanh": _increasing(np.tanh, -1 - 2.0**-21, 1 + 2.0**-21),
    "Erf": _increasing(_erf, -1, 1),
    "Softplus": _increasing(_softplus, 0),
    "Softsign": _increasing(_softsign, -1, 1),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _valley(lambda x: x * np.clip(x / 6 + 0.5, 0, 1), -1.5),
    "Gelu": _gelu,
    "Mish": _valley(lambda x: x * np.tanh(_softplus(x)), -1.192495),
    "Swish": _silu(1.0),
    "Sin": _bounded(-1, 1),
    "Cos": _bounded(-1, 1),
    "Atan": _increasing(np.arctan),
    "Sinh": _increasing(np.sinh),
    "Asinh": _increasing(np.arcsinh),
    "Asin": _bounded(-1.570797, 1.570797),
    "Acos": _bounded(-1e-7, 3.141594),
    **dict.fromkeys(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or", "Xor"), _always),
    **dict.fromkeys(("IsNaN", "IsInf"), _always),
}
CONTRIB: Transfers = {"Gelu": TRANSFERS["Gelu"], "QuickGelu": _silu(1.702)}
