"""equalize: the same function from evener weights, and a reason wherever it keeps away."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qir.errors import DataError
from qir.frontend import import_model
from qir.ir import Model, Tensor
from qir.ops.shape_inference import infer
from qir.passes.accuracy.equalize import Equalize
from qir.passes.accuracy.scaling.layers import Layer, layer_of
from qir.pipeline import PassContext, PassReport, Pipeline, RemarkKind
from tests.passes.int8 import feeds, model, node
from tests.passes.support import apply, assert_close, outputs
from tests.passes.test_properties import model_bytes

IMAGE = "%x: f32[1,4,8,8]"


def graph(body: str, inputs: str = IMAGE, results: str = "%y") -> Model:
    return uneven(model(f"graph g({inputs}) -> ({results}) {{\n{body}\n}}"))


def uneven(source: Model) -> Model:
    """With weights and biases whose channels differ by orders of magnitude along every axis."""
    for value in source.graph.initializers:
        tensor = value.tensor
        if tensor is not None and value.name.startswith(("w", "b")):
            array = tensor.numpy()
            rng = np.random.default_rng(len(value.name))
            for axis, size in enumerate(array.shape[:2]):
                shape = [-1 if i == axis else 1 for i in range(array.ndim)]
                array = array * np.exp(rng.uniform(-3, 3, size)).reshape(shape).astype(np.float32)
            value.const = Tensor.of(array)
    return source


def run(source: Model, pass_: Equalize | None = None, samples: int = 0) -> tuple[Model, PassReport]:
    """The equalised copy and what the pass said; its outputs are checked."""
    data = feeds(source, samples or 3)
    result = Pipeline([pass_ or Equalize()]).run(source, calibration=data if samples else None)
    for feed in data:
        assert_close(outputs(result.model, feed), outputs(source, feed), 2e-5)
    return result.model, result.passes[-1]


def reasons(result: PassReport) -> str:
    return " ".join(remark.message for remark in result.remarks if remark.kind is RemarkKind.MISSED)


def layer(source: Model, op: str, index: int = 0) -> Layer:
    found = layer_of(node(source, op, index))
    assert isinstance(found, Layer)
    return found


CHAINS = {
    "conv": (IMAGE, "@w1: f32[6,4,3,3] #01\n@b1: f32[6] #02\n@w2: f32[5,6,1,1] #03",
             "%a = Conv(%x, @w1, @b1)\n%r = Relu(%a)\n%y = Conv(%r, @w2)"),
    "no bias": (IMAGE, "@w1: f32[6,4,3,3] #01\n@w2: f32[5,6,1,1] #03",
                "%a = Conv(%x, @w1)\n%y = Conv(%a, @w2)"),
    "leaky": (IMAGE, "@w1: f32[6,4,3,3] #01\n@b1: f32[6] #02\n@w2: f32[5,6,1,1] #03",
              "%a = Conv(%x, @w1, @b1)\n%r = LeakyRelu(%a) {alpha=0.1}\n%y = Conv(%r, @w2)"),
    "prelu": (IMAGE, "@w1: f32[6,4,3,3] #01\n@b1: f32[6] #02\n@w2: f32[5,6,1,1] #03\n@slope: f32[6,1,1] #04",
              "%a = Conv(%x, @w1, @b1)\n%r = PRelu(%a, @slope)\n%y = Conv(%r, @w2)"),
    "depthwise": (IMAGE, "@w1: f32[6,4,1,1] #01\n@b1: f32[6] #02\n@w2: f32[6,1,3,3] #03\n@b2: f32[6] #04\n"
                  "@w3: f32[5,6,1,1] #05",
                  "%a = Conv(%x, @w1, @b1)\n%r = Relu(%a)\n%d = Conv(%r, @w2, @b2) {group=6}\n"
                  "%e = Relu(%d)\n%y = Conv(%e, @w3)"),
    "grouped": (IMAGE, "@w1: f32[6,2,3,3] #01\n@b1: f32[6] #02\n@w2: f32[4,3,1,1] #03",
                "%a = Conv(%x, @w1, @b1) {group=2}\n%r = Relu(%a)\n%y = Conv(%r, @w2) {group=2}"),
    "transposed": (IMAGE, "@w1: f32[4,3,3,3] #01\n@b1: f32[6] #02\n@w2: f32[6,2,1,1] #03",
                   "%a = ConvTranspose(%x, @w1, @b1) {group=2}\n%r = Relu(%a)\n%y = ConvTranspose(%r, @w2) {group=2}"),
    "pooled head": (IMAGE, "@w1: f32[6,4,3,3] #01\n@b1: f32[6] #02\n@w2: f32[5,6] #03\n@b2: f32[5] #04",
                    "%a = Conv(%x, @w1, @b1)\n%r = Relu(%a)\n%m = MaxPool(%r) {kernel_shape=[2,2]}\n"
                    "%p = GlobalAveragePool(%m)\n%f = Flatten(%p)\n%y = Gemm(%f, @w2, @b2) {transB=1}"),
    "mean head": (IMAGE, "@w1: f32[6,4,3,3] #01\n@b1: f32[6] #02\n@w2: f32[6,5] #03",
                  "%a = Conv(%x, @w1, @b1)\n%p = ReduceMean(%a) {axes=[2,3], keepdims=0}\n%y = MatMul(%p, @w2)"),
    "gemm": ("%x: f32[3,4]", "@w1: f32[4,6] #01\n@b1: f32[6] #02\n@w2: f32[5,6] #03",
             "%a = Gemm(%x, @w1, @b1) {alpha=0.5, beta=2.0}\n%r = Relu(%a)\n%y = Gemm(%r, @w2) {transB=1}"),
    "matmul": ("%x: f32[2,3,4]", "@w1: f32[4,6] #01\n@b1: f32[6] #02\n@w2: f32[6,5] #03",
               "%a = MatMul(%x, @w1)\n%s = Add(@b1, %a)\n%r = Relu(%s)\n%y = MatMul(%r, @w2)"),
    "scalar offset": ("%x: f32[2,3,4]", "@w1: f32[4,6] #01\n@w2: f32[6,5] #03\n@half: f32[] = 0.5",
                      "%a = MatMul(%x, @w1)\n%s = Sub(%a, @half)\n%y = MatMul(%s, @w2)"),
    "transpose": (IMAGE, "@w1: f32[6,4,1,1] #01\n@b1: f32[6] #02\n@w2: f32[6,5] #03",
                  "%a = Conv(%x, @w1, @b1)\n%t = Transpose(%a) {perm=[0,2,3,1]}\n%y = MatMul(%t, @w2)"),
    "gated": ("%x: f32[2,3,4]", "@w1: f32[4,6] #01\n@w2: f32[4,6] #02\n@w3: f32[6,5] #03",
              "%a = MatMul(%x, @w1)\n%g = MatMul(%x, @w2)\n%s = Sigmoid(%g)\n%m = Mul(%s, %a)\n%y = MatMul(%m, @w3)"),
    "two readers": (IMAGE, "@w1: f32[6,4,3,3] #01\n@w2: f32[5,6,1,1] #02\n@w3: f32[6,1,3,3] #03",
                    "%a = Conv(%x, @w1)\n%r = Relu(%a)\n%y = Conv(%r, @w2)\n%z = Conv(%r, @w3) {group=6}"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_the_function_stays_and_the_ranges_meet(name: str) -> None:
    inputs, constants, nodes = CHAINS[name]
    source = graph(f"{constants}\n{nodes}", inputs, "%y, %z" if "%z" in nodes else "%y")
    done, result = run(source)
    assert result.changed and result.statistics["links"] == (2 if name == "depthwise" else 1)
    layers = [found for one in done.graph.nodes if isinstance(found := layer_of(one), Layer)]
    if name == "gated":
        layers = [layers[0], layers[2]]
    for first, second in zip(layers, layers[1:2] if name == "two readers" else layers[1:], strict=False):
        read = second.input_range()
        if name == "two readers":
            read = np.maximum(read, layers[2].input_range())
        np.testing.assert_allclose(first.output_range(), read, rtol=0.01)


def test_a_second_run_changes_nothing() -> None:
    inputs, constants, nodes = CHAINS["depthwise"]
    source = graph(f"{constants}\n{nodes}", inputs)
    apply(Equalize(), source)


def test_who_asks_for_the_shape_alone_is_no_obstacle() -> None:
    constants = "@w1: f32[4,4,1,1] #01\n@w2: f32[4,4,1,1] #02\n"
    source = graph(constants + "%a = Conv(%x, @w1)\n%z = Shape(%a)\n%y = Conv(%a, @w2)", results="%y, %z")
    assert run(source)[1].changed


def test_a_dead_channel_keeps_its_scale() -> None:
    source = graph("@w1: f32[2,4,1,1] #01\n@w2: f32[3,2,1,1] #02\n%a = Conv(%x, @w1)\n%y = Conv(%a, @w2)")
    weight = node(source, "Conv").input(1)
    assert weight is not None and weight.tensor is not None
    array = weight.tensor.numpy().copy()
    array[1] = 0
    weight.const = Tensor.of(array)
    before = layer(source, "Conv", 1).input_range()
    done, _ = run(source)
    after = layer(done, "Conv", 1).input_range()
    assert after[1] == before[1] and after[0] != before[0]


def test_a_weight_that_another_layer_reads_too_is_copied() -> None:
    source = graph("@w1: f32[4,4,1,1] #01\n%a = Conv(%x, @w1)\n%r = Relu(%a)\n%b = Conv(%r, @w1)\n%y = Sigmoid(%b)")
    done, result = run(source)
    weights = [node(done, "Conv", index).input(1) for index in (0, 1)]
    assert result.changed and weights[0] is not weights[1]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("%a = Conv(%x, @w1)\n%s = Add(%a, %x)\n%y = Conv(%a, @w2)\n%z = Relu(%s)", "Add"),
        ("%a = Conv(%x, @w1)\n%z = Relu(%a)\n%y = Conv(%z, @w2)", "'z' is an output"),
        ("%a = Conv(%x, @w1)\n%z = Sigmoid(%a)\n%y = Conv(%a, @w2)", "Sigmoid"),
        ("%a = Conv(%x, @w1)\n%m = Mul(%a, %a)\n%y = Conv(%m, @w2)\n%z = Relu(%x)", "multiplies scaled values"),
        ("%a = Conv(%x, @w1)\n%m = Clip(%a, @zero, @six)\n%y = Conv(%m, @w2)\n%z = Relu(%x)", "clip=observed"),
    ],
)
def test_what_does_not_commute_is_left_alone_and_named(nodes: str, reason: str) -> None:
    constants = "@w1: f32[4,4,1,1] #01\n@w2: f32[4,4,1,1] #02\n@zero: f32[] = 0.0\n@six: f32[] = 6.0\n"
    _, result = run(graph(constants + nodes, results="%y, %z"))
    assert not result.changed and reason in reasons(result)


def test_weights_on_a_quantization_grid_stay() -> None:
    source = graph("@w1: f32[4,4,1,1] #01\n@w2: f32[4,4,1,1] #02\n%a = Conv(%x, @w1)\n%y = Conv(%a, @w2)")
    weight = node(source, "Conv", 1).input(1)
    assert weight is not None
    weight.frozen = True
    _, result = run(source)
    assert not result.changed


CLIPPED = (
    "@w1: f32[6,4,1,1] #01\n@w2: f32[5,6,1,1] #03\n@zero: f32[] = 0.0\n@top: f32[] = 2.0\n"
    "%a = Conv(%x, @w1)\n%r = Clip(%a, @zero, @top)\n%y = Conv(%r, @w2)"
)


def test_a_clip_that_never_binds_on_a_channel_is_passed_there_only() -> None:
    source = graph(CLIPPED)
    peak = np.max([outputs(_showing(source, "a"), feed)["a"].max(axis=(0, 2, 3)) for feed in feeds(source, 6)], axis=0)
    before = layer(source, "Conv").output_range()
    done, result = run(source, Equalize(clip="observed"), samples=6)
    factor = before / layer(done, "Conv").output_range()
    bound = peak * 1.1 >= 2.0
    assert result.changed and bound.any() and not bound.all(), "the example has channels of both kinds"
    np.testing.assert_allclose(factor[bound], 1, rtol=1e-6)
    assert (np.abs(factor[~bound] - 1) > 0.01).any()
    assert (np.maximum(peak, 0)[~bound] / factor[~bound] <= 2.0 + 1e-6).all()


def _showing(source: Model, name: str) -> Model:
    copy = source.clone()
    copy.graph.add_output(next(value for value in copy.graph.values() if value.name == name))
    return copy


def test_looking_at_clips_needs_samples() -> None:
    with pytest.raises(DataError, match="--calib"):
        Equalize(clip="observed").run(graph(CLIPPED), PassContext())


@pytest.mark.parametrize("options", [{"margin": -0.1}, {"rounds": 0}, {"samples": 0}])
def test_senseless_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        Equalize(**options)  # type: ignore[arg-type]


@settings(max_examples=40)
@given(model_bytes(), st.integers(0, 9))
def test_random_graphs_keep_their_outputs(data: bytes, seed: int) -> None:
    source = import_model(onnx.load_from_string(data))
    infer(source)
    copy = source.clone()
    apply(Equalize(), copy)
    feed = {"x": np.random.default_rng(seed).standard_normal((1, 2, 4, 4)).astype(np.float32)}
    assert_close(outputs(copy, feed), outputs(source, feed), 1e-3)
