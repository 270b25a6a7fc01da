"""A fixed number of mutated inputs for each reader: only QirErrors come out, in bounded time and memory.

``python -m tools.fuzz`` runs the same for longer.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

COUNTS = {
    "model-bytes": 1500,
    "model-messages": 1500,
    "optimize": 500,
    "lift": 200,
    "relift": 200,
    "dynamic": 200,
    "ir-text": 1500,
    "pipeline-text": 500,
    "recipe": 500,
    "recipe-applied": 500,
    "target-file": 500,
    "manifest": 500,
    "image": 500,
    "npz": 1500,
}


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first target leaves the models that it collected, for the others."""
    return tmp_path_factory.getbasetemp() / "qir-fuzz-seeds.zip"


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is Linux's")
@pytest.mark.parametrize("target", COUNTS)
def test_only_our_own_errors_come_out(target: str, seeds: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tools.fuzz", target, "--seed", "1"]
    command += ["--count", str(COUNTS[target]), "--keep", str(tmp_path), "--seeds", str(seeds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{COUNTS[target]} inputs" in done.stdout
    assert "0 accepted" not in done.stdout
