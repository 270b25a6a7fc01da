"""What users of other tools met, end to end; docs/what-cannot-happen.md says whose complaints these are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import qir
from qir.cli import main
from qir.codegen import to_bytes
from qir.ir.parser import parse_model
from qir.pipeline import Pipeline
from qir.runtime.session import OrtRunner
from qir.validation.metrics import sqnr_db

DETECTOR = """
model ir=8 opset=[13]
graph (%image: f32[1,3,16,16], %kept: s64[1]) -> (%chosen) {
  @w: f32[4,3,3,3] #11
  @v: f32[2,4,1,1] #12
  @to_boxes: s64[3] = [1, -1, 4]
  @to_scores: s64[3] = [1, 1, -1]
  %a: f32[1,4,16,16] = Conv(%image, @w) {pads = [1, 1, 1, 1]} name="stem"
  %b: f32[1,4,16,16] = Relu(%a) name="act"
  %c: f32[1,2,16,16] = Conv(%b, @v) name="head"
  %boxes: f32[1,128,4] = Reshape(%c, @to_boxes) name="boxes"
  %d: f32[1,1,16,16] = ReduceMax(%b) {axes = [1], keepdims = 1} name="best"
  %e: f32[1,1,8,16] = MaxPool(%d) {kernel_shape = [2, 1], strides = [2, 1]} name="pool"
  %scores: f32[1,1,128] = Reshape(%e, @to_scores) name="scores"
  %chosen: s64[M,3] = NonMaxSuppression(%boxes, %scores, %kept) name="suppress"
}
"""


@pytest.mark.filterwarnings("ignore")  # its weights are stubs
def test_a_detector_with_its_suppression_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    qir.save(parse_model(DETECTOR), tmp_path / "m.onnx")
    draw = np.random.default_rng(1)
    images = draw.normal(size=(8, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "s.npz", image=images[:, None], kept=np.full((8, 1), 5))
    command = ["quantize", str(tmp_path / "m.onnx"), "--calib", str(tmp_path / "s.npz"), "--effort", "fast"]
    assert main([*command, "-o", str(tmp_path / "q.onnx")]) == 0
    assert "shape" not in capsys.readouterr().err
    operators = [node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node]
    assert operators.count("NonMaxSuppression") == 1
    feed = {"image": images[:1], "kept": np.array([5])}
    assert OrtRunner(str(tmp_path / "q.onnx")).run(feed)["chosen"].shape == (5, 3)


LINEAR = """
model ir=10 opset=[21]
graph (%x: f32[1,256]) -> (%y) {
  @w: f32[256,256] #21
  %y: f32[1,256] = MatMul(%x, @w) name="head"
}
"""


@pytest.mark.filterwarnings("ignore")
def test_rounding_inside_of_a_kernel_is_in_the_reported_numbers(tmp_path: Path) -> None:
    """MatMulNBits at accuracy level 4 rounds its input to 8 bits: one large channel drowns the others."""
    model = parse_model(LINEAR)
    made = Pipeline.parse("quantize-weights{bits=8},emit-weight-only{form=contrib}").run(model).model
    (node,) = (node for node in made.walk() if node.op == "MatMulNBits")
    assert node.get("accuracy_level") == 4, "level 0 computes in float, more than twice as slow at decoding"
    rows = np.random.default_rng(2).normal(size=(8, 1, 256)).astype(np.float32)
    rows[..., 7] *= 300
    qir.save(model, tmp_path / "m.onnx")
    report = qir.quantize(
        tmp_path / "m.onnx",
        tmp_path / "q.onnx",
        golden={"x": rows},
        preset="int8-weights",
        settings=["quantize-weights.min-size=1", "emit-weight-only.form=contrib"],
        latency_seconds=0,
    )
    floats, codes = OrtRunner(to_bytes(model)), OrtRunner(str(tmp_path / "q.onnx"))
    wanted, got = ([runner.run({"x": row})["y"] for row in rows] for runner in (floats, codes))
    assert report.sqnr_db == pytest.approx(sqnr_db(wanted, got), abs=0.01)
    assert report.accuracy is not None and report.accuracy.agreement is not None
    same = np.mean([np.argmax(a) == np.argmax(b) for a, b in zip(wanted, got, strict=True)])
    assert report.accuracy.agreement == pytest.approx(same)
