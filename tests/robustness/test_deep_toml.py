"""TOML that nests thousands of arrays is an error of the file, not of the program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qir.errors import QirError
from qir.pipeline import Pipeline
from qir.pipeline.registry import load_target
from qir.quant.recipe import Recipe
from qir.validation.golden import open_golden


def _golden(path: Path) -> None:
    folder = path.parent / "golden"
    folder.mkdir()
    path.rename(folder / "golden.toml")
    open_golden(folder, [], [])


@pytest.mark.parametrize("read", [Recipe.load, Pipeline.from_toml, lambda path: load_target(str(path)), _golden])
def test_deep_nesting_is_one_line(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "deep.toml"
    path.write_text("a = " + "[" * 20_000)
    with pytest.raises(QirError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
