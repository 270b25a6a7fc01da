"""How every pass grows with the graph.

    python tools/bench/structural.py [--sizes 1000 8000 64000] [--shapes chain wide diamond] [--only fuse ...]

For each shape of graph and each pass that needs no data: processor seconds at each size, and the growth over the last
step, t(largest)/t(one before): with eight times the nodes, 8 is linear. A pass is run as a user's pipeline runs it,
its shape inference included, the verifier apart; beside the passes stand the steps around them (load, verify, save).
The quantizing passes run on a graph with made-up observed ranges. ``place`` is mostly the time of onnxruntime's own
optimiser, whose growth is not ours, and has its row for that reason only with ``--place``.

Each graph and pass is measured in a process of its own, so that no measurement sees another's heap.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx

from qir.codegen import save
from qir.errors import DataError, OptionError
from qir.frontend import import_model, load
from qir.ir import Interval, Model
from qir.ir.collector import collector_relaxed
from qir.ir.parser import parse_model
from qir.ir.printer import print_model
from qir.ops.shape_inference import infer
from qir.pipeline import Instrument, PassRun, Pipeline, Verdict, default_registry
from qir.pipeline.verify import verify_model
from tools.bench.graphs import SHAPES, make_graph

STYLE = {"widen-float16": "half", "convert-opset": "old", "inline-functions": "calls"}
"""Passes that have nothing to do in the plain graph, and the style that gives them work."""
OPTIONS = {"convert-opset": "convert-opset{to=17}", "quantize": "quantize{linear=static}"}
BEFORE = {
    "equalize": ("optimize", ""),
    "legalize": ("optimize", ""),
    "quantize": ("optimize,legalize", ""),
} | dict.fromkeys(("emit-qdq", "place"), ("optimize,legalize", OPTIONS["quantize"]))
"""What runs before, unmeasured, so that a pass has work: first what comes before calibration, then what after it."""
INSIDE = {"emit-dynamic": "emit-qdq"}
"""Passes that another one runs as its first step."""
NEEDS = 3
"""Exit code that says: this pass needs calibration data or options, and is not measured."""
STEPS = ("load", "infer", "verify", "print", "parse", "save")


def measured() -> list[str]:
    """The built-in passes in the order of their names. Those that need data or options say so when they are run."""
    registry = default_registry()
    names = [name for name in registry if registry.source(name) == "qir" and isinstance(registry.get(name), type)]
    return [name for name in names if name not in INSIDE]


class Clock(Instrument):
    """Processor seconds of each pass, its shape inference included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def before_pass(self, run: PassRun) -> None:
        self.start = time.process_time()

    def after_pass(self, run: PassRun) -> Verdict | None:
        self.seconds.append(time.process_time() - self.start)
        return None


def observe(model: Model) -> None:
    """What calibration would find, made up."""
    for graph in model.graphs():
        for value in graph.values():
            if value.const is None:
                value.observed = Interval(-3.0, 3.0)


def model_of(source: Path | bytes) -> Model:
    """The model of a file, or of a file's bytes, with its types."""
    model = load(source) if isinstance(source, Path) else import_model(onnx.ModelProto.FromString(source))
    infer(model)
    return model


def prepared(name: str, model: Model, clock: Instrument | None = None) -> Callable[[], object]:
    """Runs what comes before a pass, or before the preset ``optimize``; what it answers runs the pass itself."""
    exact, annotating = BEFORE.get(name, ("", ""))
    Pipeline([exact]).run(model, in_place=True, verify=False)
    observe(model)
    Pipeline([annotating]).run(model, in_place=True, verify=False)
    steps = Pipeline([OPTIONS.get(name, name)])
    return lambda: steps.run(model, in_place=True, verify=False, instruments=[] if clock is None else [clock])


def pass_seconds(name: str, path: Path) -> float:
    """One pass, or the whole preset ``optimize``, over the model in ``path``."""
    clock = Clock()
    prepared(name, model_of(path), clock)()
    return sum(clock.seconds)


def step_seconds(name: str, path: Path, folder: Path) -> float:
    if name == "load":
        return _seconds(lambda: load(path))
    model = load(path)
    if name == "infer":
        with collector_relaxed():  # as the pipeline runs it
            return _seconds(lambda: infer(model))
    infer(model)
    if name == "verify":
        return _seconds(lambda: verify_model(model))
    if name == "print":
        return _seconds(lambda: print_model(model))
    if name == "parse":
        text = print_model(model)
        return _seconds(lambda: parse_model(text))
    return _seconds(lambda: save(model, folder / "saved.onnx"))


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def rows(shape: str, sizes: Sequence[int], names: Sequence[str], folder: Path) -> Iterator[tuple[str, list[float]]]:
    """Name and seconds at each size, measured in processes of their own."""
    for name in names:
        times = []
        for size in sizes:
            path = folder / f"{shape}-{size}-{STYLE.get(name, 'float')}.onnx"
            if not path.exists():
                onnx.save(make_graph(shape, size, STYLE.get(name, "float")), path)
            command = [sys.executable, "-m", "tools.bench.structural", "--one", name, str(path)]
            out = subprocess.run(command, capture_output=True, text=True)
            if out.returncode == NEEDS:
                break
            if out.returncode:
                raise SystemExit(f"{name} on {path.name} failed:\n{out.stderr}")
            times.append(float(out.stdout.split()[-1]))
        if times:
            yield name, times


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 8000, 64000])
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=sorted(SHAPES))
    parser.add_argument("--only", nargs="+", help="these rows only")
    parser.add_argument("--place", action="store_true", help="measure place too")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "MODEL"), help="measure once and print the seconds")
    options = parser.parse_args(arguments)
    if options.one:
        name, path = options.one[0], Path(options.one[1])
        try:
            print(step_seconds(name, path, path.parent) if name in STEPS else pass_seconds(name, path))
        except (DataError, OptionError):
            return NEEDS
        return 0
    names = options.only or [*STEPS, *(name for name in measured() if name != "place" or options.place), "optimize"]
    with tempfile.TemporaryDirectory() as name:
        for shape in options.shapes:
            print(f"\n| {shape} | {' | '.join(f'{size:,}' for size in options.sizes)} | growth |")
            print(f"|---|{'---:|' * (len(options.sizes) + 1)}")
            for row, times in rows(shape, options.sizes, names, Path(name)):
                growth = f"{times[-1] / times[-2]:.1f}" if len(times) > 1 and times[-2] else ""
                print(f"| {row} | {' | '.join(f'{t:.3f}' for t in times)} | {growth} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
