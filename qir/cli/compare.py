"""`qir compare`: where the error of a quantized model comes from, and the recipe lines that help."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qir.cli.options import JsonFlag, print_json, write_text

if TYPE_CHECKING:
    from qir.report.layers import ComparisonReport

__all__ = ["compare"]


def compare(
    reference: Annotated[Path, typer.Argument(metavar="FLOAT", help="The float model.", show_default=False)],
    quantized: Annotated[
        Path, typer.Argument(metavar="QUANT", help="A model quantized from it, by any tool.", show_default=False)
    ],
    data: Annotated[Path, typer.Option(metavar="DATA", help="Inputs: .npz, or a folder.")],
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer in order.")] = False,
    samples: Annotated[int, typer.Option(metavar="N", help="Samples to compare layers on.")] = 32,
    lines: Annotated[int, typer.Option(metavar="N", help="Lines of advice at most; 0 for none.")] = 8,
    reach: Annotated[
        float | None, typer.Option(metavar="DB", help="No more advice than should reach this SQNR.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="The recipe that QUANT was made with: advice adds to it.")
    ] = None,
    write_recipe: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Save the recipe for 'qir quantize --recipe'.")
    ] = None,
    target: Annotated[str, typer.Option(metavar="NAME", help="Runtime whose cost table estimates time.")] = "ort-cpu",
    json: JsonFlag = False,
) -> None:
    """Compare a quantized model with its float model, node by node, and say what to do about the error.

    Example: [bold]qir compare model.onnx model.int8.onnx --data samples.npz --write-recipe better.toml[/bold]
    """
    from qir.api.comparing import compare as run
    from qir.pipeline.progress import progress_bar

    with progress_bar(sys.stderr) as (progress, _):
        report = run(
            reference,
            quantized,
            data,
            layers=layers,
            target=target,
            samples=samples,
            lines=lines,
            reach=reach,
            recipe=recipe,
            progress=progress,
        )
    if write_recipe is not None:
        write_text(write_recipe, report.recipe.to_toml())
    if json:
        print_json(report.to_json())
    elif sys.stdout.isatty():
        _show(report)
    else:
        typer.echo(str(report))
    if write_recipe is not None and not json:
        typer.echo(f"  written: {write_recipe}, for qir quantize {reference} --recipe {write_recipe} ...")


def _show(report: ComparisonReport) -> None:
    """The table with rules and colours, for a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from qir.report.layers import COLUMNS

    console = Console()
    console.print(Text("\n".join(report.head())))
    table = Table(title=report.title, box=None, title_justify="left", pad_edge=False)
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index < 2 else "right", overflow="fold", no_wrap=index >= 2)
    for row in report.table():
        table.add_row(*[Text(cell, style=_colour(index, cell)) for index, cell in enumerate(row)])
    console.print(table)
    console.print(Text("\n".join(report.tail())))


def _colour(column: int, cell: str) -> str:
    """Red and yellow for a value with little signal left."""
    if column not in (2, 3) or cell in ("", "exact"):
        return ""
    return "red" if float(cell) < 10 else "yellow" if float(cell) < 20 else ""
