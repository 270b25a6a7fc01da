"""quantize: which annotations the hard cases get, and that no number enters a scale which it would ruin."""

from __future__ import annotations

import numpy as np
import pytest

from qir.errors import DataError, OptionError
from qir.ir import DerivedQuant, DType, Model, StaticQuant, Tensor
from qir.passes.annotation.quantize import Quantize
from qir.pipeline import Pipeline, PipelineResult, RemarkKind
from tests.passes.int8 import QUANTIZE, annotated, feeds, kernels, model, node, types

IMAGE = "%x: f32[1,8,8,8]"


def graph(body: str, inputs: str = IMAGE, outputs: str = "%y") -> Model:
    return model(f"graph g({inputs}) -> ({outputs}) {{\n{body}\n}}")


def reasons(result: PipelineResult) -> list[str]:
    return [remark.message for remark in result.remarks if remark.kind is RemarkKind.MISSED]


def static(quant: object) -> StaticQuant:
    assert isinstance(quant, StaticQuant)
    return quant


# Axes and types of weights


@pytest.mark.parametrize(
    ("inputs", "body", "axis", "channels"),
    [
        (IMAGE, "@w: f32[8,8,3,3] #01\n%y = Conv(%x, @w)", 0, 8),
        (IMAGE, "@w: f32[8,4,3,3] #01\n%y = Conv(%x, @w) {group=2}", 0, 8),
        (IMAGE, "@w: f32[8,1,3,3] #01\n%y = Conv(%x, @w) {group=8}", 0, 8),
        ("%x: f32[1,8,20]", "@w: f32[8,8,3] #01\n%y = Conv(%x, @w)", 0, 8),
        ("%x: f32[2,3,8]", "@w: f32[8,8] #01\n%y = MatMul(%x, @w)", 1, 8),
        ("%x: f32[3,8]", "@w: f32[8,5] #01\n%y = Gemm(%x, @w)", 1, 5),
        ("%x: f32[3,8]", "@w: f32[5,8] #01\n%y = Gemm(%x, @w) {transB=1}", 0, 5),
        ("%x: f32[3,8]", "@w: f32[8,8] #01\n%y = Gemm(%x, @w) {transB=1}", 0, 8),
    ],
)
def test_weights_are_signed_and_symmetric_along_their_output_channels(
    inputs: str, body: str, axis: int, channels: int
) -> None:
    result = annotated(graph(body, inputs)).model
    activation, weight = map(static, types(result, result.graph.nodes.first.op))  # type: ignore[union-attr]
    assert (activation.dtype, activation.axis, len(activation.scale)) == (DType.UINT8, None, 1)
    assert (weight.dtype, weight.axis, len(weight.scale)) == (DType.INT8, axis, channels)
    assert set(weight.zero_point) == {0}


def test_a_shared_square_weight_has_a_type_for_each_axis() -> None:
    result = annotated(
        graph(
            "@w: f32[8,8] #01\n%y = Gemm(%x, @w)\n%z = Gemm(%v, @w) {transB=1}",
            "%x: f32[3,8], %v: f32[3,8]",
            "%y, %z",
        )
    ).model
    axes = [static(types(result, "Gemm", index)[1]).axis for index in (0, 1)]
    assert axes == [1, 0]


def test_a_shared_bias_is_derived_for_each_of_its_readers() -> None:
    result = annotated(
        graph(
            "@w: f32[8,8,1,1] #01\n@v: f32[8,8,1,1] #02\n@b: f32[8] #03\n%a = Conv(%x, @w, @b)\n%y = Conv(%a, @v, @b)"
        )
    ).model
    assert [types(result, "Conv", index)[2] for index in (0, 1)] == [DerivedQuant(0, 1)] * 2


def test_tiny_weights_get_scales_in_which_the_bias_fits() -> None:
    result = annotated(
        graph(
            "@w: f32[2,8,1,1] = [1e-8, 1e-8, 1e-8, 1e-8, 0, 0, 0, 0, 0.5, 0.2, 0.3, 0.1, 0, 0, 0, 0]\n"
            "@b: f32[2] = [3, 4]\n%y = Conv(%x, @w, @b)"
        )
    )
    x, w, _ = types(result.model, "Conv")
    for scale, bias in zip(static(w).scale, (3, 4), strict=True):
        assert bias / (np.float64(static(x).scale[0]) * scale) < 2**31
    assert "weight scales of 1 channels raised so that the bias fits 32 bits" in [r.message for r in result.remarks]


@pytest.mark.parametrize("weight", ["[0, 0, 0, 0, 0, 0, 0, 0]", "[1e-40, 0, 0, 0, 0, 0, 0, 0]"])
def test_a_channel_of_zeros_has_a_usable_scale(weight: str) -> None:
    result = annotated(graph(f"@w: f32[1,8,1,1] = {weight}\n%y = Conv(%x, @w)")).model
    [scale] = static(types(result, "Conv")[1]).scale
    assert np.isfinite(scale) and scale > 0


# Where quantizers stand


def test_one_quantizer_on_a_convolutions_result_after_its_activation() -> None:
    body = "@w: f32[8,8,3,3] #01\n@v: f32[2,8,1,1] #02\n@lo: f32[] = 0\n@hi: f32[] = 6\n"
    for activation in ("Relu(%a)", "Clip(%a, @lo, @hi)"):
        result = annotated(graph(f"{body}%a = Conv(%x, @w)\n%r = {activation}\n%y = Conv(%r, @v)")).model
        values = {value.name: value for value in result.graph.values()}
        assert values["a"].quant is None
        assert static(values["r"].quant).zero_point == (0,)


def test_linear_operators_are_quantized_per_use_and_give_floats() -> None:
    result = annotated(
        graph("@w: f32[8,8] #01\n%y = MatMul(%x, @w)\n%z = Softplus(%x)", "%x: f32[2,3,8]", "%y, %z")
    ).model
    assert result.graph.inputs[0].quant is None and node(result, "MatMul").output.quant is None
    assert static(types(result, "MatMul")[0]).dtype is DType.UINT8
    assert types(result, "Softplus") == [None]


def test_a_layer_norms_result_is_integers_for_the_matmul_and_float_for_the_residual() -> None:
    result = annotated(
        graph(
            "@s: f32[8] #01\n@w: f32[8,8] #02\n%n = LayerNormalization(%x, @s)\n%m = MatMul(%n, @w)\n%y = Add(%m, %n)",
            "%x: f32[2,3,8]",
        )
    ).model
    assert kernels(result) == ["MatMul"]
    assert static(types(result, "MatMul")[0]) and types(result, "Add") == [None, None]


def test_data_movement_keeps_the_parameters_of_its_operand() -> None:
    result = annotated(
        graph(
            "@w: f32[8,8,3,3] #01\n@v: f32[2,8,1,1] #02\n%a = Conv(%x, @w)\n"
            "%p = MaxPool(%a) {kernel_shape=[2, 2]}\n%y = Conv(%p, @v)"
        )
    ).model
    assert "MaxPool" in kernels(result)
    assert node(result, "MaxPool").output.quant == node(result, "Conv").output.quant is not None


def test_the_halves_of_a_split_share_the_parameters_of_the_whole() -> None:
    result = annotated(
        graph(
            "@w: f32[8,8,1,1] #01\n@v: f32[2,4,1,1] #02\n%a = Conv(%x, @w)\n%p, %q = Split(%a) {axis=1}\n"
            "%y = Conv(%p, @v)\n%z = Conv(%q, @v)",
            outputs="%y, %z",
        )
    ).model
    assert {node(result, "Conv").output.quant} == {value.quant for value in node(result, "Split").outputs}


def test_concat_reads_each_operand_with_its_own_scale() -> None:
    result = annotated(
        graph(
            "@w: f32[2,8,1,1] #01\n@v: f32[2,8,1,1] #02\n@u: f32[3,4,1,1] #03\n@k: f32[] = 30\n%m = Mul(%x, @k)\n"
            "%a = Conv(%x, @w)\n%b = Conv(%m, @v)\n%c = Concat(%a, %b) {axis=1}\n%y = Conv(%c, @u)"
        )
    ).model
    left, right = (static(quant).scale[0] for quant in types(result, "Concat"))
    whole = static(node(result, "Concat").output.quant).scale[0]
    assert left * 5 < right and whole == pytest.approx(right, rel=0.2)


def test_what_only_light_operators_read_stays_float() -> None:
    result = annotated(graph("@w: f32[8,8,1,1] #01\n%a = Conv(%x, @w)\n%b = Sigmoid(%a)\n%y = Mul(%b, %b)"))
    assert kernels(result.model) == ["Conv"]


# Numbers that would ruin a scale


@pytest.mark.parametrize("huge", ["-3.4e38", "-1e9", "-10000"])
def test_a_mask_never_enters_a_scale(huge: str) -> None:
    result = annotated(
        graph(
            f"@w: f32[8,8,1,1] #01\n@v: f32[2,8,1,1] #02\n@mask: f32[1,8,1,1] = [0, 0, 0, 0, 0, 0, 0, {huge}]\n"
            "%a = Conv(%x, @w)\n%b = Add(%a, @mask)\n%s = Softmax(%b) {axis=1}\n%y = Conv(%s, @v)"
        )
    )
    assert kernels(result.model) == ["Conv", "Conv"]
    scales = [
        scale
        for value in result.model.graph.values()
        for quant in (value.quant, *(use.quant for use in value.uses))
        if isinstance(quant, StaticQuant)
        for scale in quant.scale
    ]
    assert scales and max(scales) < 1


def test_a_masked_sum_that_feeds_a_convolution_keeps_both_float() -> None:
    result = annotated(
        graph(
            "@w: f32[8,8,1,1] #01\n@v: f32[2,8,1,1] #02\n@mask: f32[1,8,1,1] = [0, 0, 0, 0, 0, 0, 0, -3.4e38]\n"
            "%a = Conv(%x, @w)\n%b = Add(%a, @mask)\n%y = Conv(%b, @v)"
        )
    )
    assert kernels(result.model) == ["Conv"]
    assert "Add stays float: 'mask' reaches 3.4e+38: in such a scale all else would be zero" in reasons(result)
    assert "Conv stays float: 'b' reaches 3.4e+38: in such a scale all else would be zero" in reasons(result)


def test_a_mask_folded_into_a_bias_keeps_the_convolution_float() -> None:
    result = annotated(
        graph("@w: f32[2,8,1,1] #01\n@b: f32[2] = [1, -3.4e38]\n%y = Conv(%x, @w, @b)"),
    )
    assert kernels(result.model) == []
    assert reasons(result) == ["Conv stays float: 'y' reaches 3.4e+38: in such a scale all else would be zero"]


@pytest.mark.parametrize("number", ["inf", "nan"])
def test_weights_that_are_no_numbers_stay_float(number: str) -> None:
    weight = np.ones((2, 8, 1, 1), np.float32)
    weight[1] = float(number)
    source = model(
        f"graph g({IMAGE}) -> (%y) {{\n@w: f32[2,8,1,1] #01\n%y = Conv(%x, @w)\n}}", {"w": Tensor.of(weight)}
    )
    result = annotated(source)
    assert kernels(result.model) == []
    assert "Conv stays float: its weight holds infinities or NaN" in reasons(result)


# Errors


def test_it_needs_ranges_and_known_presets() -> None:
    source = graph("@w: f32[8,8,3,3] #01\n%y = Conv(%x, @w)")
    with pytest.raises(DataError, match="'x' has no observed range: run 'calibrate'"):
        Pipeline.parse("quantize").run(source)
    with pytest.raises(OptionError, match="unknown preset 'int7'"):
        Pipeline([Quantize(preset="int7")]).run(source)


def test_keep_float_barriers_the_named_node_only() -> None:
    source = graph("@w: f32[8,8,3,3] #01\n@v: f32[2,8,1,1] #02\n%a = Conv(%x, @w)\n%y = Conv(%a, @v)")
    for keep, left in (("a", "y"), ("y", "a")):
        passes = QUANTIZE.replace("linear=static", f"linear=static keep-float={keep}")
        result = annotated(source, feeds(source), passes).model
        assert [n.output.name for n in result.walk() if n.kernel == "integer"] == [left]
