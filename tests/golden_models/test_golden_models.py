"""Every golden model runs, gives the outputs and the task metric that its folder records, and is small."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from qir import golden_models
from qir.errors import OptionError
from qir.golden_models import tasks

Array = NDArray[Any]
NAMES = golden_models.names()


def session(folder: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def record(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "golden.toml").read_text(encoding="utf-8"))


def feeds(arrays: dict[str, Array], inputs: dict[str, int]) -> Iterator[dict[str, Array]]:
    """One feed per sample: rows of an array, or keys such as `name/000000`. `inputs` maps a name to its rank."""
    keys = [key for key in arrays if key != "labels"]
    assert {key.split("/")[0] for key in keys} == set(inputs)
    if any("/" in key for key in keys):
        for index in range(len(keys) // len(inputs)):
            yield {name: arrays[f"{name}/{index:06d}"] for name in inputs}
        return
    for index in range(len(arrays[keys[0]])):
        yield {
            name: arrays[name][index : index + 1] if rank else np.asarray(arrays[name][index])
            for name, rank in inputs.items()
        }


def load(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def test_the_families_asked_for_are_there() -> None:
    ops: set[str] = set()
    opsets: set[int] = set()
    for name in NAMES:
        model = onnx.load(golden_models.path(name) / "model.onnx")
        ops |= {node.op_type for node in model.graph.node}
        opsets.add(model.opset_import[0].version)
    assert len(NAMES) >= 8
    assert {"BatchNormalization", "LayerNormalization", "Gelu", "Erf", "LSTM", "GRU", "If", "Loop", "Resize"} <= ops
    assert {9, 11, 13, 17, 18, 21} <= opsets


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_reproduced(name: str) -> None:
    folder = golden_models.path(name)
    runner, tolerance = session(folder), record(folder)["tolerance"]
    sets = sorted(folder.glob("test_data_set_*"))
    assert len(sets) >= 3
    for golden in sets:
        tensors = {
            kind: [
                numpy_helper.to_array(onnx.load_tensor(golden / f"{kind}_{index}.pb"))
                for index in range(len(list(golden.glob(f"{kind}_*.pb"))))
            ]
            for kind in ("input", "output")
        }
        names = [item.name for item in runner.get_inputs()]
        got = runner.run(None, dict(zip(names, tensors["input"], strict=True)))
        for actual, wanted in zip(got, tensors["output"], strict=True):
            assert np.isfinite(wanted).all()
            np.testing.assert_allclose(actual, wanted, rtol=tolerance["relative"], atol=tolerance["absolute"])


@pytest.mark.parametrize("name", NAMES)
def test_calibration_samples_run(name: str) -> None:
    folder = golden_models.path(name)
    runner = session(folder)
    ranks = {item.name: len(item.shape) for item in runner.get_inputs()}
    samples = list(feeds(load(folder / "calib.npz"), ranks))
    assert 32 <= len(samples) <= 128
    for feed in samples:
        assert all(np.isfinite(output).all() for output in runner.run(None, feed))


@pytest.mark.parametrize("name", NAMES)
def test_task_metric_is_the_recorded_one(name: str) -> None:
    folder = golden_models.path(name)
    runner, task, arrays = session(folder), record(folder)["task"], load(folder / "eval.npz")
    ranks = {item.name: len(item.shape) for item in runner.get_inputs()}
    outputs = [runner.run(None, feed) for feed in feeds(arrays, ranks)]
    assert len(outputs) == task["samples"]
    assert tasks.score(task["metric"], outputs, arrays["labels"]) == pytest.approx(task["value"], abs=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_record_is_complete_and_files_are_small(name: str) -> None:
    folder = golden_models.path(name)
    toml = record(folder)
    assert toml["name"] == name
    assert toml["description"] and toml["data"]["source"] and toml["data"]["licence"]
    assert {"generator", "licence", "seed", "torch", "onnx", "onnxruntime", "numpy"} <= set(toml["record"])
    assert toml["training"]["last_epoch_loss"] > 0
    assert toml["opset"] == onnx.load(folder / "model.onnx").opset_import[0].version
    assert toml["expected"]["int8"]["min_sqnr"] >= 10
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert sizes[folder / "model.onnx"] < 1_000_000
    assert sum(sizes.values()) < 1_000_000


def test_unknown_names_get_suggestions() -> None:
    with pytest.raises(OptionError, match="resnet-shapes"):
        golden_models.path("resnet-shape")
    with pytest.raises(OptionError, match="accuracy"):
        tasks.score("acuracy", [], np.zeros(0))


def test_detection_f1_counts_hits_misses_and_duplicates() -> None:
    truth = np.array([[[0, 0, 0, 10, 10], [1, 20, 20, 30, 30], [-1, -1, -1, -1, -1]]], np.float32)
    boxes = np.array([[[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]]], np.float32)
    scores = np.array([[[0.9, 0], [0.8, 0], [0, 0.7]]], np.float32)
    # One hit, its duplicate removed, one false alarm, one miss.
    assert tasks.detection_f1([[scores, boxes]], truth) == pytest.approx(2 * 1 / (2 + 2))


def test_next_token_loss_of_uniform_logits_is_log_of_the_vocabulary() -> None:
    assert tasks.next_token_loss([[np.zeros((1, 3, 7), np.float32)]], np.array([[1, 2, 3]])) == pytest.approx(np.log(7))


def test_signal_to_noise_of_a_tenth_is_twenty_decibels() -> None:
    clean = np.ones((2, 1, 4), np.float32)
    outputs = [[clean[index : index + 1] * 0.9] for index in range(2)]
    assert tasks.signal_to_noise(outputs, clean) == pytest.approx(20.0, abs=1e-4)
