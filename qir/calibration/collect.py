"""Run the float model over the samples, once, and keep statistics of chosen values.

Memory is bounded by one sample's activations plus the statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import length_hint
from typing import Protocol, Self, TypeVar

import numpy as np

from qir.calibration.bodies import hand_out
from qir.calibration.statistics import MinMax
from qir.codegen import runnable
from qir.errors import DataError
from qir.ir import Model, Value
from qir.pipeline.contract import NoProgress, Progress
from qir.runtime.session import OrtRunner, SessionConfig

__all__ = ["Statistic", "collect", "expose"]


def expose(model: Model, values: Sequence[Value]) -> tuple[Model, dict[str, Value]]:
    """A copy of the model with ``values`` as further outputs, and which name stands for which.

    A value of a body comes out as a vector of its numbers, or of their bounds (see ``hand_out``); where that is
    impossible it is left out.
    """
    clone = model.clone_with_map()
    names: dict[str, Value] = {}
    for value in values:
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


def min_max(value: Value, array: np.ndarray) -> MinMax:
    """The statistic that ``collect`` keeps where nothing else is asked for."""
    return MinMax.of(array)


def collect(
    model: Model,
    values: Sequence[Value],
    feeds: Iterable[Mapping[str, np.ndarray]],
    *,
    observe: Callable[[Value, np.ndarray], S] = min_max,  # type: ignore[assignment]
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[Value, S]:
    """Statistics of ``values`` over all samples: ``observe(value, array)`` of each, merged.

    A value that no sample gave (an input with a default that was left out) is missing from the answer. Raises
    DataError where there is no sample.
    """
    progress = progress or NoProgress()
    exposed, names = expose(model, values)
    statistics: dict[Value, S] = {}
    samples = 0
    with runnable(exposed, annotations="drop") as source:
        runner = OrtRunner(source, SessionConfig(threads=threads))
        outputs = [spec.name for spec in runner.outputs if spec.name in names]
        inputs = [spec.name for spec in runner.inputs if spec.name in names]
        progress.start("calibrating", length_hint(feeds) or None)
        for feed in feeds:
            arrays = runner.run(feed, outputs)
            arrays.update({name: np.asarray(feed[name]) for name in inputs if name in feed})
            for name, array in arrays.items():
                value = names[name]
                seen = observe(value, array)
                statistics[value] = statistics[value].merge(seen) if value in statistics else seen
            samples += 1
            progress.advance()
        progress.finish()
    if not samples:
        raise DataError("calibration data holds no sample: give at least one")
    return {value: statistics[value] for value in values if value in statistics}
