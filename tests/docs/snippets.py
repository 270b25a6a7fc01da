"""The code in Markdown pages, and running it.

A page runs from top to bottom in a folder of its own that holds ``model.onnx`` (a small trained model),
``samples.npz`` (inputs) and ``check.npz`` (other inputs, with labels). ``python`` blocks share one namespace. Of
``console``, ``sh`` and unnamed blocks the lines that start with ``qir`` run, with or without ``$`` in front; in a
``console`` block what stands under a command has to be what it prints, where ``...`` stands for anything. Comments
right above a block, which no renderer shows, say what is special:

    <!-- no-run: WHY -->         the block is not run
    <!-- file: NAME -->          the block is the content of a file
    <!-- exit: 1 0 -->           exit codes of the commands in it, one after the other (0 where none is given)
    <!-- numbers: WHY -->        the lines that are shown come in their order, with numbers that are nearly the same;
                                 lines that tell times may have any
    <!-- words: WHY -->          what it prints needs to have the words that are shown, not their order nor the numbers
    <!-- raises: NAME -->        the python block ends with an exception of this type

``<!-- setup``, lines of Python, ``-->`` anywhere runs these lines, for what the page's reader has already.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Block", "Command", "blocks", "commands", "printed_for", "run_page"]

_FENCE = re.compile(r"^ {0,3}```(?P<language>\w*)\s*\n(?P<text>.*?)^ {0,3}```\s*$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--\s*(?P<key>no-run|file|exit|numbers|words|raises|setup)\b:?(?P<value>.*?)-->", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]{4,}")
_OF_THE_MACHINE = frozenset({"faster", "slower", "SLOWER", "float", "speed"})
"""Words that a slower or faster machine would not print."""

_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
_TIME = re.compile(r"\b(ms|us|latency|interval|rounds)\b|^  \S+ +\d+\.\d +\d+\.\d +[-+]\d+\.\d ")
_NEARLY = 0.2
"""How far a number may be from the one that is shown, as a share: other processors round a maximum elsewhere."""

_RUN = frozenset({"python", "console", "sh", "shell", "bash", ""})


@dataclass(frozen=True)
class Block:
    """A piece of code of a page; ``line`` is where it starts."""

    language: str
    text: str
    line: int
    marks: Mapping[str, str]


@dataclass(frozen=True)
class Command:
    """A call of ``qir`` and, in a console block, what it is said to print."""

    arguments: list[str]
    redirected: str | None
    expected: str | None


def blocks(page: str) -> Iterator[Block]:
    """Fenced blocks and setup comments in their order."""
    marks: dict[str, str] = {}
    end_of_marks = 0
    found = sorted([*_FENCE.finditer(page), *_COMMENT.finditer(page)], key=lambda match: match.start())
    inside = 0
    for match in found:
        if match.start() < inside:
            continue  # a comment inside of a block
        line = page.count("\n", 0, match.start()) + 1
        if match.re is _COMMENT:
            if match["key"] == "setup":
                yield Block("python", match["value"], line, {})
                continue
            marks[match["key"]] = match["value"].strip()
            end_of_marks = match.end()
            continue
        if page[end_of_marks : match.start()].strip():
            marks = {}  # they belong to something else
        yield Block(match["language"], match["text"], line, marks)
        marks, inside = {}, match.end()


def commands(block: Block) -> Iterator[Command]:
    """The calls of ``qir`` in a block."""
    console = block.language == "console"
    lines = block.text.replace("\\\n", " ").splitlines()
    index = 0
    while index < len(lines):
        match = re.match(r"^(\$ )?(qir .*)$", lines[index])
        index += 1
        if match is None:
            continue
        printed: list[str] = []
        while console and index < len(lines) and not lines[index].startswith("$ "):
            printed.append(lines[index])
            index += 1
        words = shlex.split(match[2], comments=True)
        target = words[words.index(">") + 1] if ">" in words else None
        words = words[: words.index(">")] if target is not None else words
        expected = "\n".join(printed) + "\n" if console and any(printed) else None
        yield Command(words[1:], target, expected)


def printed_for(shown: str, printed: str) -> Iterator[tuple[str, str | None]]:
    """Every line that is shown with the printed line that it stands for, which has the same words between its numbers
    and comes after the one before; None where there is none. ``...`` stands for anything."""
    left = printed.splitlines()
    for line in shown.splitlines():
        if not line.strip() or "..." in line:
            continue
        same = next((i for i, one in enumerate(left) if _words_between(one) == _words_between(line)), None)
        yield line, None if same is None else left[same]
        if same is not None:
            left = left[same + 1 :]


def _words_between(line: str) -> tuple[str, ...]:
    """What stands between the numbers; of a line that tells times only how it begins."""
    if _TIME.search(line):
        return (_NUMBER.sub("#", line.split()[0]),)
    return tuple(_NUMBER.sub("#", line).split())


def _numbers_agree(shown: str, printed: str) -> bool:
    if _TIME.search(shown):
        return True
    pairs = zip(_NUMBER.findall(shown), _NUMBER.findall(printed), strict=True)
    return all(math.isclose(float(a.replace(",", "")), float(b.replace(",", "")), rel_tol=_NEARLY) for a, b in pairs)


Heard = Callable[[Block, Command, str], None]


def run_page(text: str, name: str, main: Callable[[list[str]], int], heard: Heard | None = None) -> int:
    """Run what stands in a page in the current folder; how many blocks that were. Raises AssertionError.

    ``heard`` is told what each command printed for which something is shown, and then nothing is held against the page.
    """
    scope: dict[str, object] = {"__name__": "__main__"}
    ran = 0
    sys.path.insert(0, os.getcwd())
    try:
        for block in blocks(text):
            if "no-run" in block.marks:
                assert block.marks["no-run"], f"{name}:{block.line}: say why it is not run"
                continue
            if "file" in block.marks:
                Path(block.marks["file"]).write_text(block.text)
                ran += 1
            elif block.language == "python":
                _run_python(block, name, scope)
                ran += 1
            elif block.language in _RUN:
                ran += _run_commands(block, name, main, heard)
    finally:
        sys.path.remove(os.getcwd())
    return ran


def _run_python(block: Block, name: str, scope: dict[str, object]) -> None:
    # Lines above, so that a traceback shows the page's line.
    code = compile("\n" * block.line + block.text, name, "exec")
    wanted = block.marks.get("raises", "")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, scope)
    except Exception as error:
        if type(error).__name__ != wanted:
            error.add_note(f"in {name}, line {block.line}")
            raise
    else:
        assert not wanted, f"{name}:{block.line}: no {wanted} came"


def _run_commands(block: Block, name: str, main: Callable[[list[str]], int], heard: Heard | None) -> int:
    codes = block.marks.get("exit", "").split()
    ran = 0
    for index, command in enumerate(commands(block)):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(command.arguments)
        label = f"{name}:{block.line}: qir {shlex.join(command.arguments)}"
        wanted = int(codes[index]) if index < len(codes) else 0
        assert code == wanted, f"{label}: exit code {code}, documented {wanted}\n{out.getvalue()}{err.getvalue()}"
        if command.redirected is not None:
            Path(command.redirected).write_text(out.getvalue())
        if command.expected is not None:
            got = err.getvalue() + out.getvalue()
            if heard is not None:
                heard(block, command, got)
                continue
            if "numbers" in block.marks:
                for shown, printed in printed_for(command.expected, got):
                    assert printed is not None, f"{label} printed nothing like {shown!r}, but\n{got}"
                    assert _numbers_agree(shown, printed), f"{label} printed {printed!r}, not {shown!r}"
                ran += 1
                continue
            if "words" in block.marks:
                missing = set(_WORD.findall(command.expected)) - set(_WORD.findall(got)) - _OF_THE_MACHINE
                assert not missing, f"{label} did not print {', '.join(sorted(missing))}, but\n{got}"
                ran += 1
                continue
            pattern = ".*".join(map(re.escape, command.expected.rstrip("\n").split("...")))
            assert re.fullmatch(pattern, got.rstrip("\n"), re.DOTALL), f"{label} printed\n{got}"
        ran += 1
    return ran
