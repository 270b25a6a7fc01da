"""Set what golden models have to reach: run a preset on each and write `[expected.PRESET] min_sqnr` to its golden.toml.

    python -m tools.golden.expect [--preset int8] [NAME ...]

The number is the worst output's SQNR, over eval.npz and the test data sets, with the runtime's optimisations on and
off, less a margin of 2 dB, at least 10 dB. Run it after the quantizer has become better; look at the diff before you
commit it.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import qir
from qir import golden_models

MARGIN = 2.0  # dB
FLOOR = 10.0  # dB: what any usable int8 model reaches


def measured(folder: Path, preset: str) -> float:
    """The worst output's SQNR in dB that the preset reaches on a golden model, less the margin, in steps of 0.1."""
    with tempfile.TemporaryDirectory() as work:
        output = Path(work) / "model.onnx"
        report = qir.quantize(
            folder / "model.onnx",
            output,
            calibration=folder / "calib.npz",
            golden=folder / "eval.npz",
            preset=preset,
            latency_seconds=0,
        )
        stored = qir.check(output, folder).worst_db
    assert report.sqnr_min_db is not None
    reached = min(report.sqnr_min_db, stored)
    return max(FLOOR, math.floor((reached - MARGIN) * 10) / 10)


def expect(folder: Path, preset: str, value: float) -> None:
    """Write the expectation in place of the one that is there, else after all others."""
    path = folder / "golden.toml"
    head = f"[expected.{preset}]\n"
    before, found, after = path.read_text(encoding="utf-8").partition(head)
    rest = after.partition("\n[")
    tail = f"\n[{rest[2]}" if found and rest[1] else ""
    gap = "" if found else "\n"
    comment = f"dB, the worst output: {MARGIN:g} below what was reached when this was set"
    path.write_text(f"{before}{gap}{head}min_sqnr = {value}  # {comment}\n{tail}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="golden models; all if none is named")
    parser.add_argument("--preset", default="int8")
    arguments = parser.parse_args()
    for name in arguments.names or golden_models.names():
        folder = golden_models.path(name)
        value = measured(folder, arguments.preset)
        expect(folder, arguments.preset, value)
        print(f"{name}: {value} dB")


if __name__ == "__main__":
    main()
