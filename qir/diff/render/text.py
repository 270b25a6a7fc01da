"""A diff for the terminal: summary first, then one entry a paragraph, readable at 80 columns."""

from __future__ import annotations

import io
from itertools import islice
from typing import TYPE_CHECKING

from qir.diff.changes import Change, ChangeKind, GraphDiff
from qir.diff.render.wording import (
    SIGNS,
    Section,
    count_of,
    detail_lines,
    fact_rows,
    headline,
    sections,
    weight_lines,
)

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["to_text"]

_COLOURS = {"+": "green", "-": "red", "~": "yellow"}
_INDENT = "      "
_MANY_WEIGHTS = 12
"""Changed weights, beyond which each has one line."""
_LEAST_ALIKE = 20
"""Of many changed weights those that are shown unless a number of changes is asked for."""
_PLACES = 3
"""Of an entry that stands for several, how many are named."""


def to_text(diff: GraphDiff, *, width: int = 80, colour: bool = False, max_changes: int | None = None) -> str:
    """The whole diff as text, with colour codes if wanted. ``max_changes``: entries shown; the rest is counted."""
    from rich.console import Console

    buffer = io.StringIO()
    console = Console(
        file=buffer, width=width, force_terminal=colour, no_color=not colour, highlight=False, markup=False, emoji=False
    )
    _page(console, diff, max_changes)
    # Rich fills lines up with blanks.
    return "".join(line.rstrip(" ") + "\n" for line in buffer.getvalue().splitlines())


def _page(console: Console, diff: GraphDiff, max_changes: int | None) -> None:
    if diff.identical and not diff.notes:
        console.print(headline(diff), soft_wrap=True)
        return
    names = f"{diff.before.name} -> {diff.after.name}"
    said = headline(diff)
    apart = len(names) + 2 + len(said) > console.width
    console.print(f"{names}:{chr(10) if apart else ' '}{said}", style="bold", soft_wrap=not apart)
    if not diff.identical:
        console.print()
        _facts(console, diff)
    brief = len(diff.of_kind(ChangeKind.WEIGHT_CHANGED)) > _MANY_WEIGHTS
    left = len(diff.changes) if max_changes is None else max_changes
    hidden = max(len(diff.changes) - left, 0)
    for section in sections(diff):
        few = brief and max_changes is None and section.note
        shown = section.changes[: _LEAST_ALIKE if few else left]
        if shown:
            _section(console, Section(section.title, shown, section.note), brief)
        left -= len(shown)
        if few and len(section.changes) > len(shown):
            console.print(f"  and {count_of(len(section.changes) - len(shown), 'more weight')}, none less alike")
    if hidden:
        console.print(f"\n{count_of(hidden, 'more change')} not shown.")
    if diff.notes:
        _section(console, Section("Notes (no difference in what the model is)", diff.notes))


def _facts(console: Console, diff: GraphDiff) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(4):
        table.add_column(overflow="fold")
    for row in fact_rows(diff):
        if row.same:
            table.add_row(f"  {row.name}", Text(row.before), "", "", style="dim")
        else:
            table.add_row(f"  {row.name}", Text(row.before), "->", Text(row.after))
    console.print(table)


def _section(console: Console, section: Section, brief: bool = False) -> None:
    console.print(f"\n{section.title}", style="bold", soft_wrap=True)
    if section.note:
        console.print(f"  {section.note}")
    for change in section.changes:
        _entry(console, change, brief)


def _entry(console: Console, change: Change, brief: bool) -> None:
    """``brief``: of a weight's statistics one line."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    sign = SIGNS.get(change.kind, "~")
    title = Table.grid(padding=(0, 1))
    title.add_column(width=3, justify="right")
    title.add_column(overflow="fold")
    title.add_row(Text(sign, style=_COLOURS[sign]), Text(change.title, style=_COLOURS[sign]))
    console.print(title)
    for line in detail_lines(change, _PLACES):
        console.print(Padding(Text(line), (0, 0, 0, len(_INDENT))))
    if change.weight is not None and change.weight.stats is not None:
        for line in islice(weight_lines(change.weight.stats), 1 if brief else None):
            console.print(Padding(Text(line, style="dim"), (0, 0, 0, len(_INDENT))))
