"""Load, optimize and save a graph of many nodes: qir beside the other optimizers, in one run.

    python tools/bench/load_save.py [--nodes 8000] [--shapes chain wide diamond] [--peer-python PYTHON]
                                    [--limit 120] [--rounds 3] [--plain]

Every side loads the same file, does what it is for, and writes a file, in a process of its own; imports are not timed,
qir's verifier is off. Seconds are of the processor (the least of the rounds), memory is how far the process grew. A
peer that has not ended after ``--limit`` seconds is stopped and shown as "> limit"; one that is not installed in
PYTHON is named and left out.

*Same work* means that no more nodes are left than qir leaves (and one in a hundred). Beside a peer that fuses only
BatchNormalization into convolutions stands qir doing that, beside one that fuses nothing qir without fusion.
``--plain`` loads and saves only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from tools.bench.graphs import SHAPES, make_graph

ROOT = Path(__file__).resolve().parents[2]

_QIR = """
import qir
from qir.pipeline import Pipeline
from qir.codegen import save
from qir.frontend import load
import onnx, onnxruntime, qir.ops.shape_inference, qir.runtime.session
steps = Pipeline.parse({text!r})
def work():
    model = load(source)
    steps.run(model, in_place=True, verify=False)
    save(model, target)
"""
_ONNXSCRIPT = """
import onnx_ir, onnxscript.optimizer, onnxscript.rewriter
from onnxscript.rewriter.rules import common
def work():
    model = onnx_ir.load(source)
    onnxscript.optimizer.optimize_ir(model)
    onnxscript.rewriter.rewrite(model, [common.fuse_batchnorm_into_conv_rule])
    onnx_ir.save(model, target)
"""
_ONNX_IR = """
import onnx_ir
from onnx_ir.passes import Sequential
from onnx_ir.passes import common
def work():
    model = onnx_ir.load(source)
    model = Sequential(
        common.IdentityEliminationPass(), common.CommonSubexpressionEliminationPass(),
        common.DeduplicateInitializersPass(), common.RemoveUnusedNodesPass(),
    )(model).model
    onnx_ir.save(model, target)
"""
_GRAPHSURGEON = """
import onnx, onnx_graphsurgeon as gs
def work():
    graph = gs.import_onnx(onnx.load(source))
    graph.fold_constants().cleanup().toposort()
    onnx.save(gs.export_onnx(graph), target)
"""
_ONNXOPTIMIZER = """
import onnx, onnxoptimizer
def work():
    onnx.save(onnxoptimizer.optimize(onnx.load(source)), target)
"""
_ONNXSIM = """
import onnx, onnxsim
def work():
    onnx.save(onnxsim.simplify(onnx.load(source))[0], target)
"""
_ONNXSLIM = """
import onnx, onnxslim
def work():
    onnx.save(onnxslim.slim(onnx.load(source)), target)
"""
_PLAIN = """
from {module} import load
from {saver} import save
def work():
    save(load(source), target)
"""
FULL = "qir optimize"
NORMS = "qir conv-bn"
CLEAN = "qir clean-up"
SIDES = {
    FULL: _QIR.format(text="optimize"),
    NORMS: _QIR.format(text="canonicalize,fold-constants,fuse{only=conv-bn},canonicalize"),
    CLEAN: _QIR.format(text="canonicalize,fold-constants,canonicalize"),
    "onnx-ir passes": _ONNX_IR,
    "onnxscript.optimizer": _ONNXSCRIPT,
    "graphsurgeon": _GRAPHSURGEON,
    "onnxoptimizer": _ONNXOPTIMIZER,
    "onnxsim": _ONNXSIM,
    "onnxslim": _ONNXSLIM,
}
PLAIN = {
    "qir": _PLAIN.format(module="qir.frontend", saver="qir.codegen"),
    "onnx": _PLAIN.format(module="onnx", saver="onnx"),
    "onnx-ir": _PLAIN.format(module="onnx_ir", saver="onnx_ir"),
}
_CHILD = """
import json, sys, time
source, target = sys.argv[1:3]
{code}
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
before, start = peak(), time.process_time()
work()
print("\\n" + json.dumps([time.process_time() - start, peak() - before]))
"""


@dataclass
class Row:
    """What one side needed, the least over the rounds."""

    by: str
    seconds: float = 0.0
    megabytes: float = 0.0
    nodes: int = 0
    error: str = ""
    beyond: float = 0.0
    """The limit that it ran into, 0 where it did not."""

    def same_work(self, ours: Row) -> bool:
        return not self.error and self.nodes <= ours.nodes * 1.01

    def markdown(self, ours: Mapping[str, Row]) -> str:
        if self.error:
            return f"| {self.by} | {self.error} | | | | |"
        full = ours[FULL]
        bar = next((own for own in ours.values() if self.same_work(own)), None)
        if self.beyond:
            ratio = f"> {self.beyond / full.seconds:.0f}"
            return f"| {self.by} | > {self.beyond:.0f} | | | {ratio} | |"
        same = "" if bar is None else f"{self.seconds / bar.seconds:.1f} ({bar.by})"
        return (
            f"| {self.by} | {self.seconds:.2f} | {self.megabytes:.0f} | {self.nodes:,} "
            f"| {self.seconds / full.seconds:.1f} | {same if self.by not in ours else ''} |"
        )


HEADER = "seconds | MB | nodes left | over qir optimize | same work: over |\n|---|---:|---:|---:|---:|---:|"


def measure(by: str, code: str, python: str, source: Path, target: Path, limit: float, rounds: int) -> Row:
    """Runs one side ``rounds`` times, a slow one once."""
    row = Row(by)
    for _ in range(rounds):
        target.unlink(missing_ok=True)
        argv = [python, "-c", _CHILD.format(code=code), str(source), str(target)]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=limit, cwd=ROOT)
        except subprocess.TimeoutExpired:
            row.beyond = limit
            return row
        if done.returncode or not target.is_file():
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            row.error = "not installed" if "No module named" in last else f"fails: {last[:80]}".replace("|", "/")
            return row
        seconds, megabytes = json.loads(done.stdout.strip().splitlines()[-1])
        row.seconds = min(row.seconds or seconds, seconds)
        row.megabytes = max(row.megabytes, megabytes)
        if seconds > limit / 6:
            break
    row.nodes = len(onnx.load(target, load_external_data=False).graph.node)
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=8000)
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=list(SHAPES))
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has the peers")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for one side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="these sides only (qir always)")
    parser.add_argument("--plain", action="store_true", help="load and save, nothing between")
    options = parser.parse_args(arguments)
    sides = PLAIN if options.plain else SIDES
    with tempfile.TemporaryDirectory() as name:
        for shape in options.shapes:
            source, target = Path(name) / f"{shape}.onnx", Path(name) / "out.onnx"
            onnx.save(make_graph(shape, options.nodes), source)
            rows: dict[str, Row] = {}
            print(f"\n| {shape}, {options.nodes:,} nodes | {HEADER}", flush=True)
            for by, code in sides.items():
                own = by.startswith("qir")
                if options.only and not own and by not in options.only:
                    continue
                python = sys.executable if own else options.peer_python
                row = measure(by, code, python, source, target, options.limit, options.rounds)
                if own and row.error:
                    raise SystemExit(f"{by}: {row.error}")
                if own:
                    rows[FULL if options.plain else by] = row
                print(row.markdown(rows), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
