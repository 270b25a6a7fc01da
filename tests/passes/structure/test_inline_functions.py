"""inline-functions: calls become bodies, names stay apart, and what must not be inlined stays with a reason."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from qir.frontend import import_model
from qir.ir import Model
from qir.ir.parser import parse_model
from qir.ops.shape_inference import infer
from qir.passes.structure.inline_functions import InlineFunctions
from qir.pipeline.contract import PassContext
from qir.pipeline.pipeline import Pipeline
from tests.passes.support import apply, assert_close, outputs
from tests.textual import CheckPass

PASS = InlineFunctions()


def onnx_model(text: str) -> Model:
    model = import_model(onnx.parser.parse_model(text))
    infer(model)
    return model


def test_a_call_becomes_the_body_with_the_attributes_of_the_call(check_pass: CheckPass) -> None:
    check_pass(
        """
        model opset=[17, my 1]
        graph (%x: f32[4]) -> (%y, %z) {
          %h: f32[4] = my.Scale(%x) {by=2.0} name="first"
          %y: f32[4] = my.Scale(%h) name="second"
          %z: f32[4] = Relu(%h)
        }
        function my.Scale(%a) -> (%b) defaults={by=3.0} opset=[17] {
          %c = Constant() {value_float=@by : float}
          %b = Mul(%a, %c) name="mul"
        }
        """,
        "inline-functions",
        """
        graph (%x: f32[4]) -> (%y, %z) {
          %first/c: f32[] = Constant() {value_float=2.0} name="Constant"
          %h: f32[4] = Mul(%x, %first/c) name="first/mul"
          %second/c: f32[] = Constant() {value_float=3.0} name="Constant_1"
          %y: f32[4] = Mul(%h, %second/c) name="second/mul"
          %z: f32[4] = Relu(%h)
        }
        """,
    )


def test_functions_within_functions_and_references_handed_on(check_pass: CheckPass) -> None:
    check_pass(
        """
        model opset=[17, my 1]
        graph (%x: f32[4,4]) -> (%y) {
          %y: f32[4,4] = my.Outer(%x) {at=1} name="call"
        }
        function my.Outer(%a) -> (%b) attributes=[at] opset=[17, my 1] {
          %t = my.Inner(%a) {axis=@at : int}
          %b = my.Inner(%t) {axis=0}
        }
        function my.Inner(%a) -> (%b) attributes=[axis] opset=[17] {
          %b = Softmax(%a) {axis=@axis : int}
        }
        """,
        "inline-functions",
        """
        graph (%x: f32[4,4]) -> (%y) {
          %call/t: f32[4,4] = Softmax(%x) {axis=1} name="Softmax"
          %y: f32[4,4] = Softmax(%call/t) {axis=0} name="Softmax_1"
        }
        """,
    )


def test_names_in_the_body_do_not_clash_with_those_around(check_pass: CheckPass) -> None:
    check_pass(
        """
        model opset=[17, my 1]
        graph (%t: f32[4], %c: bool[]) -> (%y) {
          %"f/t": f32[4] = Neg(%t) name="f/abs"
          %r: f32[4] = my.Twice(%"f/t", %c) name="f"
          %s: f32[4] = my.Twice(%r, %c) name="g"
          %y: f32[4] = Add(%s, %t)
        }
        function my.Twice(%x, %k) -> (%y) opset=[17] {
          %t = Abs(%x) name="abs"
          %y = If(%k) {
            then_branch=graph () -> (%u) { %u = Exp(%t) name="abs" },
            else_branch=graph () -> (%u) { %u = Sqrt(%t) name="abs" }
          }
        }
        """,
        "inline-functions",
        """
        graph (%t: f32[4], %c: bool[]) -> (%y) {
          %f/t: f32[4] = Neg(%t) name="f/abs"
          %f/t_1: f32[4] = Abs(%f/t) name="f/abs_1"
          %r: f32[4] = If(%c) {then_branch=graph () -> (%f/u) {
            %f/u: f32[4] = Exp(%f/t_1) name="f/abs_2"
          }, else_branch=graph () -> (%f/u_1) {
            %f/u_1: f32[4] = Sqrt(%f/t_1) name="f/abs_3"
          }} name="If"
          %g/t: f32[4] = Abs(%r) name="g/abs"
          %s: f32[4] = If(%c) {then_branch=graph () -> (%g/u) {
            %g/u: f32[4] = Exp(%g/t) name="g/abs_1"
          }, else_branch=graph () -> (%g/u_1) {
            %g/u_1: f32[4] = Sqrt(%g/t) name="g/abs_2"
          }} name="If_1"
          %y: f32[4] = Add(%s, %t)
        }
        """,
    )


def test_an_operand_that_is_left_out(check_pass: CheckPass) -> None:
    check_pass(
        """
        model opset=[17, my 1]
        graph (%x: f32[4], %high: f32[]) -> (%y) {
          %y: f32[4] = my.Cut(%x, _, %high) name="cut"
        }
        function my.Cut(%a, %low, %top) -> (%b) opset=[17] {
          %b = Clip(%a, %low, %top)
        }
        """,
        "inline-functions",
        """
        graph (%x: f32[4], %high: f32[]) -> (%y) {
          %y: f32[4] = Clip(%x, _, %high) name="Clip"
        }
        """,
    )


def test_a_body_that_hands_its_input_straight_out(check_pass: CheckPass) -> None:
    check_pass(
        """
        model opset=[17, my 1]
        graph (%x: f32[4]) -> (%y, %z) {
          %y: f32[4], %t: f32[4] = my.Pass(%x, %x)
          %z: f32[4] = Exp(%t)
        }
        function my.Pass(%a, %b) -> (%a, %b) opset=[17] {
        }
        """,
        "inline-functions",
        """
        graph (%x: f32[4]) -> (%y, %z) {
          %y: f32[4] = Identity(%x) name="Identity"
          %z: f32[4] = Exp(%x)
        }
        """,
    )


def test_overloads_are_told_apart(check_pass: CheckPass) -> None:
    check_pass(
        """
        model opset=[17, my 1]
        graph (%x: f32[4]) -> (%y) {
          %a: f32[4] = my.Op(%x)
          %y: f32[4] = my.Op:other(%a)
        }
        function my.Op(%a) -> (%b) opset=[17] {
          %b = Exp(%a)
        }
        function my.Op:other(%a) -> (%b) opset=[17] {
          %b = Log(%a)
        }
        """,
        "inline-functions",
        """
        graph (%x: f32[4]) -> (%y) {
          %a: f32[4] = Exp(%x) name="Exp"
          %y: f32[4] = Log(%a) name="Log"
        }
        """,
    )


@pytest.mark.parametrize(
    ("function", "call", "reason"),
    [
        ("my.F(%a) -> (%b) opset=[11] { %b = Softmax(%a) }", "my.F(%x)", "Softmax is not the same in both"),
        ("my.F(%a) -> (%b) opset=[17, my 1] { %t = my.F(%a)  %b = Exp(%t) }", "my.F(%x)", "it calls itself"),
        ("my.F(%a) -> (%b) opset=[17] { %b = Exp(%a) }", "my.F(%x : u8(0.1, 0))", "quantization annotations"),
        (
            "com.microsoft.QuickGelu(%a) -> (%b) opset=[17] { %s = Sigmoid(%a)  %b = Mul(%a, %s) }",
            "com.microsoft.QuickGelu(%x)",
            "the runtime may have a kernel",
        ),
    ],
)
def test_what_stays_says_why(function: str, call: str, reason: str) -> None:
    header = "model ir=10 opset=[17, my 1, com.microsoft 1]\n"
    model = parse_model(f"{header}graph (%x: f32[4]) -> (%y) {{ %y: f32[4] = {call} }}\nfunction {function}")
    result = PASS.run(model, PassContext())
    assert not result.changed
    assert reason in str(result.remarks[0])
    assert len(model.functions) == 1


def test_a_body_for_another_opset_whose_operators_are_the_same_is_inlined() -> None:
    model = onnx_model(
        """<ir_version: 8, opset_import: ["": 17, "my": 1]>
        g (float[4] x) => (float[4] y) { y = my.F(x) }
        <domain: "my", opset_import: ["": 15]> F (a) => (b) { b = Exp(a) }"""
    )
    apply(PASS, model)
    assert [node.op for node in model.walk()] == ["Exp"]
    assert dict(model.opset_imports) == {"": 17}


def test_functions_that_ask_for_any_number_of_nodes_are_not_expanded() -> None:
    functions = "".join(
        f"function my.F{i}(%a) -> (%b) opset=[17, my 1] {{ %t = my.F{i + 1}(%a)  %b = my.F{i + 1}(%t) }}\n"
        for i in range(60)
    )
    model = parse_model(
        "model ir=10 opset=[17, my 1]\ngraph (%x: f32[4]) -> (%y) { %y: f32[4] = my.F0(%x) }\n"
        f"{functions}function my.F60(%a) -> (%b) opset=[17] {{ %b = Exp(%a) }}"
    )
    result = PASS.run(model, PassContext())
    assert not result.changed
    assert f"{1 << 60} nodes" in str(result.remarks[0])


FUNCTIONS = """<ir_version: 8, opset_import: ["": 17, "my": 1]>
g (float[2,4] x, bool c) => (float[2,4] y, float[2,4] z) {
    h = my.Norm <eps = 0.1> (x)
    y = If(c) < then_branch = t () => (p) { p = my.Norm(h) }, else_branch = e () => (q) { q = my.Gate(x, h) } >
    z = my.Gate(h, y)
}
<domain: "my", opset_import: ["": 17], eps: float = 0.5> Norm <> (a) => (b) {
    m = ReduceMean <axes = [-1]> (a)
    d = Sub(a, m)
    s = Mul(d, d)
    e = Constant <value_float: float = @eps> ()
    t = Add(s, e)
    r = Sqrt(t)
    b = Div(d, r)
}
<domain: "my", opset_import: ["": 17, "my": 1]> Gate (a, b) => (c) {
    n = my.Norm <eps = 0.25> (b)
    s = Sigmoid(n)
    c = Mul(a, s)
}"""


@pytest.mark.parametrize("passes", ["inline-functions", "optimize"])
@pytest.mark.parametrize("flag", [True, False])
def test_outputs_stay_what_they_were(passes: str, flag: bool) -> None:
    text = FUNCTIONS.replace(", eps: float = 0.5> Norm <> (a)", "> Norm <eps: float = 0.5> (a)")
    proto = onnx.parser.parse_model(text)
    feed = {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32), "c": np.array(flag)}
    expected = outputs(proto, feed)
    model = Pipeline.parse(passes).run(import_model(proto)).model
    assert not model.functions
    assert_close(outputs(model, feed), expected)


@pytest.mark.parametrize("passes", ["canonicalize", "fold-constants", "fuse"])
def test_passes_work_inside_functions(passes: str) -> None:
    body = {
        "canonicalize": "t = Identity(a)  b = Exp(t)",
        "fold-constants": "k = Constant <value_float: float = 2.0> ()  l = Neg(k)  b = Mul(a, l)",
        "fuse": "t = Relu(a)  u = Clip(t)  b = Relu(u)",
    }[passes]
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17, "my": 1]>
        g (float[4] x) => (float[4] y) {{ y = my.F(x) }}
        <domain: "my", opset_import: ["": 17]> F (a) => (b) {{ {body} }}"""
    )
    feed = {"x": np.array([-1, 0, 1, 2], np.float32)}
    expected = outputs(proto, feed)
    result = Pipeline.parse(passes).run(import_model(proto))
    assert any(entry.changed for entry in result.passes)
    assert_close(outputs(result.model, feed), expected)
