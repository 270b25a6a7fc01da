"""The built-in passes number their rewrites, so that bisection can stop them after any: after k there are k."""

from __future__ import annotations

import pytest

from qir.ir import Model
from qir.ir.parser import parse_model
from qir.ir.printer import print_model
from qir.pipeline import Pipeline
from qir.rewriting import Numbering

TEXT = """
model ir=8 opset=[17]
graph (%x: f32[2,3,4], %img: f32[1,2,4,4]) -> (%y, %z, %u) {
  @one: s64[1] = [1]
  @minus: s64[1] = [-1]
  @bias: f32[4] = [1.0, 2.0, 3.0, 4.0]
  @w: f32[4,4] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
  @k: f32[2,2,1,1] = [1.0, 2.0, 3.0, 4.0]
  @v: f32[2] = [1.0, 2.0]
  %i: f32[2,3,4] = Identity(%x) name="i"
  %j: f32[2,3,4] = Identity(%i) name="j"
  %m: f32[2,3,4] = MatMul(%j, @w) name="m"
  %a: f32[2,3,4] = Add(%m, @bias) name="a"
  %s: f32[2,3,4] = Sigmoid(%a) name="s"
  %y: f32[2,3,4] = Mul(%a, %s) name="swish"
  %t: s64[2] = Concat(@minus, @one) {axis=0} name="t"
  %r: f32[24,1] = Reshape(%y, %t) name="r"
  %n: s64[1] = Neg(@one) name="n"
  %p: s64[2] = Concat(%n, @one) {axis=0} name="p"
  %z: f32[24,1] = Reshape(%r, %p) name="z"
  %c: f32[1,2,4,4] = Conv(%img, @k) name="c"
  %d: f32[1,2,4,4] = BatchNormalization(%c, @v, @v, @v, @v) name="d"
  %e: f32[1,2,4,4] = Conv(%d, @k) name="e"
  %u: f32[1,2,4,4] = BatchNormalization(%e, @v, @v, @v, @v) name="u"
}
"""


def run(name: str, limit: int | None) -> tuple[Model, Numbering]:
    numbering = Numbering(limit=limit)
    return Pipeline([name]).run(parse_model(TEXT), numbering=numbering).model, numbering


@pytest.mark.parametrize("name", ["canonicalize", "fold-constants", "fuse", "legalize"])
def test_a_pass_stops_after_as_many_rewrites_as_it_is_allowed(name: str) -> None:
    whole, numbering = run(name, None)
    assert numbering.used >= 2
    texts = []
    for limit in range(numbering.used + 1):
        model, limited = run(name, limit)
        assert limited.used == limit
        assert limit == 0 or (limited.last is not None and limited.last.rule and limited.last.sources)
        texts.append(print_model(model))
    assert len(set(texts)) == numbering.used + 1
    assert texts[-1] == print_model(whole)
