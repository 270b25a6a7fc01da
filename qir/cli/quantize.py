"""`qir quantize`: a float model in, a validated int8 model and a report out."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Annotated

import typer

from qir.cli.options import JsonFlag, print_json

__all__ = ["quantize"]


class Effort(enum.Enum):
    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"

    @property
    def suffix(self) -> str:
        """What a preset of this effort has behind its name."""
        return "" if self is Effort.BALANCED else f"-{self.value}"


def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A float ONNX file.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Where to write the quantized model.")],
    calib: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Inputs to calibrate on: .npz (key = input, row = sample), or a folder. "
            "Presets that look at no data do without.",
        ),
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Samples to measure on, with outputs and labels where they are known."),
    ] = None,
    preset: Annotated[str, typer.Option(metavar="NAME", help="Pipeline to run; 'qir passes' lists them.")] = "int8",
    effort: Annotated[
        Effort, typer.Option(help="How long to search for accuracy: the presets NAME-fast, NAME, NAME-best.")
    ] = Effort.BALANCED,
    target: Annotated[str, typer.Option(metavar="NAME", help="Runtime to compile for.")] = "ort-cpu",
    keep_float: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Nodes that stay float: a name, a glob, an operator (may be repeated)."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Choices per node: [[node]] match=... precision=...")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PASS.OPTION=VALUE",
            help="An option of a pass of the preset; 'qir passes PASS' shows them (may be repeated).",
        ),
    ] = None,
    min_sqnr: Annotated[
        float | None, typer.Option(metavar="DB", help="Write nothing and exit 1 where an output is worse than this.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Quantize a model and measure the result.

    Example: [bold]qir quantize model.onnx --calib samples.npz -o model.int8.onnx[/bold]

    Exit 0: written. 1: worse than --min-sqnr, nothing written. 2: bad input, nothing written.
    """
    from qir.api.quantizing import quantize as run
    from qir.pipeline.progress import progress_bar

    with progress_bar(sys.stderr) as (progress, bars):
        report = run(
            model,
            output,
            calibration=calib,
            golden=golden,
            preset=preset + effort.suffix,
            target=target,
            keep_float=keep_float or (),
            recipe=recipe,
            settings=set_ or (),
            min_sqnr=min_sqnr,
            progress=progress,
            instruments=bars,
        )
    if json:
        print_json(report.to_json())
    else:
        typer.echo(str(report))
    if not report.passed:
        raise typer.Exit(1)
