"""The pass `div-to-mul`, and a pipeline that ends in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir import Effect, Preset, RewritePass
from qir.ir import Model, Value
from qir.rewriting import Any, Const, Match, Op, Rule


@dataclass(frozen=True)
class DivToMul(RewritePass):
    """Multiply by the reciprocal of a constant instead of dividing by it.

    Before::

        %y: f32[N] = Div(%x, @eight)

    After::

        %y: f32[N] = Mul(%x, @an_eighth)
    """

    name: ClassVar[str] = "div-to-mul"
    effect: ClassVar[Effect] = Effect.EXACT

    def rules(self, model: Model) -> Sequence[Rule]:
        return [Rule("div-by-constant", Op("Div", Any("x"), Const("divisor", where=_has_reciprocal)), _multiply)]


def _has_reciprocal(divisor: np.ndarray) -> bool:
    with np.errstate(divide="ignore", over="ignore"):
        return divisor.dtype.kind == "f" and bool(np.isfinite(1 / divisor).all())


def _multiply(match: Match) -> Value:
    reciprocal = match.constant(1 / match.array("divisor"), "reciprocal")
    return match.add("Mul", [match["x"], reciprocal]).output


OPTIMIZE_MORE = Preset("optimize-more", "optimize,div-to-mul,canonicalize", "Clean-up, fusion, and no division.")
