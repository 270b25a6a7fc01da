"""canonicalize: what goes, what has to stay, and the corners between."""

# ruff: noqa: E501  # a graph reads best with a node a line
from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from qir.codegen import export_model, to_bytes
from qir.frontend import import_model
from qir.ir import Interval, Model
from qir.ir.printer import print_model
from qir.ir.verifier import verify
from qir.ops.shape_inference import infer
from qir.passes.structure.canonicalize import Canonicalize
from qir.pipeline.contract import PassContext
from qir.runtime.session import OrtRunner
from tests.passes.support import apply, assert_close, becomes, ir, onnx_text, outputs, stays

PASS = Canonicalize()


def graph(body: str, inputs: str = "%x: f32[2,3,4]", output: str = "%y") -> str:
    return f"graph g({inputs}) -> ({output}) {{\n{body}\n}}\n"


def test_identities_go_and_the_outputs_name_stays() -> None:
    becomes(PASS, graph("%a = Identity(%x)\n%b = Relu(%a)\n%y = Identity(%b)"), graph("%y = Relu(%x)"))


def test_an_identity_between_input_and_output_stays() -> None:
    stays(PASS, graph("%y = Identity(%x)"))
    becomes(PASS, graph("%a = Identity(%x)\n%y = Identity(%a)"), graph("%y = Identity(%x)"))


def test_one_value_under_two_output_names_needs_its_identity() -> None:
    stays(PASS, graph("%y = Relu(%x)\n%z = Identity(%y)", output="%y, %z"))


@pytest.mark.parametrize(
    ("line", "opset"),
    [
        ("%a = Dropout(%x)", 17),
        ("%a, %mask = Dropout(%x)", 9),
        ("%a = Cast(%x) {to=1}", 17),
        ("@s: s64[3] = [2, 3, 4]\n%a = Reshape(%x, @s)", 17),
        ("@s: s64[3] = [0, -1, 4]\n%a = Reshape(%x, @s)", 17),
        ("%a = Transpose(%x) {perm=[0, 1, 2]}", 17),
        ("@p: s64[6] = [0, 0, 0, 0, 0, 0]\n%a = Pad(%x, @p)", 17),
        ("%a = Pad(%x) {pads=[0, 0, 0, 0, 0, 0]}", 9),
        (
            "@b: s64[2] = [0, 0]\n@e: s64[2] = [3, 9223372036854775807]\n@d: s64[2] = [1, -1]\n%a = Slice(%x, @b, @e, @d)",
            17,
        ),
        ("%a = Slice(%x) {axes=[2], ends=[4], starts=[0]}", 9),
        ("%a = Concat(%x) {axis=1}", 17),
        ("@s: s64[2] = [1, 4]\n%a = Expand(%x, @s)", 17),
        ("@s: s64[3] = [1, 1, 1]\n%a = Tile(%x, @s)", 17),
        ("@d: s64[1] = [0]\n%b = Unsqueeze(%x, @d)\n%a = Squeeze(%b, @d)", 17),
        ("%b = Unsqueeze(%x) {axes=[1]}\n%a = Squeeze(%b) {axes=[1]}", 11),
        ("%b = Cast(%x) {to=11}\n%a = Cast(%b) {to=1}", 17),
        ("%b = Transpose(%x) {perm=[2, 0, 1]}\n%a = Transpose(%b) {perm=[1, 2, 0]}", 17),
        ("%b = Transpose(%x)\n%a = Transpose(%b)", 17),
        ("%a = Clip(%x)", 17),
    ],
)
def test_what_does_nothing_goes(line: str, opset: int) -> None:
    becomes(PASS, graph(f"{line}\n%y = Relu(%a)"), graph("%y = Relu(%x)"), opset)


@pytest.mark.parametrize(
    ("line", "opset"),
    [
        ("@r: f32[] = 0.5\n@t: bool[] = true\n%a = Dropout(%x, @r, @t)", 17),
        ("%d, %mask = Dropout(%x)\n%n = Not(%mask)\n%c = Cast(%n) {to=1}\n%a = Add(%d, %c)", 10),
        ("%b = Cast(%x) {to=10}\n%a = Cast(%b) {to=1}", 17),
        ("@s: s64[3] = [2, 4, 3]\n%a = Reshape(%x, @s)", 17),
        ("%a = Transpose(%x) {perm=[0, 2, 1]}", 17),
        ("@b: s64[1] = [0]\n@e: s64[1] = [2]\n@d: s64[1] = [1]\n%a = Slice(%x, @b, @e, @d)", 17),
        (
            "@b: s64[1] = [-1]\n@e: s64[1] = [-9223372036854775807]\n@d: s64[1] = [1]\n@t: s64[1] = [-1]\n"
            "%a = Slice(%x, @b, @e, @d, @t)",
            17,
        ),
        ("@s: s64[4] = [1, 1, 1, 1]\n%a = Expand(%x, @s)", 17),
        ("@lo: f32[] = 0.0\n%a = Clip(%x, @lo)", 17),
    ],
)
def test_what_does_something_stays(line: str, opset: int) -> None:
    model = ir(graph(f"{line}\n%y = Relu(%a)"), opset)
    before = len(list(model.walk()))
    apply(PASS, model)
    assert len(list(model.walk())) == before


def test_a_reshape_with_a_dynamic_axis_goes_only_where_it_is_certain() -> None:
    body = "@s: s64[2] = [{}]\n%a = Reshape(%x, @s)\n%y = Relu(%a)"
    becomes(PASS, graph(body.format("-1, 4"), "%x: f32[N,4]"), graph("%y = Relu(%x)", "%x: f32[N,4]"))
    becomes(PASS, graph(body.format("0, -1"), "%x: f32[N,4]"), graph("%y = Relu(%x)", "%x: f32[N,4]"))
    stays(PASS, graph(body.format("-1, 4"), "%x: f32[N,8]"))
    stays(PASS, graph(body.format("-1, 4"), "%x: f32[N,M]"))
    stays(PASS, graph(body.format("-1, 0"), "%x: f32[2,0]"))


def test_chains_of_reshapes_and_transposes_become_one() -> None:
    becomes(
        PASS,
        graph(
            "@s: s64[2] = [6, 4]\n@t: s64[2] = [3, 8]\n%a = Reshape(%x, @s)\n%b = Reshape(%a, @t)\n%c = Flatten(%b)\n"
            "%y = Relu(%c)"
        ),
        graph("@t: s64[2] = [3, 8]\n%b = Reshape(%x, @t)\n%y = Relu(%b)"),
    )
    becomes(
        PASS,
        graph("%a = Transpose(%x) {perm=[0, 2, 1]}\n%b = Transpose(%a) {perm=[2, 0, 1]}\n%y = Relu(%b)"),
        graph("%b = Transpose(%x) {perm=[1, 0, 2]}\n%y = Relu(%b)"),
    )


def test_a_zero_in_a_reshape_chain_copies_the_middle_shape() -> None:
    model = ir(graph("@s: s64[2] = [6, 4]\n@t: s64[3] = [0, 2, 2]\n%a = Reshape(%x, @s)\n%y = Reshape(%a, @t)"))
    feed = {"x": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}
    expected = outputs(model, feed)
    apply(PASS, model)
    assert [node.op for node in model.graph.nodes] == ["Reshape"]
    assert_close(outputs(model, feed), expected)
    # Unknown middle axis: the 0 means something that only the middle shape knows.
    stays(
        PASS,
        graph(
            "@s: s64[2] = [-1, 4]\n@t: s64[3] = [0, 2, 2]\n%a = Reshape(%x, @s)\n%y = Reshape(%a, @t)", "%x: f32[N,M]"
        ),
    )


def test_equal_computations_are_merged_across_a_chain() -> None:
    becomes(
        PASS,
        graph("%a = Exp(%x)\n%b = Exp(%x)\n%c = Neg(%a)\n%d = Neg(%b)\n%y = Add(%c, %d)"),
        graph("%a = Exp(%x)\n%c = Neg(%a)\n%y = Add(%c, %c)"),
    )


@pytest.mark.parametrize(
    "body",
    [
        "%a = RandomNormalLike(%x) {seed=1.0}\n%b = RandomNormalLike(%x) {seed=1.0}\n%y = Add(%a, %b)",
        "%a = Bernoulli(%x)\n%b = Bernoulli(%x)\n%y = Add(%a, %b)",
        "%a = my.own.Op(%x)\n%b = my.own.Op(%x)\n%y = Add(%a, %b)",
        "%a = Elu(%x) {alpha=0.0}\n%b = Elu(%x) {alpha=-0.0}\n%y = Add(%a, %b)",
        "%a q=u8(0.1, 0) = Exp(%x)\n%b = Exp(%x)\n%y = Add(%a, %b)",
        "%a = Exp(%x) kernel=integer\n%b = Exp(%x)\n%y = Add(%a, %b)",
    ],
)
def test_what_only_looks_equal_is_not_merged(body: str) -> None:
    model = ir(graph(body))
    apply(PASS, model)
    assert len(list(model.walk())) == 3


def test_merged_nodes_remember_both_sources() -> None:
    model = ir(graph('%a = Exp(%x) name="one"\n%b = Exp(%x) name="two"\n%y = Add(%a, %b)'))
    apply(PASS, model)
    assert next(iter(model.graph.nodes)).sources == ["one", "two"]


def test_duplicate_constants_are_merged_bit_by_bit() -> None:
    becomes(
        PASS,
        graph("@a: f32[2] = [nan, 1.0]\n@b: f32[2] = [nan, 1.0]\n%c = Add(%x, @a)\n%y = Mul(%c, @b)", "%x: f32[2]"),
        graph("@a: f32[2] = [nan, 1.0]\n%c = Add(%x, @a)\n%y = Mul(%c, @a)", "%x: f32[2]"),
    )
    stays(PASS, graph("@a: f32[1] = [0.0]\n@b: f32[1] = [-0.0]\n%c = Mul(%x, @a)\n%y = Mul(%c, @b)", "%x: f32[2]"))
    stays(PASS, graph("@a: f32[1] = [2.0]\n@b: f32[1,1] = [2.0]\n%c = Add(%x, @a)\n%y = Mul(%c, @b)", "%x: f32[2,2]"))
    stays(
        PASS,
        graph("@a: f32[1] q=s8(0.1, 0) = [2.0]\n@b: f32[1] = [2.0]\n%c = Add(%x, @a)\n%y = Mul(%c, @b)", "%x: f32[2]"),
    )


def test_a_constant_that_only_an_annotation_names_stays() -> None:
    model = ir(graph('@scale: f32[] = 0.1\n%y annotation={"SCALE_TENSOR": "scale"} = Relu(%x)'))
    result = apply(PASS, model)
    assert not result.changed
    assert [value.name for value in model.graph.initializers] == ["scale"]


def test_dead_nodes_and_unused_constants_go() -> None:
    becomes(
        PASS,
        graph("@w: f32[4] = [1, 2, 3, 4]\n%a = Add(%x, @w)\n%b = Exp(%a)\n%y = Relu(%x)"),
        graph("%y = Relu(%x)"),
    )


def test_a_dead_node_of_an_unknown_domain_stays() -> None:
    stays(PASS, graph("%a = my.own.Log(%x)\n%y = Relu(%x)"))


CONSTANT_FORMS = """g (float[2] x) => (float[2] y, string[1] s, string[2] t) {
    a = Constant<value = float[2] {1, 2}>()
    b = Constant<value_float = 3.0>()
    c = Constant<value_floats = [1.0, 2.0]>()
    d = Constant<value_int = 1>()
    e = Constant<value_ints = [2]>()
    f = Constant<value_string = "s">()
    h = Constant<value_strings = ["t", "u"]>()
    i = Add(x, a)  j = Add(i, b)  k = Add(j, c)
    l = Reshape(k, e)  m = Cast<to = 1>(d)  y = Add(l, m)
    s0 = Constant<value_ints = [1]>() s = Reshape(f, s0)  t = Identity(h)
}"""


def test_constant_nodes_of_every_form_become_initializers() -> None:
    model = onnx_text(CONSTANT_FORMS)
    feed = {"x": np.array([1, 2], np.float32)}
    expected = outputs(model, feed)
    result = apply(PASS, model)
    assert result.statistics["lifted-constant"] == 8
    assert not any(node.op == "Constant" for node in model.walk())
    assert_close(outputs(model, feed), expected)


def test_a_constant_that_is_the_output_stays_a_node() -> None:
    stays(PASS, graph("%y: f32[1] = Constant() {value=f32[1] [1.0]}\n%z = Relu(%x)", output="%y, %z"))


def test_initializers_listed_as_inputs_become_constants() -> None:
    text = '<ir_version: 3, opset_import: ["" : 9]> g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }'
    model = import_model(onnx.parser.parse_model(text))
    infer(model)
    result = apply(PASS, model)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.ir_version == 4
    assert "1 initializer(s) are no longer inputs" in str(result.remarks[0])
    kept = import_model(onnx.parser.parse_model(text))
    assert not apply(Canonicalize(keep_inputs=True), kept).changed


def test_an_overridable_initializer_that_stays_is_no_constant() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N] x, int64[1] s) => (float[M] y)
        <int64[1] s = {-1}, int64[1] t = {-1}> { a = Reshape(x, s)  b = Reshape(x, t)  y = Add(a, b) }"""
    model = import_model(onnx.parser.parse_model(text))
    infer(model)
    apply(Canonicalize(keep_inputs=True), model)
    assert [value.name for value in model.graph.inputs] == ["x", "s"]
    assert "Reshape" in [node.op for node in model.walk()]


@pytest.mark.parametrize(
    ("line", "low", "high", "goes"),
    [
        ("%a = Relu(%x)", 0.0, 5.0, True),
        ("%a = Relu(%x)", -0.1, 5.0, False),
        ("@l: f32[] = 0.0\n@h: f32[] = 6.0\n%a = Clip(%x, @l, @h)", 0.0, 6.0, True),
        ("@l: f32[] = 0.0\n@h: f32[] = 6.0\n%a = Clip(%x, @l, @h)", 0.0, 6.1, False),
        ("@h: f32[] = 6.0\n%a = Clip(%x, _, @h)", float("-inf"), 6.0, True),
    ],
)
def test_clips_that_the_range_never_reaches_go(line: str, low: float, high: float, goes: bool) -> None:
    model = ir(graph(f"{line}\n%y = Exp(%a)"))
    model.graph.inputs[0].range = Interval(low, high)
    apply(PASS, model)
    assert len(list(model.walk())) == (1 if goes else 2)


def test_an_identity_that_changes_the_quantization_stays() -> None:
    stays(PASS, graph("%a q=u8(0.1, 0) = Identity(%x)\n%y = Relu(%a)"))


IF = """g (bool c, float[2] x) => (float[2] y) {
    one = Constant<value = float {1}>()
    a = Identity(x)
    y = If(c) <
        then_branch = t () => (float[2] p) { d = Identity(a)  e = Exp(d)  f = Exp(a)  p = Add(e, f) },
        else_branch = f () => (float[2] q) { two = Constant<value = float {2}>()  u = Mul(x, two)  q = Identity(u) }
    >
}"""


def test_bodies_are_cleaned_too() -> None:
    model = onnx_text(IF)
    feeds = [{"c": np.array(flag), "x": np.array([1, 2], np.float32)} for flag in (True, False)]
    expected = [outputs(model, feed) for feed in feeds]
    apply(PASS, model)
    assert sorted(node.op for node in model.walk()) == ["Add", "Exp", "If", "Mul"]
    for feed, wanted in zip(feeds, expected, strict=True):
        assert_close(outputs(model, feed), wanted)


PASSING_LOOP = """g (int64 n, float[2] x) => (float[2] y) {
    t = Constant<value = bool {1}>()
    y = Loop(n, t, x) <body = b (int64 i, bool go, float[2] v) => (bool go2, float[2] w) { go2 = Identity(go)  w = Identity(v) }>
}"""


def test_a_body_hands_no_input_or_captured_value_straight_out() -> None:
    model = onnx_text(PASSING_LOOP)
    apply(PASS, model)
    assert sorted(node.op for node in model.walk()) == ["Identity", "Identity", "Loop"]


FUNCTION = """<ir_version: 9, opset_import: ["" : 17, "my" : 1]>
g (float[2] x) => (float[2] y) { y = my.f<k = 2.0>(x) }
<domain: "my", opset_import: ["" : 17]> f<k>(a) => (b) {
    i = Identity(a)  c = Constant<value_float: float = @k>()  d = Constant<value_float = 1.0>()
    e = Add(i, c)  h = Add(a, c)  b = Div(e, h)
}"""


def test_functions_are_cleaned_and_keep_their_constant_nodes() -> None:
    model = import_model(onnx.parser.parse_model(FUNCTION))
    infer(model)
    feed = {"x": np.array([1, 2], np.float32)}
    expected = outputs(model, feed)
    result = apply(PASS, model)
    (function,) = model.functions.values()
    assert sorted(node.op for node in function.graph.nodes) == ["Add", "Constant", "Div"]
    assert result.statistics == {"identity": 1, "common-subexpression": 1, "dead-node": 3}
    assert_close(outputs(model, feed), expected)


def test_undo_restores_the_graph() -> None:
    model: Model = onnx_text(IF)
    before = print_model(model)
    model.begin("canonicalize")
    assert PASS.run(model, PassContext()).changed
    model.rollback()
    assert print_model(model) == before


@pytest.mark.parametrize(
    ("line", "left", "opset"),
    [
        ("%y, %i = MaxPool(%x) {kernel_shape=[2, 2]}", 1, 17),
        ("%y, %m, %s = LayerNormalization(%x, @g)", 1, 17),
        ("%y, %m, %s = LayerNormalization(%x, @g)\n%z = Neg(%m)", 2, 17),
        ("%u, %y, %c = LSTM(%r, @w, @v) {hidden_size=2}", 2, 17),
        ("%y, %i = TopK(%x, @k)", 2, 17),  # not optional
        ("%y, %a, %b, %c, %d = BatchNormalization(%x, @g, @g, @g, @g)", 5, 9),  # with one result it would not train
    ],
)
def test_optional_results_that_nobody_reads(line: str, left: int, opset: int) -> None:
    model = ir(
        f"""graph g(%x: f32[1,2,2,2], %r: f32[3,1,2]) -> (%y{", %z" if "%z" in line else ""}) {{
          @g: f32[2] = [1, 2] @k: s64[1] = [1] @w: f32[1,8,2] #1 @v: f32[1,8,2] #2
          {line}
        }}""",
        opset,
    )
    types = [value.type for value in model.graph.outputs]
    apply(Canonicalize(), model)
    node = model.graph.nodes.first
    assert node is not None and len(node.outputs) == left
    assert [bool(value.name) for value in node.outputs] == ([False, True] if node.op == "LSTM" else [True] * left)
    infer(model)
    verify(model)
    assert [value.type for value in model.graph.outputs] == types
    if opset > 9:
        OrtRunner(to_bytes(model))


def test_a_dropped_result_comes_back_when_the_pass_is_undone() -> None:
    model = ir("graph g(%x: f32[1,2,4,4]) -> (%y) { %y, %i = MaxPool(%x) {kernel_shape=[2, 2]} }")
    model.graph.recorded_types[next(model.walk()).outputs[1]] = None
    before = print_model(model)
    model.begin("canonicalize")
    assert Canonicalize().run(model, PassContext()).statistics == {"unused-output": 1}
    exported = export_model(model).graph
    assert list(exported.node[0].output) == ["y"] and not exported.value_info
    model.rollback()
    assert print_model(model) == before
