"""References written from the code: every pass and preset, every command, the Python interface."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from qir.cli import COMMANDS
from qir.pipeline import Preset, default_registry
from qir.pipeline.describe import PassDoc, describe_pass

__all__ = ["pages"]

ROOT = Path(__file__).resolve().parents[2]
PYTHON = {
    "Quantize, measure, compare": ("qir.api",),
    "Pipelines and passes": ("qir.pipeline.pipeline", "qir.pipeline.contract", "qir.pipeline.instruments"),
    "The IR": ("qir.ir.model", "qir.ir.graph", "qir.ir.node", "qir.ir.value", "qir.ir.tensor", "qir.ir.quant_types"),
    "Rewriting": ("qir.rewriting.rule", "qir.rewriting.patterns", "qir.rewriting.driver"),
    "Diff": ("qir.diff.changes", "qir.diff.weights", "qir.diff.gate"),
    "Other libraries": ("qir.interop.foreign", "qir.interop.graphs"),
    "Errors": ("qir.errors",),
}


def pages() -> dict[str, str]:
    """Page by path below `docs/`."""
    return {
        "reference/passes.md": "\n".join(_passes()),
        "reference/commands.md": "\n".join(_commands()),
        "reference/python.md": "\n".join(_python()),
    }


def _passes() -> Iterator[str]:
    registry = default_registry()
    found = {name: registry.get(name) for name in registry}
    yield "# Passes and presets\n\nWhat `qir passes` lists; `qir passes NAME` prints one of these entries.\n"
    yield "## Presets\n"
    for name, one in found.items():
        if isinstance(one, Preset):
            yield f"### {name}\n\n{_marked(one.doc)}\n\n```\n{one.text}\n```\n"
    yield "## Passes\n"
    for one in found.values():
        if not isinstance(one, Preset):
            yield from _pass(describe_pass(one, "qir"))


def _pass(doc: PassDoc) -> Iterator[str]:
    yield f"### {doc.name}\n\n_{doc.effect.value}_\n\n{_marked(doc.text)}\n"
    if doc.options:
        yield "| option | type | default | |\n|---|---|---|---|"
        for option in doc.options:
            cells = (
                f"`{option.name}`",
                option.type_text,
                f"`{option.default}`",
                " ".join(_marked(option.text).split()),
            )
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        yield ""


def _commands() -> Iterator[str]:
    yield "# Commands\n\nExit codes: 0 done, 1 a check failed, 2 bad input or usage (one line on stderr).\n"
    for name, what in COMMANDS.items():
        yield f"## qir {name}\n\n{what}\n\n```\n{_help(name)}\n```\n"


def _help(name: str) -> str:
    code = "import sys; from qir.cli import main; sys.exit(main())"
    environment = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "PATH": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, name, "--help"], capture_output=True, text=True, check=True, env=environment
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def _python() -> Iterator[str]:
    yield "# Python\n"
    for title, modules in PYTHON.items():
        yield f"## {title}\n"
        for module in modules:
            yield f"::: {module}\n    options:\n      show_root_heading: false\n      heading_level: 3\n"


def _marked(text: str) -> str:
    """Docstrings write code in double back quotes, blocks behind two colons: Markdown has single ones and fences."""
    lines: list[str] = []
    block = False
    for line in text.splitlines():
        if block and line.strip() and not line.startswith("    "):
            lines += ["```", ""]
            block = False
        if line.rstrip().endswith("::"):
            lines += [line.rstrip()[:-1], "", "```"]
            block = True
        else:
            lines.append(line.removeprefix("    ") if block else line)
    text = "\n".join([*lines, *(["```"] if block else [])])
    return re.sub(r"(?<!`)``(?!`)([^`]+)``(?!`)", r"`\1`", re.sub(r"```\n\n+", "```\n", text))
