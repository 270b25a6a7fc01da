"""Every operator's transfer function is sound: what onnxruntime computes never leaves the proved range."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from onnx import helper

from qir.analysis.intervals import supported_ops
from qir.ir import Interval
from tests.analysis.running import build, check_sound

SPANS = [(-3.0, 5.0), (0.0, 6.0), (-0.5, 0.25), (1.0, 1.5), (-40.0, -1e-3), (-1e6, 1e6), (0.0, 0.0)]
IMAGE = (2, 4, 6, 6)


def f32(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(sum(shape)).standard_normal(shape) * scale).astype(np.float32)


def i64(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@dataclass
class Case:
    """A node on input x and perhaps y, followed by constants (None: a missing operand)."""

    op: str
    constants: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = IMAGE
    second: tuple[int, ...] | None = None
    outputs: int = 1
    opset: int = 17
    domain: str = ""
    bounded: bool = False
    """From bounded inputs follow bounded results."""
    whole: type | None = None
    """An integer type for the inputs."""

    def __str__(self) -> str:
        return f"{self.op}-{self.opset}" + ("-" + "-".join(self.attributes) if self.attributes else "")


def same(*ops: str, **settings: Any) -> list[Case]:
    return [Case(op, **settings) for op in ops]


HALVES = (np.float32(0.5),)
CASES = [
    *same("Neg", "Abs", "Sqrt", "Exp", "Log", "Reciprocal", "Floor", "Ceil", "Round", "Sign", "Relu", "Identity"),
    *same("LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Shrink", "Sigmoid", "Tanh", "Erf", "Softplus"),
    *same("Softsign", "HardSigmoid", "HardSwish", "Mish", "Sin", "Cos", "Atan", "Sinh", "Asinh", opset=18),
    *same("Asin", "Acos", "Dropout", "IsNaN", "IsInf", "Hardmax", "LogSoftmax", "Softmax", "LpNormalization"),
    *same("Gelu", "QuickGelu", domain="com.microsoft"),
    *[Case("Gelu", opset=20), Case("Gelu", attributes={"approximate": "tanh"}, opset=20), Case("Swish", opset=24)],
    *[Case("LeakyRelu", attributes={"alpha": a}) for a in (-0.5, 2.0)],
    *same("Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean", second=IMAGE, bounded=True),
    *same("Div", "Pow", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", second=IMAGE),
    *same("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", constants=(f32(4, 1, 1) + np.float32(3),), bounded=True),
    *same("Mul", "PRelu", constants=(f32(4, 1, 1),), bounded=True),
    *[Case("Pow", (np.float32(p),)) for p in (2, 3, 4, 0.5, -1, -0.5, 1.7)],
    *[
        Case("Mod", (np.float32(1.7),), {"fmod": 1}),
        Case("Cast", attributes={"to": 10}),
        Case("Cast", attributes={"to": 7}),
    ],
    *[Case("Cast", attributes={"to": 11}), Case("Cast", attributes={"to": 9}), Case("Cast", attributes={"to": 2})],
    *[Case("CastLike", (np.float64(1),)), Case("Clip", (np.float32(-1), np.float32(2)), bounded=True)],
    *[Case("Clip", (None, np.float32(2))), Case("Clip", (np.float32(0),)), Case("Clip")],
    *[Case("Clip", attributes={"min": 0.0, "max": 6.0}, opset=9), Case("Clip", attributes={"max": 1.0}, opset=10)],
    Case("Conv", (f32(8, 4, 3, 3), f32(8)), bounded=True),
    Case("Conv", (f32(8, 4, 3, 3),), {"pads": [1, 1, 1, 1], "strides": [2, 2]}, bounded=True),
    Case("Conv", (f32(8, 2, 3, 3), f32(8)), {"group": 2, "auto_pad": "SAME_UPPER"}, bounded=True),
    Case("Conv", (f32(4, 1, 3, 3),), {"group": 4, "dilations": [2, 2]}, bounded=True),
    Case("Conv", (f32(3, 4, 3),), shape=(1, 4, 9), bounded=True),
    Case("ConvTranspose", (f32(4, 5, 3, 3), f32(5)), {"strides": [2, 2]}, bounded=True),
    Case("ConvTranspose", (f32(4, 3, 2, 2),), {"group": 2, "strides": [3, 3]}, bounded=True),
    Case("MatMul", (f32(6, 5),), bounded=True),
    Case("MatMul", (f32(2, 1, 6, 5),), bounded=True),
    Case("MatMul", second=(2, 4, 6, 3), bounded=True),
    Case("Gemm", (f32(6, 5), f32(5)), {"alpha": 0.5, "beta": -2.0}, shape=(3, 6), bounded=True),
    Case("Gemm", (f32(5, 6),), {"transB": 1}, shape=(3, 6), bounded=True),
    Case("Gemm", (f32(3, 5), f32(1)), {"transA": 1}, shape=(3, 6), bounded=True),
    Case("Gemm", second=(6, 4), shape=(3, 6), bounded=True),
    Case("BatchNormalization", (f32(4), f32(4), f32(4), np.abs(f32(4)) + np.float32(0.01)), bounded=True),
    Case("AveragePool", attributes={"kernel_shape": [3, 3]}, bounded=True),
    Case("AveragePool", attributes={"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}, bounded=True),
    Case("MaxPool", attributes={"kernel_shape": [3, 3], "pads": [1] * 4}, bounded=True),
    Case("MaxPool", attributes={"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1}),
    *same("GlobalAveragePool", "GlobalMaxPool", bounded=True),
    *same("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", bounded=True),
    *same("ReduceMean", "ReduceMax", "ReduceMin", attributes={"axes": [2, 3], "keepdims": 0}, bounded=True),
    *same("ReduceL1", "ReduceL2", "ReduceLogSumExp", attributes={"axes": [1], "keepdims": 1}),
    *same("ReduceSum", constants=(i64(-1, 1),), attributes={"keepdims": 0}, bounded=True),
    *same("ReduceMean", constants=(i64(2, 3),), opset=18, bounded=True),
    *[Case("Reshape", (i64(2, 4, 36),), bounded=True), Case("Reshape", (i64(-1, 6, 6),), bounded=True)],
    *[Case("Flatten", bounded=True), Case("Transpose", bounded=True)],
    *[Case("Transpose", attributes={"perm": [0, 2, 3, 1]}), Case("Squeeze", (i64(0),), shape=(1, 4, 6))],
    *[Case("Unsqueeze", (i64(-1, 0),)), Case("Unsqueeze", attributes={"axes": [1]}, opset=11)],
    *[Case("Slice", (i64(1), i64(3), i64(1))), Case("Slice", attributes={"starts": [1], "ends": [3]}, opset=9)],
    *[Case("Split", (i64(1, 3),), {"axis": 1}, outputs=2), Case("Split", attributes={"axis": -1}, outputs=2)],
    *[Case("Concat", attributes={"axis": a}, second=IMAGE, bounded=True) for a in (0, 1, -1)],
    *[
        Case("Gather", (i64(0, 3, 1),), {"axis": 1}),
        Case("Gather", (np.int64(1),)),
        Case("Gather", (i64(-1),), {"axis": -1}),
    ],
    *[
        Case("GatherElements", (np.zeros((2, 4, 6, 1), np.int64),), {"axis": 3}),
        Case("GatherND", (np.ones((3, 2), np.int64),)),
    ],
    *[Case("Expand", (i64(3, 2, 4, 6, 6),)), Case("Tile", (i64(1, 2, 1, 3),)), Case("Pad", (i64(*[0] * 4, *[1] * 4),))],
    *[Case("Pad", (i64(*[1] * 8), np.float32(9))), Case("Pad", (i64(*[0] * 6, 1, 1),), {"mode": "reflect"})],
    *[
        Case("Pad", attributes={"pads": [0, 1, 0, 0, 0, 0, 0, 0], "value": -7.0}, opset=10),
        Case("Trilu"),
        Case("CumSum", (np.int64(1),)),
    ],
    *[Case("Resize", (None, np.array([1, 1, 2, 2], np.float32)), {"mode": m}) for m in ("nearest", "linear", "cubic")],
    *[Case("Upsample", (np.array([1, 1, 2, 2], np.float32),), {"mode": "nearest"}, opset=9)],
    *[Case("DepthToSpace", attributes={"blocksize": 2}), Case("SpaceToDepth", attributes={"blocksize": 2})],
    *[Case("ScatterND", (i64(0, 1).reshape(1, 2), f32(1, 6, 6))), Case("TopK", (i64(2),), outputs=2)],
    *[Case("ScatterElements", (np.zeros((1, 1, 1, 1), np.int64), f32(1, 1, 1, 1)))],
    *same("Shape", "Size", "NonZero", "ArgMax", "ArgMin"),
    *[Case("Where", second=IMAGE), Case("Compress", (np.array([True, False, True]),)), Case("Unique")],
    *[Case("ReverseSequence", (i64(3, 6, 1, 2),), {"time_axis": 0, "batch_axis": 1}, shape=(6, 4, 3))],
    *[Case("QuantizeLinear", (np.float32(0.1), np.uint8(3))), Case("DynamicQuantizeLinear", outputs=3)],
    Case("DequantizeLinear", (np.float32(0.1), np.uint8(3)), whole=np.uint8, bounded=True),
    Case("DequantizeLinear", (np.abs(f32(4)), np.zeros(4, np.int8)), whole=np.int8, bounded=True),
    *same("Add", "Sub", "Mul", second=IMAGE, whole=np.int32),
    *same("Div", constants=(np.int32(3),), whole=np.int32),
    Case("LSTM", (f32(1, 20, 6), f32(1, 20, 5), f32(1, 40)), {"hidden_size": 5}, shape=(7, 2, 6), outputs=3),
    Case("GRU", (f32(1, 15, 6), f32(1, 15, 5)), {"hidden_size": 5}, shape=(7, 2, 6), outputs=2),
    Case("RNN", (f32(1, 5, 6), f32(1, 5, 5)), {"hidden_size": 5}, shape=(7, 2, 6), outputs=2),
]
NEEDS_WHERE_CONDITION = {"Where"}


def sample(span: tuple[float, float], shape: tuple[int, ...], kind: type, seed: int) -> np.ndarray:
    """Numbers of the whole span, its ends among them; an array of either end alone for two of the seeds."""
    generator = np.random.default_rng(seed)
    x = generator.uniform(*span, shape)
    ends = generator.random(shape) < 0.4
    x = np.where(ends, generator.choice(span, shape), x)
    if seed < 2:
        x = np.full(shape, span[seed])
    if kind is np.float32:
        low, high = np.array(span).astype(np.float32)
        return np.clip(x.astype(np.float32), low, high)
    return np.clip(x, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)


def declaration(span: tuple[float, float], kind: type) -> Interval:
    """What ``sample`` keeps to."""
    if kind is np.float32:
        low, high = np.array(span).astype(np.float32).tolist()
        return Interval(low, high)
    low, high = np.clip(np.trunc(span), np.iinfo(kind).min, np.iinfo(kind).max).tolist()
    return Interval(low, high)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_stay_in_range(case: Case) -> None:
    kind = case.whole or np.float32
    names = ["x"] + (["y"] if case.second else [])
    constants = {f"c{i}": c for i, c in enumerate(case.constants) if c is not None}
    wired = names + [f"c{i}" if c is not None else "" for i, c in enumerate(case.constants)]
    outputs = [f"out{i}" for i in range(case.outputs)]
    nodes = []
    if case.op in NEEDS_WHERE_CONDITION:
        nodes.append(helper.make_node("Less", ["x", "y"], ["mask"]))
        wired = ["mask", *wired]
    nodes.append(helper.make_node(case.op, wired, outputs, domain=case.domain, **case.attributes))
    shapes = {"x": case.shape} | ({"y": case.second} if case.second else {})
    proto = build(nodes, {k: np.zeros(s, kind) for k, s in shapes.items()}, constants, outputs, case.opset)
    for number, span in enumerate(SPANS):
        other = SPANS[(number * 3 + 1) % len(SPANS)]
        spans = {"x": span, "y": other}
        feeds = [{k: sample(spans[k], s, kind, seed + 7 * (k == "y")) for k, s in shapes.items()} for seed in range(5)]
        declared = {k: declaration(spans[k], kind) for k in shapes}
        proved = check_sound(proto, feeds, declared)
        check_sound(proto, feeds)
        if case.bounded:
            assert proved["out0"].is_bounded


def test_every_operator_is_tested() -> None:
    elsewhere = {"Constant", "If", "Loop", "Scan", "And", "Or", "Xor", "Not", "ConstantOfShape", "Range", "OneHot"}
    rare = {"Bernoulli", "EyeLike", "MaxUnpool", "NonMaxSuppression", "RandomUniform", "RandomUniformLike", "Scatter"}
    tested = {case.op for case in CASES}
    assert set(supported_ops()) - tested - elsewhere - rare == set()
    assert len(supported_ops()) >= 90
