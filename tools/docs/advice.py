"""`python -m tools.docs.advice NAME [--rounds 3]`: follow the advice of `qir compare` on a model of ../shared/zoo.

The model is quantized by the plainest recipe, then round after round with what `compare` printed, and judged by its
task metric on all samples that have labels. Prints the commands with what matters of their output, as
docs/debug-accuracy.md shows it.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import sys
import tempfile
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from qir.cli import main as qir

SHARED = Path(__file__).resolve().parents[3] / "shared"
PLAIN = (
    "widen-float16,canonicalize,convert-opset{to=13},fold-constants,fuse,canonicalize,"
    "quantize-static{activation=u8 weight=s8 results=true},emit-qdq"
)
TOLERANCES = {"mobilenetv2-cifar10head": 0.006, "minilm-l6-sts": 0.005, "vit-cifar10": 0.005}
CALIBRATION = 64


def run(command: list[str], shown: str, keep: tuple[str, ...] = ()) -> None:
    """Run one command, print it as a reader would type it, and the lines of its output that start with ``keep``."""
    said = io.StringIO()
    with redirect_stdout(said):
        code = qir(command)
    if code:
        raise SystemExit(f"{shown}: exit code {code}")
    print(f"$ {shown}")
    for line in said.getvalue().splitlines():
        if not keep or line.strip().startswith(keep):
            print(line)


def rounds(name: str, most: int, samples: int) -> None:
    spec = importlib.util.spec_from_file_location("zoo", SHARED / "zoo" / "load.py")
    assert spec is not None and spec.loader is not None
    zoo: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)
    model, calibration, _, _ = zoo.load(name, CALIBRATION, 1)
    wanted = zoo.evaluate(name)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("model.onnx").symlink_to(model)
        np.savez("calib.npz", **{key: np.stack([feed[key] for feed in calibration]) for key in calibration[0]})
        recipe: list[str] = []
        for number in range(most + 1):
            made = f"q{number}.onnx"
            command = ["quantize", "model.onnx", "--calib", "calib.npz", "--preset", PLAIN, *recipe, "-o", made]
            shown = ["qir", *('"$PLAIN"' if word == PLAIN else word for word in command)]
            run(command, " ".join(shown), ("size", "latency"))
            reached = zoo.evaluate(name, made)
            print(f"  {zoo.meta(name)['metric'].split(' of ')[0]}: {reached:.4f}, float {wanted:.4f}", flush=True)
            if number == most or reached >= wanted - TOLERANCES.get(name, 0.003):
                return
            written = f"r{number + 1}.toml"
            command = ["compare", "model.onnx", made, "--data", "calib.npz", *recipe, "--write-recipe", written]
            run([*command, "--samples", str(samples)], " ".join(["qir", *command]))
            recipe = ["--recipe", written]
            sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.docs.advice", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=32)
    options = parser.parse_args()
    rounds(options.name, options.rounds, options.samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
