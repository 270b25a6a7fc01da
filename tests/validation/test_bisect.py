"""Bisection names the pass, the rewrite, the rule and the source node, in O(log n) runs of the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import qir
from qir.cli import main
from qir.errors import UnsupportedError
from qir.validation.bisect import bisect
from tests.validation.sloppy import PLUGIN, chain, feeds, pipeline


def test_one_wrong_rewrite_among_200_good_ones_in_2000_nodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    factors = [1.0] * 201
    factors[137] = 1.5
    model = chain(factors, filler=9)
    assert sum(1 for _ in model.walk()) >= 2000
    qir.save(model, "m.onnx")
    np.savez("golden.npz", **feeds())
    Path("sloppy.py").write_text(PLUGIN)
    arguments = ["bisect", "m.onnx", "--passes", "drop-ones,canonicalize", "--plugin", "sloppy.py"]
    assert main([*arguments, "--golden", "golden.npz", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["pass"], told["pass_number"], told["rule"], told["node"]) == ("drop-ones", 1, "mul-by-one", "mul137")
    assert (told["application"], told["applications"], told["sources"]) == (138, 201, ["mul137"])
    assert told["model_runs"] <= 12
    assert main([*arguments, "--golden", "golden.npz"]) == 1
    assert "rewrite 138 of 201: rule 'mul-by-one' at 'mul137'\n  source nodes: mul137\n" in capsys.readouterr().out


def test_the_first_and_the_last_rewrite_can_be_the_wrong_one(tmp_path: Path) -> None:
    steps = pipeline("drop-ones", tmp_path)
    for place in (0, 6):
        factors = [1.0] * 7
        factors[place] = 1.5
        culprit = bisect(chain(factors), steps, feeds()).culprit
        assert culprit is not None and culprit.application is not None
        assert (culprit.application.number, culprit.application.node) == (place, f"mul{place}")


def test_a_sound_pipeline_is_found_sound_with_two_runs(tmp_path: Path) -> None:
    report = bisect(chain([1.0] * 5), pipeline("canonicalize,drop-ones,canonicalize", tmp_path), feeds())
    assert report.culprit is None and report.model_runs == 2
    assert str(report) == "no pass breaks the model (2 model runs over 2 samples)"


def test_the_guilty_pass_stands_among_many_good_ones(tmp_path: Path) -> None:
    text = ",".join(["canonicalize"] * 3 + ["by-hand{mode=silent}"] + ["canonicalize"] * 3)
    report = bisect(chain([1.0, 1.5, 1.0]), pipeline(text, tmp_path), feeds())
    culprit = report.culprit
    assert culprit is not None and (culprit.pass_name, culprit.index) == ("by-hand", 3)
    assert culprit.applications == 0 and culprit.application is None
    assert "it made no numbered rewrite" in str(report)


def test_a_pass_that_counts_by_hand_is_searched_too(tmp_path: Path) -> None:
    culprit = bisect(chain([1.0, 1.0, 1.5, 1.0]), pipeline("by-hand", tmp_path), feeds()).culprit
    assert culprit is not None and culprit.application is not None
    assert (culprit.application.rule, culprit.application.sources) == ("one", ("mul2",))


def test_damage_outside_of_the_counted_rewrites_is_not_blamed_on_one(tmp_path: Path) -> None:
    report = bisect(chain([1.0, 1.0, 1.5, 1.0]), pipeline("by-hand{mode=before}", tmp_path), feeds())
    assert report.culprit is not None and report.culprit.application is None
    assert "outside of its 3 numbered rewrites" in str(report)


def test_a_crash_is_traced_to_its_rewrite(tmp_path: Path) -> None:
    culprit = bisect(
        chain([1.0, 1.0, 1.5, 1.0]), pipeline("canonicalize,by-hand{mode=crash}", tmp_path), feeds()
    ).culprit
    assert culprit is not None and culprit.application is not None
    assert (culprit.application.node, culprit.fault) == ("mul2", "ZeroDivisionError: oops")


def test_an_exact_pass_after_a_lossy_one_is_held_to_what_that_one_left(tmp_path: Path) -> None:
    """The lossy pass moves the output by far more than an exact one may, and is not to blame."""
    model = chain([1.01, 1.5, 1.0])
    report = bisect(model, pipeline("halve,canonicalize,drop-ones", tmp_path), feeds())
    assert report.culprit is not None and report.culprit.pass_name == "drop-ones"
    report = bisect(model, pipeline("halve{step=5.0},canonicalize", tmp_path), feeds())
    assert report.culprit is not None and report.culprit.pass_name == "halve"
    assert "dB are wanted" in report.culprit.fault


def test_damage_that_a_lossy_pass_would_hide_is_found(tmp_path: Path) -> None:
    """Off by a factor of 1.5, the result still has 9.5 dB, enough after a lossy pass, not after an exact one."""
    model = chain([1.7, 1.0, 1.5, 1.0])
    report = bisect(model, pipeline("drop-ones,canonicalize,halve,canonicalize", tmp_path), feeds())
    assert report.culprit is not None and report.culprit.application is not None
    assert (report.culprit.index, report.culprit.application.node) == (0, "mul2")


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = chain([1.0, 1.5])
    bisect(model, pipeline("drop-ones", tmp_path), feeds())
    assert [node.op for node in model.walk()] == ["Mul", "Neg", "Mul", "Neg", "Identity"]


def test_a_model_that_never_ran_is_an_error_and_not_a_culprit(tmp_path: Path) -> None:
    model = chain([1.0])
    model.opset_imports = {"": 99}
    with pytest.raises(UnsupportedError, match="Opset 99"):
        bisect(model, pipeline("drop-ones", tmp_path), feeds())
