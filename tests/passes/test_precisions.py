"""Each preset of another precision than int8, end to end on trained models: size and accuracy that the docs state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qir
from qir.ir import Tensor
from qir.pipeline import RemarkKind
from tests.passes.int8 import model

GOLDEN = Path(__file__).parents[2] / "golden_models"
CASES = [
    # preset, model, size at most, worst output in dB at least
    ("fp16", "cnn-digits", 0.52, 65),
    ("fp16-weights", "cnn-digits", 0.52, 70),
    ("bf16", "cnn-digits", 0.52, 50),
    ("codebook4", "cnn-digits", 0.22, 26),
    ("codebook8", "cnn-digits", 0.34, 45),
    ("log4", "cnn-digits", 0.20, 26),
    ("log8", "cnn-digits", 0.32, 26),
    ("fp8", "cnn-digits", 0.34, 25),
    ("int16", "cnn-digits", 0.37, 40),
    ("fp16", "adaptive-digits", 0.56, 60),
    ("codebook4", "gru-words", 0.36, 27),
    ("fp16", "lstm-gestures", 0.54, 70),
]


@pytest.mark.parametrize(("preset", "model", "size", "least"), CASES, ids=lambda value: str(value))
def test_preset(preset: str, model: str, size: float, least: float) -> None:
    folder = GOLDEN / model
    report = qir.quantize(
        folder / "model.onnx", calibration=folder / "calib.npz", golden=folder, preset=preset, latency_seconds=0
    )
    assert report.accuracy is not None and report.accuracy_plain is not None
    assert min(report.accuracy.sqnr_min_db, report.accuracy_plain.sqnr_min_db) > least
    assert report.size_after < size * report.size_before
    emulated = any(r.kind is RemarkKind.NOTE and r.message.startswith("emulated on ort-cpu") for r in report.remarks)
    assert emulated == (preset in ("fp16", "fp8", "int16"))
    assert ("emulated on ort-cpu" in str(report)) == emulated


@pytest.mark.parametrize("preset", ["fp16", "fp16-weights", "bf16", "codebook4", "codebook8", "log4", "log8"])
def test_without_samples(preset: str) -> None:
    folder = GOLDEN / "cnn-digits"
    report = qir.quantize(folder / "model.onnx", golden=folder, preset=preset, latency_seconds=0)
    assert report.sqnr_min_db is not None and report.sqnr_min_db > 15


def test_keep_float_reaches_every_preset() -> None:
    folder = GOLDEN / "cnn-digits"
    for preset in ("fp16", "codebook4", "log4"):
        report = qir.quantize(folder / "model.onnx", preset=preset, keep_float=["Gemm"], latency_seconds=0)
        assert any("--keep-float says so ('Gemm')" in remark.message for remark in report.remarks)


@pytest.mark.parametrize("preset", ["int8-weights", "int4-weights", "codebook4", "log4", "fp8", "int16"])
def test_half_precision_models_and_calls_of_functions_are_quantized(preset: str) -> None:
    text = """
    graph g(%x: f16[4,64]) -> (%y) {
      @w: f16[64,96] #1
      @v: f16[96,64] #2
      %h: f16[4,96] = com.microsoft.Block(%x, @w)
      %y: f16[4,64] = com.microsoft.Block(%h, @v)
    }
    function com.microsoft.Block(%a, %b) -> (%c) opset=[17] {
      %m = MatMul(%a, %b)
      %c = Relu(%m)
    }
    """
    samples = [{"x": np.random.default_rng(seed).normal(size=(4, 64)).astype(np.float16)} for seed in range(4)]
    report = qir.quantize(model(text), calibration=samples, preset=preset, latency_seconds=0)
    assert report.sqnr_min_db is not None and 10 < report.sqnr_min_db < 70


@pytest.mark.parametrize(
    ("preset", "size"), [("fp16", 0.3), ("fp16-weights", 0.3), ("bf16", 0.3), ("codebook4", 0.1), ("log4", 0.1)]
)
def test_an_embedding_and_its_transposed_copy_are_stored_once(preset: str, size: float) -> None:
    source = model(
        """
        graph g(%i: s64[1,3]) -> (%y) {
          @t: f32[1000,96] #41
          @h: f32[96,1000] #42
          %e: f32[1,3,96] = Gather(@t, %i)
          %y: f32[1,3,1000] = MatMul(%e, @h)
        }
        """
    )
    table, head = source.graph.initializers
    assert table.tensor is not None
    head.const = Tensor.of(table.tensor.numpy().T.copy())
    samples = [{"i": np.array([[seed, 7, 999]])} for seed in range(4)]
    report = qir.quantize(source, calibration=samples, preset=preset, latency_seconds=0)
    assert report.size_after < size * report.size_before
    assert report.sqnr_min_db is not None and report.sqnr_min_db > 12
