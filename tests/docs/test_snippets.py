"""The code in README and docs works when pasted; see ``tests.docs.snippets`` for what runs and how a page says so."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qir.api import benching, quantizing
from qir.cli import main
from qir.runtime.latency import compare_latency
from qir.targets import tuning
from tests.docs.snippets import blocks, commands, printed_for, run_page

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "golden_models" / "resnet-shapes"
PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md"))]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are not what is tested here, so they are taken briefly."""
    for room in (quantizing, benching):
        monkeypatch.setattr(room, "compare_latency", partial(_briefly, compare_latency))
    monkeypatch.setattr(tuning, "tune_costs", partial(_quickly, tuning.tune_costs))


def _briefly(measure: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return measure(*arguments, **{**options, "seconds": 0.05})


def _quickly(measure: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return measure(*arguments, **{**options, "quick": True})


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_works(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source, name in (("model.onnx", "model.onnx"), ("calib.npz", "samples.npz"), ("eval.npz", "check.npz")):
        shutil.copy(MODEL / source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    try:
        run_page((ROOT / page).read_text(encoding="utf-8"), page, main)
    finally:
        for name in set(sys.modules) - before:
            if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
                del sys.modules[name]


def test_the_pages_for_pass_authors_run_something() -> None:
    for page in ("write-a-pass", "pipelines", "when-a-pass-breaks-your-model"):
        found = list(blocks((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")))
        assert sum("no-run" not in block.marks for block in found) >= 5


PAGE = """
<!-- setup
import pathlib
-->
<!-- file: mine.txt -->
```
some text
```
```python
assert pathlib.Path("mine.txt").read_text() == "some text\\n"
```
<!-- raises: KeyError -->
```python
{}["absent"]
```
<!-- exit: 2 0 -->
```console
$ qir no-such   # what it says matters not
$ qir two \\
    words > out.txt
he...o
```
<!-- no-run: it would take long -->
```sh
qir quantize
```
```sh
pip install qir
qir two words
```
"""


NUMBERS = "  size  10.4 kB -> 2.0 kB\n  latency  0.2 -> 0.1 ms (2x faster)\n  logits  40.1 dB, max 0.3"


def test_numbers_need_to_be_near_and_times_may_be_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = "  size  10.1 kB -> 2.1 kB\n  latency  7 -> 9 ms (0.7x: SLOWER)\n...\n  logits  39 dB, max 0.31"
    page = f"<!-- numbers: x -->\n```console\n$ qir numbers\n{shown}\n```\n"
    assert run_page(page, "page", fake) == 1
    assert [printed for _, printed in printed_for(shown, NUMBERS)] == NUMBERS.splitlines()


def fake(arguments: list[str]) -> int:
    print({"two": "hello", "numbers": NUMBERS}.get(arguments[0], ""))
    return 0 if arguments[0] in ("two", "numbers") else 2


def test_a_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_page(PAGE, "page", fake) == 7
    assert Path("out.txt").read_text() == "hello\n"
    assert [block.line for block in blocks(PAGE)] == [2, 6, 9, 13, 17, 24, 27]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("<!-- words: x -->\n```console\n$ qir two words\nhello there 7\n```\n", "did not print there"),
        ("<!-- numbers: x -->\n```console\n$ qir numbers\n  size  10.0 kB -> 5 GB\n```\n", "printed nothing like"),
        ("<!-- numbers: x -->\n```console\n$ qir numbers\n  size  8.0 kB -> 2.0 kB\n```\n", "not '  size  8.0"),
        (
            "<!-- numbers: x -->\n```console\n$ qir numbers\n  logits  40 dB, max 0.3\n  size  10 kB -> 2 kB\n```\n",
            "like",
        ),
        ("```python\n1 / 0\n```\n", "division by zero"),
        ("<!-- raises: KeyError -->\n```python\n1\n```\n", "no KeyError came"),
        ("```sh\nqir no\n```\n", "exit code 2, documented 0"),
        ("<!-- exit: 1 -->\n```sh\nqir two words\n```\n", "exit code 0, documented 1"),
        ("```console\n$ qir two words\ngoodbye\n```\n", "printed"),
        ("<!-- no-run: -->\n```python\n1\n```\n", "say why"),
    ],
)
def test_what_is_wrong_on_a_page_is_found(
    wrong: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((AssertionError, ZeroDivisionError), match=complaint):
        run_page(wrong, "page", fake)


def test_a_mark_belongs_to_the_next_block_alone() -> None:
    text = "<!-- exit: 1 -->\n```sh\nqir a\n```\n```sh\nqir b\n```\n<!-- exit: 1 -->\nwords\n```sh\nqir c\n```\n"
    assert [dict(block.marks) for block in blocks(text)] == [{"exit": "1"}, {}, {}]
    assert [command.arguments for block in blocks(text) for command in commands(block)] == [["a"], ["b"], ["c"]]
