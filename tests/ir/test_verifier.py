"""The structural verifier finds each broken rule, and says where in IR text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qir.errors import VerifyError
from qir.ir import (
    DerivedQuant,
    DType,
    Function,
    Graph,
    Interval,
    Model,
    Node,
    StaticQuant,
    Tensor,
    TensorType,
    Use,
    Value,
)
from qir.ir.parser import parse_model
from qir.ir.verifier import collect_problems, verify
from tests.ir.random_models import random_model

TEXT = """
graph g(%p: bool[], %x: f32[N,4]) -> (%y) {
  @w: f32[4] = [1, 2, 3, 4]
  %a: f32[N,4] = Relu(%x) name="a"
  %b: f32[N,4] = Mul(%a, @w) name="b"
  %i: f32[N,4] = If(%p) {then_branch=graph then() -> (%t) {
    %t: f32[N,4] = Neg(%a) name="t"
  }, else_branch=graph else() -> (%e) {
    %e: f32[N,4] = Abs(%b) name="e"
  }} name="if"
  %y: f32[N,4] = Add(%i, %b) name="y"
}"""


def node(model: Model, name: str) -> Node:
    return next(node for node in model.walk() if node.name == name)


def use(model: Model, name: str, index: int) -> Use:
    found = node(model, name).use(index)
    assert found is not None
    return found


def weight(model: Model) -> Value:
    return next(iter(model.graph.initializers))


def out_of_order(model: Model) -> None:
    model.graph.move(node(model, "b"), node(model, "a"))


def read_by_itself(model: Model) -> None:
    node(model, "a").set_input(0, node(model, "a").output)


def reads_into_a_body(model: Model) -> None:
    node(model, "y").set_input(0, node(model, "t").output)


def reads_ahead_into_a_body(model: Model) -> None:
    node(model, "a").set_input(0, node(model, "t").output)


def reads_an_erased_node(model: Model) -> None:
    gone = model.graph.add_node("Neg", [model.graph.inputs[1]], name="gone")
    gone.erase()
    node(model, "b").set_input(0, gone.output)


def reads_another_model(model: Model) -> None:
    node(model, "b").set_input(0, Graph().add_input("foreign"))


def name_taken(model: Model) -> None:
    node(model, "b").output.name = "a"


def name_shadowed(model: Model) -> None:
    node(model, "t").output.name = "x"


def lost_use(model: Model) -> None:
    node(model, "a").output._uses.unlink(use(model, "b", 0))


def ghost_use(model: Model) -> None:
    value = node(model, "a").output
    value._uses.link(Use(node(model, "b"), 0, value))


def wrong_index(model: Model) -> None:
    use(model, "b", 0)._index = 1


def broken_links(model: Model) -> None:
    second = use(model, "t", 0)
    second._prev = None


def broken_count(model: Model) -> None:
    model.graph.nodes._count += 1


def wrong_producer(model: Model) -> None:
    node(model, "a").output._producer = node(model, "b")


def constant_result(model: Model) -> None:
    node(model, "a").output.const = Tensor.of([1.0])


def empty_initializer(model: Model) -> None:
    weight(model).const = None


def wrong_dtype(model: Model) -> None:
    weight(model).const = Tensor.of([1, 2, 3, 4], DType.INT64)


def an_array(model: Model) -> None:
    weight(model).const = np.zeros(4)  # type: ignore[assignment]


def wrong_shape(model: Model) -> None:
    weight(model).type = TensorType(DType.FLOAT, (2, 2))


def doubled_output(model: Model) -> None:
    model.graph.add_output(model.graph.outputs[0])


def doubled_input(model: Model) -> None:
    model.graph.make_input(model.graph.inputs[0])


def derived_from_nothing(model: Model) -> None:
    use(model, "b", 0).quant = DerivedQuant(1, 2)


def derived_on_a_value(model: Model) -> None:
    node(model, "b").output.quant = DerivedQuant()


def quant_axis(model: Model) -> None:
    use(model, "b", 0).quant = StaticQuant(DType.INT8, (0.5,), axis=2)


def quant_count(model: Model) -> None:
    node(model, "b").output.quant = StaticQuant(DType.INT8, (0.5, 0.25), axis=1)


def range_count(model: Model) -> None:
    node(model, "b").output.range = Interval((0.0,), (1.0,), axis=1)


def body_of_two(model: Model) -> None:
    attribute = node(model, "if").attributes["then_branch"]
    other = model.graph.add_node("If", [], {})
    other._attributes["then_branch"] = attribute


def stray_owner(model: Model) -> None:
    node(model, "if").bodies[0].owner = node(model, "a")


def nameless(model: Model) -> None:
    node(model, "a").output.name = ""


BREAKS: list[tuple[Callable[[Model], None], str]] = [
    (out_of_order, "reads 'a', which is defined only later"),
    (read_by_itself, "reads 'a', which is its own result"),
    (reads_into_a_body, "reads 't', which is defined inside of a body or function, out of sight"),
    (reads_ahead_into_a_body, "reads 't', which is defined inside of a body or function, out of sight"),
    (reads_an_erased_node, "which was made by 'gone', a node that was erased"),
    (reads_another_model, "reads 'foreign', which no graph of this model lists"),
    (name_taken, "the name 'a' is taken by another value"),
    (name_shadowed, "the name 'x' is taken by another value"),
    (lost_use, "'a' is read 2 times but lists 1 uses"),
    (ghost_use, "'a' lists a use by Node(Mul 'b') that does not read it"),
    (wrong_index, "operand 0 ('a') is a use of another node or index"),
    (broken_links, "the list of its uses of 'a' is damaged at item 1"),
    (broken_count, "the list of its nodes counts 5 items, but 4 or more are linked"),
    (wrong_producer, "result 0 ('a') names another producer or index"),
    (constant_result, "result 'a' has a constant content"),
    (empty_initializer, "initializer 'w' has no content"),
    (wrong_dtype, "initializer 'w' is of type f32[4], its content is s64[4]"),
    (an_array, "initializer 'w' holds a ndarray: write Tensor.of(array)"),
    (wrong_shape, "initializer 'w' is of type f32[2,2], its content is f32[4]"),
    (doubled_output, "a value is an output of the graph twice"),
    (doubled_input, "an input is listed twice"),
    (derived_from_nothing, "operand 0 derives its scale from weight 2, which is not there"),
    (derived_on_a_value, "value 'b' has a derived quantization"),
    (quant_axis, "the quantization of operand 0 is per axis 2, its type is f32[N,4]"),
    (quant_count, "the quantization of value 'b' has 2 entries for axis 1, which has 4"),
    (range_count, "the range of value 'b' has 1 entries for axis 1, which has 4"),
    (body_of_two, "its body 'then' is a body of another node too"),
    (stray_owner, "its body 'then' names another owner"),
    (nameless, "reads a value without a name"),
]


@pytest.mark.parametrize(("damage", "message"), BREAKS, ids=[damage.__name__ for damage, _ in BREAKS])
def test_a_broken_rule_is_found(damage: Callable[[Model], None], message: str) -> None:
    model = parse_model(TEXT)
    verify(model)
    damage(model)
    assert any(message in problem.message for problem in collect_problems(model)), collect_problems(model)
    with pytest.raises(VerifyError, match="the graph is broken:\n"):
        verify(model)


def test_the_message_shows_the_node_in_ir_text() -> None:
    model = parse_model(TEXT)
    out_of_order(model)
    with pytest.raises(VerifyError) as caught:
        verify(model)
    assert str(caught.value) == (
        "the graph is broken:\n"
        '%b: f32[N,4] = Mul(%a, @w) name="b"\n'
        "  ^ reads 'a', which is defined only later (sort the graph?)"
    )


def test_a_node_with_bodies_takes_one_line() -> None:
    model = parse_model(TEXT)
    node(model, "if").set_input(0, node(model, "y").output)
    (problem,) = collect_problems(model)
    first, second = str(problem).split("\n")
    assert first.startswith("%i: f32[N,4] = If(%y)") and first.endswith(" ...")
    assert second == "  ^ reads 'y', which is defined only later (sort the graph?)"


def test_many_problems_are_counted_not_shown() -> None:
    model = parse_model("graph (%x) -> () {" + "".join(f"%v{i} = Relu(%x)\n" for i in range(20)) + "}")
    for made in model.walk():
        made.set_input(0, made.output)
    with pytest.raises(VerifyError, match=r"\.\.\. and 15 more$"):
        verify(model)


def test_functions_have_names_of_their_own() -> None:
    model = parse_model("graph (%x) -> (%y) { %y = f(%x) } function f(%x) -> (%y) { %y = Neg(%x) }")
    verify(model)
    function = next(iter(model.functions.values()))
    inner = next(iter(function.graph.nodes))
    inner.set_input(0, model.graph.inputs[0])
    assert "out of sight from here" in collect_problems(model)[0].message
    Function("", "g", function.graph)
    assert any("belongs to another function" in problem.message for problem in collect_problems(model))


@given(st.integers(0, 2**32))
def test_random_models_and_their_clones_are_sound(seed: int) -> None:
    model = random_model(seed)
    assert not collect_problems(model)
    assert not collect_problems(model.clone())
