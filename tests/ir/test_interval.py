"""Laws of intervals: meet and join are the lattice operations of containment, per tensor and per channel."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qir.ir import Interval

BOUNDS = st.floats(allow_nan=False)


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    """Per tensor, or of two channels of axis 1; none empty."""
    pairs = [sorted((draw(BOUNDS), draw(BOUNDS))) for _ in range(2)]
    if draw(st.booleans()):
        return Interval(pairs[0][0], pairs[0][1])
    return Interval((pairs[0][0], pairs[1][0]), (pairs[0][1], pairs[1][1]), axis=1)


@given(intervals(), intervals())
def test_a_join_holds_both(a: Interval, b: Interval) -> None:
    joined = a.join(b)
    assert joined.contains(a) and joined.contains(b)
    assert joined.lower == min(a.lower, b.lower) and joined.upper == max(a.upper, b.upper)
    assert joined == b.join(a)


@given(intervals(), intervals())
def test_a_meet_lies_in_both(a: Interval, b: Interval) -> None:
    met = a.meet(b)
    if a.axis == b.axis == 1:
        low = np.maximum(a.lo, b.lo) <= np.minimum(a.hi, b.hi)
        if not low.all():
            return  # a channel is empty
    assert a.per_tensor().contains(met) and b.per_tensor().contains(met)
    assert met == b.meet(a)


@given(intervals(), BOUNDS)
def test_a_meet_holds_exactly_the_common_numbers(a: Interval, number: float) -> None:
    other = Interval(number, math.inf)
    point = Interval(number, number)
    assert a.meet(other).contains(point) == (a.per_tensor().contains(point) and other.contains(point))


@given(intervals())
def test_idempotent_and_bounded_by_themselves(a: Interval) -> None:
    assert a.join(a) == a and a.meet(a) == a
    assert a.contains(a)
    assert a.per_tensor().contains(a)
    assert a.magnitude == max(abs(a.lower), abs(a.upper))
    assert a.is_bounded == math.isfinite(a.magnitude)


def test_empty() -> None:
    empty = Interval(math.inf, -math.inf)
    assert empty.is_empty and Interval((), (), axis=0).is_empty
    assert Interval(0.0, 1.0).contains(empty)
    assert Interval(0.0, 1.0).join(empty) == Interval(0.0, 1.0)
    assert Interval(0.0, 1.0).meet(Interval(2.0, 3.0)).is_empty


def test_channels_are_compared_one_by_one() -> None:
    a = Interval((0.0, 5.0), (1.0, 6.0), axis=0)
    assert not a.contains(Interval((0.0, 0.0), (1.0, 1.0), axis=0))
    assert a.contains(Interval((0.5, 5.5), (1.0, 6.1), axis=0), tolerance=0.2)
    assert not a.contains(Interval(0.0, 6.0))  # a number of it may stand in the first channel
    assert a.per_tensor().contains(Interval(0.0, 6.0))


def test_other_axes_and_sizes_must_fit_every_channel() -> None:
    a = Interval((0.0, 5.0), (2.0, 7.0), axis=0)
    assert not a.contains(Interval((0.0, 5.0), (2.0, 7.0), axis=1))
    assert not a.contains(Interval((1.0,), (6.0,), axis=0))
    wide = Interval((0.0, -1.0), (3.0, 4.0), axis=0)
    assert wide.contains(Interval((0.5, 1.0, 2.0), (3.0, 1.0, 2.0), axis=1)) and wide.contains(Interval(0.0, 3.0))
    assert a.join(Interval((9.0,), (9.0,), axis=1)) == Interval(0.0, 9.0)


@pytest.mark.parametrize("bounds", [(math.nan, 1.0, None), (0.0, 1.0, 1), ((0.0,), 1.0, 0), ((0.0,), (1.0, 2.0), 0)])
def test_impossible_bounds_are_refused(bounds: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError):
        Interval(*bounds)
