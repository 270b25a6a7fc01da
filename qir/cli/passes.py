"""`qir passes`: list the passes and presets, or describe one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qir.cli.options import JsonFlag, Plugins, print_json, registry_with
from qir.errors import OptionError
from qir.pipeline import Pipeline, Preset, Registry
from qir.pipeline.describe import PassDoc, describe_pass

__all__ = ["passes"]


def passes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A pass or preset.", show_default=False)] = None,
    plugin: Plugins = None,
    toml: Annotated[
        bool, typer.Option("--toml", help="Print the preset NAME as a pipeline file, to copy and edit.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """List all passes and presets, or show one: what it does, its options, before and after.

    Example: [bold]qir passes fuse[/bold]
    """
    registry = registry_with(plugin)
    if toml and name is None:
        raise OptionError("--toml prints one preset: name it, as in 'qir passes int8 --toml'")
    if name is None:
        _list(registry, json)
        return
    found = registry.get(name)
    if toml:
        typer.echo(Pipeline.parse(name, registry=registry).to_toml(), nl=False)
    elif isinstance(found, Preset):
        _show_preset(found, registry, json)
    else:
        doc = describe_pass(found, registry.source(name))
        if json:
            print_json(_pass_json(doc))
        else:
            typer.echo(_pass_text(doc))


def _list(registry: Registry, json: bool) -> None:
    rows = [(name, *_row(registry, name), registry.source(name)) for name in registry]
    if json:
        keys = ("name", "kind", "summary", "source")
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    width = max((len(row[0]) for row in rows), default=0)
    for name, kind, summary, source in rows:
        origin = "" if source == "qir" else f"  ({source})"
        typer.echo(f"{name:{width}}  {kind:8}  {summary}{origin}")


def _row(registry: Registry, name: str) -> tuple[str, str]:
    """Kind and summary. One plug-in that does not load must not hide the others, but it is shown."""
    try:
        found = registry.get(name)
        if isinstance(found, Preset):
            return "preset", found.doc.rstrip(".")
        return found.effect.value, describe_pass(found, "").summary
    except OptionError as error:
        return "broken", str(error)


def _show_preset(preset: Preset, registry: Registry, json: bool) -> None:
    expanded = str(Pipeline.parse(preset.text, registry=registry))
    if json:
        print_json({"name": preset.name, "kind": "preset", "doc": preset.doc, "text": preset.text, "passes": expanded})
    else:
        typer.echo(f"{preset.name}  (preset, from {registry.source(preset.name)})\n\n{preset.doc}\n\n{preset.text}")
        if expanded != preset.text:
            typer.echo(f"= {expanded}")


def _pass_text(doc: PassDoc) -> str:
    lines = [f"{doc.name}  ({doc.effect.value}, from {doc.source})", "", doc.text]
    if doc.options:
        lines += ["", "Options:"]
        for option in doc.options:
            default = "required" if option.default is None else f"default {option.default}"
            lines.append(f"  {option.name}: {option.type_text}, {default}")
            if option.text:
                lines.append(f"      {option.text}")
    return "\n".join(lines)


def _pass_json(doc: PassDoc) -> dict[str, Any]:
    return {
        "name": doc.name,
        "kind": doc.effect.value,
        "source": doc.source,
        "doc": doc.text,
        "before": doc.before,
        "after": doc.after,
        "options": [{"name": o.name, "type": o.type_text, "default": o.default, "doc": o.text} for o in doc.options],
    }
