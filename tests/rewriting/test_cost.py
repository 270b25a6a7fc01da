"""What matching costs, counted in the conditions that are asked, never in seconds."""

from __future__ import annotations

from qir.ir import Value
from qir.ir.parser import parse_model
from qir.rewriting import Any, Op, Pattern, Rule, apply_rules


def deep(depth: int, leaf: Pattern) -> Op:
    pattern: Pattern = leaf
    for _ in range(depth):
        pattern = Op("Add", pattern, Any(), leaks=True)
    assert isinstance(pattern, Op)
    return pattern


def test_a_deep_commutative_pattern_that_fails_is_given_up_at_once() -> None:
    """Each Add reads one value twice: tried in both orders at each step, that would be 2^18 ways to the bottom."""
    depth = 18
    asked: list[str] = []

    def never(value: Value) -> bool:
        asked.append(value.name)
        return False

    lines = [f"%v{i} = Add(%v{i - 1}, %v{i - 1})" for i in range(1, depth + 1)]
    model = parse_model(f"graph (%v0: f32[2]) -> (%v{depth}) {{\n" + "\n".join(lines) + "\n}")
    root = model.graph.outputs[0].producer
    assert root is not None
    assert Rule("deep", deep(depth, Any("x", where=never)), lambda match: match["x"]).match(root, model) is None
    assert len(asked) == 1


def test_operators_that_do_not_fit_are_refused_before_any_condition_is_asked() -> None:
    asked: list[str] = []

    def always(value: Value) -> bool:
        asked.append(value.name)
        return True

    model = parse_model("graph (%x: f32[2]) -> (%y) { %a = Neg(%x)  %y = Mul(%a, %x) }")
    root = model.graph.outputs[0].producer
    assert root is not None
    pattern = Op("Mul", Any("x", where=always), Op(("Exp", "Log"), Any("y", where=always)))
    assert Rule("none", pattern, lambda match: match["x"]).match(root, model) is None
    assert not asked


def test_a_change_far_upstream_wakes_the_roots_that_see_it() -> None:
    """The product is visited first and does not fit; only what happens at the Relu makes it fit, two nodes up."""
    text = """
        graph (%x: f32[2]) -> (%y, %z) {
          %n = Neg(%x)
          %e = Exp(%n)
          %y = Mul(%e, %x)
          %z = Relu(%n)
        }"""
    model = parse_model(text)
    x = Any("x")
    turn = Rule(
        "turn",
        Op("Relu", Op("Neg", x, name="neg", leaks=True)),
        lambda match: {match["neg"]: match.add("Abs", [match["x"]]).output},
    )
    product = Rule(
        "product",
        Op("Mul", Op("Exp", Op("Abs", x, leaks=True)), x),
        lambda match: match.add("Sign", [match["x"]]).output,
    )
    assert apply_rules([product, turn], model).counts == {"turn": 1, "product": 1}
