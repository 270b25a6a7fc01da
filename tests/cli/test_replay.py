"""Run manifests: a recorded run gives the same bytes again, or says which of its files has changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qir.cli import main

GOLDEN = Path(__file__).parents[2] / "golden_models" / "cnn-digits"


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    for name in ("model.onnx", "calib.npz"):
        shutil.copy(GOLDEN / name, tmp_path / name)
    model, samples, out = (str(tmp_path / name) for name in ("model.onnx", "calib.npz", "q.onnx"))
    options = ["--effort", "fast", "--keep-float", "conv2"]
    assert main(["quantize", model, "--calib", samples, "-o", out, *options]) == 0
    return tmp_path / "q.onnx.qir.json"


def test_a_recorded_run_gives_the_same_bytes(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = recorded.parent / "again.onnx"
    assert main(["quantize", "--replay", str(recorded), "-o", str(again)]) == 0
    assert "the same bytes" in capsys.readouterr().out
    assert again.read_bytes() == (recorded.parent / "q.onnx").read_bytes()
    content = json.loads(recorded.read_text(encoding="utf-8"))
    assert content["arguments"]["keep_float"] == ["conv2"]
    assert content["files"]["model"]["path"] == "model.onnx", "relative, so that the folder can be moved"


def test_the_folder_can_be_moved(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.move(recorded.parent, elsewhere)
    assert main(["quantize", "--replay", str(elsewhere / recorded.name)]) == 0


def test_other_data_are_refused(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(recorded.parent / "calib.npz", "ab") as file:
        file.write(b"x")
    assert main(["quantize", "--replay", str(recorded)]) == 2
    assert "its content has changed" in capsys.readouterr().err
    (recorded.parent / "calib.npz").unlink()
    assert main(["quantize", "--replay", str(recorded)]) == 2
    assert "is not there" in capsys.readouterr().err


def test_other_bytes_are_told(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(recorded.read_text(encoding="utf-8"))
    content["outputs"]["q.onnx"] = "0" * 64
    content["versions"]["numpy"] = "1.0"
    recorded.write_text(json.dumps(content), encoding="utf-8")
    assert main(["quantize", "--replay", str(recorded)]) == 1
    shown = capsys.readouterr()
    assert "other bytes than in the recorded run: q.onnx" in shown.out
    assert "numpy 1.0" in shown.err


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 1}', '{"format": 2}', "[" * 5000])
def test_what_is_no_manifest(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.json").write_text(content)
    assert main(["quantize", "--replay", str(tmp_path / "m.json")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_options_beside_a_replay_are_refused(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for beside in (["model.onnx"], ["--preset", "int8"], ["--no-manifest"], ["--keep-float", "Conv", "--json"]):
        assert main(["quantize", *beside, "--replay", str(recorded)]) == 2
        named = ", ".join(word for word in beside if word.startswith("--")) or "MODEL"
        error = capsys.readouterr().err
        assert error.startswith(f"error: --replay takes no {named.replace('--no-manifest', '--manifest')}: "), error


def test_a_search_gives_the_same_bytes_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the search for --min-sqnr found, and with a recipe and a bias correction besides."""
    (tmp_path / "r.toml").write_text('corrections = ["bias"]\n[[node]]\nmatch = "Gemm"\nmethod = "mse"\n')
    out, again = tmp_path / "q.onnx", tmp_path / "again.onnx"
    command = ["quantize", str(GOLDEN / "model.onnx"), "--calib", str(GOLDEN / "calib.npz"), "-o", str(out)]
    assert main([*command, "--min-sqnr", "48", "--recipe", str(tmp_path / "r.toml")]) == 0
    assert main(["quantize", "--replay", str(out) + ".qir.json", "-o", str(again)]) == 0, capsys.readouterr()
    assert again.read_bytes() == out.read_bytes()
