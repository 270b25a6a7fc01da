"""Patterns that stand for one operator: replaced by it where the opset has it, else tagged as a region."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qir.ir import Model, Region, Value
from qir.rewriting import Const, Match
from qir.rewriting.rule import Replacement

__all__ = ["Regions", "elementwise_obstacle", "number"]


class Regions:
    """Numbers for the regions of one model, beginning after those that are there."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.last: int | None = None
        """The latest number; None until one is asked for."""

    def tag(self, match: Match, role: str) -> None:
        """Mark the matched nodes as one region."""
        if self.last is None:
            self.last = max((node.region.number for node in self.model.walk() if node.region is not None), default=0)
        self.last += 1
        region = Region(role, self.last)
        for node in match.nodes:
            node.region = region

    def replace_or_tag(
        self, role: str, since: int, replace: Callable[[Match], Value]
    ) -> Callable[[Match], Replacement]:
        """A rewrite that makes the operator where the opset is ``since`` or later, and tags the parts before that."""

        def rewrite(match: Match) -> Replacement:
            if match.opset >= since:
                return replace(match)
            self.tag(match, role)
            return None

        return rewrite


def number(value: float) -> Const:
    """A constant of one element near ``value`` that adds no axis to what it is combined with."""
    return Const(value=value, scalar=True, where=_adds_no_axis)


def _adds_no_axis(array: np.ndarray) -> bool:
    return array.ndim <= 1


def elementwise_obstacle(match: Match) -> str | None:
    """Why the match may not be an elementwise function of ``x``: the constants might add an axis, or it is no float."""
    x = match["x"]
    if x.dtype is None or not x.dtype.is_float or x.dtype.bits < 16:
        return f"{x.name!r} is no float tensor"
    if not x.shape:
        return f"the rank of {x.name!r} is unknown or 0"
    return None
