"""partition: what the cost table says is faster in float goes back, whole regions at a time."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest

from qir.ir import Model, StaticQuant
from qir.passes.annotation.partition import Partition
from qir.pipeline import Pipeline, PipelineResult, RemarkKind
from qir.pipeline.registry import load_target
from tests.passes.int8 import QUANTIZE, annotated, kernels, model

WIDE = "@w: f32[64,64,3,3] #01\n@v: f32[64,1,3,3] #02\n@g: f32[64,8,3,3] #03\n"
PAD = "{pads=[1, 1, 1, 1]}"
DEPTHWISE = "{group=64, pads=[1, 1, 1, 1]}"


def graph(body: str, size: int = 28, symbolic: bool = False) -> Model:
    batch = "N" if symbolic else "1"
    return model(f"graph g(%x: f32[{batch},64,{size},{size}]) -> (%y) {{\n{WIDE}{body}\n}}")


def floats(source: Model, options: str = "small-us=0") -> list[str]:
    """Names of the results of what partition took back."""
    found = annotated(source, passes=f"{QUANTIZE},partition{{{options}}}").model
    return [n.output.name for n in found.walk() if n.kernel == "float"]


def test_a_depthwise_convolution_between_wide_ones_stays_on_integers() -> None:
    assert floats(graph(f"%a = Conv(%x, @w) {PAD}\n%b = Conv(%a, @v) {DEPTHWISE}\n%y = Conv(%b, @w) {PAD}")) == []


def test_depthwise_convolutions_among_themselves_go_back() -> None:
    lines = f"%a = Conv(%x, @v) {DEPTHWISE}\n%b = Conv(%a, @v) {DEPTHWISE}\n%y = Conv(%b, @v) {DEPTHWISE}"
    assert floats(graph(lines), "small-us=0 slack=0") == ["a", "b", "y"]


def test_convolutions_of_many_small_groups_go_back() -> None:
    assert floats(graph("%a = Conv(%x, @g) {group=8, pads=[1, 1, 1, 1]}\n%y = Relu(%a)"), "small-us=0 slack=0") == ["a"]


def test_symbols_take_the_sizes_of_a_sample() -> None:
    lines = f"%a = Conv(%x, @v) {DEPTHWISE}\n%y = Relu(%a)"
    assert floats(graph(lines, symbolic=True), "small-us=0 slack=0") == ["a"]


def test_tiny_models_keep_half_of_their_weights_on_integers() -> None:
    source = model(
        "graph g(%x: f32[1,8]) -> (%y) {\n@w: f32[8,32] #01\n@v: f32[32,8] #02\n"
        "%a = MatMul(%x, @w)\n%b = Relu(%a)\n%y = MatMul(%b, @v)\n}"
    )
    assert len(floats(source, "small-us=0 slack=0")) == 2
    assert len(floats(source, "slack=0")) <= 1


def test_what_is_within_the_slack_stays_on_integers() -> None:
    lines = f"%a = Conv(%x, @v) {DEPTHWISE}\n%b = Relu(%a)\n%y = Conv(%b, @v) {DEPTHWISE}"
    assert floats(graph(lines), "small-us=0 slack=0") == ["a", "y"]
    assert floats(graph(lines), "small-us=0 slack=100") == []


@pytest.mark.parametrize("seed", range(6))
def test_the_cut_is_the_cheapest_of_all_divisions(seed: int) -> None:
    draw = np.random.default_rng(seed)
    lines, made = [], ["x"]
    for index in range(5):
        source = made[int(draw.integers(len(made)))]
        name = f"v{index}"
        match int(draw.integers(4)):
            case 0:
                lines.append(f"%{name} = Conv(%{source}, @w) {PAD}")
            case 1:
                lines.append(f"%{name} = Conv(%{source}, @v) {DEPTHWISE}")
            case 2:
                lines.append(f"%{name} = Conv(%{source}, @g) {{group=8, pads=[1, 1, 1, 1]}}")
            case _:
                lines.append(f"%{name} = Add(%{source}, %{made[-1]})")
        made.append(name)
    lines.append(f"%y = Relu(%{made[-1]})")
    before = annotated(graph("\n".join(lines), size=8)).model
    movable = [n for n in before.walk() if n.kernel == "integer"]
    table = load_target("ort-cpu").cost

    def microseconds(integer: dict[str, bool]) -> float:
        total = 0.0
        for n in before.walk():
            on_integers = integer.get(n.output.name, False)
            total += table.node_us_as(n, on_integers) if n in movable else 0.0
        for value in before.graph.values():
            if value.is_constant or value.shape is None:
                continue
            maker = value.producer
            if maker is not None and maker.op == "Relu":  # merged: the convolution before makes it
                operand = maker.input(0)
                maker = operand.producer if operand is not None and value.quant is not None else maker
            stored = maker is not None and value.quant is not None and integer.get(maker.output.name, False)
            readers = [u.node for u in value.uses if u.node is not None and u.node in movable]
            ways = {
                integer[u.node.output.name] and isinstance(u.effective_quant, StaticQuant)
                for u in value.uses
                if u.node in movable
            }
            others = value.is_output or len(readers) < len(list(value.uses))
            total += table.conversion_us(value) * (
                (stored and (False in ways or others)) + (not stored and True in ways)
            )
        return total

    names = [n.output.name for n in movable]
    best = min(
        microseconds(dict(zip(names, sides, strict=True))) for sides in product((False, True), repeat=len(names))
    )
    done = annotated(graph("\n".join(lines), size=8), passes=f"{QUANTIZE},partition{{small-us=0 slack=0}}").model
    sides = {n.output.name: n.kernel == "integer" for n in done.walk() if n.output.name in names}
    assert microseconds(sides) == pytest.approx(best, rel=1e-6)


def test_remarks_name_what_went_back() -> None:
    result = annotated(
        graph("%a = Conv(%x, @g) {group=8, pads=[1, 1, 1, 1]}\n%y = Relu(%a)"), passes=f"{QUANTIZE},partition"
    )
    said = [r.message for r in result.remarks if r.pass_name == Partition.name]
    assert said == ["Conv stays float: its region would be slower on integers"]
    assert kernels(result.model) == []


def asked(source: Model, toml: str) -> PipelineResult:
    """Annotated and placed with a recipe in every pass that takes one."""
    option = f"{{recipe={json.dumps(toml)}}}"
    passes = ",".join(name + option for name in ("calibrate", "quantize", "partition"))
    return annotated(source, passes=f"legalize,analyze-ranges,{passes},place")


def misses(result: PipelineResult) -> list[str]:
    return [remark.message for remark in result.remarks if remark.kind is RemarkKind.MISSED]


@pytest.mark.parametrize("match", ["Conv", "a", "*"])
def test_what_a_recipe_asks_for_stays_on_integers_although_slower(match: str) -> None:
    source = graph("%a = Conv(%x, @g) {group=8, pads=[1, 1, 1, 1]}\n%y = Relu(%a)")
    assert kernels(annotated(source, passes=f"{QUANTIZE},partition").model) == []
    result = asked(source, f'[[node]]\nmatch = "{match}"\nprecision = "int8"')
    assert kernels(result.model) == ["Conv"]
    assert misses(result) == []


def test_a_recipe_may_ask_for_a_small_stem_lstm_or_table() -> None:
    lines = [
        *("@w: f32[16,3,3,3] #01", "@t: f32[8,4] #02", "@wi: f32[1,16,4] #03", "@wh: f32[1,16,4] #04"),
        *("%y = Conv(%x, @w)", "%e = Gather(@t, %i)", "%z = LSTM(%e, @wi, @wh) {hidden_size=4}"),
    ]
    source = model("graph g(%x: f32[1,3,8,8], %i: s64[5,1]) -> (%y, %z) {\n" + "\n".join(lines) + "\n}")
    result = asked(source, '[[node]]\nmatch = ["Conv", "LSTM", "Gather"]\nprecision = "int8"')
    assert {node.op: node.kernel for node in result.model.walk()} == {
        "Conv": "integer",
        "Gather": "integer",
        "LSTM": "DynamicQuantizeLSTM",
    }
    assert misses(result) == []


def test_what_the_target_cannot_do_is_said_where_a_recipe_asks_for_it() -> None:
    source = graph("%a = Conv(%x, @w)\n%y = Tanh(%a)")
    said = misses(asked(source, '[[node]]\nmatch = "Tanh"\nprecision = "int8"'))
    assert said == ["Tanh stays float: onnxruntime does not fuse quantizers into it"]


LOOP = """graph g(%x: f32[1,64]) -> (%y) {
    @n: s64[] = 500
    @on: bool[] = true
    @w: f32[64,64] #01
    %y: f32[1,64] = Loop(@n, @on, %x) {
        body=graph b(%i: s64[], %more: bool[], %s: f32[1,64]) -> (%still, %t) {
            %still: bool[] = Identity(%more)
            %m: f32[1,64] = MatMul(%s, @w)
            %t: f32[1,64] = Tanh(%m)
        }
    }
}"""


def test_models_with_loops_are_never_small() -> None:
    assert floats(model(LOOP), "slack=0") == ["m"]


def test_what_nobody_timed_is_not_taken_back() -> None:
    source = graph(f"%a = Conv(%x, @v) {DEPTHWISE}\n%y = Conv(%a, @v) {DEPTHWISE}")
    samples = [{"x": np.random.default_rng(0).normal(size=(1, 64, 28, 28)).astype(np.float32)}]
    passes = Pipeline.parse(f"{QUANTIZE},partition{{small-us=0 slack=0}}")
    for target, kept in (("ort-cpu", {"float"}), ("qnn-htp", {"integer"}), ("tensorrt", {"integer"})):
        result = passes.run(source, calibration=samples, target=target)
        assert {node.kernel for node in result.model.walk()} == kept
        assert ("were not measured" in str(result.remarks)) == (target != "ort-cpu")
