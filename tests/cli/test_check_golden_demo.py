"""`qir check`, `qir golden` and `qir demo` on golden models."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest

import qir
from qir import golden_models
from qir.cli import main
from qir.cli.demo import _in_words
from qir.ir import Tensor
from tests.cli.test_main import RUN

GOLDEN = golden_models.path("mlp-digits")
FLOAT = str(GOLDEN / "model.onnx")
TREE = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "int8.onnx"
    qir.quantize(FLOAT, path, calibration=GOLDEN / "calib.npz", latency_seconds=0)
    return str(path)


def test_stored_outputs_and_the_threshold_of_golden_toml(quantized: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", quantized, "--golden", str(GOLDEN)]) == 0
    text = capsys.readouterr().out
    assert "against stored outputs, 4 samples of" in text and "dB SQNR" in text
    assert "(golden.toml, [expected.int8]) reached: the worst output has" in text


def test_a_float_model_gives_the_outputs_that_are_missing(quantized: str, capsys: pytest.CaptureFixture[str]) -> None:
    samples = str(GOLDEN / "eval.npz")
    assert main(["check", quantized, "--golden", samples, "--against", FLOAT, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and report["min_sqnr"] is None and report["sqnr_min_db"] > 20
    assert report["optimizations_on"]["samples"] == report["optimizations_off"]["samples"] > 100
    assert report["optimizations_on"]["task"]["reference"]["accuracy"] > 0.9
    assert main(["check", quantized, "--golden", samples]) == 2
    assert capsys.readouterr().err == (
        f"error: {samples}: holds no expected outputs: name the float model that gives them (--against)\n"
    )


def test_below_the_threshold_is_exit_1(quantized: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", quantized, "--golden", str(GOLDEN), "--min-sqnr", "200"]) == 1
    assert "threshold 200 dB (--min-sqnr) NOT REACHED" in capsys.readouterr().out
    assert main(["check", FLOAT, "--golden", str(GOLDEN), "--min-sqnr", "80", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agreement"] == 1


def test_expected_outputs_of_another_shape(quantized: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [(key, images)] = [item for item in np.load(GOLDEN / "eval.npz").items() if item[0] != "labels"]
    np.savez(tmp_path / "odd.npz", **{key: images[:2], "logits": np.zeros((2, 7), np.float32)})
    assert main(["check", quantized, "--golden", str(tmp_path / "odd.npz")]) == 2
    assert "'logits' has shape [1, 7], the model wants [N, 10]" in capsys.readouterr().err


def test_missing_numbers_fail_without_any_threshold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = qir.load(FLOAT)
    for node in model.graph.nodes:
        if node.op == "Gemm":
            weight = node.input(1)
            assert weight is not None and isinstance(weight.const, Tensor)
            weight.const = Tensor.of(np.full(weight.const.shape, np.nan, np.float32))
    qir.save(model, tmp_path / "nan.onnx")
    assert main(["check", str(tmp_path / "nan.onnx"), "--golden", str(GOLDEN), "--min-sqnr", "-999"]) == 1
    assert "BROKEN: 'logits' has another shape than expected, or NaN or infinity" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["absent.onnx", "text.onnx", "."])
def test_no_model(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.onnx").write_text("this is no model")
    assert main(["check", what, "--golden", str(GOLDEN)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and len(captured.err.splitlines()) == 1


def test_record_then_check_then_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "golden"
    record = ["golden", "record", FLOAT, "--data", str(GOLDEN / "eval.npz"), "-o", str(folder), "--samples", "3"]
    assert main(record) == 0
    assert capsys.readouterr().out == f"wrote {folder}: 3 samples, outputs logits\n"
    assert main(["check", FLOAT, "--golden", str(folder), "--min-sqnr", "80"]) == 0
    capsys.readouterr()
    assert main(["golden", "show", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["samples"], facts["model"], facts["outputs"]) == (
        3,
        "model.onnx",
        [{"name": "logits", "type": "float32[1, 10]"}],
    )
    assert facts["info"]["record"]["data"] == "eval.npz"
    assert main(["golden", "show", str(folder)]) == 0
    assert "3 samples, with its model" in capsys.readouterr().out
    assert main(record) == 2
    assert "exists already; remove it or name another folder" in capsys.readouterr().err


def test_record_leaves_nothing_behind_when_it_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [(key, good)] = np.load(GOLDEN / "calib.npz").items()
    np.savez(tmp_path / "bad.npz", **{key: np.full_like(good, np.nan)})
    before = sorted(tmp_path.iterdir())
    arguments = ["golden", "record", FLOAT, "--data", str(tmp_path / "bad.npz"), "-o", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "sample 0" in capsys.readouterr().err
    assert main([*arguments[:5], "-o", str(tmp_path / "out"), "--samples", "0"]) == 2
    assert capsys.readouterr().err == "error: --samples 0: at least 1\n"
    assert sorted(tmp_path.iterdir()) == before


def test_show_says_what_is_no_golden_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, message in (
        (tmp_path / "none", "no such folder"),
        (tmp_path, "holds no test_data_set_N folder: 'qir golden record' makes one"),
        (Path(__file__), "is a file, not a golden folder"),
    ):
        assert main(["golden", "show", str(path)]) == 2
        assert capsys.readouterr().err == f"error: {path}: {message}\n"


def test_demo_shows_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "cnn-digits", "-o", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    stages = [line.split("  ")[0] for line in text.split("\n\n")[0].splitlines()]
    wanted = [
        "lowered",
        "cleaned",
        "fused",
        "ranges analysed",
        "calibrated",
        "quantized",
        "placed",
        "emitted",
        "validated",
    ]
    assert [stage for stage in stages if stage in wanted] == list(dict.fromkeys(s for s in stages if s in wanted))
    assert set(wanted) <= set(stages)
    assert "dB SQNR" in text and "labels: accuracy" in text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cnn-digits.int8.onnx"]
    assert text.splitlines()[stages.index("validated") + 2].startswith("model.onnx -> "), "no folder of the package"
    assert "qir demo cnn-digits --copy ." in text


def test_stages_in_words() -> None:
    assert _in_words({"sqnr_db_before": 40.28, "sqnr_db": 43.081}) == "40.28 -> 43.08 dB"
    assert _in_words({"float": 1, "sqnr_db_before": 40.0, "sqnr_db": 40.0}) == "float 1, 40 dB"
    assert _in_words({"us float": 332.51, "us": 218.0}) == "332.5 -> 218 us by the cost table"
    assert _in_words({"ranges": 7, "bounded": 0}) == "ranges 7"
    assert _in_words({"bounded": 0}) == ""


def test_demo_list_and_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == golden_models.names()
    assert main(["demo", "cnn-digit"]) == 2
    assert "'cnn-digit' (did you mean 'cnn-digits'" in capsys.readouterr().err


def test_demo_copies_what_the_documentation_works_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "cnn-digits", "--copy", str(tmp_path / "new" / "folder")]) == 0
    copied = {path.name: path.read_bytes() for path in (tmp_path / "new" / "folder").iterdir()}
    assert copied == {
        "model.onnx": (golden_models.path("cnn-digits") / "model.onnx").read_bytes(),
        "samples.npz": (golden_models.path("cnn-digits") / "calib.npz").read_bytes(),
        "check.npz": (golden_models.path("cnn-digits") / "eval.npz").read_bytes(),
    }
    assert "samples.npz" in capsys.readouterr().out
    (tmp_path / "model.onnx").write_bytes(b"of the user's own")
    assert main(["demo", "cnn-digits", "--copy", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "model.onnx").read_bytes() == b"of the user's own"
    assert main(["demo", "cnn-digits", "--copy", str(tmp_path / "model.onnx")]) == 2


def test_demo_works_in_a_read_only_folder(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(TREE), "TMPDIR": str(scratch)}
    done = subprocess.run([*RUN, "demo", "mlp-digits", "--json"], cwd=locked, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"] and Path(report["output"]).is_file() and str(scratch) in report["output"]
    assert list(locked.iterdir()) == []


def test_check_from_python(quantized: str) -> None:
    report = qir.check(quantized, GOLDEN, min_sqnr=20)
    assert report.passed and report.worst_db > 20 and str(report).endswith("dB")
