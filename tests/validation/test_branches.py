"""compare looks into the branches of Ifs: rows by path, lines by the names of the user's model."""

from __future__ import annotations

import numpy as np

from qir import golden_models
from qir.api import compare, load, quantize
from qir.api.branches import views
from qir.calibration.data import open_data, spread
from qir.calibration.specs import input_specs
from tests.passes.int8 import model

FOLDER = golden_models.path("adaptive-digits")


def test_samples_are_sorted_by_the_branch_that_they_take() -> None:
    source = load(FOLDER / "model.onnx")
    feeds = spread(open_data(FOLDER / "calib.npz", input_specs(source)), 12)
    found = views(source, source, feeds)
    assert sorted(bool(view.feeds[0]["careful"]) for view in found) == [False, True]
    assert sum(len(view.feeds) for view in found) == 12 and len(found[0].feeds) >= len(found[1].feeds)
    for view in found:
        assert all(node.op != "If" for node in view.reference.graph.nodes)
        taken = "then_branch" if view.feeds[0]["careful"] else "else_branch"
        assert set(view.paths.values()) == {f"choose/{taken}"}
    assert any(node.op == "If" for node in source.graph.nodes), "the model itself is not edited"


def test_nodes_in_branches_have_rows_and_lines() -> None:
    preset = "canonicalize,convert-opset{to=13},fold-constants,fuse,legalize,analyze-ranges,calibrate,quantize,emit-qdq"
    source, samples = load(FOLDER / "model.onnx"), FOLDER / "calib.npz"
    made = quantize(source, calibration=samples, preset=preset, latency_seconds=0).compilation.model
    report = compare(source, made, samples, samples=4, lines=1)
    rows = [row[0] for row in report.table()]
    assert "choose/then_branch/deep" in rows and "choose/else_branch/quick_fc" in rows, rows
    report.show_layers = True
    paths = {layer["node"]: layer["path"] for layer in report.to_json()["layers"]}
    assert paths["deep"] == "choose/then_branch" and paths["stem"] is None
    assert report.advice.suggestions
    report.recipe.assign(source)  # every line matches a node, or this raises


def nested(depth: int) -> str:
    """Ifs in Ifs, so deep, all by one condition."""
    inner = "%leaf: f32[2] = Relu(%x)"
    result = "leaf"
    for level in range(depth):
        inner = (
            f"%r{level}: f32[2] = If(%c) {{"
            f"then_branch = graph () -> (%{result}) {{ {inner} }}, "
            f"else_branch = graph () -> (%e{level}) {{ %e{level}: f32[2] = Neg(%x) }}"
            f'}} name="if{level}"'
        )
        result = f"r{level}"
    return f"graph g(%x: f32[2], %c: bool[]) -> (%{result}) {{ {inner} }}"


def test_ifs_are_opened_however_deep_they_stand() -> None:
    source = model(nested(7))
    feeds = [{"x": np.ones(2, np.float32), "c": np.asarray(taken)} for taken in (True, True, False)]
    deep, shallow = views(source, source, feeds)
    for view, op in ((deep, "Relu"), (shallow, "Neg")):
        assert [node.op for node in view.reference.graph.nodes if node.op != "Identity"] == [op]
    assert deep.paths["leaf"] == "/".join(f"if{level}/then_branch" for level in reversed(range(7)))
    assert len(deep.feeds) == 2 and len(shallow.feeds) == 1
