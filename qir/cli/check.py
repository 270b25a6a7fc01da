"""`qir check`: is a model close enough to its golden outputs?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qir.cli.options import JsonFlag, print_json

__all__ = ["check"]


def check(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.", show_default=False)],
    golden: Annotated[
        Path, typer.Option(metavar="FILE", help="Inputs with expected outputs: a golden folder, or an .npz.")
    ],
    against: Annotated[
        Path | None,
        typer.Option(metavar="FLOAT.onnx", help="The float model that gives the outputs which the golden data lacks."),
    ] = None,
    min_sqnr: Annotated[
        float | None,
        typer.Option(metavar="DB", help="Exit 1 where an output is worse; by default what golden.toml expects."),
    ] = None,
    preset: Annotated[
        str, typer.Option(metavar="NAME", help="Whose expectation in golden.toml counts: its table expected.NAME.")
    ] = "int8",
    json: JsonFlag = False,
) -> None:
    """Compare a model with expected outputs, with the runtime's optimisations on and off.

    Example: [bold]qir check model.int8.onnx --golden samples.npz --against model.onnx --min-sqnr 30[/bold]

    Exit 0: close enough. 1: worse than the threshold, or broken. 2: bad input.
    """
    from qir.api.checking import check as run

    report = run(model, golden, against=against, min_sqnr=min_sqnr, preset=preset)
    if json:
        print_json(report.to_json())
    else:
        typer.echo(str(report))
    if not report.passed:
        raise typer.Exit(1)
