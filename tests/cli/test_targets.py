"""`qir targets`, `qir quantize --format`, `--io-dtype` and `--target`, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import qir
from qir import golden_models
from qir.cli import main
from qir.pipeline import Pipeline
from qir.quant.integer_io import read_io

MODEL = golden_models.path("resnet-shapes") / "model.onnx"
CALIB = golden_models.path("resnet-shapes") / "calib.npz"


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("ort-cpu", "ort-cpu-arm64", "ort-cpu-vnni", "qnn-htp", "tensorrt"))
    assert main(["targets", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["ort-cpu"]["runs_here"] and not rows["tensorrt"]["runs_here"]


@pytest.mark.parametrize("arguments", [["targets", "tensorrt"], ["targets", "show", "tensorrt"]])
def test_one_target(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "zero point 0" in out and "docs.nvidia.com" in out
    assert main([*arguments, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["constraints"]["symmetric_activations"] is True
    assert content["cost"] is None, "nothing was measured where it does not run"


def test_an_unknown_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "tensort"]) == 2
    assert "did you mean 'tensorrt'" in capsys.readouterr().err


def test_tuning_writes_a_target_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "here.toml"
    assert main(["targets", "tune", "ort-cpu", "--quick", "-o", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    assert main(["targets", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "here"
    assert main(["targets", "tune", "tensorrt"]) == 2
    assert "does not run on this machine" in capsys.readouterr().err


def test_lint_names_nodes_and_leaves_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "int8.onnx"
    samples = Pipeline.parse("int8-fast").run(qir.load(MODEL), calibration=_rows(4))
    qir.save(samples.model, file)
    assert main(["targets", "lint", "ort-cpu", str(file)]) == 0
    assert "0 violations" in capsys.readouterr().out
    assert main(["targets", "lint", "tensorrt", str(file)]) == 1
    assert "[bias-type]" in capsys.readouterr().out
    assert main(["targets", "lint", "tensorrt", str(file), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert not content["passed"] and content["findings"][0]["node"]


def _rows(count: int) -> list[dict[str, Any]]:
    import numpy as np

    with np.load(CALIB) as archive:
        return [{key: archive[key][index : index + 1] for key in archive} for index in range(count)]


def quantized(output: Path, **options: Any) -> Any:
    """What the report says; without timing, for the sake of it."""
    return qir.quantize(
        MODEL, output, calibration=CALIB, preset="int8-fast", latency_seconds=0, **options
    ).to_json()  # fmt: skip


def test_the_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.onnx"
    arguments = ["quantize", str(MODEL), "--calib", str(CALIB), "-o", str(out), "--effort", "fast"]
    assert main([*arguments, "--format", "contrib", "--io-dtype", "image=uint8"]) == 0
    assert "'image' is u8: number = (code - 0)" in capsys.readouterr().out
    assert {"QLinearConv", "QGemm"} <= {node.op for node in qir.load(out).walk()}


@pytest.mark.parametrize(
    ("form", "op", "domain"),
    [("qdq", "QuantizeLinear", ""), ("qoperator", "QLinearConv", ""), ("contrib", "QGemm", "com.microsoft")],
)
def test_formats(form: str, op: str, domain: str, tmp_path: Path) -> None:
    report = quantized(tmp_path / "out.onnx", format=form)
    assert report["sqnr_min_db"] > 25
    found = {(node.op, node.domain) for node in qir.load(tmp_path / "out.onnx").walk()}
    assert (op, domain) in found
    if form == "qoperator":
        assert {used for used, where in found if where == "com.microsoft"} <= {"QuickGelu"}


def test_formats_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["quantize", str(MODEL), "--calib", str(CALIB), "-o", str(tmp_path / "out.onnx")]
    assert main([*base, "--format", "qoperatr"]) == 2
    assert "did you mean 'qoperator'" in capsys.readouterr().err
    assert main([*base, "--format", "contrib", "--target", "tensorrt"]) == 2
    assert "tensorrt reads qdq" in capsys.readouterr().err


def test_integer_inputs_and_outputs_are_measured_and_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.onnx"
    report = quantized(out, io_dtype=["uint8"])
    assert report["integer_io"]["image"]["dtype"] == "uint8" and report["sqnr_min_db"] > 25
    assert set(read_io(qir.load(out).metadata)) == {"image", "logits"}
    golden = golden_models.path("resnet-shapes") / "eval.npz"
    assert main(["check", str(out), "--golden", str(golden), "--against", str(MODEL), "--min-sqnr", "25"]) == 0


def test_session_options_travel_with_the_model(tmp_path: Path) -> None:
    report = quantized(tmp_path / "out.onnx", target="ort-cpu-vnni")
    assert report["session_options"] == {"session.x64quantprecision": "1"}
    metadata = qir.load(tmp_path / "out.onnx").metadata or {}
    assert json.loads(metadata["qir.session_options"]) == report["session_options"]


def test_a_target_that_is_not_here_is_measured_by_plain_arithmetic(tmp_path: Path) -> None:
    report = quantized(tmp_path / "out.onnx", target="tensorrt")
    assert "in place of tensorrt" in report["measured_on"]
    assert report["latency"] is None and report["sqnr_min_db"] > 20
