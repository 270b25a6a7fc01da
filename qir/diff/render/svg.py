"""Graphs as SVG: boxes with an operator and a name, coloured by what happened to them, joined by curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from qir.diff.render.layout import lay_out
from qir.diff.render.neighbourhood import PictureEdge, PictureNode

__all__ = ["draw"]

_LETTER = 7.2  # width of a letter at 12 px in the page's monospaced font
_BOX, _ROW, _GAP = 38.0, 68.0, 22.0


def draw(nodes: Sequence[PictureNode], edges: Sequence[PictureEdge], label: str, data: Mapping[str, str]) -> str:
    """One SVG element. ``label`` says in words what it shows; ``data``: key of a node -> what its ``data-node``
    attribute holds, for the page's script."""
    widths = {node.key: max(max(map(len, node.lines)) * _LETTER + 18, 56.0) for node in nodes}
    layout = lay_out(
        [node.key for node in nodes], [(edge.begin, edge.end) for edge in edges], widths, gap=_GAP, row=_ROW
    )
    spots = [(x, y, widths[key] / 2) for key, (x, y) in layout.places.items()]
    aside = {edge: _aside(layout.places[edge.begin], layout.places[edge.end], spots) for edge in edges}
    height = layout.height
    width = max([layout.width, *(layout.places[edge.begin][0] + 0.75 * by + 8 for edge, by in aside.items() if by)])
    parts = [
        f'<svg class="graph" role="img" aria-label="{escape(label)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" xmlns="http://www.w3.org/2000/svg">'
    ]
    for edge in edges:
        (x1, y1), (x2, y2) = layout.places[edge.begin], layout.places[edge.end]
        y1, y2 = y1 + _BOX / 2, y2 - _BOX / 2
        bend = max((y2 - y1) / 2, 16)
        parts.append(
            f'<path class="edge {edge.state}" d="M{x1:.1f} {y1:.1f}C{x1 + aside[edge]:.1f} {y1 + bend:.1f} '
            f'{x2 + aside[edge]:.1f} {y2 - bend:.1f} {x2:.1f} {y2:.1f}"/>'
        )
    for node in nodes:
        parts.append(_box(node, layout.places[node.key], widths[node.key], data.get(node.key)))
    return "".join([*parts, "</svg>"])


def _aside(begin: tuple[float, float], end: tuple[float, float], spots: Sequence[tuple[float, float, float]]) -> float:
    """By how much the curve of an edge must lean out so as not to run behind a box right between its ends."""
    (x1, y1), (x2, y2) = begin, end
    if abs(x1 - x2) >= 8 or y2 - y1 < 1.5 * _ROW:
        return 0.0
    between = [half for x, y, half in spots if y1 < y < y2 and abs(x - (x1 + x2) / 2) < 4]
    # A cubic curve reaches 3/4 of the way to its two control points.
    return (max(between) + 26) / 0.75 if between else 0.0


def _box(node: PictureNode, place: tuple[float, float], width: float, data: str | None) -> str:
    x, y = place
    round_ = _BOX / 2 if node.kind == "end" else 6
    attributes = "" if data is None else f' data-node="{escape(data)}" tabindex="0"'
    lines = node.lines[:2]
    step = 15
    top = y - (len(lines) - 1) * step / 2 + 4
    texts = "".join(
        f'<text class="line{index}" x="{x:.1f}" y="{top + index * step:.1f}">{escape(line)}</text>'
        for index, line in enumerate(lines)
    )
    return (
        f'<g class="box {node.state} {node.kind}"{attributes}><title>{escape(" ".join(node.lines))}</title>'
        f'<rect x="{x - width / 2:.1f}" y="{y - _BOX / 2:.1f}" width="{width:.1f}" height="{_BOX}" rx="{round_}"/>'
        f"{texts}</g>"
    )
