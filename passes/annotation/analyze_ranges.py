"""``analyze-ranges``: prove between which numbers each value lies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from qir.analysis.intervals import analyze_intervals
from qir.errors import OptionError
from qir.ir import Interval, Model
from qir.ops.shape_inference import infer
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult

__all__ = ["AnalyzeRanges", "parse_input_ranges"]


@dataclass(frozen=True)
class AnalyzeRanges(Pass):
    """Write a sound ``range`` on every value of which something can be proved from constants, operators and the ranges
    declared for inputs; per channel where the weights allow. Ranges of earlier runs are replaced, types and shapes are
    inferred first. ``input-range`` declares inputs, each NAME=LO:HI; without it a range that an input carries counts.

    Before::

        %y: f32[1,8] = Sigmoid(%x)

    After::

        %y: f32[1,8] range=[0, 1] = Sigmoid(%x)
    """

    name: ClassVar[str] = "analyze-ranges"
    effect: ClassVar[Effect] = Effect.ANALYSIS
    keeps_observed: ClassVar[bool] = True

    input_range: tuple[str, ...] = ()

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises OptionError for a declaration that is malformed or names no input."""
        result = PassResult()
        declared = parse_input_ranges(self.input_range)
        infer(model)
        proved = analyze_intervals(model, declared)
        graphs = [model.graph, *(function.graph for function in model.functions.values())]
        for value in (value for top in graphs for graph in top.graphs() for value in graph.values()):
            new = declared.get(value.name, value.range) if value in model.graph.input_set else proved.get(value)
            if new is not None:
                result.count("ranges")
                result.count("bounded", int(new.is_bounded))
                result.count("per channel", int(new.axis is not None))
            if new != value.range:
                value.range = new
                result.changed = True
        return result


def parse_input_ranges(texts: Iterable[str]) -> dict[str, Interval]:
    """Intervals by input name from texts like ``image=0:255`` (the last ``=`` and ``:`` count; ``inf`` is allowed)."""
    found: dict[str, Interval] = {}
    for text in texts:
        name, _, bounds = text.rpartition("=")
        low, _, high = bounds.rpartition(":")
        try:
            interval = Interval(float(low), float(high))
        except ValueError:
            interval = None
        if not name or interval is None or interval.is_empty or math.isnan(interval.lower):
            raise OptionError(f"input range {text!r} is not NAME=LO:HI with LO at most HI, e.g. image=0:255")
        found[name] = interval
    return found
