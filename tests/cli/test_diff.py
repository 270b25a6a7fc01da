"""`qir diff`: exit codes, formats, files."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import onnx
import pytest

from qir.cli import main

GOLDEN = Path(__file__).parents[2] / "golden_models"
OLD = GOLDEN / "cnn-digits" / "model.onnx"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    model = onnx.load(OLD)
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Sigmoid"
    onnx.save(model, tmp_path / "new.onnx")
    return tmp_path / "new.onnx"


def test_identical_is_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(OLD), str(OLD)]) == 0
    assert capsys.readouterr().out == "The models are identical.\n"


def test_different_is_one(new: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(OLD), str(new)]) == 1
    assert "Relu -> Sigmoid" in capsys.readouterr().out


def test_bad_input_is_two(new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(OLD), str(tmp_path / "absent.onnx")]) == 2
    assert main(["diff", str(OLD), str(new), "--ignore", "node-chnged"]) == 2
    error = capsys.readouterr().err
    assert "there is no file" in error
    assert "did you mean 'node-changed'" in error


def test_json(new: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(OLD), str(new), "--format", "json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["identical"] is False
    assert content["summary"]["nodes_changed"] == 1
    assert [change["kind"] for change in content["changes"]] == ["node-changed"]


def test_what_is_ignored_does_not_count(new: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(OLD), str(new), "--ignore", "node-changed"]) == 0
    assert "1 ignored difference" in capsys.readouterr().out
    assert main(["diff", str(OLD), str(new), "--ignore", "metadata, nodes"]) == 0
    assert "1 ignored difference" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "start"), [("d.md", "### "), ("d.html", "<!doctype html>"), ("d.json", "{"), ("d", "m")]
)
def test_the_file_name_says_the_format(
    new: Path, tmp_path: Path, name: str, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", str(OLD), str(new), "-o", str(tmp_path / name)]) == 1
    assert (tmp_path / name).read_text(encoding="utf-8").startswith(start)
    assert capsys.readouterr().out == f"wrote {tmp_path / name}: 1 node changed.\n"


def test_conditions_decide(new: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(OLD), str(new), "--fail-on", "outputs,weights>0.1"]) == 0
    assert main(["diff", str(OLD), str(new), "--fail-on", "nodes"]) == 1
    assert "fails on nodes" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_leaves_nothing(new: Path, tmp_path: Path) -> None:
    assert main(["diff", str(OLD), str(new), "-o", str(tmp_path / "absent" / "d.md")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.onnx"]


def test_what_each_pass_changed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", str(OLD), "--passes", "optimize", "--diff-each"]) == 0
    shown = capsys.readouterr().err
    assert "-- what fuse changed\nbefore -> after: " in shown
    assert "Conv+BatchNormalization -> Conv" in shown


def test_the_collector_is_left_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    frozen = gc.get_freeze_count()
    main(["diff", str(OLD), str(OLD)])
    capsys.readouterr()
    assert gc.get_freeze_count() == frozen and gc.isenabled()
