"""`qir bisect`: find the pass, and the rewrite in it, that breaks a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qir.cli.options import JsonFlag, Plugins, print_json, registry_with
from qir.cli.proof import Exactness, GoldenSamples, LossyThreshold
from qir.errors import OptionError
from qir.pipeline import Pipeline

__all__ = ["bisect"]


def bisect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.", show_default=False)],
    passes: Annotated[str, typer.Option(metavar="TEXT", help="The pipeline that breaks it.")],
    golden: Annotated[Path, typer.Option(metavar="FILE", help="Inputs to run: .npz, or a folder.")],
    plugin: Plugins = None,
    calib: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Inputs to calibrate on: .npz, or a folder.")
    ] = None,
    target: Annotated[str, typer.Option(metavar="NAME", help="Runtime to compile for.")] = "ort-cpu",
    golden_samples: GoldenSamples = 16,
    exact_tolerance: Exactness = 1e-4,
    lossy_threshold: LossyThreshold = 5.0,
    json: JsonFlag = False,
) -> None:
    """Find the pass, and the rewrite in it, after which a model no longer computes what it did.

    Example: [bold]qir bisect model.onnx --passes 'optimize,my-pass' --plugin my_pass.py --golden samples.npz[/bold]

    The model runs O(log n) times for n passes and rewrites. Exit 0: no pass breaks it. 1: one does, its name, rule and
    source node are printed. 2: bad input.
    """
    if golden_samples < 1:
        raise OptionError(f"--golden-samples {golden_samples}: at least 1")
    steps = Pipeline.parse(passes, registry=registry_with(plugin))

    from qir.calibration.data import open_data
    from qir.calibration.specs import input_specs
    from qir.frontend import load
    from qir.pipeline.progress import progress_bar
    from qir.validation.bisect import bisect as search
    from qir.validation.numerics import Tolerance

    loaded = load(model)
    with progress_bar(sys.stderr) as (progress, _):
        report = search(
            loaded,
            steps,
            golden,
            calibration=None if calib is None else open_data(calib, input_specs(loaded)),
            target=target,
            tolerance=Tolerance(exact=exact_tolerance, lossy_db=lossy_threshold),
            samples=golden_samples,
            progress=progress,
        )
    if json:
        print_json({"model": str(model), **report.to_json()})
    else:
        typer.echo(str(report))
    if report.culprit is not None:
        raise typer.Exit(1)
