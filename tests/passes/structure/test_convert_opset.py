"""The pass ``convert-opset``: text in, pass, text out."""

from __future__ import annotations

import pytest

from qir.errors import OptionError
from qir.ir.parser import parse_model
from qir.passes.structure.convert_opset import ConvertOpset
from qir.pipeline.contract import PassContext

TEXT = """model ir=6 opset=[11]
graph g(%x: f32[2,3]) -> (%y) {
  %a: f32[1,2,3] = Unsqueeze(%x) {axes=[0]} name="widen"
  %y: f32[1,2,3] = Softmax(%a) {axis=2} name="soft"
}
"""


def test_attributes_become_inputs() -> None:
    model = parse_model(TEXT)
    result = ConvertOpset(to=13).run(model, PassContext())
    widen, soft = model.graph.nodes
    axes = widen.input(1)
    assert axes is not None and axes.tensor is not None
    assert axes.tensor.numpy().tolist() == [0]
    assert (dict(widen.attributes), soft.get("axis")) == ({}, -1)
    assert (model.opset(), model.ir_version) == (13, 7)
    assert result.changed
    assert result.statistics == {"Softmax 11->13": 1, "Unsqueeze 11->13": 1}
    assert [str(r) for r in result.remarks] == [
        "[convert-opset] applied: opset 11 became 13, 2 nodes changed their form"
    ]


def test_a_newer_model_stays() -> None:
    model = parse_model(TEXT)
    assert not ConvertOpset(to=11).run(model, PassContext()).changed
    result = ConvertOpset(to=9).run(model, PassContext())
    assert not result.changed
    assert "not lowered" in result.remarks[0].message
    assert model.opset() == 11


def test_an_impossible_option() -> None:
    with pytest.raises(OptionError, match="to=99"):
        ConvertOpset(to=99).run(parse_model(TEXT), PassContext())
