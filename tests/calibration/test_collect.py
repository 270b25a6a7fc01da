"""Statistics by several workers are those of one, to the last bit, for every method."""

from __future__ import annotations

from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest

import qir
from qir.calibration.collect import SHARD, collect
from qir.calibration.histogram import Histogram
from qir.calibration.statistics import ChannelStatistics, MinMax, MovingRange
from qir.codegen import to_bytes
from qir.errors import DataError
from qir.ir import Model, Value
from qir.pipeline import Pipeline
from tests.passes.int8 import Feed, model

SOURCE = "graph g(%x: f32[N,8]) -> (%y) {\n@w: f32[8,8] #01\n%a = MatMul(%x, @w)\n%y = Relu(%a)\n}"


def samples(count: int) -> list[Feed]:
    """Ragged, with an outlier here and there."""
    draw = np.random.default_rng(0)
    return [{"x": (draw.standard_t(2, size=(1 + i % 3, 8))).astype(np.float32)} for i in range(count)]


def values(source: Model) -> list[Value]:
    return [node.output for node in source.walk()]


OBSERVERS = [MinMax.of, partial(MovingRange.of, keep=0.9), Histogram.of, partial(ChannelStatistics.of, axis=1)]


def facts(statistic: Any) -> list[Any]:
    """Every field, as something that compares."""
    fields = [getattr(statistic, name) for name in statistic.__slots__]
    return [f.tobytes() if isinstance(f, np.ndarray) else f for f in fields]


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("count", [1, SHARD, 3 * SHARD + 5, 10 * SHARD])
def test_threads_give_the_same_bits(observer: Any, count: int) -> None:
    source = model(SOURCE)
    observers = dict.fromkeys(values(source), observer)
    alone = collect(source, values(source), samples(count), observers=observers)
    for workers in (1, 2, 3):
        with ThreadPoolExecutor(workers) as executor:
            shared = collect(source, values(source), samples(count), observers=observers, executor=executor)
        assert [facts(alone[v]) for v in alone] == [facts(shared[v]) for v in shared]


@pytest.mark.parametrize("method", ["minmax", "moving-average", "percentile", "mse", "entropy"])
def test_processes_give_the_same_ranges(method: str, pool: Executor) -> None:
    passes = Pipeline.parse(f"analyze-ranges,calibrate{{method={method}}}")
    feeds = samples(3 * SHARD + 1)
    alone = passes.run(model(SOURCE), calibration=feeds).model
    shared = passes.run(model(SOURCE), calibration=feeds, executor=pool).model
    ranges = [value.observed for value in alone.graph.values()]
    assert ranges == [value.observed for value in shared.graph.values()] and any(ranges)


@pytest.fixture(scope="module")
def pool() -> Any:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        yield executor


def test_a_sample_that_does_not_fit_is_the_same_error_in_a_worker() -> None:
    feeds = [*samples(SHARD), {"x": np.zeros((1, 7), np.float32)}]
    with ThreadPoolExecutor(2) as executor, pytest.raises(DataError, match="sample 16"):
        Pipeline.parse("analyze-ranges,calibrate").run(model(SOURCE), calibration=feeds, executor=executor)


def test_no_more_samples_are_taken_from_the_source_than_workers_need() -> None:
    taken = 0

    def source() -> Any:
        nonlocal taken
        for feed in samples(40 * SHARD):
            taken += 1
            yield feed

    class Once(Executor):
        """Runs what is submitted at once, and looks how far the source is."""

        most = 0
        done = 0

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            future: Future[Any] = Future()
            future.set_result(fn(*args, **kwargs))
            self.done += 1
            self.most = max(self.most, taken - self.done * SHARD)
            return future

    graph = model(SOURCE)
    watcher = Once()
    collect(graph, values(graph), source(), executor=watcher)
    assert watcher.done == 40 and watcher.most <= SHARD


def test_a_model_quantized_by_two_workers_is_the_same_file() -> None:
    source = model(SOURCE.replace("[8,8]", "[8,64]"))
    feeds = samples(2 * SHARD + 3)
    alone = qir.quantize(source, calibration=feeds, latency_seconds=0)
    with ThreadPoolExecutor(2) as executor:
        shared = qir.quantize(source, calibration=feeds, latency_seconds=0, executor=executor)
    assert str(alone.compilation.pipeline) == str(shared.compilation.pipeline)
    assert to_bytes(alone.compilation.model) == to_bytes(shared.compilation.model)
