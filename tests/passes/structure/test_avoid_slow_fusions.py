"""avoid-slow-fusions: sums that the runtime would merge with the normalization after them, into a slower kernel."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import qir
from qir.codegen import to_bytes
from qir.ir import Model
from qir.passes.structure.avoid_slow_fusions import AvoidSlowFusions
from qir.pipeline import Pipeline
from qir.runtime.optimized import optimized_model
from tests.passes.support import apply, ir, outputs

TEXT = """
graph g(%x: f32[2,3,{width}], %z: f32[2,3,{width}]) -> (%y) {{
  @scale: f32[{width}] #1 @bias: f32[{width}] #2
  @row: f32[1,1,{width}] #3
  %r = Relu(%z)
  %s = Add(%x, {other})
  %y = LayerNormalization(%s, @scale, @bias)
}}
"""
FEEDS = {name: np.random.default_rng(1).normal(size=(2, 3, 16)).astype(np.float32) for name in "xz"}


def residual(other: str = "%r") -> Model:
    return ir(TEXT.format(width=16, other=other))


def executed(model: Model) -> set[str]:
    return {op.rpartition("::")[2] for op in optimized_model(to_bytes(model)).op_counts}


def test_the_runtime_keeps_both_kernels_and_every_bit() -> None:
    model = residual()
    assert "SkipLayerNormalization" in executed(model)  # else the pass has nothing left to do: take it out
    before = outputs(model, FEEDS)
    assert apply(AvoidSlowFusions(), model).statistics == {"sums": 1}
    assert Counter(node.op for node in model.walk()) == {"Relu": 1, "Sum": 1, "LayerNormalization": 1}
    assert "SkipLayerNormalization" not in executed(model)
    np.testing.assert_array_equal(outputs(model, FEEDS)["y"], before["y"])


def test_a_constant_and_what_nobody_normalizes_stay() -> None:
    assert not apply(AvoidSlowFusions(), residual("@row")).changed
    assert not apply(
        AvoidSlowFusions(), ir("graph g(%x: f32[2,4], %z: f32[2,4]) -> (%y) {\n %y = Add(%x, %z)\n}\n")
    ).changed


ATTENTION = """
graph g(%h: f32[2,3,8], %a: f32[2,3,8]) -> (%y, %q, %k, %v) {{
  @scale: f32[8] #1
  @wq: f32[8,8] #2 @wk: f32[8,8] #3 @wv: f32[8,8] #4
  %q = MatMul(%h, @wq){kernel}
  %k = MatMul(%h, @wk){kernel}
  %v = MatMul(%h, @wv){kernel}
  %s = Add(%a, %h)
  %y = LayerNormalization(%s, @scale)
}}
"""
EMBEDDING = """
graph g(%i: s64[2,3], %h: f32[2,3,8]) -> (%y) {
  @scale: f32[8] #1 @words: f32[9,8] #2
  %w = Gather(@words, %i)
  %e = Add(%w, %h)
  %s = Add(%h, %e)
  %y = LayerNormalization(%s, @scale)
}
"""


def test_patterns_of_more_than_the_sum_stay() -> None:
    assert not apply(AvoidSlowFusions(), ir(ATTENTION.format(kernel=""))).changed
    assert apply(AvoidSlowFusions(), ir(ATTENTION.format(kernel=" kernel=integer"))).changed
    assert not apply(AvoidSlowFusions(), ir(EMBEDDING)).changed


def test_sums_in_integers_stay() -> None:
    text = """
    graph g(%x: f32[2,4] q=u8(0.1, 0), %z: f32[2,4] q=u8(0.1, 0)) -> (%y) {
      @scale: f32[4] = [1, 2, 3, 4]
      %s: f32[2,4] q=u8(0.2, 0) = Add(%x, %z)
      %y = LayerNormalization(%s, @scale)
    }
    """
    assert not apply(AvoidSlowFusions(), ir(text)).changed


@pytest.mark.parametrize("target", ["tensorrt", "qnn-htp"])
def test_only_for_a_runtime_that_does_so(target: str) -> None:
    assert not Pipeline.parse("avoid-slow-fusions").run(residual(), target=target).passes[0].changed


def test_a_diff_reads_both_spellings_alike() -> None:
    model = residual()
    made = Pipeline.parse("avoid-slow-fusions").run(model).model
    assert qir.diff(model, made).identical
    assert not qir.diff(model, Pipeline.parse("optimize").run(residual("%x")).model).identical
