"""Schemas: defaults at the model's opset, contrib ops, local functions."""

from __future__ import annotations

from qir.ir import AttrKind, DType, Function, Graph, Model, TensorType
from qir.ops.schema import attribute, find_schema, has_op, known_domain, schema_of


def model_at(opset: int) -> Model:
    graph = Graph("g")
    graph.add_input("x", TensorType(DType.FLOAT, ("N", 4)))
    return Model(graph, {"": opset}, 8)


def test_defaults_follow_the_opset() -> None:
    for opset, axis in ((12, 1), (13, -1)):
        model = model_at(opset)
        node = model.graph.add_node("Softmax", [model.graph.inputs[0]])
        assert attribute(node, "axis", model) == axis
    node.set("axis", 0)
    assert attribute(node, "axis", model) == 0
    assert attribute(node, "nonsense", model) is None


def test_strings_are_decoded_and_domains_have_one_name() -> None:
    conv = find_schema("ai.onnx", "Conv", 11)
    assert conv is not None
    assert conv is find_schema("ai.onnx", "Conv", 11)
    assert conv.attributes["auto_pad"].default == "NOTSET"
    assert [formal.optional for formal in conv.inputs] == [False, False, True]
    assert "tensor(float)" in conv.inputs[0].types


def test_has_op() -> None:
    assert has_op(model_at(17), "LayerNormalization")
    assert not has_op(model_at(16), "LayerNormalization")
    assert has_op(model_at(9), "Upsample")
    assert not has_op(model_at(10), "Upsample")
    assert not has_op(model_at(17), "QuickGelu", "com.microsoft")


def test_contrib_ops() -> None:
    concat = find_schema("com.microsoft", "QLinearConcat", 1)
    assert concat is not None
    assert (concat.min_inputs, concat.outputs[0].name, concat.attributes["axis"].required) == (3, "Y", True)
    assert concat.input(7) is concat.inputs[2]
    gemm = find_schema("com.microsoft", "QGemm", 1)
    assert gemm is not None
    assert (gemm.min_inputs, gemm.max_inputs, gemm.attributes["alpha"].default) == (6, 9, 1.0)
    assert known_domain("com.microsoft")
    assert not known_domain("com.example")


def test_every_contrib_op_is_one_of_onnxruntime() -> None:
    """The table's names, arities and attributes against the schemas of the installed onnxruntime."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    from qir.ops.contrib import CONTRIB

    theirs = {s.name: s for s in state.get_all_operator_schema() if s.domain == "com.microsoft"}
    for name in CONTRIB:
        schema, other = find_schema("com.microsoft", name, 1), theirs[name]
        assert schema is not None
        assert (schema.min_outputs, schema.max_outputs) == (other.min_output, other.max_output), name
        assert len(schema.inputs) == len(other.inputs), name
        assert schema.min_inputs <= other.min_input, name
        assert set(schema.attributes) <= set(other.attributes), name
        for key, spec in schema.attributes.items():
            assert spec.required == other.attributes[key].required, (name, key)


def test_a_local_function_describes_itself() -> None:
    model = model_at(17)
    body = Graph("f")
    a, b = body.add_input("a"), body.add_input("b")
    body.add_output(body.add_node("Add", [a, b]).output)
    model.add_function(Function("local", "F", body, attributes=("alpha",), opset_imports={"": 17}))
    node = model.graph.add_node("F", [model.graph.inputs[0]], domain="local")
    schema = schema_of(node, model)
    assert schema is not None
    assert (schema.max_inputs, schema.max_outputs) == (2, 1)
    assert schema.attributes["alpha"].kind is AttrKind.UNDEFINED
