"""Logarithmic codes: a sign and an exponent, so that a product is a shift (base 2) or a shift and a half (base sqrt 2).

Of a code's ``bits`` the highest is the sign, the rest the exponent e: the number is (-1)^sign * base^-e, the largest
exponent of all stands for zero (Miyashita, Lee and Murmann, Convolutional Neural Networks using Logarithmic Data
Representation, 2016). Multiplied by a scale a channel, which holds the largest weight.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from qir.errors import OptionError

__all__ = ["BASES", "Base", "decode_log", "encode_log", "log_levels"]

Base = Literal["2", "sqrt2"]
BASES: dict[Base, float] = {"2": 2.0, "sqrt2": math.sqrt(2.0)}


def log_levels(bits: int, base: Base = "2") -> np.ndarray:
    """What the codes 0 .. 2^bits - 1 stand for, float32; the last of each sign is zero.

    Powers of two are exact; the half steps between are the float32 numbers nearest to them. Raises OptionError for
    fewer than 2 or more than 8 bits.
    """
    if not 2 <= bits <= 8:
        raise OptionError(f"logarithmic codes have 2 to 8 bits, not {bits}")
    exponents = np.arange((1 << (bits - 1)) - 1)
    halves = exponents / 2 if base == "sqrt2" else exponents
    magnitudes = np.append(np.exp2(-halves.astype(np.float64)), 0.0).astype(np.float32)
    return np.concatenate([magnitudes, -magnitudes])


def encode_log(x: np.ndarray, bits: int, base: Base = "2") -> np.ndarray:
    """The codes, uint8, of the levels nearest to numbers of magnitude at most 1; larger ones saturate, zero is code
    2^(bits-1) - 1. Halfway between two levels the one of the larger magnitude is taken.

    Nearest on the linear scale: that makes the least squared error, and differs from rounding the logarithm.
    """
    levels = log_levels(bits, base)
    half = 1 << (bits - 1)
    rising = levels[:half][::-1].astype(np.float64)
    magnitude = np.abs(np.asarray(x, np.float64))
    place = np.searchsorted((rising[1:] + rising[:-1]) / 2, magnitude, side="right")
    exponent = half - 1 - place
    negative = (np.asarray(x) < 0) & (exponent < half - 1)
    return np.asarray(exponent + half * negative, np.uint8)


def decode_log(codes: np.ndarray, bits: int, base: Base = "2") -> np.ndarray:
    """float32 numbers that codes stand for."""
    return np.asarray(log_levels(bits, base)[codes])
