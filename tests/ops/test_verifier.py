"""The schema verifier accepts good models and names the bad node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qir.errors import VerifyError
from qir.ir import DType, Graph, Model, Node, TensorType
from qir.ops.verifier import verify_schemas


def model_of(build: Callable[[Graph, Any], Node], opset: int = 17) -> Model:
    graph = Graph("g")
    x = graph.add_input("x", TensorType(DType.FLOAT, (2, 3)))
    graph.add_output(build(graph, x).outputs[0])
    return Model(graph, {"": opset}, 8)


# ruff: noqa: E501  # one case a line
BAD: list[tuple[str, int, Callable[[Graph, Any], Node]]] = [
    ("domain 'ai.onnx' has no op 'Frob'", 17, lambda g, x: g.add_node("Frob", [x], name="bad")),
    ("opset 16 of domain 'ai.onnx' has no LayerNormalization yet", 16, lambda g, x: g.add_node("LayerNormalization", [x, x], name="bad")),
    ("Upsample is deprecated in opset 10", 10, lambda g, x: g.add_node("Upsample", [x, x], name="bad")),
    ("3 inputs, Add takes 2", 17, lambda g, x: g.add_node("Add", [x, x, x], name="bad")),
    ("input 1 .* of Add is missing", 17, lambda g, x: g.add_node("Add", [x, None], name="bad")),
    ("2 outputs, Relu gives 1", 17, lambda g, x: g.add_node("Relu", [x], outputs=2, name="bad")),
    ("attribute 'axis' of Concat is missing", 17, lambda g, x: g.add_node("Concat", [x], name="bad")),
    ("attribute 'axis' is float, not int", 17, lambda g, x: g.add_node("Concat", [x], {"axis": 1.0}, name="bad")),
    ("no attribute 'axis' at opset 12, only in later ones: the tool that wrote it should", 12, lambda g, x: g.add_node("DequantizeLinear", [x, x], {"axis": 1}, name="bad")),
    ("Unsqueeze has no attribute 'axes' at opset 17", 17, lambda g, x: g.add_node("Unsqueeze", [x, x], {"axes": [1]}, name="bad")),
    ("is tensor\\(float\\), Not takes tensor\\(bool\\)", 17, lambda g, x: g.add_node("Not", [x], name="bad")),
    ("inputs of one type are tensor\\(float\\) and tensor\\(double\\)", 17, lambda g, x: g.add_node("Add", [x, g.add_constant(np.zeros(3))], name="bad")),
    ("attribute 'K' of MatMulNBits is missing", 17, lambda g, x: g.add_node("MatMulNBits", [x, x, x], domain="com.microsoft", name="bad")),
]  # fmt: skip


@pytest.mark.parametrize(("message", "opset", "build"), BAD, ids=[b[0][:30] for b in BAD])
def test_a_bad_node_is_named_and_shown(message: str, opset: int, build: Callable[[Graph, Any], Node]) -> None:
    with pytest.raises(VerifyError, match=f"(?s)^node 'bad': .*{message}.*\n.*%x"):
        verify_schemas(model_of(build, opset))


def test_unknown_domains_are_counted_not_failed() -> None:
    model = model_of(lambda g, x: g.add_node("Odd", [x], domain="com.example"))
    report = verify_schemas(model)
    assert report.opaque == {"com.example": 1}
    assert report.checked == 0


def test_bodies_are_checked() -> None:
    body, other = Graph("then"), Graph("else")

    def build(graph: Graph, x: Any) -> Node:
        body.add_output(body.add_node("Add", [x], name="inside").output)
        other.add_output(other.add_node("Relu", [x]).output)
        condition = graph.add_constant(np.array(True))
        return graph.add_node("If", [condition], {"then_branch": body, "else_branch": other})

    with pytest.raises(VerifyError, match="node 'inside': 1 inputs, Add takes 2"):
        verify_schemas(model_of(build))


def test_a_form_seen_before_is_still_checked_for_types() -> None:
    def build(graph: Graph, x: Any) -> Node:
        graph.add_node("Not", [graph.add_constant(np.array(True))])
        return graph.add_node("Not", [x], name="bad")

    with pytest.raises(VerifyError, match="'bad'"):
        verify_schemas(model_of(build))
