"""The code in docs/ works when pasted."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import qir
from qir.cli import main
from qir.ir import DType, Model, Tensor, TensorType
from qir.ir.parser import parse_model
from qir.pipeline import Pipeline, default_registry
from tests.pipeline.toys import chain, ops

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def relu_six() -> Model:
    model = Model(opset_imports={"": 13}, ir_version=8)
    graph = model.graph
    type_ = TensorType(DType.FLOAT, (4,))
    relu = graph.add_node("Relu", [graph.add_input("x", type_)], name="relu", types=[type_], source=["relu"])
    six = graph.add_initializer("six", Tensor.of(np.float32(6)))
    graph.add_output(graph.add_node("Min", [relu.output, six], name="min", outputs=["y"], types=[type_]).output)
    return model


def test_the_first_pass_works_when_pasted(tmp_path: Path) -> None:
    path = tmp_path / "my_pass.py"
    path.write_text(next(block for block in blocks("write-a-pass.md", "python") if "class ReluSixToClip" in block))
    registry = default_registry().with_plugin(path)
    result = Pipeline.parse("relu-six-to-clip", registry=registry).run(relu_six())
    assert ops(result.model) == ["Clip"]
    assert result.model.graph.outputs[0].name == "y"
    assert next(result.model.walk()).sources == ["relu"]
    missed = Pipeline.parse("relu-six-to-clip{limit=1}", registry=registry).run(relu_six())
    assert [str(r) for r in missed.remarks] == ["[relu-six-to-clip] missed: min: its bound is 6.0, not 1.0"]
    assert main(["passes", "relu-six-to-clip", "--plugin", str(path)]) == 0


def test_the_instrument_works_when_pasted() -> None:
    source = next(block for block in blocks("pipelines.md", "python") if "class NoGrowth" in block)
    scope: dict[str, object] = {"qir": qir, "model": chain()}
    exec(source, scope)
    result = scope["result"]
    assert [report.rolled_back for report in result.passes] == [False, False]  # type: ignore[attr-defined]


def test_the_two_forms_on_the_page_are_one_pipeline() -> None:
    text = blocks("pipelines.md", "")[0].strip()
    assert Pipeline.parse_toml(blocks("pipelines.md", "toml")[0]) == Pipeline.parse(text)


def test_the_pass_of_rules_works_when_pasted(tmp_path: Path) -> None:
    path = tmp_path / "rules.py"
    path.write_text(next(block for block in blocks("write-a-pass.md", "python") if "class DropDoubleNegation" in block))
    model = parse_model("model ir=8 opset=[17]\ngraph (%x: f32[4]) -> (%y) { %a = Neg(%x) %b = Neg(%a) %y = Abs(%b) }")
    result = Pipeline.parse("drop-double-negation", registry=default_registry().with_plugin(path)).run(model)
    assert ops(result.model) == ["Abs"]
    assert result.passes[0].statistics == {"neg-neg": 1}


def test_the_passes_of_other_libraries_work_when_pasted() -> None:
    pytest.importorskip("onnx_ir")
    source = next(block for block in blocks("pipelines.md", "python") if "GraphSurgeon" in block)
    scope: dict[str, object] = {"model": chain()}
    exec(source, scope)
    assert ops(scope["result"].model) == ["Relu"]  # type: ignore[attr-defined]
