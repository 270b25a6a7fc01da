"""`python -m tools.fuzz [TARGET...] [--count N] [--seconds S] [--seed N] [--keep FOLDER]`: fuzz longer than tests do.

Exit 0: nothing but QirErrors came out. 1: something else did; the inputs are kept in the folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.fuzz.run import fuzz, limited_memory
from tools.fuzz.targets import TARGETS, Seeds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="what to fuzz; all where none is named")
    parser.add_argument("--count", type=int, default=10_000, help="inputs for each target")
    parser.add_argument("--seconds", type=float, default=None, help="stop a target after this long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for inputs that break")
    parser.add_argument("--seeds", type=Path, default=None, help="file that keeps the collected models for later runs")
    options = parser.parse_args()
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown target {min(unknown)!r}: there are {', '.join(TARGETS)}")
    broken, seeds = 0, Seeds(options.seeds)
    for name in options.targets or TARGETS:
        target = TARGETS[name](seeds)
        with limited_memory():
            report = fuzz(target, options.count, options.seed, options.seconds)
        print(f"{name:16} {report}", flush=True)
        for number, failure in enumerate(report.failures.values()):
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{name}-{number}.bin").write_bytes(failure.data)
            (options.keep / f"{name}-{number}.txt").write_text(failure.trace, encoding="utf-8", errors="replace")
            print(f"  {failure.what}", flush=True)
        broken += len(report.failures)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
