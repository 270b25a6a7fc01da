"""``tune``: try exact preparations and threshold methods, keep what helps on samples that were not calibrated on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar

import numpy as np

from qir.analysis.cost import with_input_shapes
from qir.calibration.data import open_data, spread_indices
from qir.calibration.specs import input_specs
from qir.errors import DataError
from qir.ir import Interval, Model, StaticQuant, Value
from qir.passes.accuracy.evaluation import Evaluator, Picked
from qir.passes.accuracy.paired import Gain
from qir.passes.annotation.calibrate import Calibrate, ranges_of_each
from qir.passes.annotation.partition import Partition
from qir.passes.annotation.quantize import Quantize
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.pipeline.pipeline import Pipeline
from qir.pipeline.registry import load_target

__all__ = ["Tune"]

_FEWEST = 6
"""Samples from which on some are kept apart."""
_FOLDS = 3
"""Into how many parts the samples are divided, of which one is checked on while the others are fitted."""
_CORRECTING = 16
"""Samples on which a trial corrects biases."""
_CHEAP_US = 3000
"""Microseconds of a sample, by the target's cost table, up to which an unclear verdict is worth another part of the
samples: counted, not timed, for the choice must not depend on the machine's mood."""


@dataclass(frozen=True)
class Tune(Pass):
    """Choose how to prepare and calibrate the model.

    Each of ``prepare`` (exact passes, such as equalisation) and each of ``calibrate`` (threshold methods) is tried on
    a copy, from range analysis to bias correction, and kept if it gains ``min-gain`` dB on ``samples`` calibration
    samples that the trial did not calibrate on: on average over the samples, each by itself, and surely (at 99 %) as
    the samples' own spread tells, because ranges that clip are easily fitted to the samples at hand. Where it gains
    but not for certain, and a sample is quick, other samples are kept apart and the rest fitted, until each had its
    turn. What
    helps one model hurts another, so nothing is taken on faith. What was chosen then runs on the model itself, with
    all samples; without a choice, the model stays as it was calibrated. What a ``recipe`` says of nodes holds in every
    trial.

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
    """How many others a trial calibrates on."""
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
        trials = self._trials(model, ctx)
        prepared: list[str] = []
        method = self.calibrate[0]
        result.count("sqnr_db_before", float(trials[0].known(prepared, method).mean()))
        ctx.progress.start("trying preparations", len(self.prepare) + len(self.calibrate) - 1)
        for text in self.prepare:
            if self._better(text, ([*prepared, text], method), (prepared, method), trials, result):
                prepared.append(text)
            ctx.progress.advance()
        for text in self.calibrate[1:]:
            method = text if self._better(text, (prepared, text), (prepared, method), trials, result) else method
            ctx.progress.advance()
        ctx.progress.finish()
        result.count("sqnr_db", float(trials[0].known(prepared, method).mean()))
        for pass_ in _passes(prepared, method, self.recipe) if prepared or method != self.calibrate[0] else ():
            done = pass_.run(model, ctx)
            result.remarks += done.remarks
            result.changed |= done.changed
        return result

    def _trials(self, model: Model, ctx: PassContext) -> list[_Trial]:
        """One for each part of the samples that may be kept apart, the first to be used first."""
        data = open_data(ctx.calibration, input_specs(model))
        chosen = spread_indices(data, self.samples + self.fit_samples)
        if len(chosen) < _FEWEST:
            return [_Trial(self, model, Picked(data, chosen), Picked(data, chosen), ctx)]
        first = next(iter(Picked(data, chosen[:1])))
        sized = with_input_shapes(model, {name: np.shape(array) for name, array in first.items()})
        table = load_target(ctx.target).cost
        cheap = sum(table.node_us_as(node, False) for node in sized.walk()) <= _CHEAP_US
        trials = []
        for part in (1, 0, 2) if cheap else (1,):
            checked = chosen[part::_FOLDS][: self.samples]
            fitted = [index for place, index in enumerate(chosen) if place % _FOLDS != part]
            trials.append(_Trial(self, model, Picked(data, checked), Picked(data, fitted), ctx))
        return trials

    def _better(
        self, text: str, variant: _Variant, best: _Variant, trials: Sequence[_Trial], result: PassResult
    ) -> bool:
        """Whether the variant, which differs by ``text``, is to be kept."""
        gains = np.zeros(0)
        for trial in trials:
            scores = trial.score(*variant)
            if scores is None:
                result.remarks.append(self.note(None, f"{text} has nothing to do here"))
                return False
            gains = np.concatenate([gains, scores - trial.known(*best)])
            gain = Gain.of(gains)
            if gain.reaches(self.min_gain) or gain.mean < self.min_gain:
                break
        if not gain.reaches(self.min_gain):
            result.remarks.append(self.note(None, f"{text} left out: {gain}"))
            return False
        result.remarks.append(self.applied(None, f"{text} kept: {gain}"))
        result.count(text.partition("{")[0])
        return True


_Variant = tuple[Sequence[str], str]
"""Preparations and a threshold method."""


class _Trial:
    """Scores preparations of one model on one part of the samples, fitted on the others."""

    def __init__(self, owner: Tune, model: Model, checked: Picked, fitted: Picked, ctx: PassContext) -> None:
        self._owner = owner
        self._model = model
        self._checked = checked
        self._fitted = fitted
        self._ctx = replace(ctx, calibration=fitted)
        self._known: dict[tuple[tuple[str, ...], Hashable], np.ndarray] = {}
        self._scored: dict[tuple[tuple[str, ...], str], np.ndarray | None] = {}
        self._prepared: dict[tuple[str, ...], Model | None] = {(): model}
        self._free: set[tuple[str, ...]] = set()
        """Preparations after which no threshold matters, as all that is quantized is so at run time."""
        self._ranges: dict[tuple[tuple[str, ...], str], dict[Value, Interval]] = {}
        self._means: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
        self._evaluator: Evaluator | None = None

    def known(self, prepared: Sequence[str], method: str) -> np.ndarray:
        """The score of what surely changes something."""
        scores = self.score(prepared, method)
        assert scores is not None, "nothing was prepared that could have changed nothing"
        return scores

    def score(self, prepared: Sequence[str], method: str) -> np.ndarray | None:
        """SQNR in dB of the worst output, a sample each; None where the last preparation changes nothing."""
        key = tuple(prepared), method
        if key[0] in self._free and _is_calibration(method):
            return self._scored[key[0], self._owner.calibrate[0]]
        if key not in self._scored:
            copy = self._calibrated(*key)
            self._scored[key] = None if copy is None else self._measure(copy, key[0])
        return self._scored[key]

    def _measure(self, copy: Model, prepared: tuple[str, ...]) -> np.ndarray:
        Quantize(recipe=self._owner.recipe).run(copy, self._ctx)
        Partition(recipe=self._owner.recipe).run(copy, self._ctx)
        if not _has_thresholds(copy):
            self._free.add(prepared)
        key = (prepared, _annotations(copy))
        if key not in self._known:
            if self._evaluator is None:
                fit = list(islice(self._fitted, _CORRECTING))
                self._evaluator = Evaluator(self._model, list(self._checked), self._ctx, fit=fit)
            self._evaluator.means = self._means.setdefault(prepared, {})
            self._known[key] = self._evaluator.sample_sqnrs(copy)
        return self._known[key]

    def _calibrated(self, prepared: tuple[str, ...], method: str) -> Model | None:
        """A copy that was prepared and calibrated; None where the last preparation changed nothing."""
        model = self._prepare(prepared)
        if model is None:
            return None
        clone = model.clone_with_map()
        if not _is_calibration(method):
            for pass_ in _passes((), method, self._owner.recipe):
                pass_.run(clone.model, self._ctx)
            return clone.model
        if (prepared, method) not in self._ranges:
            # The first method is what preparations are tried with; of one that is kept, the others follow together.
            texts = list(self._owner.calibrate)
            wanted = [text for text in texts[1:] if _is_calibration(text)] if method != texts[0] else [method]
            passes = [_calibration(text, self._owner.recipe) for text in wanted]
            found = ranges_of_each(model, passes, self._ctx)
            self._ranges = {(prepared, text): ranges for text, ranges in zip(wanted, found, strict=True)}
        for value, interval in self._ranges[prepared, method].items():
            clone.values[value].observed = interval
        return clone.model

    def _prepare(self, prepared: tuple[str, ...]) -> Model | None:
        """The model prepared so; None where the last preparation changes nothing. What comes before that was kept;
        copies of what was left out are let go."""
        if prepared not in self._prepared:
            before = self._prepare(prepared[:-1])
            assert before is not None
            copy = before.clone()
            results = [pass_.run(copy, self._ctx) for pass_ in Pipeline.parse(prepared[-1]).passes]
            changed = any(result.changed for result in results)
            if changed:
                for pass_ in Pipeline(["analyze-ranges"]).passes:
                    pass_.run(copy, self._ctx)
            self._prepared = {(): self._model, prepared[:-1]: before, prepared: copy if changed else None}
        return self._prepared[prepared]


def _is_calibration(text: str) -> bool:
    """Whether a threshold method is one pass ``calibrate``, with whatever options."""
    passes = Pipeline.parse(text).passes
    return len(passes) == 1 and isinstance(passes[0], Calibrate)


def _calibration(text: str, recipe: str | None) -> Calibrate:
    [found] = (pass_ for pass_ in _passes((), text, recipe) if isinstance(pass_, Calibrate))
    return found


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


def _has_thresholds(model: Model) -> bool:
    """Whether anything but a constant is quantized statically."""
    values = (value for graph in model.graph.graphs() for value in graph.values() if not value.is_constant)
    return any(
        isinstance(quant, StaticQuant)
        for value in values
        for quant in (value.quant, *(use.quant for use in value.uses))
    )


def _passes(prepared: Sequence[str], method: str, recipe: str | None) -> list[Pass]:
    """Preparations, then calibration by that method but where the recipe says otherwise."""
    passes = Pipeline([*prepared, "analyze-ranges", method]).passes
    return [replace(pass_, recipe=recipe) if isinstance(pass_, Calibrate) else pass_ for pass_ in passes]
