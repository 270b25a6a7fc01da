"""``tune``: try exact preparations and threshold methods, keep what helps on samples that were not calibrated on."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar

import numpy as np

from qir.calibration.data import open_data, spread_indices
from qir.calibration.specs import input_specs
from qir.errors import DataError
from qir.ir import Model
from qir.passes.accuracy.evaluation import Evaluator
from qir.passes.annotation.calibrate import Calibrate
from qir.passes.annotation.partition import Partition
from qir.passes.annotation.quantize import Quantize
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.pipeline.pipeline import Pipeline

__all__ = ["Tune"]

Feed = Mapping[str, np.ndarray]

_FEWEST = 6
"""Samples from which on some are kept apart."""
_CORRECTING = 16
"""Samples on which a trial corrects biases."""
_EXACT_ENOUGH = 120.0
"""dB at which nothing is left to gain; a sample without any error counts as much."""


@dataclass(frozen=True)
class Tune(Pass):
    """Choose how to prepare and calibrate the model.

    Each of ``prepare`` (exact passes, such as equalisation) and each of ``calibrate`` (threshold methods) is tried on
    a copy, from range analysis to bias correction, and kept if it gains ``min-gain`` dB on ``samples`` calibration
    samples that the trial did not calibrate on: on average over the samples, each by itself, by more than twice the
    standard error of that average, because ranges that clip are easily fitted to the samples at hand. What helps one
    model hurts another, so nothing is taken on faith. What was chosen then runs on the model itself, with all samples;
    without a choice, the model stays as it was calibrated. What a ``recipe`` says of nodes holds in every trial.

    Before::

        %y: f32[1,8] = Conv(%x, @w, @b)

    After, where equalisation was chosen, with other weights::

        %y: f32[1,8] seen=[-1, 2] = Conv(%x, @w_equalized, @b_equalized)
    """

    name: ClassVar[str] = "tune"
    effect: ClassVar[Effect] = Effect.EXACT
    keeps_observed: ClassVar[bool] = True

    prepare: tuple[str, ...] = ("smooth", "smooth{scope=products}", "equalize", "split-outliers")
    calibrate: tuple[str, ...] = (
        "calibrate",
        "calibrate{method=mse}",
        "calibrate{method=percentile}",
        "calibrate{method=moving-average keep=0.98}",
    )
    samples: int = 20
    fit_samples: int = 40
    min_gain: float = 0.3
    recipe: str | None = None

    @property
    def needs_calibration(self) -> bool:
        return True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError without calibration samples, OptionError for text that is no pipeline."""
        result = PassResult()
        if ctx.calibration is None:
            raise DataError("no calibration data: give samples with --calib, or calibration=... from Python")
        data = open_data(ctx.calibration, input_specs(model))
        chosen = spread_indices(data, self.samples + self.fit_samples)
        if len(chosen) >= _FEWEST:
            checked, fitted = chosen[1::3][: self.samples], [i for place, i in enumerate(chosen) if place % 3 != 1]
        else:
            checked = fitted = chosen
        trial = _Trial(model, _Picked(data, checked), _Picked(data, fitted), ctx, self.recipe)
        prepared: list[str] = []
        method = self.calibrate[0]
        best = trial.score(prepared, method)
        assert best is not None, "nothing was prepared that could have changed nothing"
        result.count("sqnr_db_before", float(best.mean()))
        ctx.progress.start("trying preparations", len(self.prepare) + len(self.calibrate) - 1)
        for text in self.prepare:
            score = trial.score([*prepared, text], method)
            best, kept = self._judge(text, score, best, result)
            if kept:
                prepared.append(text)
            ctx.progress.advance()
        for text in self.calibrate[1:]:
            score = trial.score(prepared, text)
            best, kept = self._judge(text, score, best, result)
            method = text if kept else method
            ctx.progress.advance()
        ctx.progress.finish()
        result.count("sqnr_db", float(best.mean()))
        for pass_ in _passes(prepared, method, self.recipe) if prepared or method != self.calibrate[0] else ():
            done = pass_.run(model, ctx)
            result.remarks += done.remarks
            result.changed |= done.changed
        return result

    def _judge(
        self, text: str, scores: np.ndarray | None, best: np.ndarray, result: PassResult
    ) -> tuple[np.ndarray, bool]:
        """The best scores so far and whether ``text`` is kept; ``scores`` is None where it changed nothing."""
        if scores is None:
            result.remarks.append(self.note(None, f"{text} has nothing to do here"))
            return best, False
        gains = scores - best
        error = float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else 0.0
        gain = float(gains.mean())
        said = f"{gain:+.2f} dB on average over {len(gains)} samples, standard error {error:.2f}"
        if not gain - 2 * error >= self.min_gain:
            result.remarks.append(self.note(None, f"{text} left out: {said}"))
            return best, False
        result.remarks.append(self.applied(None, f"{text} kept: {said}"))
        result.count(text.partition("{")[0])
        return scores, True


class _Picked:
    """Some feeds of a source, read again on each walk: in memory they would show in the peak for large samples."""

    def __init__(self, data: Iterable[Feed], places: Sequence[int]) -> None:
        self._data = data
        self._places = frozenset(places)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Feed]:
        return (feed for place, feed in enumerate(self._data) if place in self._places)


class _Trial:
    """Scores preparations of one model."""

    def __init__(self, model: Model, checked: _Picked, fitted: _Picked, ctx: PassContext, recipe: str | None) -> None:
        self._model = model
        self._recipe = recipe
        self._ctx = replace(ctx, calibration=fitted)
        self._known: dict[tuple[tuple[str, ...], Hashable], np.ndarray] = {}
        self._evaluator = Evaluator(model, list(checked), self._ctx, fit=list(islice(fitted, _CORRECTING)))

    def score(self, prepared: Sequence[str], method: str) -> np.ndarray | None:
        """SQNR in dB of the worst output, a sample each; None where the last preparation changes nothing."""
        copy = self._model.clone()
        changed = True
        for text in prepared:
            results = [pass_.run(copy, self._ctx) for pass_ in Pipeline.parse(text).passes]
            changed = any(result.changed for result in results)
        if not changed:
            return None
        for pass_ in _passes((), method, self._recipe):
            pass_.run(copy, self._ctx)
        Quantize(recipe=self._recipe).run(copy, self._ctx)
        Partition(recipe=self._recipe).run(copy, self._ctx)
        key = (tuple(prepared), _annotations(copy))
        if key not in self._known:  # linear operators that quantize at run time ask for no threshold
            self._known[key] = np.asarray(np.minimum(self._evaluator.sample_sqnrs(copy), _EXACT_ENOUGH))
        return self._known[key]


def _annotations(model: Model) -> Hashable:
    """How everything is quantized: two copies of one graph that agree in this compute the same."""
    return tuple(
        (
            node.kernel,
            tuple([None if use is None else (use.quant, use.value.quant) for use in node.uses]),
            tuple([value.quant for value in node.outputs]),
        )
        for node in model.walk()
    )


def _passes(prepared: Sequence[str], method: str, recipe: str | None) -> list[Pass]:
    """Preparations, then calibration by that method but where the recipe says otherwise."""
    passes = Pipeline([*prepared, "analyze-ranges", method]).passes
    return [replace(pass_, recipe=recipe) if isinstance(pass_, Calibrate) else pass_ for pass_ in passes]
