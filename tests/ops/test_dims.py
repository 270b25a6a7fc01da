"""Arithmetic on symbolic dimensions agrees with arithmetic on numbers, and names are canonical."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qir.ir import Dim
from qir.ops import dims


def value_of(dim: Dim, sizes: dict[str, int]) -> int:
    return int(eval(str(dim), {"__builtins__": {}, "floor": math.floor, "min": min}, dict(sizes)))


@st.composite
def expressions(draw: st.DrawFn) -> tuple[Dim, list[tuple[str, int | str]]]:
    """A dimension made by a few operations, and the operations."""
    dim: Dim = draw(st.sampled_from(["N", "M", 3]))
    trail: list[tuple[str, int | str]] = [("start", dim)]
    for _ in range(draw(st.integers(0, 4))):
        op = draw(st.sampled_from(["add", "multiply", "floor", "ceil", "symbol", "times"]))
        number = draw(st.integers(1, 5))
        new: Dim
        match op:
            case "add":
                new = dims.add(dim, number)
            case "multiply":
                new = dims.multiply(dim, number)
            case "floor":
                new = dims.floor_divide(dim, number)
            case "ceil":
                new = dims.ceil_divide(dim, number)
            case "symbol":
                new = dims.add(dim, "M")
            case _:
                new = dims.multiply(dim, "N")
        if new is None:
            break
        dim = new
        trail.append((op, number))
    return dim, trail


@given(expressions(), st.integers(1, 9), st.integers(1, 9))
def test_symbolic_results_hold_for_numbers(made: tuple[Dim, list[tuple[str, int | str]]], n: int, m: int) -> None:
    dim, trail = made
    sizes = {"N": n, "M": m}
    start = trail[0][1]
    number = sizes[start] if isinstance(start, str) else start
    for op, by in trail[1:]:
        assert isinstance(by, int)
        match op:
            case "add":
                number += by
            case "multiply":
                number *= by
            case "floor":
                number //= by
            case "ceil":
                number = -(-number // by)
            case "symbol":
                number += m
            case _:
                number *= n
    assert value_of(dim, sizes) == number


def test_equal_sizes_have_equal_names() -> None:
    h = dims.floor_divide(dims.add("H", 1), 2)
    assert h == "floor((H+1)/2)"
    assert dims.floor_divide(dims.add("H", 3), 2) == dims.add(h, 1)
    assert dims.floor_divide(dims.floor_divide("H", 2), 2) == dims.floor_divide("H", 4) == "floor(H/4)"
    assert dims.add(dims.add("N", "M"), "N", -1) == "M"
    assert dims.divide(dims.multiply(dims.multiply(2, "N"), "M"), "N") == "2*M"
    assert dims.divide("N", 2) is None


def test_a_users_symbol_with_a_minus_is_no_difference() -> None:
    assert dims.add("past-seq", "seq") != "past"
    assert dims.add(dims.add("total", "past", -1), "past") == "total"


def test_broadcast() -> None:
    assert dims.broadcast("N", 1) == "N"
    assert dims.broadcast("N", 4) == 4
    assert dims.broadcast("N", "M") is None
    assert dims.broadcast(None, 1) is None
    assert dims.broadcast("seq", dims.least("seq", 512)) == "seq"
    with pytest.raises(ValueError, match="2 and 3"):
        dims.broadcast(2, 3)


def test_merge_prefers_sizes_and_finds_contradictions() -> None:
    assert dims.merge(("N", None, 3), (2, "M", 3)) == (2, "M", 3)
    assert dims.merge(("N",), ("2*M",)) == ("N",)
    with pytest.raises(ValueError, match="sizes"):
        dims.merge((2,), (3,))
    with pytest.raises(ValueError, match="ranks"):
        dims.merge((2,), (2, 3))
