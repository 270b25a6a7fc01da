"""`qir targets`: list the targets, show one, measure its costs on this machine, check a model against it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from qir.cli.options import JsonFlag, print_json, write_text
from qir.errors import OptionError

__all__ = ["app"]


class _Group(TyperGroup):
    """`qir targets NAME` is short for `qir targets show NAME`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            args = ["show", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Group, add_completion=False, rich_markup_mode="rich", invoke_without_command=True,
    subcommand_metavar="[NAME | COMMAND]",
)  # fmt: skip
Name = Annotated[str, typer.Argument(metavar="NAME", help="A target, or a target file (*.toml).", show_default=False)]


@app.callback()
def targets(ctx: typer.Context, json: JsonFlag = False) -> None:
    """List the runtimes that qir compiles for, or show one by its name.

    Example: [bold]qir targets tensorrt[/bold]
    """
    if ctx.invoked_subcommand is not None:
        return
    from qir.pipeline.registry import load_target, target_names

    rows = []
    for name, source in target_names().items():
        try:
            rows.append((name, load_target(name), source))
        except OptionError as error:  # one broken plug-in does not hide the others
            print(f"warning: {error}", file=sys.stderr)
    if json:
        keys = ("name", "title", "runtime_versions", "runs_here", "source")
        found = [(name, one.title, one.runtime_versions, one.runs_here, source) for name, one, source in rows]
        print_json([dict(zip(keys, row, strict=True)) for row in found])
        return
    width = max(len(name) for name, _, _ in rows)
    versions = max(len(one.runtime_versions) for _, one, _ in rows)
    for name, one, source in rows:
        origin = "" if source == "qir" else f"  ({source})"
        typer.echo(f"{name:{width}}  {one.runtime_versions:{versions}}  {one.title}{origin}")


@app.command("show")
def show(name: Name, json: JsonFlag = False) -> None:
    """Show what a target runs in integers, with which types, its traps, its costs and session options.

    Example: [bold]qir targets ort-cpu[/bold]
    """
    from qir.pipeline.registry import load_target
    from qir.targets.describe import target_json, target_lines

    target = load_target(name)
    if json:
        print_json(target_json(target))
    else:
        typer.echo("\n".join(target_lines(target)))


@app.command("tune")
def tune(
    name: Name,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.toml", help="Where to write it; else to stdout.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds, less certain.")] = False,
    json: JsonFlag = False,
) -> None:
    """Measure the cost table of a target on this machine; use the file as a target: --target FILE.toml.

    Example: [bold]qir targets tune ort-cpu -o server.toml && qir quantize model.onnx --target server.toml ...[/bold]
    """
    from dataclasses import asdict

    from qir.errors import UnsupportedError
    from qir.pipeline.progress import progress_bar
    from qir.pipeline.registry import load_target
    from qir.targets.describe import machine
    from qir.targets.file import target_text
    from qir.targets.tuning import STEPS, tune_costs

    target = load_target(name)
    if not target.runs_here:
        raise UnsupportedError(f"{target.name} does not run on this machine, so its costs cannot be measured here")
    with progress_bar(sys.stderr) as (progress, _):
        progress.start("measuring", STEPS)
        cost = tune_costs(target.cost, quick=quick, step=lambda what: progress.advance())
        progress.finish()
    text = target_text(name, output.stem if output is not None else f"{target.name}-here", cost, machine())
    if output is not None:
        write_text(output, text)
    if json:
        print_json({"base": name, "cost": asdict(cost), "measured": machine(), "output": output and str(output)})
    elif output is None:
        typer.echo(text, nl=False)
    else:
        typer.echo(f"wrote {output}: use it with --target {output}")


@app.command("lint")
def lint(
    name: Name,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A quantized ONNX file.", show_default=False)],
    json: JsonFlag = False,
) -> None:
    """Check a quantized model, whoever made it, against a target's constraints, naming each node.

    Example: [bold]qir targets lint tensorrt model.int8.onnx[/bold]

    Exit 0: nothing found. 1: violations. 2: bad input.
    """
    from qir.frontend import load
    from qir.ops.shape_inference import infer
    from qir.pipeline.registry import load_target
    from qir.targets.lint import lint as run

    target, loaded = load_target(name), load(model)
    infer(loaded)
    found = run(loaded, target)
    if json:
        print_json(
            {
                "model": str(model),
                "target": target.name,
                "passed": not found,
                "findings": [
                    {"node": one.node, "op": one.op, "rule": one.rule, "message": one.message, "sources": one.sources}
                    for one in found
                ],
                "sources": target.constraints.sources,
            }
        )
    else:
        for one in found:
            typer.echo(str(one))
        typer.echo(f"{model} for {target.name}: {len(found)} violation{'s' * (len(found) != 1)}")
        if found:
            typer.echo("see " + "\n    ".join(target.constraints.sources))
    if found:
        raise typer.Exit(1)
