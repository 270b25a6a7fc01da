"""Profiles and latency comparisons: their arithmetic and shape (never how fast this machine is)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from qir.errors import DataError, ModelError
from qir.runtime.latency import bootstrap_ratio, compare_latency, compare_runners, timing_config
from qir.runtime.profile import profile, read_events
from qir.runtime.session import OPTIMIZED, PLAIN
from qir.runtime.specs import InputSpec
from tests.runtime.models import mlp

FEEDS = [{"x": np.full((1, 8), i, np.float32)} for i in range(3)]


def test_a_profile_has_one_row_a_node_with_the_asked_runs() -> None:
    rows = profile(mlp().SerializeToString(), FEEDS, PLAIN, runs=4, warmup=2)
    assert {(row.node, row.op, row.calls) for row in rows} == {
        ("mm", "MatMul", 4),
        ("add", "Add", 4),
        ("relu", "Relu", 4),
    }
    assert [row.total_us for row in rows] == sorted((row.total_us for row in rows), reverse=True)


def test_warm_up_runs_are_not_in_the_rows() -> None:
    def node(ts: int, dur: int) -> dict[str, Any]:
        return {
            "cat": "Node",
            "name": "a_kernel_time",
            "ts": ts,
            "dur": dur,
            "args": {"op_name": "Add", "node_index": "0"},
        }

    def run(ts: int) -> dict[str, Any]:
        return {"cat": "Session", "name": "model_run", "ts": ts, "dur": 9, "args": {}}

    events = [run(0), node(1, 100), run(10), node(11, 2), run(20), node(21, 4)]
    (row,) = read_events(events, skip_runs=1)
    assert (row.calls, row.mean_us, row.total_us) == (2, 3.0, 6.0)
    assert read_events(events, skip_runs=3) == []


def test_profiling_and_timing_want_feeds_and_report_bad_ones() -> None:
    model = mlp().SerializeToString()
    with pytest.raises(DataError, match="at least one feed"):
        profile(model, [])
    with pytest.raises(DataError, match="at least one feed"):
        compare_latency(model, model, [])
    with pytest.raises(ModelError, match="failed while running"):
        profile(model, [{"x": np.ones((1, 9), np.float32)}])


def test_comparing_a_model_with_another_gives_medians_and_their_ratio() -> None:
    result = compare_latency(mlp().SerializeToString(), mlp(seed=1).SerializeToString(), FEEDS, rounds=12)
    assert result.rounds == 12
    assert result.ratio == pytest.approx(result.a_ms / result.b_ms)
    assert result.low <= result.high
    assert f"{result.ratio:.2f}x [" in str(result)


class Sleeper:
    """A runner that takes the time it is told to, and notes what it was fed."""

    def __init__(self, seconds: float, names: tuple[str, ...]) -> None:
        self.inputs = tuple(InputSpec(name, np.dtype(np.float32), (1,)) for name in names)
        self.outputs: tuple[InputSpec, ...] = ()
        self.seconds = seconds
        self.fed: list[set[str]] = []

    def run(self, feeds: Mapping[str, Any], outputs: Any = None) -> dict[str, Any]:
        self.fed.append(set(feeds))
        time.sleep(self.seconds)
        return {}


def test_the_slower_model_shows_and_each_gets_only_its_own_inputs() -> None:
    fast, slow = Sleeper(0.0, ("x",)), Sleeper(0.02, ("x", "extra"))
    result = compare_runners(slow, fast, [{"x": 1, "extra": 2}], rounds=6)
    assert result.low > 1
    assert fast.fed == [{"x"}] * 9 and slow.fed == [{"x", "extra"}] * 9


def test_the_interval_is_reproducible_and_brackets_a_clear_ratio() -> None:
    random = np.random.default_rng(3)
    a, b = 2 + random.random(100) / 10, 1 + random.random(100) / 10
    low, high = bootstrap_ratio(a, b)
    assert (low, high) == bootstrap_ratio(a, b)
    assert low < np.median(a) / np.median(b) < high
    assert 1.9 < low and high < 2.1


def test_timing_sessions_do_not_spin_beside_one_another() -> None:
    config = timing_config(OPTIMIZED, 2)
    assert config.threads == 2 and config.entries["session.force_spinning_stop"] == "1"
    assert OPTIMIZED.entries == {}
