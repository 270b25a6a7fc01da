"""What several commands share: options that mean one thing everywhere, and how results are written."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from qir.errors import OptionError, OutputError
from qir.pipeline import Registry, default_registry

__all__ = ["JsonFlag", "Plugins", "print_json", "refuse_beside", "registry_with", "write_text"]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE.py", help="Add the passes that a Python file defines (may be repeated)."),
]


def refuse_beside(ctx: typer.Context, option: str, allowed: Collection[str], instead: str) -> None:
    """Raise OptionError where something stands on the command line that ``option`` would ignore. ``allowed``: names of
    parameters; ``instead``: what to do."""
    ignored = [
        max(given.opts, key=len) if given.opts[0].startswith("-") else (given.name or "").upper()
        for given in ctx.command.params
        if given.name not in allowed and _on_command_line(ctx, given.name or "")
    ]
    if ignored:
        raise OptionError(f"{option} takes no {', '.join(ignored)}: {instead}")


def _on_command_line(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def print_json(content: Any) -> None:
    """One object, indented, keys in the order given; numbers that JSON lacks are an error of ours."""
    json.dump(content, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def registry_with(plugins: Iterable[Path] | None) -> Registry:
    registry = default_registry()
    for path in plugins or ():
        registry = registry.with_plugin(path)
    return registry


def write_text(path: Path, content: str) -> None:
    """A text file, whole or not at all. Raises OutputError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{str(path)!r} cannot be written ({error.strerror}): choose another place") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
