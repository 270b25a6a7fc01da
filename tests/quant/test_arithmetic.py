"""The reference arithmetic is that of onnxruntime to the bit, of onnx.reference where onnxruntime has no kernel."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from qir.errors import OptionError
from qir.ir import DType, StaticQuant
from qir.quant.arithmetic import (
    bias_quant,
    bias_scale,
    dequantize,
    fake_quantize,
    quantize,
    requantize,
    round_half_even,
    saturate,
    scale_shape,
)

INTEGERS = [DType.UINT8, DType.INT8, DType.UINT16, DType.INT16, DType.UINT4, DType.INT4]
FLOAT8 = [DType.FLOAT8E4M3FN, DType.FLOAT8E4M3FNUZ, DType.FLOAT8E5M2, DType.FLOAT8E5M2FNUZ]
SPECIAL = np.array(
    [
        *(0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 1e-45, -1e-45, 1e-39, 1e30, -1e30, 3.4e38, -3.4e38, np.inf, -np.inf),
        *(126.5, 127.5, 128.5, 254.5, 255.5, 256.5, -127.5, -128.5, -129.5, 65534.5, 65535.5, 32766.5, 448, 464, 465),
    ],
    np.float32,
)


def model(q: StaticQuant, shape: tuple[int, ...], codes_in: bool) -> onnx.ModelProto:
    """One QuantizeLinear (codes come out cast to a type that every runtime can hand out) or DequantizeLinear."""
    scales = np.array(q.scale, np.float32).reshape(scale_shape(shape, q))
    zeros = np.broadcast_to(np.array(q.zero_point), (len(q.scale),)).reshape(scales.shape)
    constants = [
        helper.make_tensor("s", TensorProto.FLOAT, scales.shape, scales.reshape(-1)),
        helper.make_tensor("z", q.dtype.code, zeros.shape, zeros.reshape(-1).tolist()),
    ]
    attributes: dict[str, Any] = {"axis": q.axis or 0} | ({"block_size": q.block_size} if q.block_size else {})
    wide = TensorProto.FLOAT
    if codes_in:
        nodes = [
            helper.make_node("Cast", ["x"], ["c"], to=q.dtype.code),
            helper.make_node("DequantizeLinear", ["c", "s", "z"], ["y"], **attributes),
        ]
    else:
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["c"], **attributes),
            helper.make_node("Cast", ["c"], ["y"], to=wide),
        ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", wide, shape)],
        [helper.make_tensor_value_info("y", wide, shape)],
        constants,
    )
    opset = 25 if q.dtype.bits == 2 else 21
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=13 if opset > 21 else 10)


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def check_both_ways(x: np.ndarray, q: StaticQuant) -> None:
    codes = quantize(x, q)
    assert codes.dtype == q.dtype.numpy
    assert codes.shape == x.shape
    np.testing.assert_array_equal(codes.astype(np.float32), run(model(q, x.shape, False), x))
    wide = codes.astype(np.float32)
    np.testing.assert_array_equal(dequantize(codes, q), run(model(q, x.shape, True), wide))
    np.testing.assert_array_equal(dequantize(codes, q), fake_quantize(x, q))


def zero_points(dtype: DType) -> list[int]:
    return [0] if not dtype.is_integer else [0, dtype.qmin, dtype.qmax, (dtype.qmin + dtype.qmax + 1) // 2]


def samples(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    generator = np.random.default_rng(seed)
    x = (generator.standard_normal(shape) * 10.0 ** generator.integers(-3, 6, shape)).astype(np.float32)
    halves = generator.random(shape) < 0.3
    x[halves] = generator.integers(-300, 300, shape)[halves] + np.float32(0.5)
    return x


@pytest.mark.parametrize("dtype", [DType.UINT2, DType.INT2], ids=str)
def test_two_bits_equal_onnxruntime(dtype: DType) -> None:
    # Its 2-bit kernel converts to 32-bit integers before it saturates: quotients beyond wrap around there, not here.
    x = np.concatenate([SPECIAL[np.abs(SPECIAL) < 1e9], samples(0, (97,))])
    for zero in zero_points(dtype):
        check_both_ways(x, StaticQuant.per_tensor(dtype, 0.7, zero))
    assert quantize(np.array([np.inf], np.float32), StaticQuant.per_tensor(dtype, 0.7)).item() == dtype.qmax


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOAT8], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.0123, 3e-39, 1e30])
def test_per_tensor_equals_onnxruntime(dtype: DType, scale: float) -> None:
    for zero in zero_points(dtype):
        check_both_ways(np.concatenate([SPECIAL, samples(0, (97,))]), StaticQuant.per_tensor(dtype, scale, zero))


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOAT8], ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_per_axis_equals_onnxruntime(dtype: DType, axis: int) -> None:
    x = samples(1, (3, 5, 7))
    scale = np.geomspace(1e-3, 30, x.shape[axis]).astype(np.float32)
    zero = np.resize(zero_points(dtype), len(scale))
    check_both_ways(x, StaticQuant.per_axis(dtype, scale, axis, zero))


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOAT8], ids=str)
@pytest.mark.parametrize(("axis", "block"), [(0, 2), (1, 4), (2, 3), (1, 8), (2, 100)])
def test_blocks_equal_onnxruntime(dtype: DType, axis: int, block: int) -> None:
    x = samples(2, (4, 8, 6))
    grid = [4, 8, 6]
    grid[axis] = -(-grid[axis] // block)
    scale = np.geomspace(1e-3, 30, int(np.prod(grid))).astype(np.float32)
    zero = np.resize(zero_points(dtype), len(scale))
    check_both_ways(x, StaticQuant(dtype, tuple(scale.tolist()), tuple(map(int, zero)), axis, block))


def test_uneven_blocks_equal_blocks_of_their_own() -> None:
    x = samples(3, (2, 7))
    q = StaticQuant(DType.INT8, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0,), 1, 3)
    for row in range(2):
        for part, (start, stop) in enumerate([(0, 3), (3, 6), (6, 7)]):
            alone = StaticQuant.per_tensor(DType.INT8, q.scale[3 * row + part])
            np.testing.assert_array_equal(quantize(x, q)[row, start:stop], quantize(x[row, start:stop], alone))


def test_nan_becomes_what_onnxruntime_makes_of_it() -> None:
    x = np.full(40, np.nan, np.float32)
    for dtype in (DType.UINT8, DType.INT8):
        check_both_ways(x, StaticQuant.per_tensor(dtype, 0.1, 3))
    assert np.isnan(quantize(x, StaticQuant.per_tensor(DType.FLOAT8E4M3FN, 1.0)).astype(np.float32)).all()


@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40),
    st.floats(2.0**-120, 2.0**120, width=32),
    st.sampled_from(INTEGERS + FLOAT8),
    st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_any_floats_equal_onnxruntime(numbers: list[float], scale: float, dtype: DType, pick: int) -> None:
    zeros = zero_points(dtype)
    # onnxruntime's scalar 4-bit loop converts to 32-bit integers before it saturates, so larger quotients wrap around.
    limit = 2.0**30 * scale if dtype.bits < 8 else np.inf
    numbers = [float(np.clip(x, -limit, limit)) for x in numbers]
    check_both_ways(np.array(numbers, np.float32), StaticQuant.per_tensor(dtype, scale, zeros[pick % len(zeros)]))


@given(st.sampled_from(FLOAT8), st.integers(0, 255), st.integers(0, 255), st.integers(-2, 2))
@settings(max_examples=200, deadline=None)
def test_float8_rounds_ties_to_even(dtype: DType, first: int, second: int, nudge: int) -> None:
    a, b = np.array([first, second], np.uint8).view(dtype.numpy).astype(np.float32)
    if not np.isfinite(a + b):
        return
    middle = np.float32((a + b) / 2)
    x = np.array([middle + nudge * np.spacing(middle)], np.float32)
    q = StaticQuant.per_tensor(dtype, 1.0)
    np.testing.assert_array_equal(quantize(x, q).astype(np.float32), run(model(q, x.shape, False), x))


@pytest.mark.parametrize("dtype", [DType.FLOAT4E2M1, *INTEGERS], ids=str)
def test_equals_the_onnx_reference(dtype: DType) -> None:
    x = np.clip(samples(4, (200,)), -1e6, 1e6)
    q = StaticQuant.per_tensor(dtype, 0.37, zero_points(dtype)[-1])
    results: Any = ReferenceEvaluator(model(q, x.shape, False)).run(None, {"x": x})
    np.testing.assert_array_equal(quantize(x, q).astype(np.float32), np.asarray(results[0], np.float32))


@pytest.mark.parametrize("dtype", [DType.INT32, DType.UINT32], ids=str)
def test_32_bits(dtype: DType) -> None:
    q = StaticQuant.per_tensor(dtype, 0.25)
    x = np.array([0.0, 0.125, 0.375, 100.0, 1e30, -1e30, np.inf, np.nan, 4194304.25], np.float32)
    nan = dtype.qmin
    expected = [0, 0, 2, 400, dtype.qmax, dtype.qmin, dtype.qmax, nan, 4194304 * 4 + (0 if x[-1] == 4194304 else 1)]
    np.testing.assert_array_equal(quantize(x, q), np.array(expected, dtype.numpy))
    assert dequantize(np.array([dtype.qmax], dtype.numpy), q)[0] == np.float32(dtype.qmax) * np.float32(0.25)


def test_bias_dequantization_equals_onnxruntime() -> None:
    codes = np.array([0, 1, -1, 2**31 - 1, -(2**31), 2**24 + 1, -(2**24) - 1, 123456789], np.int32)
    x = StaticQuant.per_tensor(DType.UINT8, 0.0123, 7)
    w = StaticQuant.per_axis(DType.INT8, np.geomspace(1e-4, 1, len(codes)).astype(np.float32), 0)
    q = bias_quant(x, w)
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["c", "s"], ["y"], axis=0)],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.INT32, codes.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, codes.shape)],
        [onnx.numpy_helper.from_array(q.scale_array(), "s")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(dequantize(codes, q), session.run(None, {"c": codes})[0])


def test_bias_scale_is_the_float32_product() -> None:
    product = bias_scale(0.1, np.array([0.3, 0.7]))
    assert product.dtype == np.float32
    np.testing.assert_array_equal(product, np.float32(0.1) * np.array([0.3, 0.7], np.float32))
    with pytest.raises(OptionError, match="no normal float32"):
        bias_scale(1e-30, 1e-30)
    with pytest.raises(OptionError, match="no normal float32"):
        bias_scale(1e30, 1e30)


@pytest.mark.parametrize("per_channel", [False, True])
def test_requantize_equals_qlinearconv(per_channel: bool) -> None:
    generator = np.random.default_rng(5)
    x = generator.integers(0, 256, (1, 4, 6, 6), np.uint8)
    w = generator.integers(-60, 61, (8, 4, 3, 3), np.int8)  # within 7 bits: exact on every CPU
    bias = generator.integers(-4000, 4000, 8, np.int32)
    w_scale = np.geomspace(0.001, 0.02, 8).astype(np.float32) if per_channel else np.array(0.01, np.float32)
    x_scale, y = np.float32(0.031), StaticQuant.per_tensor(DType.UINT8, 0.77, 121)
    constants: dict[str, Any] = {
        "xs": x_scale,
        "xz": np.uint8(9),
        "w": w,
        "ws": w_scale,
        "wz": np.zeros(w_scale.shape, np.int8),
    }
    constants |= {"ys": y.scale_array(), "yz": np.uint8(121), "b": bias}
    graph = helper.make_graph(
        [helper.make_node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, (1, 8, 4, 4))],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    windows = np.lib.stride_tricks.sliding_window_view(x[0].astype(np.int64) - 9, (3, 3), axis=(1, 2))
    accumulators = np.einsum("chwij,mcij->mhw", windows, w.astype(np.int64)) + bias[:, None, None]
    got = requantize(accumulators.astype(np.int32)[None], bias_scale(float(x_scale), w_scale), y, axis=1)
    np.testing.assert_array_equal(got, run(proto, x))


def test_fake_quantize_is_idempotent() -> None:
    for dtype in (DType.UINT8, DType.INT8, DType.INT4):
        q = StaticQuant.per_tensor(dtype, 0.0371, zero_points(dtype)[-1])
        once = fake_quantize(samples(6, (500,)), q)
        np.testing.assert_array_equal(quantize(once, q), quantize(fake_quantize(once, q), q))
        np.testing.assert_array_equal(fake_quantize(once, q), once)


def test_other_float_inputs_and_strides() -> None:
    q = StaticQuant.per_axis(DType.UINT8, np.array([0.1, 0.2, 0.4], np.float32), 1, np.array([0, 10, 255]))
    x = samples(7, (3, 4)).T
    for dtype in (np.float16, np.float64, ml_dtypes.bfloat16):
        narrow = np.clip(x, -6e4, 6e4).astype(dtype)
        np.testing.assert_array_equal(quantize(narrow, q), quantize(narrow.astype(np.float32), q))
    assert quantize(np.zeros((0, 3), np.float32), q).shape == (0, 3)
    assert quantize(np.array(0.26), StaticQuant.per_tensor(DType.UINT8, 0.1)).item() == 3


@pytest.mark.parametrize(
    "q",
    [
        StaticQuant.per_tensor(DType.UINT8, 0.02, 100),
        StaticQuant.per_axis(DType.INT8, np.linspace(0.01, 0.1, 700), 0),
        StaticQuant.per_axis(DType.INT8, np.linspace(0.01, 0.1, 900), 1),
        StaticQuant(DType.INT4, tuple(np.linspace(0.1, 1, 700 * 15).tolist()), (0,), 1, 64),
    ],
    ids=["tensor", "axis 0", "axis 1", "blocks"],
)
def test_large_tensors_are_cut_into_pieces(q: StaticQuant) -> None:
    x = np.random.default_rng(8).standard_normal((700, 900)).astype(np.float32)
    check_both_ways(x, q)


def test_small_helpers() -> None:
    np.testing.assert_array_equal(round_half_even(np.array([0.5, 1.5, -2.5])), [0, 2, -2])
    np.testing.assert_array_equal(saturate(np.array([-200, 0, 300]), DType.INT8), np.array([-128, 0, 127], np.int8))


def test_misfits_are_refused() -> None:
    with pytest.raises(OptionError, match="outside of a tensor of rank 1"):
        quantize(np.zeros(3), StaticQuant(DType.INT8, (1.0,), (0,), 1))
    with pytest.raises(OptionError, match="needs 3"):
        quantize(np.zeros((3, 2)), StaticQuant(DType.INT8, (1.0, 2.0), (0,), 0))
    with pytest.raises(OptionError, match="no type for quantized numbers"):
        quantize(np.zeros(3), StaticQuant.per_tensor(DType.FLOAT16, 1.0))
    with pytest.raises(OptionError, match="per-tensor"):
        requantize(np.zeros((2, 2), np.int32), 1.0, StaticQuant(DType.INT8, (1.0, 1.0), (0,), 0))
    with pytest.raises(OptionError, match="per-tensor input"):
        bias_quant(StaticQuant(DType.UINT8, (1.0, 1.0), (0,), 0), StaticQuant.per_tensor(DType.INT8, 1.0))
