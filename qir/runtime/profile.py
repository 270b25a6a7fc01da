"""Time per node, from onnxruntime's own profiler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from qir.errors import DataError
from qir.runtime.session import OPTIMIZED, SessionConfig, make_session, runtime_error
from qir.runtime.specs import Model

_SUFFIX = "_kernel_time"


@dataclass(frozen=True, slots=True)
class OpTime:
    """One node of the optimised graph: its name there, op type, runs that were timed, mean and median time of a run
    in µs. The median forgets the runs in which the machine did something else."""

    node: str
    op: str
    calls: int
    mean_us: float
    median_us: float = 0.0

    @property
    def total_us(self) -> float:
        return self.calls * self.mean_us


def profile(
    model: Model,
    feeds: Sequence[Mapping[str, Any]],
    config: SessionConfig = OPTIMIZED,
    *,
    runs: int = 10,
    warmup: int = 2,
) -> list[OpTime]:
    """Runs the feeds in turn `warmup + runs` times and returns the timed rows, slowest node first.

    A node inside a body counts every time the body ran; the node that owns the body (If, Loop, Scan) includes its
    body's time. Profiling itself costs a few µs per node. Raises what loading and running raise, and DataError without
    feeds.
    """
    if not feeds:
        raise DataError("profiling needs at least one feed")
    with tempfile.TemporaryDirectory(prefix="qir-") as folder:
        options = config.options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = make_session(model, config, options)
        try:
            for index in range(warmup + runs):
                session.run(None, dict(feeds[index % len(feeds)]))
        except Exception as error:
            raise runtime_error(error, "onnxruntime failed while running the model") from error
        finally:
            written = session.end_profiling()
        events = json.loads(Path(written).read_text(encoding="utf-8"))
    return read_events(events, warmup)


def read_events(events: Sequence[Mapping[str, Any]], skip_runs: int = 0) -> list[OpTime]:
    """Rows of a parsed profile, leaving out the first `skip_runs` runs of the model."""
    runs = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    start = runs[skip_runs] if skip_runs < len(runs) else float("inf")
    durations: dict[tuple[str, str, str], list[int]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX) and event["ts"] >= start:
            # Names may repeat (also be empty) in a file; the index of the node tells such nodes of one graph apart.
            key = (event["name"].removesuffix(_SUFFIX), event["args"]["op_name"], event["args"].get("node_index", ""))
            durations.setdefault(key, []).append(int(event["dur"]))
    rows = [
        OpTime(name, op, len(times), sum(times) / len(times), float(median(times)))
        for (name, op, _), times in durations.items()
    ]
    return sorted(rows, key=lambda row: (-row.total_us, row.node, row.op))
