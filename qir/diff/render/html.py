"""A diff as one HTML page: no request to anywhere, works from a file, offline and in print."""

from __future__ import annotations

import html as html_text
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from qir.diff.changes import Change, GraphDiff, ModelSide
from qir.diff.render.neighbourhood import PictureEdge, PictureNode, pictures, whole_graph
from qir.diff.render.svg import draw
from qir.diff.render.wording import SIGNS, count_of, detail_lines, fact_rows, headline, sections, weight_lines
from qir.diff.weights import Histogram
from qir.ir import Node, Tensor, format_type
from qir.ir.printer import print_node

__all__ = ["embedded_json", "to_html", "to_html_fragment"]

MOST_WHOLE = 1500
"""Graphs of more nodes are not drawn whole: neither people nor browsers get far with them."""
_MOST_PICTURES = 12
_MOST_ENTRIES = 5000


@dataclass(frozen=True, slots=True)
class Entry:
    """One change as the page's template wants it."""

    sign: str
    title: str
    kind: str
    lines: tuple[str, ...]
    histogram: str
    nodes: str
    """Keys of its nodes in the pictures, with blanks between."""
    search: str


def to_html(diff: GraphDiff, *, max_changes: int | None = None) -> str:
    """The whole page. ``max_changes``: entries shown; the rest is counted."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("qir.diff.render", "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    most = min(_MOST_ENTRIES if max_changes is None else max_changes, _MOST_ENTRIES)
    shown = 0
    listed: list[tuple[str, str, int, list[Entry]]] = []
    for section in sections(diff):
        entries = [_entry(diff, change) for change in section.changes[: most - shown]]
        shown += len(entries)
        listed.append((section.title, section.note, len(section.changes), entries))
    facts = _Facts(diff)
    drawn = [(picture.title, draw(picture.nodes, picture.edges, picture.title, facts.keys(picture.nodes)))
             for picture in pictures(diff, _MOST_PICTURES)]  # fmt: skip
    return environment.get_template("diff.html.j2").render(
        before=diff.before.name,
        after=diff.after.name,
        headline=headline(diff),
        identical=diff.identical,
        rows=fact_rows(diff),
        sections=listed,
        hidden=len(diff.changes) - shown,
        hidden_text=count_of(len(diff.changes) - shown, "more change"),
        notes=[_entry(diff, change) for change in diff.notes],
        pictures=drawn,
        wholes=_wholes(diff, facts),
        most_whole=MOST_WHOLE,
        style=_page_file("page.css"),
        script=_page_file("page.js"),
        data=embedded_json(facts.found),
    )


def to_html_fragment(diff: GraphDiff) -> str:
    """For a notebook's cell: headline, facts, the first entries; no script."""
    rows = "".join(
        f"<tr><td>{_escape(row.name)}</td><td>{_escape(row.before)}</td><td>{_escape(row.after)}</td></tr>"
        for row in fact_rows(diff)
    )
    items = "".join(
        f"<li>{_escape(SIGNS.get(change.kind, '~'))} {_escape(change.title)}</li>" for change in diff.changes[:50]
    )
    more = len(diff.changes) - 50
    tail = f"<p>{count_of(more, 'more change')}</p>" if more > 0 else ""
    names = f"{_escape(diff.before.name)} → {_escape(diff.after.name)}"
    return f"<div><p><b>{names}</b>: {_escape(headline(diff))}</p><table>{rows}</table><ul>{items}</ul>{tail}</div>"


def embedded_json(content: Any) -> str:
    """JSON that can stand inside a script element: nothing in it ends the element or starts a comment."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


class _Facts:
    """What a click on a node shows, by key; keys are those of the pictures, ``o7`` for a node of the old model only."""

    def __init__(self, diff: GraphDiff) -> None:
        self._diff = diff
        self._to_old = {new: old for old, new in diff.pairs.items()}
        self.found: dict[str, dict[str, Any]] = {}

    def keys(self, nodes: Iterable[PictureNode]) -> dict[str, str]:
        for node in nodes:
            if node.kind == "node" and node.key not in self.found:
                self.found[node.key] = self._facts(node.key)
        return {node.key: node.key for node in nodes if node.kind == "node"}

    def _facts(self, key: str) -> dict[str, Any]:
        id_ = int(key[1:])
        old = id_ if key[0] == "o" else self._to_old.get(id_)
        new = id_ if key[0] == "n" else None
        return {
            "before": None if old is None else _node_facts(self._diff.before, old),
            "after": None if new is None else _node_facts(self._diff.after, new),
        }


def _node_facts(side: ModelSide, id_: int) -> dict[str, Any]:
    node = side.node(id_)
    return {
        "op": node.op if not node.domain else f"{node.domain}.{node.op}",
        "name": node.name,
        "inputs": [_operand(node, index) for index in range(len(node.inputs))],
        "outputs": [f"{value.name}: {format_type(value.type) if value.type else '?'}" for value in node.outputs],
        "attributes": {name: _attribute(attribute.python) for name, attribute in node.attributes.items()},
        "text": print_node(node, brief=True).strip()[:2000],
    }


def _operand(node: Node, index: int) -> str:
    value = node.inputs[index]
    if value is None:
        return "none"
    type_ = format_type(value.type) if value.type else "?"
    if isinstance(value.const, Tensor):
        type_ = f"{value.const.dtype}[{','.join(map(str, value.const.shape))}], constant"
    return f"{value.name}: {type_}"


def _attribute(value: Any) -> str:
    text = f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
    return text if len(text) <= 200 else text[:200] + " …"


def _entry(diff: GraphDiff, change: Change) -> Entry:
    lines = list(detail_lines(change))
    histogram = ""
    if change.weight is not None and change.weight.stats is not None:
        lines += [line for line in weight_lines(change.weight.stats) if "|" not in line]
        if change.weight.stats.histogram is not None:
            histogram = _histogram(change.weight.stats.histogram)
    keys = [f"n{diff.pairs[ref.id]}" if ref.id in diff.pairs else f"o{ref.id}" for ref in change.old]
    keys += [f"n{ref.id}" for ref in change.new]
    names = " ".join(f"{ref.name} {ref.op}" for ref in (*change.old, *change.new))
    return Entry(
        sign=SIGNS.get(change.kind, "~"),
        title=change.title,
        kind=change.kind.value,
        lines=tuple(lines),
        histogram=histogram,
        nodes=" ".join(dict.fromkeys(keys)),
        search=f"{change.title} {names} {change.kind.value}".lower(),
    )


def _histogram(histogram: Histogram) -> str:
    """Two histograms over each other, as an SVG picture."""
    width, height = 320, 70
    most = max(*histogram.before, *histogram.after, 1)
    count = len(histogram.before)
    step = width / count

    def bars(numbers: tuple[int, ...], kind: str) -> str:
        return "".join(
            f'<rect class="{kind}" x="{i * step:.1f}" width="{step - 0.6:.1f}" '
            f'y="{height - number / most * height:.1f}" height="{number / most * height:.1f}"/>'
            for i, number in enumerate(numbers)
            if number
        )

    label = f"histogram from {histogram.low:.3g} to {histogram.high:.3g}, before and after"
    return (
        f'<svg class="histogram" role="img" aria-label="{label}" viewBox="0 0 {width} {height + 14}" width="{width}" '
        f'height="{height + 14}">{bars(histogram.before, "before")}{bars(histogram.after, "after")}'
        f'<text x="0" y="{height + 12}">{histogram.low:.3g}</text>'
        f'<text x="{width}" y="{height + 12}" text-anchor="end">{histogram.high:.3g}</text></svg>'
    )


def _wholes(diff: GraphDiff, facts: _Facts) -> list[tuple[str, str]]:
    """Both graphs whole, for looking at them side by side; none where one is too large."""
    if max(diff.before.facts.nodes, diff.after.facts.nodes) > MOST_WHOLE:
        return []
    drawn = []
    for side in (diff.before, diff.after):
        nodes, edges = whole_graph(diff, side)
        drawn.append((side.name, _draw_whole(side.name, nodes, edges, facts)))
    return drawn


def _draw_whole(name: str, nodes: list[PictureNode], edges: list[PictureEdge], facts: _Facts) -> str:
    return draw(nodes, edges, f"the graph of {name}", facts.keys(nodes))


def _page_file(name: str) -> str:
    return (files("qir.diff.render") / "page" / name).read_text(encoding="utf-8")


def _escape(text: str) -> str:
    return html_text.escape(text)
