"""`python tools/kill.py [--kills N] [--seconds T] [--seed S]`: kill `qir quantize` and `qir opt` at random moments.

After each kill the output must be absent, or be the whole old model or the whole new one, byte for byte, data file
included. Half of the kills fall into the last fifth of the run, where files are written. Exit 0: always so. 1: not.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "golden_models" / "cnn-digits"


class Case:
    """A command that writes OUT; ``others`` writes another model to the same place before."""

    def __init__(self, name: str, command: Sequence[str], other: Sequence[str], folder: Path) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        self.out = self.folder / "out.onnx"
        self.command = [sys.executable, "-m", "qir", *command, "-o", str(self.out)]
        self.before = [sys.executable, "-m", "qir", *other, "-o", str(self.out)]
        began = time.monotonic()
        _run(self.command)
        self.seconds = time.monotonic() - began
        self.new = self.state()
        _run(self.before)
        self.old = self.state()
        assert self.old != self.new, f"{name}: the two models must differ for the check to mean something"

    def state(self) -> str | None:
        """A digest of the model with its weights; None where there is no file. Raises where it is no whole model."""
        if not self.out.exists():
            return None
        model = onnx.load(self.out)
        onnx.checker.check_model(model)
        return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()

    def kill_once(self, rng: random.Random, fresh: bool) -> str:
        """One kill; what was found: ``absent``, ``old``, ``new``, or ``broken: why``."""
        for path in self.folder.iterdir():
            path.unlink()
        if not fresh:
            _run(self.before)
        at = rng.uniform(0.8, 1.1) if rng.random() < 0.5 else rng.uniform(0, 1)
        process = subprocess.Popen(self.command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(at * self.seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        try:
            found = self.state()
        except Exception as error:
            return f"broken: {error}"
        names = {None: "absent", self.old: "old", self.new: "new"}
        what = names.get(found, "broken: neither the old model nor the new one")
        return "broken: the old model is gone" if what == "absent" and not fresh else what


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def cases(folder: Path) -> Iterator[Case]:
    model, samples = str(GOLDEN / "model.onnx"), str(GOLDEN / "calib.npz")
    quantize = ["quantize", model, "--calib", samples, "--effort", "fast"]
    yield Case("quantize", quantize, [*quantize, "--keep-float", "Gemm"], folder)
    optimize = ["opt", model, "--external-data", "--passes"]
    yield Case("opt-external-data", [*optimize, "optimize"], [*optimize, "canonicalize"], folder)


def kill(kills: int, seed: int, seconds: float = float("inf")) -> Counter[str]:
    """What was found how often, ``CASE STATE`` each; after so many seconds no other kill is begun."""
    end = time.monotonic() + seconds
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="qir-kill-") as folder:
        made = list(cases(Path(folder)))
        for number in range(kills):
            if time.monotonic() > end:
                break
            case = made[number % len(made)]
            found[f"{case.name} {case.kill_once(rng, fresh=rng.random() < 0.3)}"] += 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tools/kill.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    options = parser.parse_args()
    found = kill(options.kills, options.seed, options.seconds)
    for what, count in sorted(found.items()):
        print(f"{count:5} {what}")
    return 1 if any("broken" in what for what in found) else 0


if __name__ == "__main__":
    sys.exit(main())
