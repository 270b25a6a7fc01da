"""Every editing method of values, nodes and graphs; the model is sound after each."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qir.frontend import import_model
from qir.ir import DType, Function, Graph, Model, Node, StaticQuant, Tensor, TensorType, Value
from qir.ir.linked import Linked, LinkedList
from qir.ir.parser import parse_model
from qir.ir.printer import print_model, print_node
from qir.ir.provenance import flatten, format_sources, merge, parse_sources
from qir.ir.verifier import verify
from tests.ir.random_models import random_model

CHAIN = """
graph (%x: f32[4]) -> (%y) {
  @w: f32[4] = [1, 2, 3, 4]
  %a: f32[4] = Relu(%x) name="a"
  %b: f32[4] = Mul(%a, @w) name="b"
  %y: f32[4] = Add(%b, %a) name="y"
}"""

BODY = """
graph (%p: bool[], %x: f32[4]) -> (%y) {
  %a: f32[4] = Abs(%x) name="a"
  %y: f32[4] = If(%p) {then_branch=graph () -> (%t) {
    %t: f32[4] = Neg(%a) name="t"
  }, else_branch=graph () -> (%e) {
    %e: f32[4] = Relu(%x) name="e"
  }} name="if"
}"""


def node(model: Model, name: str) -> Node:
    return next(node for node in model.walk() if node.name == name)


def lines(model: Model) -> list[str]:
    verify(model)
    return [print_node(node).split(" name=")[0] for node in model.graph.nodes]


def names(values: tuple[Value | None, ...]) -> list[str | None]:
    return [None if value is None else value.name for value in values]


# Values


def test_replace_all_uses_moves_every_use_and_keeps_output_names() -> None:
    model = parse_model(CHAIN)
    b = node(model, "b")
    assert node(model, "a").output.replace_all_uses(model.graph.inputs[0]) == 2
    assert b.output.replace_all_uses(model.graph.inputs[0]) == 1
    assert [u.index for u in model.graph.inputs[0].uses] == [0, 0, 1, 0]
    assert lines(model)[-1] == "%y: f32[4] = Add(%x, %x)"


def test_a_result_takes_over_the_name_of_an_output() -> None:
    model = parse_model(CHAIN)
    y = node(model, "y")
    y.output.replace_all_uses(node(model, "b").output)
    y.erase()
    assert names(model.graph.outputs) == ["y"]
    assert lines(model) == ["%a: f32[4] = Relu(%x)", "%y: f32[4] = Mul(%a, @w)"]


@pytest.mark.parametrize("kind", ["input", "output"])
def test_an_identity_keeps_the_name_where_nothing_can_take_it_over(kind: str) -> None:
    model = parse_model(CHAIN)
    b = node(model, "b").output
    if kind == "output":
        model.graph.add_output(b)
    new = b if kind == "output" else model.graph.inputs[0]
    node(model, "y").output.replace_all_uses(new)
    verify(model)
    made = model.graph.outputs[0].producer
    assert made is not None and made.op == "Identity" and made.inputs == (new,)
    assert names(model.graph.outputs)[0] == "y"
    assert len(set(names(model.graph.outputs))) == len(model.graph.outputs)


def test_an_output_that_is_an_input_stays() -> None:
    model = parse_model("graph (%x: f32[4]) -> (%x) { %a = Relu(%x) }")
    a = next(model.walk()).output
    other = model.graph.add_node("Neg", [model.graph.inputs[0]])
    assert model.graph.inputs[0].replace_all_uses(a, lambda use: use.node is not a.producer) == 1
    verify(model)
    assert other.inputs == (a,)
    assert names(model.graph.outputs) == names(model.graph.inputs) == ["x"]


def test_replace_some_uses() -> None:
    model = parse_model(CHAIN)
    a = node(model, "a").output
    assert a.replace_all_uses(model.graph.inputs[0], lambda use: use.index == 1) == 1
    assert lines(model)[1:] == ["%b: f32[4] = Mul(%a, @w)", "%y: f32[4] = Add(%b, %x)"]
    assert a.replace_all_uses(a) == 0


def test_replace_one_use() -> None:
    model = parse_model(CHAIN)
    a, b, y = (node(model, name).output for name in "aby")
    assert all(use.replace(model.graph.inputs[0]) for use in list(a.uses) if use.index == 1)
    assert lines(model)[1:] == ["%b: f32[4] = Mul(%a, @w)", "%y: f32[4] = Add(%b, %x)"]
    [output] = y.uses
    assert output.replace(y) and output.value is y and y.name == "y"
    assert output.replace(b) and output.value is b and b.name == "y"
    verify(model)
    through = parse_model("graph (%x: f32[4]) -> (%x) { %a = Relu(%x) }")
    [stays] = [use for use in through.graph.inputs[0].uses if use.is_graph_output]
    assert not stays.replace(next(through.walk()).output)
    assert stays.value is through.graph.inputs[0]


def test_outputs_of_bodies_are_taken_by_position() -> None:
    model = parse_model(BODY)
    t = node(model, "t")
    a = node(model, "a").output
    t.output.replace_all_uses(a)
    verify(model)
    body = node(model, "if").bodies[0]
    (identity,) = (n for n in body.nodes if n is not t)
    assert identity.op == "Identity" and identity.inputs == (a,) and body.outputs == identity.outputs


def test_what_a_value_knows_of_itself() -> None:
    model = parse_model(BODY)
    a, x = node(model, "a").output, model.graph.inputs[1]
    assert (x.is_input, a.is_input, a.is_output, node(model, "if").output.is_output) == (True, False, False, True)
    assert (a.dtype, a.shape, a.dim(-1), a.dim(1)) == (DType.FLOAT, (4,), 4, None)
    (use,) = a.uses
    assert use.is_capture and use.node is node(model, "t") and use.graph is node(model, "if").bodies[0]
    assert x.users == [node(model, "a"), node(model, "e")]
    assert a.graph is model.graph and node(model, "t").output.graph is use.graph


# Nodes


def test_set_input_replaces_removes_and_grows() -> None:
    model = parse_model(CHAIN)
    b, x = node(model, "b"), model.graph.inputs[0]
    b.set_input(0, x)
    b.set_input(3, x)
    b.set_input(1, None)
    b.set_input(7, None)
    assert names(b.inputs) == ["x", None, None, "x"]
    assert lines(model)[1] == "%b: f32[4] = Mul(%x, _, _, %x)"
    b.resize_inputs(1)
    assert names(b.inputs) == ["x"]
    b.resize_inputs(2)
    assert names(b.inputs) == ["x", None]
    verify(model)


def test_an_operand_that_stays_keeps_its_use() -> None:
    model = parse_model(CHAIN)
    b, x = node(model, "b"), model.graph.inputs[0]
    kept = b.use(1)
    assert kept is not None
    kept.quant = StaticQuant.per_tensor(DType.INT8, 0.5)
    b.set_inputs([x, kept.value, x])
    assert b.use(1) is kept
    assert lines(model)[1] == "%b: f32[4] = Mul(%x, @w : s8(0.5, 0), %x)"
    b.set_inputs([])
    assert not kept.value.uses
    verify(model)


def test_attributes() -> None:
    model = parse_model(CHAIN)
    b = node(model, "b")
    b.set("axis", 3)
    b.set("mode", "linear")
    b.set("scale", 0.1)
    assert (b.get("axis"), b.get("mode"), b.get("none", 7)) == (3, "linear", 7)
    b.remove("mode")
    b.remove("mode")
    assert lines(model)[1] == "%b: f32[4] = Mul(%a, @w) {axis=3, scale=0.1}"
    with pytest.raises(TypeError, match="no attribute kind holds"):
        b.set("empty", [])


def test_set_op() -> None:
    model = parse_model(CHAIN)
    node(model, "b").set_op("Div", "com.example", "v2")
    assert lines(model)[1] == "%b: f32[4] = com.example.Div:v2(%a, @w)"


def test_erase() -> None:
    model = parse_model(CHAIN)
    b = node(model, "b")
    with pytest.raises(ValueError, match="'b' cannot be erased: its output 'b' is used by Add 'y'"):
        b.erase()
    node(model, "y").set_input(0, node(model, "a").output)
    b.erase()
    assert b.graph is None and not next(iter(model.graph.initializers)).uses
    with pytest.raises(ValueError, match="was erased before"):
        b.erase()
    verify(model)
    for edit in (lambda: b.set_input(0, None), lambda: b.set_inputs([])):
        with pytest.raises(ValueError, match="'b' was erased: it reads nothing"):
            edit()
    with pytest.raises(TypeError, match=r"an operand is a Value, not 1\.5: for a number, add a constant"):
        node(model, "y").set_input(5, 1.5)  # type: ignore[arg-type]


def test_erasing_a_node_frees_what_its_bodies_capture() -> None:
    model = parse_model(BODY)
    branch = node(model, "if")
    branch.output.replace_all_uses(node(model, "a").output)
    branch.erase()
    assert lines(model) == ["%y: f32[4] = Abs(%x)"]
    assert len(model.graph.inputs[1].uses) == 1


def test_a_body_can_be_handed_on() -> None:
    model = parse_model(BODY)
    branch = node(model, "if")
    other = model.graph.insert_after(branch, "If", [model.graph.inputs[0]], outputs=["z"])
    for name in ("then_branch", "else_branch"):
        other.set(name, branch.attributes[name])
    branch.output.replace_all_uses(other.output)
    branch.erase()
    verify(model)
    assert [body.owner for body in other.bodies] == [other, other]
    assert len(node(model, "a").output.uses) == 1


# Graphs


def test_insertion() -> None:
    model = parse_model(CHAIN)
    b, x = node(model, "b"), model.graph.inputs[0]
    after = model.graph.insert_after(b, "Neg", [x], source=[b, "elsewhere"])
    before = model.graph.insert_before(b, "Abs", [x], outputs=2)
    last = model.graph.insert_after(node(model, "y"), "Exp", [x])
    assert [n.op for n in model.graph.nodes] == ["Relu", "Abs", "Mul", "Neg", "Add", "Exp"]
    assert after.sources == ["b", "elsewhere"]
    assert (before.previous, before.next, last.next) == (node(model, "a"), b, None)
    assert len({value.name for value in model.values()}) == len(list(model.values()))
    verify(model)


def test_fresh_names_leave_out_those_that_only_a_recorded_type_has() -> None:
    """A file may record types of values that it does not have; a new value of that name would be given them."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])],
        value_info=[onnx.helper.make_tensor_value_info("gone", onnx.TensorProto.INT64, [3])],
    )  # fmt: skip
    model = import_model(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]))
    assert model.graph.fresh_name("gone") == "gone_1"


def test_fresh_names_are_free_in_the_whole_model() -> None:
    model = parse_model(BODY)
    assert [model.graph.fresh_name(hint) for hint in ("t", "t", "if", "new", "new", "")] == [
        *("t_1", "t_2", "if_1", "new", "new_1", "_1")
    ]
    function = Graph()
    function.add_output(function.add_node("Neg", [function.add_input("inside")], outputs=["out"]).output)
    model.add_function(Function("d", "f", function))
    assert model.graph.fresh_name("inside") == "inside_1"
    assert function.fresh_name("a") == "a_1"


def test_a_function_asked_first_knows_the_names_of_the_model() -> None:
    model = parse_model("graph (%x) -> (%y) { %y = f(%x) } function f(%a) -> (%b) { %b = Neg(%a) }")
    function = next(iter(model.functions.values()))
    assert function.graph.fresh_name("y") == "y_1"
    assert model.graph.fresh_name("b") == "b_1"


def test_move_within_and_out_of_a_body() -> None:
    model = parse_model(BODY)
    t, branch = node(model, "t"), node(model, "if")
    model.graph.move(t, branch)
    assert t.graph is model.graph
    assert lines(model)[:2] == ["%a: f32[4] = Abs(%x)", "%t: f32[4] = Neg(%a)"]
    model.graph.move(t, t)
    verify(model)


def test_inputs_outputs_and_initializers() -> None:
    model = parse_model(CHAIN)
    graph = model.graph
    (w,) = graph.initializers
    content = w.const
    assert w.is_constant and w.tensor is content
    graph.make_input(w)
    state = [w.is_constant, w.tensor is content, w.is_input, w.is_initializer]
    assert state == [False, False, True, True]
    verify(model)
    graph.remove_input(w)
    with pytest.raises(ValueError, match="input 'x' is used"):
        graph.remove_input(graph.inputs[0])
    with pytest.raises(ValueError, match="initializer 'w' is used"):
        graph.remove_initializer(w)
    late = graph.add_input("late", TensorType(DType.FLOAT, ()))
    graph.remove_input(late)
    unused = graph.add_initializer("w", Tensor.of([1.0]))
    assert unused.name == "w_1"
    graph.remove_initializer(unused)
    graph.add_output(node(model, "a").output)
    graph.add_output(node(model, "b").output)
    graph.remove_output(1)
    assert [(use.value.name, use.index) for use in graph.output_uses] == [("y", 0), ("b", 1)]
    verify(model)


def test_sort_keeps_what_is_right_and_names_a_cycle() -> None:
    model = parse_model(CHAIN)
    text = print_model(model)
    assert not model.graph.sort()
    model.graph.move(node(model, "a"), None)
    assert model.graph.sort()
    assert print_model(model) == text
    node(model, "a").set_input(0, node(model, "b").output)
    with pytest.raises(ValueError, match="the graph has a cycle through or before node 'a'"):
        model.graph.sort()


def test_sort_counts_what_bodies_capture() -> None:
    model = parse_model(BODY)
    model.graph.move(node(model, "a"), None)
    assert model.graph.sort()
    verify(model)


@given(st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_sort_repairs_any_shuffle(seed: int, rng: object) -> None:
    model = random_model(seed)
    nodes = list(model.graph.nodes)
    rng.shuffle(nodes)  # type: ignore[attr-defined]
    for shuffled in nodes:
        model.graph.move(shuffled, None)
    model.graph.sort()
    verify(model)


@given(st.integers(0, 2**32))
def test_a_clone_is_equal_sound_and_independent(seed: int) -> None:
    model = random_model(seed)
    text = print_model(model)
    clone, values, nodes = model.clone_with_map()
    verify(clone)
    assert print_model(clone) == text
    assert set(values) == set(model.values()) and set(values.values()) == set(clone.values())
    assert set(nodes.values()) == set(clone.walk())
    for value, copy in values.items():
        assert copy.const is value.const and copy is not value
    for made in list(clone.walk()):
        made.set("touched", 1)
        made.output.name = clone.graph.fresh_name("changed")
    clone.graph.add_input("another")
    assert print_model(model) == text
    verify(model)


def test_a_clone_has_the_functions() -> None:
    model = parse_model("graph (%x) -> (%y) { %y = f(%x) } function f(%a) -> (%b) opset=[17] { %b = Neg(%a) }")
    clone = model.clone()
    assert print_model(clone) == print_model(model)
    verify(clone)


# Provenance


def test_provenance_is_shared_and_flattened_once() -> None:
    shared = merge(["a", "b"])
    assert merge([shared, shared]) is shared
    tower = shared
    for _ in range(50):
        tower = merge([tower, (tower, "c")])
    assert flatten(tower) == ["a", "b", "c"]
    assert flatten(tower, 2) == ["a", "b"]
    assert merge([(), "x"]) == "x" and merge([]) == ()


def test_provenance_in_files_has_at_most_16_names() -> None:
    names = tuple(f"n{i}" for i in range(20))
    text = format_sources(names)
    assert text.split("\n")[-1] == "+4"
    assert parse_sources(text) == names[:16]
    assert parse_sources(format_sources("one")) == "one"


# Linked lists


class Item(Linked):
    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def test_iteration_passes_over_removed_and_sees_added_items() -> None:
    items: LinkedList[Item] = LinkedList()
    made = [Item(i) for i in range(5)]
    for item in made:
        items.link(item)
    seen = []
    for item in items:
        seen.append(item.number)
        if item.number == 1:
            for gone in made[1:4]:
                items.unlink(gone)
            items.link(Item(9))
    assert seen == [0, 1, 4, 9]
    assert [item.number for item in reversed(items)] == [9, 4, 0]
    items.relink(made[3])
    items.relink(made[2])
    items.relink(made[1])
    assert len(items) == 6
