"""`python -m tools.docs.advice NAME [--rounds 3]`: follow the advice of `qir compare` on a model of ../shared/zoo.

The model is quantized by the plainest recipe, then round after round with what `compare` printed, until the drop
of its task metric is tolerable; after the last round also where the 95 % interval of the paired drop reaches zero.
Judged on all samples that have labels and were not calibrated on. Prints the commands with what matters of their
output, as docs/debug-accuracy.md shows it.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from contextlib import chdir, redirect_stdout
from pathlib import Path

import numpy as np

from qir.cli import main as qir
from qir.runtime.session import OrtRunner
from tools.bench.int8 import CALIBRATION_SAMPLES, SHARED, load_zoo, stack
from tools.bench.zoo_scores import ZooScores

PLAIN = (
    "widen-float16,canonicalize,convert-opset{to=13},fold-constants,fuse,canonicalize,"
    "quantize-static{activation=u8 weight=s8 results=true},emit-qdq"
)
TOLERABLE_NATS, TOLERABLE_SHARE = 0.01, 0.005
"""A drop of a loss; of a correlation or a share of samples."""


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
    zoo = load_zoo()
    model, calibration, feeds, labels = zoo.load(name, CALIBRATION_SAMPLES)
    scores = ZooScores(zoo, name, labels)
    if scores.kind is None:
        raise SystemExit(f"{name} has no labels to judge by: name another model of {SHARED / 'zoo'}")
    metric = zoo.meta(name)["metric"].split(" of ")[0].split(" (")[0]
    names = tuple(f"{value.name}:" for value in OrtRunner(model).outputs)
    wanted = scores.of_model(model, feeds)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("model.onnx").symlink_to(model)
        np.savez("calib.npz", **stack(calibration))
        recipe: list[str] = []
        for number in range(most + 1):
            made = f"q{number}.onnx"
            command = ["quantize", "model.onnx", "--calib", "calib.npz", "--preset", PLAIN, *recipe, "-o", made]
            shown = ["qir", *('"$PLAIN"' if word == PLAIN else word for word in command)]
            run(command, " ".join(shown), ("size", "latency"))
            got = scores.of_model(made, feeds)
            drop, low, high = scores.drop(wanted, got)
            print(
                f"  {metric}: {scores.value(got):.4f}, float {scores.value(wanted):.4f} on {len(wanted)} samples; "
                f"drop {drop:.4f}, 95 % interval {low:.4f} to {high:.4f}",
                flush=True,
            )
            small = drop <= (TOLERABLE_NATS if scores.kind == "NLL" else TOLERABLE_SHARE)
            if number == most or small:
                if number:
                    command = ["compare", "model.onnx", made, "--data", "calib.npz", "--lines", "0"]
                    run(command, " ".join(["qir", *command]), names)
                print(f"  {'restored' if small or low <= 0 else 'not restored'} after {number} rounds")
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
