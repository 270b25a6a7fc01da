"""Quantize the models of ../shared/zoo and print what came of it, beside what other quantizers reach.

    python tools/bench/int8.py [--models NAME...] [--samples 200] [--peer ort] [--extra='--effort fast'] [--json FILE]
    python tools/bench/int8.py --rss [--models NAME...]
    python tools/bench/int8.py --frontier [--models NAME...] [--svg FOLDER]
    python tools/bench/int8.py --audit [--models NAME...]
    python tools/bench/int8.py --ablation [--models NAME...]

Every model is quantized by `qir quantize` in a process of its own, on 64 samples. Accuracy is against the float model
on evaluation samples; speed is float over quantized, medians of interleaved runs on one thread; cost is the command's
time over plain float inference of the same 64 samples; drop is by how much the task metric is worse than the float
model's over all evaluation samples, with the paired 95 % interval. `--peer ort` runs onnxruntime's quantizer by
../shared/bench on the same files and times its models against qir's as well. Rows of ../shared/zoo/peers.json that are
ahead in both accuracy and speed are listed below the table; they come from another machine, so their speeds are a hint
only.
Instead of that table `--rss` prints the peak memory of the command for 16 and for 256 samples, `--frontier` what
`--effort` and `--min-sqnr` reach of accuracy and speed, plotted with the peers, `--audit` what the runtime left in
float of each model and why, `--ablation` what single passes give. Exit 1 when qir fails on a model, or something in
float has no reason.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qir.runtime.latency import LatencyComparison, compare_latency
from qir.runtime.optimized import optimized_model
from qir.runtime.session import OrtRunner
from qir.validation.metrics import compare, finite_db

SHARED = Path(__file__).resolve().parents[3] / "shared"
CALIBRATION_SAMPLES = 64
ORT_PRESETS = ("minmax_up", "dynamic")
RSS_MODELS = ["mobilenetv2-cifar10head", "minilm-l6-sts"]
RSS_SAMPLES = (16, 256)
RSS_MARGIN = 0.10
FRONTIER_MODELS = ["minilm-l6-sts", "mobilenetv2-cifar10head", "silero-vad", "stories260k-llama"]
ABLATION_SAMPLES = (48, 50)
EFFORTS = ("fast", "balanced", "best")
SEEN_DB = 70.0
"""From here on nothing was quantized."""
SQNR_MARGIN_DB = 0.2
SPEED_MARGIN = 1.05
TIMEOUT = 1800  # seconds, for one quantizer on one model

# -P: the qir that this program imports, not one in the working folder.
_QIR = [sys.executable, "-P", "-c", "import sys; from qir.cli import main; sys.exit(main())"]
# A child starts with its parent's peak as its own (Linux folds it in at exec), so a small process stands between.
_LAUNCHER = """
import json, os, signal, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL)
signal.signal(signal.SIGALRM, lambda *_: child.kill())
signal.alarm(int(sys.argv[1]))
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps([time.perf_counter() - start, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)]))
"""
_INTEGER_OPS = ("QLinear", "Integer", "QGemm", "QAttention", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "NBits")

Feeds = Sequence[Mapping[str, np.ndarray]]


@dataclass
class Row:
    """What one quantizer made of one model; dB and ratios to float, None where `error` says why there is nothing."""

    model: str
    by: str
    error: str | None = None
    seconds: float | None = None
    cost: float | None = None
    rss_mb: float | None = None
    sqnr_db: float | None = None
    sqnr_min_db: float | None = None
    agreement: float | None = None
    task_float: float | None = None
    task: float | None = None
    drop: tuple[float, float, float] | None = None
    """By how much the task metric is worse over all evaluation samples, and the ends of the paired 95 % interval."""
    latency: LatencyComparison | None = None
    beside_qir: LatencyComparison | None = None
    size_ratio: float | None = None
    integer_ops: dict[str, int] = field(default_factory=dict)

    def markdown(self) -> str:
        if self.error is not None:
            return f"| {self.model} | {self.by} | **fails**: {self.error.replace('|', '/')} " + "| " * 11 + "|"
        accuracy = [number(self.sqnr_db, ".1f"), number(self.sqnr_min_db, ".1f"), number(self.agreement, ".3f")]
        task = f"{number(self.task, '.4f')} ({number(self.task_float, '.4f')})"
        drop = "–" if self.drop is None else f"{self.drop[0]:.4f} [{self.drop[1]:.4f}, {self.drop[2]:.4f}]"
        size = [number(self.size_ratio, ".2f"), str(sum(self.integer_ops.values()))]
        cost = [number(self.seconds, ".1f"), number(self.cost, ".1f", "x"), number(self.rss_mb, ".0f")]
        cells = [self.model, self.by, *accuracy, task, drop, ratio(self.latency), ratio(self.beside_qir), *size, *cost]
        return f"| {' | '.join(cells)} |"


HEADER = (
    "| model | by | SQNR dB | min dB | agreement | task (float) | drop [95 %] | speed [95 %] | over qir | size "
    "| integer ops | seconds | cost | RSS MB |\n|" + "---|" * 14
)


def number(value: float | None, form: str, unit: str = "") -> str:
    """A cell of the table; a dash where there is no number."""
    return "–" if value is None else f"{value:{form}}{unit}"


def ratio(latency: LatencyComparison | None) -> str:
    """A cell of the table: how many times as fast, and the 95 % interval."""
    return "–" if latency is None else f"{latency.ratio:.2f}x [{latency.low:.2f}, {latency.high:.2f}]"


def ahead_in_both(sqnr: float, speed: float, than_sqnr: float, than_speed: float) -> bool:
    """Whether one result is better than another in accuracy (dB) and in speed, both by more than the noise."""
    return sqnr > than_sqnr + SQNR_MARGIN_DB and speed > than_speed * SPEED_MARGIN


def recorded_ahead(peers: Mapping[str, Any], row: Row) -> list[str]:
    """The rows of peers.json that are ahead of `row` in both, as text; SQNR of the first output, as they have it."""
    if row.sqnr_db is None or row.latency is None:
        return []
    return [
        f"{peer['peer']} {peer['preset']} ({peer['sqnr_db']:.1f} dB @ {peer['speedup']:.2f}x)"
        for peer in peers.get(row.model, {}).get("rows", ())
        if peer["ok"] and ahead_in_both(peer["sqnr_db"], peer["speedup"], row.sqnr_db, row.latency.ratio)
    ]


def measured_ahead(row: Row, others: Sequence[Row]) -> list[str]:
    """The rows measured in this run that are ahead of `row` in both; the two models were timed against each other."""
    return [
        f"{other.by} ({other.sqnr_db:.1f} dB, {ratio(other.beside_qir)} of qir's speed)"
        for other in others
        if row.sqnr_db is not None
        and other.sqnr_db is not None
        and other.beside_qir is not None
        and ahead_in_both(other.sqnr_db, other.beside_qir.ratio, row.sqnr_db, 1.0)
    ]


def stack(feeds: Feeds) -> dict[str, Any]:
    """Feeds as arrays of an .npz: one array an input, or NAME/000000, NAME/000001, ... where shapes differ."""
    arrays: dict[str, Any] = {}
    for name in feeds[0]:
        if len({feed[name].shape for feed in feeds}) == 1:
            arrays[name] = np.stack([feed[name] for feed in feeds])
        else:
            arrays |= {f"{name}/{index:06d}": feed[name] for index, feed in enumerate(feeds)}
    return arrays


def integer_ops(counts: Mapping[str, int]) -> dict[str, int]:
    """Those of the executed operators that compute with integers."""
    return {op: count for op, count in sorted(counts.items()) if any(mark in op for mark in _INTEGER_OPS)}


def run_command(argv: Sequence[str]) -> tuple[float, float, str | None]:
    """(wall seconds, peak RSS in MB, None or the last line of its complaint) of a command; more goes to stderr."""
    launch = [sys.executable, "-c", _LAUNCHER, str(TIMEOUT), *argv]
    done = subprocess.run(launch, capture_output=True, text=True, check=True)
    seconds, rss, code = json.loads(done.stdout)
    lines = [f"exit code {code}", *done.stderr.strip().splitlines()]
    if code:
        print(*lines[-20:], sep="\n", file=sys.stderr, flush=True)
    return seconds, round(rss, 1), lines[-1] if code else None


def qir_command(model: str, calib: Path, out: Path, extra: Sequence[str]) -> list[str]:
    return [*_QIR, "quantize", model, "--calib", str(calib), "-o", str(out), *extra]


def float_seconds(model: str, feeds: Feeds) -> float:
    """Plain inference of the feeds with the runtime's own number of threads, after one run to warm up."""
    runner = OrtRunner(model)
    runner.run(feeds[0])
    start = time.perf_counter()
    for feed in feeds:
        runner.run(feed)
    return time.perf_counter() - start


class Bench:
    """One zoo model, its samples, and what is made from it in `folder`."""

    def __init__(self, zoo: Any, name: str, folder: Path, samples: int) -> None:
        self.zoo, self.name, self.folder, self.samples = zoo, name, folder, samples
        self.model, self.calib, self.feeds, _ = zoo.load(name, CALIBRATION_SAMPLES, samples)
        self.calib_file = folder / f"{name}.calib.npz"
        np.savez(self.calib_file, **stack(self.calib))
        self.reference = OrtRunner(self.model)
        self.task_float = float(zoo.evaluate(name, None, samples))
        self._scores_float: np.ndarray | None = None

    def out(self, by: str) -> Path:
        return self.folder / f"{self.name}.{by.replace(' ', '-')}.onnx"

    def asked(self, by: str, extra: str, *options: str) -> Row:
        """What `qir quantize` makes with these options."""
        return self.row(by, qir_command(self.model, self.calib_file, self.out(by), [*shlex.split(extra), *options]))

    def row(self, by: str, argv: Sequence[str], against: Path | None = None) -> Row:
        """Runs the quantizer, which writes `out(by)`, and measures it; `against`: a model to time it against too."""
        row, out = Row(self.name, by), self.out(by)
        out.unlink(missing_ok=True)
        before = float_seconds(self.model, self.calib)
        try:
            row.seconds, row.rss_mb, row.error = run_command(argv)
            # Half before and half after: the machine's mood changes while the quantizer runs.
            row.cost = row.seconds / ((before + float_seconds(self.model, self.calib)) / 2)
            if row.error is None:
                self._measure(row, out, against)
        except Exception as error:  # one model that fails must not hide the others; the row says so
            row.error = f"{type(error).__name__}: {error}"[:150]
        return row

    def _measure(self, row: Row, out: Path, against: Path | None) -> None:
        accuracy = compare(self.reference, OrtRunner(out), self.feeds)
        row.sqnr_db, row.sqnr_min_db = finite_db(accuracy.sqnr_db), finite_db(accuracy.sqnr_min_db)
        row.agreement = accuracy.agreement
        row.task_float, row.task = self.task_float, float(self.zoo.evaluate(self.name, str(out), self.samples))
        row.drop = self._drop(out)
        row.latency = compare_latency(self.model, out, self.feeds[:8])
        if against is not None and against.exists():
            row.beside_qir = compare_latency(against, out, self.feeds[:8])
        row.size_ratio = out.stat().st_size / Path(self.model).stat().st_size
        row.integer_ops = integer_ops(optimized_model(out).op_counts)

    def _drop(self, out: Path) -> tuple[float, float, float] | None:
        """Over all evaluation samples, as a metric of a few hundred samples says little."""
        from tools.bench.zoo_scores import ZooScores

        _, _, feeds, labels = self.zoo.load(self.name, 1)
        scores = ZooScores(self.zoo, self.name, labels)
        if scores.kind is None:
            return None
        if self._scores_float is None:
            self._scores_float = scores.of_model(self.model, feeds)
        return scores.drop(self._scores_float, scores.of_model(out, feeds))


def ort_command(bench: Bench, by: str, preset: str) -> list[str]:
    program = str(SHARED / "bench" / "run_ort.py")
    return [sys.executable, program, bench.model, str(bench.calib_file), str(bench.out(by)), "--preset", preset]


def rss_table(zoo: Any, names: Sequence[str], folder: Path, extra: Sequence[str]) -> list[dict[str, Any]]:
    """Peak RSS of the command by number of samples; samples repeat where the zoo has fewer."""
    rows: list[dict[str, Any]] = []
    few, many = RSS_SAMPLES
    print(f"| model | {few} samples, MB | {many} samples, MB | ratio | seconds |\n|---|---|---|---|---|", flush=True)
    for name in names:
        model, calib, _, _ = zoo.load(name, many, 1)
        peaks, spent = [], []
        for count in RSS_SAMPLES:
            file = folder / f"{name}.{count}.npz"
            np.savez(file, **stack([calib[index % len(calib)] for index in range(count)]))
            seconds, rss, error = run_command(qir_command(model, file, folder / "out.onnx", extra))
            rows.append({"model": name, "samples": count, "rss_mb": rss, "seconds": seconds, "error": error})
            peaks.append(rss)
            spent.append("**fails**" if error else f"{seconds:.0f}")
        verdict = "" if peaks[1] <= peaks[0] * (1 + RSS_MARGIN) else " **grows**"
        cells = [name, *(f"{peak:.0f}" for peak in peaks), f"{peaks[1] / peaks[0]:.2f}{verdict}", ", ".join(spent)]
        print(f"| {' | '.join(cells)} |", flush=True)
    return rows


def frontier(zoo: Any, names: Sequence[str], folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What efforts and thresholds reach, a row each and a plot for each model, with onnxruntime's quantizer."""
    from tools.bench.int8_frontier import Point, chart, recorded_points, thresholds

    peers = json.loads((SHARED / "zoo" / "peers.json").read_text())
    results: list[dict[str, Any]] = []
    print(HEADER, flush=True)
    for name in names:
        bench = Bench(zoo, name, folder, options.samples)
        rows = [_printed(bench.asked(f"qir {effort}", options.extra, "--effort", effort)) for effort in EFFORTS]
        default = rows[EFFORTS.index("balanced")]
        if default.sqnr_min_db is not None and default.sqnr_min_db < SEEN_DB:
            for wanted in thresholds(default.sqnr_min_db):
                rows.append(_printed(bench.asked(f"qir {wanted} dB", options.extra, "--min-sqnr", str(wanted))))
        for preset in ORT_PRESETS:
            by = f"ort {preset}"
            rows.append(_printed(bench.row(by, ort_command(bench, by, preset))))
        points = [
            Point(row.by, row.latency.ratio, row.sqnr_db, "qir" if row.by.startswith("qir") else "here")
            for row in rows
            if row.latency is not None and row.sqnr_db is not None and row.sqnr_db < SEEN_DB
        ]
        points += recorded_points(peers.get(name, {}).get("rows", ()))
        options.svg.mkdir(parents=True, exist_ok=True)
        (options.svg / f"frontier-{name.partition('-')[0]}.svg").write_text(chart(name, points))
        results.append({"model": name, "rows": [asdict(row) for row in rows], "error": default.error})
    return results


def _printed(row: Row) -> Row:
    print(row.markdown(), flush=True)
    return row


def accuracy_table(zoo: Any, names: Sequence[str], folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    peers = json.loads((SHARED / "zoo" / "peers.json").read_text())
    results: list[dict[str, Any]] = []
    print(HEADER, flush=True)
    for name in names:
        bench = Bench(zoo, name, folder, options.samples)
        out = bench.out("qir")
        ours = bench.row("qir", qir_command(bench.model, bench.calib_file, out, shlex.split(options.extra)))
        print(ours.markdown(), flush=True)
        others = []
        for preset in ORT_PRESETS if "ort" in options.peer else ():
            by = f"ort {preset}"
            others.append(bench.row(by, ort_command(bench, by, preset), against=out))
            print(others[-1].markdown(), flush=True)
        ahead = {"ahead_here": measured_ahead(ours, others), "ahead_recorded": recorded_ahead(peers, ours)}
        rows = [asdict(row) for row in (ours, *others)]
        results.append({"model": name, "rows": rows, "error": ours.error, **ahead})
    print("\n| model | ahead of qir in both, this run | ahead in both, peers.json (another machine) |\n|---|---|---|")
    for result in results:
        cells = ("; ".join(result[key]) or "none" for key in ("ahead_here", "ahead_recorded"))
        print(f"| {result['model']} | {' | '.join(cells)} |", flush=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", metavar="NAME", help="zoo models; all by default, a few for --rss and --frontier"
    )
    parser.add_argument("--samples", type=int, default=200, help="evaluation samples at most (default 200)")
    parser.add_argument("--peer", nargs="+", choices=["ort"], default=[], help="quantizers to run beside it")
    parser.add_argument("--extra", default="", metavar="ARGS", help="more arguments for qir quantize, as one")
    parser.add_argument("--rss", action="store_true", help="peak memory for 16 and 256 samples instead of the table")
    parser.add_argument("--frontier", action="store_true", help="accuracy against speed by effort and threshold")
    parser.add_argument("--svg", type=Path, default=Path("."), metavar="FOLDER", help="where --frontier puts its plots")
    parser.add_argument("--audit", action="store_true", help="what stays float in the runtime, and why")
    parser.add_argument("--ablation", action="store_true", help="what each preparation and threshold method gives")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything here")
    parser.add_argument("--folder", type=Path, help="keep samples and models here (default: a temporary folder)")
    options = parser.parse_args()
    if not (SHARED / "zoo" / "load.py").is_file():
        print("../shared/zoo is not there: nothing to measure")
        return 0
    zoo = load_zoo()
    sys.path.append(str(Path(__file__).resolve().parents[2]))  # for the other files of this program
    few = RSS_MODELS if options.rss else FRONTIER_MODELS if options.frontier else None
    names = options.models or few or zoo.names()
    if unknown := sorted(set(names) - set(zoo.names())):
        parser.error(f"no zoo model is called {', '.join(unknown)}; there are {', '.join(zoo.names())}")
    with tempfile.TemporaryDirectory(prefix="qir-bench-") as temporary:
        folder: Path = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.rss:
            results = rss_table(zoo, names, folder, shlex.split(options.extra))
        elif options.frontier:
            results = frontier(zoo, names, folder, options)
        elif options.audit:
            from tools.bench.int8_audit import audit_table

            results = audit_table({name: zoo.load(name, CALIBRATION_SAMPLES, 1)[:2] for name in names})
        elif options.ablation:
            from tools.bench.int8_ablation import ablation_table

            results = ablation_table({name: zoo.load(name, *ABLATION_SAMPLES)[:3] for name in names})
        else:
            results = accuracy_table(zoo, names, folder, options)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(any(result["error"] for result in results))


def load_zoo() -> Any:
    """The zoo's own loader, as a module."""
    spec = importlib.util.spec_from_file_location("zoo_load", SHARED / "zoo" / "load.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
