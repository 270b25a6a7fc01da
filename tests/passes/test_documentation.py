"""`qir passes NAME` tells what a user has to know of every built-in pass."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from qir.pipeline import Preset, Registry
from qir.pipeline.describe import describe_pass
from qir.pipeline.registry import default_registry

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
REGISTRY: Registry = default_registry()
PASSES = [name for name in PROJECT["entry-points"]["qir.passes"] if not isinstance(REGISTRY.get(name), Preset)]


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_is_described(name: str) -> None:
    found = REGISTRY.get(name)
    assert not isinstance(found, Preset)
    told = describe_pass(found, "qir")
    assert told.summary and told.before and told.after and told.before != told.after
    silent = [option.name for option in told.options if not option.text and f"``{option.name}" not in told.text]
    assert not silent, "options that nothing is said of"
