"""What matching costs, counted in the conditions that are asked, never in seconds."""

from __future__ import annotations

from qir.ir import Value
from qir.ir.parser import parse_model
from qir.rewriting import Any, Op, Pattern, Rule


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
