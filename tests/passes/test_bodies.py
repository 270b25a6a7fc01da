"""Bodies of If, Loop and Scan on integers: annotated, emitted so that kernels form inside of them, run and audited."""

from __future__ import annotations

import numpy as np

from qir.codegen import to_bytes
from qir.ir import StaticQuant
from qir.pipeline import Pipeline
from qir.runtime.optimized import op_name, optimized_model, walk
from qir.targets.audit import audit
from tests.passes.int8 import Feed, annotated, emit, model, node, types

WEIGHTS = """
    @w: f32[32,64,3,3] = #01
    @v: f32[32,32,3,3] = #02
"""
BRANCHES = f"""graph g(%p: bool[], %x: f32[1,64,8,8]) -> (%y) {{{WEIGHTS}
    %y: f32[1,32,8,8] = If(%p) {{
        then_branch=graph t() -> (%a) {{
            %c: f32[1,32,8,8] = Conv(%x, @w) {{pads=[1, 1, 1, 1]}}
            %r: f32[1,32,8,8] = Relu(%c)
            %a: f32[1,32,8,8] = Conv(%r, @v) {{pads=[1, 1, 1, 1]}}
        }},
        else_branch=graph e() -> (%b) {{
            %b: f32[1,32,8,8] = Conv(%x, @w) {{pads=[1, 1, 1, 1]}}
        }}
    }}
}}"""
CAPTURE = f"""graph g(%p: bool[], %x: f32[1,64,8,8]) -> (%y) {{{WEIGHTS}
    %c: f32[1,32,8,8] = Conv(%x, @w) {{pads=[1, 1, 1, 1]}}
    %r: f32[1,32,8,8] = Relu(%c)
    %y: f32[1,32,8,8] = If(%p) {{
        then_branch=graph t() -> (%a) {{
            %a: f32[1,32,8,8] = Conv(%r, @v) {{pads=[1, 1, 1, 1]}}
        }},
        else_branch=graph e() -> (%b) {{
            %b: f32[1,32,8,8] = Identity(%r)
        }}
    }}
}}"""
LOOP = """graph g(%n: s64[], %x: f32[2,16]) -> (%y) {
    @go: bool[] = true
    @w: f32[16,16] = #01
    %y: f32[2,16] = Loop(%n, @go, %x) {
        body=graph b(%i: s64[], %more: bool[], %s: f32[2,16]) -> (%still, %t) {
            %still: bool[] = Identity(%more)
            %m: f32[2,16] = MatMul(%s, @w)
            %t: f32[2,16] = Tanh(%m)
        }
    }
}"""


def samples(key: str, values: list[int], shape: tuple[int, ...]) -> list[Feed]:
    draw = np.random.default_rng(0)
    dtype = np.bool_ if key == "p" else np.int64
    return [{key: np.array(v, dtype), "x": draw.normal(size=shape).astype(np.float32)} for v in values]


def test_both_branches_run_on_integer_kernels() -> None:
    done = emit(model(BRANCHES), samples("p", [0, 1, 0, 1], (1, 64, 8, 8)))
    assert done.ops["QLinearConv"] == 3 and not done.ops["Conv"] and not done.ops["FusedConv"]
    assert done.on > 30 and done.between > 45
    paths = [
        path
        for path, found in walk(optimized_model(to_bytes(done.model)).proto.graph)
        if "QLinearConv" in op_name(found)
    ]
    assert all(len(path) == 1 for path in paths)


def test_a_branch_that_no_sample_took_stays_float_and_is_told() -> None:
    result = annotated(model(BRANCHES), samples("p", [1, 1], (1, 64, 8, 8)))
    assert [found.kernel for found in result.model.walk() if found.op == "Conv"] == ["integer", "integer", "float"]
    told = [str(remark) for remark in result.remarks if "no calibration sample ran the body" in str(remark)]
    assert len(told) == 1


def test_a_captured_value_is_stored_outside_and_dequantized_inside() -> None:
    source = model(CAPTURE)
    feeds = samples("p", [0, 1, 0, 1], (1, 64, 8, 8))
    inner = annotated(source, feeds).model
    assert isinstance(types(inner, "Conv", 1)[0], StaticQuant) and node(inner, "Conv", 1).use(0) is not None
    stored = node(inner, "Relu").output
    assert stored.quant == types(inner, "Conv", 1)[0]
    done = emit(source, feeds)
    assert done.ops["QLinearConv"] == 2
    assert done.emitted_ops()["QuantizeLinear"] == 3  # the input, the captured value, the result in the branch
    assert done.on > 30


def test_a_loop_body() -> None:
    done = emit(model(LOOP), samples("n", [1, 3, 2], (2, 16)))
    assert done.ops["MatMulIntegerToFloat"] + done.ops["QGemm"] == 1
    assert done.on > 25 and done.between > 60


def test_an_unfused_convolution_of_a_body_is_found_and_made_float() -> None:
    """Its result is an output of the branch and read by a float operator: the annotations are planted wrong here."""
    source = model(BRANCHES)
    feeds = samples("p", [0, 1, 0, 1], (1, 64, 8, 8))
    planted = annotated(source, feeds).model
    last = node(planted, "Conv", 1)
    last.output.quant = None
    emitted = Pipeline.parse("emit-qdq").run(planted.clone()).model
    islands = audit(emitted, to_bytes(emitted)).islands
    assert [island.op for island in islands] == ["Conv"]
    placed = Pipeline.parse("place").run(planted, calibration=feeds).model
    assert [found.kernel for found in placed.walk() if found.op == "Conv"] == ["integer", "float", "integer"]


def test_the_whole_preset_on_a_loop_with_branches() -> None:
    text = """graph g(%n: s64[], %x: f32[32,256]) -> (%y) {
        @go: bool[] = true
        @one: s64[] = 1
        @w: f32[256,256] = #01
        @v: f32[256,256] = #02
        %y: f32[32,256] = Loop(%n, @go, %x) {
            body=graph b(%i: s64[], %more: bool[], %s: f32[32,256]) -> (%still, %t) {
                %still: bool[] = Identity(%more)
                %late: bool[] = Greater(%i, @one)
                %m: f32[32,256] = If(%late) {
                    then_branch=graph h() -> (%a) { %a: f32[32,256] = MatMul(%s, @w) },
                    else_branch=graph e() -> (%b) { %b: f32[32,256] = MatMul(%s, @v) }
                }
                %t: f32[32,256] = Tanh(%m)
            }
        }
    }"""
    done = emit(model(text), samples("n", [4, 3, 5], (32, 256)), "int8")
    assert done.ops["MatMulIntegerToFloat"] + done.ops["QGemm"] + done.ops["DynamicQuantizeMatMul"] == 2
    assert done.on > 15
