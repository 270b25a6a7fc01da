"""Under the scales of ``pair_safe_scale`` no pair of codes saturates 16 bits, and none is larger than needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qir.ir import DType, StaticQuant
from qir.quant.arithmetic import quantize
from qir.quant.pairs import PAIR_LIMIT, PairLayout, conv_layout, pair_safe_scale, pairs_fit
from qir.quant.schemes import weight_scale

SHAPES = {
    PairLayout.COLUMNS: ((9, 5), 1),
    PairLayout.ROWS: ((5, 8), 0),
    PairLayout.CONV: ((6, 3, 3, 3), 0),
    PairLayout.ANY: ((6, 3, 2, 2), 0),
}


def weights(seed: int, shape: tuple[int, ...], heavy: bool) -> np.ndarray:
    generator = np.random.default_rng(seed)
    w = generator.standard_normal(shape) if heavy else generator.uniform(-1, 1, shape)
    return (w**3 if heavy else w).astype(np.float32)


@given(st.integers(0, 10**6), st.sampled_from(list(PairLayout)), st.booleans())
@settings(max_examples=200, deadline=None)
def test_scales_are_safe_and_the_smallest(seed: int, layout: PairLayout, heavy: bool) -> None:
    shape, axis = SHAPES[layout]
    w = weights(seed, shape, heavy)
    safe, full = pair_safe_scale(w, axis, layout), weight_scale(w, axis)
    assert safe.dtype == np.float32
    assert (safe >= full).all()
    assert (safe <= full * np.float32(2.01)).all()
    assert pairs_fit(quantize(w, StaticQuant.per_axis(DType.INT8, safe, axis)), layout)
    for channel in np.flatnonzero(safe > full):
        smaller = safe.copy()
        smaller[channel] = np.nextafter(safe[channel], np.float32(0))
        assert not pairs_fit(quantize(w, StaticQuant.per_axis(DType.INT8, smaller, axis)), layout)


@given(st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_one_scale_for_all(seed: int) -> None:
    w = weights(seed, (8, 6), True)
    scale = pair_safe_scale(w, None, PairLayout.COLUMNS)
    assert scale.shape == ()
    assert scale == pair_safe_scale(w, 1, PairLayout.COLUMNS).max()
    assert pairs_fit(quantize(w, StaticQuant.per_tensor(DType.INT8, float(scale))), PairLayout.COLUMNS)


def test_the_rule() -> None:
    fits = [(127, 1), (1, 127), (64, 64), (-64, -64), (127, -128), (-127, -1), (0, 127)]
    fails = [(127, 2), (64, 65), (-65, -64), (-127, -2)]
    for pair in fits:
        assert pairs_fit(np.array([pair], np.int8), PairLayout.ROWS), pair
    for pair in fails:
        assert sum(map(abs, pair)) > PAIR_LIMIT
        assert not pairs_fit(np.array([pair], np.int8), PairLayout.ROWS), pair
        apart = np.array([[0, pair[0], pair[1], 0]], np.int8)
        assert pairs_fit(apart, PairLayout.ROWS), pair
        assert not pairs_fit(apart, PairLayout.ANY), pair


def test_degenerate_weights() -> None:
    w = np.zeros((4, 3), np.float32)
    w[0] = [1, 1, 0]
    w[1] = [0, 1e-30, 1e-30]
    scale = pair_safe_scale(w, 0, PairLayout.ROWS)
    assert np.isfinite(scale).all() and (scale > 1e-20).all()
    # The codes of the tied pair must be 64 + 64; 63.5 and 64.5 round to the even 64.
    assert scale[0] == np.nextafter(np.float32(1 / 64.5), np.float32(1)) or scale[0] == np.float32(1 / 64.5)
    for shape in [(3, 1), (3, 0), (1, 1)]:
        assert pair_safe_scale(np.ones(shape, np.float32), 0, PairLayout.ROWS).shape == (shape[0],)
        assert pair_safe_scale(np.ones(shape, np.float32), 0, PairLayout.ANY).shape == (shape[0],)


def run(node: onnx.NodeProto, x: np.ndarray, constants: Mapping[str, Any], out: int) -> np.ndarray:
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", out, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("k", [8, 33])
def test_matmul_saturates_in_no_other_pairs(rows: int, k: int) -> None:
    """On a CPU whose kernels saturate, exactly the pairs that the layout names do; on others none."""
    places = [(a, b) for a in range(k) for b in range(a + 1, k)]
    w = np.zeros((k, len(places)), np.int8)
    for column, pair in enumerate(places):
        w[pair, column] = 127
    y = run(
        helper.make_node("MatMulInteger", ["x", "w"], ["y"]),
        np.full((rows, k), 255, np.uint8),
        {"w": w},
        TensorProto.INT32,
    )
    saturated = (y != 2 * 127 * 255).any(axis=0)
    for column in np.flatnonzero(saturated).tolist():
        assert not pairs_fit(w[:, column : column + 1], PairLayout.COLUMNS)


@pytest.mark.parametrize(
    ("channels", "kernel", "group"),
    [
        *((4, (3, 3), 1), (3, (3, 3), 1), (5, (2, 3), 1), (16, (1, 1), 1), (8, (3, 3), 2), (1, (3, 3), 1)),
        *((6, (3,), 1), (6, (3, 3), 6), (3, (2, 2, 2), 1)),
    ],
)
def test_conv_saturates_in_no_other_pairs(channels: int, kernel: tuple[int, ...], group: int) -> None:
    k = channels // group * int(np.prod(kernel))
    places = [(a, b) for a in range(k) for b in range(a + 1, k)]
    rows = np.zeros((-(-len(places) // group) * group, k), np.int8)
    for row, pair in enumerate(places):
        rows[row, list(pair)] = 127
    w = rows.reshape(-1, channels // group, *kernel)
    layout = conv_layout(w.shape, group)
    scalars: dict[str, Any] = {"s": np.float32(1), "z": np.uint8(0), "wz": np.int8(0), "ys": np.float32(512)}
    y = run(
        helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "wz", "ys", "z"], ["y"], group=group),
        np.full((1, channels, *[d + 2 for d in kernel]), 255, np.uint8),
        {**scalars, "w": w},
        TensorProto.UINT8,
    )
    wrong = (np.abs(y[0].astype(int).reshape(len(w), -1) - round(2 * 127 * 255 / 512)) > 1).any(axis=1)
    for row in np.flatnonzero(wrong[: len(places)]).tolist():
        assert layout is not None and not pairs_fit(w[row : row + 1], layout)


def test_depthwise_needs_nothing() -> None:
    assert conv_layout((8, 1, 3, 3), 8) is None
    assert conv_layout((16, 1, 3, 3), 8) is PairLayout.CONV
    assert conv_layout((8, 2, 3, 3), 4) is PairLayout.CONV
    x = np.full((1, 8, 5, 5), 255, np.uint8)
    scalars: dict[str, Any] = {"s": np.float32(1), "z": np.uint8(0), "wz": np.int8(0), "ys": np.float32(2048)}
    y = run(
        helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "wz", "ys", "z"], ["y"], group=8),
        x,
        {**scalars, "w": np.full((8, 1, 3, 3), 127, np.int8)},
        TensorProto.UINT8,
    )
    assert (y == round(9 * 127 * 255 / 2048)).all()


@pytest.mark.parametrize("group", [1, 2])
def test_worst_inputs_are_exact(group: int) -> None:
    """Activations of 255 wherever a channel's weights are positive (or negative): the largest sums there are."""
    w = weights(9, (8, 6 // group, 3, 3), True)
    codes = quantize(w, StaticQuant.per_axis(DType.INT8, pair_safe_scale(w, 0, PairLayout.CONV), 0))
    for sign in (1, -1):
        for channel in range(8):
            part = np.where(sign * codes[channel].astype(int) > 0, 255, 0).astype(np.uint8)
            x = np.zeros((1, 6, 3, 3), np.uint8)
            first = channel // (8 // group) * (6 // group)
            x[0, first : first + len(part)] = part
            y = run(
                helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "wz", "ys", "yz"], ["y"], group=group),
                x,
                {
                    "s": np.float32(1),
                    "z": np.uint8(0),
                    "w": codes,
                    "wz": np.int8(0),
                    "ys": np.float32(4096),
                    "yz": np.uint8(128),
                },
                TensorProto.UINT8,
            )
            exact = (codes[channel].astype(np.int64) * part).sum()
            assert y[0, channel, 0, 0] == np.clip(np.rint(exact / 4096) + 128, 0, 255)
