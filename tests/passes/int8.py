"""From IR text to an int8 model that has been run: what the tests of the quantizing passes look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qir.codegen import to_bytes
from qir.ir import DType, Model, Node, TensorType, UseQuantMarker
from qir.ir.parser import TensorStore, parse_model
from qir.ops.shape_inference import infer
from qir.pipeline import Pipeline, PipelineResult
from qir.runtime.optimized import optimized_model
from qir.runtime.session import PLAIN, OrtRunner
from qir.validation.metrics import sqnr_db

QUANTIZE = "legalize,analyze-ranges,calibrate,quantize{linear=static}"
EMIT = f"{QUANTIZE},place,emit-qdq"

Feed = dict[str, np.ndarray]


def model(text: str, store: TensorStore | None = None, opset: int = 17) -> Model:
    """IR text, the header added; constants named by hash only are seeded, of standard deviation 0.1."""
    header = f"model ir=8 opset=[{opset}, com.microsoft 1]\n"
    parsed = parse_model(header + text, store)
    infer(parsed)
    return parsed


def feeds(source: Model, count: int = 8, seed: int = 0) -> list[Feed]:
    """Standard normal samples, whole numbers for integer inputs; 3 stands for every symbolic axis."""
    draw = np.random.default_rng(seed)
    found: list[Feed] = []
    for _ in range(count):
        feed: Feed = {}
        for value in source.graph.inputs:
            if value.is_initializer:
                continue
            assert isinstance(value.type, TensorType) and value.shape is not None
            shape = [size if isinstance(size, int) else 3 for size in value.shape]
            array = draw.normal(size=shape) if value.type.dtype is not DType.INT64 else draw.integers(0, 4, shape)
            feed[value.name] = array.astype(value.type.dtype.numpy)
        found.append(feed)
    return found


def annotated(source: Model, samples: list[Feed] | None = None, passes: str = QUANTIZE) -> PipelineResult:
    """A copy with quantization annotations."""
    return Pipeline.parse(passes).run(source, calibration=samples or feeds(source))


@dataclass(frozen=True)
class Emitted:
    """An emitted model that has run: ``ops`` of the runtime's optimised graph without the domains, SQNR in dB of the
    worst output against the float model with optimisations ``on`` and ``off``, and between the two."""

    result: PipelineResult
    model: Model
    ops: Counter[str]
    on: float
    off: float
    between: float

    def emitted_ops(self) -> Counter[str]:
        """Of the emitted model, before the runtime."""
        return Counter(node.op for node in self.model.walk())


def emit(source: Model, samples: list[Feed] | None = None, passes: str = EMIT) -> Emitted:
    """Quantize, emit, load and run, optimisations on and off, on samples that were not calibrated on."""
    result = annotated(source, samples, passes)
    data = to_bytes(result.model)
    unseen = feeds(source, 6, seed=1) if samples is None else samples
    wanted, on, off = (
        _run(one, unseen) for one in (OrtRunner(to_bytes(source), PLAIN), OrtRunner(data), OrtRunner(data, PLAIN))
    )
    ops = Counter[str]()
    for op, count in optimized_model(data).op_counts.items():
        ops[op.rpartition("::")[2]] += count
    return Emitted(result, result.model, ops, _worst(wanted, on), _worst(wanted, off), _worst(off, on))


def _run(runner: OrtRunner, samples: list[Feed]) -> list[Mapping[str, Any]]:
    return [runner.run(feed) for feed in samples]


def _worst(wanted: list[Mapping[str, Any]], got: list[Mapping[str, Any]]) -> float:
    return min(sqnr_db([one[name] for one in wanted], [one[name] for one in got]) for name in wanted[0])


def node(source: Model, op: str, index: int = 0) -> Node:
    """The ``index``-th node with that operator."""
    return [found for found in source.walk() if found.op == op][index]


def kernels(source: Model) -> list[str]:
    """``Op`` of each node that is to run on integers."""
    return [found.op for found in source.walk() if found.kernel == "integer"]


def types(source: Model, op: str, index: int = 0) -> list[Any]:
    """What each operand of a node is read as; None for float."""
    return [
        None if use is None or use.quant is UseQuantMarker.FLOAT else use.effective_quant
        for use in node(source, op, index).uses
    ]
