"""Text in, pass, text out: the fixture ``check_pass``; ``pytest --update`` rewrites the expected side in the file.

::

    def test_relu_of_relu(check_pass: CheckPass) -> None:
        check_pass(
            "graph (%x: f32[4]) -> (%y) { %a = Relu(%x)  %y = Relu(%a) }",
            "canonicalize",
            "",  # pytest --update fills it in
        )
"""

from __future__ import annotations

import ast
import difflib
import inspect
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import pytest

from qir.ir.parser import parse_model
from qir.ir.printer import default_source, print_model
from qir.pipeline.contract import Pass
from qir.pipeline.pipeline import Pipeline

__all__ = ["CheckPass"]


class CheckPass:
    """Runs passes over IR text and compares with the expected text; layout does not count."""

    def __init__(self, updating: bool) -> None:
        self._updating = updating
        self._rewrites: dict[Path, list[tuple[int, int, str]]] = {}

    def __call__(
        self,
        before: str,
        passes: str | Pass | Sequence[Pass | str],
        after: str,
        *,
        opset: int = 17,
        types: bool = True,
        sources: bool = False,
    ) -> None:
        """``before``, ``after``: models, the ``model`` line may be missing; ``passes``: their text or objects.

        The model is verified after each pass. ``types`` and ``sources`` say whether types of results and provenance
        are compared.
        """
        pipeline = Pipeline([passes] if isinstance(passes, str | Pass) else passes)
        result = pipeline.run(parse_model(_with_header(before, opset)))
        found = _shown(print_model(result.model), opset, types, sources)
        wanted = _shown(_with_header(after, opset), opset, types, sources) if after.strip() else ""
        if found == wanted:
            return
        if not self._updating:
            sides = wanted.split("\n"), found.split("\n")
            lines = "\n".join(difflib.unified_diff(*sides, "expected", str(pipeline), n=99, lineterm=""))
            pytest.fail(f"the text differs (pytest --update writes what was found):\n{lines}", pytrace=False)
        caller = inspect.currentframe()
        assert caller is not None and caller.f_back is not None
        self._rewrite(caller.f_back, found)

    def _rewrite(self, caller: FrameType, found: str) -> None:
        path = Path(caller.f_code.co_filename)
        literal = _expected_literal(path.read_text(encoding="utf-8"), caller.f_lineno)
        if literal is None:
            pytest.fail(f"{path.name}:{caller.f_lineno}: the expected text is no literal here, update it by hand")
        start, end, indent = literal
        body = textwrap.indent(found, " " * indent)
        text = f'r"""\n{body}{" " * indent}"""' if "\\" in body else f'"""\n{body}{" " * indent}"""'
        self._rewrites.setdefault(path, []).append((start, end, text))

    def write(self) -> None:
        """Put the collected texts into the files, the last place first, so that the earlier stay where they are."""
        for path, rewrites in self._rewrites.items():
            source = path.read_bytes()
            for start, end, text in sorted(set(rewrites), reverse=True):
                source = source[:start] + text.encode() + source[end:]
            path.write_bytes(source)


def _with_header(text: str, opset: int) -> str:
    return text if text.lstrip().startswith("model") else f"model opset=[{opset}]\n{text}"


def _shown(text: str, opset: int, types: bool, sources: bool) -> str:
    model = parse_model(text)
    for node in model.walk():
        if not sources:
            node.provenance = default_source(node)
        if not types:
            for value in node.outputs:
                value.type = None
    return print_model(model).removeprefix(f"model opset=[{opset}]\n")


def _expected_literal(source: str, line: int) -> tuple[int, int, int] | None:
    """Byte offsets of the third argument (or ``after=``) of the ``check_pass`` call at a line, and an indent."""
    starts = [0]
    for text in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(text))
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or not call.lineno <= line <= (call.end_lineno or call.lineno):
            continue
        if not isinstance(call.func, ast.Name) or call.func.id != "check_pass":
            continue
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        after = call.args[2] if len(call.args) > 2 else named.get("after")
        if isinstance(after, ast.Constant) and isinstance(after.value, str):
            assert after.end_lineno is not None and after.end_col_offset is not None
            start = starts[after.lineno - 1] + after.col_offset
            end = starts[after.end_lineno - 1] + after.end_col_offset
            first = source.split("\n")[call.lineno - 1]
            return start, end, len(first) - len(first.lstrip()) + 4
    return None
