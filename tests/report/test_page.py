"""The report as a page: complete, self-contained, in a real browser; and as Markdown."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qir.cli import main
from qir.report.page import Evidence
from tests.browser import opened

GOLDEN = Path(__file__).parents[2] / "golden_models" / "resnet-shapes"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    model, samples, out = str(GOLDEN / "model.onnx"), str(GOLDEN / "calib.npz"), str(folder / "q.onnx")
    command = ["quantize", model, "--calib", samples, "-o", out, "--effort", "fast", "--min-sqnr"]
    assert main([*command, "5", "--report", str(folder / "report.html")]) == 0
    assert main([*command, "90", "--report", str(folder / "failed.md")]) == 1
    return folder


def test_the_page_in_a_browser(pages: Path) -> None:
    with opened(pages / "report.html") as page:
        assert "Passed: at least 5 dB" in page.locator(".headline.passed").inner_text()
        assert page.locator(".card").count() >= 4
        assert page.locator("svg.layers rect").count() >= 9, "a bar for each layer on integers"
        assert page.locator("svg.ranges rect.range").count() >= 9
        assert page.locator("svg.values").count() >= 9
        rows = page.locator("tr.remark:visible")
        assert 0 < rows.count() == page.locator("tr.remark.not-done").count(), "first of all what was not done"
        every = page.locator("tr.remark").count()
        page.fill("#search", "stays float")
        assert 0 < rows.count() < every
        assert f"of {every} remarks" in page.locator("#found").inner_text()
        assert "model.onnx → q.onnx" in page.locator("h1").inner_text(), "names; folders are told when asked"
        titles = page.locator(".card-title").all_inner_texts()
        assert "accuracy" not in titles and "drop" not in titles, "no labels, no task"
        assert "quantize" in page.locator("#repeat pre").inner_text()
        wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        assert not wide, "nothing hangs over the edge of a laptop's screen"


def test_a_run_that_misses_its_threshold_has_a_report_and_no_model(pages: Path) -> None:
    text = (pages / "failed.md").read_text(encoding="utf-8")
    assert "**FAILED: at least 90 dB at every output.**" in text
    assert "nothing written" in text
    assert "| Conv `/layer1/conv1` |" in text
    assert "## What stayed float, and why" in text


def test_the_name_says_the_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "q.onnx")
    command = ["quantize", str(GOLDEN / "model.onnx"), "--calib", str(GOLDEN / "calib.npz"), "-o", out]
    assert main([*command, "--report", str(tmp_path / "report.pdf")]) == 2
    assert "must end in .html or .md" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_why_no_layer_is_shown_is_said() -> None:
    def seen(bodies: int) -> Any:
        return SimpleNamespace(layers=[], noisy=list, alignment=SimpleNamespace(bodies=bodies))

    assert "stand in bodies of If, Loop or Scan (50 nodes)" in Evidence(layers=seen(50)).unmeasured
    assert "No layer that could be compared" in Evidence(layers=seen(0)).unmeasured
    assert Evidence(missing="no samples").unmeasured == "no samples"


def test_labels_are_a_card_of_their_own(tmp_path: Path) -> None:
    adaptive = GOLDEN.parent / "adaptive-digits"
    command = ["quantize", str(adaptive / "model.onnx"), "--calib", str(adaptive / "calib.npz"), "--effort", "fast"]
    command += ["--golden", str(adaptive / "eval.npz"), "-o", str(tmp_path / "q.onnx")]
    assert main([*command, "--report", str(tmp_path / "r.html")]) == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert '<div class="card-title">accuracy</div><div class="card-value">97.50%</div>' in text
    assert "200 golden samples of eval.npz" in text
