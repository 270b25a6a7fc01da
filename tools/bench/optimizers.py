"""Node counts, speed and outputs of optimized models: `qir opt --passes optimize` beside other optimizers, in one run.

    python tools/bench/optimizers.py [--models NAME|FILE...] [--peer-python PYTHON] [--no-timing] [--missing]

The models are those of ../shared/zoo (where it is there) and the golden models; a FILE takes `calib.npz` beside it, or
random numbers, as inputs. Nodes are those of the standard domain (contrib nodes are counted apart) without Constant,
in the main graph, in bodies and in functions. Speed is original over optimized in onnxruntime with all its
optimisations, medians of interleaved runs on one thread. The difference is the largest over all outputs, over the
largest magnitude of that output. Each optimizer runs with its defaults in a process of its own; one that is not
installed in PYTHON (default: this one) is skipped. `--missing` names the operators of which a peer leaves fewer.
Exit 1 where qir leaves more nodes than the best peer at the same opset, or outputs differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qir.calibration.data import open_data
from qir.runtime.latency import LatencyComparison, compare_latency
from qir.runtime.optimized import walk
from qir.runtime.session import OrtRunner

ROOT = Path(__file__).resolve().parents[2]
ZOO = ROOT.parent / "shared" / "zoo"
TIMEOUT = 600  # seconds, for one optimizer on one model
TOLERANCE = 1e-3  # difference over magnitude; float re-association in deep nets stays well below
FEEDS = 4
SECONDS = 1.0  # of interleaved timing, for one optimized model

_PEERS = {
    "onnxsim": "import onnx, onnxsim; onnx.save(onnxsim.simplify(onnx.load(source))[0], target)",
    "onnxslim": "import onnx, onnxslim; onnx.save(onnxslim.slim(onnx.load(source)), target)",
    "onnxoptimizer": "import onnx, onnxoptimizer; onnx.save(onnxoptimizer.optimize(onnx.load(source)), target)",
    "onnxscript": "import onnx, onnxscript.optimizer as o; onnx.save(o.optimize(onnx.load(source)), target)",
}
_QIR = "from qir.cli import main; sys.exit(main(['opt', source, '--passes', 'optimize', '-o', target]))"
_CHILD = "import sys; source, target = sys.argv[1:3]; {}"


@dataclass
class Result:
    """What one optimizer made of one model; `error` says why there is nothing."""

    by: str
    error: str | None = None
    opset: int = 0
    ops: dict[str, int] = field(default_factory=dict)
    difference: float | None = None
    latency: LatencyComparison | None = None

    @property
    def nodes(self) -> int:
        """Of the standard domain."""
        return sum(count for op, count in self.ops.items() if "::" not in op)

    @property
    def contrib(self) -> int:
        """Of other domains."""
        return sum(self.ops.values()) - self.nodes

    def cell(self, opset: int) -> str:
        """For the table; ``opset`` is the original's."""
        if self.error is not None:
            return self.error
        parts = [str(self.nodes) + (f" + {self.contrib} contrib" if self.contrib else "")]
        if self.opset != opset:
            parts.append(f"opset {self.opset}")
        if self.latency is not None:
            parts.append(f"{self.latency.ratio:.2f}x")
        if self.difference is not None and self.difference > 0:
            parts.append(f"{self.difference:.0e}")
        return ", ".join(parts)


def op_counts(model: onnx.ModelProto) -> dict[str, int]:
    """Nodes by operator, bodies and functions included, Constant left out; ``domain::Op`` outside of the standard."""
    counts: Counter[str] = Counter()
    for graph in (model.graph, *model.functions):
        for _, node in walk(graph):
            standard = node.domain in ("", "ai.onnx")
            if not (standard and node.op_type == "Constant"):
                counts[node.op_type if standard else f"{node.domain}::{node.op_type}"] += 1
    return dict(counts)


def opset_of(model: onnx.ModelProto) -> int:
    return next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)


def run_optimizer(code: str, python: str, source: Path, target: Path) -> str | None:
    """None, or the last line of its complaint."""
    target.unlink(missing_ok=True)
    argv = [python, "-P", "-c", _CHILD.format(code), str(source), str(target)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"not done in {TIMEOUT} s"
    if done.returncode == 0 and target.is_file():
        return None
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return "not installed" if "No module named" in lines[-1] else f"fails: {lines[-1][:80]}".replace("|", "/")


def outputs(model: Path, feeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    runner = OrtRunner(str(model))
    names = {spec.name for spec in runner.inputs}
    return [runner.run({k: v for k, v in feed.items() if k in names}) for feed in feeds]


def difference(expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> float:
    """The largest difference over all samples and outputs, over the output's largest magnitude."""
    worst = 0.0
    for want, got in zip(expected, found, strict=True):
        for name, value in want.items():
            a, b = np.asarray(value), np.asarray(got[name])
            if a.shape != b.shape:
                return float("inf")
            if a.dtype.kind not in "fiub" or not a.size:
                continue
            a, b = a.astype(np.float64), b.astype(np.float64)
            worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12)))
    return worst


def random_feed(path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feed: dict[str, np.ndarray] = {}
    for spec in OrtRunner(str(path)).inputs:
        shape = [size if isinstance(size, int) and size > 0 else 2 for size in spec.shape or ()]
        dtype = np.dtype(spec.dtype)
        feed[spec.name] = (rng.standard_normal(shape) if dtype.kind == "f" else np.ones(shape)).astype(dtype)
    return feed


def feeds_of(path: Path) -> list[dict[str, Any]]:
    """A few inputs: the zoo's own, those of `calib.npz` beside the model, else random ones."""
    if path.parent.parent == ZOO:
        from tools.bench.int8 import load_zoo

        return list(load_zoo().load(path.parent.name, FEEDS, FEEDS)[1])
    data = path.parent / "calib.npz"
    if data.is_file():
        return list(open_data(data, OrtRunner(str(path)).inputs).take(FEEDS))
    return [random_feed(path)]


def measure(path: Path, folder: Path, python: str, timing: bool) -> tuple[Result, list[Result]]:
    """The original, and what each optimizer makes of it."""
    model = onnx.load(path, load_external_data=False)
    original = Result("original", opset=opset_of(model), ops=op_counts(model))
    feeds = feeds_of(path)
    expected = outputs(path, feeds)
    results = []
    for by, code in {"qir": _QIR, **_PEERS}.items():
        out = folder / f"{path.parent.name}.{by}.onnx"
        result = Result(by)
        result.error = run_optimizer(code, sys.executable if by == "qir" else python, path, out)
        if result.error is None:
            made = onnx.load(out, load_external_data=False)
            result.ops, result.opset = op_counts(made), opset_of(made)
            try:
                result.difference = difference(expected, outputs(out, feeds))
                if timing:
                    result.latency = compare_latency(str(path), str(out), feeds, seconds=SECONDS)
            except Exception as error:  # a model that does not run is a result too
                result.error = f"does not run: {error}"[:80].replace("|", "/")
        results.append(result)
    return original, results


def best_peer(results: Sequence[Result], opset: int) -> Result | None:
    """The peer that leaves fewest nodes, among those that keep the opset and add no contrib nodes."""
    fit = [
        result
        for result in results
        if result.by != "qir" and result.error is None and result.opset == opset and not result.contrib
    ]
    return min(fit, key=lambda result: result.nodes, default=None)


def missing(ours: Result, results: Sequence[Result]) -> list[str]:
    """Operators of which a peer leaves fewer than qir, and those of which it leaves more."""
    lines = []
    for peer in results:
        if peer.by == "qir" or peer.error is not None:
            continue
        delta = Counter(ours.ops)
        delta.subtract(peer.ops)
        changes = [f"{count:+d} {op}" for op, count in sorted(delta.items()) if count]
        if changes:
            lines.append(f"  qir against {peer.by}: {', '.join(changes)}")
    return lines


def model_paths(wanted: Sequence[str]) -> list[Path]:
    known = {path.parent.name: path for base in (ZOO, ROOT / "golden_models") for path in base.glob("*/model.onnx")}
    if not wanted:
        return [known[name] for name in sorted(known, key=lambda name: (known[name].parent.parent != ZOO, name))]
    return [known[name] if name in known else Path(name).resolve() for name in wanted]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME|FILE", help="all by default")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON", help="where the peers are installed")
    parser.add_argument("--no-timing", action="store_true", help="count nodes and compare outputs only")
    parser.add_argument("--missing", action="store_true", help="show by operator where counts differ")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything here")
    parser.add_argument("--folder", type=Path, help="keep the optimized models here")
    options = parser.parse_args()
    table: list[dict[str, Any]] = []
    failed = False
    columns = ["qir", *_PEERS]
    print(f"| model | opset | nodes | {' | '.join(columns)} |\n|" + "---|" * (3 + len(columns)), flush=True)
    with tempfile.TemporaryDirectory(prefix="qir-bench-") as temporary:
        folder: Path = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for path in model_paths(options.models):
            original, results = measure(path, folder, options.peer_python, not options.no_timing)
            ours, best = results[0], best_peer(results, original.opset)
            cells = [result.cell(original.opset) for result in results]
            more = ours.error is None and best is not None and ours.nodes > best.nodes
            wrong = ours.error is not None or (ours.difference or 0) > TOLERANCE
            failed |= more or wrong
            name = f"{path.parent.name} **{'more' if more else 'wrong'}**" if more or wrong else path.parent.name
            print(f"| {name} | {original.opset} | {original.nodes} | {' | '.join(cells)} |", flush=True)
            if options.missing:
                print(*missing(ours, results), sep="\n", flush=True)
            table.append({"model": path.parent.name, "results": [asdict(item) for item in (original, *results)]})
    if options.json is not None:
        options.json.write_text(json.dumps(table, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
