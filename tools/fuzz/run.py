"""The loop: mutate, call, watch the clock and the memory, keep what breaks."""

from __future__ import annotations

import random
import re
import resource
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from qir.errors import QirError
from tools.fuzz.targets import Target

__all__ = ["Failure", "FuzzReport", "fuzz", "limited_memory"]

SECONDS = 20.0
"""An input may take this long; the seeds take milliseconds."""
MEMORY = 2 << 30
"""Bytes of address space beyond what the process has at the start."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An input from which something other than a QirError came."""

    what: str
    data: bytes
    trace: str


@dataclass(slots=True)
class FuzzReport:
    """What a run saw. ``errors``: messages of QirErrors, names and numbers taken out, with their counts."""

    inputs: int = 0
    accepted: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    failures: dict[str, Failure] = field(default_factory=dict)
    slowest: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.inputs} inputs, {self.accepted} accepted, {len(self.errors)} distinct errors, "
            f"{len(self.failures)} distinct failures, slowest {self.slowest:.2f} s"
        )


class _Hang(BaseException):
    """The input's time is over. No Exception, so that nothing on the way takes it for its own."""


def fuzz(target: Target, count: int, seed: int, seconds: float | None = None) -> FuzzReport:
    """Give a target ``count`` mutated inputs, or as many as ``seconds`` allow. The inputs depend on ``seed`` only."""
    report = FuzzReport()
    end = time.monotonic() + (seconds if seconds is not None else float("inf"))
    for number in range(count):
        if time.monotonic() > end:
            break
        data = target.mutate(random.Random(f"{seed}/{number}"))
        began = time.monotonic()
        try:
            with _time_limit(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target.call(data)
        except QirError as error:
            report.errors[_shape_of(error)] += 1
        except (Exception, RecursionError, MemoryError, _Hang) as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} at {where.filename.rpartition('/')[2]}:{where.lineno}"
            report.failures.setdefault(what, Failure(what, data, traceback.format_exc()))
        else:
            report.accepted += 1
        report.inputs += 1
        report.slowest = max(report.slowest, time.monotonic() - began)
    return report


def _shape_of(error: QirError) -> str:
    """A message without what varies from input to input."""
    return f"{type(error).__name__}: " + re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "_", str(error))[:80]


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def limited_memory(extra: int = MEMORY) -> Iterator[None]:
    """Within the block the process gets at most ``extra`` more bytes of address space: beyond, a MemoryError."""
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
