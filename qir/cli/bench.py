"""`qir bench`: which of two models is faster, and which nodes make the difference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qir.cli.options import JsonFlag, print_json

__all__ = ["bench"]


def bench(
    a: Annotated[Path, typer.Argument(metavar="A", help="A model, mostly the float one.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="The model to hold against it.", show_default=False)],
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Inputs: .npz, or a folder; made up if not given.")
    ] = None,
    dim: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SIZE", help="For made-up inputs, the size of an axis that has a name (may be repeated)."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Threads of each model.")] = 1,
    seconds: Annotated[float, typer.Option(metavar="S", min=0.01, help="How long to compare.")] = 4.0,
    json: JsonFlag = False,
) -> None:
    """Time two models side by side, interleaved in one process, and say which nodes became faster or slower.

    Example: [bold]qir bench model.onnx model.int8.onnx --data samples.npz[/bold]
    """
    from qir.api.benching import bench as run
    from qir.calibration.synthetic import parse_dims
    from qir.errors import OptionError

    if dim and data is not None:
        raise OptionError("--dim is for made-up inputs: samples of --data have their sizes")
    report = run(a, b, data, dims=parse_dims(dim or ()), threads=threads, seconds=seconds)
    if json:
        print_json(report.to_json())
    else:
        typer.echo(str(report))
