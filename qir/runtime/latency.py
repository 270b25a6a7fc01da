"""Is B faster than A? Interleaved timing of two models in one process, with a confidence interval on the ratio.

Machines are shared and noisy, so only the ratio of two models timed side by side means something; the interval says
how much.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qir.errors import DataError
from qir.runtime.session import OPTIMIZED, OrtRunner, Runner, SessionConfig
from qir.runtime.specs import Model


@dataclass(frozen=True, slots=True)
class LatencyComparison:
    """Medians in milliseconds; `ratio` = median A / median B (over 1: B is faster), `low`..`high` its 95 % interval."""

    a_ms: float
    b_ms: float
    ratio: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.ratio:.2f}x [{self.low:.2f}, {self.high:.2f}] ({self.a_ms:.3f} ms -> {self.b_ms:.3f} ms)"


def compare_latency(
    model_a: Model,
    model_b: Model,
    feeds: Sequence[Mapping[str, Any]],
    config: SessionConfig = OPTIMIZED,
    config_b: SessionConfig | None = None,
    *,
    threads: int = 1,
    seconds: float = 2.0,
    rounds: int | None = None,
    feeds_b: Sequence[Mapping[str, Any]] | None = None,
) -> LatencyComparison:
    """Times both models on the same feeds, `threads` threads each, for about `seconds` or for exactly `rounds` rounds.

    Both take the feeds by input name; feeds that one of them lacks are left out for it. ``feeds_b``: the same samples
    as the second model takes them, where it takes them in other types. Raises what loading raises, and DataError
    without feeds.
    """
    runners = [
        OrtRunner(model, timing_config(chosen, threads))
        for model, chosen in ((model_a, config), (model_b, config_b or config))
    ]
    return compare_runners(runners[0], runners[1], feeds, seconds=seconds, rounds=rounds, feeds_b=feeds_b)


def timing_config(config: SessionConfig, threads: int) -> SessionConfig:
    """`config` for side-by-side timing: idle threads of one session must not spin while the other is timed."""
    return replace(config, threads=threads, entries={**config.entries, "session.force_spinning_stop": "1"})


def compare_runners(
    a: Runner,
    b: Runner,
    feeds: Sequence[Mapping[str, Any]],
    *,
    seconds: float = 2.0,
    rounds: int | None = None,
    feeds_b: Sequence[Mapping[str, Any]] | None = None,
) -> LatencyComparison:
    """Like `compare_latency`, for models that are loaded already. A round runs each once; who goes first alternates."""
    if not feeds:
        raise DataError("timing needs at least one feed")
    takes = [{spec.name for spec in runner.inputs} for runner in (a, b)]
    given = (feeds, feeds if feeds_b is None else feeds_b)
    fed = [
        [{k: v for k, v in feed.items() if k in names} for feed in one] for names, one in zip(takes, given, strict=True)
    ]

    def once(which: int, index: int) -> float:
        runner, feed = (a, b)[which], fed[which][index % len(feeds)]
        start = time.perf_counter()
        runner.run(feed)
        return time.perf_counter() - start

    warm = [once(which, index) for index in range(3) for which in (0, 1)]
    if rounds is None:
        rounds = int(np.clip(seconds / max(sum(warm[-2:]), 1e-6), 10, 2000))
    times = np.empty((2, rounds))
    for index in range(rounds):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            times[which, index] = once(which, index)
    low, high = bootstrap_ratio(times[0], times[1])
    medians = np.median(times, axis=1)
    return LatencyComparison(
        float(medians[0] * 1e3), float(medians[1] * 1e3), float(medians[0] / medians[1]), low, high, rounds
    )


def bootstrap_ratio(a: np.ndarray, b: np.ndarray, *, resamples: int = 500, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile-bootstrap interval of median(a)/median(b), rounds resampled as pairs.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. Pairs, since the two times of a
    round share the machine's mood.
    """
    generator = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    for index in range(resamples):
        chosen = generator.integers(0, a.size, a.size)
        ratios[index] = np.median(a[chosen]) / np.median(b[chosen])
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)
