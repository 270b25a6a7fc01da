"""Parameters chosen from ranges: what they must cover, and the ranges that used to break quantizers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qir.errors import OptionError
from qir.ir import DType, Interval, StaticQuant
from qir.quant.arithmetic import bias_scale, fake_quantize, quantize
from qir.quant.schemes import (
    BIAS_LIMIT,
    SMALLEST_SCALE,
    activation_quant,
    bias_safe_scale,
    code_limit,
    weight_quant,
    weight_scale,
)

bounds = st.floats(-(2.0**100), 2.0**100, width=32)


@given(bounds, bounds, st.sampled_from([DType.UINT8, DType.INT8, DType.UINT16, DType.INT16, DType.UINT4]))
def test_asymmetric_covers_the_range_and_zero(a: float, b: float, dtype: DType) -> None:
    lo, hi = min(a, b), max(a, b)
    q = activation_quant(Interval(lo, hi), dtype)
    scale, zero = np.float64(q.scale[0]), q.zero_point[0]
    assert scale >= SMALLEST_SCALE
    assert dtype.qmin <= zero <= dtype.qmax
    least, most = (dtype.qmin - zero) * scale, (dtype.qmax - zero) * scale
    # Rounding the zero point may shift the grid by half a step; float32 scales are off by 2^-24 of the range.
    slack = 0.5 * scale + 2.0**-22 * max(abs(lo), abs(hi))
    assert least <= min(lo, 0) + slack
    assert most >= max(hi, 0) - slack
    assert fake_quantize(np.zeros(1, np.float32), q)[0] == 0


@given(st.floats(0, 2.0**100, width=32), st.floats(0, 2.0**100, width=32))
def test_non_negative_ranges_start_at_the_smallest_code(a: float, b: float) -> None:
    assert activation_quant(Interval(min(a, b), max(a, b))).zero_point == (0,)
    assert activation_quant(Interval(min(a, b), max(a, b)), DType.INT8).zero_point == (-128,)


@given(bounds, bounds)
def test_symmetric(a: float, b: float) -> None:
    range_ = Interval(min(a, b), max(a, b))
    signed = activation_quant(range_, DType.INT8, symmetric=True)
    unsigned = activation_quant(range_, DType.UINT8, symmetric=True)
    assert (signed.zero_point, unsigned.zero_point) == ((0,), (128,))
    assert signed.scale == unsigned.scale
    assert signed.scale[0] * 127 >= range_.magnitude * (1 - 2.0**-23)


def test_reduced_range_keeps_to_seven_bits() -> None:
    q = activation_quant(Interval(-1.0, 3.0), reduce_range=True)
    codes = quantize(np.array([-1.0, 0.0, 3.0], np.float32), q)
    assert codes.tolist() == [0, 32, 127]
    assert code_limit(DType.INT8) == 127
    assert code_limit(DType.INT8, reduce_range=True) == 64
    w = np.array([[1.0, -1.0]], np.float32)
    assert np.abs(quantize(w, weight_quant(w, 0, reduce_range=True)).astype(int)).max() == 64


def test_odd_ranges() -> None:
    nothing = activation_quant(Interval(float("inf"), float("-inf")))
    assert nothing == activation_quant(Interval(0.0, 0.0))
    assert fake_quantize(np.zeros(3, np.float32), nothing).tolist() == [0, 0, 0]
    assert activation_quant(Interval(0.0, 1e-44)).scale[0] == SMALLEST_SCALE
    wide = activation_quant(Interval(-3.4028234e38, 3.4028234e38))
    assert np.isfinite(wide.scale[0])
    per_channel = activation_quant(Interval((-1.0, 0.0), (2.0, 5.0), 0))
    assert per_channel == activation_quant(Interval(-1.0, 5.0))
    with pytest.raises(OptionError, match="infinite range"):
        activation_quant(Interval(0.0, float("inf")))


def test_weight_scales_per_channel() -> None:
    w = np.array([[1.0, -2.0], [0.0, 0.0], [0.5, 0.25], [1e-40, 0.0]], np.float32)
    scale = weight_scale(w, 0)
    assert scale.dtype == np.float32
    assert scale[0] == np.float32(2 / 127)
    assert scale[1] == np.float32(np.median([2, 0.5, np.float64(np.float32(1e-40))]) / 127)
    assert scale[3] == SMALLEST_SCALE
    codes = quantize(w, weight_quant(w, 0))
    assert codes[0].tolist() == [64, -127]
    assert codes[1].tolist() == [0, 0]
    assert weight_scale(w, None).shape == ()
    assert weight_quant(w, -1) == weight_quant(w, 1)
    assert weight_quant(w, None) == StaticQuant.per_tensor(DType.INT8, 2 / 127)
    assert np.isfinite(bias_scale(SMALLEST_SCALE, scale)).all()


def test_all_zero_and_empty_weights() -> None:
    assert quantize(np.zeros((2, 2), np.float32), weight_quant(np.zeros((2, 2), np.float32), 0)).sum() == 0
    assert weight_scale(np.zeros((2, 0), np.float32), 0).shape == (2,)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_weights_that_have_no_scale(bad: float) -> None:
    with pytest.raises(OptionError, match="infinite or NaN"):
        weight_scale(np.array([[1.0, bad]], np.float32), 0)


def test_a_bias_beside_tiny_weights_does_not_saturate() -> None:
    scale, bias, x = np.array([1e-12, 0.01], np.float32), np.array([0.5, -0.5], np.float32), 0.02
    assert np.abs(bias / bias_scale(x, scale)).max() > 2**31
    safe = bias_safe_scale(scale, bias, x)
    assert safe[1] == scale[1]
    assert np.abs(bias / np.float64(x) / safe).max() <= BIAS_LIMIT * (1 + 1e-6)
