"""integer-io: inputs and outputs as codes; a caller finds in the metadata what they stand for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from qir.codegen import to_bytes
from qir.errors import DataError, OptionError
from qir.ir import DType, Model
from qir.passes.emission.integer_io import IntegerIo
from qir.pipeline import Pipeline
from qir.quant.arithmetic import quantize
from qir.quant.integer_io import read_io
from qir.runtime.session import PLAIN, OrtRunner
from qir.validation.float_view import FloatView, float_view
from tests.passes.int8 import annotated, feeds, model
from tests.passes.lifting.test_lift import CONV, LINEAR


def with_io(source: Model, types: str, emit: str = "emit-qdq") -> tuple[Model, Model, list[dict[str, np.ndarray]]]:
    """Emitted with float and with integer inputs and outputs, and samples."""
    samples = feeds(source, 4)
    quantized = annotated(source, samples).model
    plain = Pipeline.parse(emit).run(quantized).model
    return plain, Pipeline.parse(f'integer-io{{types=["{types}"]}}').run(plain, calibration=samples).model, samples


@pytest.mark.parametrize("emit", ["emit-qdq", "emit-qoperator"])
@pytest.mark.parametrize("text", [CONV, LINEAR], ids=["convolutions", "linear"])
def test_codes_in_and_out(text: str, emit: str) -> None:
    source = model(text)
    plain, integer, samples = with_io(source, "uint8", emit)
    assert all(value.dtype is DType.UINT8 for value in (*integer.graph.inputs, *integer.graph.outputs))
    assert [value.name for value in integer.graph.inputs] == [value.name for value in plain.graph.inputs]
    assert [value.name for value in integer.graph.outputs] == [value.name for value in plain.graph.outputs]
    types = read_io(integer.metadata)
    runner = OrtRunner(to_bytes(integer), PLAIN)
    for feed in samples:
        wanted = OrtRunner(to_bytes(plain), PLAIN).run(feed)
        got = runner.run({name: quantize(array, types[name]) for name, array in feed.items()})
        for name, array in wanted.items():
            assert got[name].dtype == np.uint8
            np.testing.assert_array_equal(got[name], quantize(array, types[name]))


def test_a_quantizer_at_the_input_is_gone() -> None:
    plain, integer, _ = with_io(model(CONV), "x=uint8")
    counts = [Counter(one.op for one in found.walk()) for found in (plain, integer)]
    assert counts[1]["QuantizeLinear"] == counts[0]["QuantizeLinear"] - 1
    assert integer.graph.outputs[0].dtype is DType.FLOAT


def test_another_dtype_has_its_own_range() -> None:
    source = model("graph (%x: f32[4]) -> (%y) { %y: f32[4] = Exp(%x) }")
    samples = [{"x": np.array([-1, 0, 1, 2], np.float32)}]
    found = Pipeline.parse('integer-io{types=["x=int8", "y=uint16"]}').run(source, calibration=samples).model
    types = read_io(found.metadata)
    assert types["x"].dtype is DType.INT8 and types["y"].dtype is DType.UINT16
    assert types["y"].scale[0] == pytest.approx(np.exp(2) / 65535)
    got = float_view(OrtRunner(to_bytes(found))).run(samples[0])["y"]
    np.testing.assert_allclose(got, np.exp(samples[0]["x"]), rtol=0.02)


def test_an_input_that_floats_read_too() -> None:
    text = """
    graph (%x: f32[4]) -> (%y, %x2) {
      @s: f32[] = 0.1
      @z: u8[] = 100
      %q: u8[4] = QuantizeLinear(%x, @s, @z)
      %y: f32[4] = DequantizeLinear(%q, @s, @z)
      %x2: f32[4] = Neg(%x)
    }"""
    found = Pipeline.parse('integer-io{types=["x=uint8"]}').run(model(text)).model
    view = float_view(OrtRunner(to_bytes(found)))
    assert isinstance(view, FloatView) and view.inputs[0].dtype == np.float32
    got = view.run({"x": np.array([-1, 0, 1, 20], np.float32)})
    np.testing.assert_allclose(got["y"], [-1, 0, 1, 15.5], rtol=1e-6)
    np.testing.assert_allclose(got["x2"], [1, 0, -1, -15.5], rtol=1e-6)


def test_bad_requests() -> None:
    source = model("graph (%image: f32[4], %ids: s64[1]) -> (%y) { %y: f32[4] = Add(%image, %image) }")
    messages = {"imag=uint8": "image", "ids=uint8": "only f32", "uint9": "uint8", "image=float": "unknown dtype"}
    for types, message in messages.items():
        with pytest.raises(OptionError, match=message):
            Pipeline([IntegerIo((types,))]).run(source)
    with pytest.raises(DataError, match="--calib"):
        Pipeline([IntegerIo(("uint8",))]).run(source)


@pytest.mark.parametrize("form", ["archive", "stacks", "function"])
def test_ranges_come_from_whatever_gives_samples(form: str, tmp_path: Path) -> None:
    source = model(LINEAR)
    samples = feeds(source, 4)
    stacks = {name: np.stack([feed[name] for feed in samples]) for name in samples[0]}
    np.savez(tmp_path / "samples.npz", **stacks)  # type: ignore[arg-type]
    given = {"archive": tmp_path / "samples.npz", "stacks": stacks, "function": lambda: iter(samples)}[form]
    made = Pipeline.parse("integer-io").run(source, calibration=given).model
    wanted = Pipeline.parse("integer-io").run(source, calibration=samples).model
    assert read_io(made.metadata or {}) == read_io(wanted.metadata or {}) != {}
