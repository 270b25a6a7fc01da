"""The pure parts of tools/bench/int8_frontier.py: what is asked for, which points are joined, what the plot holds."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tools.bench.int8_frontier import Point, chart, pareto, recorded_points, thresholds


def test_thresholds_are_whole_decibels_above_the_default() -> None:
    assert thresholds(22.6) == [25, 28, 32]


def test_joined_points_are_those_that_none_beats_in_both() -> None:
    fast, middle, slow, beaten = Point("a", 2.0, 10), Point("b", 1.5, 20), Point("c", 1.0, 30), Point("d", 1.4, 15)
    assert pareto([beaten, slow, fast, middle]) == [fast, middle, slow]


def test_recorded_rows_without_integers_are_not_plotted() -> None:
    row = {"peer": "p", "preset": "x", "ok": True, "speedup": 1.2, "sqnr_db": 20.0, "integer_ops": 3}
    rows = [row, row | {"integer_ops": 0}, row | {"sqnr_db": 999.0}, row | {"ok": False}, row | {"sqnr_db": -1.0}]
    assert recorded_points(rows) == [Point("p x", 1.2, 20.0, "recorded")]


def test_a_plot_is_xml_with_a_mark_for_each_point_and_labels_that_do_not_cover_each_other() -> None:
    points = [Point("qir a<b", 1.5, 22.6), Point("qir best", 1.5, 22.5), Point("ort", 1.7, -3.0, "here")]
    text = chart("net & co", [*points, Point("p", 2.0, 20.0, "recorded")])
    root = ElementTree.fromstring(text)
    titles = [one.text for one in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == [
        "qir a<b: 22.6 dB at 1.50x",
        "qir best: 22.5 dB at 1.50x",
        "ort: 0.0 dB at 1.70x",
        "p: 20.0 dB at 2.00x",
    ]
    first, second = (re.search(rf'y="([\d.]+)"[^>]*>{label}<', text) for label in ("qir a&lt;b", "qir best"))
    assert first is not None and second is not None
    assert abs(float(first[1]) - float(second[1])) >= 14
    assert "recorded" not in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")
