"""References written from the code: every pass and preset, every command, every target, the Python interface."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from qir.cli import COMMANDS
from qir.pipeline import Preset, default_registry
from qir.pipeline.describe import PassDoc, describe_pass
from tools.docs.targets import target_page

__all__ = ["calls", "pages"]

ROOT = Path(__file__).resolve().parents[2]
PYTHON = {
    "quantize": ("Quantize, measure, compare", ("qir.api",)),
    "pipelines": (
        "Pipelines and passes",
        ("qir.pipeline.pipeline", "qir.pipeline.contract", "qir.pipeline.instruments"),
    ),
    "ir": (
        "The IR",
        ("qir.ir.model", "qir.ir.graph", "qir.ir.node", "qir.ir.value", "qir.ir.tensor", "qir.ir.quant_types"),
    ),
    "rewriting": ("Rewriting", ("qir.rewriting.rule", "qir.rewriting.patterns", "qir.rewriting.driver")),
    "diff": ("Diff", ("qir.diff.changes", "qir.diff.weights", "qir.diff.gate")),
    "interop": ("Other libraries", ("qir.interop.foreign", "qir.interop.graphs")),
    "errors": ("Errors", ("qir.errors",)),
}
"""File name -> title and modules."""


def pages() -> dict[str, str]:
    """Page by path below `docs/`."""
    return {
        "reference/passes.md": "\n".join(_passes()),
        "reference/commands.md": "\n".join(_commands()),
        "reference/targets.md": "\n".join(target_page()),
        **{
            f"reference/python/{slug}.md": "\n".join(_python(title, modules))
            for slug, (title, modules) in PYTHON.items()
        },
    }


def _passes() -> Iterator[str]:
    registry = default_registry()
    found = {name: registry.get(name) for name in registry}
    yield "# Passes and presets\n\nWhat `qir passes` lists; `qir passes NAME` prints one of these entries.\n"
    yield "## Presets\n"
    for name, one in found.items():
        if isinstance(one, Preset):
            text = _wrapped(one.text)
            yield f"### {name}\n\n{_marked(one.doc)}\n\n```\n{text}\n```\n"
    yield "## Passes\n"
    for one in found.values():
        if not isinstance(one, Preset):
            yield from _pass(describe_pass(one, "qir"))


def _wrapped(text: str) -> str:
    """Pipeline text in lines that are seen whole; it parses as before."""
    lines = textwrap.wrap(text.replace(",", ", "), 110, break_on_hyphens=False, break_long_words=False)
    return "\n  ".join(line.replace(", ", ",") for line in lines)


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


def calls() -> dict[tuple[str, ...], str]:
    """Every command and sub-command, ``("golden", "record")``, and what it does."""
    found: dict[tuple[str, ...], str] = {}
    for name, what in COMMANDS.items():
        found[(name,)] = what
        group = getattr(import_module(f"qir.cli.{name.replace('-', '_')}"), "app", None)
        for one in group.registered_commands if group is not None else ():
            found[(name, one.name or one.callback.__name__)] = (one.callback.__doc__ or "").strip().partition("\n")[0]
    return found


def _commands() -> Iterator[str]:
    yield "# Commands\n\nExit codes: 0 done, 1 a check failed, 2 bad input or usage (one line on stderr).\n"
    found = calls()
    for (words, what), text in zip(found.items(), _help(list(found)), strict=True):
        heading = "#" * (1 + len(words))
        yield f"{heading} qir {' '.join(words)}\n\n{_marked(what)}\n\n```\n{text}\n```\n"


_PRINT_HELP = """
import json, sys
from qir.cli import main
for words in json.loads(sys.argv[1]):
    if main([*words, "--help"]):
        sys.exit(f"{words}: no help")
    print(chr(0), end="")
"""


def _help(commands: Sequence[Sequence[str]]) -> list[str]:
    """What ``--help`` prints, on a terminal of 100 columns."""
    environment = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "PATH": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", _PRINT_HELP, json.dumps([list(words) for words in commands])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    shown = done.stdout.split("\0")[: len(commands)]
    return ["\n".join(line.rstrip() for line in text.strip().splitlines()) for text in shown]


def _python(title: str, modules: Sequence[str]) -> Iterator[str]:
    yield f"# {title}\n"
    for module in modules:
        yield f"::: {module}\n    options:\n      show_root_heading: false\n      heading_level: 2\n"


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
