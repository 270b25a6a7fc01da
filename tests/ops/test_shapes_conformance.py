"""Inferred shapes against executed ones and against onnx's own inference, on models that no one here wrote."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qir.codegen import export_model
from qir.frontend import import_model, load
from qir.ir import DType, Model, TensorType
from qir.ops.onnx_inference import type_of_proto
from qir.ops.shape_inference import infer
from qir.ops.verifier import verify_schemas
from tests.conformance.cases import cases

ZOO = Path(__file__).parents[3] / "shared" / "zoo"


def forget(model: Model) -> None:
    """Drop all recorded types but those of inputs and constants."""
    for value in model.values():
        if value.producer is not None:
            value.type = None


def fits(type_: Any, array: np.ndarray, sizes: dict[str, int] | None = None) -> bool:
    """Whether an array can have been of this type; symbols are looked up, those that are not there are free."""
    if type_ is None:
        return True
    if not isinstance(type_, TensorType) or type_.dtype is not DType.from_numpy(array.dtype):
        return False
    if type_.shape is None:
        return True
    return len(type_.shape) == array.ndim and all(
        dim is None or size == value_of(dim, sizes or {}, size)
        for dim, size in zip(type_.shape, array.shape, strict=True)
    )


def value_of(dim: int | str, sizes: dict[str, int], default: int) -> int:
    if isinstance(dim, int):
        return dim
    try:
        return int(eval(dim, {"__builtins__": {}, "floor": math.floor, "min": min}, dict(sizes)))
    except (NameError, SyntaxError):
        return default


def node_cases() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [case for case in collect_testcases(None) if case.model is not None]


def test_node_cases_have_the_shapes_that_they_ship() -> None:
    """Every node case of the onnx package: outputs inferred from the inputs alone never contradict those it ships."""
    wrong, static, untyped, problems = [], 0, set(), {}
    for case in node_cases():
        model = import_model(case.model)
        verify_schemas(model)
        forget(model)
        report = infer(model)
        if report.problems:
            problems[case.name] = report.problems
        if any(v.type is None for v in model.graph.outputs):
            untyped.add(case.name)
            assert not report.complete, case.name
        for _, outputs in case.data_sets:
            for value, array in zip(model.graph.outputs, outputs, strict=False):
                if isinstance(array, np.ndarray):
                    static += isinstance(value.type, TensorType) and value.type.is_static
                    if not fits(value.type, array):
                        wrong.append((case.name, value.type, array.dtype, array.shape))
    assert wrong == []
    assert problems == {}
    assert static > 1600
    # FlexAttention's scores are shaped by a body, opset 8's Scan has a batch axis, and the Loop's initial value is an
    # empty optional: these say so in the report.
    assert {n for n in untyped if not n.startswith("test_flexattention_")} == {"test_scan_sum", "test_loop16_seq_none"}


@pytest.mark.parametrize("source", ["model", "simple", "pytorch-converted", "pytorch-operator", "light"])
def test_never_less_static_nor_other_than_onnx(source: str) -> None:
    """Where onnx's strict inference knows a size, so do we, and the same one."""
    compared = 0
    for case in cases(source):
        try:
            theirs = onnx.shape_inference.infer_shapes(case.model, strict_mode=True, data_prop=True)
        except Exception:  # onnx refuses some of its own cases
            continue
        model = import_model(case.model)
        verify_schemas(model)
        forget(model)
        infer(model)
        ours = {value.name: value.type for value in model.graph.values()}
        for info in [*theirs.graph.value_info, *theirs.graph.output]:
            other, mine = type_of_proto(info.type), ours.get(info.name)
            if not isinstance(other, TensorType) or other.shape is None or info in case.model.graph.output:
                continue
            if info in case.model.graph.value_info:
                continue
            assert isinstance(mine, TensorType) and mine.shape is not None, (case.name, info.name, other, mine)
            assert mine.dtype is other.dtype
            for a, b in zip(mine.shape, other.shape, strict=True):
                assert not isinstance(b, int) or a == b, (case.name, info.name, other, mine)
            compared += 1
    assert compared >= {"light": 500, "pytorch-converted": 20}.get(source, 1)


@pytest.mark.parametrize("name", sorted(p.parent.name for p in ZOO.glob("*/model.onnx")) or ["missing"])
def test_zoo_shapes_are_those_of_execution(name: str) -> None:
    """All values of the main graph are made outputs and run; symbols have one size all over the model."""
    if name == "missing":
        pytest.skip("../shared/zoo is not there")
    import onnxruntime as ort

    from tests.ops.test_opset import _sizes

    model = load(ZOO / name / "model.onnx")
    forget(model)
    report = infer(model)
    assert not (report.unknown_ops or report.problems or report.contradictions), str(report)
    sizes: dict[str, int] = {}
    feeds: dict[str, np.ndarray] = {}
    for value in model.graph.inputs:
        if value.const is not None:
            continue
        assert value.shape is not None and value.dtype is not None
        shape = _sizes(name, value.name, [d if isinstance(d, int) else None for d in value.shape])
        sizes |= {d: s for d, s in zip(value.shape, shape, strict=True) if isinstance(d, str)}
        fill = 16000 if value.name == "sr" else 1
        feeds[value.name] = np.full(shape, fill, value.dtype.numpy)
    shown = {}
    for node in list(model.graph.nodes):
        for value in node.outputs:
            if value.name and isinstance(value.type, TensorType):
                shown[value.name] = value.type
                if not value.is_output:
                    model.graph.add_output(value)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(export_model(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    for output, array in zip(names, session.run(None, feeds), strict=True):
        if output in shown:
            assert fits(shown[output], np.asarray(array), sizes), (output, shown[output], array.shape, sizes)
    if name != "silero-vad":  # its state's rank depends on a condition
        assert report.complete
        assert all(t.shape is not None and None not in t.shape for t in shown.values())
