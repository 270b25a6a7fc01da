"""Interval analysis of whole models: random graphs, bodies, functions, declarations, trained models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from qir.analysis.bounds import Bounds
from qir.analysis.intervals import analyze_intervals
from qir.analysis.linear import dot
from qir.errors import OptionError
from qir.frontend.importer import import_model
from qir.ir import Interval
from qir.passes.annotation.analyze_ranges import AnalyzeRanges, parse_input_ranges
from qir.pipeline.contract import PassContext
from tests.analysis.running import build, check_sound, ranges

ZOO = Path(__file__).resolve().parents[3] / "shared" / "zoo"
UNARY = ["Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Exp", "Softplus", "HardSigmoid", "LeakyRelu", "Floor", "Erf"]
BINARY = ["Add", "Sub", "Mul", "Max", "Min", "Div"]
LAYERS = ["Conv", "BatchNormalization", "MaxPool", "AveragePool", "Clip", "Softmax", "Concat", "ReduceMean"]


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Chains and diamonds of [2, 4, 5, 5] images, 2 to 14 operators deep."""
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Any] = {}
    values = ["x", "y"]
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))

    def constant(array: Any) -> str:
        name = f"c{len(constants)}"
        constants[name] = np.asarray(array)
        return name

    def floats(*shape: int) -> str:
        return constant((generator.standard_normal(shape) * 10.0 ** generator.integers(-2, 2)).astype(np.float32))

    for number in range(draw(st.integers(2, 14))):
        op = draw(st.sampled_from(UNARY + BINARY + LAYERS))
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        out, attributes = f"v{number}", {}
        wired = [a, b] if op in BINARY else [a]
        match op:
            case "Conv":
                group = draw(st.sampled_from([1, 2, 4]))
                wired += [floats(4, 4 // group, 3, 3), floats(4)]
                attributes = {"pads": [1, 1, 1, 1], "group": group}
            case "BatchNormalization":
                wired += [floats(4), floats(4), floats(4), constant(generator.uniform(0.01, 3, 4).astype(np.float32))]
            case "MaxPool" | "AveragePool":
                attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
            case "Clip":
                wired += [constant(np.float32(-1)), constant(np.float32(3))]
            case "Softmax":
                attributes = {"axis": draw(st.integers(0, 3))}
            case "Add" | "Mul" if draw(st.booleans()):
                wired[1] = floats(4, 1, 1)
            case "Concat":
                nodes.append(helper.make_node("Split", [b], [f"{out}p", f"{out}q"], axis=1))
                wired, attributes = [f"{out}p", f"{out}p"], {"axis": 1}
            case "ReduceMean":
                nodes.append(helper.make_node("ReduceMean", [b], [f"{out}m"], axes=[2, 3]))
                nodes.append(helper.make_node("Add", [a, f"{out}m"], [out]))
                values.append(out)
                continue
        nodes.append(helper.make_node(op, wired, [out], **attributes))
        values.append(out)
    image = np.zeros((2, 4, 5, 5), np.float32)
    return build(nodes, {"x": image, "y": image}, constants, [values[-1]])


@given(graphs(), st.sampled_from([(-1.0, 1.0), (0.0, 255.0), (-1e4, 3.0)]), st.integers(0, 10**6))
@settings(max_examples=40)
def test_random_graphs_stay_in_range(proto: onnx.ModelProto, span: tuple[float, float], seed: int) -> None:
    generator = np.random.default_rng(seed)
    feeds = []
    for number in range(3):
        feed = {name: generator.uniform(*span, (2, 4, 5, 5)).astype(np.float32) for name in ("x", "y")}
        if number == 1:
            feed = {name: generator.choice(np.array(span, np.float32), (2, 4, 5, 5)) for name in feed}
        feeds.append(feed)
    check_sound(proto, feeds, {"x": Interval(*span), "y": Interval(*span)})
    check_sound(proto, feeds)


@given(st.integers(0, 10**6), st.integers(1, 400), st.sampled_from([1.0, 1e3, 1e-3]))
@settings(max_examples=60)
def test_sums_hold_in_any_order_of_float32_addition(seed: int, k: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    w = generator.standard_normal((3, k)).astype(np.float32)
    x = (generator.standard_normal((50, k)) * scale).astype(np.float32)
    x[:3] = np.where(w > 0, x.max(axis=0), x.min(axis=0))  # the largest sums there are
    lo, hi = dot(w, Bounds.of(x.min(axis=0), x.max(axis=0)), 2.0**-24)
    for order in (np.arange(k), generator.permutation(k)):
        products = w[None][:, :, order] * x[:, None, order]
        one_by_one = np.add.accumulate(products, axis=2, dtype=np.float32)[..., -1]
        for sums in (one_by_one, products.sum(axis=2, dtype=np.float32), x[:, order] @ w.T[order]):
            assert (sums >= lo).all() and (sums <= hi).all()
    exact = np.where(w > 0, x.max(axis=0), x.min(axis=0)).astype(np.float64) * w
    assert (hi <= exact.sum(axis=1) + 1e-4 * np.abs(exact).sum(axis=1) + 1e-6).all()  # and they are tight


def test_bounds_are_kept_per_channel() -> None:
    w = np.zeros((3, 2, 1, 1), np.float32)
    w[0, 0], w[1, 1], w[2] = 1, 2, -1
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Concat", ["relu", "x"], ["both"], axis=1),
    ]
    x = np.zeros((1, 2, 4, 4), np.float32)
    proved = ranges(build(nodes, {"x": x}, {"w": w}, ["flat", "both"]), {"x": Interval((-1.0, 0.0), (2.0, 3.0), 1)})
    assert proved["relu"].axis == 1
    np.testing.assert_allclose(proved["relu"].hi, [2, 6, 1], rtol=1e-5)
    np.testing.assert_allclose(proved["relu"].lo, [0, 0, 0])
    assert proved["flat"].axis == 1
    np.testing.assert_allclose(proved["flat"].hi, [2, 6, 1], rtol=1e-4)
    np.testing.assert_allclose(proved["both"].hi, [2, 6, 1, 2, 3], rtol=1e-5)


def test_what_operators_alone_prove() -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"]),
        helper.make_node("Mul", ["x", "s"], ["silu"]),
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("Add", ["x", "x"], ["sum"]),
        helper.make_node("Div", ["s", "x"], ["ratio"]),
        helper.make_node("Cast", ["u"], ["image"], to=TensorProto.FLOAT),
    ]
    proto = build(
        nodes, {"x": np.zeros(3, np.float32), "u": np.zeros(3, np.uint8)}, {}, ["sum", "ratio", "silu", "square"]
    )
    proved = ranges(proto)
    assert proved["s"].lower == 0
    assert 1 <= proved["s"].upper < 1.000001
    assert proved["square"].lower == 0
    assert -0.2785 < proved["silu"].lower < -0.2784
    assert 255 <= proved["image"].upper < 255.001
    assert {"x", "sum", "ratio"}.isdisjoint(proved)


def test_nan_and_infinities_do_not_deceive() -> None:
    """A NaN may turn into a number again: Max and Clip may answer the other operand."""
    nodes = [
        helper.make_node("Log", ["x"], ["log"]),  # NaN below 0, -inf at 0
        helper.make_node("Max", ["log", "five"], ["max"]),
        helper.make_node("Clip", ["log", "five", "six"], ["clip"]),
        helper.make_node("IsNaN", ["log"], ["nan"]),
        helper.make_node("Where", ["nan", "six", "log"], ["where"]),
        helper.make_node("Sub", ["log", "log"], ["sub"]),
        helper.make_node("MatMul", ["log", "w"], ["product"]),
    ]
    constants = {"five": np.float32(5), "six": np.float32(6), "w": np.ones((4, 2), np.float32)}
    proto = build(nodes, {"x": np.zeros((2, 4), np.float32)}, constants, ["max", "clip", "where", "sub", "product"])
    x = np.array([[-1, 0, 1, 2], [0, 0, 1, 2]], np.float32)
    proved = check_sound(proto, [{"x": x}], {"x": Interval(-1.0, 2.0)})
    assert proved["clip"] == Interval(5.0, 6.0)
    assert "product" not in proved


def test_huge_masks() -> None:
    mask = np.array([0, np.finfo(np.float32).min], np.float32)
    nodes = [helper.make_node("Add", ["x", "mask"], ["masked"]), helper.make_node("Softmax", ["masked"], ["p"])]
    proto = build(nodes, {"x": np.zeros((3, 2), np.float32)}, {"mask": mask}, ["p"])
    x = np.array([[1, -1], [5, 5], [-3, -100]], np.float32)
    assert check_sound(proto, [{"x": x}], {"x": Interval(-100.0, 5.0)})["p"].upper < 1.00001


def text(source: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "f" : 1]>\n{source}')


def test_arms_of_an_if_are_joined() -> None:
    proto = text(
        """g (float[3] x, bool c) => (y) {
            y = If (c) <then_branch = t () => (a) { a = Relu(x) }, else_branch = e () => (b) { b = Neg(x) }>
        }"""
    )
    x = np.array([-2, 0, 1], np.float32)
    feeds = [{"x": x, "c": np.array(c)} for c in (True, False)]
    proved = check_sound(proto, feeds, {"x": Interval(-2.0, 1.0)})
    assert (proved["y"], proved["a"], proved["b"]) == (Interval(-1.0, 2.0), Interval(0.0, 1.0), Interval(-1.0, 2.0))


def test_carried_values_are_not_trusted() -> None:
    proto = text(
        """g (float[3] x) => (last, stacked) {
            trips = Constant <value_int = 5> ()
            on = Constant <value: tensor = bool {1}> ()
            last, stacked = Loop (trips, on, x) <body = b (int64 i, bool k, float[3] s)
                => (k2, next, row) { k2 = Identity(k) next = Add(s, x) row = Tanh(next) }>
        }"""
    )
    x = np.array([-1, 0.5, 1], np.float32)
    proved = check_sound(proto, [{"x": x}], {"x": Interval(-1.0, 1.0)})
    assert "last" not in proved
    assert proved["stacked"].magnitude < 1.000001


def test_scan_states_are_not_trusted() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "r"], ["t"]), helper.make_node("Sigmoid", ["r"], ["z"])],
        "b",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("s", "r")],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("t", "z")],
    )
    node = helper.make_node("Scan", ["x", "rows"], ["sum", "all"], body=body, num_scan_inputs=1)
    inputs = {"x": np.zeros(2, np.float32), "rows": np.zeros((5, 2), np.float32)}
    proto = build([node], inputs, {}, ["sum", "all"])
    feeds = [{"x": np.ones(2, np.float32), "rows": np.full((5, 2), 3, np.float32)}]
    proved = check_sound(proto, feeds, {"x": Interval(0.0, 1.0), "rows": Interval(0.0, 3.0)})
    assert "sum" not in proved
    assert proved["all"].contains(Interval(0.0, 1.0))
    assert Interval(0.0, 1.000001).contains(proved["all"])


def test_functions_hold_for_every_call() -> None:
    proto = text(
        """g (float[3] x) => (y, z) { y = f.act <slope = 0.5> (x) z = f.gate (x) }
        <domain: "f", opset_import: ["" : 17]> act <slope> (v) => (w) { w = LeakyRelu <alpha: float = @slope> (v) }
        <domain: "f", opset_import: ["" : 17]> gate (v) => (w) { w = HardSigmoid (v) }"""
    )
    proved = ranges(proto, {"x": Interval(-1.0, 1.0)})
    assert proved["z"] == Interval(0.0, 1.0)
    assert "y" not in proved  # the slope is the caller's


def test_float16_rounds_more_coarsely() -> None:
    generator = np.random.default_rng(0)
    w = generator.standard_normal((64, 8)).astype(np.float16)
    proto = build(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": np.zeros((5, 64), np.float16)}, {"w": w}, ["y"]
    )
    x = np.where(w.T > 0, 1, -1).astype(np.float16)[:5]
    proved = check_sound(proto, [{"x": x}], {"x": Interval(-1.0, 1.0)})
    assert np.max(proved["y"].hi) > 1.01 * np.abs(w).sum(axis=0, dtype=np.float64).max()


def test_declarations() -> None:
    model = import_model(text("g (float[3] image) => (y) { y = Neg(image) }"))
    assert analyze_intervals(model) == {}
    with pytest.raises(OptionError, match="did you mean 'image'"):
        analyze_intervals(model, {"imagee": Interval(0.0, 1.0)})
    assert parse_input_ranges(["a=b=-1:2.5", "c=0:inf"]) == {
        "a=b": Interval(-1.0, 2.5),
        "c": Interval(0.0, float("inf")),
    }
    for bad in ("image", "image=1", "=0:1", "image=2:1", "image=a:b", "image=nan:1"):
        with pytest.raises(OptionError, match="NAME=LO:HI"):
            parse_input_ranges([bad])


def test_the_pass_writes_and_replaces_ranges() -> None:
    model = import_model(text("g (float[3] image) => (y) { n = Neg(image) y = Relu(n) }"))
    result = AnalyzeRanges(("image=0:255",)).run(model, PassContext())
    assert result.changed
    assert result.statistics == {"ranges": 3, "bounded": 3, "per channel": 0}
    image, (n, y) = model.graph.inputs[0], [node.output for node in model.graph.nodes]
    assert (image.range, n.range, y.range) == (Interval(0.0, 255.0), Interval(-255.0, 0.0), Interval(0.0, 0.0))
    assert not AnalyzeRanges().run(model, PassContext()).changed  # the input carries its range now
    image.range = None
    AnalyzeRanges().run(model, PassContext())
    assert (n.range, y.range) == (None, Interval(0.0, float("inf")))


@pytest.mark.skipif(not ZOO.is_dir(), reason="no ../shared/zoo beside the project")
@pytest.mark.parametrize(
    "name", ["resnet20-cifar10", "dscnn-kws-mlperf", "vit-cifar10", "charrnn-lstm-shakespeare", "stories260k-llama"]
)
def test_trained_models_stay_in_range(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ZOO))
    import load  # type: ignore[import-not-found]

    monkeypatch.delitem(sys.modules, "load")
    path, _, feeds, _ = load.load(name, 1, 3)
    declared = {
        key: Interval(float(min(f[key].min() for f in feeds)), float(max(f[key].max() for f in feeds)))
        for key, array in feeds[0].items()
        if array.dtype == np.float32
    }
    proto = onnx.load(path)
    proved = check_sound(proto, feeds, declared)
    assert check_sound(proto, feeds).keys() <= proved.keys()
    if name in ("resnet20-cifar10", "dscnn-kws-mlperf"):
        assert all(proved[node.output[0]].is_bounded for node in proto.graph.node)


def test_golden_models_stay_in_range() -> None:
    root = Path(__file__).resolve().parents[2] / "golden_models"
    checked = 0
    for folder in sorted(root.glob("*/test_data_set_0"))[:4]:
        proto = onnx.load(folder.parent / "model.onnx")
        feed = {}
        for index, value in enumerate(proto.graph.input):
            path = folder / f"input_{index}.pb"
            feed[value.name] = numpy_helper.to_array(onnx.load_tensor(path))
        check_sound(proto, [feed])
        checked += 1
    assert checked
