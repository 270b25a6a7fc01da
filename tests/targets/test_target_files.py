"""Targets in files: costs and options over those of a built-in one; bad files are named with the place."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from qir.errors import OptionError
from qir.pipeline.registry import load_target, target_names
from qir.targets import Target
from qir.targets.cost import CostTable
from qir.targets.file import target_text
from qir.targets.tuning import STEPS, tune_costs


def written(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_a_file_stands_where_a_name_can(tmp_path: Path) -> None:
    text = """
    [target]
    base = "ort-cpu"
    [cost]
    macs_per_us = [1000, 2000]
    node_us = 7
    [cost.element_ns]
    Add = [1, 2]
    [session_options]
    "session.x64quantprecision" = "1"
    """
    target = load_target(written(tmp_path, text))
    base = load_target("ort-cpu")
    assert target.name == "mine" and target.rules == base.rules
    assert target.cost.macs_per_us == (1000, 2000) and target.cost.node_us == 7
    assert target.cost.element_ns["Add"] == (1, 2) and target.cost.element_ns["Mul"] == base.cost.element_ns["Mul"]
    assert target.session_options == {"session.x64quantprecision": "1"}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    cost = CostTable(node_us=0.25, macs_per_us=(12345.0, 6789.0))
    text = target_text("ort-cpu", "here", cost, {"processor": 'a "quoted" one'})
    target = load_target(written(tmp_path, text))
    assert target.name == "here"
    assert target.cost.node_us == 0.25
    assert target.cost.macs_per_us == pytest.approx((12345, 6789), rel=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have base"),
        ("[target]\nbase = 'ort-cpuu'", "did you mean 'ort-cpu'"),
        ("[target]\nbase = 'ort-cpu'\n[cots]\n", "did you mean 'cost'"),
        ("[target]\nbase = 'ort-cpu'\n[cost]\nnode = 1", "no 'node'"),
        ("[target]\nbase = 'ort-cpu'\n[cost]\nnode_us = 'fast'", "node_us must be a number"),
        ("[target]\nbase = 'ort-cpu'\n[cost]\nmacs_per_us = 3", "must be 2 numbers"),
        ("[target]\nbase = 'ort-cpu'\n[session_options]\nx = 1", "write numbers in quotes"),
        ("[target", "is no TOML"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load_target(written(tmp_path, text))


def test_a_missing_file() -> None:
    with pytest.raises(OptionError, match="cannot be read"):
        load_target("nowhere.toml")


def test_every_built_in_target_says_what_it_is() -> None:
    for name in target_names():
        target = load_target(name)
        assert isinstance(target, Target) and target.name == name
        assert target.title and target.runtime_versions and target.notes
        assert target.constraints.sources, "constraints without a source are opinions"
        assert target.activation in target.constraints.activations
        assert target.weight in target.constraints.weights
        assert target.format in target.constraints.formats


def test_costs_are_measured() -> None:
    steps: list[str] = []
    cost = tune_costs(CostTable(), quick=True, step=steps.append)
    assert len(steps) == STEPS
    numbers = [value for entry in asdict(cost).values() for value in _flat(entry)]
    assert all(0 <= value < 1e7 for value in numbers)
    assert cost.macs_per_us != CostTable().macs_per_us


def _flat(entry: object) -> list[float]:
    if isinstance(entry, dict):
        return [number for value in entry.values() for number in value]
    return list(entry) if isinstance(entry, tuple) else [float(entry)]  # type: ignore[arg-type]
