"""Run the float model over the samples, once, and keep statistics of chosen values.

Memory is bounded by one sample's activations plus the statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import length_hint

import numpy as np

from qir.calibration.statistics import MinMax
from qir.codegen import runnable
from qir.errors import DataError
from qir.ir import Model, Value
from qir.pipeline.contract import NoProgress, Progress
from qir.runtime.session import OrtRunner, SessionConfig

__all__ = ["collect", "expose"]


def expose(model: Model, values: Sequence[Value]) -> tuple[Model, dict[str, Value]]:
    """A copy of the model with ``values`` (of the main graph) as further outputs, and which name stands for which.

    Annotations are dropped from the copy, so that it computes in float.
    """
    clone = model.clone_with_map()
    names: dict[str, Value] = {}
    for value in values:
        copy = clone.values[value]
        if not copy.is_output and not copy.is_input:
            clone.model.graph.add_output(copy)
        names[copy.name] = value
    return clone.model, names


def collect(
    model: Model,
    values: Sequence[Value],
    feeds: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[Value, MinMax]:
    """Statistics of ``values`` (of the main graph) over all samples. Raises DataError where there is no sample."""
    progress = progress or NoProgress()
    exposed, names = expose(model, values)
    statistics = dict.fromkeys(names, MinMax())
    samples = 0
    with runnable(exposed) as source:
        runner = OrtRunner(source, SessionConfig(threads=threads))
        outputs = [spec.name for spec in runner.outputs if spec.name in names]
        inputs = [spec.name for spec in runner.inputs if spec.name in names]
        progress.start("calibrating", length_hint(feeds) or None)
        for feed in feeds:
            for name, array in runner.run(feed, outputs).items():
                statistics[name] = statistics[name].merge(MinMax.of(array))
            for name in inputs:
                if name in feed:
                    statistics[name] = statistics[name].merge(MinMax.of(np.asarray(feed[name])))
            samples += 1
            progress.advance()
        progress.finish()
    if not samples:
        raise DataError("calibration data holds no sample: give at least one")
    return {value: statistics[name] for name, value in names.items()}
