"""`qir quantize`: a float model in, a validated int8 model and a report out."""

from __future__ import annotations

import enum
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from qir.cli.options import JsonFlag, print_json, refuse_beside, write_text
from qir.errors import OptionError

__all__ = ["quantize"]


class Effort(enum.Enum):
    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"

    def of(self, preset: str) -> str:
        """The preset of this effort. Raises OptionError where there is none."""
        from qir.pipeline.registry import default_registry

        if self is Effort.BALANCED or preset.endswith(f"-{self.value}"):
            return preset
        name = f"{preset}-{self.value}"
        if name not in default_registry():
            raise OptionError(f"--effort {self.value}: there is no preset {name!r}; leave --effort out with {preset!r}")
        return name


def quantize(
    ctx: typer.Context,
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="A float ONNX file.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="Where to write the quantized model.")
    ] = None,
    calib: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Inputs to calibrate on: .npz (key = input, row = sample), a folder of sets or images, or random:64. "
            "Presets that look at no data do without.",
        ),
    ] = None,
    golden: Annotated[
        str | None,
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
        Path | None, typer.Option(metavar="FILE.toml", help="Choices per node; 'qir compare --write-recipe' makes one.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PASS.OPTION=VALUE",
            help="An option of a pass of the preset; 'qir passes PASS' shows them (may be repeated).",
        ),
    ] = None,
    target_size: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Weight-only presets: 4 bits, 8 bits or float per weight, so that the file has at most this share of "
            "the float file, e.g. 30%.",
        ),
    ] = None,
    write_recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Save what was decided for each node; --recipe gives it again."),
    ] = None,
    input_range: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LO:HI", help="What an input can hold, e.g. image=0:255 (may be repeated)."),
    ] = None,
    min_sqnr: Annotated[
        float | None, typer.Option(metavar="DB", help="Write nothing and exit 1 where an output is worse than this.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Write nothing and exit 1 where the task metric drops by more: by the labels of --golden, "
            "without labels the share of other decisions.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="accuracy, top5, precision, recall, f1, rmse, or FILE.py:FUNCTION(outputs, labels)."
        ),
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            metavar="LINE", help="How images become inputs: 'resize=256 crop=224 scale=1/255 mean=... layout=NCHW'."
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="folders", help="Labels of images: the sub-folders that they are in.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT", help="How quantization is spelled: qdq, qoperator or contrib; else the target's."
        ),
    ] = None,
    io_dtype: Annotated[
        list[str] | None,
        typer.Option(
            "--io-dtype",
            metavar="[NAME=]DTYPE",
            help="Integer inputs and outputs: uint8 for all, image=uint8 for one (may be repeated).",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the report as a page, .html or .md: errors, ranges, reasons."),
    ] = None,
    manifest: Annotated[
        bool, typer.Option(help="Write OUT.qir.json, which says what made the model and can make it again.")
    ] = True,
    replay: Annotated[
        Path | None,
        typer.Option(metavar="OUT.qir.json", help="Run a recorded run again, alone or with -o; exit 1 on other bytes."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Quantize a model and measure the result.

    Example: [bold]qir quantize model.onnx --calib samples.npz -o model.int8.onnx[/bold]

    Exit 0: written. 1: worse than --min-sqnr or --max-drop allow, nothing written. 2: bad input, nothing written.
    """
    from qir.api.manifest import manifest_path
    from qir.api.quantizing import quantize as run
    from qir.pipeline.progress import progress_bar
    from qir.report.quantization import RANDOM_WARNING

    if replay is not None:
        refuse_beside(ctx, "--replay", ("replay", "output"), "the manifest names model, data and options")
        _replay(replay, output)
        return
    if model is None or output is None:
        raise OptionError("give the MODEL to quantize and -o OUT, as in 'qir quantize m.onnx --calib s.npz -o q.onnx'")
    with progress_bar(sys.stderr) as (progress, bars):
        result = run(
            model,
            output,
            calibration=calib,
            golden=golden,
            preset=effort.of(preset),
            latency_seconds=0.5 if effort is Effort.FAST else 2.0,
            target=target,
            keep_float=keep_float or (),
            recipe=recipe,
            settings=[*(set_ or ()), *_size_setting(target_size, effort.of(preset))],
            input_range=input_range or (),
            min_sqnr=min_sqnr,
            max_drop=max_drop,
            metric=metric,
            preprocess=preprocess,
            labels=labels,
            format=format,
            io_dtype=io_dtype or (),
            manifest=manifest,
            report_to=report,
            progress=progress,
            instruments=bars,
        )
    recipe_written = write_recipe if result.placement is not None else None
    if recipe_written is not None and result.placement is not None:
        write_text(recipe_written, result.placement.to_toml())
    elif write_recipe is not None:
        typer.echo(f"warning: no {str(write_recipe)!r}: {result.preset!r} decides nothing for single nodes", err=True)
    if json:
        print_json(result.to_json())
    else:
        typer.echo(str(result).replace(RANDOM_WARNING, typer.style(RANDOM_WARNING, fg="red", bold=True)))
        beside = [str(manifest_path(output))] if manifest and result.output is not None else []
        beside += [str(path) for path in (report, recipe_written) if path is not None]
        if beside:
            typer.echo(f"  also      {', '.join(beside)}")
    if not result.passed:
        raise typer.Exit(1)


def _replay(manifest: Path, output: Path | None) -> None:
    """Make a model again, and compare its bytes with those of the recorded run."""
    from qir.api.manifest import read_manifest, replay_arguments
    from qir.api.quantizing import current_versions
    from qir.api.quantizing import quantize as run
    from qir.pipeline.progress import progress_bar

    recorded = read_manifest(manifest)
    arguments = replay_arguments(recorded)
    for name, version in recorded.versions.items():
        now = current_versions().get(name)
        if now != version:
            typer.echo(f"warning: the recorded run had {name} {version}, this one has {now}", err=True)
    with tempfile.TemporaryDirectory(prefix="qir-replay-") as folder:
        written = output or Path(folder) / next(iter(recorded.outputs))
        with progress_bar(sys.stderr) as (progress, bars):
            run(arguments.pop("model"), written, **arguments, latency_seconds=0, progress=progress, instruments=bars)
        changed = recorded.changed(written) if written.exists() else [written.name]
    if changed:
        typer.echo(f"other bytes than in the recorded run: {', '.join(changed)}")
        raise typer.Exit(1)
    typer.echo("the same bytes as in the recorded run" + (f", written to {str(output)!r}" if output else ""))


def _size_setting(share: str | None, preset: str) -> list[str]:
    """`--target-size` as a setting of the pass that heeds it; `30%` and `0.3` are the same."""
    from qir.pipeline import Pipeline

    if share is None:
        return []
    if "quantize-weights" not in (one.name for one in Pipeline.parse(preset).passes):
        raise OptionError(
            f"--target-size is for int4-weights: {preset!r} gives no weight 4 bits, 8 bits or float by size "
            "(codebook4 has --set cluster-weights.budget=0.14)"
        )
    try:
        number = float(share.removesuffix("%")) / (100 if share.endswith("%") else 1)
    except ValueError:
        raise OptionError(f"--target-size {share!r} is no share of the float file: write 30% or 0.3") from None
    return [f"quantize-weights.target-size={number!r}"]
