"""Every precision on the models of ../shared/zoo: preset by model, beside onnxruntime's own quantizers, in one run.

    python tools/bench/precision.py [--models NAME...] [--variants NAME...] [--peers NAME...] [--samples 100]
        [--peer-python PYTHON] [--json FILE] [--folder DIR] [--resume] [--untimed]

A variant is a preset with its arguments (VARIANTS), a peer a way to call onnxruntime's quantizers
(`precision_peers.py`); `--list` shows both. HQQ and k-quant need torch: `--peer-python` names an interpreter that has
it, with onnx and onnxruntime. What cannot be made has a row that says why.

Size is that of the file over the float file's; "coded" what stands in the file for the float weights that are no longer
there, scales and tables included, over the bytes of those. SQNR in dB of the first output and of the worst; agreement
is that of decisions (the next token of a language model). The task metric is the zoo's own, perplexity for language
models: lower is better there. Drop is how much worse than float, with the 95 % interval over the same samples: in
points (hundredths), for a language model in hundredths of a nat. All models made of one float model are then timed
together, on one thread, in rounds that run each once: speed is float's median over that of the row. Below the table:
each peer beside the preset of its size.

What takes long can be made in turns: with `--resume` the rows in `--json FILE` whose models stand in `--folder` are not
made again (timed they are), and `--untimed` leaves the timing to the last turn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

import qir
from qir.codegen import to_bytes
from qir.pipeline import Pipeline, Preset, default_registry
from qir.runtime.latency import LatencyComparison, bootstrap_ratio, timing_config
from qir.runtime.session import OPTIMIZED, OrtRunner
from qir.validation.metrics import Comparison, finite_db

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the file runs as a program from any folder

from tools.bench.int8 import (
    _QIR,
    CALIBRATION_SAMPLES,
    SHARED,
    Bench,
    Row,
    load_zoo,
    number,
    ratio,
    stack,
)
from tools.bench.precision_peers import PEERS
from tools.bench.zoo_scores import ZooScores

_FOLD = ("--set", "emit-weight-only.form=fold")
_NBITS = ("--set", "emit-weight-only.form=contrib")


def _weights(bits: int, block: int, *more: str, symmetric: bool = False) -> tuple[str, ...]:
    options = (f"block-size={block}", f"symmetric={str(symmetric).lower()}", *more)
    return (f"int{bits}-weights", *(part for one in options for part in ("--set", f"quantize-weights.{one}")))


VARIANTS: Mapping[str, tuple[str, ...]] = {
    "int8": ("int8",),
    "int8-dynamic": ("int8-dynamic",),
    "int8-weights": ("int8-weights",),
    "int4-weights": ("int4-weights",),
    "int4-weights nbits": ("int4-weights", *_NBITS),
    "int4 128": _weights(4, 128),
    "int4 16": _weights(4, 16),
    "int4 32 sym": _weights(4, 32, symmetric=True),
    "int4 nbits 128": (*_weights(4, 128), *_NBITS),
    "int4 nbits 16": (*_weights(4, 16), *_NBITS),
    "int4 nbits 32 sym": (*_weights(4, 32, symmetric=True), *_NBITS),
    "int4 nbits 32 nearest": (*_weights(4, 32, "rounding=nearest"), *_NBITS),
    "int4 nbits 32 mse": (*_weights(4, 32, "rounding=mse"), *_NBITS),
    "int8 nbits": ("int8-weights", *_NBITS),
    "int4+8 25%": ("int4-weights", "--set", "quantize-weights.target-size=0.25"),
    "fp16": ("fp16",),
    "fp16-weights": ("fp16-weights",),
    "bf16": ("bf16",),
    "int8-fp16": ("int8-fp16",),
    "int16": ("int16",),
    "fp8": ("fp8",),
    "log4": ("log4",),
    "log8": ("log8",),
    "codebook4": ("codebook4",),
    "codebook8": ("codebook8",),
    "codebook pairs": ("codebook4", "--set", "cluster-weights.bits=8", "--set", "cluster-weights.dim=2"),
}
"""Name -> preset and further arguments of `qir quantize`."""

DEFAULT_VARIANTS = (
    "int8-dynamic", "int8-weights", "int4-weights", "int4-weights nbits", "int4 128", "int4 nbits 128",
    "codebook8", "codebook4", "log8", "log4", "fp16", "fp16-weights", "bf16", "fp8",
)  # fmt: skip
DEFAULT_PEERS = (
    "ort dynamic", "ort nbits 8 32", "ort nbits 4 32", "ort nbits 4 128", "ort k-quant 32", "ort hqq 32",
    "ort hqq 128", "ort gptq 32", "ort gptq 32 sym", "ort gptq 128",
)  # fmt: skip
DEFAULT_MODELS = (
    "resnet20-cifar10",
    "mobilenetv2-cifar10head",
    "dscnn-kws-mlperf",
    "minilm-l6-sts",
    "stories260k-llama",
    "charrnn-lstm-shakespeare",
    "silero-vad",
    "vit-cifar10",
)
LANGUAGE_MODELS = ("stories260k-llama", "charrnn-lstm-shakespeare")
"""Their task metric is a loss in nats."""
COUNTERPARTS: Mapping[str, tuple[str, ...]] = {
    "ort dynamic": ("int8-dynamic",),
    "ort nbits 8": ("int8-weights",),
    "ort nbits 4 32": ("int4-weights", "int4-weights nbits"),
    "ort k-quant 32": ("int4-weights", "int4-weights nbits"),
    "ort hqq 32": ("int4-weights", "int4-weights nbits"),
    "ort gptq 32": ("int4-weights", "int4-weights nbits"),
    "ort nbits 4 128": ("int4 128", "int4 nbits 128"),
    "ort hqq 128": ("int4 128", "int4 nbits 128"),
    "ort gptq 128": ("int4 128", "int4 nbits 128"),
}
"""Start of a peer's name -> the variants at its size."""
_DECIDING = ("analyze-ranges", "cluster-weights", "convert-float", "quantize")
"""How the passes are called that come after the structural ones in a preset."""
SECONDS = 3.0
"""For one model's turn in the rounds of timing, about."""

COLUMNS = (
    "model", "by", "size", "coded", "SQNR dB", "min dB", "agreement", "task (float)", "drop [95 %]", "speed [95 %]",
    "seconds",
)  # fmt: skip
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


@dataclass
class PrecisionRow(Row):
    """``coded``: bytes of what replaced float weights over the bytes of those; None where none was replaced. ``drop``:
    of the task metric, with the ends of its interval, over ``samples`` samples."""

    coded: float | None = None
    samples: int | None = None
    drop: tuple[float, float, float] | None = None

    @property
    def task_text(self) -> str:
        if self.model in LANGUAGE_MODELS and self.task is not None and self.task_float is not None:
            return f"ppl {math.exp(self.task):.3f} ({math.exp(self.task_float):.3f})"
        return f"{number(self.task, '.4f')} ({number(self.task_float, '.4f')})"

    @property
    def drop_text(self) -> str:
        if self.drop is None:
            return "–"
        drop, low, high = (100 * part for part in self.drop)
        return f"{drop:.1f} [{low:.1f}, {high:.1f}]"

    def line(self) -> str:
        """One row of the table."""
        if self.error is not None:
            return (
                f"| {self.model} | {self.by} | **fails**: {self.error.replace('|', '/')} "
                + "| " * (len(COLUMNS) - 3)
                + "|"
            )
        cells = [
            self.model,
            self.by,
            number(self.size_ratio, ".3f"),
            number(self.coded, ".3f"),
            number(self.sqnr_db, ".1f"),
            number(self.sqnr_min_db, ".1f"),
            number(self.agreement, ".3f"),
            self.task_text,
            self.drop_text,
            ratio(self.latency),
            number(self.seconds, ".1f"),
        ]
        return f"| {' | '.join(cells)} |"


class PrecisionBench(Bench):
    """Accuracy and size of each model; its speed comes later, together with the others'.

    The float model runs once, not once a row, and each other model once for all numbers.
    """

    def __init__(self, zoo: Any, name: str, folder: Path, samples: int | None) -> None:
        self.zoo, self.name, self.folder = zoo, name, folder
        self.model, self.calib, self.feeds, labels = zoo.load(name, CALIBRATION_SAMPLES, samples)
        self.calib_file = folder / f"{name}.calib.npz"
        np.savez(self.calib_file, **stack(self.calib))
        self.reference = OrtRunner(self.model)
        self.scores = ZooScores(zoo, name, labels, samples)
        self.wanted = [self.reference.run(feed) for feed in self.feeds]
        self._float = self._scored(self.wanted)

    def row(self, by: str, argv: Sequence[str], against: Path | None = None) -> PrecisionRow:
        self._got = np.empty(0)
        row = PrecisionRow(**vars(super().row(by, argv)), samples=len(self.feeds))
        if row.error is None:
            row.coded = coded_share(self._prepared(by), self.out(by))
            if len(self._got):
                row.task, row.task_float = self.scores.value(self._got), self.scores.value(self._float)
                row.drop = self.scores.drop(self._float, self._got)
        return row

    def _prepared(self, by: str) -> bytes:
        """The float model as the preset's quantizing passes find it: its constants that nothing coded are the same."""
        if by not in VARIANTS:
            return Path(self.model).read_bytes()
        passes = Pipeline.parse(VARIANTS[by][0]).passes
        exact = list(itertools.takewhile(lambda one: not one.name.startswith(_DECIDING), passes))
        return to_bytes(Pipeline(exact).run(qir.load(self.model)).model)

    def _scored(self, outputs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        chosen = self.scores.output or next(iter(outputs[0]))
        return self.scores.of([one[chosen] for one in outputs])

    def _measure(self, row: Row, out: Path, against: Path | None) -> None:
        runner = OrtRunner(out)
        made = [runner.run(feed) for feed in self.feeds]
        accuracy = Comparison([spec.name for spec in self.reference.outputs])
        for want, got in zip(self.wanted, made, strict=True):
            accuracy.add(want, got)
        row.sqnr_db, row.sqnr_min_db = finite_db(accuracy.sqnr_db), finite_db(accuracy.sqnr_min_db)
        row.agreement = accuracy.agreement
        row.size_ratio = out.stat().st_size / Path(self.model).stat().st_size
        self._got = self._scored(made)

    def time(self, rows: Sequence[PrecisionRow]) -> None:
        """Speed of all rows that have a model, in one run with the float model."""
        made = [row for row in rows if row.error is None]
        files = [self.model, *(str(self.out(row.by)) for row in made)]
        found = interleaved(files, self.feeds[:8])
        for row, comparison in zip(made, found[1:], strict=True):
            row.latency = comparison


def interleaved(models: Sequence[str], feeds: Sequence[Mapping[str, Any]]) -> list[LatencyComparison]:
    """Each model against the first. A round runs every model once on the same sample, in an order of its own: what ran
    before leaves the caches in some state, and no model shall always come after the same one."""
    runners = [OrtRunner(model, timing_config(OPTIMIZED, 1)) for model in models]

    def once(which: int, index: int) -> float:
        start = perf_counter()
        runners[which].run(feeds[index % len(feeds)])
        return perf_counter() - start

    warm = [[once(which, index) for which in range(len(models))] for index in range(3)]
    rounds = int(np.clip(SECONDS * len(models) / max(sum(warm[-1]), 1e-6), 15, 1000))
    times, rng = np.empty((len(models), rounds)), np.random.default_rng(0)
    for index in range(rounds):
        for which in rng.permutation(len(models)):
            times[which, index] = once(which, index)
    medians = np.median(times, axis=1)
    return [
        LatencyComparison(
            float(medians[0] * 1e3), float(medians[which] * 1e3), float(medians[0] / medians[which]),
            *bootstrap_ratio(times[0], times[which]), rounds,
        )
        for which in range(len(models))
    ]  # fmt: skip


def coded_share(before: bytes, after: Path) -> float | None:
    """Bytes of the constants that a file has and the float model has not, over those that it has no longer.

    A bias that was corrected is float before and after: vectors of floats count where there are more of one size.
    """
    old, new = Counter(_constants(before)), Counter(_constants(after.read_bytes()))
    gone, come = old - new, new - old
    vectors = [Counter(one.size for one in part.elements() if one.is_vector) for part in (gone, come)]
    same = sum(size * count for size, count in (vectors[0] & vectors[1]).items())
    replaced = sum(one.size for one in gone.elements()) - same
    return (sum(one.size for one in come.elements()) - same) / replaced if replaced else None


class _Constant(NamedTuple):
    size: int
    """In bytes."""
    is_vector: bool
    """Of floats."""
    content: bytes
    """A hash."""


def _constants(model: bytes) -> Iterator[_Constant]:
    """Each tensor in a model, those of nodes and bodies included."""
    import hashlib

    import onnx

    def tensors(graph: Any) -> Iterable[Any]:
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                for body in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
                    yield from tensors(body)

    for tensor in tensors(onnx.load_from_string(model).graph):
        array = onnx.numpy_helper.to_array(tensor)
        stored = (
            -(-array.size // 2) if tensor.data_type in (onnx.TensorProto.UINT4, onnx.TensorProto.INT4) else array.nbytes
        )
        content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
        yield _Constant(stored, array.ndim == 1 and array.dtype == np.float32, content)


def table(zoo: Any, options: argparse.Namespace, folder: Path) -> list[PrecisionRow]:
    rows = earlier(options.json) if options.resume else []
    print(HEADER, flush=True)
    for name in options.models:
        bench = PrecisionBench(zoo, name, folder, options.samples or None)
        jobs = {variant: _qir_job(bench, variant) for variant in options.variants}
        jobs |= {peer: _peer_job(bench, peer, options.peer_python) for peer in options.peers}
        made = [row for row in rows if row.model == name and (row.error or bench.out(row.by).exists())]
        rows = [row for row in rows if row.model != name]
        known = {row.by for row in made}
        for by, argv in jobs.items():
            if by not in known:
                made.append(bench.row(by, argv))
                _write(options.json, [*rows, *made])
        if not options.untimed:
            bench.time(made)
        print(*(row.line() for row in made), sep="\n", flush=True)
        rows += made
        _write(options.json, rows)
    return rows


def earlier(file: Path) -> list[PrecisionRow]:
    """The rows of a run before, without their times."""
    if not file.exists():
        return []
    return [PrecisionRow(**{**row, "latency": None}) for row in json.loads(file.read_text())]


def _write(file: Path | None, rows: Sequence[PrecisionRow]) -> None:
    if file is not None:
        file.write_text(json.dumps([asdict(row) for row in rows], indent=1, default=str) + "\n")


def beside_peers(rows: Sequence[PrecisionRow]) -> Iterator[str]:
    """For each peer's row the variants at its size: SQNR, task and speed, where one of them is behind in bold."""
    known = {(row.model, row.by): row for row in rows if row.error is None}
    yield "| model | peer | preset | SQNR dB: preset, peer | task: both | size: both | speed over peer |"
    yield "|---" * 7 + "|"
    for peer in known.values():
        if peer.by not in PEERS or peer.coded is None:  # not a peer's, or it left all weights float
            continue
        names = next((variants for start, variants in COUNTERPARTS.items() if peer.by.startswith(start)), ())
        for ours in (known[peer.model, name] for name in names if (peer.model, name) in known):
            assert ours.sqnr_db is not None and peer.sqnr_db is not None and ours.latency and peer.latency
            sqnr = f"{ours.sqnr_db:.1f}, {peer.sqnr_db:.1f}"
            if ours.sqnr_db < peer.sqnr_db:
                sqnr = f"**{sqnr}**"
            tasks = ", ".join(row.task_text.partition(" (")[0] for row in (ours, peer))
            cells = [
                ours.model, peer.by, ours.by, sqnr, tasks,
                f"{ours.size_ratio:.3f}, {peer.size_ratio:.3f}", f"{ours.latency.ratio / peer.latency.ratio:.2f}",
            ]  # fmt: skip
            yield f"| {' | '.join(cells)} |"


def _qir_job(bench: Bench, variant: str) -> list[str]:
    preset, *more = VARIANTS[variant]
    calib = str(bench.calib_file)
    return [*_QIR, "quantize", bench.model, "--calib", calib, "-o", str(bench.out(variant)), "--preset", preset, *more]


def _peer_job(bench: Bench, peer: str, python: str) -> list[str]:
    program = str(Path(__file__).resolve().with_name("precision_peers.py"))
    return [python, program, peer, bench.model, str(bench.calib_file), str(bench.out(peer))]


def available(names: Sequence[str]) -> list[str]:
    """The variants whose presets exist."""
    registry = default_registry()
    return [n for n in names if VARIANTS[n][0] in registry and isinstance(registry.get(VARIANTS[n][0]), Preset)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", metavar="NAME", default=list(DEFAULT_MODELS))
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, metavar="NAME")
    parser.add_argument("--peers", nargs="*", choices=PEERS, metavar="NAME", default=list(DEFAULT_PEERS))
    parser.add_argument("--samples", type=int, default=100, help="evaluation samples at most (default 100; 0: all)")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON", help="what runs the peers")
    parser.add_argument("--resume", action="store_true", help="take over the rows of --json with models in --folder")
    parser.add_argument("--untimed", action="store_true", help="leave the timing to a later run with --resume")
    parser.add_argument("--list", action="store_true", help="name the variants and peers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument("--folder", type=Path, help="keep samples and models here (default: a temporary folder)")
    options = parser.parse_args()
    if options.list:
        print("variants:", *VARIANTS, "", "peers:", *PEERS, sep="\n")
        return 0
    if not (SHARED / "zoo" / "load.py").is_file():
        print("../shared/zoo is not there: nothing to measure")
        return 0
    if options.resume and (options.json is None or options.folder is None):
        parser.error("--resume needs --json and --folder, where the run before left its rows and models")
    options.variants = available(DEFAULT_VARIANTS) if options.variants is None else options.variants
    with tempfile.TemporaryDirectory(prefix="qir-bench-") as temporary:
        folder: Path = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = table(load_zoo(), options, folder)
    if not options.untimed:
        print("", *beside_peers(rows), sep="\n")
    return int(any(row.error and row.by in VARIANTS for row in rows))


if __name__ == "__main__":
    sys.exit(main())
