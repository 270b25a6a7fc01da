"""The pattern language and the driver."""

# ruff: noqa: E501  # a graph reads best with a node a line
from __future__ import annotations

import pytest

from qir.ir import Model, Node, Value
from qir.ir.parser import parse_model
from qir.ir.printer import print_model
from qir.rewriting import (
    Any,
    Const,
    EndlessRewriteError,
    Match,
    Maybe,
    Numbering,
    OneOf,
    Op,
    Pattern,
    Refused,
    Rest,
    RewriteError,
    Rule,
    apply_rules,
)


def graph(body: str, inputs: str = "%x: f32[2]", output: str = "%y") -> Model:
    return parse_model(f"model ir=10 opset=[17]\ngraph g({inputs}) -> ({output}) {{\n{body}\n}}\n")


def root(model: Model) -> Node:
    node = model.graph.nodes.last
    assert node is not None
    return node


def same(match: Match) -> Value:
    return match["x"]


def found(pattern: Op | OneOf, body: str, inputs: str = "%x: f32[2]") -> Match | None:
    model = graph(body, inputs)
    result = Rule("r", pattern, same).match(root(model), model)
    return result if isinstance(result, Match) else None


X = Any("x")


@pytest.mark.parametrize("body", ["%s = Sigmoid(%x)\n%y = Mul(%x, %s)", "%s = Sigmoid(%x)\n%y = Mul(%s, %x)"])
def test_operands_of_a_commutative_op_match_in_either_order(body: str) -> None:
    assert found(Op("Mul", X, Op("Sigmoid", X)), body) is not None


def test_operands_of_other_ops_match_in_order_only() -> None:
    pattern = Op("Sub", X, Op("Exp", X))
    assert found(pattern, "%e = Exp(%x)\n%y = Sub(%x, %e)") is not None
    assert found(pattern, "%e = Exp(%x)\n%y = Sub(%e, %x)") is None


def test_one_name_is_one_value() -> None:
    pattern = Op("Add", Op("Exp", Any("a")), Op("Neg", Any("a")))
    assert found(pattern, "%e = Exp(%x)\n%n = Neg(%x)\n%y = Add(%n, %e)") is not None
    assert found(pattern, "%e = Exp(%x)\n%n = Neg(%z)\n%y = Add(%n, %e)", "%x: f32[2], %z: f32[2]") is None


def test_a_wrong_first_order_is_taken_back() -> None:
    """Both operands are Add; only the second order lets the inner constants fit, and bindings of the first must go."""
    pattern = Op("Mul", Op("Add", Any("p"), Const("", 1.0)), Op("Add", Any("p"), Const("", 2.0)))
    body = "@one: f32[] = 1\n@two: f32[] = 2\n%b = Add(%x, @two)\n%a = Add(@one, %x)\n%y = Mul(%b, %a)"
    match = found(pattern, body)
    assert match is not None
    assert match["p"].name == "x"


def test_one_pattern_object_in_two_places_is_one_node() -> None:
    d = Op("Sub", Any("a"), Any("b"), name="d")
    pattern = Op("Mul", d, d)
    match = found(pattern, "%d = Sub(%x, %z)\n%y = Mul(%d, %d)", "%x: f32[2], %z: f32[2]")
    assert match is not None
    assert [node.op for node in match.nodes] == ["Mul", "Sub"]
    assert found(pattern, "%d = Sub(%x, %z)\n%e = Sub(%x, %z)\n%y = Mul(%d, %e)", "%x: f32[2], %z: f32[2]") is None


def test_optional_operands() -> None:
    pattern = Op("Clip", X, Maybe(Const("low")), Maybe(Const("high")))
    match = found(pattern, "@h: f32[] = 6\n%y = Clip(%x, _, @h)")
    assert match is not None
    assert match.get("low") is None
    assert match["high"].name == "h"
    assert found(pattern, "%y = Clip(%x)") is not None
    assert found(Op("Clip", X), "@h: f32[] = 6\n%y = Clip(%x, _, @h)") is None


def test_variadic_operands() -> None:
    match = found(Op("Concat", X, Rest("more")), "%a = Exp(%x)\n%b = Neg(%x)\n%y = Concat(%x, %a, %b) {axis=0}")
    assert match is not None
    assert [value.name for value in match.rest("more")] == ["a", "b"]
    each = Op("Concat", Rest("all", Op(("Exp", "Neg"), Any())))
    assert found(each, "%a = Exp(%x)\n%b = Neg(%x)\n%y = Concat(%a, %b) {axis=0}") is not None
    assert found(each, "%a = Exp(%x)\n%b = Abs(%x)\n%y = Concat(%a, %b) {axis=0}") is None


def test_attributes_defaults_and_predicates() -> None:
    pattern = Op("Elu", X, attributes={"alpha": lambda a: a > 0.5}, defaults={"alpha": 1.0})
    assert found(pattern, "%y = Elu(%x)") is not None
    assert found(pattern, "%y = Elu(%x) {alpha=0.75}") is not None
    assert found(pattern, "%y = Elu(%x) {alpha=0.25}") is None


def test_constants_by_value_and_predicate() -> None:
    body = "@c: f32[2] = [3, 3.00001]\n%y = Add(%x, @c)"
    assert found(Op("Add", X, Const("", 3.0)), body) is not None
    assert found(Op("Add", X, Const("", 3.0, tolerance=0)), body) is None
    assert found(Op("Add", X, Const("", 3.0, scalar=True)), body) is None
    assert found(Op("Add", X, Const(where=lambda a: a.shape == (2,))), body) is not None
    assert found(Op("Add", Any(), Const()), "%y = Add(%x, %x)") is None


def test_a_certain_result_of_several() -> None:
    pattern = Op("Neg", Op("Split", X, output=1, name="split"))
    assert found(pattern, "%a, %b = Split(%x)\n%y = Neg(%b)") is not None
    assert found(pattern, "%a, %b = Split(%x)\n%y = Neg(%a)") is None


def test_an_inner_result_that_others_read_is_refused_with_the_reader() -> None:
    model = graph("%e = Exp(%x)\n%y = Neg(%e)\n%z = Abs(%e)", output="%y, %z")
    node = next(node for node in model.graph.nodes if node.op == "Neg")
    refused = Rule("r", Op("Neg", Op("Exp", X)), same).match(node, model)
    assert isinstance(refused, Refused)
    assert refused.reason == "the result of Exp 'e' is read by Abs 'z' too"
    assert isinstance(Rule("r", Op("Neg", Op("Exp", X, leaks=True)), same).match(node, model), Match)
    assert Rule("r", Op("Neg", Op("Exp", X, leaks=True, single_use=True)), same).match(node, model) is None


def test_explain_says_how_far_the_best_match_got() -> None:
    swish = Rule("swish", Op("Mul", X, Op("Sigmoid", Op("Mul", X, Const("", 2.0)))), same)
    model = graph("@c: f32[] = 3\n%m = Mul(%x, @c)\n%s = Sigmoid(%m)\n%y = Mul(%x, %s)")
    assert swish.explain(root(model), model) == (
        "rule 'swish' at Mul 'y': matched 3 of at most 3 nodes (Mul 'y', Sigmoid 's', Mul 'm'), then: constant 'c' is not 2"
    )
    other = graph("%y = Add(%x, %x)")
    assert swish.explain(root(other), other) == "rule 'swish' at Add 'y': expected Mul, found Add 'y'"
    fits = graph("@c: f32[] = 2\n%m = Mul(%x, @c)\n%s = Sigmoid(%m)\n%y = Mul(%x, %s)")
    assert swish.explain(root(fits), fits) == "rule 'swish' at Mul 'y': matches"


def double_negation() -> Rule:
    return Rule("double-neg", Op("Neg", Op("Neg", X)), same)


def test_what_a_rewrite_opens_is_visited_again() -> None:
    model = graph("%a = Neg(%x)\n%b = Exp(%a)\n%c = Log(%b)\n%y = Neg(%c)")
    rules = [double_negation(), Rule("log-exp", Op("Log", Op("Exp", X)), same)]
    report = apply_rules(rules, model)
    assert [a.rule for a in report.applications] == ["log-exp", "double-neg"]
    assert [node.op for node in model.graph.nodes] == ["Identity"]
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_a_reader_that_goes_opens_a_match_for_the_other() -> None:
    model = graph("%e = Exp(%x)\n%y = Log(%e)\n%a = Neg(%e)\n%b = Neg(%a)\n%z = Abs(%b)", output="%y")
    model.graph.remove_output(0)
    model.graph.add_output(next(n for n in model.graph.nodes if n.op == "Log").output)
    rules = [
        Rule("log-exp", Op("Log", Op("Exp", X)), lambda m: m.add("Abs", [m["x"]]).output),
        Rule("drop", Op("Abs", Op("Neg", Op("Neg", Any("v")))), lambda m: m.add("Abs", [m["v"]]).output),
        Rule("abs-exp", Op("Abs", Op("Exp", X)), lambda m: m.add("Sin", [m["x"]]).output),
    ]
    report = apply_rules(rules, model)
    assert report.applications[0].rule == "drop"


def test_provenance_names_and_metadata_go_to_what_is_new() -> None:
    model = graph('%e = Exp(%x) name="one" meta={"k": "1"}\n%y2 = Log(%e) name="two"\n%y = Abs(%y2)')
    apply_rules([Rule("fuse", Op("Log", Op("Exp", X)), lambda m: m.add("Relu", [m["x"]]).output)], model)
    node = next(iter(model.graph.nodes))
    assert (node.op, node.name, node.output.name, node.sources) == ("Relu", "two", "y2", ["one", "two"])
    assert node.metadata == {"k": "1"}


def test_several_results_are_replaced_at_once() -> None:
    model = graph("%a, %b = Split(%x) {axis=0}\n%y = Sub(%a, %b)")
    rule = Rule(
        "swap", Op("Split", X), lambda m: tuple(reversed(m.add("Chop", [m["x"]], outputs=2, domain="my").outputs))
    )
    apply_rules([rule], model)
    sub = root(model)
    assert [value.index for value in sub.inputs if value is not None] == [1, 0]


def test_two_rules_that_fight_are_named() -> None:
    there = Rule("to-exp", Op("Log", X), lambda m: m.add("Exp", [m["x"]]).output)
    back = Rule("to-log", Op("Exp", X), lambda m: m.add("Log", [m["x"]]).output)
    with pytest.raises(EndlessRewriteError, match="'to-exp' and 'to-log'"):
        apply_rules([there, back], graph("%a = Log(%x)\n%y = Abs(%a)"))


def test_a_rule_that_grows_without_end_is_stopped() -> None:
    def grow(match: Match) -> Value:
        inner = match.add("Log", [match["x"]])
        return match.add("Log", [inner.output]).output

    with pytest.raises(EndlessRewriteError, match="'grow'"):
        apply_rules([Rule("grow", Op("Log", X), grow)], graph("%a = Log(%x)\n%y = Abs(%a)"), max_rounds=20)


def test_a_rule_that_answers_what_it_found_is_named() -> None:
    with pytest.raises(EndlessRewriteError, match="the rule 'idle' still changes it"):
        apply_rules([Rule("idle", Op("Log", X), lambda m: None)], graph("%y = Log(%x)"))


def test_a_rewrite_may_answer_the_node_that_makes_the_results() -> None:
    model = graph("%y = Log(%x)")
    apply_rules([Rule("exp", Op("Log", X), lambda m: m.add("Exp", [m["x"]]))], model)
    assert [node.op for node in model.graph.nodes] == ["Exp"]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("x", "its rewrite answered 'x' where a value, a node or a list of values is due"),
        (("x",), "its rewrite answered .'x',. where a value"),
        ((), "its rewrite answered 0 values for 1 results"),
    ],
)
def test_a_rewrite_that_answers_nonsense_is_named(answer: object, complaint: str) -> None:
    rule = Rule("odd", Op("Log", X), lambda m: answer)  # type: ignore[arg-type, return-value]
    with pytest.raises(RewriteError, match=f"^rule 'odd' at Log 'y': {complaint}"):
        apply_rules([rule], graph("%y = Log(%x)"))


@pytest.mark.parametrize("answer", [True, False])
def test_a_check_that_answers_yes_or_no_is_told_to_give_a_reason(answer: bool) -> None:
    rule = Rule("odd", Op("Log", X), same, check=lambda m: answer)  # type: ignore[arg-type, return-value]
    with pytest.raises(RewriteError, match=f"'odd' at Log 'y': its check answered {answer}, where None"):
        apply_rules([rule], graph("%y = Log(%x)"))


def test_a_name_that_a_match_lacks_is_told_with_what_there_is() -> None:
    match = found(Op("Sum", X, Rest("more"), name="sum"), "%y = Sum(%x, %x)")
    assert match is not None
    for ask, name, told in (
        (match.__getitem__, "more", "ask match.rest('more')"),
        (match.rest, "x", "ask match['x']"),
        (match.__getitem__, "z", "nothing is called 'z' in this match (there is 'x', 'sum')"),
        (match.node, "z", "(there is 'sum')"),
    ):
        with pytest.raises(KeyError) as error:
            ask(name)  # type: ignore[operator]
        assert told in error.value.args[0]


def test_a_condition_that_raises_is_explained() -> None:
    model = graph("%y = Log(%x)")
    rule = Rule("odd", Op("Log", Any("x", where=lambda value: 1 / 0)), same)  # type: ignore[arg-type, return-value]
    told = "rule 'odd' at Log 'y': a condition or its check raised ZeroDivisionError: division by zero"
    assert rule.explain(root(model), model) == told


def test_the_content_of_a_constant_is_asked_by_its_name() -> None:
    match = found(Op("Add", X, Const("c")), "@c: f32[2] = [1, 2]\n%y = Add(%x, @c)")
    assert match is not None and match.array("c").tolist() == [1, 2]
    with pytest.raises(ValueError, match="'x' is no constant here"):
        match.array("x")


def test_what_hands_out_a_graph_input_stands_for_the_matched_nodes() -> None:
    model = graph('%a = Neg(%x) name="first"\n%y = Neg(%a) name="second"')
    apply_rules([double_negation()], model)
    (node,) = model.graph.nodes
    assert (node.op, node.sources, node.output.name) == ("Identity", ["second", "first"], "y")


def test_a_mistake_in_a_rule_is_noted_with_rule_and_node() -> None:
    with pytest.raises(ZeroDivisionError) as error:
        apply_rules([Rule("odd", Op("Log", X), lambda m: 1 / 0)], graph("%y = Log(%x)"))  # type: ignore[arg-type, return-value]
    assert error.value.__notes__ == ["in rule 'odd' at Log 'y'"]


def test_the_output_of_a_body_keeps_its_name() -> None:
    body = (
        "%y = If(%c) {then_branch=graph () -> (%t) {\n%t = Log(%x)\n}, else_branch=graph () -> (%e) {\n%e = Abs(%x)\n}}"
    )
    model = graph(body, "%x: f32[2], %c: bool[]")
    apply_rules([Rule("exp", Op("Log", X), lambda m: m.add("Exp", [m["x"]]))], model)
    assert "%t = Exp(%x)" in print_model(model)


def test_a_rule_that_keeps_quantization_hands_it_on() -> None:
    model = graph("%a: f32[2] q=u8(0.1, 0) = Relu(%x : u8(0.2, 3))\n%b: f32[2] q=u8(0.5, 0) = Relu(%a)\n%y = Neg(%b)")
    once = Rule("once", Op("Relu", Op("Relu", X)), lambda m: m.add("Relu", [m["x"]]), keeps_quant=True)
    apply_rules([once], model)
    assert "%b: f32[2] q=u8(0.5, 0) = Relu(%x : u8(0.2, 3))" in print_model(model)


def test_readers_of_a_value_that_is_stored_otherwise_read_what_they_read_before() -> None:
    model = graph("%a: f32[2] q=u8(0.1, 0) = Abs(%x)\n%b: f32[2] q=u8(0.5, 0) = Abs(%a)\n%y = Neg(%b)")
    drop = Rule("drop", Op("Abs", Op("Abs", X, name="inner", leaks=True)), lambda m: m["inner"], keeps_quant=True)
    apply_rules([drop], model)
    assert "%y = Neg(%b : u8(0.5, 0))" in print_model(model)
    model = graph("%a: f32[2] q=u8(0.1, 0) = Abs(%x)\n%b: f32[2] = Abs(%a)\n%y = Neg(%b)")
    apply_rules([drop], model)
    assert "%y = Neg(%b : float)" in print_model(model)


def test_a_long_chain_of_honest_rewrites_is_not_taken_for_endless() -> None:
    lines = ["%a0 = Neg(%x)"] + [f"%a{i} = Neg(%a{i - 1})" for i in range(1, 3000)]
    model = graph("\n".join([*lines, "%y = Abs(%a2999)"]))
    report = apply_rules([double_negation()], model)
    assert len(report.applications) == 1500
    assert [node.op for node in model.graph.nodes] == ["Abs"]


def test_applications_are_numbered_and_can_be_limited() -> None:
    body = "%a = Log(%x)\n%b = Log(%a)\n%y = Log(%b)"
    rule = Rule("log", Op("Log", X), lambda m: m.add("Exp", [m["x"]]).output)
    numbering = Numbering(limit=2)
    model = graph(body)
    report = apply_rules([rule], model, numbering=numbering)
    assert [(a.number, a.node) for a in report.applications] == [(0, "a"), (1, "b")]
    assert [node.op for node in model.graph.nodes] == ["Exp", "Exp", "Log"]


def test_annotated_values_are_refused_unless_the_rule_keeps_them() -> None:
    body = "%a q=u8(0.1, 0) = Neg(%x)\n%b = Neg(%a)\n%y = Abs(%b)"
    model = graph(body)
    report = apply_rules([double_negation()], model)
    assert not report.applications
    assert "quantization annotations" in report.refusals[0][2]
    keeps = Rule("double-neg", Op("Neg", Op("Neg", X)), same, keeps_quant=True)
    assert len(apply_rules([keeps], graph(body)).applications) == 1


def test_a_match_does_not_cross_into_a_body() -> None:
    body = """%a = Neg(%x)
    %y = If(%c) {then_branch=graph t() -> (%p) { %b = Neg(%a)
        %p = Neg(%b) }, else_branch=graph e() -> (%q) { %q = Neg(%a) }}"""
    model = graph(body, "%x: f32[2], %c: bool[]")
    report = apply_rules([double_negation()], model)
    assert [a.node for a in report.applications] == ["p"]


def test_a_run_of_rules_can_be_undone() -> None:
    model = graph("%a = Neg(%x)\n%b = Neg(%a)\n%y = Abs(%b)")
    before = print_model(model)
    model.begin("rules")
    assert apply_rules([double_negation()], model).applications
    model.rollback()
    assert print_model(model) == before


def test_a_pattern_without_an_operator_at_its_root_is_refused() -> None:
    with pytest.raises(ValueError, match="must be an Op"):
        Rule("r", OneOf(X), same)
    assert isinstance(X, Pattern)


def test_an_operand_that_is_no_pattern_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Relu: operand 0 is 'x', no pattern; Any\('x'\) names an operand"):
        Op("Relu", "x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Sum: a Rest takes all operands that are left, so it stands last"):
        Op("Sum", Rest("more"), X)
