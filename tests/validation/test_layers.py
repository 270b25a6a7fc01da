"""Layer by layer: who is blamed for an error, under whatever names, and whether the advice keeps its promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from qir import golden_models
from qir.api.comparing import compare
from qir.codegen import save, to_bytes
from qir.errors import DataError, ModelError
from qir.frontend import import_model
from qir.ir import Model
from qir.pipeline import Pipeline
from qir.quant.recipe import Recipe
from qir.validation.layers import compare_layers
from tests.passes.int8 import Feed, feeds, model

CHAIN = """graph g(%x: f32[1,8,8,8]) -> (%y)
{
  %a: f32[1,8,8,8] = Conv(%x, @w1, @b) {pads=[1, 1, 1, 1]} name="first"
  %r: f32[1,8,8,8] = Relu(%a) name="act"
  %c: f32[1,8,8,8] = Conv(%r, @w2, @b) {pads=[1, 1, 1, 1]} name="second"
  %d: f32[1,8,8,8] = Conv(%c, @w3, @b) name="third"
  %f: f32[1,512] = Flatten(%d) name="flat"
  %y: f32[1,4] = MatMul(%f, @w4) name="head"
  @w1: f32[8,8,3,3] #00000001
  @w2: f32[8,8,3,3] #00000002
  @w3: f32[8,8,1,1] #00000003
  @w4: f32[512,4] #00000004
  @b: f32[8] = [0, 0, 0, 0, 0, 0, 0, 0]
}"""

PLAIN = "legalize,analyze-ranges,calibrate,quantize,place,emit-qdq"


def outlier(samples: list[Feed], size: float = 200.0) -> list[Feed]:
    """One huge number in each sample: min-max ranges of the first layer become coarse."""
    for feed in samples:
        feed["x"] = feed["x"].copy()
        feed["x"].reshape(-1)[0] = size
    return samples


def quantized(source: Model, samples: list[Feed], passes: str = PLAIN) -> Model:
    return Pipeline.parse(passes).run(source, calibration=samples).model


def test_own_error_is_that_of_the_node_alone_and_errors_accumulate() -> None:
    source, samples = model(CHAIN), feeds(model(CHAIN))
    found = compare_layers(source, quantized(source, samples), samples)
    by_node = {layer.node: layer for layer in found.layers}
    assert {"first", "second", "third", "head"} <= set(by_node)
    assert all(by_node[name].unit.kind in ("static", "dynamic") for name in ("first", "second", "third", "head"))
    assert by_node["third"].total.sqnr_db < by_node["third"].own_db - 2
    assert by_node["first"].total.sqnr_db == pytest.approx(by_node["first"].own_db, abs=1.5)
    assert by_node["second"].max_lsb is not None and 0.4 < by_node["second"].max_lsb < 60
    grid = next(grid for grid in by_node["second"].grids if grid.quantizer.is_result)
    assert grid.clipped_share < 1e-3 and 100 < grid.used_levels <= grid.levels == 256


def test_a_node_left_in_float_has_no_error_of_its_own() -> None:
    source, samples = model(CHAIN), feeds(model(CHAIN))
    left = quantized(source, samples, PLAIN.replace("quantize,", "quantize{keep-float=second},"))
    found = {layer.node: layer for layer in compare_layers(source, left, samples).layers}
    assert found["second"].own_db > 110 and found["second"].unit.kind == "float"
    assert found["first"].own_db < 60


def test_the_culprit_is_found_when_everything_was_renamed() -> None:
    source, samples = model(CHAIN), feeds(model(CHAIN))
    bad = quantized(source, samples)
    for node in bad.walk():  # a scale eight times too large behind the second convolution
        if node.op in ("QuantizeLinear", "DequantizeLinear") and node.inputs[1] is not None and "c_" in node.name:
            scale = node.inputs[1]
            assert scale is not None and scale.tensor is not None
            node.set_input(1, bad.graph.add_constant(scale.tensor.numpy() * np.float32(8)))
    for index, value in enumerate(list(bad.graph.values())):
        if not value.is_input and not value.is_output:
            value.name = f"v{index}"
    named = compare_layers(source, bad, samples).ranked()[0].node
    stripped = import_model(onnx.load_from_string(to_bytes(bad, strip_provenance=True)))
    for index, node in enumerate(stripped.walk()):
        node.name = f"n{index}"
    structural = compare_layers(source, stripped, samples).ranked()[0].node
    assert (named, structural) == ("second", "second")


def test_equalised_models_are_compared_in_the_float_models_scale() -> None:
    source, samples = model(CHAIN), feeds(model(CHAIN))
    weights = next(v for v in source.graph.initializers if v.name == "w1")
    from qir.ir import Tensor

    array = weights.tensor.numpy().copy()  # type: ignore[union-attr]
    array[:4] *= 30
    weights.const = Tensor.of(array)
    made = quantized(source, samples, "legalize,equalize,analyze-ranges,calibrate,quantize,place,emit-qdq")
    found = {layer.node: layer for layer in compare_layers(source, made, samples).layers}
    assert found["first"].scaled
    assert found["first"].total.sqnr_db > 20


def test_the_printed_lines_restore_the_accuracy_and_the_prediction_is_near(tmp_path: Path) -> None:
    source = model(CHAIN)
    calibration, check = outlier(feeds(source, 8), 30.0), outlier(feeds(source, 8, seed=1), 30.0)
    plain = quantized(source, calibration)
    report = compare(source, plain, calibration, lines=4)
    before = compare(source, plain, check, lines=0)
    assert report.advice.suggestions, str(report)
    (tmp_path / "r.toml").write_text(report.recipe.to_toml())
    better = quantized(
        source,
        calibration,
        PLAIN.replace("quantize,", f"quantize{{recipe={tmp_path / 'r.toml'}}},").replace(
            "calibrate,", f"calibrate{{recipe={tmp_path / 'r.toml'}}},"
        ),
    )
    after = compare(source, better, check, lines=0)
    gained = after.outputs.sqnr_min_db - before.outputs.sqnr_min_db
    assert report.predicted_db is not None
    promised = report.predicted_db - report.outputs.sqnr_min_db
    assert gained > 3 and gained > 0.5 * promised, (gained, promised, report.recipe.to_toml())


def test_advice_adds_to_the_recipe_that_was_given() -> None:
    source, samples = model(CHAIN), outlier(feeds(model(CHAIN)))
    first = Recipe.parse('[[node]]\nmatch = "flat"\nprecision = "float"')
    report = compare(source, quantized(source, samples), feeds(source, 4, seed=1), recipe=first, lines=2)
    assert report.recipe.choices[0].match == "flat"
    assert Recipe.parse(report.recipe.to_toml()) == report.recipe


def test_files_of_the_runtimes_own_quantizer_align_by_name(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantFormat, quantize_static

    from tests.validation.readers import Reader

    source, samples = model(CHAIN), feeds(model(CHAIN))
    save(source, tmp_path / "float.onnx")

    for form in (QuantFormat.QDQ, QuantFormat.QOperator):
        path = tmp_path / f"{form.name}.onnx"
        quantize_static(tmp_path / "float.onnx", path, Reader(samples), quant_format=form, per_channel=True)
        report = compare(tmp_path / "float.onnx", path, samples, layers=True)
        nodes = {layer.node for layer in report.errors.layers}
        assert {"first", "second", "third", "head"} <= nodes, form
        assert all(len(line) <= 80 for line in str(report).splitlines()[1:]), str(report)
        assert 0 < report.errors.layers[-1].own_db < 60


def test_sixteen_bit_models_have_rows_too(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_static

    from tests.validation.readers import Reader

    source, samples = model(CHAIN), feeds(model(CHAIN))
    save(source, tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "q.onnx",
        Reader(samples),
        activation_type=QuantType.QUInt16,
        weight_type=QuantType.QInt16,
        extra_options={"UseQDQContribOps": True},
    )
    found = compare(tmp_path / "float.onnx", tmp_path / "q.onnx", samples, lines=0).errors
    layers = {layer.node: layer for layer in found.ranked()}
    assert {"first", "second", "third", "head"} <= set(layers)
    assert 60 < layers["second"].own_db < 110 and layers["second"].grids[0].levels == 65536


@pytest.mark.parametrize("name", ["encoder-moods", "adaptive-digits", "lstm-gestures", "detector-shapes"])
def test_golden_models_compare(name: str) -> None:
    folder = golden_models.path(name)
    from qir.api import load, quantize

    report = quantize(folder / "model.onnx", calibration=folder / "calib.npz", preset="int8-fast", latency_seconds=0)
    found = compare(load(folder / "model.onnx"), report.compilation.model, folder / "calib.npz", samples=4, lines=2)
    assert found.errors.layers
    worst = min((layer.total.sqnr_db for layer in found.errors.layers), default=0.0)
    assert worst > 0, str(found)  # no value was aligned with another
    assert found.to_json()["layers"] is not None


def test_mistakes_get_one_line() -> None:
    source, samples = model(CHAIN), feeds(model(CHAIN))
    with pytest.raises(DataError, match="no sample"):
        compare(source, quantized(source, samples), [])
    other = model(CHAIN.replace("%x", "%z"))
    with pytest.raises(ModelError, match="which the float model lacks"):
        compare(source, other, samples)
