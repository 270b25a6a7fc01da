"""onnxruntime's weight and dynamic quantizers, each a way to make one file of another; for ``precision.py``.

    python tools/bench/precision_peers.py PEER MODEL CALIB.npz OUT

Needs onnx and onnxruntime alone, so that it also runs in an environment of its own: HQQ and k-quant need torch. They
and GPTQ leave tables of Gather in float, so the quantizer's rounding to nearest is run on those afterwards: all files
then hold the same things in few bits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

OPSET = 21
_ACCURACY_LEVEL = 4


def feeds_of(file: str) -> Iterator[dict[str, np.ndarray]]:
    """The samples of an .npz: an array an input with a sample on each index, or NAME/000000, NAME/000001 ..."""
    with np.load(file) as arrays:
        stacked = {name: arrays[name] for name in arrays.files}
    names = {name.partition("/")[0] for name in stacked}
    sizes = [len(array) for name, array in stacked.items() if "/" not in name]
    count = sizes[0] if sizes else sum(name.startswith(f"{min(names)}/") for name in stacked)
    for index in range(count):
        yield {name: stacked[name][index] if name in stacked else stacked[f"{name}/{index:06d}"] for name in names}


def _dynamic(model: str, calib: str, out: str) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(model, out, weight_type=QuantType.QInt8)


def _nbits(bits: int, block: int, symmetric: bool, method: str = "rtn") -> Callable[[str, str, str], None]:
    def run(model: str, calib: str, out: str) -> None:
        import logging

        import onnx
        import onnx.version_converter
        from onnxruntime.quantization import matmul_nbits_quantizer as peer
        from onnxruntime.quantization.calibrate import CalibrationDataReader

        class Samples(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self._feeds = list(feeds_of(calib))

            def get_next(self) -> Any:
                return self._feeds.pop(0) if self._feeds else None

        def quantize(source: Any, ops: tuple[str, ...], config: Any = None) -> Any:
            quantizer = peer.MatMulNBitsQuantizer(
                source, bits=bits, block_size=block, is_symmetric=symmetric, accuracy_level=_ACCURACY_LEVEL,
                op_types_to_quantize=ops, algo_config=config,
            )  # fmt: skip
            quantizer.process()
            return quantizer.model.model

        logging.disable(logging.WARNING)  # it reports every node
        # The quantizer raises the opset's number to 21 without converting anything, which makes older models invalid.
        source = onnx.version_converter.convert_version(onnx.load(model), OPSET)
        if method == "rtn":
            made = quantize(source, ("MatMul", "Gather"))
        else:
            for index, node in enumerate(source.graph.node):  # they find a node again by its name
                node.name = node.name or f"{node.op_type}_{index}"
            config: Any = None
            if method == "hqq":
                config = peer.HQQWeightOnlyQuantConfig(block, bits, op_types_to_quantize=("MatMul",))
            elif method == "gptq":
                config = peer.GPTQWeightOnlyQuantConfig(Samples())
            elif method == "k-quant":
                config = peer.KQuantWeightOnlyQuantConfig()
            made = quantize(quantize(source, ("MatMul",), config), ("Gather",))
        onnx.save(made, out)

    return run


PEERS: Mapping[str, Callable[[str, str, str], None]] = {
    "ort dynamic": _dynamic,
    "ort nbits 4 32": _nbits(4, 32, False),
    "ort nbits 4 32 sym": _nbits(4, 32, True),
    "ort nbits 4 128": _nbits(4, 128, False),
    "ort nbits 4 16": _nbits(4, 16, False),
    "ort nbits 8 32": _nbits(8, 32, True),
    "ort k-quant 32": _nbits(4, 32, False, "k-quant"),
    "ort gptq 32": _nbits(4, 32, False, "gptq"),
    "ort gptq 32 sym": _nbits(4, 32, True, "gptq"),
    "ort gptq 128": _nbits(4, 128, False, "gptq"),
    "ort hqq 32": _nbits(4, 32, False, "hqq"),
    "ort hqq 128": _nbits(4, 128, False, "hqq"),
}
"""Name -> a function of the float file, the samples and the file to write."""


if __name__ == "__main__":
    PEERS[sys.argv[1]](*sys.argv[2:5])
