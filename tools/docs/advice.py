"""`python -m tools.docs.advice NAME [--rounds 3]`: follow the advice of `qir compare` on a model of ../shared/zoo.

The model is quantized by the plainest recipe, then round after round with what `compare` printed, until the drop
of its task metric is TOLERABLE; after the last round also where the 95 % interval of the paired drop reaches zero.
Judged on all samples that have labels and were not calibrated on. Prints the commands with what matters of their
output, as docs/debug-accuracy.md shows it.
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
import onnxruntime

from qir.cli import main as qir

SHARED = Path(__file__).resolve().parents[3] / "shared"
PLAIN = (
    "widen-float16,canonicalize,convert-opset{to=13},fold-constants,fuse,canonicalize,"
    "quantize-static{activation=u8 weight=s8 results=true},emit-qdq"
)
CALIBRATION = 64
RESAMPLES = 4000
TOLERABLE = {"NLL": 0.01, "spearman": 0.005, "top1": 0.005}
"""Nats, correlation, share."""


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


class Task:
    """A task metric of the zoo, with what each sample gives to it."""

    def __init__(self, zoo: Any, name: str) -> None:
        self.name = name
        meta = zoo.meta(name)
        self.metric = meta["metric"].split(" of ")[0].split(" (")[0]
        self.model, _, self._feeds, self._labels = zoo.load(name, 1)
        with np.load(SHARED / "zoo" / name / "data.npz") as data:
            self._indices = data["eval_idx"]
            wanted = ("sts_score", "targets")
            self._data = {key: data[key] for key in wanted if key in data.files}
        session = onnxruntime.InferenceSession(str(self.model), providers=["CPUExecutionProvider"])
        self.outputs = [value.name for value in session.get_outputs()]
        self._ranked = "spearman" in self.metric
        self.better = -1 if "NLL" in self.metric else 1

    def scores(self, model: str | Path) -> np.ndarray:
        """One number a sample; of a rank correlation one a pair of sentences."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        first = session.get_outputs()[0].name
        if self._ranked:
            first = "sentence_embedding"
        made = [session.run([first], feed)[0] for feed in self._feeds]
        if self._ranked:
            both = np.concatenate(made)
            return np.einsum("ij,ij->i", both[0::2], both[1::2])
        if self.metric == "top1":
            return np.array(
                [float(one.reshape(-1).argmax() == label) for one, label in zip(made, self._labels, strict=True)]
            )
        if self.better < 0:
            return np.array([self._loss(one, index) for one, index in zip(made, self._indices, strict=True)])
        raise SystemExit(f"{self.name}: no metric that is a mean over samples or a rank correlation")

    def _loss(self, logits: np.ndarray, index: int) -> float:
        targets = self._data["targets"][index]
        rows = logits.reshape(len(targets), -1).astype(np.float64)
        rows -= rows.max(-1, keepdims=True)
        lost = np.log(np.exp(rows).sum(-1)) - rows[np.arange(len(targets)), targets]
        return float(lost[20:].mean() if "skipped" in self.metric or "charrnn" in self.name else lost.mean())

    def value(self, scores: np.ndarray, chosen: np.ndarray | None = None) -> float:
        """The metric over all samples, or over the chosen ones."""
        chosen = np.arange(len(scores)) if chosen is None else chosen
        if not self._ranked:
            return float(scores[chosen].mean())
        wanted = self._data["sts_score"][self._indices[::2] // 2]
        return float(np.corrcoef(_ranks(scores[chosen]), _ranks(wanted[chosen]))[0, 1])

    def drop(self, wanted: np.ndarray, got: np.ndarray) -> tuple[float, float, float]:
        """By how much the metric is worse, with the 95 % percentile-bootstrap interval over pairs of samples."""
        rng = np.random.default_rng(0)
        drops = [
            self.better * (self.value(wanted, chosen) - self.value(got, chosen))
            for chosen in (rng.integers(0, len(wanted), len(wanted)) for _ in range(RESAMPLES))
        ]
        low, high = np.percentile(drops, [2.5, 97.5])
        return self.better * (self.value(wanted) - self.value(got)), float(low), float(high)


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1 on, ties at their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])


def rounds(name: str, most: int, samples: int) -> None:
    spec = importlib.util.spec_from_file_location("zoo", SHARED / "zoo" / "load.py")
    assert spec is not None and spec.loader is not None
    zoo: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)
    model, calibration, _, _ = zoo.load(name, CALIBRATION, 1)
    task = Task(zoo, name)
    wanted = task.scores(model)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("model.onnx").symlink_to(model)
        np.savez("calib.npz", **{key: np.stack([feed[key] for feed in calibration]) for key in calibration[0]})
        recipe: list[str] = []
        for number in range(most + 1):
            made = f"q{number}.onnx"
            command = ["quantize", "model.onnx", "--calib", "calib.npz", "--preset", PLAIN, *recipe, "-o", made]
            shown = ["qir", *('"$PLAIN"' if word == PLAIN else word for word in command)]
            run(command, " ".join(shown), ("size", "latency"))
            got = task.scores(made)
            drop, low, high = task.drop(wanted, got)
            print(
                f"  {task.metric}: {task.value(got):.4f}, float {task.value(wanted):.4f} on {len(wanted)} samples; "
                f"drop {drop:.4f}, 95 % interval {low:.4f} to {high:.4f}",
                flush=True,
            )
            small = drop <= next(bar for kind, bar in TOLERABLE.items() if kind in task.metric)
            if number == most or small:
                if number:
                    command = ["compare", "model.onnx", made, "--data", "calib.npz", "--lines", "0"]
                    run(command, " ".join(["qir", *command]), tuple(f"{name}:" for name in task.outputs))
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
