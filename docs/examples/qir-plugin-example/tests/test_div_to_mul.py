"""Text in, pass, text out."""

from qir_plugin_example import DivToMul

import qir
from qir.ir.parser import parse_model

BEFORE = """
model ir=8 opset=[17]
graph (%x: f32[2]) -> (%y) {
  @eight: f32[] = 8.0
  @zero: f32[] = 0.0
  %a: f32[2] = Div(%x, @eight) name="scale"
  %y: f32[2] = Div(%a, @zero) name="odd"
}
"""


def test_a_division_becomes_a_multiplication() -> None:
    result = qir.Pipeline([DivToMul()]).run(parse_model(BEFORE))
    scale, odd = result.model.walk()
    assert (scale.op, scale.name, scale.sources) == ("Mul", "scale", ["scale"])
    assert scale.inputs[1].tensor.item() == 0.125
    assert odd.op == "Div"
    assert result.passes[0].statistics == {"div-by-constant": 1}


def test_qir_finds_it_by_name() -> None:
    steps = str(qir.Pipeline(["optimize-more"]))
    assert steps == f"{qir.Pipeline(['optimize'])},div-to-mul,canonicalize"
