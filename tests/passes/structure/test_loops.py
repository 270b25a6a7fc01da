"""fold-constants: Loops that run a known number of times."""

# ruff: noqa: E501  # ONNX text reads best with a node a line
from __future__ import annotations

import numpy as np
import pytest

from qir.ir import Model
from qir.ir.printer import print_model
from qir.ir.verifier import verify
from qir.ops.shape_inference import infer
from qir.passes.structure.fold_constants import FoldConstants
from qir.pipeline import Pipeline
from qir.pipeline.contract import PassContext
from tests.passes.support import apply, assert_close, onnx_text, outputs

LOOP = """
agraph (float[2] x, bool go) => (float[2] y, float[T, 2] all)
<int64 trips = {{{trips}}}, bool yes = {{1}}, float[2] start = {{1.0, 2.0}}> {{
  k = Constant <value_float: float = 0.5> ()
  y, all = Loop (trips, {condition}, {start}) <body: graph = body (int64 i, bool c, float[2] h) => (bool d, float[2] n, float[2] s)
  <float[2] w = {{3.0, 4.0}}> {{
    d = {again}
    f = Cast <to = 1> (i)
    a = Mul (h, w)
    b = Mul (a, k)
    {line}
    s = Neg (n)
  }}>
}}
"""
FEEDS = {"x": np.array([1, -2], np.float32), "go": np.array(True)}


def loop(
    trips: int = 3,
    condition: str = "yes",
    start: str = "x",
    again: str = "Identity (c)",
    line: str = "n = Add (b, f)",
    opset: int = 17,
) -> Model:
    text = LOOP.format(trips=trips, condition=condition, start=start, again=again, line=line)
    return onnx_text(text, opset)


def ops(model: Model) -> set[str]:
    return {node.op for node in model.walk()}


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize("trips", [1, 3])
@pytest.mark.parametrize("condition", ["yes", ""])
def test_iterations_in_place_of_the_loop(opset: int, trips: int, condition: str) -> None:
    model = loop(trips, condition, opset=opset)
    before = outputs(model, FEEDS)
    result = apply(FoldConstants(unroll=64), model)
    assert result.statistics["unrolled-loop"] == 1 and "Loop" not in ops(model)
    infer(model)
    verify(model)
    assert_close(outputs(model, FEEDS), before)


def test_the_bound() -> None:
    assert "Loop" in ops(fold(loop(12), unroll=64))
    assert "Loop" not in ops(fold(loop(12), unroll=72))
    assert "Loop" in ops(fold(loop(2)))
    assert "Loop" not in ops(fold(loop(1)))
    assert "Loop" not in ops(Pipeline.parse("optimize").run(loop(2)).model)


def fold(model: Model, unroll: int = 0) -> Model:
    FoldConstants(unroll=unroll).run(model, PassContext())
    return model


@pytest.mark.parametrize(
    "model",
    [
        loop(condition="go"),
        loop(again="Not (c)"),
        loop(again="Identity (go)"),
        loop(0),  # nothing says what its stacked result would be
        loop(line="z = ReduceSum <keepdims = 0> (f)  t = Greater (z, k)  n = If (t) <then_branch: graph = p () => (float[2] m) { m = Add (b, f) }, else_branch: graph = q () => (float[2] r) { r = Sub (b, f) }>"),
    ],
)  # fmt: skip
def test_what_stays(model: Model) -> None:
    before = outputs(model, FEEDS)
    assert "unrolled-loop" not in apply(FoldConstants(unroll=64), model).statistics
    assert_close(outputs(model, FEEDS), before)


def test_over_constants_all_is_computed() -> None:
    model = loop(100, start="start")
    before = outputs(model, FEEDS)
    result = apply(FoldConstants(), model)
    assert result.statistics["unrolled-loop"] == 1
    assert len(model.graph.nodes) < 10
    assert_close(outputs(model, FEEDS), before)


@pytest.mark.parametrize("trips", [10**6, 2**62])
def test_a_small_file_with_an_endless_loop_costs_nothing(trips: int) -> None:
    assert "Loop" in ops(fold(loop(trips, start="start"), unroll=64))
    empty = """
        agraph (float[2] x) => (float[2] y) <int64 trips = {4611686018427387904}> {
          y = Loop (trips, , x) <body: graph = body (int64 i, bool c, float[2] h) => (bool c, float[2] h) { }>
        }"""
    assert "Loop" in ops(fold(onnx_text(empty), unroll=64))


def test_no_iteration_hands_out_what_went_in() -> None:
    text = """
        agraph (float[2] x) => (float[2] y) <int64 trips = {0}> {
          z = Loop (trips, , x) <body: graph = body (int64 i, bool c, float[2] h) => (bool d, float[2] n) {
            d = Identity (c)  n = Neg (h)
          }>
          y = Exp (z)
        }"""
    model = onnx_text(text)
    before = outputs(model, {"x": FEEDS["x"]})
    apply(FoldConstants(), model)
    assert [node.op for node in model.walk()] == ["Exp"]
    assert_close(outputs(model, {"x": FEEDS["x"]}), before)


def test_an_undone_pass_brings_the_loop_back() -> None:
    model = loop()
    before = print_model(model)
    model.begin("fold-constants")
    fold(model, unroll=64)
    model.rollback()
    assert print_model(model) == before
