"""Gains that are certain, from paired differences."""

from __future__ import annotations

import numpy as np
import pytest

from qir.passes.accuracy.paired import Gain


def test_a_steady_gain_is_certain_and_a_scattered_one_is_not() -> None:
    steady = Gain.of(np.full(20, 0.5) + np.linspace(-0.1, 0.1, 20))
    scattered = Gain.of(np.full(20, 0.5) + np.linspace(-5, 5, 20))
    assert steady.mean == pytest.approx(scattered.mean)
    assert steady.reaches(0.3) and not scattered.reaches(0.3)


def test_a_small_gain_is_none_however_certain() -> None:
    gain = Gain.of(np.linspace(0.09, 0.11, 30))
    assert not gain.reaches(0.3)


def test_one_sample_proves_nothing() -> None:
    gain = Gain.of(np.array([9.0]))
    assert not gain.reaches(0.3)


def test_equal_samples_have_no_margin() -> None:
    assert Gain.of(np.zeros(8)) == Gain(0.0, 0.0, 8)


@pytest.mark.parametrize(("samples", "student"), [(5, 3.747), (10, 2.821), (20, 2.539), (60, 2.391)])
def test_the_margin_is_students(samples: int, student: float) -> None:
    gains = np.random.default_rng(0).normal(size=samples)
    error = gains.std(ddof=1) / np.sqrt(samples)
    assert Gain.of(gains).margin == pytest.approx(student * error, rel=0.04)
