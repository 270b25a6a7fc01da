"""How good an annotated model is: emitted as it stands, run on a few samples, held against the float model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qir.codegen import runnable
from qir.ir import Model
from qir.passes.accuracy.correct_bias import correct_biases
from qir.passes.emission.emit_qdq import EmitQdq
from qir.pipeline.contract import PassContext
from qir.runtime.session import OrtRunner
from qir.validation.metrics import OutputMetrics

__all__ = ["EXACT_ENOUGH", "Evaluator", "Outputs", "Picked", "worst_sqnr"]

Feeds = Sequence[Mapping[str, np.ndarray]]
Outputs = list[dict[str, Any]]


EXACT_ENOUGH = 120.0
"""dB at which nothing is left to gain: a sample without any error has as many, one that lacks numbers the negative."""


class Evaluator:
    """Compares variants of one model with its float outputs on the same feeds.

    ``fit`` are the feeds that corrections may look at; the score is taken on ``feeds``. ``means`` holds what the float
    layers give on ``fit``; whoever changes weights hands in another.
    """

    def __init__(self, model: Model, feeds: Feeds, ctx: PassContext, *, fit: Feeds | None = None) -> None:
        self.feeds = feeds
        self.fit = feeds if fit is None else fit
        self.ctx = ctx
        self.expected = _run(model, feeds, drop=True)
        self.means: dict[str, np.ndarray] = {}

    def score(self, model: Model, *, correct: bool = True) -> float:
        """SQNR in dB of the worst float output of an annotated model, after bias correction; inf without one."""
        return worst_sqnr(self.expected, self.outputs(model, correct=correct))

    def outputs(self, model: Model, *, correct: bool = True) -> Outputs:
        copy = model.clone()
        if correct:
            correct_biases(copy, self.fit, self.ctx, self.means)
        EmitQdq().run(copy, self.ctx)
        return _run(copy, self.feeds)

    def sample_sqnrs(self, model: Model) -> np.ndarray:
        """SQNR in dB of the worst float output for each feed by itself, after bias correction; (samples,)."""
        return self.sqnrs_of(self.outputs(model))

    def sqnrs_of(self, got: Outputs) -> np.ndarray:
        """The same of outputs that are at hand, at most ``EXACT_ENOUGH`` dB and at least its negative."""
        found = [worst_sqnr([want], [have]) for want, have in zip(self.expected, got, strict=True)]
        return np.asarray(np.clip(np.array(found), -EXACT_ENOUGH, EXACT_ENOUGH))

    def noise(self, model: Model) -> dict[str, float]:
        """Of each float output with a signal, noise power over signal power, without bias correction. The annotations
        of ``model`` are emitted in place: hand in a copy."""
        EmitQdq().run(model, self.ctx)
        compared = _compare(self.expected, _run(model, self.feeds))
        return {name: 10 ** (-metrics.sqnr_db / 10) for name, metrics in compared.items() if metrics.sqnr_db > -np.inf}


class Picked:
    """Some feeds of a source, read again on each walk: in memory they would show in the peak for large samples."""

    def __init__(self, data: Iterable[Mapping[str, np.ndarray]], places: Sequence[int]) -> None:
        self._data = data
        self._places = frozenset(places)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        return (feed for place, feed in enumerate(self._data) if place in self._places)


def worst_sqnr(expected: Outputs, got: Outputs) -> float:
    """The least SQNR in dB over the float outputs, pooled over samples; inf where there is none to compare."""
    return min((metrics.sqnr_db for metrics in _compare(expected, got).values()), default=float("inf"))


def _compare(expected: Outputs, got: Outputs) -> dict[str, OutputMetrics]:
    compared = {}
    for name, first in expected[0].items():
        if isinstance(first, np.ndarray) and first.dtype.kind == "f":
            metrics = compared[name] = OutputMetrics(name)
            for want, have in zip(expected, got, strict=True):
                metrics.add(want[name], have[name])
    return compared


def _run(model: Model, feeds: Feeds, drop: bool = False) -> Outputs:
    with runnable(model, annotations="drop" if drop else "error") as source:
        runner = OrtRunner(source)
        return [runner.run(feed) for feed in feeds]
