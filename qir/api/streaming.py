"""When a model's weights are quantized or narrowed one by one, from file to file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from qir.ir import Model, Tensor
from qir.passes.annotation.quantize_weights import QuantizeWeights
from qir.passes.emission.emit_weight_only import EmitWeightOnly
from qir.passes.emission.stream_weights import StreamWeights
from qir.passes.floats.convert_float import ConvertFloat
from qir.pipeline import Pipeline

__all__ = ["STREAM_FROM", "streaming", "streams"]

STREAM_FROM = 1 << 30
"""Bytes of weights in data files from which on they are streamed."""


def streams(pipeline: Pipeline, model: Model, least: int = STREAM_FROM) -> bool:
    """Whether the pipeline ends in weight-only quantization or a conversion to 16 bits, needs no samples, and the
    model's data files hold ``least`` bytes of weights."""
    match pipeline.passes[-2:]:
        case [QuantizeWeights(), EmitWeightOnly()] | [*_, ConvertFloat()]:
            return not pipeline.needs_calibration and _outside(model) >= least
    return False


def streaming(pipeline: Pipeline, file: Path) -> Pipeline:
    """The same pipeline with its last work done in ``file``: by ``stream-weights``, or ``convert-float`` itself."""
    if isinstance(pipeline.passes[-1], ConvertFloat):
        return Pipeline([*pipeline.passes[:-1], replace(pipeline.passes[-1], file=os.fspath(file))])
    *before, quantize, emit = pipeline.passes
    assert isinstance(emit, EmitWeightOnly)
    stream = StreamWeights(file=os.fspath(file), weights=str(Pipeline([quantize])), form=emit.form)
    return Pipeline([*before, stream])


def _outside(model: Model) -> int:
    tensors = (value.const for graph in model.graph.graphs() for value in graph.initializers)
    return sum(one.nbytes for one in tensors if isinstance(one, Tensor) and one.location is not None)
