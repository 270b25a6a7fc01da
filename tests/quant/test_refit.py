"""Levels fitted to codes: the error falls, and the numbers are what the file will hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qir.ir import CodebookQuant
from qir.quant.codebook import decode, encode, narrow_scales
from qir.quant.gptq import output_error
from qir.quant.refit import refit_levels


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 6, 9, 1), (1, 8, 12, 4), (2, 4, 7, 2)]), st.booleans())
def test_the_error_never_grows(seed: int, shape: tuple[int, int, int, int], tables: bool) -> None:
    draw = np.random.default_rng(seed)
    groups, rows, columns, parts = shape
    channels = groups * rows
    inputs = draw.normal(size=(groups, 40, columns)) @ draw.normal(size=(columns, columns))
    hessian = np.swapaxes(inputs, 1, 2) @ inputs / 40 + 0.01 * np.eye(columns)
    targets = draw.normal(size=(groups, rows, columns))
    table = np.sort(draw.uniform(-1, 1, (parts, 8)), axis=1).astype(np.float16).astype(np.float64)
    scale = narrow_scales(np.abs(targets).max(axis=2).reshape(-1))
    quant = CodebookQuant(3, tuple(map(tuple, table.tolist())), 0, tuple(scale.tolist()))
    matrix = targets.reshape(channels, columns)
    numbers = decode(encode(matrix, quant), quant, matrix.shape).reshape(targets.shape).astype(np.float64)

    fitted, made = refit_levels(quant, targets, numbers, hessian, tables=tables)

    before, after = (output_error(targets - one, hessian).sum() for one in (numbers, made))
    assert after <= before * (1 + 1e-3)  # levels and scales are rounded to f16
    assert (fitted.table == quant.table) is not tables
    stored = decode(encode(made.reshape(channels, columns), fitted), fitted, (channels, columns))
    np.testing.assert_array_equal(stored, made.reshape(channels, columns))


def test_what_can_be_met_is_met() -> None:
    """Targets that lie on other levels than those at hand, with the same codes: least squares finds these."""
    draw = np.random.default_rng(0)
    wanted = CodebookQuant(2, ((-1.0, -0.25, 0.5, 1.0),), 0, (0.5, 2.0, 1.0))
    codes = draw.integers(0, 4, (3, 64)).astype(np.uint8)
    targets = decode(codes, wanted, (3, 64)).astype(np.float64)[None]
    start = replace(wanted, table=((-0.75, -0.375, 0.375, 0.875),))
    numbers = decode(codes, start, (3, 64)).astype(np.float64)[None]
    _, made = refit_levels(start, targets, numbers, np.eye(64)[None], tables=True)
    np.testing.assert_allclose(made, targets, rtol=2e-3)


@pytest.mark.parametrize(
    ("scale", "kind"),
    [([0.0, 1.0, 0.001], np.float16), ([1e-7, 1.0], np.float32), ([1e6], np.float32), ([0.0], np.float16)],
)
def test_scales_are_narrow_where_the_range_allows(scale: list[float], kind: type) -> None:
    array = np.array(scale)
    np.testing.assert_array_equal(narrow_scales(array), array.astype(kind).astype(np.float32))
