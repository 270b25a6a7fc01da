"""Which nodes run on integers, decided from structure alone."""

from __future__ import annotations

import pytest

from qir.ir import Model
from qir.targets.ort_cpu import ORT_CPU
from qir.targets.regions import RegionPlan, clip_bounds, merged_result, plan_regions, weight_axis
from tests.passes.int8 import model, node

W = "@w: f32[8,8,1,1] #01\n"


def graph(body: str, inputs: str = "%x: f32[1,8,8,8]", outputs: str = "%y", opset: int = 17) -> Model:
    return model(f"graph g({inputs}) -> ({outputs}) {{\n{body}\n}}", opset=opset)


def plan(source: Model) -> RegionPlan:
    return plan_regions(source.graph, ORT_CPU)


def integer(source: Model) -> list[str]:
    """Names of the results of the nodes in the plan."""
    return [found.output.name for found in plan(source).integer]


def test_light_operators_join_between_convolutions_only() -> None:
    assert integer(graph(W + "%a = Conv(%x, @w)\n%b = Sigmoid(%a)\n%y = Conv(%b, @w)")) == ["a", "b", "y"]
    assert integer(graph(W + "%a = Sigmoid(%x)\n%y = Conv(%a, @w)")) == ["y"]
    source = graph(W + "%a = Conv(%x, @w)\n%y = Sigmoid(%a)")
    assert integer(source) == ["a"]
    assert plan(source).kept == {node(source, "Sigmoid"): "nobody reads its result as integers"}


def test_a_chain_of_light_operators_leaves_as_a_whole() -> None:
    chain = "%a = Conv(%x, @w)\n%b = Sigmoid(%a)\n%c = Mul(%b, %b)\n%d = Transpose(%c)\n"
    assert integer(graph(W + chain + "%y = Softplus(%d)")) == ["a"]
    assert integer(graph(W + chain + "%y = Conv(%d, @v)\n@v: f32[8,8,1,1] #02")) == ["a", "b", "c", "d", "y"]


@pytest.mark.parametrize(
    ("activation", "merged"),
    [
        ("%r = Relu(%a)", True),
        ("@lo: f32[] = 0\n@hi: f32[] = 6\n%r = Clip(%a, @lo, @hi)", True),
        ("@lo: f32[] = 0\n%r = Clip(%a, @lo)", True),
        ("@lo: f32[] = -1\n@hi: f32[] = 6\n%r = Clip(%a, @lo, @hi)", False),
        ("@hi: f32[] = 6\n%r = Clip(%a, _, @hi)", False),
        ("%r = Tanh(%a)", False),
    ],
)
def test_an_activation_that_starts_at_zero_is_merged(activation: str, merged: bool) -> None:
    source = graph(W + f"%a = Conv(%x, @w)\n{activation}\n%y = Softplus(%r)")
    assert merged_result(node(source, "Conv"), ORT_CPU).name == ("r" if merged else "a")


def test_an_activation_is_not_merged_when_others_read_what_is_before_it() -> None:
    for outputs, more in (("%y, %a", ""), ("%y, %z", "\n%z = Softplus(%a)")):
        source = graph(W + f"%a = Conv(%x, @w)\n%r = Relu(%a)\n%y = Softplus(%r){more}", outputs=outputs)
        assert merged_result(node(source, "Conv"), ORT_CPU).name == "a"


def test_clip_bounds_of_every_opset() -> None:
    old = graph("%y = Clip(%x) {max=6.0, min=0.0}", opset=9)
    new = graph("@lo: f32[] = 0\n%y = Clip(%x, @lo)")
    computed = graph("%m = ReduceMax(%x) {keepdims=0}\n%y = Clip(%x, _, %m)")
    assert [clip_bounds(node(source, "Clip")) for source in (old, new, computed)] == [(0, 6), (0, None), (None, None)]


@pytest.mark.parametrize(
    ("inputs", "body", "reason"),
    [
        ("%x: f32[1,8,8,8], %w: f32[8,8,1,1]", "%y = Conv(%x, %w)", "its weight is not constant"),
        ("%x: f32[3,8], %b: f32[5]", "@w: f32[8,5] #01\n%y = Gemm(%x, @w, %b)", "its bias is not constant"),
        ("%x: f64[3,8]", "@w: f64[8,5] #01\n%y = Gemm(%x, @w)", "its weight is f64, not f32"),
        ("%x: f32[3,8]", "@w: f32[8,0] #01\n%y = MatMul(%x, @w)", "its weight is empty"),
        (
            "%x: f32[8,3]",
            "@w: f32[8,5] #01\n%y = Gemm(%x, @w) {transA=1}",
            "the integer Gemm takes no transposed activation",
        ),
        (
            "%x: f32[3,8]",
            "@w: f32[8,5] #01\n%y = Gemm(%x, @w) {alpha=0.5}",
            "the integer Gemm takes only alpha = beta = 1",
        ),
        (
            "%x: f32[3,8]",
            "@w: f32[8,5] #01\n@b: f32[5] #02\n%y = Gemm(%x, @w, @b) {beta=0.5}",
            "the integer Gemm takes only alpha = beta = 1",
        ),
        (
            "%x: f32[3,8]",
            "@w: f32[8,5] #01\n@b: f32[3,5] #02\n%y = Gemm(%x, @w, @b)",
            "its bias has shape [3, 5], not one number for each of 5 channels",
        ),
        (
            "%x: f32[2,3,8]",
            "@w: f32[2,8,5] #01\n%y = MatMul(%x, @w)",
            "its weight has 3 axes, the integer kernels take 2",
        ),
        (
            "%x: f32[1,8,8,8]",
            "@w: f32[8,4,2,2] #01\n%y = ConvTranspose(%x, @w)",
            "onnxruntime has no integer kernel for it",
        ),
    ],
)
def test_reasons_against(inputs: str, body: str, reason: str) -> None:
    source = graph(body, inputs)
    assert integer(source) == []
    assert list(plan(source).kept.values()) == [reason]


def test_operators_of_other_domains_are_opaque() -> None:
    source = graph(W + "%a = Conv(%x, @w)\n%b = com.microsoft.Gelu(%a)\n%y = Conv(%b, @w)")
    assert integer(source) == ["a", "y"]
    assert ORT_CPU.reason_for_float("acme", "Frob") == "operator acme.Frob is opaque to qir"


def test_elementwise_operators_join_with_float_and_constant_operands() -> None:
    assert integer(graph(W + "@c: f32[1,8,1,1] #02\n%a = Conv(%x, @w)\n%b = Mul(%a, @c)\n%y = Conv(%b, @w)")) == [
        "a",
        "b",
        "y",
    ]
    assert integer(graph(W + "%a = Conv(%x, @w)\n%b = Add(%a, %x)\n%y = Conv(%b, @w)")) == ["a", "b", "y"]
    infinite = graph(W + "@c: f32[1] = [-inf]\n%a = Conv(%x, @w)\n%b = Add(%a, @c)\n%y = Conv(%b, @w)")
    assert integer(infinite) == ["a", "y"]
    assert plan(infinite).kept[node(infinite, "Add")] == "its constant operand 'c' is no finite f32 tensor"


def test_weight_axes() -> None:
    source = graph(
        "@w: f32[8,8] #01\n%a = Gemm(%x, @w)\n%b = Gemm(%a, @w) {transB=1}\n%y = MatMul(%b, @w)", "%x: f32[3,8]"
    )
    assert [weight_axis(found) for found in source.graph.nodes] == [1, 0, 1]


def test_what_calibration_watches() -> None:
    source = graph(
        W + "@v: f32[8,5] #02\n%a = Conv(%x, @w)\n%r = Relu(%a)\n"
        "%p = MaxPool(%r) {kernel_shape=[2, 2]}\n%c = Conv(%p, @w)\n"
        "%s = Softplus(%c)\n%y = MatMul(%u, @v)",
        "%x: f32[1,8,8,8], %u: f32[3,8]",
        "%y, %s",
    )
    assert {value.name for value in plan(source).quantized_values()} == {"x", "r", "p", "c", "u"}


def test_a_reason_to_keep_a_node_float_reaches_what_depended_on_it() -> None:
    source = graph(W + "%a = Conv(%x, @w)\n%b = Sigmoid(%a)\n%y = Conv(%b, @w)")
    kept = plan_regions(source.graph, ORT_CPU, lambda found: "because" if found.output.name == "a" else None)
    assert [found.output.name for found in kept.integer] == ["y"]
    assert kept.kept == {node(source, "Conv"): "because"}


def test_a_first_layer_stays_float_but_not_before_a_max_pool() -> None:
    stem = "graph g(%x: f32[1,3,16,16]) -> (%y) {\n@w: f32[8,3,3,3] #01\n@v: f32[8,8,3,3] #02\n%c = Conv(%x, @w)\n"
    pooled = model(stem + "%r = Relu(%c)\n%p = MaxPool(%r) {kernel_shape=[2, 2]}\n%y = Conv(%p, @v)\n}")
    plain = model(stem + "%r = Relu(%c)\n%y = Conv(%r, @v)\n}")
    assert [node.op for node in plan_regions(plain.graph, ORT_CPU).integer] == ["Conv"]
    assert [node.op for node in plan_regions(pooled.graph, ORT_CPU).integer] == ["Conv", "MaxPool", "Conv"]
