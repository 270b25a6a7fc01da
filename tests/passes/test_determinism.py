"""The same model gives the same bytes, in any process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import sys
from qir.cli import main
sys.exit(main(["opt", sys.argv[1], "--passes", "optimize,legalize,analyze-ranges", "-o", sys.argv[2]]))
"""


@pytest.mark.parametrize("name", ["detector-shapes", "encoder-moods"])
def test_optimizing_gives_the_same_bytes_whatever_the_hash_seed(name: str, tmp_path: Path) -> None:
    digests = set()
    for seed in ("0", "1", "2024"):
        target = tmp_path / f"{seed}.onnx"
        subprocess.run(
            [sys.executable, "-c", CHILD, str(ROOT / "golden_models" / name / "model.onnx"), str(target)],
            check=True,
            capture_output=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
    assert len(digests) == 1
