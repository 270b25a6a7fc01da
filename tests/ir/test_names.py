"""Renaming, exchanging and making names, constants that are outputs included."""

from __future__ import annotations

import numpy as np
import onnx

from qir.codegen import export_model, to_bytes
from qir.ir.parser import parse_model
from qir.ir.verifier import verify
from qir.runtime.session import PLAIN, OrtRunner

CONSTANT_OUTPUTS = """
model ir=8 opset=[17]
graph (%x: f32[2]) -> (@a, @b, %y) {
  @a: f32[2] = [1.0, 2.0]
  @b: f32[2] = [3.0, 4.0]
  %y: f32[2] = Add(%x, @a)
}
"""


def run(data: bytes) -> dict[str, list[float]]:
    outputs = OrtRunner(data, PLAIN).run({"x": np.zeros(2, np.float32)})
    return {name: array.tolist() for name, array in outputs.items()}


def test_constants_that_are_outputs_are_renamed() -> None:
    model = parse_model(CONSTANT_OUTPUTS)
    a, b, _ = model.graph.outputs
    a.name, b.name = "first", "second"
    verify(model)
    assert run(to_bytes(model)) == {"first": [1.0, 2.0], "second": [3.0, 4.0], "y": [1.0, 2.0]}


def test_constants_that_are_outputs_exchange_their_names() -> None:
    model = parse_model(CONSTANT_OUTPUTS)
    a, b, _ = model.graph.outputs
    a.name, b.name = b.name, a.name
    verify(model)
    assert run(to_bytes(model)) == {"b": [1.0, 2.0], "a": [3.0, 4.0], "y": [1.0, 2.0]}


def test_a_constant_that_is_an_output_is_replaced() -> None:
    model = parse_model(CONSTANT_OUTPUTS)
    a, b, _ = model.graph.outputs
    a.replace_all_uses(b, where=lambda use: not use.is_graph_output)
    verify(model)
    assert run(to_bytes(model)) == {"a": [1.0, 2.0], "b": [3.0, 4.0], "y": [3.0, 4.0]}


def test_all_values_are_renamed_at_once_and_nothing_dangles() -> None:
    model = parse_model(
        """
        model ir=8 opset=[17]
        graph main(%x: f32[2], %c: bool[]) -> (%y) {
          @w: f32[2] = [1.0, 2.0]
          %h = Mul(%x, @w)
          %y: f32[2] = If(%c) {
            then_branch = graph then() -> (%t) { %t = Add(%h, @w) },
            else_branch = graph else() -> (%e) { %e = Neg(%h) }
          }
        }
        """
    )
    before = OrtRunner(to_bytes(model), PLAIN).run({"x": np.ones(2, np.float32), "c": np.array(True)})
    for value in list(model.values()):
        value.name = f"net/{value.name}:0"
    verify(model)
    exported = export_model(model)
    onnx.checker.check_model(exported)
    onnx.checker.check_model(exported)
    assert all(name.startswith("net/") for node in exported.graph.node for name in [*node.input, *node.output])
    feed = {"net/x:0": np.ones(2, np.float32), "net/c:0": np.array(True)}
    after = OrtRunner(exported.SerializeToString(), PLAIN).run(feed)
    assert after["net/y:0"].tolist() == before["y"].tolist() == [2.0, 4.0]


def test_a_clone_has_metadata_of_its_own() -> None:
    model = parse_model(CONSTANT_OUTPUTS)
    (node,) = model.walk()
    model.metadata, model.graph.metadata, node.metadata = {"k": "old"}, {"k": "old"}, {"k": "old"}
    node.output.metadata = {"k": "old"}
    clone = model.clone()
    (copy,) = clone.walk()
    for subject in (clone, clone.graph, copy, copy.output):
        subject.metadata = {**(subject.metadata or {}), "k": "new"}
    assert [subject.metadata for subject in (model, model.graph, node, node.output)] == [{"k": "old"}] * 4


def test_a_ladder_of_many_paths_is_sorted_at_once() -> None:
    """Two to the 400th paths lead from the input to the output; each node is visited once."""
    steps = 400
    lines = [f"%v{i} = Add(%v{i - 1}, %v{i - 1})" for i in range(steps, 0, -1)]
    model = parse_model(f"model ir=8 opset=[17]\ngraph (%v0: f32[2]) -> (%v{steps}) {{\n" + "\n".join(lines) + "\n}")
    assert model.graph.sort()
    verify(model)
    assert [node.output.name for node in model.graph.nodes] == [f"v{i}" for i in range(1, steps + 1)]
