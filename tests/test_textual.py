"""The fixture check_pass: compares texts whatever their layout, and rewrites the expected one on request."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from qir.ir import Model
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from tests.textual import CheckPass, _expected_literal


@dataclass(frozen=True)
class DropNeg(Pass):
    """Two Negs in a row are nothing."""

    name: ClassVar[str] = "drop-neg"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        result = PassResult()
        for node in list(model.walk()):
            outer = node.output.uses.first
            if node.op == "Neg" and outer is not None and outer.node is not None and outer.node.op == "Neg":
                value = node.input(0)
                assert value is not None
                outer.node.output.replace_all_uses(value)
                outer.node.erase()
                node.erase()
                result.changed = True
        return result


BEFORE = """
graph (%x: f32[4]) -> (%y) {
  %a: f32[4] = Neg(%x)
  %b: f32[4] = Neg(%a)
  %y: f32[4] = Relu(%b) name="relu"
}"""


def test_layout_does_not_count(check_pass: CheckPass) -> None:
    check_pass(BEFORE, DropNeg(), 'graph (%x: f32[4])->(%y) { %y : f32[4] = Relu(%x) name="relu" }')


def test_a_difference_fails_with_both_texts() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"-  %y: f32\[4\] = Neg\(%x\)\n\+  %y: f32\[4\] = Relu\(%x\)"):
        CheckPass(False)(BEFORE, [DropNeg()], "graph (%x: f32[4]) -> (%y) { %y: f32[4] = Neg(%x) }")


def test_the_expected_literal_is_found() -> None:
    source = 'def test():\n    check_pass(\n        "ä",\n        p,\n        "",\n    )\n'
    found = _expected_literal(source, 3)
    assert found is not None
    start, end, indent = found
    assert source.encode()[start:end] == b'""'
    assert indent == 8
    assert _expected_literal("check_pass(a, b, c)", 1) is None


def test_update_writes_the_found_text(tmp_path: Path) -> None:
    path = tmp_path / "case.py"
    path.write_text(
        "def run(check_pass, before, passes):\n"
        '    check_pass(before, passes, "")\n'
        "    check_pass(\n        before,\n        [],\n        after='',\n    )\n"
    )
    names: dict[str, object] = {}
    exec(compile(path.read_text(), str(path), "exec"), names)
    updating = CheckPass(True)
    names["run"](updating, BEFORE, DropNeg())  # type: ignore[operator]
    updating.write()
    exec(compile(path.read_text(), str(path), "exec"), names)
    names["run"](CheckPass(False), BEFORE, DropNeg())  # type: ignore[operator]
    assert path.read_text().count('%y: f32[4] = Relu(%b) name="relu"') == 1
    assert path.read_text().count('%y: f32[4] = Relu(%x) name="relu"') == 1
