"""The numbers of tools/bench/precision.py: shares of bytes, paired drops, rows taken over."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qir.codegen import to_bytes
from qir.pipeline import Pipeline
from tests.passes.int8 import model
from tools.bench import precision
from tools.bench.zoo_scores import ZooScores

TEXT = """graph g(%x: f32[4,64]) -> (%y) {
  @w: f32[64,32] #1 @b: f32[32] #2
  %y: f32[4,32] = Gemm(%x, @w, @b)
}"""


def zoo(folder: Path, metric: str, **data: Any) -> Any:
    (folder / "net").mkdir()
    np.savez(folder / "net" / "data.npz", eval_idx=np.arange(6), **data)
    return SimpleNamespace(__file__=str(folder / "load.py"), meta=lambda name: {"metric": metric})


@pytest.mark.parametrize(("options", "bits"), [("bits=4", 4 + (32 + 4) / 32), ("bits=8 symmetric", 8 + 32 / 32)])
def test_codes_and_scales_count_and_a_float_bias_does_not(tmp_path: Path, options: str, bits: float) -> None:
    source = model(TEXT, opset=21)
    made = (
        Pipeline.parse(f"quantize-weights{{min-size=1 {options}}},emit-weight-only{{form=contrib}}").run(source).model
    )
    (tmp_path / "made.onnx").write_bytes(to_bytes(made))
    assert precision.coded_share(to_bytes(source), tmp_path / "made.onnx") == pytest.approx(bits / 32)
    (tmp_path / "same.onnx").write_bytes(to_bytes(source))
    assert precision.coded_share(to_bytes(source), tmp_path / "same.onnx") is None


def test_hits_and_their_paired_drop(tmp_path: Path) -> None:
    scores = ZooScores(zoo(tmp_path, "top1"), "net", [0, 1, 0, 1, 0, 1])
    right = [np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])] * 3
    wanted, got = scores.of(right), scores.of([right[0]] * 6)
    assert wanted.tolist() == [1] * 6 and got.tolist() == [1, 0] * 3
    drop, low, high = scores.drop(wanted, got)
    assert drop == 0.5 and 0 <= low < drop < high <= 1
    assert scores.drop(wanted, wanted) == (0, 0, 0)


def test_a_loss_in_nats_is_worse_when_it_grows(tmp_path: Path) -> None:
    scores = ZooScores(zoo(tmp_path, "mean next-token NLL", targets=np.zeros((6, 3), np.int64)), "net", None)
    even, sure = np.zeros((1, 3, 2)), np.tile([5.0, 0.0], (1, 3, 1))
    loss = scores.of([even] * 6)
    np.testing.assert_allclose(loss, np.log(2))
    assert scores.drop(scores.of([sure] * 6), loss)[0] > 0.5


def test_a_rank_correlation_is_of_pairs(tmp_path: Path) -> None:
    scores = ZooScores(zoo(tmp_path, "spearman", sts_score=np.array([0.1, 0.5, 0.9])), "net", None)
    ends = [np.array([[1.0, 0.0]])] * 6
    ends[1], ends[3] = np.array([[0.0, 1.0]]), np.array([[0.5, 0.5]])
    assert scores.value(scores.of(ends)) == pytest.approx(1.0)
    assert scores.output == "sentence_embedding"


def test_rows_of_a_run_before_come_back_without_their_times(tmp_path: Path) -> None:
    row = precision.PrecisionRow("net", "fp16", coded=0.5, samples=7, drop=(0.01, 0.0, 0.02))
    (tmp_path / "rows.json").write_text(json.dumps([{**asdict(row), "latency": {"ratio": 1.0}}]))
    (again,) = precision.earlier(tmp_path / "rows.json")
    assert again.latency is None and again.coded == 0.5
    assert "| 1.0 [0.0, 2.0] |" in again.line()
    assert precision.earlier(tmp_path / "none.json") == []
