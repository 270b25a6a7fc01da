"""Task metrics: what a model is worth by the labels, for the built-in ones and a user's function.

`open_metric` turns `accuracy`, `top5`, `precision`, `recall`, `f1`, `rmse`, `FILE.py:FUNCTION` or a callable into a
metric. A user's function gets all outputs and labels at once, `function(outputs, labels) -> float`, a list of dicts of
arrays and a list of arrays, and answers a score of which more is better: mAP, for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qir.errors import DataError, OptionError, suggest
from qir.runtime.specs import Output

__all__ = ["METRICS", "Metric", "Score", "drop_points", "open_metric"]

METRICS = ("accuracy", "top5", "precision", "recall", "f1", "rmse")
UserFunction = Callable[[list[dict[str, Any]], list[np.ndarray]], float]


class Score(Protocol):
    """One model's score while samples come in."""

    def add(self, outputs: Mapping[str, Output], label: np.ndarray) -> None: ...

    @property
    def value(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Metric:
    """``name`` for reports; ``less_is_better`` for errors; ``start`` makes an empty score."""

    name: str
    start: Callable[[], Score]
    less_is_better: bool = False


def open_metric(source: str | UserFunction) -> Metric:
    """A metric by name, by ``FILE.py:FUNCTION``, or a callable. Raises OptionError where there is no such thing."""
    if not isinstance(source, str):
        if not callable(source):
            raise OptionError(f"a {type(source).__name__} is no metric: give a name or a function")
        return Metric(getattr(source, "__name__", "metric"), lambda: _Collected(source))
    if source in METRICS:
        if source == "rmse":
            return Metric("rmse", _Rmse, less_is_better=True)
        return Metric(source, lambda: _Classes(source))
    path, colon, name = source.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise OptionError(
            f"unknown metric {source!r}{suggest(source, METRICS)}: there are {', '.join(METRICS)}, and FILE.py:FUNCTION"
        )
    return open_metric(_loaded(Path(path), name))


def drop_points(metric: Metric | None, reference: float, result: float) -> float:
    """How much worse the result is: in points (hundredths of a score), for an error in percent of it."""
    if metric is not None and metric.less_is_better:
        return 100 * (result / reference - 1) if reference else (0.0 if result <= reference else math.inf)
    return 100 * (reference - result)


def _loaded(path: Path, name: str) -> UserFunction:
    import runpy

    if not path.is_file():
        raise OptionError(f"metric {path}:{name}: there is no file {str(path)!r}")
    try:
        content = runpy.run_path(str(path))
    except Exception as error:
        raise OptionError(f"metric {path}:{name}: the file fails with {type(error).__name__}: {error}") from error
    function = content.get(name)
    if not callable(function):
        names = [key for key, value in content.items() if callable(value) and not key.startswith("_")]
        raise OptionError(f"metric {path}:{name}: the file has no function {name!r}{suggest(name, names)}")
    found: UserFunction = function
    return found


@dataclass
class _Classes:
    """Scores from class labels, on the first output that makes as many predictions as there are labels."""

    kind: str
    _hits: int = 0
    _labels: list[np.ndarray] = field(default_factory=list)
    _guesses: list[np.ndarray] = field(default_factory=list)

    def add(self, outputs: Mapping[str, Output], label: np.ndarray) -> None:
        labels = np.asarray(label).ravel()
        for output in outputs.values():
            scores = np.asarray(output) if isinstance(output, np.ndarray) else None
            if scores is None or scores.ndim < 1 or scores.shape[-1] < 2 or scores.dtype.kind not in "fV":
                continue
            if scores.size // scores.shape[-1] == labels.size:
                counted = labels >= 0
                rows = scores.astype(np.float64).reshape(-1, scores.shape[-1])[counted]
                order = np.argsort(-rows, axis=-1, kind="stable")
                self._labels.append(labels[counted])
                self._guesses.append(order[:, 0])
                self._hits += int((order[:, :5] == labels[counted][:, None]).sum())
                return
        raise DataError(f"no output makes {labels.size} predictions a sample, as there are labels: see --metric")

    @property
    def value(self) -> float:
        from qir.validation.metrics import Classification

        if not self._labels:
            return math.nan
        labels = np.concatenate(self._labels)
        if self.kind == "top5":
            return self._hits / labels.size if labels.size else math.nan
        scores = Classification()
        scores.add(labels, np.concatenate(self._guesses))
        return float(getattr(scores, self.kind))


@dataclass
class _Rmse:
    """Root of the mean squared difference from labels that are numbers: the first output of as many elements."""

    _squares: float = 0.0
    _count: int = 0

    def add(self, outputs: Mapping[str, Output], label: np.ndarray) -> None:
        wanted = np.asarray(label, dtype=np.float64).ravel()
        for output in outputs.values():
            if isinstance(output, np.ndarray) and output.size == wanted.size and output.dtype.kind in "fV":
                error = output.astype(np.float64).ravel() - wanted
                self._squares += float(np.square(error).sum())
                self._count += error.size
                return
        raise DataError(f"no output has {wanted.size} numbers a sample, as the labels have: see --metric")

    @property
    def value(self) -> float:
        return math.sqrt(self._squares / self._count) if self._count else math.nan


@dataclass
class _Collected:
    """A user's function, called once with everything."""

    function: UserFunction
    _outputs: list[dict[str, Any]] = field(default_factory=list)
    _labels: list[np.ndarray] = field(default_factory=list)

    def add(self, outputs: Mapping[str, Output], label: np.ndarray) -> None:
        self._outputs.append(dict(outputs))
        self._labels.append(np.asarray(label))

    @property
    def value(self) -> float:
        name = getattr(self.function, "__name__", "metric")
        try:
            return float(self.function(self._outputs, self._labels))
        except Exception as error:
            raise OptionError(f"metric {name!r} fails with {type(error).__name__}: {error}") from error
