"""``choose``: try several pipelines on held-out samples, run the one that is surely better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from qir.calibration.data import open_data, spread_indices
from qir.calibration.specs import input_specs
from qir.errors import DataError
from qir.ir import Model
from qir.passes.accuracy.evaluation import Evaluator, Picked
from qir.passes.accuracy.paired import Gain
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.pipeline.pipeline import Pipeline

__all__ = ["Choose"]

_EVERY = 4
"""One sample of so many is held out."""
_FEWEST = 8
"""Samples below which none are held out, and the first pipeline runs."""


@dataclass(frozen=True)
class Choose(Pass):
    """Run one of several pipelines over an annotated model. Each runs on a copy with three quarters of the samples,
    and is measured on the others, at most ``samples``; one takes the place of those before it where it gains for
    certain, as the samples' own spread tells. The chosen one then runs on the model itself, with all samples. More work
    thus never gives less accuracy, as far as samples can tell.

    Before::

        %y: f32[1,8] = Conv(%x : u8(0.9, 12), @w : s8[axis=0](...)) kernel=integer

    After, where the second of ``[correct-bias,round-weights]`` was better::

        %y: f32[1,8] = Conv(%x : u8(0.9, 12), @w_rounded : s8[axis=0](...)) kernel=integer
    """

    name: ClassVar[str] = "choose"
    effect: ClassVar[Effect] = Effect.LOSSY

    of: tuple[str, ...] = ("round-weights{samples=16}", "round-weights{sweeps=2}")
    """The pipelines to choose from; each is run on a copy."""
    samples: int = 16
    """How many calibration samples they are compared on."""

    @property
    def needs_calibration(self) -> bool:
        return True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError without calibration samples, OptionError for text that is no pipeline."""
        result = PassResult()
        pipelines = [Pipeline.parse(text).passes for text in self.of]
        if not pipelines or not any(node.kernel not in (None, "float") for node in model.walk()):
            return result
        if ctx.calibration is None:
            raise DataError("no calibration data to choose by: give samples with --calib, or calibration=...")
        best = self._best(pipelines, model, ctx, result) if len(pipelines) > 1 else 0
        for pass_ in pipelines[best]:
            done = pass_.run(model, ctx)
            result.remarks += done.remarks
            result.changed |= done.changed
            for name, count in done.statistics.items():
                result.count(name, count)
        return result

    def _best(self, pipelines: Sequence[Sequence[Pass]], model: Model, ctx: PassContext, result: PassResult) -> int:
        """The index of the pipeline that is surely better than those before it, else 0."""
        data = open_data(ctx.calibration, input_specs(model))
        places = spread_indices(data, _EVERY * self.samples)
        if len(places) < _FEWEST:
            result.remarks.append(self.note(None, f"{self.of[0]} runs: {len(places)} samples are too few to choose by"))
            return 0
        checked = places[1::_EVERY]
        others = [place for index, place in enumerate(places) if index % _EVERY != 1]
        fitted = replace(ctx, calibration=Picked(data, others))
        evaluator = Evaluator(model, list(Picked(data, checked)), fitted)
        best = 0
        scores = None
        for index, (text, passes) in enumerate(zip(self.of, pipelines, strict=True)):
            copy = model.clone()
            for pass_ in passes:
                pass_.run(copy, fitted)
            found = evaluator.sqnrs_of(evaluator.outputs(copy, correct=False))
            if scores is None:
                scores = found
                continue
            gain = Gain.of(found - scores)
            if gain.reaches(0.0):
                best, scores = index, found
                result.remarks.append(self.applied(None, f"{text} kept: {gain}"))
            else:
                result.remarks.append(self.note(None, f"{text} left out: {gain}"))
        return best
