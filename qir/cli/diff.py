"""`qir diff`: what changed between two models."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qir.diff.changes import GraphDiff

__all__ = ["diff"]


class Format(enum.Enum):
    TEXT = "text"
    MARKDOWN = "markdown"
    HTML = "html"
    JSON = "json"


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="An ONNX file.", show_default=False)],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Another one.", show_default=False)],
    format: Annotated[
        Format | None,
        typer.Option(
            help="How to write it; by default as the name of the output file says, else text.", show_default=False
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write to a file.")] = None,
    weights: Annotated[bool, typer.Option(help="Measure how far changed weights are apart.")] = True,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND,...", help="Leave kinds of change out (may be repeated): see the docs."),
    ] = None,
    max_changes: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Show at most N changes, and say how many more there are.")
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(metavar="CONDITIONS", help="Exit 1 only where one of these holds, as in 'outputs,weights>0.1'."),
    ] = None,
) -> None:
    """Show what changed between two models, whatever was renamed, reordered or stored in another form.

    Example: [bold]qir diff old.onnx new.onnx[/bold]

    Example: [bold]qir diff model.onnx model.int8.onnx -o review.html[/bold]

    Exit 0: identical. 1: different (with --fail-on: a condition holds). 2: bad input.
    """
    from qir.cli.options import write_text
    from qir.diff import diff as compare
    from qir.diff.gate import parse_conditions
    from qir.diff.render.wording import headline

    conditions = parse_conditions(fail_on) if fail_on is not None else None
    kinds = [kind.strip() for text in ignore or () for kind in text.split(",")]
    found = compare(old, new, weights=weights, ignore=kinds)
    content = _render(found, format or _format_of(output), max_changes, output)
    if output is None:
        sys.stdout.write(content)
    else:
        write_text(output, content)
        typer.echo(f"wrote {output}: {headline(found)}")
    if conditions is None:
        failed = not found.identical
    else:
        holding = [str(condition) for condition in conditions if condition.holds(found)]
        failed = bool(holding)
        if holding:
            typer.echo(f"fails on {', '.join(holding)}", err=True)
    if failed:
        raise typer.Exit(1)


def _format_of(output: Path | None) -> Format:
    suffixes = {".md": Format.MARKDOWN, ".markdown": Format.MARKDOWN, ".html": Format.HTML, ".htm": Format.HTML}
    suffixes[".json"] = Format.JSON
    return Format.TEXT if output is None else suffixes.get(output.suffix.lower(), Format.TEXT)


def _render(found: GraphDiff, format: Format, max_changes: int | None, output: Path | None) -> str:
    match format:
        case Format.JSON:
            import json

            content = found.to_json()
            if max_changes is not None and len(content["changes"]) > max_changes:
                content["left_out"] = len(content["changes"]) - max_changes
                content["changes"] = content["changes"][:max_changes]
            return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        case Format.MARKDOWN:
            return found.to_markdown(max_changes=max_changes)
        case Format.HTML:
            return found.to_html(max_changes=max_changes)
        case Format.TEXT:
            colour = output is None and sys.stdout.isatty()
            return found.to_text(max_changes=max_changes, colour=colour, width=_width() if colour else 80)


def _width() -> int:
    import shutil

    return max(shutil.get_terminal_size().columns, 60)
