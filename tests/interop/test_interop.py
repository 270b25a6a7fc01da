"""The doors to other libraries: what they change arrives, what they lose comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qir
from qir.codegen import export_model
from qir.errors import ModelError, UnsupportedError
from qir.frontend import import_model
from qir.interop import GraphSurgeon, OnnxIrPass, OnnxscriptRules, to_networkx
from qir.interop.swap import replace_content
from qir.ir import DType, Model, StaticQuant, Tensor
from qir.ir.parser import parse_model
from qir.ir.printer import print_model, recordable
from qir.ir.verifier import verify
from qir.ops.shape_inference import infer
from qir.pipeline import Effect, Pipeline, PipelineResult
from qir.validation.numeric_check import NumericCheck
from tests.protos import difference

GOLDEN = Path(__file__).resolve().parents[2] / "golden_models"

TEXT = """
model ir=8 opset=[17] producer="me"
graph g(%x: f32[4] range=[0, 1]) -> (%y, %z) {
  @w: f32[20] #0123456789abcdef
  %a: f32[4] = Neg(%x) name="first" doc="a doc" meta={"k": "v"}
  %b: f32[4] = Neg(%a) name="second"
  %c: f32[4] = Identity(%b) name="third"
  %y: f32[4] = Relu(%c) name="fourth"
  %p: f32[4] = Neg(%x) name="fifth"
  %z: f32[20] = Mul(@w, @w) name="sixth" meta={"k": "w"}
}
"""
WITH_BODY = """
model ir=8 opset=[17]
graph g(%x: f32[4], %n: bool[]) -> (%y) {
  %a: f32[4] = Identity(%x) name="same"
  %y: f32[4] = If(%n) {then_branch=graph t() -> (%t) { %t: f32[4] = Relu(%a) name="inside" },
    else_branch=graph e() -> (%e) { %e: f32[4] = Neg(%a) name="other" }} name="choice"
}
"""


def model() -> Model:
    weight = Tensor.of(np.arange(20, dtype=np.float32))
    return parse_model(TEXT, {"w": weight})


WITH_FUNCTION = """
model ir=8 opset=[17, my.domain 1]
graph g(%x: f32[4]) -> (%y) {
  %y: f32[4] = my.domain.Double(%x) name="call"
  %dead: f32[4] = Relu(%x)
}
function my.domain.Double(%a) -> (%b) opset=[17] {
  %b = Add(%a, %a)
}
"""


def sources(model: Model) -> dict[str, list[str]]:
    return {node.output.name: node.sources for node in model.walk()}


def run(pass_: Any, given: Model) -> PipelineResult:
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)}
    if len(given.graph.inputs) == 2:
        feeds["n"] = np.array([True, False])
    return Pipeline([pass_]).run(given, instruments=[NumericCheck(feeds)])


def test_an_onnx_ir_pass_runs_and_provenance_comes_back() -> None:
    passes = pytest.importorskip("onnx_ir.passes.common")
    result = run(OnnxIrPass(passes.IdentityEliminationPass()), model())
    after = result.model
    assert result.changed and result.passes[0].remarks[0].message == "IdentityEliminationPass: 6 nodes became 5"
    assert sources(after)["y"] == ["fourth", "third"] and sources(after)["b"] == ["second"]
    first = after.graph.nodes.first
    assert first is not None and (first.doc, dict(first.metadata or {})) == ("a doc", {"k": "v"})
    assert after.producer_name == "me" and after.graph.inputs[0].range == model().graph.inputs[0].range
    assert not run(OnnxIrPass(passes.IdentityEliminationPass()), after).changed


def test_onnxscript_rules_run() -> None:
    pattern = pytest.importorskip("onnxscript.rewriter.pattern")
    rule = pattern.RewriteRule(lambda op, x: op.Neg(op.Neg(x)), lambda op, x: op.Identity(x))
    for given in (rule, [rule], pattern.RewriteRuleSet([rule])):
        after = run(OnnxscriptRules(given), model()).model
        assert [node.op for node in after.walk()].count("Neg") == 0  # the fifth is dead, and their clean-up removes it
        assert "first" in [name for names in sources(after).values() for name in names]
    assert not Pipeline([OnnxscriptRules([])]).run(model()).changed


def test_a_graphsurgeon_function_runs_and_what_it_loses_comes_back() -> None:
    pytest.importorskip("onnx_graphsurgeon")

    def bypass(graph: Any) -> None:
        for node in graph.nodes:
            if node.op == "Identity":
                reader = node.outputs[0].outputs[0]
                reader.inputs = [node.inputs[0]]
        graph.cleanup()

    before = model()
    after = run(GraphSurgeon(bypass), before).model
    assert [node.op for node in after.walk()] == ["Neg", "Neg", "Relu", "Mul"]
    assert sources(after)["y"] == ["fourth", "third"] and sources(after)["z"] == ["sixth"]
    mul = after.graph.nodes.last
    assert mul is not None and dict(mul.metadata or {}) == {"k": "w"}
    old, new = before.graph.initializers.first, after.graph.initializers.first
    assert old is not None and new is not None and new.const is old.const  # the weight keeps its storage


def test_bodies_capture_the_new_values() -> None:
    pytest.importorskip("onnx_graphsurgeon")
    before = parse_model(WITH_BODY)
    after = run(GraphSurgeon(lambda graph: graph), before).model
    choice = after.graph.nodes.last
    assert choice is not None
    captured = {use.value for body in choice.bodies for node in body.nodes for use in node.uses if use is not None}
    assert captured == {after.graph.nodes.first.output}  # type: ignore[union-attr]
    assert sources(after) == sources(before)


def test_a_swap_can_be_undone() -> None:
    for text in (TEXT, WITH_BODY, WITH_FUNCTION):
        given = parse_model(text)
        before = print_model(given)
        given.begin("swap")
        replace_content(given, parse_model(text.replace("Relu", "Abs")))
        assert "Abs" in print_model(given)
        given.rollback()
        assert print_model(given) == before


def test_a_lossy_wrapper_can_say_so() -> None:
    pass_ = GraphSurgeon(lambda graph: None, effect=Effect.LOSSY)
    assert pass_.effect is Effect.LOSSY and GraphSurgeon.effect is Effect.EXACT
    assert str(Pipeline([pass_])) == "graph-surgeon"


def test_what_cannot_go_through_a_file_is_refused() -> None:
    given = model()
    given.graph.inputs[0].quant = StaticQuant.per_tensor(DType.UINT8, 0.1)
    with pytest.raises(UnsupportedError, match="'x' carries a quantization annotation"):
        Pipeline([GraphSurgeon(lambda graph: None)]).run(given)


def test_outputs_may_not_be_renamed() -> None:
    pytest.importorskip("onnx_graphsurgeon")

    def rename(graph: Any) -> None:
        graph.outputs[0].name = "other"

    with pytest.raises(UnsupportedError, match="outputs from y, z to other, z"):
        Pipeline([GraphSurgeon(rename)]).run(model())


def test_errors_of_the_function_and_missing_packages_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx_graphsurgeon")

    def broken(graph: Any) -> None:
        raise KeyError("nothing")

    with pytest.raises(
        ModelError, match=r"'graph-surgeon': broken raised KeyError: 'nothing' \(.*test_interop.py, line \d+\)$"
    ):
        Pipeline([GraphSurgeon(broken)]).run(model())
    monkeypatch.setitem(__import__("sys").modules, "onnx_graphsurgeon", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'qir\[interop\]'"):
        Pipeline([GraphSurgeon(broken)]).run(model())


def test_networkx_sees_the_graph() -> None:
    networkx = pytest.importorskip("networkx")
    given = parse_model(WITH_BODY)
    graph = to_networkx(given.graph)
    same, choice = list(given.graph.nodes)
    x, n = given.graph.inputs
    assert {data["kind"] for _, data in graph.nodes(data=True)} == {"input", "node", "output"}
    assert set(graph.edges()) == {(x, same), (same, choice), (n, choice), (choice, given.graph.output_uses[0])}
    assert graph.edges[same, choice, 0]["operand"] is None  # captured by the bodies
    assert list(networkx.topological_sort(graph))[-1] is given.graph.output_uses[0]
    inner = to_networkx(choice.bodies[0])
    assert [data["label"] for _, data in inner.nodes(data=True) if data["kind"] == "input"] == ["a"]


@pytest.mark.parametrize("name", ["adaptive-digits", "encoder-moods", "gru-words"])
def test_a_detour_that_changes_nothing_changes_nothing(name: str) -> None:
    """Field by field: bodies, metadata, provenance, the types that the file records."""
    before = qir.load(GOLDEN / name / "model.onnx")
    infer(before)
    before.graph.recorded_types = dict.fromkeys(recordable(before.graph))
    after = before.clone()
    replace_content(after, import_model(export_model(before, strip_provenance=True)))
    verify(after)
    assert difference(export_model(after), export_model(before)) is None
