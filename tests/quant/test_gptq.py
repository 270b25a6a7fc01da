"""Second-order rounding: never worse than rounding to the nearest where it is judged, and within every limit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qir.quant.gptq import Moments, output_error, round_codes
from qir.quant.layer_rows import ConvRows, MatrixRows, spread_positions
from qir.quant.pairs import PairLayout, pairs_fit


def inputs(seed: int, groups: int, rows: int, columns: int) -> np.ndarray:
    """Correlated 8-bit codes less their zero point: few causes behind many columns."""
    draw = np.random.default_rng(seed)
    causes = draw.standard_normal((groups, rows, max(1, columns // 2)))
    mixed = causes @ draw.standard_normal((groups, causes.shape[2], columns)) + 0.3 * draw.standard_normal(
        (groups, rows, columns)
    )
    return np.clip(np.rint(mixed * 20 + 30), -128, 127).astype(np.float32)


def moments(rows: np.ndarray) -> Moments:
    found = Moments(rows.shape[0], rows.shape[2])
    found.add(rows)
    return found


def targets(seed: int, shape: tuple[int, ...], largest: float = 100.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-largest, largest, shape)


def test_moments_are_exact_sums() -> None:
    rows = np.random.default_rng(0).integers(-255, 256, (2, 5000, 7)).astype(np.float32)
    found = Moments(2, 7)
    found.add(rows[:, :4321])
    found.add(rows[:, 4321:])
    whole = rows.astype(np.int64)
    products = np.swapaxes(whole, 1, 2) @ whole
    np.testing.assert_array_equal(found.hessian(), products / 5000)
    mean = whole.mean(axis=1)
    np.testing.assert_allclose(
        found.hessian(mean_weight=0), products / 5000 - mean[:, :, None] * mean[:, None, :], rtol=1e-12
    )


def test_moments_do_not_depend_on_the_order_of_rows() -> None:
    rows = inputs(1, 1, 3000, 24)
    turned = moments(rows[:, ::-1].copy()).hessian()
    np.testing.assert_array_equal(moments(rows).hessian(), turned)


@pytest.mark.parametrize("activation_order", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("columns", [9, 150, 300])
def test_results_change_less_than_with_nearest_codes(columns: int, groups: int, activation_order: bool) -> None:
    rows, unseen = (
        inputs(columns, groups, 10 * columns, columns)[:, part] for part in (slice(0, None, 2), slice(1, None, 2))
    )
    wanted = targets(5, (groups, 6, columns))
    hessian = moments(rows).hessian()
    plain = round_codes(wanted, hessian, activation_order=activation_order, sweeps=0)
    swept = round_codes(wanted, hessian, activation_order=activation_order, sweeps=2)
    nearest, once, more = (
        np.square((wanted - codes) @ np.swapaxes(unseen, 1, 2)).mean() for codes in (np.rint(wanted), plain, swept)
    )
    assert once < 0.7 * nearest
    assert more < 1.05 * once  # on the rows themselves never worse, on others within noise
    assert np.abs(wanted - swept).max() < 127


def test_sweeps_never_make_the_fitted_error_larger() -> None:
    rows = inputs(3, 2, 400, 40)
    wanted = targets(4, (2, 8, 40))
    damped = moments(rows).hessian()
    damped += 0.01 * np.diagonal(damped, axis1=1, axis2=2).mean(axis=1)[:, None, None] * np.eye(40)
    errors = [
        output_error(wanted - round_codes(wanted, moments(rows).hessian(), sweeps=sweeps), damped)
        for sweeps in (0, 1, 2, 5)
    ]
    for before, after in pairwise(errors):
        assert (after <= before * (1 + 1e-12)).all()
    assert errors[-1].sum() < errors[0].sum()


def test_same_codes_as_by_inverses() -> None:
    """The same codes as by the inverse of what is left of the Hessian, as the papers have it."""
    rows = inputs(8, 1, 200, 12)
    hessian = moments(rows).hessian()
    wanted = targets(9, (1, 5, 12))
    damped = hessian[0] + 0.01 * np.diagonal(hessian[0]).mean() * np.eye(12)
    work, codes = wanted[0].copy(), np.zeros((5, 12))
    for column in range(12):
        inverse = np.linalg.inv(damped[column:, column:])
        codes[:, column] = np.rint(work[:, column])
        error = (work[:, column] - codes[:, column]) / inverse[0, 0]
        work[:, column:] -= error[:, None] * inverse[0]
    found = round_codes(wanted, hessian, damping=0.01, activation_order=False, sweeps=0)
    np.testing.assert_array_equal(found[0], codes)


def test_independent_inputs_leave_the_nearest_codes() -> None:
    wanted = targets(2, (1, 4, 6))
    np.testing.assert_array_equal(round_codes(wanted, np.diag(np.arange(1.0, 7.0))[None]), np.rint(wanted))
    np.testing.assert_array_equal(round_codes(wanted, np.zeros((1, 6, 6))), np.rint(wanted))  # inputs always 0


@given(
    st.integers(0, 10**6),
    st.integers(1, 20),
    st.integers(1, 3),
    st.sampled_from([64, 127]),
    st.booleans(),
    st.integers(0, 2),
)
@settings(max_examples=150, deadline=None)
def test_codes_stay_within_the_limits(
    seed: int, columns: int, groups: int, limit: int, activation_order: bool, sweeps: int
) -> None:
    rows = inputs(seed, groups, 30, columns)
    wanted = targets(seed, (groups, 4, columns), largest=200)
    hessian = moments(rows).hessian(mean_weight=0)
    codes = round_codes(
        wanted, hessian, limit=limit, pairs=True, activation_order=activation_order, sweeps=sweeps, damping=0.001
    )
    assert codes.dtype == np.int8 and np.abs(codes.astype(int)).max() <= limit
    for group in codes:
        assert pairs_fit(group, PairLayout.ROWS)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_positions_are_distinct_and_spread(seed: int) -> None:
    count, wanted = np.random.default_rng(seed).integers(1, 5000, 2)
    chosen = spread_positions(int(count), int(wanted))
    assert 0 < len(chosen) <= wanted and len(np.unique(chosen)) == len(chosen) and chosen.max() < count
    if wanted > 50:
        assert np.diff(chosen).max(initial=1) <= max(1, 4 * count // wanted + 1)


CONVOLUTIONS = {
    "plain": ((1, 3, 9, 7), (4, 3, 3, 3), {}),
    "strides and pads": ((2, 4, 9, 10), (6, 4, 3, 2), {"strides": [2, 1], "pads": [1, 0, 2, 1]}),
    "dilated": ((1, 2, 12, 12), (3, 2, 3, 3), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    "groups": ((1, 6, 5, 5), (4, 3, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": ((2, 5, 6, 6), (5, 1, 3, 3), {"group": 5, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "depthwise, two of each": ((1, 3, 6, 6), (6, 1, 3, 3), {"group": 3}),
    "same upper": ((1, 2, 8, 9), (3, 2, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ((1, 2, 8, 9), (3, 2, 2, 4), {"auto_pad": "SAME_LOWER", "strides": [3, 2]}),
    "one axis": ((2, 4, 20), (3, 4, 5), {"strides": [3], "pads": [2, 2]}),
    "three axes": ((1, 2, 5, 6, 4), (3, 2, 2, 3, 2), {"strides": [1, 2, 1]}),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_rows_times_matrix_is_the_convolution(case: str) -> None:
    x_shape, w_shape, attributes = CONVOLUTIONS[case]
    draw = np.random.default_rng(0)
    x = draw.integers(-9, 9, x_shape).astype(np.float32)
    w = draw.integers(-9, 9, w_shape).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in (("x", x), ("w", w))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    y = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x, "w": w})[0]
    rank = len(w_shape) - 2
    geometry = ConvRows(
        w_shape,
        attributes.get("group", 1),
        tuple(attributes.get("strides", [1] * rank)),
        tuple(attributes.get("dilations", [1] * rank)),
        tuple(attributes.get("pads", [0] * 2 * rank)),
        attributes.get("auto_pad", "NOTSET"),
    )
    rows, matrix = geometry.rows(x, 10**6), geometry.matrix(w)
    product = rows @ np.swapaxes(matrix, 1, 2)  # (group, positions, channels a group)
    expected = np.moveaxis(y, 1, -1).reshape(-1, geometry.group, w_shape[0] // geometry.group)
    np.testing.assert_array_equal(np.moveaxis(product, 0, 1), expected)
    np.testing.assert_array_equal(geometry.weight(matrix), w)


@pytest.mark.parametrize("transposed", [False, True])
def test_rows_times_matrix_is_the_matrix_product(transposed: bool) -> None:
    x = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    w = np.arange(20, dtype=np.float32).reshape(4, 5)
    weight = np.ascontiguousarray(w.T) if transposed else w
    geometry = MatrixRows(transposed)
    product = geometry.rows(x, 100)[0] @ geometry.matrix(weight)[0].T
    np.testing.assert_array_equal(product, (x @ w).reshape(-1, 5))
    np.testing.assert_array_equal(geometry.weight(geometry.matrix(weight)), weight)
