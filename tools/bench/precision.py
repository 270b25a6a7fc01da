"""Every precision on the models of ../shared/zoo: preset by model, beside onnxruntime's own quantizers, in one run.

    python tools/bench/precision.py [--models NAME...] [--variants NAME...] [--peers NAME...] [--samples 100]
        [--peer-python PYTHON] [--json FILE] [--folder DIR]

A variant is a preset with its arguments (VARIANTS), a peer a way to call onnxruntime's quantizers
(`precision_peers.py`); `--list` shows both. HQQ and k-quant need torch: `--peer-python` names an interpreter that has
it, with onnx and onnxruntime. What cannot be made has a row that says why.

Size is that of the file over the float file's; "coded" what stands in the file for the float weights that are no longer
there, scales and tables included, over the bytes of those. SQNR in dB of the first output and of the worst; agreement
is that of decisions (the next token of a language model). The task metric is the zoo's own, perplexity for language
models: lower is better there. All models made of one float model are then timed together, on one thread, in rounds that
run each once: speed is float's median over that of the row. Below the table: each peer beside the preset of its size.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from qir.pipeline import Preset, default_registry
from qir.runtime.latency import LatencyComparison, bootstrap_ratio, timing_config
from qir.runtime.session import OPTIMIZED, OrtRunner
from qir.validation.metrics import compare, finite_db

sys.path.insert(0, str(Path(__file__).resolve().parent))
from int8 import _QIR, SHARED, Bench, Row, load_zoo, number, ratio  # a sibling program
from precision_peers import PEERS  # and another

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
SECONDS = 3.0
"""For one model's turn in the rounds of timing, about."""

HEADER = (
    "| model | by | size | coded | SQNR dB | min dB | agreement | task (float) | speed [95 %] | seconds |\n"
    + "|---" * 10
    + "|"
)


@dataclass
class PrecisionRow(Row):
    """``coded``: bytes of what replaced float weights over the bytes of those; None where none was replaced."""

    coded: float | None = None

    @property
    def task_text(self) -> str:
        if self.model in LANGUAGE_MODELS and self.task is not None and self.task_float is not None:
            return f"ppl {math.exp(self.task):.3f} ({math.exp(self.task_float):.3f})"
        return f"{number(self.task, '.4f')} ({number(self.task_float, '.4f')})"

    def line(self) -> str:
        """One row of the table."""
        if self.error is not None:
            return f"| {self.model} | {self.by} | **fails**: {self.error.replace('|', '/')} " + "| " * 7 + "|"
        cells = [
            self.model,
            self.by,
            number(self.size_ratio, ".3f"),
            number(self.coded, ".3f"),
            number(self.sqnr_db, ".1f"),
            number(self.sqnr_min_db, ".1f"),
            number(self.agreement, ".3f"),
            self.task_text,
            ratio(self.latency),
            number(self.seconds, ".1f"),
        ]
        return f"| {' | '.join(cells)} |"


class PrecisionBench(Bench):
    """Accuracy and size of each model; its speed comes later, together with the others'."""

    def row(self, by: str, argv: Sequence[str], against: Path | None = None) -> PrecisionRow:
        return PrecisionRow(**vars(super().row(by, argv)))

    def _measure(self, row: Row, out: Path, against: Path | None) -> None:
        accuracy = compare(self.reference, OrtRunner(out), self.feeds)
        row.sqnr_db, row.sqnr_min_db = finite_db(accuracy.sqnr_db), finite_db(accuracy.sqnr_min_db)
        row.agreement = accuracy.agreement
        row.task_float, row.task = self.task_float, float(self.zoo.evaluate(self.name, str(out), self.samples))
        row.size_ratio = out.stat().st_size / Path(self.model).stat().st_size

    def time(self, rows: Sequence[PrecisionRow]) -> None:
        """Speed of all rows that have a model, in one run with the float model."""
        made = [row for row in rows if row.error is None]
        files = [self.model, *(str(self.out(row.by)) for row in made)]
        found = interleaved(files, self.feeds[:8])
        for row, comparison in zip(made, found[1:], strict=True):
            row.latency = comparison


def interleaved(models: Sequence[str], feeds: Sequence[Mapping[str, Any]]) -> list[LatencyComparison]:
    """Each model against the first. A round runs every model once on the same sample, in an order that turns."""
    runners = [OrtRunner(model, timing_config(OPTIMIZED, 1)) for model in models]

    def once(which: int, index: int) -> float:
        start = perf_counter()
        runners[which].run(feeds[index % len(feeds)])
        return perf_counter() - start

    warm = [[once(which, index) for which in range(len(models))] for index in range(3)]
    rounds = int(np.clip(SECONDS * len(models) / max(sum(warm[-1]), 1e-6), 15, 1000))
    times = np.empty((len(models), rounds))
    for index in range(rounds):
        turned = [(index + place) % len(models) for place in range(len(models))]
        for which in turned if index % 2 else reversed(turned):
            times[which, index] = once(which, index)
    medians = np.median(times, axis=1)
    return [
        LatencyComparison(
            float(medians[0] * 1e3), float(medians[which] * 1e3), float(medians[0] / medians[which]),
            *bootstrap_ratio(times[0], times[which]), rounds,
        )
        for which in range(len(models))
    ]  # fmt: skip


def coded_share(before: str, after: Path) -> float | None:
    """Bytes of the constants that a file has and the float file has not, over those that it has no longer."""
    old, new = Counter(_constants(before)), Counter(_constants(str(after)))
    gone, come = old - new, new - old
    replaced = sum(size * count for (size, _), count in gone.items())
    return sum(size * count for (size, _), count in come.items()) / replaced if replaced else None


def _constants(file: str) -> Iterator[tuple[int, bytes]]:
    """(bytes, a hash of the content) of each tensor in a model, those of nodes and bodies included."""
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

    for tensor in tensors(onnx.load(file).graph):
        array = onnx.numpy_helper.to_array(tensor)
        stored = (
            -(-array.size // 2) if tensor.data_type in (onnx.TensorProto.UINT4, onnx.TensorProto.INT4) else array.nbytes
        )
        yield stored, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def table(zoo: Any, options: argparse.Namespace, folder: Path) -> list[PrecisionRow]:
    rows: list[PrecisionRow] = []
    print(HEADER, flush=True)
    for name in options.models:
        bench = PrecisionBench(zoo, name, folder, options.samples)
        jobs = {variant: _qir_job(bench, variant) for variant in options.variants}
        jobs |= {peer: _peer_job(bench, peer, options.peer_python) for peer in options.peers}
        made = [bench.row(by, argv) for by, argv in jobs.items()]
        for row in made:
            if row.error is None:
                row.coded = coded_share(bench.model, bench.out(row.by))
        bench.time(made)
        print(*(row.line() for row in made), sep="\n", flush=True)
        rows += made
    return rows


def beside_peers(rows: Sequence[PrecisionRow]) -> Iterator[str]:
    """For each peer's row the variants at its size: SQNR, task and speed, where one of them is behind in bold."""
    known = {(row.model, row.by): row for row in rows if row.error is None}
    yield "| model | peer | preset | SQNR dB: preset, peer | task: both | size: both | speed over peer |"
    yield "|---" * 7 + "|"
    for peer in known.values():
        if peer.by not in PEERS:
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
    parser.add_argument("--samples", type=int, default=100, help="evaluation samples at most (default 100)")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON", help="what runs the peers")
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
    options.variants = available(DEFAULT_VARIANTS) if options.variants is None else options.variants
    with tempfile.TemporaryDirectory(prefix="qir-bench-") as temporary:
        folder: Path = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = table(load_zoo(), options, folder)
    print("", *beside_peers(rows), sep="\n")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1, default=str) + "\n")
    return int(any(row.error and row.by in VARIANTS for row in rows))


if __name__ == "__main__":
    sys.exit(main())
