"""optimize leaves what onnxruntime fuses by itself recognisable: its optimised graph has the fused operators it had."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from qir.codegen import to_bytes
from qir.frontend import load
from qir.golden_models import path as golden_path
from qir.ir import Model
from qir.ir.parser import parse_model
from qir.pipeline.pipeline import Pipeline
from qir.runtime.optimized import optimized_model

ZOO = Path(__file__).resolve().parents[4] / "shared" / "zoo"
_NORMS = ("LayerNormalization", "SimplifiedLayerNormalization", "com.microsoft::SkipLayerNormalization")


def fused(model: Model) -> Counter[str]:
    """The operators that only the runtime's own fusions make (layouts of convolutions are none); norms of all kinds."""
    counts = optimized_model(to_bytes(model)).op_counts
    found = Counter({op: n for op, n in counts.items() if op.startswith("com.microsoft::") and "nchwc" not in op})
    found -= Counter({op: found[op] for op in _NORMS})  # which of them is not the point: see avoid-slow-fusions
    found["norms"] = sum(counts[op] for op in _NORMS)
    return found


def check(model: Model) -> Counter[str]:
    before = fused(model)
    after = fused(Pipeline.parse("optimize").run(model).model)
    assert not before - after, f"lost {before - after}, has {after}"
    return after


LAYER_NORM = """
          %m{0}: f32[N,L,1] = ReduceMean(%{1}) {{axes=[-1]}}
          %d{0}: f32[N,L,8] = Sub(%{1}, %m{0})
          %p{0}: f32[N,L,8] = Pow(%d{0}, @two)
          %v{0}: f32[N,L,1] = ReduceMean(%p{0}) {{axes=[-1]}}
          %e{0}: f32[N,L,1] = Add(%v{0}, @eps)
          %s{0}: f32[N,L,1] = Sqrt(%e{0})
          %n{0}: f32[N,L,8] = Div(%d{0}, %s{0})
          %g{0}: f32[N,L,8] = Mul(%n{0}, @gamma)
          %{2}: f32[N,L,8] = Add(%g{0}, @beta)"""

HEAD = """
          %{0}m: f32[N,L,8] = MatMul(%h, @w{0})
          %{0}a: f32[N,L,8] = Add(%{0}m, @b{0})
          %{0}r: f32[N,L,2,4] = Reshape(%{0}a, @split)
          %{0}: f32{2} = Transpose(%{0}r) {{perm={1}}}"""

ENCODER = (
    """
        model ir=8 opset=[12]
        graph (%x: f32[N,L,8], %mask: s64[N,L]) -> (%y) {
          @two: f32[] = 2
          @eps: f32[] = 1e-5
          @one: f32[] = 1
          @half: f32[] = 0.5
          @root: f32[] = 1.4142135
          @far: f32[] = -10000
          @scale: f32[] = 2
          @split: s64[4] = [0, 0, 2, 4]
          @join: s64[3] = [0, 0, 8]
          @gamma: f32[8] = [1, 2, 1, 1, 1, 1, 1, 1]
          @beta: f32[8] = [0, 0.5, 0, 0, 0, 0, 0, 0]
          @bq: f32[8] = [1, 2, 3, 4, 5, 6, 7, 8]
          @bk: f32[8] = [8, 7, 6, 5, 4, 3, 2, 1]
          @bv: f32[8] = [1, 3, 5, 7, 2, 4, 6, 8]
          @bo: f32[8] = [1, 0, 1, 0, 1, 0, 1, 2]
          @bu: f32[8] = [1, 1, 1, 0, 1, 0, 1, 2]
          @wq: f32[8,8] #0000000000000001
          @wk: f32[8,8] #0000000000000002
          @wv: f32[8,8] #0000000000000003
          @wo: f32[8,8] #0000000000000004
          @wu: f32[8,8] #0000000000000005"""
    + LAYER_NORM.format("1", "x", "h")
    + HEAD.format("q", "[0, 2, 1, 3]", "[N,2,L,4]")
    + HEAD.format("k", "[0, 2, 3, 1]", "[N,2,4,L]")
    + HEAD.format("v", "[0, 2, 1, 3]", "[N,2,L,4]")
    + """
          %u1: s64[N,1,L] = Unsqueeze(%mask) {axes=[1]}
          %u2: s64[N,1,1,L] = Unsqueeze(%u1) {axes=[2]}
          %c: f32[N,1,1,L] = Cast(%u2) {to=1}
          %i: f32[N,1,1,L] = Sub(@one, %c)
          %f: f32[N,1,1,L] = Mul(%i, @far)
          %qk: f32[N,2,L,L] = MatMul(%q, %k)
          %qs: f32[N,2,L,L] = Div(%qk, @scale)
          %qx: f32[N,2,L,L] = Add(%qs, %f)
          %sm: f32[N,2,L,L] = Softmax(%qx) {axis=3}
          %o: f32[N,2,L,4] = MatMul(%sm, %v)
          %ot: f32[N,L,2,4] = Transpose(%o) {perm=[0, 2, 1, 3]}
          %or: f32[N,L,8] = Reshape(%ot, @join)
          %om: f32[N,L,8] = MatMul(%or, @wo)
          %oa: f32[N,L,8] = Add(%om, @bo)
          %res: f32[N,L,8] = Add(%oa, %h)"""
    + LAYER_NORM.format("2", "res", "z")
    + """
          %um: f32[N,L,8] = MatMul(%z, @wu)
          %ua: f32[N,L,8] = Add(%um, @bu)
          %gd: f32[N,L,8] = Div(%ua, @root)
          %ge: f32[N,L,8] = Erf(%gd)
          %gp: f32[N,L,8] = Add(%ge, @one)
          %gm: f32[N,L,8] = Mul(%ua, %gp)
          %y: f32[N,L,8] = Mul(%gm, @half)
        }
        """
)


def test_attention_of_an_old_exporter() -> None:
    assert set(check(parse_model(ENCODER))) >= {"com.microsoft::Attention", "com.microsoft::BiasGelu"}


@pytest.mark.parametrize("name", ["encoder-moods", "vit-digits", "decoder-stories"])
def test_golden_transformers(name: str) -> None:
    check(load(golden_path(name) / "model.onnx"))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("minilm-l6-sts", {"norms": 13, "com.microsoft::BiasGelu": 6}),
        ("vit-cifar10", {"com.microsoft::FusedMatMul": 15}),
    ],
)
def test_zoo_transformers(name: str, wanted: dict[str, int]) -> None:
    path = ZOO / name / "model.onnx"
    if not path.is_file():
        pytest.skip("../shared/zoo is not there")
    after = check(load(path))
    assert all(after[op] >= count for op, count in wanted.items())
