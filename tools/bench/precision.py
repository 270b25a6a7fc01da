"""Every precision on the models of ../shared/zoo: preset by model, beside onnxruntime's own quantizers, in one run.

    python tools/bench/precision.py [--models NAME...] [--variants NAME...] [--peers NAME...] [--samples 100]
        [--json FILE] [--folder DIR]

A variant is a preset with its arguments (VARIANTS); a peer is a way to call onnxruntime's quantizers (PEERS):
`quantize_dynamic`, and MatMulNBitsQuantizer with its own rounding (RTN), k-quant, and HQQ where torch is there; its
GPTQ needs neural-compressor and is left out where that is missing. `--list` shows both. Size is that of the file over
the float file's; SQNR in dB of the first output and of the worst; speed is float over quantized, medians of interleaved
runs on one thread. The task metric is the zoo's own (loss for language models: lower is better).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qir.pipeline import Preset, default_registry

sys.path.insert(0, str(Path(__file__).resolve().parent))
from int8 import _QIR, SHARED, Bench, Row, load_zoo, number, ratio  # a sibling program

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

DEFAULT_VARIANTS = ("int8-dynamic", "int8-weights", "int4-weights", "int4-weights nbits", "int4 nbits 128")


def _dynamic(model: str, out: str) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(model, out, weight_type=QuantType.QInt8)


def _nbits(bits: int, block: int, symmetric: bool, method: str = "default") -> Callable[[str, str], None]:
    def run(model: str, out: str) -> None:
        import logging

        import onnx
        import onnx.version_converter
        from onnxruntime.quantization import matmul_nbits_quantizer as peer

        logging.disable(logging.WARNING)  # it reports every node
        # The quantizer raises the opset's number to 21 without converting anything, which makes older models invalid.
        source = onnx.version_converter.convert_version(onnx.load(model), 21)
        config = None
        if method == "hqq":
            config = peer.HQQWeightOnlyQuantConfig(block_size=block, bits=bits)
        elif method == "k-quant":
            config = peer.KQuantWeightOnlyQuantConfig()
        quantizer = peer.MatMulNBitsQuantizer(
            source, bits=bits, block_size=block, is_symmetric=symmetric, accuracy_level=4,
            op_types_to_quantize=("MatMul", "Gather"), algo_config=config,
        )  # fmt: skip
        quantizer.process()
        quantizer.model.save_model_to_file(out)

    return run


PEERS: Mapping[str, Callable[[str, str], None]] = {
    "ort dynamic": _dynamic,
    "ort nbits 4 32": _nbits(4, 32, False),
    "ort nbits 4 32 sym": _nbits(4, 32, True),
    "ort nbits 4 128": _nbits(4, 128, False),
    "ort nbits 4 16": _nbits(4, 16, False),
    "ort nbits 8 32": _nbits(8, 32, True),
    "ort k-quant": _nbits(4, 32, False, "k-quant"),
    "ort hqq 32": _nbits(4, 32, False, "hqq"),
}
"""Name -> a function of the float file and the file to write."""

DEFAULT_PEERS = ("ort dynamic", "ort nbits 4 32", "ort nbits 4 128", "ort nbits 8 32")
DEFAULT_MODELS = (
    "minilm-l6-sts",
    "stories260k-llama",
    "charrnn-lstm-shakespeare",
    "vit-cifar10",
    "resnet20-cifar10",
    "mobilenetv2-cifar10head",
)
HEADER = (
    "| model | by | size | SQNR dB | min dB | agreement | task (float) | speed [95 %] | seconds |\n" + "|---" * 9 + "|"
)


def line(row: Row) -> str:
    """One row of the table."""
    if row.error is not None:
        return f"| {row.model} | {row.by} | **fails**: {row.error.replace('|', '/')} " + "| " * 6 + "|"
    cells = [
        row.model,
        row.by,
        number(row.size_ratio, ".3f"),
        number(row.sqnr_db, ".1f"),
        number(row.sqnr_min_db, ".1f"),
        number(row.agreement, ".3f"),
        f"{number(row.task, '.4f')} ({number(row.task_float, '.4f')})",
        ratio(row.latency),
        number(row.seconds, ".1f"),
    ]
    return f"| {' | '.join(cells)} |"


def table(zoo: Any, options: argparse.Namespace, folder: Path) -> list[Row]:
    rows: list[Row] = []
    print(HEADER, flush=True)
    for name in options.models:
        bench = Bench(zoo, name, folder, options.samples)
        jobs = {variant: _qir_job(bench, variant) for variant in options.variants}
        jobs |= {peer: _peer_job(bench, peer) for peer in options.peers}
        for by, argv in jobs.items():
            rows.append(bench.row(by, argv))
            print(line(rows[-1]), flush=True)
    return rows


def _qir_job(bench: Bench, variant: str) -> list[str]:
    preset, *more = VARIANTS[variant]
    calib = str(bench.calib_file)
    return [*_QIR, "quantize", bench.model, "--calib", calib, "-o", str(bench.out(variant)), "--preset", preset, *more]


def _peer_job(bench: Bench, peer: str) -> list[str]:
    return [sys.executable, __file__, "--run-peer", peer, bench.model, str(bench.out(peer))]


def available(names: tuple[str, ...], peers: bool) -> list[str]:
    """Those that can run here: presets that exist, peers whose packages are installed."""
    if peers:
        return [name for name in names if "hqq" not in name or importlib.util.find_spec("torch") is not None]
    registry = default_registry()
    return [n for n in names if VARIANTS[n][0] in registry and isinstance(registry.get(VARIANTS[n][0]), Preset)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", metavar="NAME", default=list(DEFAULT_MODELS))
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, metavar="NAME")
    parser.add_argument("--peers", nargs="*", choices=PEERS, metavar="NAME")
    parser.add_argument("--samples", type=int, default=100, help="evaluation samples at most (default 100)")
    parser.add_argument("--list", action="store_true", help="name the variants and peers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument("--folder", type=Path, help="keep samples and models here (default: a temporary folder)")
    parser.add_argument("--run-peer", nargs=3, metavar=("PEER", "MODEL", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run_peer:
        peer, model, out = options.run_peer
        PEERS[peer](model, out)
        return 0
    if options.list:
        print("variants:", *VARIANTS, "", "peers:", *PEERS, sep="\n")
        return 0
    if not (SHARED / "zoo" / "load.py").is_file():
        print("../shared/zoo is not there: nothing to measure")
        return 0
    options.variants = available(DEFAULT_VARIANTS, False) if options.variants is None else options.variants
    options.peers = available(DEFAULT_PEERS, True) if options.peers is None else options.peers
    with tempfile.TemporaryDirectory(prefix="qir-bench-") as temporary:
        folder: Path = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = table(load_zoo(), options, folder)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1, default=str) + "\n")
    return int(any(row.error for row in rows))


if __name__ == "__main__":
    sys.exit(main())
