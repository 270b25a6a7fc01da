"""Scales of blocks: where they stand, what they cover, that least squares is never worse."""

from __future__ import annotations

import numpy as np
import pytest

from qir.errors import OptionError
from qir.ir import DType
from qir.quant.arithmetic import dequantize, fake_quantize, quantize
from qir.quant.blocks import block_quant, unit_rows, units_like
from qir.quant.gptq import Moments, output_error, round_numbers

SHAPES = [((64, 5), 0), ((5, 64), 1), ((50, 3), 0), ((3, 33), 1), ((2, 70, 4), 1), ((8, 40, 3, 3), 1), ((1, 7), 1)]


def weight(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("block", [16, 32, None])
def test_extremes_are_within_half_a_step(
    shape: tuple[int, ...], axis: int, block: int | None, symmetric: bool, bits: int
) -> None:
    w = weight(shape)
    quant = block_quant(w, axis, block, bits, symmetric=symmetric, fit="nearest")
    step = units_like(quant.scale_array(), shape, axis, block)
    # The zero point is rounded too, so an end of the range may lie half a step outside of the codes.
    assert (np.abs(fake_quantize(w, quant) - w) <= step * (0.5001 if symmetric else 1.0001)).all()
    assert quant.dtype.bits == bits and quant.is_symmetric == symmetric


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_least_squares_is_no_worse_in_any_unit(shape: tuple[int, ...], axis: int, symmetric: bool, bits: int) -> None:
    w = weight(shape, 1)
    errors = []
    for fit in ("nearest", "mse"):
        difference = fake_quantize(w, block_quant(w, axis, 16, bits, symmetric=symmetric, fit=fit)) - w  # type: ignore[arg-type]
        errors.append((unit_rows(difference, axis, 16) ** 2).sum(axis=1))
    assert (errors[1] <= errors[0] * 1.0001 + 1e-12).all()
    if bits == 4 and w.size > 100:
        assert errors[1].sum() < errors[0].sum()


def test_what_counts_more_is_more_exact() -> None:
    w = weight((64, 32), 2)
    importance = np.where(np.arange(64) % 2, 1.0, 100.0)[:, None]
    plain, counted = (fake_quantize(w, block_quant(w, 0, 32, 4, importance=one)) - w for one in (None, importance))
    assert (counted[::2] ** 2).sum() < (plain[::2] ** 2).sum()


def test_codes_survive_the_way_back() -> None:
    w = weight((70, 6), 3)
    quant = block_quant(w, 0, 32, 4, symmetric=False)
    codes = quantize(w, quant)
    assert np.array_equal(quantize(dequantize(codes, quant), quant), codes)


def test_zeros_and_large_pieces() -> None:
    assert not fake_quantize(np.zeros((32, 2), np.float32), block_quant(np.zeros((32, 2), np.float32), 0, 16, 4)).any()
    w = weight((40, 40_000), 4)  # looked at in several pieces
    assert block_quant(w, 0, 16, 4, fit="nearest").scale == block_quant(w[:, :], 0, 16, 4, fit="nearest").scale
    left, whole = block_quant(w[:, :7], 0, 16, 4), block_quant(w, 0, 16, 4)
    grid = np.reshape(whole.scale, (3, 40_000))[:, :7]
    np.testing.assert_allclose(np.reshape(left.scale, (3, 7)), grid, rtol=1e-6)


def test_refusals() -> None:
    with pytest.raises(OptionError, match="infinite or NaN"):
        block_quant(np.full((16, 2), np.inf, np.float32), 0, 16, 4)
    with pytest.raises(OptionError, match="4 or 8 bits, not 3"):
        block_quant(np.ones((16, 2), np.float32), 0, 16, 3)


def test_second_order_rounding_lowers_the_error_and_stays_on_the_grid() -> None:
    draw = np.random.default_rng(5)
    x = np.rint((draw.normal(size=(400, 12)) @ draw.normal(size=(12, 48))) * 8).astype(np.float32)
    moments = Moments(1, 48)
    moments.add(x[None])
    hessian = moments.hessian()
    w = weight((20, 48), 6)
    quant = block_quant(w, 1, 16, 4, symmetric=False)
    scale = units_like(quant.scale_array(), w.shape, 1, 16)
    zero = units_like(quant.zero_point_array(), w.shape, 1, 16)
    low, high = DType.UINT4.qmin - zero, DType.UINT4.qmax - zero
    found = round_numbers(w[None].astype(np.float64), hessian, scale[None], low[None], high[None])[0]
    np.testing.assert_allclose(fake_quantize(found.astype(np.float32), quant), found, rtol=1e-5, atol=1e-7)
    nearest = fake_quantize(w, quant)
    before, after = (output_error((w - one)[None], hessian).sum() for one in (nearest, found))
    assert after < 0.5 * before
