"""`qir ranges`: what values can be, are declared to be, and were seen to be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qir.cli.options import JsonFlag, print_json

__all__ = ["ranges"]


def ranges(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model.", show_default=False)],
    input_range: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LO:HI", help="What an input can hold, e.g. image=0:255 (may be repeated)."),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="DATA", help="Inputs to observe: .npz, or a folder.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show the range of every value: declared, proved, observed; and what lies outside of what is possible.

    Example: [bold]qir ranges model.onnx --input-range image=0:1 --data samples.npz[/bold]

    Exit 0: all is possible. 1: a value was seen outside of what is possible. 2: bad input.
    """
    from qir.api.observing import ranges as run
    from qir.pipeline.progress import progress_bar

    with progress_bar(sys.stderr) as (progress, _):
        report = run(model, input_range=input_range or (), data=data, progress=progress)
    if json:
        print_json(report.to_json())
    else:
        typer.echo(str(report))
    if report.impossible:
        raise typer.Exit(1)
