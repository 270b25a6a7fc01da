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


def issues(text: str) -> set[str]:
    """``owner/name#1, #2`` as ``{"owner/name#1", "owner/name#2"}``; of the owner nothing counts."""
    found, last = set(), ""
    for repository, number in re.findall(r"([\w./-]*)#(\d+)", text):
        last = repository.strip("/").rpartition("/")[2].lower() or last
        found.add(f"{last}#{number}")
    return found


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


def test_all_complaints_about_rewriting_are_answered() -> None:
    if not PAINS.is_file():
        pytest.skip("no ../shared/USER_PAINS.md beside the project")
    section = PAINS.read_text(encoding="utf-8").partition("Rewriting / IR\n")[2].partition("Diff / review")[0]
    wanted = issues(section)
    assert len(wanted) > 50
    assert wanted <= set().union(*(issues(row[0]) for row in rows()))
