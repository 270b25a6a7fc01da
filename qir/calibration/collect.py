"""Run the float model over the samples, once, and keep statistics of chosen values.

Memory is bounded by one sample's activations plus the statistics; with an executor, by a few shards of samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import islice
from operator import length_hint
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from qir.calibration.bodies import hand_out
from qir.calibration.statistics import MinMax
from qir.codegen import runnable
from qir.errors import DataError
from qir.ir import Model, Value
from qir.pipeline.contract import NoProgress, Progress
from qir.runtime.session import OrtRunner, SessionConfig
from qir.runtime.specs import Model as Serialized

__all__ = ["Statistic", "collect", "expose"]


def expose(model: Model, values: Sequence[Value]) -> tuple[Model, dict[str, Value]]:
    """A copy of the model with ``values`` as further outputs, and which name stands for which.

    A value of a body comes out as a vector of its numbers, or of their bounds (see ``hand_out``); where that is
    impossible it is left out, and so is a result that its node does not make (it has no name).
    """
    clone = model.clone_with_map()
    names: dict[str, Value] = {}
    for value in values:
        if not value.name:
            continue
        copy = clone.values[value]
        if copy.graph is not clone.model.graph:
            made = hand_out(copy)
            if made is None:
                continue
            copy = made
        if not copy.is_output and not copy.is_input:
            clone.model.graph.add_output(copy)
        names[copy.name] = value
    return clone.model, names


class Statistic(Protocol):
    """What is remembered of a value; ``merge`` is associative and is called in sample order."""

    def merge(self, other: Self) -> Self: ...


S = TypeVar("S", bound=Statistic)
Feed = Mapping[str, np.ndarray]
Observer = Callable[[np.ndarray], S]

SHARD = 16
"""Samples whose statistics are merged among themselves first, whoever runs them: float averages come out the same."""
_IN_FLIGHT = 8
"""Shards that wait or run at most, which bounds memory."""


def collect(
    model: Model,
    values: Sequence[Value],
    feeds: Iterable[Feed],
    *,
    observers: Mapping[Value, Observer[S]] | None = None,
    threads: int = 0,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> dict[Value, S]:
    """Statistics of ``values`` over all samples, merged: ``observers[value](array)`` of each, by default ``MinMax.of``.

    With an ``executor`` its workers run ``SHARD`` samples at a time, with the same result to the last bit; one of
    processes needs observers that can be pickled. A value that no sample gave (an input with a default that was left
    out) is missing from the answer. Raises DataError where there is no sample.
    """
    progress = progress or NoProgress()
    exposed, names = expose(model, values)
    found: dict[str, S] = {}
    progress.start("calibrating", length_hint(feeds) or None)
    with runnable(exposed, annotations="drop") as source:
        by_name = {name: MinMax.of if observers is None else observers[value] for name, value in names.items()}
        job = _Job(source, SessionConfig(threads=threads), by_name)
        samples = 0
        for count, statistics in _parts(job, feeds, executor):
            for name, seen in statistics.items():
                found[name] = found[name].merge(seen) if name in found else seen
            samples += count
            progress.advance(count)
    progress.finish()
    if not samples:
        raise DataError("calibration data holds no sample: give at least one")
    return {value: found[name] for name, value in names.items() if name in found}


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know."""

    source: Serialized
    config: SessionConfig
    observers: Mapping[str, Observer[Any]]

    def start(self) -> OrtRunner:
        return OrtRunner(self.source, self.config)

    def add(self, runner: OrtRunner, feed: Feed, statistics: dict[str, Any]) -> None:
        """Merge what one sample shows."""
        outputs = [spec.name for spec in runner.outputs if spec.name in self.observers]
        inputs = [spec.name for spec in runner.inputs if spec.name in self.observers and spec.name in feed]
        arrays = runner.run(feed, outputs)
        arrays.update({name: np.asarray(feed[name]) for name in inputs})
        for name, array in arrays.items():
            seen = self.observers[name](array)
            statistics[name] = statistics[name].merge(seen) if name in statistics else seen


_Part = tuple[int, dict[str, Any]]
"""How many samples, and statistics to merge."""


def _run_shard(job: _Job, feeds: Sequence[Feed]) -> _Part:
    runner = job.start()
    statistics: dict[str, Any] = {}
    for feed in feeds:
        job.add(runner, feed, statistics)
    return len(feeds), statistics


def _parts(job: _Job, feeds: Iterable[Feed], executor: Executor | None) -> Iterator[_Part]:
    """In sample order."""
    return _alone(job, feeds) if executor is None else _by_workers(job, feeds, executor)


def _alone(job: _Job, feeds: Iterable[Feed]) -> Iterator[_Part]:
    """Sample by sample; what a shard shows comes with its last."""
    runner = job.start()
    statistics: dict[str, Any] = {}
    for index, feed in enumerate(feeds):
        job.add(runner, feed, statistics)
        if (index + 1) % SHARD:
            yield 1, {}
        else:
            yield 1, statistics
            statistics = {}
    yield 0, statistics


def _by_workers(job: _Job, feeds: Iterable[Feed], executor: Executor) -> Iterator[_Part]:
    waiting: deque[Future[_Part]] = deque()
    source = iter(feeds)
    try:
        while shard := list(islice(source, SHARD)):
            waiting.append(executor.submit(_run_shard, job, shard))
            if len(waiting) >= _IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
