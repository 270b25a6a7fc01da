"""Codebooks: what codes stand for, the nearest level, and tables that k-means finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qir.errors import OptionError
from qir.ir import CodebookQuant
from qir.quant.codebook import decode, encode, learn_tables, learn_vectors, level_count, part_count, row_levels

DRAW = np.random.default_rng
FOUR = ((-1.0, -0.25, 0.25, 1.0),)


def slowly(array: np.ndarray, quant: CodebookQuant) -> np.ndarray:
    """The nearest of its channel's levels for each number, one after the other."""
    result = np.empty(array.shape, np.float32)
    channels = 1 if quant.axis is None else array.shape[quant.axis]
    levels = row_levels(quant, channels)
    for index, number in np.ndenumerate(array):
        own = levels[0 if quant.axis is None else index[quant.axis]]
        result[index] = own[np.abs(own.astype(np.float64) - float(number)).argmin()]
    return result


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
@pytest.mark.parametrize("parts", [1, 2, 6])
def test_the_nearest_level_along_any_axis(axis: int | None, parts: int) -> None:
    draw = DRAW(0)
    array = draw.normal(size=(6, 6, 6)).astype(np.float32)
    tables = draw.uniform(-1, 1, (1 if axis is None else parts, 16)).astype(np.float32)
    scale = (2.5,) if axis is None else tuple(draw.uniform(0.5, 3, 6).astype(np.float32).tolist())
    quant = CodebookQuant(4, tuple(tuple(row) for row in tables.tolist()), axis, scale)
    codes = encode(array, quant)
    assert codes.dtype == np.uint8 and codes.max() < level_count(quant)
    numbers = decode(codes, quant, array.shape)
    np.testing.assert_array_equal(numbers, slowly(array, quant))
    np.testing.assert_array_equal(encode(numbers, quant), codes)


def test_ties_and_equal_levels_take_the_least_code() -> None:
    quant = CodebookQuant(2, ((0.0, 1.0, 0.0, -1.0),))
    np.testing.assert_array_equal(encode(np.array([0.0, 0.1, 1.0, 5.0, -5.0]), quant), [[0, 0, 1, 1, 3]])


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_numbers_on_levels_are_encoded_without_error(bits: int, seed: int) -> None:
    draw = DRAW(seed)
    table = tuple(draw.normal(size=1 << bits).astype(np.float32).tolist())
    scale = tuple(np.exp(draw.normal(size=3) * 5).astype(np.float32).tolist())
    quant = CodebookQuant(bits, (table,), 0, scale)
    numbers = decode(draw.integers(0, 1 << bits, (3, 20)).astype(np.uint8), quant, (3, 20))
    np.testing.assert_array_equal(decode(encode(numbers, quant), quant, (3, 20)), numbers)


def test_one_code_for_several_numbers() -> None:
    draw = DRAW(1)
    words = draw.normal(size=(16, 2)).astype(np.float32)
    quant = CodebookQuant(4, (tuple(words.reshape(-1).tolist()),), 0, (1.0, 2.0, 0.5), 2)
    array = draw.normal(size=(3, 5, 2)).astype(np.float32)
    codes = encode(array, quant)
    assert codes.shape == (3, 5)
    scale = np.array([1.0, 2.0, 0.5], np.float32)
    distance = ((array[:, :, None] - scale[:, None, None, None] * words) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(codes, distance.argmin(axis=-1))
    np.testing.assert_array_equal(decode(codes, quant, array.shape), scale[:, None, None] * words[codes])


def test_what_does_not_go_together() -> None:
    with pytest.raises(OptionError, match="do not cut channels of 3"):
        encode(np.zeros((2, 3), np.float32), CodebookQuant(1, ((0.0, 0.0, 1.0, 1.0),), 0, (1.0, 1.0), 2))
    with pytest.raises(OptionError, match="do not go with 3 channels"):
        row_levels(CodebookQuant(2, FOUR * 2, 0), 3)
    with pytest.raises(OptionError, match="infinite or NaN"):
        encode(np.array([np.nan]), CodebookQuant(2, FOUR))
    with pytest.raises(OptionError, match="at most 2 levels"):
        CodebookQuant(1, FOUR)
    with pytest.raises(OptionError, match="without an axis"):
        CodebookQuant(2, FOUR * 2)


def lloyd(x: np.ndarray, weight: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Plain k-means, for comparison."""
    for _ in range(40):
        near = np.abs(x[:, None] - table).argmin(axis=1)
        table = np.array(
            [
                np.average(x[near == i], weights=weight[near == i]) if (near == i).any() else t
                for i, t in enumerate(table)
            ]
        )
    return np.sort(table)


def error(x: np.ndarray, weight: np.ndarray, table: np.ndarray) -> float:
    return float((weight * np.abs(x[:, None] - table).min(axis=1) ** 2).sum())


def test_tables_are_as_good_as_plain_k_means() -> None:
    draw = DRAW(2)
    rows = np.clip(draw.laplace(size=(5, 700)) / 6, -1, 1)
    weights = draw.uniform(0, 3, rows.shape)
    tables = learn_tables(rows, weights, 16)
    assert tables.shape == (5, 16) and (np.diff(tables, axis=1) >= 0).all()
    for row, weight, table in zip(rows, weights, tables, strict=True):
        plain = lloyd(row, weight, np.linspace(row.min(), row.max(), 16))
        assert error(row, weight, table) <= 1.001 * error(row, weight, plain)


def test_tables_mind_the_weights() -> None:
    x = np.linspace(-1, 1, 1001)[None]
    heavy = np.where(x > 0.5, 1000.0, 1.0)
    even, leaning = learn_tables(x, np.ones_like(x), 8), learn_tables(x, heavy, 8)
    assert (leaning > 0.5).sum() > (even > 0.5).sum()


def test_few_numbers_and_dead_rows() -> None:
    rows = np.array([[0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 1.0, -1.0], [0.1, 0.2, 0.3, 0.4]])
    weights = np.array([[1.0] * 4, [0.0] * 4, [1.0] * 4])
    tables = learn_tables(rows, weights, 16)
    assert np.isfinite(tables).all()
    for row, table in zip(rows, tables, strict=True):
        assert np.abs(row[:, None] - table).min(axis=1).max() < 1e-9


def test_vectors_beat_single_numbers_where_they_hang_together() -> None:
    draw = DRAW(3)
    first = draw.normal(size=4000)
    vectors = np.stack([first, 0.95 * first + 0.3 * draw.normal(size=4000)], axis=1) / 5
    words = learn_vectors(vectors, np.ones(4000), 16)
    near = ((vectors[:, None] - words) ** 2).sum(axis=-1).min(axis=1).sum()
    table = learn_tables(np.clip(vectors.reshape(1, -1), -1, 1), np.ones((1, 8000)), 4)[0]  # as many bits
    assert near < 0.5 * (np.abs(vectors.reshape(-1)[:, None] - table).min(axis=1) ** 2).sum()
    np.testing.assert_array_equal(words, learn_vectors(vectors, np.ones(4000), 16))


def test_as_many_tables_as_the_codes_pay_for() -> None:
    assert part_count(64, 576, 4, 0.2) == 64
    assert part_count(64, 9, 4, 0.2) == 1
    assert part_count(64, 64, 4, 0.1) == 4
    assert part_count(10, 64, 4, 0.0) == 1
    for channels, elements in ((24, 100), (7, 300), (96, 1)):
        parts = part_count(channels, elements, 4, 0.2)
        assert channels % parts == 0
        assert parts == 1 or parts * 16 * 16 <= 0.2 * channels * elements * 4
