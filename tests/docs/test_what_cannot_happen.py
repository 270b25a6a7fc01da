"""docs/what-cannot-happen.md names tests that are there, in every row."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "what-cannot-happen.md"
PAINS = ROOT.parent / "shared" / "USER_PAINS.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
ROW = re.compile(r"^\| (?!complaint \|)([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def rows() -> list[tuple[str, str, str]]:
    return ROW.findall(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("complaint", "tests"), [(row[0], row[2]) for row in rows()])
def test_every_test_that_is_named_exists(complaint: str, tests: str) -> None:
    named = NAMED.findall(tests)
    assert named, f"no test is named for {complaint}"
    assert not re.sub(r"[ ,]|<br>", "", NAMED.sub("", tests)), f"something else than tests stands in {tests!r}"
    for path, name in named:
        assert (ROOT / path).is_file(), f"{path} is not there"
        assert name in names_in(path), f"{path} has no {name}"
        assert name.startswith("test_")


def test_every_row_of_the_page_is_read() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    tables = [line for line in lines if line.startswith("| ") and not line.startswith("| complaint |")]
    assert len(tables) == len(rows()) >= 27
    assert len({row[0] for row in rows()}) == len(rows())


SECTIONS = (
    "Memory in calibration",
    "Slow calibration / search",
    "Wrong calibration / broken calibrators",
    "Accuracy drop & how to debug",
    "Different result per machine",
    "Slower than float / placement",
    "Shape inference / preprocess",
    ">2 GB / external data",
    "Subgraphs",
    "Shared / tied weights & biases",
    "Relu / zero-point / ranges",
    "Axis / type mix-ups",
    "Names / exclude lists / opset",
    "fp16 in",
    "Determinism",
    "Diff/review",
    "Rewriting / IR",
    "Diff / review",
)
"""Of the collection of complaints, those whose every issue has a row."""


@pytest.mark.parametrize("section", SECTIONS)
def test_every_complaint_of_a_section_is_answered(section: str) -> None:
    if not PAINS.is_file():
        pytest.skip("no ../shared/USER_PAINS.md beside the project")
    text = PAINS.read_text(encoding="utf-8")
    start = re.search(rf"^(\*\*)?{re.escape(section)}.*$", text, re.MULTILINE)
    assert start is not None
    lines = re.match(r"(?:\s*^\d+\..*$)+", text[start.end() :], re.MULTILINE)
    assert lines is not None
    wanted = set(re.findall(r"#(\d+)", lines[0]))
    answered = {number for row in rows() for number in re.findall(r"#(\d+)", row[0])}
    assert wanted and wanted <= answered, f"no row for {sorted(wanted - answered)}"
