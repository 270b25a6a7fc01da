"""Two large graphs that differ in planted edits: what ``qir diff`` finds and how long it takes, beside others.

    python -m tools.bench.diff [--sizes 8000 64000 100000] [--edits 100] [--onnxdiff PROGRAM] [--limit 120] [--plain]

The graph is a random DAG of elementwise operators with weights; a third of the edits each insert a node, replace one
and change a weight. Then all inner names are permuted and the nodes take another topological order; ``--plain`` leaves
names and order as they are, which is what a text diff can cope with. Every tool runs in a process of its own, imports
and reading the files included: seconds of the processor, and the peak of its memory. *Told* is what it says has
changed: qir's counts, lines of the text diff of the printed graphs, nodes that onnxdiff cannot match.
"""

from __future__ import annotations

import argparse
import difflib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.diff.edits import rename_inside, reorder

ROOT = Path(__file__).resolve().parents[2]
UNARY = ("Relu", "Sigmoid", "Tanh", "Neg", "Exp", "Abs")

_QIR = """
import gc, sys
from qir.diff import diff
summary = diff(sys.argv[1], sys.argv[2]).summary
print(" ".join(f"{n} {c}" for n, c in summary.to_json().items() if c and n.startswith(("nodes", "weights"))))
gc.freeze()  # the process ends, nothing needs to be collected
"""
_TEXT = """
import sys
from qir.frontend import load
from qir.ir.printer import print_model
for source, target in zip(sys.argv[1:3], sys.argv[3:5]):
    open(target, "w").write(print_model(load(source)))
"""


@dataclass(frozen=True)
class Row:
    """How one tool did; ``told`` in its own words."""

    tool: str
    seconds: float | None
    megabytes: float
    told: str


def make_graph(size: int, rng: random.Random) -> ModelProto:
    """A DAG of that many nodes; every node reads what was made shortly before."""
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []
    values = ["x"]
    while len(nodes) < size:
        made, kind, source = f"t{len(nodes)}", rng.randrange(3), rng.choice(values[-4:])
        if kind == 0:
            weight = f"w{len(nodes)}"
            weights.append(numpy_helper.from_array(np.full(4, len(nodes), np.float32), weight))
            inputs, op = [source, weight], "Mul"
        elif kind == 1:
            inputs, op = [source, rng.choice(values[-50:])], "Add"
        else:
            inputs, op = [source], rng.choice(UNARY)
        nodes.append(helper.make_node(op, inputs, [made], f"n{len(nodes)}"))
        values.append(made)
    read = {name for node in nodes for name in node.input}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in values if name not in read]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    graph = helper.make_graph(nodes, "bench", [x], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def plant(model: ModelProto, edits: int, rng: random.Random) -> Counter[str]:
    """Edit in place; returns the counts that a diff should show."""
    graph = model.graph
    nodes = list(graph.node)
    made = {node.output[0]: index for index, node in enumerate(nodes)}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    inserted: dict[int, list[NodeProto]] = {}
    planted: Counter[str] = Counter()
    for index in rng.sample(range(len(nodes)), len(nodes)):
        if planted.total() == edits:
            break
        node, want = nodes[index], ("nodes_added", "nodes_changed", "weights_changed")[planted.total() % 3]
        if want == "nodes_added" and node.input[0] in made:
            name = f"inserted{index}"
            inserted.setdefault(made[node.input[0]], []).append(helper.make_node("Sqrt", [node.input[0]], [name], name))
            node.input[0] = name
        elif want == "nodes_changed" and node.op_type in UNARY:
            node.op_type = "Cos"
        elif want == "weights_changed" and node.op_type == "Mul":
            tensor = weights[node.input[1]]
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.5), tensor.name))
        else:
            continue
        planted[want] += 1
    del graph.node[:]
    for index, node in enumerate(nodes):
        graph.node.extend([node, *inserted.get(index, ())])
    return planted


def run(tool: str, command: list[str], limit: float) -> tuple[Row, str]:
    """Run a command to its end or its limit; returns the row without ``told``, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    measured = [sys.executable, "-c", _MEASURE, *command]
    process = subprocess.Popen(
        measured, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        printed, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the tool is a child of the process that measures it
        process.communicate()
        return Row(tool, None, 0, f"stopped after {limit:.0f} s"), ""
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = re.search(r"peak (\d+)\s*$", errors)
    return Row(tool, seconds, int(peak[1]) / 1024 if peak else 0, ""), printed


# Peak memory of one command: the children of a small process are that command alone.
_MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def bench(size: int, edits: int, onnxdiff: str | None, limit: float, plain: bool) -> list[Row]:
    rng = random.Random(size)
    old = make_graph(size, rng)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("old.onnx", "new.onnx", "old.txt", "new.txt")]
        onnx.save(old, paths[0])
        planted = plant(old, edits, rng)
        if not plain:
            rename_inside(old, rng)
            reorder(old, rng)
        onnx.save(old, paths[1])
        said = " ".join(f"{name} {count}" for name, count in sorted(planted.items()))
        print(f"\n{size} nodes, planted: {said}")
        row, told = run("qir", [sys.executable, "-c", _QIR, *paths[:2]], limit)
        exact = Counter(dict(re.findall(r"(\w+) (\d+)", told))) == Counter({k: str(v) for k, v in planted.items()})
        rows = [Row(row.tool, row.seconds, row.megabytes, (told.strip() or row.told) + (" (exact)" if exact else ""))]
        subprocess.run([sys.executable, "-c", _TEXT, *paths], cwd=ROOT, check=True)
        rows.append(_text_diff(paths[2:], limit))
        if onnxdiff is not None:
            row, told = run("onnxdiff", [onnxdiff, *paths[:2]], limit)
            lines = [line.strip() for line in told.splitlines() if re.search(r"match|score|differ", line, re.I)]
            rows.append(Row(row.tool, row.seconds, row.megabytes, row.told or "; ".join(lines)[:100] or "nothing"))
    return rows


def _text_diff(paths: list[str], limit: float) -> Row:
    if shutil.which("diff") is None:
        lines = list(difflib.unified_diff(*(Path(path).read_text().splitlines() for path in paths), n=0))
        return Row("text diff", None, 0, f"{len(lines)} lines differ")
    row, told = run("text diff", ["diff", *paths], limit)
    lines = [line for line in told.splitlines() if line[:1] in "<>"]
    return Row(row.tool, row.seconds, row.megabytes, row.told or f"{len(lines)} lines differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8000, 64000, 100000])
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--onnxdiff", default=shutil.which("onnxdiff"), help="the program of the package onnx-diff")
    parser.add_argument("--limit", type=float, default=120, help="seconds that a tool may take")
    parser.add_argument("--plain", action="store_true", help="names and order stay")
    arguments = parser.parse_args()
    seconds: dict[int, float] = {}
    for size in arguments.sizes:
        for row in bench(size, arguments.edits, arguments.onnxdiff, arguments.limit, arguments.plain):
            shown = "     -" if row.seconds is None else f"{row.seconds:6.1f}"
            print(f"  {row.tool:10} {shown} s {row.megabytes:6.0f} MB  {row.told}")
            if row.tool == "qir" and row.seconds is not None:
                seconds[size] = row.seconds
    if len(seconds) > 1:
        small, *_, large = sorted(seconds)
        growth, times = seconds[large] / seconds[small], large / small
        print(f"\nqir: t({large})/t({small}) = {growth:.1f} for {times:.1f} times the nodes")


if __name__ == "__main__":
    main()
