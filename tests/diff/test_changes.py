"""Changes in the words of a reviewer: regions, quantization, types, what belongs to the file, and their JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from onnx import ModelProto, numpy_helper

import qir
from qir.diff import ChangeKind, GraphDiff, diff
from qir.diff.weights import weight_stats
from qir.errors import ModelError, OptionError
from qir.frontend import import_model
from qir.ir import Model, Tensor
from qir.ops.shape_inference import infer

ROOT = Path(__file__).parents[2]


def proto(body: str, *, opset: int = 20, weights: Mapping[str, np.ndarray] = {}, head: str = "") -> ModelProto:
    """A model from ONNX's text form, from ``x`` to ``y``."""
    imports = f'opset_import: ["": {opset}, "com.microsoft": 1, "my": 1]'
    head = head or "g (float[1,4] x) => (float[1,4] y)"
    made = onnx.parser.parse_model(f"<ir_version: 8, {imports}> {head} {{ {body} }}")
    made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    for index, node in enumerate(made.graph.node):
        node.name = node.name or f"n{index}_{node.op_type}"
    return made


def model(body: str, **arguments: Any) -> Model:
    return import_model(proto(body, **arguments))


def nonzero(found: GraphDiff) -> dict[str, int]:
    return {name: count for name, count in found.summary.to_json().items() if count}


GELU = """
    a = Mul(x, half_root) b = Erf(a) c = Add(b, one) d = Mul(x, c) e = Mul(d, half) y = Relu(e)
"""
GELU_WEIGHTS = {
    "half_root": np.float32(math.sqrt(0.5)),
    "one": np.float32(1),
    "half": np.float32(0.5),
}


def test_a_region_is_one_change_both_ways() -> None:
    parts, whole = model(GELU, weights=GELU_WEIGHTS), model("e = Gelu(x) y = Relu(e)")
    found = diff(parts, whole)
    assert nonzero(found) == {"nodes_changed": 1, "regions_replaced": 1}
    (change,) = found.changes
    assert (change.before, change.after) == ("Mul+Erf+Add+Mul+Mul", "Gelu")
    assert [node.op for node in change.old] == ["Mul", "Erf", "Add", "Mul", "Mul"]
    back = diff(whole, parts)
    assert nonzero(back) == nonzero(found)
    assert back.changes[0].after == "Mul+Erf+Add+Mul+Mul"


def test_a_small_fusion_is_one_change() -> None:
    weights = {"w": np.eye(4, dtype=np.float32), "b": np.ones(4, np.float32)}
    parts = model("m = MatMul(x, w) a = Add(m, b) y = Relu(a)", weights=weights)
    whole = model("a = Gemm(x, w, b) y = Relu(a)", weights=weights)
    assert [change.title for change in diff(parts, whole).changes] == ["MatMul+Add -> Gemm (n0_Gemm)"]


def test_provenance_joins_what_was_merged() -> None:
    norm = {name: np.full(4, value, np.float32) for name, value in (("s", 2), ("t", 1), ("m", 0), ("v", 1))}
    weights = {"w": np.ones((4, 4, 1, 1), np.float32), **norm}
    head = "g (float[1,4,2,2] x) => (float[1,4,2,2] y)"
    old = model("c = Conv(x, w) b = BatchNormalization(c, s, t, m, v) y = Relu(b)", weights=weights, head=head)
    fused = proto("c = Conv(x, w) y = Relu(c)", weights={"w": 2 * weights["w"]}, head=head)
    apart = diff(old, import_model(fused))
    assert nonzero(apart) == {"nodes_removed": 1, "weights_changed": 1}
    entry = fused.graph.node[0].metadata_props.add()
    entry.key, entry.value = "qir.source", "n0_Conv\nn1_BatchNormalization"
    joined = diff(old, import_model(fused))
    assert [change.title for change in joined.changes] == ["Conv+BatchNormalization -> Conv (n0_Conv)"]


WEIGHT = np.array([[0.5, -0.25, 0.125, 0.5]] * 4, np.float32)
CODES = {"codes": np.round(WEIGHT / 0.005).astype(np.int8), "ws": np.float32(0.005), "wz": np.int8(0)}
ACTIVATION = {"xs": np.float32(0.02), "xz": np.uint8(128)}
QDQ = """
    q = QuantizeLinear(x, xs, xz) d = DequantizeLinear(q, xs, xz) w = DequantizeLinear(codes, ws, wz)
    m = MatMul(d, w) y = Relu(m)
"""


def test_quantization_is_folded_into_its_operator() -> None:
    plain = model("m = MatMul(x, w) y = Relu(m)", weights={"w": WEIGHT})
    found = diff(plain, model(QDQ, weights={**CODES, **ACTIVATION}))
    assert nonzero(found) == {"nodes_changed": 1, "quantization_changed": 1}
    (change,) = found.changes
    assert change.kind is ChangeKind.QUANTIZATION_CHANGED
    assert (change.before, change.after) == ("float", "int8 per-tensor weights, u8 activations, scale 0.02")
    assert change.quantization is not None
    assert len(change.quantization.folded_after) == 3
    roles = {operand.role: operand for operand in change.quantization.after.operands}
    assert (roles["input"].zero_point, roles["weight"].scale) == (128, pytest.approx(0.005))
    assert found.before.facts.precision == {"f32": 1}
    assert found.after.facts.precision == {"u8 x s8": 1}


def test_other_spellings_of_integers_are_the_same_operator() -> None:
    plain = model("m = MatMul(x, w) y = Relu(m)", weights={"w": WEIGHT})
    result = {"ys": np.float32(0.03), "yz": np.uint8(0)}
    integer = """
        q = QuantizeLinear(x, xs, xz) p = QLinearMatMul(q, xs, xz, codes, ws, wz, ys, yz)
        m = DequantizeLinear(p, ys, yz) y = Relu(m)
    """
    dynamic = """
        q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, codes, z, wz) f = Cast <to: int = 1> (i)
        t = Mul(s, ws) m = Mul(f, t) y = Relu(m)
    """
    for body, form in ((integer, "qoperator"), (dynamic, "dynamic")):
        found = diff(plain, model(body, weights={**CODES, **ACTIVATION, **result}))
        (change,) = [change for change in found.changes if change.old[0].op == "MatMul"]
        assert change.quantization is not None and change.quantization.after.form == form
        assert found.summary.nodes_added == found.summary.nodes_removed == 0


def test_scales_by_relative_change_the_largest_first() -> None:
    body = QDQ.replace("y = Relu(m)", "q2 = QuantizeLinear(m, ms, xz) d2 = DequantizeLinear(q2, ms, xz) y = Relu(d2)")
    old = model(body, weights={**CODES, **ACTIVATION, "ms": np.float32(0.1)})
    new = model(body, weights={**CODES, "xs": np.float32(0.022), "xz": np.uint8(128), "ms": np.float32(0.15)})
    found = diff(old, new)
    assert nonzero(found) == {"weights_changed": 2, "scales_changed": 2}
    changes = [(change.new[0].op, change.quantization and change.quantization.scale_change) for change in found.changes]
    assert changes == [("Relu", pytest.approx(0.5)), ("MatMul", pytest.approx(0.1))]
    assert found.changes[0].details[0].before == "0.1"


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ("bits: int = 2, ", "uint2 blocked (16) weights"),
        ("bits: int = 4, ", "uint4 blocked (16) weights"),
        ("", "uint4 blocked (16) weights"),
        ("bits: int = 8, ", "uint8 blocked (16) weights"),
    ],
)
def test_weights_that_a_kernel_unpacks_are_of_as_many_bits_as_it_says(attributes: str, text: str) -> None:
    packed = {"codes": np.zeros((4, 1, 4), np.uint8), "ws": np.full((4,), 0.01, np.float32)}
    found = diff(
        model("m = MatMul(x, w) y = Relu(m)", weights={"w": WEIGHT}),
        model(
            f"m = com.microsoft.MatMulNBits <K: int = 4, N: int = 4, {attributes}block_size: int = 16> (x, codes, ws) "
            "y = Relu(m)",
            weights=packed,
        ),
    )
    [change] = found.of_kind(ChangeKind.QUANTIZATION_CHANGED)
    assert change.after == text


def test_one_code_of_a_quantized_weight_is_a_weight() -> None:
    codes = CODES["codes"].copy()
    codes[0, 0] += 3
    old, new = (model(QDQ, weights={**CODES, **ACTIVATION, "codes": array}) for array in (CODES["codes"], codes))
    (change,) = diff(old, new).changes
    assert change.kind is ChangeKind.WEIGHT_CHANGED
    assert change.weight is not None and change.weight.stats is not None
    assert (change.weight.stats.changed, change.weight.stats.max_error) == (1, 3.0)


@pytest.mark.parametrize("name", ["ws", "wz", "xs", "xz"])
def test_no_parameter_is_overlooked(name: str) -> None:
    weights: dict[str, Any] = {**CODES, **ACTIVATION}
    old = model(QDQ, weights=weights)
    array = weights[name]
    found = diff(old, model(QDQ, weights={**weights, name: (array * 2 if array.dtype.kind == "f" else array + 1)}))
    assert nonzero(found) == {"weights_changed": 1, "scales_changed": 1}


def test_parameters_at_an_output_count() -> None:
    body = "m = Relu(x) q = QuantizeLinear(m, xs, xz) y = DequantizeLinear(q, xs, xz)"
    old, plain = model(body, weights=ACTIVATION), model("y = Relu(x)")
    found = diff(old, model(body, weights={**ACTIVATION, "xs": np.float32(0.04)}))
    assert nonzero(found) == {"weights_changed": 1, "scales_changed": 1}
    assert nonzero(diff(plain, old)) == {"nodes_changed": 1, "quantization_changed": 1}


def test_an_added_operand_and_a_rewired_one_are_changes() -> None:
    one = model("a = Relu(x) b = Neg(x) y = Concat <axis = 1> (a, b)", head="g (float[1,4] x) => (float[1,?] y)")
    more = model("a = Relu(x) b = Neg(x) y = Concat <axis = 1> (a, b, a)", head="g (float[1,4] x) => (float[1,?] y)")
    turned = model("a = Relu(x) b = Neg(x) y = Concat <axis = 1> (b, a)", head="g (float[1,4] x) => (float[1,?] y)")
    (added,) = diff(one, more).changes
    assert (added.details[0].before, added.details[0].after) == (None, "Relu n0_Relu")
    (swapped,) = diff(one, turned).changes
    assert [detail.aspect for detail in swapped.details] == ["operand", "operand"]


def test_operands_of_other_opsets_are_no_changes() -> None:
    head = "g (float[1,4] x) => (float[4] y)"
    old = model("y = Squeeze <axes = [0]> (x)", opset=11, head=head)
    new = model("y = Squeeze(x, axes)", opset=13, head=head, weights={"axes": np.array([0])})
    assert nonzero(diff(old, new)) == {"opsets_changed": 1}
    assert diff(old, new, ignore=["opset-changed"]).identical


def test_an_explicit_default_is_no_change() -> None:
    old, new = model("y = Softmax(x)"), model("y = Softmax <axis = -1> (x)")
    assert diff(old, new).identical
    assert nonzero(diff(old, model("y = Softmax <axis = 0> (x)"))) == {"nodes_changed": 1}


def test_a_type_counts_where_it_starts() -> None:
    def typed(size: int) -> Model:
        made = proto("a = my.Make(x) b = Relu(a) y = my.Use(b)")
        for name in ("a", "b"):
            made.graph.value_info.add().CopyFrom(onnx.helper.make_tensor_value_info(name, 1, [1, size]))
        return import_model(made)

    (change,) = diff(typed(3), typed(5)).changes
    assert (change.kind, change.before, change.after) == (ChangeKind.TYPE_CHANGED, "f32[1,3]", "f32[1,5]")
    assert change.new[0].op == "my.Make"


def test_what_belongs_to_the_file() -> None:
    old, new = proto("y = Relu(x)"), proto("y = Relu(x)")
    new.producer_name, new.doc_string, new.ir_version = "somebody", "something", 9
    found = diff(import_model(old), import_model(new))
    assert found.identical
    assert {note.kind.value for note in found.notes} == {"producer-changed", "doc-changed", "ir-version-changed"}
    for props in (new.metadata_props, new.graph.node[0].metadata_props):
        entry = props.add()
        entry.key, entry.value = "license", "free"
    found = diff(import_model(old), import_model(new))
    assert nonzero(found) == {"metadata_changed": 2, "notes": 3}
    ignored = diff(import_model(old), import_model(new), ignore=["metadata-changed", "doc-changed"])
    assert ignored.identical
    assert nonzero(ignored) == {"notes": 2, "ignored": 3}


FUNCTION = """
    <ir_version: 8, opset_import: ["": 17, "my": 1]>
    g (float[4] x) => (float[4] y) { y = my.f(x) }
    <domain: "my", opset_import: ["": 17]>
    f (a) => (c) { b = Relu(a) c = Neg(b) }
"""


def test_functions_are_compared_inside() -> None:
    old = import_model(onnx.parser.parse_model(FUNCTION))
    new = import_model(onnx.parser.parse_model(FUNCTION.replace("Neg", "Abs")))
    (change,) = diff(old, new).changes
    assert (change.kind, change.where, change.after) == (ChangeKind.NODE_CHANGED, "function my:f", "Abs(Relu b)")
    more = onnx.parser.parse_model(FUNCTION + ' <domain: "my", opset_import: ["": 17]> h (a) => (b) { b = Abs(a) }')
    assert nonzero(diff(old, import_model(more))) == {"functions_changed": 1}


def test_interface() -> None:
    old = model("y = Add(x, z)", head="g (float[1,4] x, float[1,4] z) => (float[1,4] y)")
    new = model("y = Add(x, z) u = Neg(y)", head="g (float[N,4] x, float[1,4] z) => (float[1,4] u, float[1,4] y)")
    found = diff(old, new)
    assert nonzero(found) == {"inputs_changed": 1, "outputs_changed": 1, "nodes_added": 1}
    assert found.changes[0].title == "input x: type: f32[1,4] -> f32[N,4]"


def test_json_follows_its_schema() -> None:
    schema = json.loads((ROOT / "docs" / "diff.schema.json").read_text())
    cases = [
        diff(model(GELU, weights=GELU_WEIGHTS), model("e = Gelu(x) y = Relu(e)")),
        diff(model("m = MatMul(x, w) y = Relu(m)", weights={"w": WEIGHT}), model(QDQ, weights={**CODES, **ACTIVATION})),
        diff(*(model("y = Mul(x, w)", weights={"w": np.array(w, np.float32)}) for w in (1.0, math.nan))),
        diff(model("y = Relu(x)"), model("y = Neg(x)", opset=18)),
    ]
    for found in cases:
        made = json.loads(json.dumps(found.to_json(pairs=True), allow_nan=False))
        assert not list(_violations(made, schema, schema, "$"))
        assert made["identical"] is False
    broken = {**made, "summary": {}, "identical": 3}
    assert list(_violations(broken, schema, schema, "$"))


def _violations(value: Any, schema: dict[str, Any], root: dict[str, Any], path: str) -> Any:
    """The part of JSON Schema that the file uses."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        if all(list(_violations(value, option, root, path)) for option in schema["anyOf"]):
            yield f"{path}: none of the options"
        return
    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
    types |= {"object": dict, "array": list}
    wanted = schema.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted and not any(isinstance(value, types[t]) and (t == "boolean" or value is not True) for t in wanted):
        yield f"{path}: {value!r} is no {wanted}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r}"
    if "const" in schema and value != schema["const"]:
        yield f"{path}: {value!r}"
    if isinstance(value, dict):
        known = schema.get("properties", {})
        yield from (f"{path}: no {name}" for name in schema.get("required", ()) if name not in value)
        for name, item in value.items():
            if name in known:
                yield from _violations(item, known[name], root, f"{path}.{name}")
            elif schema.get("additionalProperties") is False:
                yield f"{path}: {name} is not in the schema"
            elif isinstance(schema.get("additionalProperties"), dict):
                yield from _violations(item, schema["additionalProperties"], root, f"{path}.{name}")
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, item in enumerate(value):
            yield from _violations(item, schema["items"], root, f"{path}[{index}]")


def test_statistics_of_weights() -> None:
    old = np.array([1, -2, 0, 4], np.float32)
    new = np.array([1, 2, 0.5, 0], np.float32)
    stats = weight_stats(Tensor.of(old), Tensor.of(new))
    assert stats is not None
    assert (stats.elements, stats.changed, stats.max_error, stats.sign_flips) == (4, 3, 4.0, 1)
    assert stats.mean_error == pytest.approx((4 + 0.5 + 4) / 4)
    assert stats.sqnr_db == pytest.approx(10 * math.log10(21 / 32.25))
    assert (stats.sparsity_before, stats.sparsity_after, stats.same_multiset) == (0.25, 0.25, False)
    assert stats.histogram is not None
    assert sum(stats.histogram.before) == sum(stats.histogram.after) == 4
    assert (stats.histogram.low, stats.histogram.high) == (-2.0, 4.0)
    turned = weight_stats(Tensor.of(old), Tensor.of(old[::-1].copy()))
    assert turned is not None and turned.same_multiset
    assert weight_stats(Tensor.of(old), Tensor.of(new.reshape(2, 2))) is None
    odd = weight_stats(Tensor.of(np.array([np.nan, np.inf], np.float32)), Tensor.of(np.array([np.nan, 1], np.float32)))
    assert odd is not None and (odd.changed, odd.sqnr_db) == (1, None)


def test_statistics_are_computed_on_demand() -> None:
    old, new = (model("y = Mul(x, w)", weights={"w": np.float32(w)}) for w in (1, 2))
    (change,) = diff(old, new, weights=False).changes
    assert change.weight is not None and change.weight.stats is None
    (change,) = diff(old, new).changes
    assert change.weight is not None and "stats" not in change.weight.__dict__
    assert change.weight.stats is not None and "stats" in change.weight.__dict__


def test_files_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    onnx.save(proto("y = Relu(x)"), path)
    found = qir.diff(path, str(path))
    assert found.identical and not found and found.before.name == "a.onnx"
    assert found.before.node(0).op == "Relu" and found.pairs == {0: 0}
    with pytest.raises(ModelError, match="absent"):
        diff(path, tmp_path / "absent.onnx")
    with pytest.raises(OptionError, match="did you mean 'opset-changed'"):
        diff(path, path, ignore=["opset-change"])


def quantized_linear(scale: float, bias: np.ndarray) -> Model:
    """Gemm on int8 inputs of a scale, weights of scale 0.01, and a bias as its operator's scales have it."""
    body = """
        q = QuantizeLinear(x, s, z) dx = DequantizeLinear(q, s, z)
        dw = DequantizeLinear(w, ws, z) db = DequantizeLinear(b, bs) y = Gemm(dx, dw, db)
    """
    bias_scale = np.float32(scale) * np.float32(0.01)
    return model(
        body,
        weights={
            "s": np.float32(scale),
            "z": np.int8(0),
            "w": np.arange(16, dtype=np.int8).reshape(4, 4),
            "ws": np.float32(0.01),
            "b": np.round(bias / bias_scale).astype(np.int32),
            "bs": bias_scale,
        },
    )


def test_a_bias_in_other_steps_is_part_of_its_operators_entry() -> None:
    bias = np.array([0.5, -1.0, 2.0, 0.25], np.float32)
    found = diff(quantized_linear(0.02, bias), quantized_linear(0.03, bias))
    (change,) = found.changes
    assert change.title == "Gemm n4_Gemm: input scale 0.02 -> 0.03 (+50.0% at most)"
    assert "1 weight changed (1 quantization parameter)." in found.to_text()
    shifted = diff(quantized_linear(0.02, bias), quantized_linear(0.03, bias + np.float32(0.1)))
    (weight,) = [change.weight for change in shifted.changes if change.weight is not None]
    assert weight.stats is not None and weight.stats.max_error == pytest.approx(0.1, abs=3e-4)
    assert shifted.summary.weights_changed == 2


OPEN = "g (float[N,4] x) => (float[N,4] y)"


def test_costs_of_a_file_that_is_out_of_order() -> None:
    straight = model("h = MatMul(x, w) y = Relu(h)", weights={"w": np.ones((4, 4), np.float32)}, head=OPEN)
    turned = proto("h = MatMul(x, w) y = Relu(h)", weights={"w": np.ones((4, 4), np.float32)}, head=OPEN)
    cast = onnx.helper.make_node("Identity", ["x"], ["same"], "same")
    turned.graph.node[0].input[0] = "same"
    turned.graph.node.append(cast)
    found = diff(straight, import_model(turned))
    assert found.before.facts.macs == found.after.facts.macs == 16


def test_a_body_more_or_less_is_a_change_of_its_node() -> None:
    def bodies(count: int, attribute: str = "bodies") -> Model:
        made = proto("y = my.Choose(x)")
        for number in range(count):
            node = onnx.helper.make_node("Relu" if number % 2 else "Neg", ["x"], [f"b{number}"])
            result = onnx.helper.make_tensor_value_info(f"b{number}", onnx.TensorProto.FLOAT, [2])
            body = onnx.helper.make_graph([node], f"body{number}", [], [result])
            if not made.graph.node[0].attribute:
                made.graph.node[0].attribute.append(onnx.AttributeProto(name=attribute, type="GRAPHS"))
            made.graph.node[0].attribute[0].graphs.append(body)
        return import_model(made)

    assert diff(bodies(2), bodies(2)).identical
    for old, new, before, after in ((2, 3, "2 bodies", "3 bodies"), (1, 0, "1 body", None)):
        [change] = diff(bodies(old), bodies(new)).of_kind(ChangeKind.NODE_CHANGED)
        [detail] = change.details
        assert (detail.name, detail.before, detail.after) == ("bodies", before, after)
    [change] = diff(bodies(1), bodies(1, "others")).of_kind(ChangeKind.NODE_CHANGED)
    assert [detail.name for detail in change.details] == ["bodies", "others"]


def test_products_count_in_whatever_kernel_they_run() -> None:
    """4 columns of a row of 4: 16 multiply-accumulates, float, at run time on integers, or of packed weights."""
    plain = model("m = MatMul(x, w) y = Relu(m)", weights={"w": WEIGHT})
    infer(plain)
    dynamic = "m = com.microsoft.DynamicQuantizeMatMul(x, codes, ws, wz) y = Relu(m)"
    packed = "m = com.microsoft.MatMulNBits <K: int = 4, N: int = 4, block_size: int = 16> (x, codes, ws) y = Relu(m)"
    nbits = {"codes": np.zeros((4, 1, 8), np.uint8), "ws": np.full((4,), 0.01, np.float32)}
    for other in (model(dynamic, weights=CODES), model(packed, weights=nbits)):
        infer(other)
        facts = diff(plain, other)
        assert (facts.before.facts.macs, facts.after.facts.macs) == (16, 16)
        assert facts.after.facts.macs_unknown == 0
    einsum = model('m = Einsum <equation = "ij,jk->ik"> (x, w) y = Relu(m)', weights={"w": WEIGHT})
    assert diff(plain, einsum).after.facts.macs_unknown == 1
