"""Logarithmic codes: all of them, ties, saturation; and that nearest is nearest."""

from __future__ import annotations

import numpy as np
import pytest

from qir.errors import OptionError
from qir.quant.logarithmic import BASES, Base, decode_log, encode_log, log_levels

ALL = [(bits, base) for bits in (2, 3, 4, 5, 8) for base in BASES]


def test_four_bits_of_base_two() -> None:
    magnitudes = [1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 0]
    np.testing.assert_array_equal(log_levels(4, "2"), [*magnitudes, *(-m for m in magnitudes)])


@pytest.mark.parametrize(("bits", "base"), ALL)
def test_levels_are_powers_of_the_base(bits: int, base: Base) -> None:
    half = 1 << (bits - 1)
    levels = log_levels(bits, base).astype(np.float64)
    assert len(levels) == 2 * half and levels.dtype == np.float64
    np.testing.assert_allclose(levels[: half - 1], BASES[base] ** -np.arange(half - 1.0), rtol=1e-7)
    np.testing.assert_array_equal(levels[half:], -levels[:half])
    assert levels[half - 1] == 0


@pytest.mark.parametrize(("bits", "base"), ALL)
def test_all_codes_survive(bits: int, base: Base) -> None:
    codes = np.arange(1 << bits, dtype=np.uint8)
    again = encode_log(decode_log(codes, bits, base), bits, base)
    zero = (1 << (bits - 1)) - 1
    expected = np.where(codes == 2 * zero + 1, zero, codes)  # there are two codes of zero
    np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize(("bits", "base"), ALL)
def test_the_nearest_level_is_taken_and_ties_go_up(bits: int, base: Base) -> None:
    levels = np.unique(log_levels(bits, base).astype(np.float64))
    middles = (levels[1:] + levels[:-1]) / 2
    x = np.concatenate([np.linspace(-1.5, 1.5, 4001), middles, levels, [1e30, -1e30, 1e-30, -1e-30]])
    got = decode_log(encode_log(x, bits, base), bits, base).astype(np.float64)
    least = np.abs(levels - x[:, None]).min(axis=1)
    np.testing.assert_allclose(np.abs(got - x), least, rtol=1e-12, atol=0)
    ties = decode_log(encode_log(middles, bits, base), bits, base)
    np.testing.assert_array_equal(np.abs(ties), np.maximum(np.abs(levels[1:]), np.abs(levels[:-1])))


def test_bits_out_of_range() -> None:
    for bits in (1, 9):
        with pytest.raises(OptionError, match="2 to 8 bits"):
            log_levels(bits)
