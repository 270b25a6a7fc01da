"""flatten-matmul: linear layers over one batched input become Gemms, where that leaves fewer nodes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from qir.codegen import to_bytes
from qir.ir import Model
from qir.ops.shape_inference import infer
from qir.passes.structure.flatten_matmul import FlattenMatmul
from qir.pipeline import Pipeline
from qir.runtime.optimized import optimized_model
from tests.passes.support import apply, assert_close, ir, outputs

FEEDS = {"x": np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)}
HEADS = """
graph g(%x: f32[{batch},3,4]) -> (%y, %z) {{
  @wq: f32[4,4] #1 @bq: f32[4] = [1, 2, 3, 4]
  @wk: f32[4,4] #2 @bk: f32[{bias}] = [4, 3, 2, 1]
  @heads: s64[4] = [0, 0, 2, 2]
  %a = MatMul(%x, @wq)
  %b = Add(%a, @bq)
  %u = Reshape(%b, @heads)
  %c = MatMul(%x, @wk)
  %d = Add(@bk, %c)
  %v = {reader}
  %y = Transpose(%u) {{perm=[0, 2, 1, 3]}}
  %z = Exp(%v)
}}
"""
RESHAPE = "Reshape(%d, @heads)"


def heads(batch: str = "2", bias: str = "4", reader: str = RESHAPE) -> Model:
    return ir(HEADS.format(batch=batch, bias=bias, reader=reader))


@pytest.mark.parametrize("bias", ["4", "1,1,4"])
@pytest.mark.parametrize("reader", [RESHAPE, "Squeeze(%d)", "Flatten(%d)"])
def test_side_by_side(bias: str, reader: str) -> None:
    model = heads(bias=bias, reader=reader)
    before = outputs(model, FEEDS)
    assert apply(FlattenMatmul(), model).statistics == {"flatten-matmul": 2}
    assert Counter(node.op for node in model.walk()) == {"Reshape": 3, "Gemm": 2, "Transpose": 1, "Exp": 1}
    assert_close(outputs(model, FEEDS), before)
    types = {value.name: value.type for node in model.walk() for value in node.outputs}
    infer(model)
    assert {value.name: value.type for node in model.walk() for value in node.outputs} == types
    assert model.graph.nodes.first is not None and model.graph.nodes.first.op == "Reshape"


@pytest.mark.parametrize(
    "model",
    [
        heads("N"),  # with open sizes the runtime keeps MatMul, and knows attention by it
        heads(reader="Relu(%d)"),  # then only one of two is left, which costs as much as it saves
        heads(bias="4,1,1"),
    ],
)
def test_what_stays(model: Model) -> None:
    assert not apply(FlattenMatmul(), model).changed


ALONE = """
graph g(%x: f32[2,3,4]) -> (%y) {
  @w: f32[4,4] #1 @b: f32[4] = [1, 2, 3, 4]
  @rows: s64[3] = [1, 6, 4]
  @back: s64[3] = [3, 2, 4]
  %r = Reshape(%x, @rows)
  %a = MatMul(%r, @w)
  %s = Add(%a, @b)
  %t = Transpose(%s) {perm=[1, 0, 2]}
  %y = Exp(%t)
}
"""


def test_one_between_two_reshapes() -> None:
    """A Transpose that moves only an axis of size 1 counts as one."""
    model = ir(ALONE)
    before = outputs(model, FEEDS)
    model = Pipeline.parse("flatten-matmul,canonicalize").run(model).model
    assert [node.op for node in model.walk()] == ["Reshape", "Gemm", "Reshape", "Exp"]
    assert_close(outputs(model, FEEDS), before)


def test_the_runtime_has_fewer_nodes_to_run() -> None:
    model = heads()
    counts = [
        sum(optimized_model(to_bytes(one)).op_counts.values())
        for one in (model, Pipeline.parse("optimize").run(model).model)
    ]
    assert counts[1] < counts[0]
