"""Running a model with every value handed out, and comparing what came with what interval analysis proved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from qir.analysis.intervals import analyze_intervals
from qir.frontend.importer import import_model
from qir.ir import Interval
from qir.ops.shape_inference import infer

CODES = {
    np.dtype(k): v
    for k, v in [
        (np.float32, TensorProto.FLOAT),
        (np.float16, TensorProto.FLOAT16),
        (np.float64, TensorProto.DOUBLE),
        (np.int64, TensorProto.INT64),
        (np.int32, TensorProto.INT32),
        (np.uint8, TensorProto.UINT8),
        (np.int8, TensorProto.INT8),
        (np.bool_, TensorProto.BOOL),
    ]
}


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, Any],
    outputs: Sequence[str],
    opset: int = 17,
) -> onnx.ModelProto:
    """A model of these nodes; the arrays of ``inputs`` give types and shapes only."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(k, CODES[v.dtype], v.shape) for k, v in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8 if opset < 20 else 10)


def run_all(
    proto: onnx.ModelProto, feeds: Sequence[Mapping[str, np.ndarray]], optimised: bool = False
) -> list[dict[str, Any]]:
    """All values of the main graph, per feed; the model is left as it was."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    there = {output.name for output in copy.graph.output}
    for node in copy.graph.node:
        for name in node.output:
            if name and name not in there:
                copy.graph.output.append(helper.make_empty_tensor_value_info(name))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(None, dict(feed)), strict=True)) for feed in feeds]


def ranges(proto: onnx.ModelProto, declared: Mapping[str, Interval] | None = None) -> dict[str, Interval]:
    """Proved ranges by name, types and shapes inferred first."""
    model = import_model(proto)
    infer(model)
    return {value.name: interval for value, interval in analyze_intervals(model, declared).items()}


def outside(array: np.ndarray, interval: Interval) -> int:
    """How many elements lie outside (NaN never does)."""
    lo, hi = np.asarray(interval.lo), np.asarray(interval.hi)
    if interval.axis is not None:
        assert array.shape[interval.axis] == lo.size
        shape = [1] * array.ndim
        shape[interval.axis] = -1
        lo, hi = lo.reshape(shape), hi.reshape(shape)
    wide = array.astype(np.float64)
    return int(((wide < lo) | (wide > hi)).sum())


def check_sound(
    proto: onnx.ModelProto, feeds: Sequence[Mapping[str, np.ndarray]], declared: Mapping[str, Interval] | None = None
) -> dict[str, Interval]:
    """The ranges, after no element of any value in any run was found outside."""
    proved = ranges(proto, declared)
    for values in run_all(proto, feeds):
        for name, array in values.items():
            if name in proved and isinstance(array, np.ndarray) and array.dtype.kind in "fiub":
                count = outside(array, proved[name])
                assert count == 0, (
                    f"{name}: {count} of {array.size} outside, {array.min()}..{array.max()}, {proved[name]}"
                )
    return proved
