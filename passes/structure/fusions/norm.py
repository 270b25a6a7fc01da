"""LayerNormalization and RMSNormalization, from the means, differences and roots that exporters write them in.

Ba et al., Layer Normalization, 2016; Zhang and Sennrich, Root Mean Square Layer Normalization, 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qir.ir import Node, Value
from qir.passes.structure.fusions.regions import Regions, number
from qir.rewriting import Any, Const, Match, OneOf, Op, Rule
from qir.rewriting.edits import constant_of, ints_of, scalar_of

__all__ = ["layer_norm_rules", "rms_norm_rules"]

_SINCE = 17
_RMS_SINCE = 23
_FLOATS = frozenset(("f16", "bf16", "f32", "f64"))


def _normalized() -> OneOf:
    """(x - mean x) / sqrt(mean (x - mean x)^2 + epsilon)."""
    x = Any("x")
    mean = _mean(x, "mean")
    difference = Op("Sub", x, mean, name="difference")
    square = OneOf(Op("Pow", difference, number(2.0)), Op("Mul", difference, difference))
    deviation = Op("Sqrt", Op("Add", _mean(square, "variance"), Const("epsilon", scalar=True)))
    inverse = OneOf(Op("Reciprocal", deviation), Op("Div", number(1.0), deviation))
    return OneOf(Op("Div", difference, deviation), Op("Mul", difference, inverse))


def _mean(of: Any | OneOf, name: str) -> OneOf:
    """ReduceMean with its axes as an attribute (before opset 18) or an operand."""
    keeps = {"keepdims": 1}
    return OneOf(
        Op("ReduceMean", of, name=name, attributes=keeps, defaults=keeps),
        Op("ReduceMean", of, Const(f"{name}_axes"), name=name, attributes=keeps, defaults=keeps),
    )


def _first_axis(match: Match, names: Sequence[str] = ("mean", "variance")) -> int | str:
    """The first normalized axis, counted from the back, or why the axes of the means are not the last ones."""
    x = match["x"]
    if x.shape is None:
        return f"the rank of {x.name!r} is unknown"
    rank = len(x.shape)
    found = []
    for name in names:
        axes = _axes(match.node(name))
        if axes is None:
            return "the axes of its means are unknown"
        found.append(sorted(axis % rank for axis in axes))
    if found[0] != found[-1] or found[0] != list(range(rank - len(found[0]), rank)):
        return "its means are not over the last axes"
    return -len(found[0])


def _axes(node: Node) -> tuple[int, ...] | None:
    return node.get("axes") or ints_of(node.input(1)) or None


def _parameter(value: Value, shape: tuple[object, ...]) -> np.ndarray | None:
    """A constant in the shape of the normalized axes; None where it does not have it after leading axes of size 1."""
    tensor = constant_of(value)
    if tensor is None:
        return None
    lead = len(tensor.shape) - len(shape)
    if lead < 0 or tensor.shape[lead:] != shape or any(size != 1 for size in tensor.shape[:lead]):
        return None
    return tensor.numpy().reshape(tensor.shape[lead:])


def _check(match: Match) -> str | None:
    axis = _first_axis(match)
    return axis if isinstance(axis, str) else _check_parameters(match, axis)


def _check_parameters(match: Match, axis: int) -> str | None:
    x = match["x"]
    assert x.shape is not None, "its axes are known"
    if x.dtype is None or x.dtype.text not in _FLOATS:
        return f"{x.name!r} is no float tensor"
    epsilon = scalar_of(match["epsilon"])
    if epsilon is None or not 0 < epsilon < math.inf:
        return "its epsilon is no positive number"
    for name in ("scale", "bias"):
        value = match.get(name)
        if value is not None:
            array = _parameter(value, x.shape[axis:])
            if array is None or len(constant_shape(value)) > len(x.shape):
                return f"{name} {value.name!r} is no constant in the shape of the normalized axes"
            match.memo[name] = array
    match.memo["axis"], match.memo["epsilon"] = axis, epsilon
    return None


def constant_shape(value: Value) -> tuple[int, ...]:
    """The shape of a value that is known to be constant."""
    tensor = constant_of(value)
    assert tensor is not None, "the value is no constant"
    return tensor.shape


def _replace(match: Match, op: str = "LayerNormalization") -> Value:
    operands = [match["x"]]
    for name in ("scale", "bias"):
        value = match.get(name)
        if value is not None:
            array = match.memo[name]
            fits = constant_shape(value) == array.shape
            operands.append(value if fits else match.constant(array, value.name))
    attributes = {"axis": match.memo["axis"], "epsilon": match.memo["epsilon"]}
    return match.add(op, operands, attributes).output


def layer_norm_rules(regions: Regions) -> tuple[Rule, Rule]:
    """With a bias, and without; the latter is to run after the former, of which it is a part."""
    scaled = Op("Mul", _normalized(), Const("scale"))
    rewrite = regions.replace_or_tag("layer-norm", _SINCE, _replace)
    return (
        Rule("layer-norm", Op("Add", scaled, Const("bias")), rewrite, _check),
        Rule("layer-norm", scaled, rewrite, _check),
    )


def _root_mean_square() -> OneOf:
    """x / sqrt(mean x^2 + epsilon)."""
    x = Any("x")
    square = OneOf(Op("Pow", x, number(2.0)), Op("Mul", x, x))
    deviation = Op("Sqrt", Op("Add", _mean(square, "variance"), Const("epsilon", scalar=True)))
    inverse = OneOf(Op("Reciprocal", deviation), Op("Div", number(1.0), deviation))
    return OneOf(Op("Div", x, deviation), Op("Mul", x, inverse))


def _check_rms(match: Match) -> str | None:
    axis = _first_axis(match, ("variance",))
    return axis if isinstance(axis, str) else _check_parameters(match, axis)


def rms_norm_rules(regions: Regions) -> tuple[Rule, ...]:
    """To run after the rules for layer norm, of which the pattern is a part."""
    return (
        Rule(
            "rms-norm",
            Op("Mul", _root_mean_square(), Const("scale")),
            regions.replace_or_tag("rms-norm", _RMS_SINCE, lambda match: _replace(match, "RMSNormalization")),
            _check_rms,
        ),
    )
