"""How far outputs are from reference outputs, pooled over samples without keeping them.

SQNR = 10 log10(sum ref² / sum (ref - out)²) in dB, the sums over all elements of all samples. A number that is missing
(NaN, infinity, another shape) makes SQNR -infinity: no average hides it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qir.calibration.feeds import family
from qir.errors import DataError
from qir.runtime.session import Runner
from qir.runtime.specs import Output
from qir.validation.tasks import Metric, drop_points


@dataclass
class OutputMetrics:
    """What is known of one output after any number of `add`s. Float sums are float64; the order of samples matters not
    beyond rounding.

    `agree` of `decisions`: where argmax over the last axis is the same (rank 2 and 3, two or more classes), or for
    integers, booleans and strings where elements are equal, of another shape (as of what a detector selects) none.
    `nonfinite`: elements finite in the reference only. `unusable`: elements not finite in the reference, left out of
    every sum.
    """

    name: str
    samples: int = 0
    elements: int = 0
    nonfinite: int = 0
    unusable: int = 0
    shape_mismatches: int = 0
    agree: int = 0
    decisions: int = 0
    max_abs: float = 0.0
    is_float: bool = False
    _signal: float = 0.0
    _noise: float = 0.0
    _dot: float = 0.0
    _power: float = 0.0

    def add(self, reference: Output, result: Output) -> None:
        """One sample. Lists (sequences) and dicts (maps) count by their parts, an absent optional as no part."""
        self.samples += 1
        wanted, got = _parts(reference), _parts(result)
        if [part.shape for part in wanted] != [part.shape for part in got]:
            self.shape_mismatches += 1
            self.is_float |= any(family(part.dtype) == "float" for part in wanted)
            self.decisions += 0 if self.is_float else max(_size(wanted), _size(got))
            return
        for want, have in zip(wanted, got, strict=True):
            if family(want.dtype) == "float":
                self._add_floats(want, have)
            else:
                self.agree += int(np.count_nonzero(want == have))
                self.decisions += want.size

    def _add_floats(self, want: np.ndarray, have: np.ndarray) -> None:
        self.is_float = True
        reference, result = want.astype(np.float64).ravel(), have.astype(np.float64).ravel()
        self.elements += reference.size
        usable = np.isfinite(reference)
        good = np.isfinite(result) & usable
        if not good.all():
            self.unusable += int(np.count_nonzero(~usable))
            self.nonfinite += int(np.count_nonzero(usable & ~good))
            reference, result = reference[good], result[good]
        error = reference - result
        self._signal += _dot(reference, reference)
        self._noise += _dot(error, error)
        self._dot += _dot(reference, result)
        self._power += _dot(result, result)
        self.max_abs = max(self.max_abs, float(np.abs(error).max(initial=0.0)))
        if want.ndim in (2, 3) and want.shape[-1] >= 2 and want.size:
            self.agree += int(np.count_nonzero(predictions(want) == predictions(have)))
            self.decisions += want.size // want.shape[-1]

    def merge(self, other: OutputMetrics) -> None:
        """Takes in what another accumulator of the same output saw."""
        for name in ("samples", "elements", "nonfinite", "unusable", "shape_mismatches", "agree", "decisions"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("_signal", "_noise", "_dot", "_power"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.max_abs = max(self.max_abs, other.max_abs)
        self.is_float |= other.is_float

    @property
    def sqnr_db(self) -> float:
        """In dB; infinity for equal outputs, -infinity where a number or shape is missing; NaN for no float output."""
        if not self.is_float:
            return math.nan
        if self.nonfinite or self.shape_mismatches:
            return -math.inf
        if self._noise == 0:
            return math.inf
        return 10 * math.log10(self._signal / self._noise) if self._signal > 0 else -math.inf

    @property
    def cosine(self) -> float:
        """Of all samples as one long vector; 1 when both are zero."""
        if self._signal == 0 or self._power == 0:
            return 1.0 if self._signal == self._power else 0.0
        return self._dot / math.sqrt(self._signal * self._power)

    @property
    def agreement(self) -> float | None:
        """The share of equal decisions, None when the output decides nothing."""
        return self.agree / self.decisions if self.decisions else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: ±999 dB stand for it, null for what does not apply."""
        out: dict[str, Any] = {"name": self.name, "samples": self.samples}
        if self.is_float:
            out |= {"sqnr_db": finite_db(self.sqnr_db), "cosine": round(self.cosine, 6), "max_abs_error": self.max_abs}
        out["agreement"] = self.agreement
        for name in ("nonfinite", "unusable", "shape_mismatches"):
            if value := getattr(self, name):
                out[name] = value
        return out


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """Not by BLAS, whose sums depend on how many threads share them, and whose threads cost more than they gain."""
    return float(np.einsum("i,i->", a, b))


def sqnr_db(reference: Iterable[Output], result: Iterable[Output]) -> float:
    """SQNR in dB of one output, pooled over samples that are at hand; see `OutputMetrics.sqnr_db`.

    Raises ValueError when the two differ in their number of samples.
    """
    metrics = OutputMetrics("")
    for want, have in zip(reference, result, strict=True):
        metrics.add(want, have)
    return metrics.sqnr_db


def finite_db(value: float) -> float | None:
    """A number of dB that JSON can hold: clipped to ±999, rounded to 1/1000; None for NaN."""
    return None if math.isnan(value) else round(min(max(value, -999.0), 999.0), 3)


def _size(parts: Sequence[np.ndarray]) -> int:
    return sum(part.size for part in parts)


def _parts(output: Output) -> list[np.ndarray]:
    """The arrays of an output, in an order that depends on its content only."""
    if output is None:
        return []
    if isinstance(output, Mapping):
        return [part for key in sorted(output) for part in [np.asarray(key), *_parts(output[key])]]
    if isinstance(output, (list, tuple)):
        return [part for item in output for part in _parts(item)]
    return [np.asarray(output)]


def predictions(scores: np.ndarray) -> np.ndarray:
    """The class of each row: argmax over the last axis, as a flat array; the first of equals wins."""
    best: np.ndarray = scores.astype(np.float64).argmax(axis=-1).ravel()
    return best


@dataclass
class Classification:
    """Predictions against labels. Labels below 0 mean "do not count".

    Precision, recall and F1 are macro averages: the plain mean over all classes that occur as label or prediction, a
    class without predictions (or labels) counting as 0.
    """

    _pairs: Counter[tuple[int, int]] = field(default_factory=Counter)  # (label, prediction) -> how often

    def add(self, labels: np.ndarray, predicted: np.ndarray) -> None:
        """Flat arrays of equal length."""
        counted = labels >= 0
        self._pairs.update(zip(labels[counted].tolist(), predicted[counted].tolist(), strict=True))

    @property
    def count(self) -> int:
        return self._pairs.total()

    @property
    def accuracy(self) -> float:
        """The share of right predictions; NaN before anything was counted."""
        right = sum(n for (label, guess), n in self._pairs.items() if label == guess)
        return right / self.count if self.count else math.nan

    @property
    def precision(self) -> float:
        return self._mean(lambda right, labelled, guessed: right / guessed if guessed else 0.0)

    @property
    def recall(self) -> float:
        return self._mean(lambda right, labelled, guessed: right / labelled if labelled else 0.0)

    @property
    def f1(self) -> float:
        return self._mean(lambda right, labelled, guessed: 2 * right / (labelled + guessed))

    def _mean(self, score: Any) -> float:
        right: Counter[int] = Counter()
        labelled: Counter[int] = Counter()
        guessed: Counter[int] = Counter()
        for (label, guess), n in self._pairs.items():
            labelled[label] += n
            guessed[guess] += n
            if label == guess:
                right[label] += n
        classes = sorted(labelled.keys() | guessed.keys())
        if not classes:
            return math.nan
        return math.fsum(score(right[c], labelled[c], guessed[c]) for c in classes) / len(classes)

    def as_dict(self) -> dict[str, float]:
        scores = {name: getattr(self, name) for name in ("accuracy", "precision", "recall", "f1")}
        return {"count": self.count, **{name: round(value, 6) for name, value in scores.items()}}


class Comparison:
    """A model's outputs against the reference's, sample by sample.

    Labels are held against the first output that makes as many predictions a sample as there are labels; ``metric``
    says what else to make of them.
    """

    def __init__(self, names: Sequence[str], metric: Metric | None = None) -> None:
        self.metric = metric
        self._scores = None if metric is None else (metric.start(), metric.start())
        self._values: tuple[float, float] | None = None
        self._labelled = False
        self.outputs = {name: OutputMetrics(name) for name in names}
        self.reference_task = Classification()
        self.task = Classification()
        self.task_output: str | None = None

    def add(
        self, reference: Mapping[str, Output], result: Mapping[str, Output], label: np.ndarray | None = None
    ) -> None:
        """One sample. Raises DataError when the result lacks an output."""
        for name, metrics in self.outputs.items():
            if name not in result:
                raise DataError(f"the model has no output '{name}' to compare; it has {', '.join(result) or 'none'}")
            metrics.add(reference[name], result[name])
        if label is not None and self._scores is not None:
            for score, outputs in zip(self._scores, (reference, result), strict=True):
                score.add(outputs, label)
            self._labelled = True
            self._values = None
        if label is not None and np.asarray(label).dtype.kind in "iub":
            self._add_label(reference, result, np.asarray(label).ravel())

    def _add_label(self, reference: Mapping[str, Output], result: Mapping[str, Output], label: np.ndarray) -> None:
        for name in [self.task_output] if self.task_output is not None else self.outputs:
            want, have = reference[name], result[name]
            if _classifies(want, label.size) and _classifies(have, label.size):
                self.task_output = name
                self.reference_task.add(label, predictions(want))
                self.task.add(label, predictions(have))
                return

    @property
    def metric_values(self) -> tuple[float, float] | None:
        """The metric of the reference and of the model, None without one or without labels. Raises OptionError where
        a user's function fails."""
        if self._scores is None or not self._labelled:
            return None
        if self._values is None:
            self._values = (self._scores[0].value, self._scores[1].value)
        return self._values

    @property
    def drop(self) -> float | None:
        """Points of the task metric that the model loses: of ``metric``, else of accuracy, else, without labels, the
        share of other decisions; None where nothing decides."""
        values = self.metric_values
        if values is not None:
            return drop_points(self.metric, *values)
        if self.task_output is not None:
            return drop_points(None, self.reference_task.accuracy, self.task.accuracy)
        return None if self.agreement is None else 100 * (1 - self.agreement)

    @property
    def float_outputs(self) -> list[OutputMetrics]:
        return [m for m in self.outputs.values() if m.is_float]

    @property
    def samples(self) -> int:
        return max((m.samples for m in self.outputs.values()), default=0)

    @property
    def sqnr_db(self) -> float:
        """The headline: of the first float output, in dB. NaN without one."""
        return self.float_outputs[0].sqnr_db if self.float_outputs else math.nan

    @property
    def sqnr_min_db(self) -> float:
        """Of the worst float output."""
        return min((m.sqnr_db for m in self.float_outputs), default=math.nan)

    @property
    def agreement(self) -> float | None:
        """Of the first output that decides anything."""
        return next((m.agreement for m in self.outputs.values() if m.agreement is not None), None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; see `OutputMetrics.as_dict`."""
        out: dict[str, Any] = {
            "samples": self.samples,
            "sqnr_db": finite_db(self.sqnr_db),
            "sqnr_min_db": finite_db(self.sqnr_min_db),
            "agreement": self.agreement,
            "outputs": [m.as_dict() for m in self.outputs.values()],
        }
        if self.task_output is not None:
            out["task"] = {
                "output": self.task_output,
                "reference": self.reference_task.as_dict(),
                "result": self.task.as_dict(),
            }
        values = self.metric_values
        if self.metric is not None and values is not None:
            finite = [value if math.isfinite(value) else None for value in values]
            out["metric"] = {"name": self.metric.name, "reference": finite[0], "result": finite[1]}
        drop = self.drop
        out["drop_points"] = drop if drop is not None and math.isfinite(drop) else None
        return out


def _classifies(output: Output, count: int) -> bool:
    """Whether an output holds `count` rows of two or more class scores along its last axis."""
    return (
        isinstance(output, np.ndarray)
        and family(output.dtype) == "float"
        and output.ndim >= 1
        and output.shape[-1] >= 2
        and output.size // output.shape[-1] == count
    )


def compare(
    reference: Runner,
    model: Runner,
    feeds: Iterable[Mapping[str, Any]],
    labels: Iterable[np.ndarray] | None = None,
) -> Comparison:
    """Runs both models over the feeds, one sample in memory at a time. Raises what running raises."""
    comparison = Comparison([spec.name for spec in reference.outputs])
    takes = {spec.name for spec in model.inputs}
    remaining = iter(labels) if labels is not None else None
    for feed in feeds:
        wanted = reference.run(feed)
        got = model.run({name: value for name, value in feed.items() if name in takes})
        comparison.add(wanted, got, next(remaining, None) if remaining is not None else None)
    return comparison
