"""Transactions: whatever was edited, rollback and savepoints bring back the same graph; commits drop stale data."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qir.errors import StaleError
from qir.ir import DType, Graph, Interval, Model, StaticQuant, Tensor
from qir.ir.parser import parse_model
from qir.ir.printer import print_model
from qir.ir.verifier import verify
from tests.ir.random_models import edit, random_model

SEEDS = st.integers(0, 2**32)


def snapshot(model: Model) -> tuple[str, list[list[int]]]:
    """The text, and each value's uses in their order (as places in the text)."""
    places: dict[object, int] = {}
    for graph in model.graphs():
        for use in graph.output_uses:
            places[use] = len(places)
    for node in model.walk():
        for operand in node.uses:
            if operand is not None:
                places[operand] = len(places)
    return print_model(model), [[places[use] for use in value.uses] for value in model.values()]


@given(SEEDS)
def test_rollback_restores_the_exact_graph(seed: int) -> None:
    model = random_model(seed)
    verify(model)
    before = snapshot(model)
    rng = random.Random(seed)
    model.begin("edits")
    for _ in range(rng.randint(1, 12)):
        kind = edit(model, rng)
        try:
            verify(model)
        except Exception as error:
            raise AssertionError(f"after {kind}") from error
    model.rollback()
    verify(model)
    assert snapshot(model) == before


@given(SEEDS)
def test_savepoints_restore_the_graph_of_their_time(seed: int) -> None:
    model = random_model(seed)
    rng = random.Random(seed)
    journal = model.begin("edits")
    marks = []
    for _ in range(rng.randint(1, 5)):
        marks.append((journal.mark(), snapshot(model)))
        for _ in range(rng.randint(1, 4)):
            edit(model, rng)
    while marks:
        mark, expected = marks.pop(rng.randrange(len(marks)))
        marks = [entry for entry in marks if entry[0] <= mark]
        journal.undo_to(mark)
        verify(model)
        assert snapshot(model) == expected
    model.rollback()
    verify(model)


@given(SEEDS)
def test_edits_after_an_undo_work(seed: int) -> None:
    model = random_model(seed)
    rng = random.Random(seed)
    model.begin("first")
    for _ in range(6):
        edit(model, rng)
    model.rollback()
    for _ in range(6):
        edit(model, rng)
        verify(model)


def test_an_exception_rolls_back() -> None:
    model = random_model(1)
    before = print_model(model)
    with pytest.raises(KeyError), model.transaction("fails"):
        model.graph.name = "other"
        raise KeyError
    assert print_model(model) == before
    assert model.journal is None


def test_transactions_do_not_nest() -> None:
    model = random_model(1)
    with model.transaction("outer"), pytest.raises(RuntimeError, match="'outer' is still open"):
        model.begin("inner")
    with pytest.raises(RuntimeError, match="no transaction"):
        model.commit()


CHAIN = """
graph (%x: f32[4]) -> (%c, %side) {
  @w: f32[4] = [1, 2, 3, 4]
  %a: f32[4] seen=[0, 1] = Relu(%x) name="a"
  %b: f32[4] seen=[0, 2] = Mul(%a, @w) name="b"
  %c: f32[4] seen=[0, 3] = Sigmoid(%b) name="c"
  %side: f32[4] seen=[0, 4] = Neg(%x) name="side"
}"""


def stale_names(model: Model) -> set[str]:
    return {value.name for value in model.values() if value.is_stale}


def test_an_edited_constant_makes_what_is_downstream_stale() -> None:
    model = parse_model(CHAIN)
    with model.transaction("equalize"):
        next(iter(model.graph.initializers)).const = Tensor.of([0, 0, 0, 1], DType.FLOAT)
    assert stale_names(model) == {"b", "c"}
    c = model.graph.outputs[0]
    with pytest.raises(StaleError, match="value 'c' was dropped because 'equalize' changed"):
        _ = c.observed
    c.observed = Interval(0.0, 1.0)
    assert c.observed == Interval(0.0, 1.0)
    assert 'seen=stale("equalize")' in print_model(model)
    assert stale_names(parse_model(print_model(model))) == {"b"}


@pytest.mark.parametrize("edited", ["op", "attributes", "inputs", "node"])
def test_an_edited_producer_makes_its_results_stale(edited: str) -> None:
    model = parse_model(CHAIN)
    b = next(node for node in model.walk() if node.name == "b")
    with model.transaction("edit"):
        if edited == "op":
            b.set_op("Add")
        elif edited == "attributes":
            b.set("axis", 1)
        elif edited == "inputs":
            b.set_input(0, model.graph.inputs[0])
        else:
            new = model.graph.insert_before(b, "Abs", [b.input(0)])
            b.set_input(0, new.output)
    assert stale_names(model) == {"b", "c"}


def test_annotations_and_exact_edits_keep_calibration() -> None:
    model = parse_model(CHAIN)
    b = next(node for node in model.walk() if node.name == "b")
    with model.transaction("annotate"):
        b.output.quant = StaticQuant.per_tensor(DType.UINT8, 0.5)
        b.kernel = "integer"
        b.output.name = "renamed"
    with model.transaction("exact", keeps_observed=True):
        b.set("axis", 1)
    assert not stale_names(model)


def test_a_rolled_back_edit_drops_nothing() -> None:
    model = parse_model(CHAIN)
    model.begin("undone")
    next(iter(model.graph.initializers)).const = Tensor.of([0, 0, 0, 1], DType.FLOAT)
    model.rollback()
    assert not stale_names(model)


BODY = """
graph (%p: bool[], %x: f32[4]) -> (%y) {
  @w: f32[4] = [1, 2, 3, 4]
  %i: f32[4] seen=[0, 1] = If(%p) {then_branch=graph () -> (%t) {
    %s: f32[4] seen=[0, 1] = Neg(%x)
    %t: f32[4] seen=[0, 1] = Mul(%s, @w)
  }, else_branch=graph () -> (%e) {
    %e: f32[4] seen=[0, 1] = Relu(%x)
  }}
  %y: f32[4] seen=[0, 1] = Sigmoid(%i)
}"""


def test_a_captured_constant_reaches_out_of_the_body() -> None:
    model = parse_model(BODY)
    with model.transaction("edit"):
        next(iter(model.graph.initializers)).const = Tensor.of([0, 0, 0, 1], DType.FLOAT)
    assert stale_names(model) == {"t", "i", "y"}


def test_another_output_of_a_body_is_another_result_of_its_node() -> None:
    model = parse_model(BODY)
    body = next(model.walk()).bodies[0]
    s = next(iter(body.nodes)).output
    with model.transaction("edit"):
        body.output_uses[0].value = s
    assert stale_names(model) == {"i", "y"}


def test_a_body_made_detached_is_undone_with_its_captures() -> None:
    model = parse_model(CHAIN)
    a = next(iter(model.graph.nodes)).output
    before = snapshot(model)
    model.begin("outline")
    body = Graph("body")
    body.add_output(body.add_node("Abs", [a]).output)
    model.graph.add_node("Scan", [], {"body": body})
    verify(model)
    model.rollback()
    verify(model)
    assert snapshot(model) == before


def test_a_body_that_is_replaced_reads_nothing_anymore() -> None:
    model = parse_model(BODY)
    node = next(model.walk())
    w = next(iter(model.graph.initializers))
    before = snapshot(model)
    model.begin("simplify")
    other = Graph("other")
    other.add_output(other.add_node("Abs", [model.graph.inputs[1]]).output)
    node.set("then_branch", other)
    assert not w.uses
    verify(model)
    model.rollback()
    assert snapshot(model) == before


def test_the_journal_counts_edits_and_lists_what_was_touched() -> None:
    model = parse_model(CHAIN)
    with model.transaction("edit") as journal:
        a, b, *_ = model.graph.nodes
        b.set("axis", 1)
        a.output.name = "renamed"
        mark = journal.mark()
        b.set("axis", 2)
        assert journal.touched_nodes() == [b]
        assert journal.counts() == {"attributes": 2, "name": 1}
        assert journal.counts(mark) == {"attributes": 1}


def test_an_operand_of_the_same_type_is_no_reason_to_infer_again() -> None:
    model = parse_model(
        """
        graph (%x: f32[2,3], %z: f32[2,3], %w: f32[2,4], %s: s64[2], %t: s64[2]) -> (%y, %r) {
          %y: f32[2,3] = Relu(%x)
          %r: f32[3,2] = Reshape(%x, %s)
        }"""
    )
    _, z, w, _, t = model.graph.inputs
    relu, reshape = model.graph.nodes
    for index, (node, at, new, again) in enumerate(
        [(relu, 0, z, False), (relu, 0, w, True), (reshape, 0, z, False), (reshape, 1, t, True)]
    ):
        journal = model.begin(str(index))
        node.set_input(at, new)
        assert journal.touched_nodes() == [node]
        assert journal.touched_nodes(retyped=True) == ([node] if again else []), index
        model.rollback()
