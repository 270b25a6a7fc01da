"""fuse: each rule on the forms it must take, and what it must leave, with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from qir.errors import OptionError
from qir.frontend import import_model
from qir.ir import Model
from qir.ops.shape_inference import infer
from qir.passes.structure.fuse import Fuse
from qir.pipeline import Pipeline
from qir.pipeline.contract import PassResult
from tests.passes.support import apply, assert_close, ir, outputs

Node = tuple[str, Sequence[str], str] | tuple[str, Sequence[str], str, Mapping[str, Any]]


def build(
    nodes: Sequence[Node],
    shape: Sequence[int],
    weights: Mapping[str, np.ndarray],
    opset: int = 17,
    dtype: type = np.float32,
) -> Model:
    """A model from x (of ``shape``) to y."""
    made = [helper.make_node(n[0], n[1], [n[2]], name=n[2], **(n[3] if len(n) > 3 else {})) for n in nodes]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    graph.output[0].type.tensor_type.elem_type = kind
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = import_model(proto)
    infer(model)
    return model


def random(*shape: int, seed: int = 0, positive: bool = False) -> np.ndarray:
    array = np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)
    return np.abs(array) + np.float32(0.5) if positive else array


def check(model: Model, ops: Sequence[str], pass_: Fuse | None = None, tolerance: float = 1e-5) -> PassResult:
    """After fusing, the nodes are ``ops`` and the outputs what they were."""
    value = model.graph.inputs[0]
    shape = [d for d in (value.shape or ()) if isinstance(d, int)]
    assert value.dtype is not None
    feed = {"x": (random(*shape, seed=9) * 2).astype(value.dtype.numpy)}
    expected = outputs(model, feed)
    result = apply(pass_ or Fuse(), model)
    assert [node.op for node in model.graph.nodes] == list(ops)
    assert [v.name for v in model.graph.outputs] == ["y"]
    assert_close(outputs(model, feed), expected, tolerance)
    return result


def norm(channels: int) -> dict[str, np.ndarray]:
    return {
        "gamma": random(channels, seed=1),
        "beta": random(channels, seed=2),
        "mean": random(channels, seed=3),
        "var": random(channels, seed=4, positive=True),
    }


NORM = ["gamma", "beta", "mean", "var"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("op", "shape", "weight", "attributes", "channels"),
    [
        ("Conv", (1, 4, 6, 6), (8, 4, 3, 3), {"pads": [1, 1, 1, 1]}, 8),
        ("Conv", (1, 4, 6, 6), (8, 2, 3, 3), {"group": 2}, 8),
        ("Conv", (1, 4, 6, 6), (4, 1, 3, 3), {"group": 4}, 4),
        ("Conv", (2, 4, 9), (6, 4, 3), {"dilations": [2]}, 6),
        ("ConvTranspose", (1, 4, 5, 5), (4, 6, 3, 3), {"strides": [2, 2]}, 6),
        ("ConvTranspose", (1, 4, 5, 5), (4, 3, 3, 3), {"group": 2}, 6),
        ("ConvTranspose", (1, 4, 5, 5), (4, 4, 2, 2), {}, 4),
        ("Gemm", (3, 4), (4, 5), {}, 5),
        ("Gemm", (3, 4), (5, 4), {"transB": 1, "alpha": 0.5, "beta": 2.0}, 5),
        ("Gemm", (4, 3), (4, 5), {"transA": 1}, 5),
    ],
)
def test_batch_norm_goes_into_the_weights(
    op: str, shape: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, object], channels: int, bias: bool
) -> None:
    weights = {"w": random(*weight), **norm(channels)} | ({"b": random(channels, seed=7)} if bias else {})
    model = build(
        [
            (op, ["x", "w", "b"] if bias else ["x", "w"], "c", attributes),
            ("BatchNormalization", ["c", *NORM], "n", {"epsilon": 1e-3}),
            ("Relu", ["n"], "y"),
        ],
        shape,
        weights,
    )
    result = check(model, [op, "Relu"])
    assert result.statistics == {"conv-bn": 1}
    assert next(iter(model.graph.nodes)).sources == ["c", "n"]
    # The numbers on the edge are the norm's, so it goes by that name.
    assert next(iter(model.graph.nodes)).output.name == "n"


def test_a_scalar_gemm_bias_is_spread_over_the_channels() -> None:
    weights = {"w": random(4, 5), "b": np.array([1.5], np.float32), **norm(5)}
    check(build([("Gemm", ["x", "w", "b"], "c"), ("BatchNormalization", ["c", *NORM], "y")], (3, 4), weights), ["Gemm"])


def test_half_precision_weights_are_computed_in_double() -> None:
    weights = {name: array.astype(np.float16) for name, array in {"w": random(8, 4, 3, 3), **norm(8)}.items()}
    model = build(
        [("Conv", ["x", "w"], "c"), ("BatchNormalization", ["c", *NORM], "y")], (1, 4, 6, 6), weights, dtype=np.float16
    )
    check(model, ["Conv"])


def test_weights_that_would_overflow_stay() -> None:
    weights = {name: array.astype(np.float16) for name, array in {"w": random(8, 4, 1, 1), **norm(8)}.items()}
    weights["w"][:] = 6e4
    weights["gamma"][:] = 10
    model = build(
        [("Conv", ["x", "w"], "c"), ("BatchNormalization", ["c", *NORM], "y")], (1, 4, 2, 2), weights, dtype=np.float16
    )
    result = apply(Fuse(), model)
    assert not result.changed
    assert "the weights of Conv 'c' would overflow f16" in str(result.remarks[0])


def test_a_shared_weight_is_copied_not_changed() -> None:
    weights = {"w": random(4, 4, 1, 1), **norm(4)}
    model = build(
        [
            ("Conv", ["x", "w"], "c"),
            ("BatchNormalization", ["c", *NORM], "n"),
            ("Conv", ["n", "w"], "y"),
        ],
        (1, 4, 3, 3),
        weights,
    )
    check(model, ["Conv", "Conv"])


def test_why_a_batch_norm_stays() -> None:
    weights = {"w": random(4, 4, 1, 1), **norm(4)}
    shared = build(
        [
            ("Conv", ["x", "w"], "c"),
            ("BatchNormalization", ["c", *NORM], "n"),
            ("Add", ["n", "c"], "y"),
        ],
        (1, 4, 3, 3),
        weights,
    )
    (remark,) = check(shared, ["Conv", "BatchNormalization", "Add"]).remarks
    assert "BatchNormalization 'n' stays: fits, but the result of Conv 'c' is read by Add 'y' too" in str(remark)
    lone = build([("Relu", ["x"], "r"), ("BatchNormalization", ["r", *NORM], "y")], (1, 4, 3, 3), norm(4))
    (remark,) = check(lone, ["Relu", "BatchNormalization"]).remarks
    assert "expected Conv/ConvTranspose/Gemm, found Relu 'r'" in str(remark)


@pytest.mark.parametrize(
    ("op", "constant"),
    [
        ("Mul", random(8, 1, 1)),
        ("Add", random(1, 8, 1, 1)),
        ("Sub", random(8, 1, 1)),
        ("Div", random(8, 1, 1, positive=True)),
        ("Mul", np.float32(0.3).reshape(())),
        ("Add", np.array([2.0], np.float32)),
    ],
)
@pytest.mark.parametrize("linear", ["Conv", "ConvTranspose"])
def test_an_affine_after_goes_into_the_weights(op: str, constant: np.ndarray, linear: str) -> None:
    weights = {"w": random(8, 4, 3, 3) if linear == "Conv" else random(4, 8, 3, 3), "b": random(8), "c": constant}
    model = build([(linear, ["x", "w", "b"], "l"), (op, ["l", "c"], "y")], (1, 4, 6, 6), weights)
    assert check(model, [linear]).statistics == {"conv-affine": 1}


def test_the_constant_may_come_first_where_the_op_commutes() -> None:
    weights = {"w": random(8, 4, 3, 3), "c": random(8, 1, 1)}
    check(build([("Conv", ["x", "w"], "l"), ("Mul", ["c", "l"], "y")], (1, 4, 6, 6), weights), ["Conv"])
    check(build([("Conv", ["x", "w"], "l"), ("Sub", ["c", "l"], "y")], (1, 4, 6, 6), weights), ["Conv", "Sub"])


@pytest.mark.parametrize("shape", [(6,), (6, 6), (1, 1, 8, 1, 1), (2, 8, 1, 1)])
def test_an_affine_that_is_not_per_channel_stays(shape: tuple[int, ...]) -> None:
    weights = {"w": random(8, 4, 1, 1), "c": random(*shape)}
    model = build([("Conv", ["x", "w"], "l"), ("Mul", ["l", "c"], "y")], (1, 4, 6, 6), weights)
    assert not apply(Fuse(), model).changed


@pytest.mark.parametrize(
    ("op", "attributes", "weight", "goes"),
    [
        ("Mul", {"pads": [1, 1, 1, 1]}, (8, 4, 3, 3), True),
        ("Div", {"group": 2}, (8, 2, 3, 3), True),
        ("Add", {}, (8, 4, 3, 3), True),
        ("Sub", {"group": 4}, (8, 1, 3, 3), True),
        ("Add", {"pads": [1, 1, 1, 1]}, (8, 4, 3, 3), False),
        ("Sub", {"auto_pad": "SAME_UPPER"}, (8, 4, 3, 3), False),
    ],
)
def test_an_affine_before_goes_where_padding_does_not_mind(
    op: str, attributes: dict[str, object], weight: tuple[int, ...], goes: bool
) -> None:
    weights = {"w": random(*weight), "c": random(4, 1, 1, positive=True)}
    model = build([(op, ["x", "c"], "a"), ("Conv", ["a", "w"], "y", attributes)], (1, 4, 6, 6), weights)
    result = check(model, ["Conv"] if goes else [op, "Conv"])
    assert goes or "pads with zeros" in str(result.remarks[0])


def test_an_affine_before_a_gemm_and_a_transposed_convolution() -> None:
    weights = {"w": random(5, 4), "c": random(4)}
    check(
        build([("Add", ["x", "c"], "a"), ("Gemm", ["a", "w"], "y", {"transB": 1, "alpha": 0.5})], (3, 4), weights),
        ["Gemm"],
    )
    weights = {"w": random(4, 3, 2, 2), "c": random(4, 1, 1)}
    attributes = {"group": 2}
    check(
        build([("Mul", ["x", "c"], "a"), ("ConvTranspose", ["a", "w"], "y", attributes)], (1, 4, 3, 3), weights),
        ["ConvTranspose"],
    )
    check(
        build([("Add", ["x", "c"], "a"), ("ConvTranspose", ["a", "w"], "y", attributes)], (1, 4, 3, 3), weights),
        ["Add", "ConvTranspose"],
    )


def test_matmul_and_add_become_gemm_for_matrices_only() -> None:
    weights = {"w": random(4, 5), "b": random(5)}
    nodes: list[Node] = [("MatMul", ["x", "w"], "m"), ("Add", ["b", "m"], "y")]
    check(build(nodes, (3, 4), weights), ["Gemm"])
    check(build(nodes, (2, 3, 4), weights), ["MatMul", "Add"])
    check(build(nodes, (3, 4), {"w": random(4, 5), "b": random(1, 1, 5)}), ["MatMul", "Add"])
    check(build(nodes, (1, 4), {"w": random(4, 5), "b": random(3, 5)}), ["MatMul", "Add"])
    check(build(nodes, (3, 4), {"w": random(4, 5), "b": random(3, 1)}), ["Gemm"])


PADS = np.array([0, 0, 1, 2, 0, 0, 2, 1], np.int64)


@pytest.mark.parametrize("opset", [9, 13, 18])
def test_zero_padding_goes_into_the_convolution(opset: int) -> None:
    weights = {"w": random(8, 4, 3, 3)} | ({"p": PADS} if opset >= 11 else {})
    pad: Node = ("Pad", ["x", "p"], "p1") if opset >= 11 else ("Pad", ["x"], "p1", {"pads": PADS.tolist()})
    model = build([pad, ("Conv", ["p1", "w"], "y", {"pads": [1, 0, 0, 1]})], (1, 4, 6, 6), weights, opset)
    assert check(model, ["Conv"]).statistics == {"pad-conv": 1}


@pytest.mark.parametrize(
    ("pads", "attributes", "reason"),
    [
        ([0, 1, 0, 0, 0, 0, 0, 0], {}, "the batch or the channels"),
        ([0, 0, -1, 0, 0, 0, 0, 0], {}, "it cuts"),
        (PADS.tolist(), {"mode": "reflect"}, "pads by reflect"),
    ],
)
def test_other_padding_stays(pads: list[int], attributes: dict[str, object], reason: str) -> None:
    weights = {"w": random(8, 5 if pads[1] else 4, 3, 3), "p": np.array(pads, np.int64)}
    model = build([("Pad", ["x", "p"], "q", attributes), ("Conv", ["q", "w"], "y")], (1, 4, 6, 6), weights, 13)
    assert reason in str(check(model, ["Pad", "Conv"]).remarks[0])


def test_padding_with_another_number_stays() -> None:
    weights = {"w": random(8, 4, 3, 3), "p": PADS, "v": number(1.0)}
    model = build([("Pad", ["x", "p", "v"], "q"), ("Conv", ["q", "w"], "y")], (1, 4, 6, 6), weights, 13)
    check(model, ["Pad", "Conv"])


@pytest.mark.parametrize(
    ("attributes", "goes"),
    [
        ({}, True),
        ({"count_include_pad": 1, "pads": [1, 0, 0, 1]}, True),
        ({"pads": [1, 0, 0, 1]}, False),
        ({"ceil_mode": 1, "strides": [2, 2]}, False),
    ],
)
def test_padding_goes_into_a_pool_that_counts_it(attributes: dict[str, object], goes: bool) -> None:
    pool: Node = ("AveragePool", ["q"], "y", {"kernel_shape": [4, 4], **attributes})
    model = build([("Pad", ["x", "p"], "q"), pool], (1, 4, 6, 6), {"p": PADS}, 13)
    check(model, ["AveragePool"] if goes else ["Pad", "AveragePool"])


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


SWISH: dict[str, list[Node]] = {
    "sigmoid": [("HardSigmoid", ["x"], "s", {"alpha": 1 / 6, "beta": 0.5}), ("Mul", ["x", "s"], "y")],
    "div-in": [
        ("Add", ["x", "3"], "a"),
        ("Clip", ["a", "0", "6"], "c"),
        ("Div", ["c", "6"], "d"),
        ("Mul", ["d", "x"], "y"),
    ],
    "div-out": [
        ("Add", ["3", "x"], "a"),
        ("Clip", ["a", "0", "6"], "c"),
        ("Mul", ["x", "c"], "d"),
        ("Div", ["d", "6"], "y"),
    ],
    "mul-out": [
        ("Add", ["x", "3"], "a"),
        ("Clip", ["a", "0", "6"], "c"),
        ("Mul", ["x", "c"], "d"),
        ("Mul", ["d", "1/6"], "y"),
    ],
    "mul-x": [
        ("Add", ["x", "3"], "a"),
        ("Clip", ["a", "0", "6"], "c"),
        ("Mul", ["x", "1/6"], "d"),
        ("Mul", ["d", "c"], "y"),
    ],
}
NUMBERS = {"0": number(0), "3": number(3), "6": number(6), "1/6": number(1 / 6)}


@pytest.mark.parametrize("form", SWISH)
def test_hard_swish_in_its_forms(form: str) -> None:
    check(build(SWISH[form], (2, 5), NUMBERS, 14), ["HardSwish"])
    # The opset lacks the operator: the pieces are tagged, nothing else changes.
    model = build(SWISH[form], (2, 5), NUMBERS, 13)
    check(model, [node[0] for node in SWISH[form]])
    (region,) = {node.region for node in model.graph.nodes}
    assert region is not None and region.role == "hard-swish"


def test_what_is_no_hard_swish() -> None:
    nodes = SWISH["div-in"]
    for changed in ({"3": number(2.9)}, {"6": number(6.01)}, {"0": number(1e-4)}):
        model = build(nodes, (2, 5), NUMBERS | changed, 14)
        assert not apply(Fuse(), model).changed


GELU: dict[str, list[Node]] = {
    "erf": [
        ("Div", ["x", "r2"], "a"),
        ("Erf", ["a"], "b"),
        ("Add", ["b", "1"], "c"),
        ("Mul", ["x", "c"], "d"),
        ("Mul", ["d", ".5"], "y"),
    ],
    "erf-half-first": [
        ("Mul", ["x", "1/r2"], "a"),
        ("Erf", ["a"], "b"),
        ("Add", ["1", "b"], "c"),
        ("Mul", [".5", "x"], "d"),
        ("Mul", ["d", "c"], "y"),
    ],
    "erf-half-inside": [
        ("Mul", ["x", "1/r2"], "a"),
        ("Erf", ["a"], "b"),
        ("Add", ["1", "b"], "c"),
        ("Mul", ["c", ".5"], "d"),
        ("Mul", ["x", "d"], "y"),
    ],
    "tanh-pow": [
        ("Pow", ["x", "3"], "a"),
        ("Mul", ["a", "k"], "b"),
        ("Add", ["x", "b"], "c"),
        ("Mul", ["c", "r"], "d"),
        ("Tanh", ["d"], "e"),
        ("Add", ["e", "1"], "f"),
        ("Mul", ["x", ".5"], "g"),
        ("Mul", ["g", "f"], "y"),
    ],
    "tanh-products": [
        ("Mul", ["x", "x"], "a0"),
        ("Mul", ["a0", "x"], "a"),
        ("Mul", ["k", "a"], "b"),
        ("Add", ["b", "x"], "c"),
        ("Mul", ["r", "c"], "d"),
        ("Tanh", ["d"], "e"),
        ("Add", ["1", "e"], "f"),
        ("Mul", ["x", "f"], "g"),
        ("Mul", [".5", "g"], "y"),
    ],
    "tanh-factored": [
        ("Mul", ["x", "r"], "a"),
        ("Mul", ["x", "x"], "b"),
        ("Mul", ["b", "k"], "c"),
        ("Add", ["c", "1"], "d"),
        ("Mul", ["a", "d"], "e"),
        ("Tanh", ["e"], "f"),
        ("Add", ["f", "1"], "g"),
        ("Mul", ["x", "g"], "h"),
        ("Div", ["h", "2"], "y"),
    ],
}
GELU_NUMBERS = {
    "1": number(1), "2": number(2), "3": number(3), ".5": number(0.5), "r2": number(2**0.5), "1/r2": number(0.5**0.5),
    "k": number(0.044715), "r": number((2 / np.pi) ** 0.5),
}  # fmt: skip


@pytest.mark.parametrize("form", GELU)
def test_gelu_in_its_forms(form: str) -> None:
    model = build(GELU[form], (2, 5), GELU_NUMBERS, 20)
    check(model, ["Gelu"])
    node = next(iter(model.graph.nodes))
    assert node.get("approximate") == ("tanh" if "tanh" in form else "none")
    assert node.sources == [n[2] for n in GELU[form]] or sorted(node.sources) == sorted(n[2] for n in GELU[form])
    old = build(GELU[form], (2, 5), GELU_NUMBERS, 17)
    assert check(old, [n[0] for n in GELU[form]]).statistics == {"gelu-tanh" if "tanh" in form else "gelu-erf": 1}
    assert len({n.region for n in old.graph.nodes}) == 1


def layer_norm(opset: int, square: str = "Pow", end: str = "Div", bias: bool = True) -> list[Node]:
    axes: dict[str, object] = {"axes": [-1]} if opset < 18 else {}
    operand = [] if opset < 18 else ["ax"]
    nodes: list[Node] = [
        ("ReduceMean", ["x", *operand], "m", axes),
        ("Sub", ["x", "m"], "d"),
        ("Pow", ["d", "two"], "s") if square == "Pow" else ("Mul", ["d", "d"], "s"),
        ("ReduceMean", ["s", *operand], "v", axes),
        ("Add", ["v", "eps"], "e"),
        ("Sqrt", ["e"], "q"),
    ]
    if end == "Div":
        nodes.append(("Div", ["d", "q"], "n"))
    else:
        nodes += [("Reciprocal", ["q"], "i"), ("Mul", ["d", "i"], "n")]
    return [*nodes, ("Mul", ["n", "g"], "t"), ("Add", ["t", "b"], "y")] if bias else [*nodes, ("Mul", ["n", "g"], "y")]


NORM_WEIGHTS = {"two": number(2), "eps": number(1e-5), "g": random(6), "b": random(6, seed=1)}


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize(
    ("square", "end", "bias"), [("Pow", "Div", True), ("Mul", "Reciprocal", True), ("Mul", "Div", False)]
)
def test_layer_norm_in_its_forms(opset: int, square: str, end: str, bias: bool) -> None:
    weights = NORM_WEIGHTS | ({"ax": np.array([2], np.int64)} if opset >= 18 else {})
    weights = weights if bias else {name: array for name, array in weights.items() if name != "b"}
    model = build(layer_norm(opset, square, end, bias), (2, 3, 6), weights, opset)
    assert check(model, ["LayerNormalization"]).statistics == {"layer-norm": 1}


def test_layer_norm_is_tagged_before_opset_17() -> None:
    model = build(layer_norm(13), (2, 3, 6), NORM_WEIGHTS, 13)
    check(model, [node[0] for node in layer_norm(13)])
    assert {node.region.role for node in model.graph.nodes if node.region} == {"layer-norm"}


def test_layer_norm_over_other_axes_stays() -> None:
    nodes = [(*n[:3], {"axes": [1]}) if n[0] == "ReduceMean" else n for n in layer_norm(17)]
    model = build(nodes, (2, 3, 6), NORM_WEIGHTS)
    assert "not over the last axes" in " ".join(map(str, apply(Fuse(), model).remarks))


def test_parts_of_a_region_are_left_whole() -> None:
    """Without the tag the final Mul would go into the Gemm."""
    weights = GELU_NUMBERS | {"w": random(5, 5)}
    nodes: list[Node] = [*[(n[0], n[1], "z" if n[2] == "y" else n[2]) for n in GELU["erf"]], ("Gemm", ["z", "w"], "y")]
    model = build(nodes, (2, 5), weights, 17)
    check(model, [n[0] for n in nodes])


def test_only_restricts_and_unknown_names_are_refused() -> None:
    weights = {"w": random(4, 4, 1, 1), "c": random(4, 1, 1), **norm(4)}
    nodes: list[Node] = [
        ("Conv", ["x", "w"], "l"), ("Mul", ["l", "c"], "m"), ("BatchNormalization", ["m", *NORM], "y"),
    ]  # fmt: skip
    check(build(nodes, (1, 4, 3, 3), weights), ["Conv"])
    check(build(nodes, (1, 4, 3, 3), weights), ["Conv", "BatchNormalization"], Fuse(only=("conv-affine",)))
    with pytest.raises(OptionError, match=r"no rule 'conv-nb' \(did you mean 'conv-bn'"):
        apply(Fuse(only=("conv-nb",)), build(nodes, (1, 4, 3, 3), weights))


def test_annotated_nodes_are_left_alone() -> None:
    model = ir(
        "graph g(%x: f32[2,4]) -> (%y) {\n@w: f32[4,4] #0\n@b: f32[4] = [1, 2, 3, 4]\n"
        "%m = MatMul(%x : u8(0.1, 0), @w)\n%y = Add(%m, @b)\n}\n"
    )
    result = apply(Fuse(), model)
    assert not result.changed
    assert "quantization annotations" in str(result.remarks[0])


def test_a_limit_of_rounds_is_an_option_of_the_text_form() -> None:
    (parsed,) = Pipeline.parse("fuse{only=conv-bn max-rounds=3}")
    assert parsed == Fuse(only=("conv-bn",), max_rounds=3)
    with pytest.raises(OptionError, match="positive number"):
        apply(Fuse(max_rounds=-1), build([("Relu", ["x"], "y")], (1, 4), {}))
