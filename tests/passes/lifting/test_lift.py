"""lift: what others quantized, read back as annotations; re-emitted it computes the same."""

# ruff: noqa: E501  # a graph reads best with a node a line
from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import qir
from qir import golden_models
from qir.calibration.data import open_data
from qir.calibration.specs import input_specs
from qir.codegen import to_bytes
from qir.frontend import import_model
from qir.ir import DerivedQuant, DynamicQuant, Model, StaticQuant, UseQuantMarker
from qir.pipeline import Pipeline, PipelineResult, RemarkKind
from qir.quant.detect import first_quantized_node
from qir.runtime.session import PLAIN, OrtRunner
from tests.passes.int8 import annotated, emit, feeds, model, node
from tests.textual import CheckPass


def passes(source: Model, text: str) -> PipelineResult:
    return Pipeline.parse(text).run(source)


def run(source: Model, samples: list[dict[str, np.ndarray]], plain: bool = True) -> list[dict[str, Any]]:
    runner = OrtRunner(to_bytes(source), PLAIN) if plain else OrtRunner(to_bytes(source))
    return [runner.run(feed) for feed in samples]


def assert_equal(wanted: list[dict[str, Any]], got: list[dict[str, Any]]) -> None:
    for one, other in zip(wanted, got, strict=True):
        assert list(one) == list(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


# Text in, text out


def test_quantizers_become_the_type_of_a_value(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[1,2]) -> (%y) {
          @s: f32[] = 0.5
          @z: u8[] = 128
          @wq: s8[2,2] = [2, -2, 4, 6]
          @ws: f32[2] = [0.25, 0.5]
          @wz: s8[2] = [0, 0]
          %xq: u8[1,2] = QuantizeLinear(%x, @s, @z)
          %xd: f32[1,2] = DequantizeLinear(%xq, @s, @z)
          %w: f32[2,2] = DequantizeLinear(@wq, @ws, @wz) {axis=1}
          %y: f32[1,2] = MatMul(%xd, %w)
        }
        """,
        "lift",
        """
        graph (%x: f32[1,2] q=u8(0.5, 128)) -> (%y) {
          @wq_1: f32[2,2] frozen = [0.5, -1, 1, 3]
          %y: f32[1,2] = MatMul(%x, @wq_1 : s8[axis=1]([0.25, 0.5], 0)) kernel=integer
        }
        """,
    )


def test_a_quantizer_on_a_float_weight_is_a_type_of_its_use(check_pass: CheckPass) -> None:
    """As training tools write it: the weight's own numbers stay, its codes are made at emission."""
    check_pass(
        """
        graph (%x: f32[1,2]) -> (%y) {
          @w: f32[2,2] = [0.4, -1.1, 1, 3]
          @s: f32[2] = [0.25, 0.5]
          @z: s8[2] = [0, 0]
          %q: s8[2,2] = QuantizeLinear(@w, @s, @z) {axis=1}
          %d: f32[2,2] = DequantizeLinear(%q, @s, @z) {axis=1}
          %y: f32[1,2] = MatMul(%x, %d)
        }
        """,
        "lift",
        """
        graph (%x: f32[1,2]) -> (%y) {
          @w: f32[2,2] = [0.4, -1.1, 1, 3]
          %y: f32[1,2] = MatMul(%x, @w : s8[axis=1]([0.25, 0.5], 0))
        }
        """,
    )


def test_requantization_is_a_use_of_another_type(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[2]) -> (%y, %z) {
          @s: f32[] = 0.5
          @p: u8[] = 0
          @t: f32[] = 0.25
          %a: f32[2] = Relu(%x)
          %q: u8[2] = QuantizeLinear(%a, @s, @p)
          %d: f32[2] = DequantizeLinear(%q, @s, @p)
          %r: u8[2] = QuantizeLinear(%d, @t, @p)
          %e: f32[2] = DequantizeLinear(%r, @t, @p)
          %y: f32[2] = Sigmoid(%d)
          %z: f32[2] = Sigmoid(%e)
        }
        """,
        "lift",
        """
        graph (%x: f32[2]) -> (%y, %z) {
          %a: f32[2] q=u8(0.5, 0) = Relu(%x)
          %y: f32[2] = Sigmoid(%a)
          %z: f32[2] = Sigmoid(%a : u8(0.25, 0))
        }
        """,
    )


def test_integer_operators_become_float_ones(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[1,1,2,2]) -> (%y) {
          @s: f32[] = 0.5
          @z: u8[] = 128
          @w: s8[1,1,1,1] = [4]
          @ws: f32[] = 0.25
          @wz: s8[] = 0
          @b: s32[1] = [8]
          @t: f32[] = 0.1
          %q: u8[1,1,2,2] = QuantizeLinear(%x, @s, @z)
          %c: u8[1,1,2,2] = QLinearConv(%q, @s, @z, @w, @ws, @wz, @t, @z, @b) name="conv_quant"
          %p: u8[1,1,1,1] = MaxPool(%c) {kernel_shape=[2, 2]}
          %y: f32[1,1,1,1] = DequantizeLinear(%p, @t, @z)
        }
        """,
        "lift",
        """
        graph (%x: f32[1,1,2,2] q=u8(0.5, 128)) -> (%y) {
          @w_1: f32[1,1,1,1] frozen = [1]
          @b_1: f32[1] frozen = [1]
          %c_1: f32[1,1,2,2] q=u8(0.1, 128) = Conv(%x, @w_1 : s8(0.25, 0), @b_1 : derived(s32, 0, 1)) kernel=integer name="conv"
          %y: f32[1,1,1,1] q=u8(0.1, 128) = MaxPool(%c_1) {kernel_shape=[2, 2]} name="MaxPool"
        }
        """,
    )


def test_what_cannot_be_read_stays_and_keeps_its_codes(check_pass: CheckPass) -> None:
    """A shift of codes is no operator on numbers: its quantizers stay beside the annotations around them."""
    check_pass(
        """
        graph (%x: f32[2]) -> (%y, %q) {
          @s: f32[] = 0.5
          @z: u8[] = 0
          @one: u8[] = 1
          %q: u8[2] = QuantizeLinear(%x, @s, @z)
          %r: u8[2] = BitShift(%q, @one) {direction="RIGHT"}
          %y: f32[2] = DequantizeLinear(%r, @s, @z)
        }
        """,
        "lift",
        """
        graph (%x: f32[2]) -> (%y, %q) {
          @s: f32[] = 0.5
          @z: u8[] = 0
          @one: u8[] = 1
          %q: u8[2] = QuantizeLinear(%x, @s, @z)
          %r: u8[2] = BitShift(%q, @one) {direction="RIGHT"}
          %y: f32[2] = DequantizeLinear(%r, @s, @z)
        }
        """,
    )


def test_dynamic_products(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[1,2]) -> (%y) {
          @w: s8[2,2] = [2, -2, 4, 6]
          @ws: f32[] = 0.5
          @wz: s8[] = 0
          @b: f32[2] = [1, 2]
          %q: u8[1,2], %s: f32[], %z: u8[] = DynamicQuantizeLinear(%x)
          %i: s32[1,2] = MatMulInteger(%q, @w, %z, @wz)
          %f: f32[1,2] = Cast(%i) {to=1}
          %t: f32[] = Mul(%s, @ws)
          %m: f32[1,2] = Mul(%f, %t)
          %y: f32[1,2] = Add(%m, @b)
        }
        """,
        "lift",
        """
        graph (%x: f32[1,2]) -> (%y) {
          @b: f32[2] = [1, 2]
          @w_1: f32[2,2] frozen = [1, -1, 2, 3]
          %m_1: f32[1,2] = MatMul(%x : dynamic(u8), @w_1 : s8(0.5, 0)) kernel=dynamic name="MatMul"
          %y: f32[1,2] = Add(%m_1, @b)
        }
        """,
    )


# Every spelling, there and back

CONV = """
graph (%x: f32[1,2,6,6]) -> (%y) {
  @w: f32[4,2,3,3] #0011
  @b: f32[4] #0012
  @v: f32[4,4,1,1] #0013
  %c: f32[1,4,6,6] = Conv(%x, @w, @b) {pads=[1, 1, 1, 1]}
  %r: f32[1,4,6,6] = Relu(%c)
  %p: f32[1,4,3,3] = MaxPool(%r) {kernel_shape=[2, 2], strides=[2, 2]}
  %d: f32[1,4,3,3] = Conv(%p, @v)
  %a: f32[1,4,3,3] = Add(%d, %p)
  %s: f32[1,4,3,3] = Sigmoid(%a)
  %m: f32[1,4,3,3] = Mul(%a, %s)
  %k: f32[1,8,3,3] = Concat(%m, %p) {axis=1}
  %g: f32[1,8,1,1] = GlobalAveragePool(%k)
  %y: f32[1,8] = Flatten(%g)
}"""

LINEAR = """
graph (%x: f32[3,16]) -> (%y, %z) {
  @w: f32[16,16] #0021
  @v: f32[8,16] #0022
  @b: f32[8] #0023
  @u: f32[8,4] #0024
  %m: f32[3,16] = MatMul(%x, @w)
  %y: f32[3,8] = Gemm(%m, @v, @b) {transB=1}
  %z: f32[3,4] = MatMul(%y, @u)
}"""


@pytest.mark.parametrize("first", ["emit-qdq", "emit-qoperator", "emit-qoperator{contrib=false}"])
@pytest.mark.parametrize("text", [CONV, LINEAR], ids=["convolutions", "linear"])
def test_every_spelling_is_read_back(text: str, first: str) -> None:
    source = model(text)
    samples = feeds(source, 4)
    quantized = annotated(source, samples).model
    emitted = passes(quantized, first).model
    lifted = passes(emitted, "lift").model
    assert first_quantized_node(lifted) is None
    # The same spelling gives the same numbers, to the bit; QDQ differs by the rounding of integer kernels.
    assert_equal(run(emitted, samples), run(passes(lifted, first).model, samples))
    wanted, got = run(passes(quantized, "emit-qdq").model, samples), run(passes(lifted, "emit-qdq").model, samples)
    for one, other in zip(wanted, got, strict=True):
        for name in one:
            np.testing.assert_allclose(one[name], other[name], atol=0.02 * np.abs(one[name]).max())


def test_a_bias_is_derived_again() -> None:
    lifted = passes(emit(model(CONV)).model, "lift").model
    conv = node(lifted, "Conv")
    assert isinstance(conv.use(2).quant, DerivedQuant)  # type: ignore[union-attr]
    assert conv.kernel == "integer" and conv.input(1).frozen  # type: ignore[union-attr]


def test_a_body_reads_codes_of_the_graph_around_it() -> None:
    text = """
    graph (%x: f32[2,4], %c: bool[]) -> (%y) {
      @s: f32[] = 0.05
      @z: u8[] = 128
      %q: u8[2,4] = QuantizeLinear(%x, @s, @z)
      %y: f32[2,4] = If(%c) {
        then_branch = graph "yes" () -> (%a) {
          %d: f32[2,4] = DequantizeLinear(%q, @s, @z)
          %a: f32[2,4] = Relu(%d)
        },
        else_branch = graph "no" () -> (%b) {
          %e: f32[2,4] = DequantizeLinear(%q, @s, @z)
          %b: f32[2,4] = Neg(%e)
        }
      }
    }"""
    source = model(text)
    samples = [{**feed, "c": np.array(index % 2 == 0)} for index, feed in enumerate(feeds(source, 2))]
    lifted = passes(source, "lift").model
    assert first_quantized_node(lifted) is None
    assert_equal(run(source, samples), run(passes(lifted, "emit-qdq").model, samples))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("unsigned", [False, True])
def test_recurrent_weights(transposed: bool, unsigned: bool) -> None:
    draw = np.random.default_rng(0)
    dtype = np.uint8 if unsigned else np.int8
    w, r = (draw.integers(0 if unsigned else -90, 127, shape).astype(dtype) for shape in ((1, 5, 32), (1, 8, 32)))
    per_row = (1, 32) if transposed else (1,)
    make = onnx.helper.make_tensor_value_info
    constants = {
        "w": w, "r": r, "b": draw.normal(size=(1, 64)).astype(np.float32),
        "ws": np.full(per_row, 0.01, np.float32), "rs": np.full(per_row, 0.02, np.float32),
        "wz": np.full(per_row, 60 if unsigned else 0, dtype), "rz": np.full(per_row, 70 if unsigned else 0, dtype),
    }  # fmt: skip
    lstm = onnx.helper.make_node(
        "DynamicQuantizeLSTM", ["x", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"], ["y"],
        domain="com.microsoft", hidden_size=8,
    )  # fmt: skip
    graph = onnx.helper.make_graph(
        [lstm], "g", [make("x", 1, [4, 1, 5])], [make("y", 1, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    source = import_model(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))
    samples = [{"x": draw.normal(size=(4, 1, 5)).astype(np.float32)}]
    lifted = passes(source, "lift").model
    assert [found.op for found in lifted.walk()] == ["LSTM"]
    assert_equal(run(source, samples), run(passes(lifted, "emit-dynamic").model, samples))


@pytest.mark.parametrize(("bits", "zeros"), [(4, False), (4, True), (8, False), (2, True)])
@pytest.mark.parametrize("columns", [8, 12])
def test_blocks_of_weights(bits: int, zeros: bool, columns: int) -> None:
    """MatMulNBits: what the lifted weight holds is what the runtime multiplies by; K is no multiple of the block."""
    draw, k, block = np.random.default_rng(0), 40, 16
    blocks = -(-k // block)
    arrays = {
        "w": draw.integers(0, 256, (columns, blocks, block * bits // 8)).astype(np.uint8),
        "s": draw.uniform(0.01, 0.1, (columns * blocks,)).astype(np.float32),
    }
    if zeros:
        arrays["z"] = draw.integers(0, 256, (columns * -(-blocks * bits // 8),)).astype(np.uint8)
    make = onnx.helper.make_tensor_value_info
    product = onnx.helper.make_node(
        "MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft", K=k, N=columns, bits=bits, block_size=block
    )
    graph = onnx.helper.make_graph(
        [product], "g", [make("x", 1, [3, k])], [make("y", 1, [3, columns])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    source = import_model(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))
    samples = [{"x": draw.normal(size=(3, k)).astype(np.float32)}]
    lifted = passes(source, "lift").model
    assert [found.op for found in lifted.walk()] == ["MatMul"]
    [wanted], [got] = run(source, samples), run(passes(lifted, "dequantize").model, samples)
    np.testing.assert_allclose(wanted["y"], got["y"], rtol=1e-4, atol=1e-4)


# What qir itself emits

PRESETS = {
    "int8-fast": "emit-qdq",
    "int8-dynamic": "emit-qdq",
    "int4-weights": "emit-weight-only,emit-qdq",
    "fp8": "emit-qdq",
    "int16": "emit-qdq",
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["adaptive-digits", "decoder-stories", "lstm-gestures", "mobile-sounds"])
def test_every_preset_is_read_back_to_the_bit(name: str, preset: str) -> None:
    """Bodies, recurrent kernels, tables, blocks, 4, 8 and 16 bits and fp8."""
    source = qir.load(golden_models.path(name) / "model.onnx")
    samples = list(islice(open_data(golden_models.path(name) / "calib.npz", input_specs(source)), 3))
    emitted = Pipeline.parse(preset).run(source, calibration=samples).model
    result = passes(emitted, "lift")
    assert first_quantized_node(result.model) is None, [str(remark) for remark in result.remarks]
    assert_equal(run(emitted, samples), run(passes(result.model, PRESETS[preset]).model, samples))


# Models that onnxruntime's own tools quantized


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, samples: list[dict[str, np.ndarray]]) -> None:
        self.rest: Iterator[dict[str, np.ndarray]] = iter(samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rest, None)


def golden_feeds(name: str, count: int) -> list[dict[str, np.ndarray]]:
    with np.load(golden_models.path(name) / "calib.npz") as archive:
        return [{key: archive[key][index : index + 1] for key in archive} for index in range(count)]


def peer(name: str, kind: str, folder: Path) -> Path:
    """A golden model as onnxruntime quantizes it."""
    logging.disable(logging.WARNING)
    source, out = golden_models.path(name) / "model.onnx", folder / f"{kind}.onnx"
    try:
        if kind == "dynamic":
            has_conv = any(one.op_type == "Conv" for one in onnx.load(source).graph.node)
            quantize_dynamic(source, out, weight_type=QuantType.QUInt8 if has_conv else QuantType.QInt8)
        elif kind == "defaults":
            quantize_static(source, out, Reader(golden_feeds(name, 4)))
        else:
            chosen = QuantFormat.QDQ if kind == "qdq" else QuantFormat.QOperator
            quantize_static(
                source, out, Reader(golden_feeds(name, 4)), quant_format=chosen, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=True,
            )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    return out


@pytest.mark.parametrize("kind", ["qdq", "qoperator", "defaults", "dynamic"])
@pytest.mark.parametrize("name", ["resnet-shapes", "encoder-moods", "vit-digits"])
def test_models_of_onnxruntime_are_lifted_whole_and_computed_the_same(name: str, kind: str, tmp_path: Path) -> None:
    source = qir.load(peer(name, kind, tmp_path))
    assert first_quantized_node(source) is not None
    result = passes(source, "lift")
    lifted = result.model
    assert first_quantized_node(lifted) is None, [str(remark) for remark in result.remarks]
    samples = golden_feeds(name, 4)
    back = "emit-qoperator" if kind == "qoperator" else "emit-qdq"
    assert_equal(run(source, samples), run(passes(lifted, back).model, samples))
    # The other spelling rounds as integer kernels do; so does the runtime once it has fused the quantizers.
    if kind in ("qdq", "qoperator"):
        other = "emit-qoperator" if kind == "qdq" else "emit-qdq"
        wanted, got = run(source, samples, plain=False), run(passes(lifted, other).model, samples, plain=False)
        for one, two in zip(wanted, got, strict=True):
            for key in one:
                scale = np.abs(one[key]).max() / 255
                assert np.abs(one[key] - two[key]).max() <= 2 * scale, key


def test_an_old_opset_is_converted_between(tmp_path: Path) -> None:
    """QLinearConv with a scale a channel is older than DequantizeLinear with one."""
    source = qir.load(peer("mobile-sounds", "qoperator", tmp_path))
    assert source.opset() == 12
    back = passes(source, "lift,convert-opset{to=13},emit-qoperator").model
    samples = golden_feeds("mobile-sounds", 4)
    assert_equal(run(source, samples), run(back, samples))


def test_dequantize_leaves_a_float_model_near_the_original(tmp_path: Path) -> None:
    source = qir.load(peer("resnet-shapes", "qdq", tmp_path))
    plain = passes(source, "lift,dequantize").model
    assert first_quantized_node(plain) is None
    assert not any(value.quant or value.frozen for value in plain.graph.values())
    original = qir.load(golden_models.path("resnet-shapes") / "model.onnx")
    samples = golden_feeds("resnet-shapes", 4)
    for wanted, got in zip(run(original, samples), run(plain, samples), strict=True):
        for name in wanted:
            error = np.abs(wanted[name] - got[name]).max() / np.abs(wanted[name]).max()
            assert error < 0.1, (name, error)


def test_dequantize_rounds_the_weights_of_an_annotated_model() -> None:
    quantized = annotated(model(LINEAR)).model
    use = node(quantized, "MatMul").use(1)
    assert use is not None and isinstance(use.quant, StaticQuant)
    step = np.array(use.quant.scale)
    rounded = passes(quantized, "dequantize").model
    weight = node(rounded, "MatMul").input(1)
    assert weight is not None and weight.tensor is not None
    codes = weight.tensor.numpy() / step
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
    kept = node(passes(quantized, "dequantize{weights=false}").model, "MatMul").input(1)
    assert kept is not None and kept.tensor is not None and use.value.tensor is not None
    np.testing.assert_array_equal(kept.tensor.numpy(), use.value.tensor.numpy())


# What stays


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("%s: f32[] = Abs(@one)  %q: u8[2] = QuantizeLinear(%x, %s, @z)  %y: f32[2] = DequantizeLinear(%q, %s, @z)", "not constant"),
        ("%q: u8[2] = QuantizeLinear(%x, @one, @z)  %y: f32[2] = DequantizeLinear(%q, @two, @z)", "not that of the quantizer"),
    ],
)  # fmt: skip
def test_what_stays_has_a_remark_with_the_reason(text: str, reason: str) -> None:
    source = model(f"graph (%x: f32[2]) -> (%y) {{ @one: f32[] = 1  @two: f32[] = 2  @z: u8[] = 0  {text} }}")
    result = passes(source, "lift")
    missed = [remark.message for remark in result.remarks if remark.kind is RemarkKind.MISSED]
    assert any(reason in message for message in missed), missed
    samples = feeds(source, 2)
    assert_equal(run(source, samples), run(passes(result.model, "emit-qdq").model, samples))


@pytest.mark.parametrize("said", ["K=40, N=8, block_size=32", "K=0, N=8, block_size=16", "bits=3"])
def test_packed_weights_of_another_size_stay(said: str) -> None:
    """Such a model does not load, but reading it is no reason to crash."""
    attributes = "K=40, N=8, block_size=16" if said == "bits=3" else said
    bits = ", bits=3" if said == "bits=3" else ""
    source = model(
        f"""graph (%x: f32[2,40]) -> (%y) {{
          @w: u8[8,3,8] #1 @s: f32[24] #2
          %y: f32[2,8] = com.microsoft.MatMulNBits(%x, @w, @s) {{{attributes}{bits}}}
        }}"""
    )
    [remark] = passes(source, "lift").remarks
    assert remark.kind is RemarkKind.MISSED and remark.message.startswith("MatMulNBits stays as it is: its weight")


def test_a_float_model_is_left_alone() -> None:
    source = model(CONV)
    result = passes(source, "lift")
    assert not result.passes[0].changed and not result.remarks
    assert all(use is None or use.quant is UseQuantMarker.INHERIT for one in result.model.walk() for use in one.uses)


def test_dynamic_types_are_read(tmp_path: Path) -> None:
    lifted = passes(qir.load(peer("vit-digits", "dynamic", tmp_path)), "lift").model
    products = [one for one in lifted.walk() if one.kernel == "dynamic"]
    assert products and all(isinstance(one.use(0).quant, DynamicQuant) for one in products)  # type: ignore[union-attr]
