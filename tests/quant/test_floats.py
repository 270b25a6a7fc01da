"""Short floats: every number, every tie and everything beyond, against ml_dtypes and onnxruntime's Cast."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from qir.errors import OptionError
from qir.ir import DType
from qir.quant.floats import float_format, relative_loss, round_float

SHORT = [
    *(DType.FLOAT16, DType.BFLOAT16, DType.FLOAT8E4M3FN, DType.FLOAT8E4M3FNUZ, DType.FLOAT8E5M2, DType.FLOAT8E5M2FNUZ),
    *(DType.FLOAT6E2M3, DType.FLOAT6E3M2, DType.FLOAT4E2M1),
]
IN_ORT = SHORT[:6]


def every_number(dtype: DType) -> np.ndarray:
    """What all codes stand for, float32; NaN and infinities included."""
    codes = np.arange(1 << dtype.bits, dtype=np.uint16 if dtype.bits == 16 else np.uint8)
    return np.asarray(codes.view(dtype.numpy).astype(np.float32))


def probes(dtype: DType) -> np.ndarray:
    """All numbers, the middles between neighbours, the float32 numbers on either side, and what is out of range."""
    numbers = np.unique(every_number(dtype)[np.isfinite(every_number(dtype))]).astype(np.float64)
    largest = numbers[-1]
    beyond = largest + (largest - numbers[-2]) * np.array([0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0])
    middles = (numbers[1:] + numbers[:-1]) / 2
    with np.errstate(over="ignore"):
        exact = np.concatenate([numbers, middles, beyond, -beyond, [1e30, -1e30, 1e-40, -1e-40]]).astype(np.float32)
    around = [exact, np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))]
    return np.concatenate([*around, np.array([np.inf, -np.inf, np.nan, -0.0], np.float32)])


def same(a: np.ndarray, b: np.ndarray) -> None:
    """Equal to the sign of zero; NaN equals NaN."""
    np.testing.assert_array_equal(a, b)
    number = ~np.isnan(b)
    np.testing.assert_array_equal(np.signbit(a[number]), np.signbit(b[number]))


def ort_cast(x: np.ndarray, dtype: DType, saturate: bool) -> np.ndarray:
    eight = dtype.bits == 8
    nodes = [
        helper.make_node("Cast", ["x"], ["short"], to=dtype.code, **({"saturate": int(saturate)} if eight else {})),
        helper.make_node("Cast", ["short"], ["y"], to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [x.size]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_the_format_says_what_ml_dtypes_does(dtype: DType) -> None:
    format_, info = float_format(dtype), ml_dtypes.finfo(dtype.numpy)
    assert format_.largest == float(info.max)
    assert format_.smallest_normal == float(info.smallest_normal)
    assert format_.smallest == float(info.smallest_subnormal)
    assert format_.epsilon == float(info.eps)
    numbers = every_number(dtype)
    assert format_.has_infinity == bool(np.isinf(numbers).any())
    assert format_.has_nan == bool(np.isnan(numbers).any())


@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_rounding_is_that_of_ml_dtypes(dtype: DType) -> None:
    x = probes(dtype)
    if not float_format(dtype).has_nan:
        x = x[~np.isnan(x)]  # what a type without NaN makes of one is nobody's law
    with np.errstate(all="ignore"):
        same(round_float(x, dtype), x.astype(dtype.numpy).astype(np.float32))


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("dtype", IN_ORT, ids=str)
def test_rounding_is_that_of_onnxruntime(dtype: DType, saturate: bool) -> None:
    if saturate and dtype.bits == 16:
        pytest.skip("ONNX saturates casts to 8 bits only")
    x = probes(dtype)
    if dtype in (DType.FLOAT8E4M3FNUZ, DType.FLOAT8E5M2FNUZ):
        # Of numbers so small, onnxruntime keeps the sign that these types do not have.
        x = x[np.abs(x) > float_format(dtype).smallest / 2]
    if dtype.bits == 8 and not saturate:
        # Between the largest number and the next that there would be, onnxruntime 1.31 follows no rule: 480 becomes 448
        # in e4m3fn and NaN in e5m2, by the formats NaN and infinity.
        largest = float_format(dtype).largest
        x = x[(np.abs(x) <= largest) | (np.abs(x) > 1.2 * largest) | np.isnan(x)]
    got, expected = round_float(x, dtype, saturate=saturate), ort_cast(x, dtype, saturate)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_every_number_rounds_to_itself(dtype: DType) -> None:
    numbers = every_number(dtype)
    same(round_float(numbers, dtype), numbers)


def test_the_loss_of_rounding() -> None:
    x = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    assert -76 < 10 * np.log10(relative_loss(x, DType.FLOAT16)) < -72
    assert -57 < 10 * np.log10(relative_loss(x, DType.BFLOAT16)) < -53
    assert relative_loss(np.array([1e-12], np.float32), DType.FLOAT16) == 1.0
    assert relative_loss(np.array([1e-12], np.float32), DType.BFLOAT16) < 1e-4
    assert relative_loss(np.array([1e6, 1.0], np.float32), DType.FLOAT16) == np.inf
    assert relative_loss(np.zeros(3, np.float32), DType.FLOAT16) == 0.0
    assert relative_loss(np.array([np.inf, 1.0], np.float32), DType.FLOAT16) == 0.0


def test_no_format_of_a_type_that_is_none() -> None:
    with pytest.raises(OptionError, match="no float type of 4 to 16 bits"):
        float_format(DType.INT8)
    assert onnx.TensorProto.FLOAT16 == DType.FLOAT16.code
