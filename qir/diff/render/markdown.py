"""A diff for a pull request: a summary table, pictures of what changed, collapsed details, of bounded length.

The pictures are Mermaid flow charts, which code hosts draw (mermaid.js.org/syntax/flowchart).
"""

from __future__ import annotations

from collections.abc import Iterator

from qir.diff.changes import Change, GraphDiff
from qir.diff.render.neighbourhood import Picture, PictureNode, pictures
from qir.diff.render.wording import SIGNS, Section, count_of, detail_lines, fact_rows, headline, sections, weight_lines

__all__ = ["to_markdown"]

MOST_CHARACTERS = 60_000
"""Code hosts cut or refuse comments beyond about 65,000 characters."""
_PLACES = 12
"""Of an entry that stands for several, how many are named."""
_OPEN = 10
"""Sections of more entries than this are collapsed."""
_CLASSES = (
    "classDef added fill:#d4f8d4,stroke:#2da44e",
    "classDef removed fill:#ffd7d5,stroke:#cf222e",
    "classDef changed fill:#fff3c4,stroke:#bf8700",
)


def to_markdown(
    diff: GraphDiff,
    *,
    max_changes: int | None = None,
    max_pictures: int = 4,
    max_characters: int = MOST_CHARACTERS,
) -> str:
    """The diff as Markdown of at most ``max_characters``; what had to be left out is counted at the end."""
    head = [f"### `{_code(diff.before.name)}` → `{_code(diff.after.name)}`", "", f"**{headline(diff)}**", ""]
    if diff.identical and not diff.notes:
        return "\n".join(head)
    if not diff.identical:
        head += [*_facts(diff), ""]
    budget = max_characters - sum(len(line) + 1 for line in head) - 200  # room for the closing sentence
    body: list[str] = []
    for picture in pictures(diff, max_pictures):
        block = _details(picture.title, _mermaid(picture), open_=True)
        if len(block) <= budget // 2:
            body.append(block)
            budget -= len(block) + 1
    left = len(diff.changes) if max_changes is None else max_changes
    shown = 0
    for section in sections(diff):
        lines, budget = _entries(section, left, budget)
        shown += len(lines)
        left -= len(lines)
        if lines:
            title = f"{section.title} ({len(section.changes)})"
            note = f"{_escape(section.note)}\n\n" if section.note else ""
            body.append(_details(title, note + "\n".join(lines), open_=len(lines) <= _OPEN))
    if diff.notes:
        lines, budget = _entries(Section("Notes", diff.notes), len(diff.notes), budget)
        if lines:
            body.append(_details("Notes: no difference in what the model is", "\n".join(lines), open_=False))
    hidden = len(diff.changes) - shown
    if hidden:
        body.append(f"_{count_of(hidden, 'more change')}; `qir diff` on the two files shows all._")
    return "\n".join([*head, *body]) + "\n"


def _facts(diff: GraphDiff) -> Iterator[str]:
    rows = [row for row in fact_rows(diff) if not row.same]
    if not rows:
        return
    yield "| | before | after |"
    yield "|---|---|---|"
    for row in rows:
        yield f"| {row.name} | {_cell(row.before)} | {_cell(row.after)} |"


def _entries(section: Section, most: int, budget: int) -> tuple[list[str], int]:
    """The entries that fit, each a list item, and what is left of the budget."""
    lines = []
    budget -= len(section.title) + 2 * len(section.note) + 60
    for change in section.changes[: max(most, 0)]:
        item = _item(change)
        if len(item) + 1 > budget:
            break
        budget -= len(item) + 1
        lines.append(item)
    return lines, budget


def _item(change: Change) -> str:
    mark = {"+": "➕", "-": "➖"}.get(SIGNS.get(change.kind, "~"), "✏️")
    lines = [f"- {mark} {_escape(change.title)}"]
    lines += [f"  - {_escape(line)}" for line in detail_lines(change, _PLACES)]
    if change.weight is not None and change.weight.stats is not None:
        lines += [f"  - {_escape(line)}" for line in weight_lines(change.weight.stats)]
    return "\n".join(lines)


def _details(title: str, content: str, open_: bool) -> str:
    return f"<details{' open' if open_ else ''}><summary>{_html(title)}</summary>\n\n{content}\n\n</details>\n"


def _mermaid(picture: Picture) -> str:
    lines = ["```mermaid", "flowchart TD", *_CLASSES]
    lines += [_node(node) for node in picture.nodes]
    for edge in picture.edges:
        arrow = "-.->" if edge.state == "removed" else "==>" if edge.state == "added" else "-->"
        lines.append(f"{edge.begin} {arrow} {edge.end}")
    return "\n".join([*lines, "```"])


def _node(node: PictureNode) -> str:
    label = "<br/>".join(_label(line) for line in node.lines)
    style = f":::{node.state}" if node.state != "same" else ""
    begin, end = ("[", "]") if node.kind == "node" else ("([", "])")
    return f'{node.key}{begin}"{label}"{end}{style}'


def _label(text: str) -> str:
    """Text inside a quoted Mermaid label: its entity codes are written #NAME; or #NUMBER;."""
    return "".join(c if c.isalnum() or c in " ._-/:,()[]+*>" else f"#{ord(c)};" for c in text)


def _escape(text: str) -> str:
    """Text that Markdown leaves alone."""
    return "".join("\\" + c if c in "\\`*_{}[]<>#|~" else c for c in text.replace("\n", " "))


def _cell(text: str) -> str:
    return _escape(text)


def _code(text: str) -> str:
    return text.replace("`", "'").replace("\n", " ")


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
