"""`python -m tools.kill [--kills N] [--seconds T] [--seed S] [CASE...]`: kill commands that write at random moments.

After each kill the output must be absent, or be the whole old model or the whole new one, byte for byte, data file
included; a report whole or absent; a manifest readable. Half of the kills fall into the last fifth of the run, where
files are written. Exit 0: always so. 1: not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx

ROOT = Path(__file__).resolve().parents[1]
MODEL = str(ROOT / "golden_models" / "cnn-digits" / "model.onnx")
SAMPLES = str(ROOT / "golden_models" / "cnn-digits" / "calib.npz")
LANGUAGE = ROOT / "golden_models" / "decoder-stories" / "model.onnx"


PROGRAM = (sys.executable, "-m", "qir")
STREAMING = (  # as models of more than a gigabyte are quantized
    sys.executable,
    "-c",
    "import sys; from qir.api import streaming; from qir.cli import main; streaming.streams.__defaults__ = (0,); "
    "sys.exit(main())",
)


class Case:
    """A command that writes ``out.onnx``; ``other`` writes another model to the same place before."""

    def __init__(
        self, name: str, command: Sequence[str], other: Sequence[str], folder: Path, program: Sequence[str] = PROGRAM
    ) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        self.out = self.folder / "out.onnx"
        self.page = self.folder / "page.html"
        told = [word.replace("{folder}", str(self.folder)) for word in command]
        self.command = [*program, *told, "-o", str(self.out)]
        self.before = [*program, *other, "-o", str(self.out)]
        began = time.monotonic()
        _run(self.command)
        self.seconds = time.monotonic() - began
        self.new = self.state()
        _run(self.before)
        self.old = self.state()
        assert self.old != self.new, f"{name}: the two models must differ for the check to mean something"

    def state(self) -> str | None:
        """A digest of the model with its weights; None where there is no file. Raises where something is not whole."""
        manifest = self.out.with_name("out.onnx.qir.json")
        if manifest.exists():
            json.loads(manifest.read_text())
        if self.page.exists() and not self.page.read_text().rstrip().endswith("</html>"):
            raise ValueError("half a report")
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
            began = time.monotonic()
            _run(self.before)
            self.seconds = time.monotonic() - began  # as busy as the machine is now
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


def _quantize(folder: Path) -> Case:
    command = ["quantize", MODEL, "--calib", SAMPLES, "--effort", "fast"]
    return Case("quantize", command, [*command, "--keep-float", "Gemm"], folder)


def _optimize(folder: Path) -> Case:
    command = ["opt", MODEL, "--external-data", "--passes"]
    return Case("opt-external-data", [*command, "optimize"], [*command, "canonicalize"], folder)


def _report(folder: Path) -> Case:
    command = ["quantize", MODEL, "--calib", SAMPLES, "--effort", "fast"]
    return Case("report", [*command, "--report", "{folder}/page.html"], [*command, "--keep-float", "Gemm"], folder)


def _streaming(folder: Path) -> Case:
    """A language model whose weights go tensor by tensor from data file to data file."""
    source = str(folder / "weights.onnx")
    _run([*PROGRAM, "opt", str(LANGUAGE), "--external-data", "--passes", "canonicalize", "-o", source])
    command = ["quantize", source, "--preset"]
    return Case("int4-streaming", [*command, "int4-weights"], [*command, "int8-weights"], folder, STREAMING)


def _replay(folder: Path) -> Case:
    recorded = folder / "recorded.onnx"
    command = ["quantize", MODEL, "--calib", SAMPLES, "--effort", "fast"]
    _run([*PROGRAM, *command, "-o", str(recorded)])
    return Case("replay", ["quantize", "--replay", f"{recorded}.qir.json"], [*command, "--keep-float", "Gemm"], folder)


CASES: dict[str, Callable[[Path], Case]] = {
    "quantize": _quantize,
    "opt-external-data": _optimize,
    "report": _report,
    "int4-streaming": _streaming,
    "replay": _replay,
}


def kill(kills: int, seed: int, seconds: float = float("inf"), names: Sequence[str] = ()) -> Counter[str]:
    """What was found how often, ``CASE STATE`` each; after so many seconds no other kill is begun."""
    end = time.monotonic() + seconds
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="qir-kill-") as folder:
        made = [CASES[name](Path(folder)) for name in names or CASES]
        for number in range(kills):
            if time.monotonic() > end:
                break
            case = made[number % len(made)]
            found[f"{case.name} {case.kill_once(rng, fresh=rng.random() < 0.3)}"] += 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.kill", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("names", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all where none is named")
    options = parser.parse_args()
    if unknown := set(options.names) - set(CASES):
        parser.error(f"unknown case {min(unknown)!r}: there are {', '.join(CASES)}")
    found = kill(options.kills, options.seed, options.seconds, options.names)
    for what, count in sorted(found.items()):
        print(f"{count:5} {what}")
    return 1 if any("broken" in what for what in found) else 0


if __name__ == "__main__":
    sys.exit(main())
