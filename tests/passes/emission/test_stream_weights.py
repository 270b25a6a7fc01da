"""Weights quantized from file to file: the same model as in memory, and interrupted work goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qir
from qir.codegen import save
from qir.codegen.spool import Spool, discard_spool
from qir.errors import OptionError
from qir.ir import DType, Model, Tensor
from qir.passes.emission import stream_weights
from qir.pipeline import Pipeline
from qir.runtime.session import OrtRunner
from tests.passes.int8 import model

TEXT = """
graph g(%i: s64[2,3]) -> (%y) {
  @t: f32[48,64] #41
  @u: f32[64,50] #42
  @v: f32[50,48] #43
  %e: f32[2,3,64] = Gather(@t, %i)
  %a: f32[2,3,50] = MatMul(%e, @u)
  %b: f32[2,3,50] = Relu(%a)
  %y: f32[2,3,48] = MatMul(%b, @v)
}
"""


@pytest.fixture
def source(tmp_path: Path) -> Model:
    """A model whose weights lie in a data file."""
    save(model(TEXT, opset=21), tmp_path / "m.onnx", external_data=True)
    return qir.load(tmp_path / "m.onnx")


def stream(source: Model, file: Path, form: str = "contrib", weights: str = "quantize-weights") -> Any:
    return Pipeline([stream_weights.StreamWeights(file=str(file), form=form, weights=weights)]).run(source)  # type: ignore[arg-type]


def run(path: Path) -> np.ndarray:
    indices = np.arange(6).reshape(2, 3)
    return np.asarray(OrtRunner(str(path)).run({"i": indices})["y"])


@pytest.mark.parametrize("form", ["contrib", "qdq", "fold", "auto"])
@pytest.mark.parametrize("options", ["", "{bits=8 symmetric}", "{rounding=nearest block-size=16}", "{target-size=0.8}"])
def test_the_result_is_that_of_the_passes_in_memory(source: Model, tmp_path: Path, form: str, options: str) -> None:
    streamed = stream(source, tmp_path / "s", form, f"quantize-weights{options}")
    save(streamed.model, tmp_path / "a.onnx")
    whole = Pipeline.parse(f"quantize-weights{options},emit-weight-only{{form={form}}}").run(source)
    save(whole.model, tmp_path / "b.onnx")
    said = [
        [(one.kind, one.subject, one.message) for one in run.remarks if one.pass_name == "quantize-weights"]
        for run in (streamed, whole)
    ]
    assert said[0] == said[1] != []
    np.testing.assert_array_equal(run(tmp_path / "a.onnx"), run(tmp_path / "b.onnx"))


class Killed(Exception):
    pass


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("form", ["contrib", "fold"])
def test_interrupted_work_goes_on(
    source: Model, tmp_path: Path, steps: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = Spool.end
    count = 0

    def end(self: Spool, notes: Any) -> None:
        nonlocal count
        if count == steps:
            raise Killed
        count += 1
        ended(self, notes)

    monkeypatch.setattr(Spool, "end", end)
    with pytest.raises(Killed):
        stream(source, tmp_path / "s", form)
    monkeypatch.setattr(Spool, "end", ended)
    with open(tmp_path / "s.journal", "a") as file:
        file.write('{"key": "cut sho')  # as a kill in the middle of a write leaves it
    resumed = stream(source, tmp_path / "s", form)
    assert resumed.passes[-1].statistics.get("resumed", 0) == steps
    save(resumed.model, tmp_path / "a.onnx")
    save(stream(source, tmp_path / "other", form).model, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx.data").read_bytes() == (tmp_path / "b.onnx.data").read_bytes()
    np.testing.assert_array_equal(run(tmp_path / "a.onnx"), run(tmp_path / "b.onnx"))


def test_nothing_is_taken_over_from_other_work_or_damaged_data(source: Model, tmp_path: Path) -> None:
    file = tmp_path / "s"
    stream(source, file)
    assert stream(source, file).passes[-1].statistics["resumed"] == 3
    assert "resumed" not in stream(source, file, weights="quantize-weights{bits=8}").passes[-1].statistics
    stream(source, file)
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(bytes(data))
    assert stream(source, file).passes[-1].statistics["resumed"] == 2


def test_quantize_streams_what_is_large_and_cleans_up(
    source: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qir.api import quantizing
    from qir.api.streaming import streams

    def loads(*_: object) -> None:
        raise AssertionError("the runtime would hold all weights")

    monkeypatch.setattr(quantizing, "streams", lambda pipeline, model: streams(pipeline, model, 1))
    monkeypatch.setattr(quantizing, "audit", loads)
    report = qir.quantize(tmp_path / "m.onnx", tmp_path / "out.onnx", preset="int4-weights")
    assert "stream-weights" in report.compilation.pipeline
    assert "not loaded in the runtime" in str(report)
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.onnx", "out.onnx.data"]
    assert run(tmp_path / "out.onnx").shape == (2, 3, 48)


@pytest.mark.parametrize("preset", ["fp16-weights", "bf16", "fp16"])
def test_16_bits_stream_to_the_same_bytes(
    source: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    from qir.api import quantizing
    from qir.api.streaming import streams

    qir.quantize(tmp_path / "m.onnx", tmp_path / "whole.onnx", preset=preset)
    monkeypatch.setattr(quantizing, "streams", lambda pipeline, model: streams(pipeline, model, 1))
    report = qir.quantize(tmp_path / "m.onnx", tmp_path / "out.onnx", preset=preset)
    assert "file=" in report.compilation.pipeline
    assert not list(tmp_path.glob("*.partial*"))
    np.testing.assert_array_equal(run(tmp_path / "out.onnx"), run(tmp_path / "whole.onnx"))


def test_narrowing_goes_on_where_it_was(source: Model, tmp_path: Path) -> None:
    """What is in the file is taken from there: its bytes are not written again."""
    text = f"convert-float{{form=storage file={json.dumps(str(tmp_path / 's'))}}}"
    Pipeline.parse(text).run(source)
    before = (tmp_path / "s.journal").read_text().splitlines()
    assert len(before) == 1 + 3  # what is done, and three weights
    (tmp_path / "s.journal").write_text("\n".join(before[:2]) + "\n")  # as if it had been stopped after the first
    made = Pipeline.parse(text).run(source).model
    assert (tmp_path / "s.journal").read_text().splitlines() == before
    save(made, tmp_path / "a.onnx")
    save(Pipeline.parse("convert-float{form=storage}").run(source).model, tmp_path / "b.onnx")
    np.testing.assert_array_equal(run(tmp_path / "a.onnx"), run(tmp_path / "b.onnx"))


def test_only_what_looks_at_no_samples_streams(source: Model, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="rounding=gptq is not for it"):
        stream(source, tmp_path / "s", weights="quantize-weights{rounding=gptq}")
    with pytest.raises(OptionError, match="is not one 'quantize-weights'"):
        stream(source, tmp_path / "s", weights="canonicalize")


def test_a_spool_keeps_tensors(tmp_path: Path) -> None:
    tensors = [Tensor.of(np.arange(5, dtype=np.float32)), Tensor.of(np.array([1, 2, 3]), DType.UINT4)]
    for again in (False, True):
        with Spool(tmp_path / "s", {"what": 1}) as spool:
            assert (spool.begin("k") is not None) == again
            stored = [spool.put(tensor) for tensor in tensors]
            spool.end({"n": 1})
        for tensor, other in zip(tensors, stored, strict=True):
            assert other.location is not None and other.same_content(tensor)
    lines = (tmp_path / "s.journal").read_text().splitlines()
    assert json.loads(lines[0]) == {"what": 1} and len(lines) == 2
    discard_spool(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
