"""Weights in a data file go through load, optimize and save without being copied into memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tools.bench.large import make_model

ROOT = Path(__file__).resolve().parents[2]
MEGABYTES = 64
CHILD = """
import json, sys
from pathlib import Path
from qir.codegen import save
from qir.frontend import load
from qir.pipeline import Pipeline
from tools.bench.large import Peak
folder = Path(sys.argv[1])
steps = Pipeline.parse("optimize")
with Peak() as memory:
    model = load(folder / "large.onnx")
    steps.run(model, in_place=True)
    save(model, folder / "out.onnx")
print(json.dumps([memory.start, memory.peak]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="RssAnon is read from /proc, which only Linux has")
def test_weights_stay_out_of_anonymous_memory(tmp_path: Path) -> None:
    make_model(tmp_path, MEGABYTES << 20, size=1024)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    before, peak = json.loads(done.stdout)
    # What is there grows with the graph and with the libraries that are imported, not with the weights.
    assert peak - before < MEGABYTES / 2
    assert (tmp_path / "out.onnx.data").stat().st_size >= MEGABYTES << 20
    ops = [node.op_type for node in onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.node]
    assert "LayerNormalization" in ops and "Transpose" not in ops and "Identity" not in ops
