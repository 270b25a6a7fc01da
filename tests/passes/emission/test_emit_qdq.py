"""emit-qdq: the nodes that annotations become, and what onnxruntime makes of the hard cases."""

# ruff: noqa: E501  # a graph reads best with a node a line
from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from qir.errors import UnsupportedError
from qir.ir import DType, Interval, Model, Tensor, Value
from qir.passes.emission.emit_qdq import EmitQdq
from qir.pipeline import Pipeline
from qir.quant.schemes import activation_quant
from tests.passes.int8 import QUANTIZE, Emitted, emit, model
from tests.textual import CheckPass

IMAGE = "%x: f32[1,8,8,8]"
FULL = f"canonicalize,fold-constants,fuse,canonicalize,{QUANTIZE},place,correct-bias,emit-qdq"


def graph(body: str, inputs: str = IMAGE, outputs: str = "%y") -> Model:
    return model(f"graph g({inputs}) -> ({outputs}) {{\n{body}\n}}")


# Text in, text out


def test_a_stored_value_and_a_derived_bias(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[1,2]) -> (%y) {
          @w: f32[2,2] = [1, -1, 0.5, 0.25]
          @b: f32[2] = [1, 2]
          %a: f32[1,2] q=u8(0.5, 3) = Relu(%x)
          %y: f32[1,2] = Gemm(%a, @w : s8[axis=1]([0.25, 0.5]), @b : derived(s32, 0, 1)) kernel=integer
        }
        """,
        "emit-qdq",
        """
        graph (%x: f32[1,2]) -> (%y) {
          @w_quantized: s8[2,2] = [4, -2, 2, 0]
          @w_scale: f32[2] = [0.25, 0.5]
          @w_zero_point: s8[2] = [0, 0]
          @b_quantized: s32[2] = [8, 8]
          @b_scale: f32[2] = [0.125, 0.25]
          @b_zero_point: s32[2] = [0, 0]
          @a_scale: f32[] = 0.5
          @a_zero_point: u8[] = 3
          %a: f32[1,2] = Relu(%x)
          %a_quantized: u8[1,2] = QuantizeLinear(%a, @a_scale, @a_zero_point) name="a_QuantizeLinear"
          %a_dequantized: f32[1,2] = DequantizeLinear(%a_quantized, @a_scale, @a_zero_point) name="a_DequantizeLinear"
          %w_dequantized: f32[2,2] = DequantizeLinear(@w_quantized, @w_scale, @w_zero_point) {axis=1} name="w_DequantizeLinear"
          %b_dequantized: f32[2] = DequantizeLinear(@b_quantized, @b_scale, @b_zero_point) {axis=0} name="b_DequantizeLinear"
          %y: f32[1,2] = Gemm(%a_dequantized, %w_dequantized, %b_dequantized)
        }
        """,
    )


def test_two_types_for_one_value(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[1,2]) -> (%y, %z) {
          @w: f32[2,2] = [1, -1, 0.5, 0.25]
          %n: f32[1,2] = Neg(%x)
          %y: f32[1,2] = MatMul(%n : u8(0.5, 3), @w : s8[axis=1]([0.25, 0.5])) kernel=integer
          %z: f32[1,2] = Add(%n, %n : u8(0.25, 0))
        }
        """,
        "emit-qdq",
        """
        graph (%x: f32[1,2]) -> (%y, %z) {
          @w_quantized: s8[2,2] = [4, -2, 2, 0]
          @w_scale: f32[2] = [0.25, 0.5]
          @w_zero_point: s8[2] = [0, 0]
          @n_scale: f32[] = 0.5
          @n_zero_point: u8[] = 3
          @n_scale_1: f32[] = 0.25
          @n_zero_point_1: u8[] = 0
          %n: f32[1,2] = Neg(%x)
          %n_quantized_1: u8[1,2] = QuantizeLinear(%n, @n_scale_1, @n_zero_point_1) name="n_QuantizeLinear_1"
          %n_dequantized_1: f32[1,2] = DequantizeLinear(%n_quantized_1, @n_scale_1, @n_zero_point_1) name="n_DequantizeLinear_1"
          %n_quantized: u8[1,2] = QuantizeLinear(%n, @n_scale, @n_zero_point) name="n_QuantizeLinear"
          %n_dequantized: f32[1,2] = DequantizeLinear(%n_quantized, @n_scale, @n_zero_point) name="n_DequantizeLinear"
          %w_dequantized: f32[2,2] = DequantizeLinear(@w_quantized, @w_scale, @w_zero_point) {axis=1} name="w_DequantizeLinear"
          %y: f32[1,2] = MatMul(%n_dequantized, %w_dequantized)
          %z: f32[1,2] = Add(%n, %n_dequantized_1)
        }
        """,
    )


def test_nothing_to_emit(check_pass: CheckPass) -> None:
    text = "graph (%x: f32[4]) -> (%y) { %y: f32[4] = Relu(%x) }"
    check_pass(text, "emit-qdq", text)


def test_per_channel_types_need_opset_13() -> None:
    text = "graph g(%x: f32[1,2]) -> (%y) {\n@w: f32[2,2] #01\n%y = MatMul(%x : u8(0.5, 3), @w : s8[axis=1]([0.25, 0.5]))\n}"
    with pytest.raises(UnsupportedError, match="needs opset 13, the model has 12: run 'convert-opset' first"):
        Pipeline([EmitQdq()]).run(model(text, opset=12))


# What the runtime makes of it


def fused(emitted: Emitted, wanted: dict[str, int], *, db: float = 20) -> None:
    """The heavy and integer nodes are exactly those, and both ways of running are close to the float model."""
    quiet = {"QuantizeLinear", "DequantizeLinear", "Transpose", "ReorderInput", "ReorderOutput", "Reshape"}
    assert {op: count for op, count in emitted.ops.items() if op not in quiet} == wanted
    assert emitted.on > db and emitted.off > db and emitted.between > 40


W = "@w: f32[8,8,3,3] #01\n@v: f32[4,8,1,1] #02\n"
CASES = {
    "conv": (IMAGE, "%y", W + "%y = Conv(%x, @w)", {"QLinearConv": 1}),
    "conv-relu": (IMAGE, "%y", W + "%a = Conv(%x, @w)\n%r = Relu(%a)\n%y = Conv(%r, @v)", {"QLinearConv": 2}),
    "conv-clip": (
        IMAGE,
        "%y",
        W + "@lo: f32[] = 0\n@hi: f32[] = 6\n%a = Conv(%x, @w)\n%r = Clip(%a, @lo, @hi)\n%y = Conv(%r, @v)",
        {"QLinearConv": 2},
    ),
    "conv-clip-reached": (
        IMAGE,
        "%y",
        W + "@lo: f32[] = 0\n@hi: f32[] = 0.5\n%a = Conv(%x, @w)\n%r = Clip(%a, @lo, @hi)\n%y = Conv(%r, @v)",
        {"QLinearConv": 2},
    ),
    "grouped": (IMAGE, "%y", "@w: f32[8,4,3,3] #01\n%y = Conv(%x, @w) {group=2}", {"QLinearConv": 1}),
    "depthwise": (
        IMAGE,
        "%y",
        "@w: f32[8,1,3,3] #01\n@b: f32[8] #02\n%y = Conv(%x, @w, @b) {group=8}",
        {"QLinearConv": 1},
    ),
    "graph-output": (IMAGE, "%a, %y", W + "%a = Conv(%x, @w)\n%y = Conv(%a, @v)", {"QLinearConv": 2}),
    "integer-and-float-readers": (
        IMAGE,
        "%y, %z",
        W + "%a = Conv(%x, @w)\n%r = Relu(%a)\n%y = Conv(%r, @v)\n%z = Softplus(%r)",
        {"QLinearConv": 2, "Softplus": 1},
    ),
    "shared-bias": (
        IMAGE,
        "%y",
        "@w: f32[8,8,3,3] #01\n@v: f32[8,8,1,1] #02\n@b: f32[8] #03\n%a = Conv(%x, @w, @b)\n%y = Conv(%a, @v, @b)",
        {"QLinearConv": 2},
    ),
    "shared-weight": (
        "%x: f32[3,8], %u: f32[3,8]",
        "%y, %z",
        "@w: f32[8,8] #01\n%y = Gemm(%x, @w)\n%z = Gemm(%u, @w) {transB=1}",
        {"QGemm": 2},
    ),
    "square-matmul": ("%x: f32[2,3,8]", "%y", "@w: f32[8,8] #01\n%y = MatMul(%x, @w)", {"MatMulIntegerToFloat": 1}),
    "matmul-bias-3d": (
        "%x: f32[2,3,8]",
        "%y",
        "@w: f32[8,8] #01\n@b: f32[8] #02\n%a = MatMul(%x, @w)\n%y = Add(%a, @b)",
        {"MatMulIntegerToFloat": 1, "Add": 1},
    ),
    "matmul-bias-2d": (
        "%x: f32[N,8]",
        "%y",
        "@w: f32[8,8] #01\n@b: f32[8] #02\n%a = MatMul(%x, @w)\n%y = Add(%a, @b)",
        {"QGemm": 1},
    ),
    "gemm-transB": (
        "%x: f32[3,8]",
        "%y",
        "@w: f32[5,8] #01\n@b: f32[5] #02\n%y = Gemm(%x, @w, @b) {transB=1}",
        {"QGemm": 1},
    ),
    "gemm-scalar-bias": (
        "%x: f32[3,8]",
        "%y",
        "@w: f32[8,5] #01\n@b: f32[1] = [2]\n%y = Gemm(%x, @w, @b)",
        {"QGemm": 1},
    ),
    "siblings": (
        "%x: f32[2,3,8]",
        "%y, %z",
        "@w: f32[8,8] #01\n@v: f32[8,8] #02\n%y = MatMul(%x, @w)\n%z = MatMul(%x, @v)",
        {"MatMulIntegerToFloat": 2},
    ),
    "concat": (
        IMAGE,
        "%y",
        W
        + "@u: f32[3,12,1,1] #03\n@k: f32[] = 30\n%a = Conv(%x, @w)\n%c = Conv(%a, @v)\n%m = Concat(%a, %c) {axis=1}\n"
        "%y = Conv(%m, @u)",
        {"QLinearConv": 3, "QLinearConcat": 1},
    ),
    "residual": (
        "%x: f32[1,8,8,8]",
        "%y",
        "@w: f32[8,8,1,1] #01\n@v: f32[8,8,1,1] #02\n%a = Conv(%x, @w)\n%r = Relu(%a)\n%b = Conv(%r, @v)\n"
        "%s = Add(%b, %r)\n%t = Relu(%s)\n%y = Conv(%t, @w)",
        {"QLinearConv": 3, "QLinearAdd": 1},
    ),
    "maxpool": (
        IMAGE,
        "%y",
        W + "%a = Conv(%x, @w)\n%p = MaxPool(%a) {kernel_shape=[2, 2], strides=[2, 2]}\n%y = Conv(%p, @v)",
        {"QLinearConv": 2, "NhwcMaxPool": 1},
    ),
    "tiny-weights": (
        IMAGE,
        "%y",
        "@w: f32[2,8,1,1] = [1e-8, 1e-8, 1e-8, 1e-8, 0, 0, 0, 0, 0.5, 0.2, 0.3, 0.1, 0, 0, 0, 0]\n@b: f32[2] = [3, 4]\n%y = Conv(%x, @w, @b)",
        {"QLinearConv": 1},
    ),
    "silu": (
        IMAGE,
        "%y",
        W + "%a = Conv(%x, @w)\n%s = Sigmoid(%a)\n%m = Mul(%a, %s)\n%y = Conv(%m, @v)",
        {"QLinearConv": 2, "QuickGelu": 1},
    ),
    "body": (
        f"{IMAGE}, %c: bool[]",
        "%y",
        W + "%a = Conv(%x, @w)\n%b = If(%c) {then_branch=graph then() -> (%t) {\n%t = Relu(%a)\n}, "
        "else_branch=graph else() -> (%e) {\n%e = Neg(%a)\n}}\n%y = Conv(%b, @v)",
        {"QLinearConv": 2, "If": 1, "Relu": 1, "Neg": 1},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_runtime_fuses(case: str) -> None:
    inputs, outputs, body, wanted = CASES[case]
    fused(emit(graph(body, inputs, outputs), passes=FULL), wanted)


def test_a_shared_weight_is_stored_once_for_each_axis_and_once_where_they_agree() -> None:
    two = emit(
        graph(
            "@w: f32[8,8] #01\n%y = Gemm(%x, @w)\n%z = Gemm(%u, @w) {transB=1}", "%x: f32[3,8], %u: f32[3,8]", "%y, %z"
        )
    )
    one = emit(graph("@w: f32[8,8,1,1] #01\n%a = Conv(%x, @w)\n%y = Conv(%a, @w)"))
    for emitted, copies, shape in ((two, 2, (8, 8)), (one, 1, (8, 8, 1, 1))):
        weights = [v for v in emitted.model.graph.initializers if v.tensor is not None and v.tensor.shape == shape]
        assert len(weights) == copies and all(v.tensor.dtype.is_integer for v in weights if v.tensor is not None)


def test_a_shared_bias_is_stored_for_each_reader_with_its_own_scale() -> None:
    emitted = emit(
        graph(
            "@w: f32[8,8,1,1] #01\n@v: f32[8,8,1,1] #02\n@b: f32[8] #03\n%a = Conv(%x, @w, @b)\n%y = Conv(%a, @v, @b)"
        )
    )
    for node in emitted.model.walk():
        if node.op == "Conv":
            scales = [_scale(node.input(index)) for index in range(3)]
            np.testing.assert_array_equal(scales[2], (scales[0] * scales[1]).astype(np.float32))


def _scale(value: Value | None) -> np.ndarray:
    assert value is not None and value.producer is not None and value.producer.op == "DequantizeLinear"
    scale = value.producer.input(1)
    assert scale is not None and scale.tensor is not None
    return np.asarray(scale.tensor.numpy(), np.float32)


def test_every_quantizer_has_an_explicit_zero_point_and_a_name() -> None:
    emitted = emit(graph(W + "%a = Conv(%x, @w)\n%r = Relu(%a)\n%y = Conv(%r, @v)"))
    found = [node for node in emitted.model.walk() if node.op in ("QuantizeLinear", "DequantizeLinear")]
    assert found and all(len(node.inputs) == 3 and node.input(2) is not None and node.name for node in found)
    assert Counter(node.name for node in found).most_common(1)[0][1] == 1


def test_weights_survive_as_the_codes_that_their_type_gives() -> None:
    weight = np.array([[1.0, -2.0], [0.5, 127.0]], np.float32)
    source = model(
        "graph g(%x: f32[1,2]) -> (%y) {\n@w: f32[2,2] #01\n"
        "%y = MatMul(%x : u8(0.5, 0), @w : s8[axis=1]([0.5, 1])) kernel=integer\n}",
        {"w": Tensor.of(weight)},
    )
    result = Pipeline([EmitQdq()]).run(source).model
    [codes] = [v.tensor for v in result.graph.initializers if v.tensor is not None and v.tensor.shape == (2, 2)]
    np.testing.assert_array_equal(codes.numpy(), np.array([[2, -2], [1, 127]], np.int8))


def test_a_shared_dequantizer_stands_before_its_first_reader_whatever_the_order_of_the_uses() -> None:
    source = graph("@c: f32[8] #1\n@d: f32[8] #2\n%a = Mul(%x, @c)\n%y = Mul(%a, @c)", inputs="%x: f32[1,8]")
    first, second = source.graph.nodes
    shared, other = (value for value in source.graph.initializers)
    first.set_input(1, other)
    first.set_input(1, shared)  # its use is now the last
    for node in (first, second):
        use = node.use(1)
        assert use is not None
        use.quant = activation_quant(Interval(-1.0, 1.0), DType.UINT8)
    made = Pipeline([EmitQdq()]).run(source).model
    assert [node.op for node in made.graph.nodes] == ["DequantizeLinear", "Mul", "Mul"]
