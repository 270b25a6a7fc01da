"""Statistics of values inside of If, Loop and Scan, handed out as further results."""

from __future__ import annotations

import numpy as np
import pytest

from qir.calibration.bodies import hand_out
from qir.calibration.collect import collect
from qir.ir import Model, Value
from qir.ir.interval import Interval
from qir.ir.printer import print_model
from qir.passes.annotation.calibrate import Calibrate
from qir.pipeline.contract import PassContext
from tests.passes.int8 import model

IF = """graph g(%p: bool[], %x: f32[N,4]) -> (%y) {
    %y: f32[N,4] = If(%p) {
        then_branch=graph t() -> (%a) { %a: f32[N,4] = Abs(%x) },
        else_branch=graph e() -> (%b) { %b: f32[N,4] = Neg(%x) }
    }
}"""

LOOP = """graph g(%n: s64[], %x: f32[4]) -> (%y) {
    @go: bool[] = true
    @one: f32[4] = [1, 1, 1, 1]
    %y: f32[4] = Loop(%n, @go, %x) {
        body=graph b(%i: s64[], %more: bool[], %s: f32[4]) -> (%still, %t) {
            %still: bool[] = Identity(%more)
            %t: f32[4] = Add(%s, @one)
        }
    }
}"""

SCAN = """graph g(%x: f32[N,4]) -> (%y) {
    %y: f32[N,4] = Scan(%x) {
        num_scan_inputs=1, scan_output_axes=[0],
        body=graph b(%r: f32[4]) -> (%q) { %q: f32[4] = Neg(%r) }
    }
}"""

IF_IN_LOOP = """graph g(%n: s64[], %x: f32[4]) -> (%y) {
    @go: bool[] = true
    @two: s64[] = 2
    %y: f32[4] = Loop(%n, @go, %x) {
        body=graph b(%i: s64[], %more: bool[], %s: f32[4]) -> (%still, %t) {
            %still: bool[] = Identity(%more)
            %late: bool[] = Greater(%i, @two)
            %t: f32[4] = If(%late) {
                then_branch=graph t() -> (%a) { %a: f32[4] = Neg(%s) },
                else_branch=graph e() -> (%b) { %b: f32[4] = Identity(%s) }
            }
        }
    }
}"""


def value(source: Model, name: str) -> Value:
    return next(found for found in source.values() if found.name == name)


def seen(source: Model, names: str, feeds: list[dict[str, np.ndarray]]) -> list[Interval]:
    values = [value(source, name) for name in names]
    return [found.interval for found in collect(source, values, feeds).values()]


def array(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def test_both_branches_of_an_if_over_several_samples() -> None:
    x = array(-3, 1, 2, 0)[None]
    feeds = [
        {"p": np.array(True), "x": x},
        {"p": np.array(False), "x": np.repeat(x, 3, 0)},
        {"p": np.array(True), "x": 2 * x},
    ]
    assert seen(model(IF), "ab", feeds) == [Interval(0, 6), Interval(-2, 3)]


def test_a_branch_hands_out_every_number() -> None:
    """So that any statistic can be made of them, not only bounds."""
    source = model(IF)
    found: list[np.ndarray] = []

    class Count:
        def merge(self, other: Count) -> Count:
            return self

    def observe(numbers: np.ndarray) -> Count:
        found.append(numbers)
        return Count()

    x = array(-3, 1, 2, 0)[None]
    values = [value(source, "a"), value(source, "b")]
    collect(source, values, [{"p": np.array(True), "x": x}], observers=dict.fromkeys(values, observe))
    assert [numbers.tolist() for numbers in found] == [[3, 1, 2, 0], []]


def test_a_branch_that_never_ran_has_seen_nothing() -> None:
    taken, other = seen(model(IF), "ab", [{"p": np.array(True), "x": array(1, 2, 3, 4)[None]}])
    assert taken == Interval(1, 4) and other.is_empty


@pytest.mark.parametrize(("rounds", "wanted"), [(1, Interval(-1, 4)), (5, Interval(-1, 8))])
def test_all_rounds_of_a_loop(rounds: int, wanted: Interval) -> None:
    assert seen(model(LOOP), "t", [{"n": np.array(rounds), "x": array(-2, 0, 1, 3)}]) == [wanted]


def test_a_loop_of_no_rounds_has_seen_nothing() -> None:
    (found,) = seen(model(LOOP), "t", [{"n": np.array(0), "x": array(1, 2, 3, 4)}])
    assert found.is_empty


def test_a_scan() -> None:
    assert seen(model(SCAN), "q", [{"x": array(1, 2, 3, 4, 5, 6, 7, -8).reshape(2, 4)}]) == [Interval(-7, 8)]


@pytest.mark.parametrize(("rounds", "ran"), [(2, False), (4, True)])
def test_a_branch_in_a_loop_counts_only_when_it_was_taken(rounds: int, ran: bool) -> None:
    then, other = seen(model(IF_IN_LOOP), "ab", [{"n": np.array(rounds), "x": array(1, 2, 3, 4)}])
    assert other == Interval(1, 4)
    assert then == Interval(-4, -1) if ran else then.is_empty


def test_the_model_is_left_alone_and_the_copy_computes_the_same() -> None:
    source = model(IF_IN_LOOP)
    before = source.clone()
    seen(source, "abt", [{"n": np.array(4), "x": array(1, 2, 3, 4)}])
    assert print_model(source) == print_model(before)


def test_what_cannot_be_handed_out() -> None:
    source = model(
        """graph g(%x: f32[4]) -> (%y) {
        %y: f32[4] = custom.Often(%x) { body=graph b() -> (%a) { %a: f32[4] = Neg(%x) } }
    }"""
    )
    assert hand_out(value(source, "a")) is None
    assert hand_out(value(source, "y")) is None


def test_calibrate_watches_bodies() -> None:
    source = model(
        """graph g(%p: bool[], %x: f32[N,4]) -> (%y) {
        @w: f32[4,4] = #01
        %y: f32[N,4] = If(%p) {
            then_branch=graph t() -> (%a) { %h: f32[N,4] = Abs(%x) %a: f32[N,4] = MatMul(%h, @w) },
            else_branch=graph e() -> (%b) { %k: f32[N,4] = Neg(%x) %b: f32[N,4] = MatMul(%k, @w) }
        }
    }"""
    )
    feeds = [{"p": np.array(True), "x": array(-3, 1, 2, 0)[None]}]
    Calibrate().run(source, PassContext(calibration=feeds))
    watched, never = value(source, "h").observed, value(source, "k").observed
    assert watched == Interval(0, 3)
    assert never is not None and never.is_empty


def test_a_result_that_its_node_does_not_make_is_left_out() -> None:
    source = model(
        """graph g(%p: bool[], %x: f32[1,1,2]) -> (%y) {
        @w: f32[1,8,2] #1 @r: f32[1,8,2] #2
        %y: f32[1,1,2] = If(%p) {
            then_branch=graph t() -> (%h) { _: f32[1,1,1,2], %h: f32[1,1,2] = LSTM(%x, @w, @r) {hidden_size=2} },
            else_branch=graph e() -> (%b) { %b: f32[1,1,2] = Neg(%x) }
        }
    }"""
    )
    values = [value for graph in source.graph.graphs() for value in graph.values() if not value.is_constant]
    assert any(not value.name for value in values)
    feeds = [{"p": np.array(True), "x": np.ones((1, 1, 2), np.float32)}]
    found = collect(source, [value for value in values if str(value.dtype) == "f32"], feeds)
    assert {value.name for value in found} == {"x", "h", "b", "y"}
