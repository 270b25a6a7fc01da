"""One call that says which of two models is faster, and which of their nodes make the difference."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import islice
from typing import Any

from qir.calibration.data import open_data
from qir.calibration.synthetic import RandomData
from qir.errors import DataError
from qir.frontend import load
from qir.report.bench import BenchReport, NodeTime, node_times
from qir.runtime.latency import compare_latency, timing_config
from qir.runtime.profile import profile
from qir.runtime.session import OPTIMIZED, OrtRunner

__all__ = ["bench"]

_FEEDS = 8


def bench(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    data: Any = None,
    *,
    dims: Mapping[str, int] | None = None,
    threads: int = 1,
    seconds: float = 4.0,
    runs: int = 20,
) -> BenchReport:
    """Time two models side by side in this process, interleaved, and profile each, node by node.

    ``data``: whatever ``calibration=`` takes; the first 8 samples are used. Without it inputs are made up from the
    declared shapes, and the report says so; ``dims`` gives sizes to axes that have only names (a first axis: 1).
    ``threads``: of each model. ``seconds`` for the comparison, ``runs`` for each profile. Nodes of the two models are
    the same where they stand for the same node of the model that both were made from. Raises ModelError, DataError or
    OptionError.
    """
    runner = OrtRunner(os.fspath(a))
    if data is None:
        data = RandomData(_FEEDS, dict(dims or {}))
    source = open_data(data, runner.inputs)
    feeds = list(islice(source, _FEEDS))
    if not feeds:
        raise DataError(f"{source.name}: holds no sample, give at least one")
    latency = compare_latency(os.fspath(a), os.fspath(b), feeds, threads=threads, seconds=seconds)
    times: list[dict[str, NodeTime]] = []
    for path in (a, b):
        takes = {spec.name for spec in OrtRunner(os.fspath(path)).inputs}
        fed = [{name: array for name, array in feed.items() if name in takes} for feed in feeds]
        rows = profile(os.fspath(path), fed, timing_config(OPTIMIZED, threads), runs=runs)
        times.append(node_times(rows, load(path), runs))
    return BenchReport(os.fspath(a), os.fspath(b), source.name, threads, len(feeds), latency, times[0], times[1])
