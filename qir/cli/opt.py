"""`qir opt`: run passes over a model and say what each did."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qir.cli.options import JsonFlag, Plugins, print_json, refuse_beside, registry_with
from qir.cli.proof import (
    CHECKING,
    Exactness,
    Given,
    GoldenSamples,
    LossyThreshold,
    OnFailure,
    numeric_check,
    replay,
    reproducing,
)
from qir.errors import OptionError
from qir.pipeline import Effect, Instrument, Pipeline, PipelineResult, RemarkFilter

if TYPE_CHECKING:
    from qir.calibration.data import DataSource
    from qir.ir import Model
    from qir.pipeline import Registry
    from qir.validation.numeric_check import NumericCheck

__all__ = ["opt"]

PASSES = "What runs"
PRINTING = "What is shown"


def opt(
    ctx: typer.Context,
    model: Annotated[Path | None, typer.Argument(metavar="MODEL", help="An ONNX file.", show_default=False)] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT", help="Where to write the result; nowhere if not given."),
    ] = None,
    passes: Annotated[
        str | None,
        typer.Option(metavar="TEXT", rich_help_panel=PASSES, help="Pipeline text, e.g. 'optimize,my-pass{level=2}'."),
    ] = None,
    pipeline: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", rich_help_panel=PASSES, help="A pipeline file instead of text.")
    ] = None,
    plugin: Plugins = None,
    calib: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=PASSES, help="Inputs to calibrate on: .npz, or a folder."),
    ] = None,
    target: Annotated[
        str, typer.Option(metavar="NAME", rich_help_panel=PASSES, help="Runtime to compile for.")
    ] = "ort-cpu",
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", rich_help_panel=PASSES, help="Check the IR after each pass.")
    ] = True,
    verify_numerics: Annotated[
        bool,
        typer.Option("--verify-numerics", rich_help_panel=CHECKING, help="Run the model after each pass on --golden."),
    ] = False,
    golden: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=CHECKING, help="Inputs to run: .npz, or a folder."),
    ] = None,
    golden_samples: GoldenSamples = 16,
    on_failure: Annotated[
        OnFailure,
        typer.Option(rich_help_panel=CHECKING, help="Stop at a pass that breaks the model, or undo it and go on."),
    ] = OnFailure.STOP,
    exact_tolerance: Exactness = 1e-4,
    lossy_threshold: LossyThreshold = 5.0,
    reproducer: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=CHECKING,
            help="Where a crash or a failed check leaves what it takes to see it again; by default "
            "./qir-reproducer-PASS.",
        ),
    ] = None,
    reproduce: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", rich_help_panel=CHECKING, help="Run a reproducer again, in place of MODEL."),
    ] = None,
    external_data: Annotated[
        bool | None,
        typer.Option(
            "--external-data/--no-external-data",
            help="Write weights to OUT.data; by default as in MODEL, or where one file would pass 2 GB.",
            show_default=False,
        ),
    ] = None,
    print_ir_after_all: Annotated[
        bool, typer.Option("--print-ir-after-all", rich_help_panel=PRINTING, help="IR text after each pass, on stderr.")
    ] = False,
    print_ir_changed: Annotated[
        bool, typer.Option("--print-ir-changed", rich_help_panel=PRINTING, help="The same for passes that changed it.")
    ] = False,
    print_ir_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", rich_help_panel=PRINTING, help="IR text after changes, a file a pass.")
    ] = None,
    diff_each: Annotated[
        bool, typer.Option("--diff-each", rich_help_panel=PRINTING, help="What each pass changed, on stderr.")
    ] = False,
    print_pipeline: Annotated[
        bool,
        typer.Option("--print-pipeline", rich_help_panel=PRINTING, help="Print the pipeline as TOML and leave."),
    ] = False,
    timing: Annotated[bool, typer.Option("--timing", rich_help_panel=PRINTING, help="Where the time went.")] = False,
    remarks: Annotated[
        str | None,
        typer.Option(
            metavar="FILTER",
            rich_help_panel=PRINTING,
            help="What was done, or why not: 'all', 'missed', 'pass=fuse subject=layer3/*'.",
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Run passes over a model, in order, and write the result.

    Example: [bold]qir opt model.onnx --passes 'canonicalize,fuse' --remarks all -o optimized.onnx[/bold]
    """
    if reproduce is not None:
        refuse_beside(ctx, "--reproduce", ("reproduce", "json"), "its folder holds model, passes and options")
        _reproduce(reproduce, json)
        return
    if model is None:
        raise OptionError("give the MODEL to run passes over, or --reproduce FOLDER")
    steps = _pipeline(passes, pipeline, registry_with(plugin))
    if print_pipeline:
        typer.echo(steps.to_toml(), nl=False)
        return
    shown = RemarkFilter.parse(remarks or "")

    from qir.codegen import save
    from qir.frontend import load
    from qir.pipeline.printing import IrFolder, IrPrinter
    from qir.pipeline.progress import progress_bar
    from qir.pipeline.registry import load_target
    from qir.validation.reproducer import FailureWatch

    load_target(target)  # a name that nobody knows is a mistake, whether a pass asks for it or not
    watch = FailureWatch()
    check = None
    if verify_numerics:
        check = numeric_check(golden, golden_samples, on_failure.value, exact_tolerance, lossy_threshold)
    elif golden is not None:
        raise OptionError("--golden gives inputs for --verify-numerics: add that")
    instruments: list[Instrument] = []
    if print_ir_after_all or print_ir_changed:
        instruments.append(IrPrinter(_to_stderr, only_changed=not print_ir_after_all))
    if print_ir_dir is not None:
        instruments.append(IrFolder(print_ir_dir))
    if diff_each:
        from qir.diff.each import DiffEach

        instruments.append(DiffEach(lambda name, diff: _to_stderr(f"-- what {name} changed\n{diff.to_text()}\n")))
    with progress_bar(sys.stderr) as (progress, bars):
        loaded = load(model)
        reference = None if all(pass_.effect is Effect.EXACT for pass_ in steps) else loaded.clone()
        given = Given(loaded, _calibration(calib, loaded), target, verify, reference, plugin or [])
        with reproducing(reproducer, given, watch, check):
            result = steps.run(
                loaded,
                calibration=given.calibration,
                target=target,
                reference=reference,
                instruments=[*instruments, *([] if check is None else [check]), watch, *bars],
                verify=verify,
                progress=progress,
                in_place=True,
            )
    for failure in [] if check is None else check.failures:
        print(f"warning: pass {failure.pass_name!r} was undone, it broke the model: {failure.fault}", file=sys.stderr)
    if output is not None:
        save(result.model, output, external_data=external_data)
    if json:
        print_json({"model": str(model), "output": None if output is None else str(output), **result.to_json()})
    else:
        _print(result, output, check, timing=timing, remarks=None if remarks is None else shown)


def _reproduce(folder: Path, json: bool) -> None:
    result = replay(folder)
    if json:
        print_json({"reproduced": False, **result.to_json()})
    else:
        typer.echo(f"{result}\nthe failure of {str(folder)!r} does not occur any more")


def _pipeline(text: str | None, file: Path | None, registry: Registry) -> Pipeline:
    if (text is None) == (file is None):
        raise OptionError("give either --passes TEXT or --pipeline FILE.toml; 'qir passes' lists what there is")
    if text is not None:
        return Pipeline.parse(text, registry=registry)
    assert file is not None
    return Pipeline.from_toml(file, registry=registry)


def _calibration(path: Path | None, model: Model) -> DataSource | None:
    if path is None:
        return None
    from qir.calibration.data import open_data
    from qir.calibration.specs import input_specs

    return open_data(path, input_specs(model))


def _to_stderr(text: str) -> None:
    # Looked up at each call: while a progress bar is on the screen, sys.stderr puts text above it.
    sys.stderr.write(text)


def _print(
    result: PipelineResult,
    output: Path | None,
    check: NumericCheck | None,
    *,
    timing: bool,
    remarks: RemarkFilter | None,
) -> None:
    from qir.pipeline.remarks import format_remarks
    from qir.pipeline.timing import format_timing

    if text := str(result):
        typer.echo(text)
    if remarks is not None and (lines := format_remarks(remarks.select(result.remarks))):
        typer.echo(lines)
    if timing:
        typer.echo(format_timing(result.timing))
    if check is not None:
        typer.echo(str(check))
    if output is not None:
        typer.echo(f"wrote {output}")
