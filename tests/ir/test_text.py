"""Printing and parsing: nothing is lost either way, and bad text ends in one line with a position."""

from __future__ import annotations

import math
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qir.errors import ParseError, QirError
from qir.ir import (
    Attribute,
    AttrKind,
    CodebookQuant,
    DerivedQuant,
    DType,
    DynamicQuant,
    Function,
    Graph,
    Interval,
    MapType,
    Model,
    OpaqueType,
    OptionalType,
    Region,
    SequenceType,
    SparseTensor,
    SparseTensorType,
    StaticQuant,
    Tensor,
    TensorType,
    Type,
    UseQuant,
    UseQuantMarker,
)
from qir.ir.literals import float_text, parse_float, quote, unquote
from qir.ir.parser import parse_model, parse_text
from qir.ir.printer import print_graph, print_model, print_node, print_value, stored_tensors
from qir.ir.provenance import flatten
from qir.ir.verifier import verify
from tests.ir.random_models import random_model

ZOO = Path(__file__).parents[3] / "shared" / "zoo"


def again(model: Model) -> Model:
    """The model read back from its own text."""
    text = print_model(model)
    parsed = parse_text(text, stored_tensors(model))
    assert not parsed.stubs
    assert print_model(parsed.model) == text
    return parsed.model


@given(st.integers(0, 2**32))
def test_random_models_survive(seed: int) -> None:
    model = random_model(seed, 12)
    verify(again(model))


@pytest.mark.skipif(not ZOO.is_dir(), reason="../shared/zoo is not there")
def test_the_zoo_survives() -> None:
    from qir.frontend import load

    paths = sorted(ZOO.glob("*/model.onnx"))
    assert paths
    for path in paths:
        model = load(path)
        text = print_model(model)
        verify(again(model))
        stubbed = parse_text(text)
        assert print_model(stubbed.model) == text
        assert len(stubbed.stubs) == text.count(" #")


@given(st.text(), st.text(), st.text())
def test_any_name_survives(value: str, node: str, op: str) -> None:
    graph = Graph(value)
    made = graph.add_node(op, [], {node or "a": 1}, name=node, domain=value, overload=node, outputs=[value or "x"])
    graph.add_output(made.output)
    model = again(Model(graph))
    copy = next(model.walk())
    assert (copy.op_id, copy.name, copy.output.name) == (made.op_id, made.name, made.output.name)
    assert model.graph.name == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("/model/layer.0/conv:0", "%/model/layer.0/conv:0"),
        ("a-b", "%a-b"),
        ("a::b", "%a::b"),
        ("12", "%12"),
        ("a b", '%"a b"'),
        ("a:", '%"a:"'),
        ("->", '%"->"'),
        ("größe", '%"größe"'),
        ('"', '%"\\""'),
    ],
)
def test_names_are_bare_where_they_can_be(name: str, text: str) -> None:
    graph = Graph()
    value = graph.add_input(name, TensorType(DType.FLOAT, ()))
    assert print_value(value) == f"{text}: f32[]"


@given(st.text(), st.binary())
def test_strings_survive(text: str, data: bytes) -> None:
    quoted = quote(text)
    assert len(quoted.splitlines()) == 1
    assert unquote(quoted) == text
    tensor = Tensor.of(np.array([data], object))
    graph = Graph()
    graph.add_node("Constant", [], {"s": data, "t": tensor, "l": [data, b"x"]})
    attributes = next(again(Model(graph)).walk()).attributes
    assert attributes["s"].value == data
    assert attributes["l"].value == (data, b"x")
    assert attributes["t"].value.numpy().tolist() == [data]


@given(st.floats() | st.floats(width=32))
def test_floats_survive(value: float) -> None:
    text = float_text(value)
    if value == value:
        assert struct.pack("<d", parse_float(text)) == struct.pack("<d", value)
    graph = Graph()
    graph.add_node("Op", [], {"a": Attribute("a", AttrKind.FLOAT, value)})
    found = next(again(Model(graph)).walk()).attributes["a"]
    assert found.kind is AttrKind.FLOAT
    assert struct.pack("<d", found.value) == struct.pack("<d", value)


def test_floats_are_short() -> None:
    values = (float(np.float32(0.02)), 0.02, 1.0, -0.0, math.inf, 1e30)
    assert [float_text(v) for v in values] == ["0.02", "0.02d", "1", "-0", "inf", "1e+30d"]


@pytest.mark.parametrize("dtype", [d for d in DType if d not in (DType.UNDEFINED, DType.STRING)], ids=str)
def test_every_bit_of_inline_constants_survives(dtype: DType) -> None:
    """All codes of the small types, random bits of the large, NaN payloads among them."""
    bits = np.random.default_rng(0).integers(0, 256, 4096, np.uint8)
    if dtype is DType.BOOL:
        bits &= 1
    elif dtype.bits <= 8:
        bits = np.arange(1 << dtype.bits, dtype=np.uint8)
    array = bits.view(dtype.numpy)
    if dtype.is_integer and dtype.is_signed and dtype.bits < 8:
        array = bits.astype(np.int8).astype(dtype.numpy)
    for start in range(0, len(array), 7):
        graph = Graph()
        part = array[start : start + 7]
        graph.add_initializer("w", Tensor(dtype, part.shape, part))
        copy = next(iter(again(Model(graph)).graph.initializers)).tensor
        assert copy is not None and copy.numpy().tobytes() == part.tobytes()


def test_special_numbers_are_readable() -> None:
    graph = Graph()
    graph.add_initializer("w", Tensor.of([math.nan, math.inf, -math.inf, -0.0, 0.1], DType.FLOAT16))
    graph.add_initializer("c", Tensor.of([1 + 2j], DType.COMPLEX64))
    graph.add_initializer("p", Tensor.of(np.array([0x7FC00001], np.uint32).view(np.float32)))
    text = print_graph(graph)
    assert "@w: f16[5] = [nan, inf, -inf, -0, 0.1]" in text
    assert "@c: c64[1] = [(1, 2)]" in text
    assert "@p: f32[1] = 0x0100c07f" in text
    again(Model(graph))


TYPES: list[Type] = [
    TensorType(DType.FLOAT),
    TensorType(DType.INT4, ()),
    TensorType(DType.FLOAT, ("N", None, 3, "2*N", "", "inf", "?")),
    TensorType(DType.FLOAT, ("N", 3), "IMAGE", ("DATA_BATCH", "")),
    SparseTensorType(DType.DOUBLE, (3,)),
    SequenceType(TensorType(DType.STRING, (None,))),
    SequenceType(None, "TEXT"),
    OptionalType(SequenceType(TensorType(DType.BOOL))),
    MapType(DType.INT64, TensorType(DType.FLOAT)),
    MapType(DType.STRING, None),
    OpaqueType("domain", "name", "meaning"),
    OpaqueType(),
]


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_types_survive(type_: Type) -> None:
    graph = Graph()
    graph.add_input("x", type_)
    graph.add_node("Op", [], {"t": Attribute("t", AttrKind.TYPES, (type_,))})
    model = again(Model(graph))
    assert model.graph.inputs[0].type == type_
    assert next(model.walk()).attributes["t"].value == (type_,)


QUANTS: list[UseQuant] = [
    UseQuantMarker.FLOAT,
    UseQuantMarker.INHERIT,
    StaticQuant.per_tensor(DType.UINT8, 0.0439, 128),
    StaticQuant(DType.INT8, (0.1, 1 / 3), axis=-1),
    StaticQuant(DType.UINT8, (0.1, 0.2), (3, 4), axis=0),
    StaticQuant(DType.INT4, tuple(i / 7 + 0.1 for i in range(100)), axis=1, block_size=32),
    StaticQuant(DType.FLOAT8E4M3FN, (1.0,), axis=0),
    DynamicQuant(DType.UINT8),
    DynamicQuant(DType.INT8, symmetric=True),
    DerivedQuant(2, 3, DType.INT64),
    CodebookQuant(2, ((0.0, 0.5, -1.5, math.inf),)),
    CodebookQuant(1, ((0.0, 1.0), (2.0, 3.0)), axis=0),
    CodebookQuant(1, ((0.0, 1.0, -1.0, 0.5),), axis=1, scale=(0.25, 4.0), dim=2),
]


@pytest.mark.parametrize("quant", QUANTS, ids=lambda quant: str(quant)[:40])
def test_quantization_types_survive(quant: UseQuant) -> None:
    graph = Graph()
    x = graph.add_input("x")
    use = graph.add_node("Op", [x]).use(0)
    assert use is not None
    use.quant = quant
    graph.add_output(x).quant = quant
    if not isinstance(quant, UseQuantMarker):
        x.quant = quant
    model = again(Model(graph))
    assert [use.quant for use in model.graph.inputs[0].uses] == [quant, quant]
    assert model.graph.inputs[0].quant == x.quant


def test_every_field_survives() -> None:
    """What is not visible in the text of the copy is compared itself."""
    graph = Graph("g")
    notes: dict[str, Any] = {"doc": 'a "doc"\n', "metadata": {"k": "v", "": ""}, "extra": b"\x00\xff"}

    def annotate(subject: Any) -> None:
        for key, note in notes.items():
            setattr(subject, key, note)

    x = graph.add_input("x", TensorType(DType.FLOAT, ("N",)))
    x.range = Interval((0.0, -math.inf), (1.0, 0.1), axis=0)
    x.observed = Interval(0.1, 0.3)
    x.annotation = (("SCALE_TENSOR", "s"), ("SCALE_TENSOR", "t"))
    x.frozen = True
    overridable = graph.add_initializer("w", Tensor.of([1.0, 2.0], DType.FLOAT))
    overridable.type = TensorType(DType.FLOAT, ("M",))
    graph.make_input(overridable)
    values = Tensor(DType.FLOAT, (1,), np.ones(1, np.float32), name="values", **notes)
    indices = Tensor(DType.INT64, (1,), np.ones(1, np.int64), name="indices")
    sparse = SparseTensor(values, indices, (5,), b"extra")
    graph.add_initializer("sparse", sparse)
    attributes = {
        "sparse": sparse,
        "tensors": [values, indices],
        "empty": Attribute("empty", AttrKind.FLOATS, ()),
        "ints": [1, 2],
        "floats": [1.0, 2.0],
        "reference": Attribute("reference", AttrKind.GRAPH, None, ref="outer"),
        "nothing": Attribute("nothing", AttrKind.TENSOR, None),
        "undefined": Attribute("undefined", AttrKind.UNDEFINED, None, doc="why", extra=b"\x01"),
        "scalar": Tensor.of(np.float16(1.5)),
    }
    node = graph.add_node("Op", [x, None, overridable], attributes, outputs=["y", ""], domain="a.b", overload="o")
    node.kernel = "weight-only"
    node.region = Region("gelu", 3)
    node.provenance = ("a", ("b", ("a", "c\n")))
    body = Graph("")
    body.add_output(body.add_node("Neg", [x]).output)
    twin = Graph("twin")
    node.set("body", body)
    node.set("bodies", [twin, Graph()])
    graph.add_output(node.output)
    graph.recorded_types = {x: None, node.output: None}
    model = Model(graph, {"": 17, "a.b": 1}, 8)
    model.producer_name, model.producer_version, model.domain, model.model_version = "p", "1", "d", 0
    for subject in (model, graph, x, node, node.output, body):
        annotate(subject)
    inner = Graph()
    inner.add_output(inner.add_node("Neg", [inner.add_input("a")]).output)
    defaults = (Attribute("beta", AttrKind.INT, 3),)
    model.add_function(Function("a.b", "Op", inner, overload="o", attributes=("alpha",), defaults=defaults, extra=b"x"))

    copy = again(model)
    assert (copy.producer_name, copy.producer_version, copy.domain, copy.model_version) == ("p", "1", "d", 0)
    assert (dict(copy.opset_imports), copy.ir_version) == ({"": 17, "a.b": 1}, 8)
    made = next(iter(copy.graph.nodes))
    for attribute, expected in zip(made.attributes.values(), node.attributes.values(), strict=True):
        assert (attribute.kind, attribute.ref, attribute.doc, attribute.extra) == (
            (expected.kind, expected.ref, expected.doc, expected.extra)
        )
        assert expected.graphs or expected.kind is AttrKind.SPARSE_TENSOR or attribute.same(expected)
    assert (made.op_id, made.kernel, made.region) == (node.op_id, node.kernel, node.region)
    assert flatten(made.provenance) == ["a", "b", "c\n"]
    first = copy.graph.inputs[0]
    assert (first.range, first.observed, first.annotation, first.frozen) == (x.range, x.observed, x.annotation, True)
    for subject in (copy, copy.graph, first, made, made.output, made.bodies[0]):
        assert all(getattr(subject, key) == note for key, note in notes.items())
    assert list(copy.graph.recorded_types) == [first, made.output]
    assert made.bodies[0].owner is made and made.bodies[0].nodes.first is not None
    assert made.bodies[0].nodes.first.input(0) is first
    function = copy.functions[("a.b", "Op", "o")]
    assert (function.attributes, function.extra) == (("alpha",), b"x")
    assert function.defaults[0].same(defaults[0])


def test_an_erased_node_prints() -> None:
    model = parse_model("graph (%x: f32[2]) -> (%x) { @w: f32[2] = [1, 2]  %y: f32[2] = Add(%x, @w) }")
    node = next(model.walk())
    node.erase()
    assert print_node(node) == "%y: f32[2] = Add(%x, @w)"


def test_brief_text_is_short_and_says_why_it_is_not_read() -> None:
    graph = Graph()
    x = graph.add_input("x")
    x.quant = StaticQuant(DType.INT8, tuple(float(i) for i in range(1, 99)), axis=0)
    graph.add_initializer("w", Tensor.of(np.zeros(1000, np.float32)))
    text = print_graph(graph, brief=True)
    assert "s8[axis=0]([1, 2, 3, ...], 0)" in text
    assert "@w: f32[1000] #..." in text
    with pytest.raises(ParseError, match="shortened IR text cannot be read back"):
        parse_text(text)


def test_contents_come_from_the_store_by_hash_or_name() -> None:
    tensor = Tensor.of(np.arange(20, dtype=np.float32))
    text = "graph () -> () { @w: f32[20] #1 }"
    for store in ({"1": tensor}, {"w": tensor}):
        parsed = parse_text(text, store)
        (value,) = parsed.model.graph.initializers
        assert not parsed.stubs and value.tensor is not None and value.tensor.same_content(tensor)
    parsed = parse_text(text)
    (value,) = parsed.model.graph.initializers
    assert parsed.stubs == ["w #1"] and value.tensor is not None and value.tensor.is_stub
    with pytest.raises(ParseError, match=r"1:31: the store's tensor for w #1 is f32\[20\]"):
        parse_text("graph () -> () { @w: f32[4,5] #1 }", {"w": tensor})


def test_use_before_definition_is_read_and_left_to_the_verifier() -> None:
    model = parse_model(
        """graph (%x) -> (%y) {
             %y = If(%x) {then_branch=graph () -> (%later) {}}
             %later = Relu(%x)
           }"""
    )
    later = model.graph.nodes.last
    assert later is not None and len(later.output.uses) == 1
    assert print_model(parse_model(print_model(model))) == print_model(model)


ERRORS = [
    ("", "1:1: expected 'graph', found the end of the text"),
    ("graph (%x -> () {}", "1:11: expected ',', found '->'"),
    ("graph () -> (%y) {}", "1:14: value 'y' is not defined"),
    ("graph (%x) -> () {\n  %y = Relu(%z)\n}", "2:13: value 'z' is not defined"),
    ("graph (%x, %x) -> () {}", "1:12: value 'x' is defined twice in this graph"),
    ("graph (%x:f32[1]) -> () {}", "1:14: expected ',', found '['; a type stands after ': ' with a space"),
    ("graph (%x: f33[1]) -> () {}", "1:12: expected an element type such as f32 or s8, found 'f33'"),
    ("graph (%x: i64[1]) -> () {}", "1:12: expected s64, found 'i64'"),
    ("graph (%x: int8[1]) -> () {}", "1:12: expected s8, found 'int8'"),
    ("graph (%x: float32[1]) -> () {}", "1:12: expected f32, found 'float32'"),
    ("graph (%x: bool) -> () {}", "1:16: expected '[' and sizes (bool[] is one element), found ')'"),
    ("graph () -> () { %y = Relu() kernal=integer }", "1:30: expected kernel, role, name, from, doc"),
    ('graph () -> () { %y = Relu() name="a" name="b" }', "1:39: 'name' is given twice"),
    ("graph () -> () { %y = Relu() {a=1, a=2} }", "1:36: attribute 'a' is given twice"),
    ("graph () -> () { %y = Relu() {a=[1, 2.0]} }", "the list of 'a' mixes float and int"),
    ("graph () -> () { %y = Relu() {a=[]} }", "the empty list of 'a' needs its kind, such as ints[]"),
    ('graph () -> () { %y = Relu() name="a\n" }', "1:35: this string does not end on its line"),
    ('graph () -> () { %y = Relu() name="\\q" }', "1:35: unknown escape \\q"),
    ("graph () -> () { ; }", "1:18: no token starts with ';'"),
    ("graph () -> () { @w: f32[2] = [1] }", "1:31: 1 elements for shape [2]"),
    ("graph () -> () { @w: u4[1] = [16] }", "1:30: 16 does not fit into u4"),
    ("graph () -> () { @w: f32[N] = [1] }", "1:18: the constant of @w needs a type with known sizes"),
    ("graph () -> () { @w: f32[2] = 0x00 }", "1:31: f32[2] takes 8 bytes, here are 1"),
    ("graph (%x q=u8(-1, 0)) -> () {}", "1:13: quantization scales must be positive and finite"),
    ("graph (%x range=[nan, 1]) -> () {}", "1:17: an interval's bound is NaN"),
    ('graph (%x extra="!") -> () {}', "1:17: the bytes of 'extra' are not base64"),
    ("graph (%x range=[1e99, 1]) -> () {}", "1:18: 1e99 is too large for float32"),
    ("graph () -> () {} trailing", "1:19: expected the end of the text, found 'trailing'"),
    ("graph () -> () {} function f() -> () {} function f() -> () {}", "1:50: function 'f' is defined twice"),
]


@pytest.mark.parametrize(("text", "message"), ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_errors_say_where_and_what(text: str, message: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_text(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "graph (%x: " + "seq(" * 100_000,
        "graph () -> () { %y = If() {b=" + "graph () -> () { %y = If() {b=" * 10_000,
        "graph (" + "(" * 100_000,
        "graph () -> () { @w: f32[99999999999999999999999999999999999999999999999] #1 }",
        "graph () -> () { @w: f32[" + "9" * 10_000 + "] #1 }",
        "graph () -> () { @w: f32[0,99999999999999999999] = [] }",
        "graph () -> () { @w: f64[] = " + "9" * 10_000 + " }",
        "graph () -> () { %y = A() {a=" + "9" * 10_000 + "} }",
        "graph () -> () { %y = A() role=x#" + "9" * 10_000 + " }",
        'graph () -> () { %y = A() {a="\\u{d800}"} }',
        'graph () -> () { %y = A() name="\\u{110000}" }',
        "graph " + '"' * 99_999,
        "%" * 100_000,
        "graph () -> () {}" + " " * 1_000_000 + ";",
        "// only a comment " + "x" * 1_000_000,
        "\ud800",
        "\x00",
    ],
    ids=lambda text: repr(text[:40]),
)
def test_hostile_text_ends_in_an_error(text: str) -> None:
    with pytest.raises(QirError) as caught:
        parse_text(text)
    assert len(str(caught.value)) < 400


VALID = print_model(random_model(3, 20))


@given(st.data())
def test_damaged_text_ends_in_an_error_or_a_model(data: st.DataObject) -> None:
    """Cut, doubled and replaced pieces of a good text."""
    text = VALID
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 30)))
        pieces = ["", text[start:end] * 2, "%", '"', "[", "1e999", "graph"]
        text = text[:start] + data.draw(st.sampled_from(pieces)) + text[end:]
    try:
        model = parse_model(text)
    except QirError:
        return
    print_model(model)


@given(st.text(alphabet='%@"graph()->{}[]:=,.#0123fnai \n', max_size=80))
def test_garbage_ends_in_an_error(text: str) -> None:
    with pytest.raises(QirError):
        parse_text(f"{text}\n\n?")


def test_text_is_linear_in_the_number_of_tokens() -> None:
    """Counted in calls, not in seconds: twice the nodes cost twice the calls of the lexer and parser."""

    def calls(nodes: int) -> int:
        lines = "".join(f"%v{i} = Relu(%v{i - 1})\n" for i in range(nodes))
        text = f"graph (%v-1) -> () {{{lines}}}"
        count = 0

        def profile(*_: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(profile)
        try:
            parse_text(text)
        finally:
            sys.setprofile(None)
        return count

    small, large = calls(200), calls(400)
    assert 1.8 < large / small < 2.2
