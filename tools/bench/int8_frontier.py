"""The plot of int8.py --frontier: accuracy against speed, the points of one model that efforts and thresholds reach,
with other quantizers' among them. One SVG that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

__all__ = ["Point", "chart", "pareto", "recorded_points", "thresholds"]

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 20, 34, 62
_MOST_DB = 70.0
_STEPS_DB = (3, 6, 10)
_LABEL = 14
"""Pixels between the labels of two points that would cover each other."""

# Colour, and whether the mark is filled.
_LOOKS = {"qir": ("#1a5fb4", True), "here": ("#c64600", True), "recorded": ("#8a8a8a", False)}
_LEGEND = {
    "qir": "qir, by effort and --min-sqnr",
    "here": "onnxruntime's quantizer, same machine",
    "recorded": "others, with VNNI",
}


@dataclass(frozen=True)
class Point:
    """One quantized model: ``speed`` over float, ``db`` of its first output."""

    label: str
    speed: float
    db: float
    series: Literal["qir", "here", "recorded"] = "qir"


def thresholds(db: float) -> list[int]:
    """What to ask for, in whole dB, of a model of which the default reaches ``db``."""
    return [math.floor(db) + step for step in _STEPS_DB]


def pareto(points: Iterable[Point]) -> list[Point]:
    """Those that no other beats in both, the fastest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda one: (-one.speed, -one.db)):
        if not best or point.db > best[-1].db:
            best.append(point)
    return best


def recorded_points(rows: Iterable[Mapping[str, Any]]) -> list[Point]:
    """Rows of peers.json that quantized something and can be seen on the plot."""
    return [
        Point(f"{row['peer']} {row['preset']}", row["speedup"], row["sqnr_db"], "recorded")
        for row in rows
        if row["ok"] and row["integer_ops"] and 0 <= row["sqnr_db"] <= _MOST_DB
    ]


def chart(title: str, points: Sequence[Point]) -> str:
    """Speed to the right, dB upwards; qir's best points are joined. Points below 0 dB stand on the lower edge."""
    shown = [Point(one.label, one.speed, min(max(one.db, 0.0), _MOST_DB), one.series) for one in points]
    across = _axis([one.speed for one in shown] + [1.0], (0.1, 0.2, 0.25, 0.5))
    upwards = _axis([one.db for one in shown], (1, 2, 5, 10, 20))

    def x(speed: float) -> float:
        return _LEFT + (speed - across[0]) / (across[-1] - across[0]) * (_WIDTH - _LEFT - _RIGHT)

    def y(db: float) -> float:
        return _HEIGHT - _BOTTOM - (db - upwards[0]) / (upwards[-1] - upwards[0]) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'role="img" aria-label="{escape(title)}" font-family="sans-serif" font-size="11">\n',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>\n',
        _text(_LEFT, 18, title, size=14),
    ]
    for speed in across:
        colour = "#777" if speed == 1 else "#e4e4e4"
        parts.append(_line(x(speed), _TOP, x(speed), _HEIGHT - _BOTTOM, colour))
        parts.append(_text(x(speed), _HEIGHT - _BOTTOM + 15, f"{speed:g}x", "middle"))
    for db in upwards:
        parts.append(_line(_LEFT, y(db), _WIDTH - _RIGHT, y(db), "#e4e4e4"))
        parts.append(_text(_LEFT - 6, y(db) + 4, f"{db:g}", "end"))
    parts.append(_text(_LEFT, _HEIGHT - _BOTTOM + 32, "speed over float, one thread; up: SQNR of the first output, dB"))
    joined = " ".join(f"{x(one.speed):.1f},{y(one.db):.1f}" for one in pareto(o for o in shown if o.series == "qir"))
    parts.append(f'<polyline points="{joined}" fill="none" stroke="{_LOOKS["qir"][0]}" stroke-width="1.5"/>\n')
    taken: list[tuple[float, float]] = []
    for one in sorted(shown, key=lambda one: list(_LOOKS).index(one.series)):
        parts.append(_mark(x(one.speed), y(one.db), one))
        if one.series != "recorded":
            parts.append(_label(x(one.speed), y(one.db), one, taken))
    at = float(_LEFT)
    for series in dict.fromkeys(one.series for one in shown):
        colour, filled = _LOOKS[series]
        dot = _HEIGHT - 14
        parts.append(f'<circle cx="{at + 5:.0f}" cy="{dot}" r="4" {_paint(colour, filled)}/>')
        parts.append(_text(at + 14, dot + 4, _LEGEND[series]))
        at += 34 + 5.9 * len(_LEGEND[series])
    return "".join([*parts, "</svg>\n"])


def _axis(numbers: Sequence[float], steps: Sequence[float]) -> list[float]:
    """Round ticks around all numbers, at most nine of them if the largest step allows it."""
    low, high = min(numbers), max(numbers)
    step = next((step for step in steps if (high - low) / step <= 7), steps[-1])
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * index, 6) for index in range(first, max(last, first + 1) + 1)]


def _label(x: float, y: float, one: Point, taken: list[tuple[float, float]]) -> str:
    """Beside its mark, moved down past labels that stand there."""
    anchor = "end" if x > _WIDTH * 0.72 else "start"
    at = y - 6
    while any(abs(at - other) < _LABEL and abs(x - place) < 110 for place, other in taken):
        at += _LABEL
    taken.append((x, at))
    return _text(x + (-8 if anchor == "end" else 8), at + 4, one.label, anchor, colour=_LOOKS[one.series][0])


def _mark(x: float, y: float, one: Point) -> str:
    colour, filled = _LOOKS[one.series]
    says = escape(f"{one.label}: {one.db:.1f} dB at {one.speed:.2f}x")
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {_paint(colour, filled)}><title>{says}</title></circle>\n'


def _paint(colour: str, filled: bool) -> str:
    return f'fill="{colour if filled else "none"}" stroke="{colour}"'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>\n'


def _text(x: float, y: float, text: str, anchor: str = "start", *, size: int = 11, colour: str = "#222") -> str:
    look = f'text-anchor="{anchor}" font-size="{size}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(text)}</text>\n'
