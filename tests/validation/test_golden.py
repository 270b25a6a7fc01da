"""Golden data goes out and comes back the same, in both layouts, and half a golden set is refused."""

from __future__ import annotations

import math
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qir.errors import DataError, OutputError
from qir.runtime.session import OrtRunner
from qir.validation.golden import check_against, open_golden, read_info, record, to_toml
from tests.runtime.models import build, mlp, tensor


@pytest.fixture(scope="module")
def runner() -> OrtRunner:
    return OrtRunner(mlp().SerializeToString())


def feeds(count: int) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"x": random.standard_normal((1, 8)).astype(np.float32)} for _ in range(count)]


def test_a_recorded_folder_reads_back_and_the_model_passes_it(tmp_path: Path, runner: OrtRunner) -> None:
    model, info = mlp().SerializeToString(), {"name": "mlp", "expected": {"int8": {"min_sqnr": 10.0}}}
    assert record(tmp_path / "g", runner, feeds(12), model=model, info=info) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["g"]
    golden = open_golden(tmp_path / "g", runner.inputs, runner.outputs)
    assert golden.expected == ("y",) and golden.info == info
    for case, feed in zip(golden, feeds(12), strict=True):
        np.testing.assert_array_equal(case.feed["x"], feed["x"])
        assert case.outputs is not None
        np.testing.assert_array_equal(case.outputs["y"], runner.run(feed)["y"])
    assert check_against(golden, OrtRunner(tmp_path / "g" / "model.onnx")).sqnr_db == math.inf
    assert check_against(golden, OrtRunner(mlp(seed=1).SerializeToString())).sqnr_db < 20


def test_an_existing_folder_is_not_touched(tmp_path: Path, runner: OrtRunner) -> None:
    (tmp_path / "g").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        record(tmp_path / "g", runner, feeds(1))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        record(tmp_path / "file" / "g", runner, feeds(1))


def test_a_failing_model_leaves_nothing_behind(tmp_path: Path, runner: OrtRunner) -> None:
    with pytest.raises(Exception, match="failed while running"):
        record(tmp_path / "g", runner, [*feeds(1), {"x": np.zeros((1, 9), np.float32)}])
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_external_data_is_recorded_in_one_file(tmp_path: Path, runner: OrtRunner) -> None:
    onnx.save(mlp(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=16)
    record(tmp_path / "g", runner, feeds(1), model=tmp_path / "m.onnx")
    assert OrtRunner((tmp_path / "g" / "model.onnx").read_bytes()).run(feeds(1)[0])["y"].shape == (1, 8)


def test_stacked_outputs_are_found_under_their_own_names(tmp_path: Path, runner: OrtRunner) -> None:
    x = np.concatenate([feed["x"] for feed in feeds(5)])
    y = np.concatenate([runner.run(feed)["y"] for feed in feeds(5)])
    np.savez(tmp_path / "g.npz", x=x, y=y, labels=y.argmax(-1))
    for source in (tmp_path / "g.npz", {"x": x, "y": y, "labels": y.argmax(-1)}):
        golden = open_golden(source, runner.inputs, runner.outputs)
        assert golden.expected == ("y",)
        comparison = check_against(golden, runner)
        assert comparison.sqnr_db == math.inf and comparison.samples == 5
        assert comparison.task.accuracy == 1 and comparison.task.count == 5


@pytest.mark.filterwarnings("error")
def test_ragged_outputs_go_with_ragged_inputs(runner: OrtRunner) -> None:
    ragged: dict[str, np.ndarray] = {}
    for index, rows in enumerate((1, 3)):
        x = np.ones((rows, 8), np.float32)
        ragged |= {f"x/{index:06d}": x, f"y/{index:06d}": runner.run({"x": x})["y"]}
    golden = open_golden(ragged, runner.inputs, runner.outputs)
    assert golden.expected == ("y",) and check_against(golden, runner).sqnr_db == math.inf


def test_without_stored_outputs_the_float_model_is_the_reference(runner: OrtRunner) -> None:
    golden = open_golden(feeds(3), runner.inputs, runner.outputs)
    assert golden.expected == ()
    assert check_against(golden, runner, reference=runner).sqnr_db == math.inf
    with pytest.raises(DataError, match="holds no expected outputs; name the float model"):
        check_against(golden, runner)


def test_half_a_golden_set_is_refused(tmp_path: Path, runner: OrtRunner) -> None:
    record(tmp_path / "g", runner, feeds(3))
    (tmp_path / "g" / "test_data_set_1" / "output_0.pb").unlink()
    with pytest.raises(DataError, match="2 of 3 test data sets have outputs"):
        open_golden(tmp_path / "g", runner.inputs, runner.outputs)
    with pytest.raises(DataError, match="expected outputs for 2 samples, inputs for 3"):
        open_golden({"x": np.ones((3, 8), np.float32), "y": np.ones((2, 8), np.float32)}, runner.inputs, runner.outputs)


def test_an_output_that_the_model_lacks_is_named(tmp_path: Path, runner: OrtRunner) -> None:
    record(tmp_path / "g", runner, feeds(1))
    shutil.copy(tmp_path / "g" / "test_data_set_0" / "input_0.pb", tmp_path / "g" / "test_data_set_0" / "output_1.pb")
    with pytest.raises(DataError, match="'x' is no output of the model"):
        open_golden(tmp_path / "g", runner.inputs, runner.outputs)


def test_sequences_and_strings_survive_a_folder(tmp_path: Path) -> None:
    nodes = [helper.make_node("SequenceConstruct", ["x", "x"], ["s"]), helper.make_node("Identity", ["t"], ["u"])]
    inputs = [tensor("x", 1, ["N"]), tensor("t", TensorProto.STRING, ["M"])]
    outputs = [helper.make_tensor_sequence_value_info("s", 1, None), tensor("u", TensorProto.STRING, ["M"])]
    model = OrtRunner(build(nodes, inputs, outputs, None, 18, 8).SerializeToString())
    feed: dict[str, Any] = {"x": np.ones(2, np.float32), "t": np.array(["a", "é"], object)}
    record(tmp_path / "g", model, [feed])
    comparison = check_against(open_golden(tmp_path / "g", model.inputs, model.outputs), model)
    assert comparison.outputs["s"].sqnr_db == math.inf and comparison.outputs["u"].agreement == 1


def test_broken_toml_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "golden.toml").write_text("a = ")
    with pytest.raises(DataError, match=r"golden\.toml: is no valid TOML"):
        read_info(tmp_path)


scalars = st.one_of(
    st.text(st.characters(codec="utf-8")), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False)
)
keys = st.text(st.characters(codec="utf-8"), max_size=5)
tables = st.recursive(
    st.dictionaries(keys, st.one_of(scalars, st.lists(scalars, max_size=3)), max_size=4),
    lambda inner: st.dictionaries(keys, st.one_of(scalars, inner), max_size=3),
    max_leaves=6,
)


@given(tables)
def test_toml_reads_back_as_written(table: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(table)) == table


def test_the_bundled_golden_models_pass_their_own_outputs() -> None:
    from qir import golden_models

    names = golden_models.names()
    assert names
    for name in names:
        folder = golden_models.path(name)
        model = OrtRunner(folder / "model.onnx")
        golden = open_golden(folder, model.inputs, model.outputs)
        assert golden.expected == tuple(spec.name for spec in model.outputs)
        assert check_against(golden, model).sqnr_min_db > 80, name
