"""HardSwish, GELU and SiLU, from the pieces that exporters write them in."""

from __future__ import annotations

import math

from qir.ir import Value
from qir.passes.structure.fusions.regions import Regions, elementwise_obstacle, number
from qir.rewriting import Any, Match, OneOf, Op, Pattern, Rule

__all__ = ["activation_rules"]

_x = Any("x")


def _near(wanted: float) -> object:
    return lambda found: found is not None and math.isclose(found, wanted, rel_tol=1e-5, abs_tol=1e-7)


def _scaled_product(a: Pattern, b: Pattern, factor: float) -> tuple[Op, ...]:
    """``a * b * factor`` in every grouping and with the factor multiplied or its inverse divided by."""
    product = Op("Mul", a, b)
    return (
        Op("Mul", product, number(factor)),
        Op("Div", product, number(1 / factor)),
        Op("Mul", a, OneOf(Op("Mul", b, number(factor)), Op("Div", b, number(1 / factor)))),
        Op("Mul", OneOf(Op("Mul", a, number(factor)), Op("Div", a, number(1 / factor))), b),
    )


def _hard_swish() -> OneOf:
    """x * HardSigmoid(x), and x * clip(x + 3, 0, 6) / 6 (ONNX operator HardSwish)."""
    plus_three = Op("Add", _x, number(3.0))
    clip = OneOf(
        Op("Clip", plus_three, number(0.0), number(6.0)),
        Op("Clip", plus_three, attributes={"min": 0.0, "max": _near(6.0)}),
    )
    sigmoid = Op(
        "HardSigmoid",
        _x,
        attributes={"alpha": _near(1 / 6), "beta": _near(0.5)},
        defaults={"alpha": 0.2, "beta": 0.5},
    )
    return OneOf(Op("Mul", _x, sigmoid), *_scaled_product(_x, clip, 1 / 6))


def _gelu_erf() -> OneOf:
    """x/2 * (1 + erf(x / sqrt 2)) (Hendrycks and Gimpel, Gaussian Error Linear Units, 2016)."""
    root = math.sqrt(2)
    erf = Op("Erf", OneOf(Op("Div", _x, number(root)), Op("Mul", _x, number(1 / root))))
    return OneOf(*_scaled_product(_x, Op("Add", erf, number(1.0)), 0.5))


def _gelu_tanh() -> OneOf:
    """x/2 * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the approximation of the same paper."""
    inner, outer = number(0.044715), number(math.sqrt(2 / math.pi))
    square = OneOf(Op("Mul", _x, _x), Op("Pow", _x, number(2.0)))
    cube = OneOf(Op("Pow", _x, number(3.0)), Op("Mul", _x, square))
    grown = Op("Add", Op("Mul", square, inner), number(1.0))
    argument = OneOf(
        Op("Mul", Op("Add", _x, Op("Mul", cube, inner)), outer),
        Op("Mul", Op("Mul", _x, grown), outer),
        Op("Mul", Op("Mul", _x, outer), grown),
        Op("Mul", _x, Op("Mul", grown, outer)),
    )
    return OneOf(*_scaled_product(_x, Op("Add", Op("Tanh", argument), number(1.0)), 0.5))


def activation_rules(regions: Regions) -> tuple[Rule, ...]:
    def gelu(match: Match, approximate: str) -> Value:
        return match.add("Gelu", [match["x"]], {"approximate": approximate}).output

    return (
        Rule(
            "hard-swish",
            _hard_swish(),
            regions.replace_or_tag("hard-swish", 14, lambda match: match.add("HardSwish", [match["x"]]).output),
            elementwise_obstacle,
        ),
        Rule(
            "gelu-erf",
            _gelu_erf(),
            regions.replace_or_tag("gelu", 20, lambda match: gelu(match, "none")),
            elementwise_obstacle,
        ),
        Rule(
            "gelu-tanh",
            _gelu_tanh(),
            regions.replace_or_tag("gelu", 20, lambda match: gelu(match, "tanh")),
            elementwise_obstacle,
        ),
        # Only tagged, also where the opset has Swish: onnxruntime 1.31 has no kernel for that and runs its definition,
        # four nodes, where it has one for the pair.
        Rule("silu", Op("Mul", _x, Op("Sigmoid", _x)), lambda match: regions.tag(match, "silu"), elementwise_obstacle),
    )
