"""The pure parts of tools/bench/int8.py: what counts as ahead, how a row reads, how samples are stored."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qir.runtime.latency import LatencyComparison
from tools.bench import int8


def timed(ratio: float) -> LatencyComparison:
    return LatencyComparison(ratio, 1.0, ratio, ratio - 0.1, ratio + 0.1, 10)


def row(by: str, sqnr: float | None, ratio: float) -> int8.Row:
    return int8.Row("net", by, sqnr_db=sqnr, latency=timed(ratio), beside_qir=timed(ratio))


@pytest.mark.parametrize(
    ("sqnr", "speed", "ahead"),
    [(30.3, 2.2, True), (30.1, 2.2, False), (30.3, 2.05, False), (40.0, 1.0, False), (20.0, 4.0, False)],
)
def test_ahead_needs_both_by_more_than_the_margins(sqnr: float, speed: float, ahead: bool) -> None:
    assert int8.ahead_in_both(sqnr, speed, 30.0, 2.0) is ahead


def test_recorded_rows_ahead_are_named_and_failed_ones_skipped() -> None:
    def peer(preset: str, sqnr: float, speed: float) -> dict[str, Any]:
        return {"peer": "p", "preset": preset, "ok": True, "sqnr_db": sqnr, "speedup": speed}

    failed = {"peer": "p", "preset": "broken", "ok": False, "seconds_over_float": None}
    peers = {"net": {"rows": [peer("slow", 50, 1), failed, peer("best", 31, 2.5), peer("rough", 10, 3)]}}
    assert int8.recorded_ahead(peers, row("qir", 30.0, 2.0)) == ["p best (31.0 dB @ 2.50x)"]
    assert int8.recorded_ahead({}, row("qir", 30.0, 2.0)) == []
    assert int8.recorded_ahead(peers, int8.Row("net", "qir", error="no")) == []


def test_measured_rows_are_held_against_each_other_not_against_float() -> None:
    ours = row("qir", 30.0, 2.0)
    others = [row("better", 31.0, 1.1), row("slower", 31.0, 0.9), int8.Row("net", "failed", error="no")]
    assert int8.measured_ahead(ours, others) == ["better (31.0 dB, 1.10x [1.00, 1.20] of qir's speed)"]
    assert int8.measured_ahead(int8.Row("net", "qir", error="no"), others) == []


def test_every_row_has_the_columns_of_the_header() -> None:
    columns = int8.HEADER.splitlines()[1].count("|")
    assert int8.HEADER.splitlines()[0].count("|") == columns
    failed = int8.Row("net", "qir", error="a|b")
    assert [line.markdown().count("|") for line in (row("qir", 30.0, 2.0), failed)] == [columns, columns]
    assert "a/b" in failed.markdown()


def test_integer_operators_are_told_from_those_that_only_convert() -> None:
    counts = {"com.microsoft::QLinearConv": 2, "ConvInteger": 1, "DynamicQuantizeLinear": 3, "QuantizeLinear": 4}
    assert int8.integer_ops(counts) == {"ConvInteger": 1, "com.microsoft::QLinearConv": 2}


def test_samples_of_one_shape_are_stacked_and_others_numbered() -> None:
    feeds = [{"x": np.zeros((1, n)), "y": np.full((1,), n)} for n in (2, 3)]
    arrays = int8.stack(feeds)
    assert {name: array.shape for name, array in arrays.items()} == {
        "x/000000": (1, 2),
        "x/000001": (1, 3),
        "y": (2, 1),
    }


def test_a_command_is_timed_and_its_complaint_kept() -> None:
    seconds, rss, error = int8.run_command([sys.executable, "-c", "bytearray(64 << 20)"])
    assert seconds > 0 and error is None
    assert 64 < rss < 640
    assert int8.run_command([sys.executable, "-c", "import sys; sys.exit('no such thing')"])[2] == "no such thing"
    assert int8.run_command([sys.executable, "-c", "import sys; sys.exit(3)"])[2] == "exit code 3"


def test_without_the_zoo_it_says_so_and_succeeds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(int8, "SHARED", tmp_path)
    monkeypatch.setattr(sys, "argv", ["int8.py"])
    assert int8.main() == 0
    assert "not there" in capsys.readouterr().out
