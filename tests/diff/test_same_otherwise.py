"""The same said otherwise is no change but a note: exchanged operands, renamed functions, unused constants, axes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from onnx import ModelProto, numpy_helper

import qir
from qir.diff import ChangeKind, GraphDiff, diff
from qir.frontend import import_model
from qir.ir import Model
from tests.diff.test_changes import ROOT, model, nonzero, proto

HEAD = "g (float[2,3,4] x) => (float[2,3,4] y)"


def notes(found: GraphDiff) -> list[str]:
    return [note.title for note in found.notes if note.kind in (ChangeKind.RESPELLED, ChangeKind.UNUSED_CHANGED)]


def test_operands_of_a_commutative_operator_in_the_other_order() -> None:
    old = model("a = Neg(x) b = Abs(x) s = Add(a, b) t = Mul(s, w) y = Relu(t)", weights={"w": np.float32(2)})
    new = model("b = Abs(x) a = Neg(x) s = Add(b, a) t = Mul(w, s) y = Relu(t)", weights={"w": np.float32(2)})
    found = diff(old, new)
    assert found.identical and len(found.pairs) == 5
    assert notes(found) == ["operands in the other order, which is the same: Add n2_Add, Mul n3_Mul"]
    other = model("b = Abs(x) a = Neg(x) s = Add(b, a) t = Mul(w, s) y = Relu(t)", weights={"w": np.float32(3)})
    assert nonzero(diff(old, other)) == {"weights_changed": 1, "notes": 1}
    subtracted = [model(f"a = Neg(x) b = Abs(x) y = Sub({operands})") for operands in ("a, b", "b, a")]
    assert nonzero(diff(*subtracted)) == {"nodes_changed": 1}


def test_exchanged_operands_beside_an_edit() -> None:
    old = model("a = Neg(x) b = Abs(x) s = Add(a, b) y = Relu(s)")
    new = model("a = Neg(x) b = Abs(x) c = Exp(a) s = Add(b, c) y = Relu(s)")
    found = diff(old, new)
    assert nonzero(found) == {"nodes_added": 1, "notes": 1}, [change.title for change in found.changes]


def test_an_axis_from_the_other_end() -> None:
    last = [model(f"y = Softmax <axis={axis}> (x)", head=HEAD) for axis in (2, -1, 1)]
    assert diff(last[0], last[1]).identical
    assert notes(diff(last[0], last[1])) == ["an axis counted from the other end: Softmax n0_Softmax"]
    assert nonzero(diff(last[0], last[2])) == {"nodes_changed": 1}
    flattening = model("y = Softmax <axis=1> (x)", head=HEAD, opset=11)
    by_default = model("y = Softmax(x)", head=HEAD, opset=11)
    assert diff(flattening, by_default).identical
    for new in (last[1], last[2], model("y = Softmax(x)", head=HEAD)):  # other numbers, the same axis or not
        assert nonzero(diff(flattening, new)) == {"nodes_changed": 1, "opsets_changed": 1}
        assert nonzero(diff(by_default, new)) == {"nodes_changed": 1, "opsets_changed": 1}
    for axis in (2, -1):
        old = model(f"y = Softmax <axis={axis}> (x)", head=HEAD, opset=11)
        assert diff(old, model("y = Softmax(x)", head=HEAD)).summary.nodes_changed == 0


def test_leading_ones_of_a_constant() -> None:
    rows = [np.arange(4, dtype=np.float32).reshape(shape) for shape in ((4,), (1, 4), (1, 1, 4))]
    old, new, third = (model("y = Add(x, w)", weights={"w": row}, head=HEAD) for row in rows)
    assert diff(old, new).identical and diff(old, third).identical and len(notes(diff(old, new))) == 1
    other = model("y = Add(x, w)", weights={"w": rows[1] + 1}, head=HEAD)
    assert nonzero(diff(old, other)) == {"weights_changed": 1}
    flat = "g (float[4] x) => (float[1,4] y)"
    grown = [model("y = Add(x, w)", weights={"w": row}, head=flat) for row in rows[:2]]
    assert not diff(*grown).identical  # the result has another rank


FUNCTIONS = """<ir_version: 8, opset_import: ["": 17, "my": 1]>
g (float[1,4] x) => (float[1,4] y) { a = my.f(x) y = my.outer(a) }
<domain: "my", opset_import: ["": 17]> f (a) => (b) { c = Relu(a) d = Exp(c) b = Neg(d) }
<domain: "my", opset_import: ["": 17, "my": 1]> outer (a) => (b) { c = my.f(a) b = Abs(c) }
"""


def parsed(text: str) -> Model:
    return import_model(onnx.parser.parse_model(text))


def test_a_renamed_function_is_the_same() -> None:
    old = parsed(FUNCTIONS)
    renamed = parsed(FUNCTIONS.replace("my.f", "my.g").replace("> f (", "> g ("))
    found = diff(old, renamed)
    assert found.identical, [change.title for change in found.changes]
    assert notes(found) == ["function my:f renamed to my:g"]
    moved = parsed(FUNCTIONS.replace('"my"', '"our"').replace("my.", "our."))
    assert diff(old, moved).identical and len(notes(diff(old, moved))) == 2
    edited = parsed(FUNCTIONS.replace("my.f", "my.g").replace("> f (", "> g (").replace("Neg", "Sin"))
    found = diff(old, edited)
    assert nonzero(found) == {"nodes_changed": 1, "notes": 1}, [change.title for change in found.changes]
    assert found.changes[0].where == "function my:f"


def test_unused_constants() -> None:
    plain = proto("y = Relu(x)")
    more = ModelProto()
    more.CopyFrom(plain)
    more.graph.initializer.append(numpy_helper.from_array(np.zeros(8, np.float32), "spare"))
    added = diff(import_model(plain), import_model(more))
    assert added.identical and notes(added) == ["1 constant that nothing reads added: spare (32 bytes)"]
    assert notes(diff(import_model(more), import_model(plain))) == [
        "1 constant that nothing reads removed: spare (32 bytes)"
    ]
    assert not diff(import_model(more), import_model(more)).notes


def test_two_exchanged_nodes() -> None:
    old = model("a = Neg(x) b = Abs(a) c = Exp(b) d = Sin(c) y = Relu(d)")
    new = model("a = Neg(x) b = Exp(a) c = Abs(b) d = Sin(c) y = Relu(d)")
    found = diff(old, new)
    assert len(found.changes) <= 2 and found.summary.regions_replaced == 0


@pytest.mark.parametrize("changed", range(4))
def test_one_of_many_equal_towers(changed: int) -> None:
    def towers(edit: int | None) -> Model:
        parts = []
        for index in range(4):
            middle = "Tanh" if index == edit else "Sigmoid"
            parts.append(
                f"a{index} = MatMul(x{index}, w) b{index} = Relu(a{index}) c{index} = {middle}(b{index}) "
                f"d{index} = MatMul(c{index}, v)"
            )
        inputs = ", ".join(f"float[1,4] x{index}" for index in range(4))
        body = f"{' '.join(parts)} s = Add(d0, d1) t = Add(d2, d3) y = Concat <axis=1> (s, t)"
        weights = {"w": np.ones((4, 4), np.float32), "v": np.full((4, 4), 2, np.float32)}
        return model(body, weights=weights, head=f"g ({inputs}) => (float[1,8] y)")

    found = diff(towers(None), towers(changed))
    assert nonzero(found) == {"nodes_changed": 1}
    assert found.changes[0].title.startswith("Sigmoid -> Tanh")


def test_clean_ups_are_one_entry() -> None:
    old = model("a = Identity(x) b = Relu(a) c = Identity(b) d = Exp(c) e = Transpose <perm=[0,1]> (d) y = Neg(e)")
    new = model("b = Relu(x) d = Exp(b) y = Neg(d)")
    found = diff(old, new)
    (change,) = found.changes
    assert change.title == "3 nodes that only pass a value on removed: 2 Identity, 1 Transpose"
    assert nonzero(found) == {"nodes_removed": 3} and change.count == 3 and len(change.old) == 3
    assert Counter(detail.aspect for detail in change.details) == {"place": 3}
    assert diff(new, old).changes[0].title == "3 nodes that only pass a value on added: 2 Identity, 1 Transpose"
    one = diff(model("a = Identity(x) y = Relu(a)"), model("y = Relu(x)"))
    assert [change.title for change in one.changes] == ["Identity n0_Identity removed after x"]
    # What does something is told one by one.
    assert len(diff(model("a = Abs(x) b = Abs(a) c = Sin(b) y = Abs(c)"), model("y = Sin(x)")).changes) == 3


def test_a_rewrite_in_many_places_is_one_entry() -> None:
    def chain(layer: str) -> Model:
        body = " ".join(layer.replace("#", str(index)).replace("@", str(index + 1)) for index in range(4))
        return model(f"h0 = Sin(x) {body} y = Cos(h4)", weights={"w": np.float32(0.7)})

    parts = chain("a# = Mul(h#, w) b# = Erf(a#) c# = Add(b#, w) d# = Mul(c#, h#) e# = Mul(d#, w) h@ = Tanh(e#)")
    found = diff(parts, chain("e# = Gelu(h#) h@ = Tanh(e#)"))
    assert nonzero(found) == {"nodes_changed": 4, "regions_replaced": 4, "notes": 1}  # w is not read any more
    (change,) = found.changes
    assert change.title.startswith("Mul+Erf+Add+Mul+Mul -> Gelu, 4 times (")
    assert (len(change.old), len(change.new), change.count) == (20, 4, 4)


def test_a_normalization_folded_into_a_bias_needs_no_provenance() -> None:
    norm = {name: np.full(4, value, np.float32) for name, value in (("s", 2), ("t", 1), ("m", 0), ("v", 1))}
    w = np.ones((4, 4, 1, 1), np.float32)
    head = "g (float[1,4,2,2] x) => (float[1,4,2,2] y)"
    old = model("c = Conv(x, w) b = BatchNormalization(c, s, t, m, v) y = Relu(b)", weights={"w": w, **norm}, head=head)
    new = model("c = Conv(x, w, t) y = Relu(c)", weights={"w": 2 * w, "t": norm["t"]}, head=head)
    found = diff(old, new)
    assert nonzero(found) == {"nodes_changed": 1, "regions_replaced": 1}
    assert found.changes[0].title == "Conv+BatchNormalization -> Conv (n0_Conv)"


def test_an_import_that_follows_from_nodes_is_a_note() -> None:
    old = import_model(onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]> ' + HEAD + " { y = Relu(x) }"))
    text = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> ' + HEAD
    new = import_model(onnx.parser.parse_model(text + " { y = com.microsoft.Gelu(x) }"))
    found = diff(old, new)
    assert nonzero(found) == {"nodes_changed": 1, "notes": 1}
    assert found.notes[0].title == "opset com.microsoft: not imported -> 1"
    unused = import_model(onnx.parser.parse_model(text + " { y = Relu(x) }"))
    assert nonzero(diff(old, unused)) == {"opsets_changed": 1}


@pytest.mark.parametrize("name", ["cnn-digits", "resnet-shapes", "encoder-moods"])
def test_float_against_int8_has_no_more_entries_than_quantized_operators_and_fusions(name: str, tmp_path: Path) -> None:
    folder = ROOT / "golden_models" / name
    out = tmp_path / "q.onnx"
    options = {"calibration": folder / "calib.npz", "preset": "int8-fast", "latency_seconds": 0}
    qir.quantize(folder / "model.onnx", out, **options)
    found = diff(folder / "model.onnx", out, weights=False)
    quantized = sum(change.quantization is not None for change in found.changes)
    fused = sum(change.count for change in found.changes if change.kind is ChangeKind.REGION_REPLACED)
    assert quantized > 0
    assert len(found.changes) <= quantized + fused, [change.title for change in found.changes]
