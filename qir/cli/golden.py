"""`qir golden`: record golden outputs of a model, and show what a golden folder holds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import typer

from qir.cli.options import JsonFlag, print_json
from qir.errors import DataError, OptionError

__all__ = ["app"]

app = typer.Typer(
    help="Record golden outputs of a model, or show what a golden folder holds.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@app.command()
def record(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The float ONNX file.", show_default=False)],
    data: Annotated[Path, typer.Option(metavar="FILE", help="Inputs: .npz (key = input, row = sample), or a folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="The folder to make.")],
    samples: Annotated[int | None, typer.Option(metavar="N", help="Only the first N samples.")] = None,
    json: JsonFlag = False,
) -> None:
    """Run a model on samples and write its outputs as a golden folder, in ONNX's own layout.

    Example: [bold]qir golden record model.onnx --data samples.npz -o golden/ --samples 8[/bold]
    """
    if samples is not None and samples < 1:
        raise OptionError(f"--samples {samples}: at least 1")
    from qir.calibration.data import open_data
    from qir.runtime.session import PLAIN, OrtRunner
    from qir.validation.golden import record as write

    # Optimisations off: what the operators' definitions say, whichever kernels a runtime picks.
    runner = OrtRunner(str(model), PLAIN)
    source = open_data(data, runner.inputs)
    if samples is not None:
        source = source.take(samples)
    count = write(output, runner, source, model=model, info=_info(model, data))
    if json:
        print_json({"folder": str(output), "samples": count, "outputs": [spec.name for spec in runner.outputs]})
    else:
        typer.echo(f"wrote {output}: {count} samples, outputs {', '.join(spec.name for spec in runner.outputs)}")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A golden folder.", show_default=False)],
    json: JsonFlag = False,
) -> None:
    """Show what a golden folder holds: its samples, their inputs and outputs, and its golden.toml.

    Example: [bold]qir golden show golden/[/bold]
    """
    facts = _facts(folder)
    if json:
        print_json(facts)
        return
    model = "with its model" if facts["model"] else "no model.onnx"
    typer.echo(f"{folder}: {facts['samples']} samples, {model}")
    for kind in ("inputs", "outputs"):
        for value in facts[kind]:
            typer.echo(f"  {kind[:-1]:6} {value['name']}: {value['type']}")
        if not facts[kind]:
            typer.echo(f"  no {kind} are stored")
    if facts["info"]:
        from qir.validation.golden import INFO_FILE, to_toml

        typer.echo(f"\n{INFO_FILE}\n")
        typer.echo(to_toml(facts["info"]), nl=False)


def _facts(folder: Path) -> dict[str, Any]:
    from qir.calibration.pb import find_sets, read_set
    from qir.validation.golden import MODEL_FILE, read_info

    if not folder.is_dir():
        raise DataError(f"{folder}: {'is a file, not a golden folder' if folder.exists() else 'no such folder'}")
    sets = find_sets(folder)
    if not sets:
        raise DataError(f"{folder}: holds no test_data_set_N folder: 'qir golden record' makes one")
    return {
        "folder": str(folder),
        "model": MODEL_FILE if (folder / MODEL_FILE).is_file() else None,
        "samples": len(sets),
        **{f"{kind}s": _interface(read_set(sets[0], kind, ())) for kind in ("input", "output")},
        "info": read_info(folder),
    }


def _interface(arrays: dict[str, Any]) -> list[dict[str, str]]:
    """Names and types as the first sample has them."""
    from qir.runtime.specs import format_shape

    return [
        {
            "name": name,
            "type": f"{array.dtype}{format_shape(array.shape)}" if hasattr(array, "dtype") else type(array).__name__,
        }
        for name, array in arrays.items()
    ]


def _info(model: Path, data: Path) -> dict[str, Any]:
    """golden.toml of a recording: what it was made from and with."""
    from importlib.metadata import version

    from qir import __version__

    return {
        "name": model.stem,
        "record": {
            "generator": f"qir {__version__} golden record",
            "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
            "data": data.name,
            "onnxruntime": version("onnxruntime"),
            "numpy": version("numpy"),
        },
    }
