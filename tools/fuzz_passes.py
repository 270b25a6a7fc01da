"""Random models through random pipelines of exact passes, for as long as you like.

    python tools/fuzz_passes.py [--minutes 5] [--only outputs undo ...] [--seed 0] [--steps 25] [--keep-going]
                                [--failures DIR]

The properties are those of ``tests/properties``, the models larger. Each failure is shrunk; the smallest model and its
pipeline are printed and written to DIR, and the exit code is 1. A failure that was written down can be run again:

    qir opt DIR/outputs-1.onnx --passes TEXT --verify-numerics --golden DIR/outputs-1.npz
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.properties import checks
from tests.properties.graphs import Sample, feeds_of, models

ROUND = 200
"""Examples between two looks at the clock."""
PROPERTIES: dict[str, Callable[..., None]] = {
    "outputs": checks.keeps_outputs,
    "prefix": checks.prefix_keeps_outputs,
    "undo": checks.undoes,
    "text": checks.prints_and_parses,
    "files": checks.round_trips,
}


class Failed(Exception):
    """A property does not hold; the smallest example that shows it."""

    def __init__(self, sample: Sample, rest: tuple[Any, ...], cause: BaseException) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.sample = sample
        self.rest = rest


def run_round(name: str, start: int, steps: int, examples: int = ROUND) -> int:
    """Examples that ran. Raises Failed with the smallest one that does not hold."""
    check = PROPERTIES[name]
    extra = [st.integers(0, 40)] if name == "prefix" else []
    last: list[Failed] = []
    ran = 0

    @seed(start)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(models(steps), st.tuples(checks.pipelines(), *extra))
    def one(sample: Sample, rest: tuple[Any, ...]) -> None:
        nonlocal ran
        ran += 1
        try:
            check(sample, *rest)
        except Exception as error:
            last[:] = [Failed(sample, rest, error)]
            raise

    try:
        one()
    except Exception as error:
        if not last:
            raise
        raise last[0] from error
    return ran


def write_down(folder: Path, label: str, failure: Failed) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(failure.sample.model, folder / f"{label}.onnx")
    feeds: dict[str, Any] = {name: array[None] for name, array in feeds_of(failure.sample, 3, True).items()}
    np.savez(folder / f"{label}.npz", **feeds)
    report = f"{failure}\n{failure.rest}\n{onnx.printer.to_text(failure.sample.model)}\n"
    (folder / f"{label}.txt").write_text(report)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--only", nargs="+", choices=sorted(PROPERTIES), default=sorted(PROPERTIES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=25, help="most building steps of a model")
    parser.add_argument("--examples", type=int, default=ROUND, help="examples a round")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    ran = dict.fromkeys(options.only, 0)
    failures, start = 0, options.seed
    while True:
        for name in options.only:
            try:
                ran[name] += run_round(name, start, options.steps, options.examples)
            except Failed as failure:
                failures += 1
                print(f"{name}, seed {start}: {failure}\n{failure.rest}\n{failure.sample}", flush=True)
                write_down(options.failures, f"{name}-{failures}", failure)
            if time.monotonic() > end or (failures and not options.keep_going):
                counts = ", ".join(f"{name} {count}" for name, count in ran.items())
                print(f"{sum(ran.values())} examples ({counts}), {failures} failures")
                return 1 if failures else 0
        start += 1


if __name__ == "__main__":
    sys.exit(main())
