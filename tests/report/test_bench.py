"""`qir bench`: times go to the nodes of the user's model, under names that can be told apart."""

from __future__ import annotations

import pytest

from qir.ir.parser import parse_model
from qir.report.bench import BenchReport, NodeTime, node_times
from qir.report.columns import middle, name_width
from qir.runtime.latency import LatencyComparison
from qir.runtime.profile import OpTime

BLOCK = """
model ir=8 opset=[13]
graph (%x: f32[1,4,8,8]) -> (%z) {
  @w: f32[4,1,1,1] = [1, 1, 1, 1]
  @c: f32[4] = [1, 1, 1, 1]
  %a: f32[1,4,8,8] = Conv(%x, @w) {group = 4} name="conv"
  %b: f32[1,4,8,8] = BatchNormalization(%a, @c, @c, @c, @c) name="bn"
  %y: f32[1,4,8,8] = Add(%x, %b) name="add"
  %z: f32[1,4,8,8] = Relu(%y) name="relu"
}
"""


@pytest.mark.parametrize(
    ("row", "op"), [("relu", "Conv"), ("bn", "Conv"), ("fused relu", "FusedConv"), ("conv", "Conv")]
)
def test_a_fused_convolution_counts_for_the_convolution(row: str, op: str) -> None:
    found = node_times([OpTime(row, op, 20, 7.0, 7.0)], parse_model(BLOCK), 20)
    assert found == {"conv": NodeTime(7.0, (op,))}


def test_what_stayed_alone_keeps_its_name() -> None:
    found = node_times(
        [OpTime("relu", "Relu", 20, 1.0, 1.0), OpTime("t", "Transpose", 20, 2.0, 2.0)], parse_model(BLOCK), 20
    )
    assert set(found) == {"relu", "(Transpose)"}


def test_long_names_can_be_told_apart() -> None:
    names = [f"encoder.layer.{i}.attention.self.query/MatMul" for i in range(3)]
    nodes = {name: NodeTime(1.0, ("MatMul",)) for name in names}
    report = BenchReport("a", "b", "d", 1, 1, LatencyComparison(1.0, 1.0, 1.0, 0.9, 1.1, 5), nodes, nodes)
    for name in names:
        assert name in str(report)
    assert middle("abcdefghij", 8) == "abc..hij"
    assert [name_width(["ab"], 24), name_width(["x" * 30, ""], 24), name_width(["x" * 99], 24)] == [24, 30, 44]
