"""Reproducer folders: what they hold, that they are read back whole, and what is left out."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from qir.errors import DataError, ModelError, OptionError, OutputError, VerifyError
from qir.ir import Model, Tensor
from qir.ir.printer import print_model
from qir.pipeline import PassContext, PassRun
from qir.rewriting import EndlessRewriteError, RewriteError
from qir.validation import reproducer
from qir.validation.numerics import Numerics, NumericsError, Tolerance
from qir.validation.reproducer import FailedRun, read_reproducer, worth_reproducing, write_reproducer
from tests.pipeline.toys import DropIdentity
from tests.validation.sloppy import PLUGIN, chain


def failed(model: Model, **more: object) -> FailedRun:
    model.begin("drop-identity")
    run = PassRun(2, DropIdentity(), model, PassContext(), model.journal)  # type: ignore[arg-type]
    model.rollback()
    return FailedRun(model, run, ValueError("oops"), 70, "ort-cpu", True, **more)  # type: ignore[arg-type]


def weighty(size: int = 40) -> Model:
    model = chain([1.0])
    array = np.random.default_rng(1).normal(size=size).astype(np.float32)
    model.graph.add_initializer("w", Tensor.of(array))
    return model


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    plugin = tmp_path / "p.py"
    plugin.write_text(PLUGIN)
    feed = {"x": np.float32([1, 2, 3, 4])}
    model, folder = weighty(), tmp_path / "r"
    numerics = Numerics([feed], Tolerance(exact=0.5))
    write_reproducer(folder, failed(model, numerics=numerics, calibration=[feed, feed], plugins=[plugin, plugin]))
    found = read_reproducer(folder)
    assert print_model(found.model) == print_model(model)
    assert found.model.graph.initializers.last.const.numpy().tobytes() == (  # type: ignore[union-attr]
        model.graph.initializers.last.const.numpy().tobytes()  # type: ignore[union-attr]
    )
    assert (found.pipeline, found.target, found.verify, found.stubs) == ("drop-identity", "ort-cpu", True, ())
    assert found.tolerance == Tolerance(exact=0.5) and found.reference is None
    assert [path.name for path in found.plugins] == ["p.py", "p_2.py"]
    assert (folder / "golden" / "test_data_set_0" / "input_0.pb").is_file()
    assert (folder / "calibration" / "test_data_set_1" / "input_0.pb").is_file()
    info = tomllib.loads((folder / "reproducer.toml").read_text())
    assert info["failure"] == {"pass": "drop-identity", "number": 3, "exit_code": 70, "error": "oops"}
    assert {"qir", "python", "onnx", "onnxruntime"} <= set(info["versions"])


def test_what_would_be_large_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproducer, "MOST_WEIGHT_BYTES", 100)
    monkeypatch.setattr(reproducer, "MOST_INPUT_BYTES", 10)
    feed = {"x": np.float32([1, 2, 3, 4])}
    write_reproducer(tmp_path / "r", failed(weighty(), numerics=Numerics([feed, feed])))
    found = read_reproducer(tmp_path / "r")
    assert len(found.stubs) == 1 and found.stubs[0].startswith("w #")
    info = tomllib.loads((tmp_path / "r" / "reproducer.toml").read_text())
    assert len(info["run"]["stubs"]) == 1 and info["check"]["samples_left_out"] == 1


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    with pytest.raises(OutputError, match="exists already"):
        write_reproducer(folder, failed(chain([1.0])))
    assert list(folder.iterdir()) == []


def test_half_a_reproducer_is_never_left(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_reproducer(tmp_path / "r", failed(chain([1.0]), plugins=[tmp_path / "missing.py"]))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("text", ["", "[run]\n", "not toml"])
def test_a_damaged_folder_is_one_clear_line(tmp_path: Path, text: str) -> None:
    write_reproducer(tmp_path / "r", failed(chain([1.0])))
    (tmp_path / "r" / "reproducer.toml").write_text(text)
    with pytest.raises(DataError, match=r"reproducer\.toml"):
        read_reproducer(tmp_path / "r")
    with pytest.raises(DataError, match="is no reproducer"):
        read_reproducer(tmp_path)


def test_crashes_and_failed_checks_are_worth_it_and_wrong_input_is_not() -> None:
    for error in (ValueError(), NumericsError(), VerifyError(), EndlessRewriteError(), RewriteError()):
        assert worth_reproducing(error)
    for other in (OptionError(), ModelError(), KeyboardInterrupt()):
        assert not worth_reproducing(other)
