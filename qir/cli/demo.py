"""`qir demo`: quantize a bundled golden model and watch each stage, or take it away to try other commands on."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from qir.cli.options import JsonFlag, print_json, refuse_beside
from qir.ir import Model
from qir.pipeline import Instrument, Pass, Verdict
from qir.pipeline.instruments import PassRun

__all__ = ["demo"]

DEFAULT = "resnet-shapes"
STAGES = {
    "widen-float16": "widened",
    "canonicalize": "cleaned",
    "convert-opset": "converted",
    "fold-constants": "folded",
    "fuse": "fused",
    "legalize": "legalized",
    "analyze-ranges": "ranges analysed",
    "calibrate": "calibrated",
    "tune": "tuned",
    "quantize": "quantized",
    "partition": "divided",
    "rescue": "checked",
    "mixed-precision": "mixed precision",
    "round-weights": "rounded",
    "correct-bias": "corrected",
    "place": "placed",
    "emit-qdq": "emitted",
}
"""What a pass has done to the model, in a word; a pass that is not listed appears under its own name."""

_ALWAYS = frozenset({"canonicalize", "fuse", "analyze-ranges", "calibrate", "quantize", "place", "emit-qdq"})
"""Stages with a line even where there was nothing to do."""

FILES = {"model.onnx": "model.onnx", "calib.npz": "samples.npz", "eval.npz": "check.npz"}
"""What ``--copy`` copies, and the names that it gets: those that the documentation uses."""

_WIDTH = max(map(len, STAGES.values()))


def demo(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help=f"A golden model; {DEFAULT} if not given.", show_default=False),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the golden models and leave.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FOLDER", help="Where to write the model; a temporary folder if not given."
        ),
    ] = None,
    copy: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Only copy the float model and its data there: model.onnx, samples.npz (to calibrate on), "
            "check.npz (to measure on, with labels).",
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Quantize a golden model that comes with qir, stage by stage, and print the report.

    Example: [bold]qir demo lstm-gestures -o here/[/bold]

    Example: [bold]qir demo resnet-shapes --copy .[/bold]
    """
    from qir import golden_models

    if list_:
        refuse_beside(ctx, "--list", ("list_", "json"), "it shows all models")
        _list(json)
        return
    folder = golden_models.path(name or DEFAULT)
    if copy is not None:
        refuse_beside(ctx, "--copy", ("name", "copy", "json"), "nothing is quantized")
        _copy(folder, _folder(copy), json)
        return
    target = _folder(output)

    from qir.api.quantizing import quantize
    from qir.pipeline.progress import progress_bar

    with progress_bar(sys.stderr) as (progress, bars):
        report = quantize(
            folder / "model.onnx",
            target / f"{folder.name}.int8.onnx",
            calibration=folder / "calib.npz",
            golden=folder / "eval.npz",
            latency_seconds=1.0,
            progress=progress,
            instruments=bars if json else [*bars, Stages(folder.name)],
        )
    if json:
        print_json(report.to_json())
        return
    assert report.accuracy is not None, "golden models have samples"
    samples = report.accuracy.samples
    typer.echo(f"{'validated':{_WIDTH}}  on {samples} samples that were not calibrated on, optimisations on and off\n")
    typer.echo(str(report).replace(f"{folder}{os.sep}", ""))
    typer.echo(f"\n'qir demo {folder.name} --copy .' puts this model and its samples here, to try other commands on;")
    typer.echo("your own: 'qir quantize model.onnx --calib samples.npz -o model.int8.onnx'")


class Stages(Instrument):
    """A line on stdout for each stage, as soon as it is done."""

    label = "stages"

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: dict[str, str] = {}

    def begin(self, model: Model, passes: tuple[Pass, ...]) -> None:
        nodes = sum(1 for _ in model.walk())
        parameters = sum(value.tensor.size for value in model.graph.initializers if value.tensor is not None)
        _say("lowered", f"{self._name}: {nodes} nodes, {parameters:,} parameters, opset {model.opset()}")

    def after_pass(self, run: PassRun) -> Verdict | None:
        name = run.pass_.name
        said = _in_words(run.result.statistics)
        if said or run.changed or (name in _ALWAYS and name not in self._seen):
            said = said or ("changed" if run.changed else "nothing to do")
            if self._seen.get(name) != said:
                _say(STAGES.get(name, name), said)
            self._seen[name] = said
        return None


def _in_words(statistics: Mapping[str, int | float]) -> str:
    """What a pass has counted, without what it found none of; pairs of numbers as ``before -> after``."""
    left = {name: count for name, count in statistics.items() if count}
    words = []
    for before, after, unit in (("sqnr_db_before", "sqnr_db", "dB"), ("us float", "us", "us by the cost table")):
        if after in left:
            old, new = left.pop(before, None), left.pop(after)
            words.append(f"{new:.4g} {unit}" if old in (None, new) else f"{old:.4g} -> {new:.4g} {unit}")
    return ", ".join([*(f"{name.rpartition('::')[2]} {_number(count)}" for name, count in left.items()), *words])


def _say(stage: str, what: str) -> None:
    typer.echo(f"{stage:{_WIDTH}}  {what}")
    sys.stdout.flush()


def _number(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _list(json: bool) -> None:
    from qir import golden_models
    from qir.validation.golden import read_info

    rows: list[dict[str, Any]] = []
    for name in golden_models.names():
        info = read_info(golden_models.path(name))
        rows.append({"name": name, "description": info.get("description", ""), "default": name == DEFAULT})
    if json:
        print_json(rows)
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        typer.echo(f"{row['name']:{width}}  {row['description']}")


def _copy(folder: Path, target: Path, json: bool) -> None:
    """Raises OutputError where one of the files is there already, with other content, or cannot be written."""
    from qir.errors import OutputError

    contents = {target / name: (folder / source).read_bytes() for source, name in FILES.items()}
    for path, content in contents.items():
        if path.exists() and (not path.is_file() or path.read_bytes() != content):
            raise OutputError(f"{str(path)!r} exists already and is something else; give --copy another folder")
    for path, content in contents.items():
        try:
            path.write_bytes(content)
        except OSError as error:
            raise OutputError(f"{str(path)!r} cannot be written: {error.strerror}") from error
    if json:
        print_json({"files": [str(path) for path in contents]})
        return
    typer.echo(f"{folder.name}: wrote {', '.join(map(str, contents))}")


def _folder(asked: Path | None) -> Path:
    """Where the result goes. Raises OutputError where that folder cannot be made."""
    if asked is None:
        return Path(tempfile.mkdtemp(prefix="qir-demo-"))
    try:
        asked.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        from qir.errors import OutputError

        raise OutputError(f"{str(asked)!r} cannot be made a folder: {error.strerror}") from error
    return asked
