"""What the report says in words about speed, poor results and models that stay float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qir
from qir import golden_models
from qir.report.check import reaches, worst_in_words
from qir.report.quantization import size_in_words, speed_in_words
from qir.validation.metrics import Comparison

SHAPES = golden_models.path("resnet-shapes")


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (1.3, "1.30x faster"),
        (1.021, "1.02x faster"),
        (1.019, "as fast as float: 1.02x"),
        (0.985, "as fast as float: 0.98x"),
        (0.979, "0.98x of float's speed: SLOWER"),
        (0.5, "0.50x of float's speed: SLOWER"),
    ],
)
def test_a_difference_that_is_noise_is_none(ratio: float, words: str) -> None:
    assert speed_in_words(ratio) == words


@pytest.mark.parametrize(
    ("after", "words"),
    [(300, "3.33x smaller"), (998, "as large as before"), (1250, "1.25x LARGER"), (0, "1000.00x smaller")],
)
def test_a_file_that_grew_says_so(after: int, words: str) -> None:
    assert size_in_words(1000, after) == words


def test_a_poor_result_says_so_and_what_to_look_at(tmp_path: Path) -> None:
    images = np.load(SHAPES / "calib.npz")["image"] * 255  # the model takes 0 to 1
    report = qir.quantize(
        SHAPES / "model.onnx",
        tmp_path / "out.onnx",
        calibration={"image": images},
        golden=SHAPES / "eval.npz",
        preset="int8-fast",
        latency_seconds=0,
    )
    assert report.sqnr_min_db is not None and report.sqnr_min_db < 10
    assert "POOR: below 10 dB" in str(report) and "qir compare" in str(report) and "qir ranges" in str(report)


def test_a_model_that_stays_float_for_its_threshold_says_so(tmp_path: Path) -> None:
    report = qir.quantize(
        SHAPES / "model.onnx",
        tmp_path / "out.onnx",
        calibration=SHAPES / "calib.npz",
        golden=SHAPES / "eval.npz",
        min_sqnr=90,
        latency_seconds=0,
    )
    assert not report.executed_integer
    assert "or miss 90 dB" in str(report)


def test_every_preset_says_why_nodes_stay_float() -> None:
    words = golden_models.path("gru-words")
    text = str(qir.quantize(words / "model.onnx", preset="int8-dynamic"))
    assert "stays float, and why" in text and "GRU stays float: onnxruntime has no integer kernel" in text
    text = str(qir.quantize(words / "model.onnx", preset="int4-weights", keep_float=["GRU"]))
    assert "GRU weight stays float: --keep-float says so ('GRU'): " in text  # one line for both weights


@pytest.mark.parametrize(("changed", "passed"), [(0, True), (1, False)])
def test_without_float_outputs_decisions_are_what_a_threshold_asks_for(changed: int, passed: bool) -> None:
    """A classifier that hands out labels alone has no decibels."""
    wanted = np.arange(8)
    comparison = Comparison(["label"])
    comparison.add({"label": wanted}, {"label": np.where(wanted < changed, 9, wanted)})
    assert reaches(30.0, [comparison]) == passed
    share = f"{1 - changed / 8:.2%}"
    assert worst_in_words([comparison]) == f"no float output, {share} same decisions"


def test_what_would_be_slower_on_integers_is_among_the_reasons() -> None:
    folder = golden_models.path("detector-shapes")
    report = qir.quantize(
        folder / "model.onnx", None, calibration=folder / "calib.npz", preset="int8-fast", latency_seconds=0
    )
    assert report.executed_integer and sum(report.executed_float.values())
    heavy = {remark.subject for remark in report.kept_float if remark.message.startswith("Conv stays float")}
    assert len(heavy) >= report.executed_float["Conv"]
    assert "Conv stays float: its region would be slower on integers: " in str(report)
