"""One small model per feature of the format: each comes back field by field, presence included."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qir.codegen import export_model
from qir.frontend import import_model
from qir.ir import AttrKind, DType, SparseTensor, Tensor
from tests.protos import difference

Make = Callable[[onnx.ModelProto], None]
FEATURES: dict[str, Make] = {}


def feature(make: Make) -> Make:
    FEATURES[make.__name__] = make
    return make


def small_model() -> onnx.ModelProto:
    """y = Relu(x + w), h recorded in value_info."""
    nodes = [helper.make_node("Add", ["x", "w"], ["h"], "add"), helper.make_node("Relu", ["h"], ["y"], "relu")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.float32([1, 2]), "w")],
        value_info=[helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 2])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@feature
def plain(m: onnx.ModelProto) -> None:
    pass


@feature
def metadata_everywhere(m: onnx.ModelProto) -> None:
    for message in (m, m.graph, m.graph.node[0], m.graph.input[0], m.graph.value_info[0], m.graph.initializer[0]):
        message.metadata_props.add(key="b", value="1")
        message.metadata_props.add(key="a", value="")


@feature
def duplicate_and_partial_metadata(m: onnx.ModelProto) -> None:
    for message in (m, m.graph, m.graph.node[0], m.graph.output[0], m.graph.value_info[0], m.graph.initializer[0]):
        message.metadata_props.add(key="a", value="1")
        message.metadata_props.add(key="a", value="2")
        message.metadata_props.add(key="only a key")


@feature
def doc_strings(m: onnx.ModelProto) -> None:
    for message in (m, m.graph, m.graph.node[1], m.graph.input[0], m.graph.output[0], m.graph.initializer[0]):
        message.doc_string = "what it is"


@feature
def model_fields(m: onnx.ModelProto) -> None:
    m.producer_name, m.producer_version, m.domain, m.model_version = "p", "1.2", "org.example", -3


@feature
def present_but_empty(m: onnx.ModelProto) -> None:
    m.producer_name = m.doc_string = m.graph.doc_string = m.graph.input[0].doc_string = ""
    m.model_version = 0
    node = m.graph.node[0]
    node.domain = node.doc_string = node.overload = ""
    m.graph.initializer[0].doc_string = ""


@feature
def absent_fields(m: onnx.ModelProto) -> None:
    m.ClearField("ir_version")
    m.graph.ClearField("name")
    m.graph.node[0].ClearField("name")
    m.graph.output[0].ClearField("type")
    m.opset_import[0].ClearField("domain")


@feature
def default_domain_spelled_out(m: onnx.ModelProto) -> None:
    m.opset_import[0].domain = "ai.onnx"
    m.graph.node[0].domain = "ai.onnx"


@feature
def several_domains(m: onnx.ModelProto) -> None:
    m.opset_import.add(domain="com.example", version=2)
    m.opset_import.add(domain="ai.onnx", version=17)
    m.graph.node.add(op_type="Mystery", domain="com.example", input=["h"], output=["unused"])


@feature
def denotations(m: onnx.ModelProto) -> None:
    type_ = m.graph.input[0].type
    type_.denotation = "IMAGE"
    type_.tensor_type.shape.dim[1].denotation = "DATA_CHANNEL"
    m.graph.value_info[0].type.tensor_type.shape.dim[0].denotation = ""


@feature
def odd_types(m: onnx.ModelProto) -> None:
    m.graph.input.add(name="unknown rank").type.tensor_type.elem_type = 1
    m.graph.input.add(name="no element type").type.tensor_type.shape.dim.add()
    m.graph.input.add(name="nothing").type.SetInParent()
    m.graph.input.add(name="newer").type.tensor_type.elem_type = 999
    m.graph.input.add(name="empty symbol").type.tensor_type.shape.dim.add(dim_param="")
    m.graph.input.add(name="negative").type.tensor_type.shape.dim.add(dim_value=-1)
    sequence = m.graph.input.add(name="sequence").type.sequence_type
    sequence.elem_type.tensor_type.elem_type = 7
    m.graph.input.add(name="bare sequence").type.sequence_type.SetInParent()
    m.graph.input.add(name="optional").type.optional_type.elem_type.tensor_type.elem_type = 1
    mapping = m.graph.input.add(name="map").type.map_type
    mapping.key_type = 8
    mapping.value_type.tensor_type.elem_type = 1
    m.graph.input.add(name="sparse").type.sparse_tensor_type.elem_type = 1
    opaque = m.graph.input.add(name="opaque").type.opaque_type
    opaque.domain, opaque.name = "d", "n"


@feature
def value_infos_of_all_sorts(m: onnx.ModelProto) -> None:
    infos = m.graph.value_info
    infos.insert(0, helper.make_tensor_value_info("dangling", TensorProto.INT8, [1]))
    infos.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["other", 2]))
    infos.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    infos.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2]))
    infos.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["again", 2]))


@feature
def quantization_annotation(m: onnx.ModelProto) -> None:
    for name in ("y", "nowhere", "w", "x"):
        made = m.graph.quantization_annotation.add(tensor_name=name)
        made.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
        made.quant_parameter_tensor_names.add(key="ZERO_POINT_TENSOR", value="w")


@feature
def sparse_initializer(m: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.float32([3, 4]), "s")
    indices = numpy_helper.from_array(np.int64([1, 5]), "s_indices")
    m.graph.sparse_initializer.add(values=values, indices=indices, dims=[2, 3])
    m.graph.node.add(op_type="Add", input=["s", "s"], output=["t"])


@feature
def training_info(m: onnx.ModelProto) -> None:
    info = m.training_info.add()
    info.algorithm.CopyFrom(m.graph)
    info.update_binding.add(key="w", value="h")


@feature
def device_configurations(m: onnx.ModelProto) -> None:
    m.configuration.add(name="two", num_devices=2, device=["a", "b"])
    made = m.graph.node[0].device_configurations.add(configuration_id="two", pipeline_stage=1)
    made.sharding_spec.add(tensor_name="w", device=[0, 1])


@feature
def overridable_and_unused_initializers(m: onnx.ModelProto) -> None:
    m.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, ["K"]))
    m.graph.initializer.insert(0, numpy_helper.from_array(np.int64([7]), "unused"))


@feature
def initializer_as_output(m: onnx.ModelProto) -> None:
    m.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, ["K"]))
    m.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2]))
    m.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))


@feature
def missing_and_unwanted_operands(m: onnx.ModelProto) -> None:
    m.graph.node.add(op_type="Clip", input=["h", "", "w", ""], output=["", "c", ""])


@feature
def out_of_order(m: onnx.ModelProto) -> None:
    nodes = list(m.graph.node)[::-1]
    del m.graph.node[:]
    m.graph.node.extend(nodes)


@feature
def attributes_of_every_kind(m: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.float32([[1]]), "")
    named = numpy_helper.from_array(np.int8([1, -1]), "inner")
    sparse = onnx.SparseTensorProto(values=tensor, indices=numpy_helper.from_array(np.int64([0]), ""), dims=[4])
    type_ = helper.make_tensor_type_proto(1, ["N", None])
    body = helper.make_graph([helper.make_node("Identity", ["h"], ["o"])], "b", [], [onnx.ValueInfoProto(name="o")])
    values = [1, -1, 1 << 40, 0.1, float("inf"), "text", b"\xff\x00", [1, 2], [0.5, -0.0], ["a", b"\xfe"], tensor]
    values += [[tensor, named], sparse, [sparse, sparse], type_, [type_], body]
    node = m.graph.node.add(op_type="Everything", domain="test", input=["h"], output=["z"])
    for index, value in enumerate(values):
        node.attribute.append(helper.make_attribute(f"a{index}", value, doc_string="doc" if index % 2 else None))
    second = m.graph.node.add(op_type="Everything", domain="test", output=["z2"]).attribute.add(name="bodies", type=10)
    for name in ("p", "q"):
        made = helper.make_graph([helper.make_node("Neg", ["h"], [name])], name, [], [onnx.ValueInfoProto(name=name)])
        second.graphs.append(made)


@feature
def odd_attributes(m: onnx.ModelProto) -> None:
    add = m.graph.node.add(op_type="Odd", domain="test", output=["z"]).attribute.add
    add(name="no kind", i=3)
    add(name="no kind, floats", floats=[1.5])
    add(name="explicit undefined", type=0, i=3)
    add(name="no value", type=2)
    add(name="no string", type=3)
    add(name="no graph", type=5)
    add(name="zero", type=2, i=0)
    add(name="two values", type=2, i=1, f=2.0)
    add(name="empty list", type=7)
    add(name="nothing")
    add(name="empty doc", type=2, i=1, doc_string="")
    add(name="reference", type=1, ref_attr_name="alpha")
    add(name="reference with a value", type=1, ref_attr_name="alpha", f=1.0)


@feature
def subgraphs_with_capture(m: onnx.ModelProto) -> None:
    inner = helper.make_graph([helper.make_node("Mul", ["h", "k"], ["deep"])], "inner", [], [_info("deep")])
    then = helper.make_graph(
        [helper.make_node("If", ["c"], ["k2"], then_branch=inner, else_branch=_constant_graph())],
        "then",
        [],
        [_info("k2")],
        [numpy_helper.from_array(np.float32([2]), "k")],
        doc_string="a body",
        value_info=[_info("k")],
    )
    then.metadata_props.add(key="in a body", value="1")
    # A body that hands out an outer value, described in another way.
    outer = helper.make_graph([], "else", [], [helper.make_tensor_value_info("h", TensorProto.FLOAT, ["M", 2])])
    m.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    m.graph.node.append(helper.make_node("If", ["c"], ["r"], "if", then_branch=then, else_branch=outer))


def _info(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _constant_graph() -> onnx.GraphProto:
    constant = helper.make_node("Constant", [], ["h"], value=numpy_helper.from_array(np.float32([2]), "v"))
    return helper.make_graph([constant], "shadows h", [], [_info("h")])


@feature
def functions(m: onnx.ModelProto) -> None:
    m.opset_import.add(domain="my", version=1)
    for overload in ("", "second"):
        f = m.functions.add(name="F", domain="my", overload=overload, input=["a", "b"], output=["c"], attribute=["k"])
        f.attribute_proto.add(name="e", type=1, f=0.5, doc_string="with a default")
        f.opset_import.add(domain="", version=17)
        f.doc_string = "a function"
        f.metadata_props.add(key="a", value="1")
        node = f.node.add(op_type="Add", input=["a", "b"], output=["t"], name="inside")
        f.node.add(op_type="LeakyRelu", input=["t"], output=["c"]).attribute.add(
            name="alpha", type=1, ref_attr_name="e"
        )
        node.metadata_props.add(key="a", value="1")
        f.value_info.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, ["N"]))
        f.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N"]))
    m.functions.add(name="Empty", domain="ai.onnx").ClearField("overload")
    m.graph.node.add(op_type="F", domain="my", overload="second", input=["x", "w"], output=["f"]).attribute.add(
        name="k", type=2, i=1
    )


@feature
def tensor_details(m: onnx.ModelProto) -> None:
    tensor = m.graph.initializer.add(name="details", data_type=1, dims=[3], doc_string="doc", float_data=[1, 2, 3])
    tensor.metadata_props.add(key="k", value="v")
    tensor.segment.begin, tensor.segment.end = 0, 3
    m.graph.initializer.add(name="empty", data_type=1, dims=[0, 4])
    m.graph.initializer.add(name="scalar", data_type=7, int64_data=[-5])
    m.graph.initializer.add(name="default place", data_type=7, int64_data=[5], data_location=0)
    m.graph.initializer.add(name="nan", data_type=1, dims=[2], raw_data=b"\x01\x00\x80\x7f\x00\x00\xc0\xff")


@feature
def unknown_fields(m: onnx.ModelProto) -> None:
    # Number 1000, as a varint, as bytes, as 32 and 64 bits, and as a group with two fields inside.
    future = bytes.fromhex("c03e07 c23e03616263 c53e01020304 c13e0102030405060708 c33e0801120178c43e")
    node = m.graph.node[0]
    attribute = node.attribute.add(name="a", type=2, i=1)
    other = m.functions.add(name="F", domain="my")
    sparse = m.graph.sparse_initializer.add(dims=[3])
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([1]), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.int64([1]), "i"))
    annotation = m.graph.quantization_annotation.add(tensor_name="x")
    dim = m.graph.input[0].type.tensor_type.shape.dim[0]
    entries = (m.metadata_props.add(key="k", value="v"), node.metadata_props.add(key="k", value="v"))
    opset = m.opset_import[0]
    for message in (attribute, dim, *entries, opset, annotation, sparse, other, m.graph.initializer[0]):
        message.MergeFromString(future)
    for message in (m.graph.input[0], m.graph.output[0], m.graph.value_info[0], node, m.graph, m):
        message.MergeFromString(future)


@pytest.mark.parametrize("name", FEATURES)
def test_a_model_with_it_comes_back(name: str) -> None:
    model = small_model()
    FEATURES[name](model)
    exported = export_model(import_model(model))
    assert difference(model, exported, "model") is None
    assert difference(model, export_model(import_model(exported)), "model") is None


@pytest.mark.parametrize("name", FEATURES)
def test_a_clone_comes_back_too(name: str) -> None:
    model = small_model()
    FEATURES[name](model)
    assert difference(model, export_model(import_model(model).clone()), "model") is None


ALL_DTYPES = [dtype for dtype in DType if dtype is not DType.UNDEFINED]


@pytest.mark.parametrize("typed", [False, True], ids=["raw", "typed"])
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_every_element_type_in_every_storage_form(dtype: DType, typed: bool) -> None:
    array = _samples(dtype)
    if dtype is DType.STRING:
        tensor = TensorProto(name="t", data_type=8, dims=array.shape, string_data=[s.encode() for s in array.flat])
        expected = np.frompyfunc(str.encode, 1, 1)(array)
    elif typed:
        tensor = helper.make_tensor("t", dtype.code, array.shape, array.reshape(-1).tolist())
        expected = numpy_helper.to_array(tensor)
    else:
        tensor, expected = numpy_helper.from_array(array, "t"), array
    assert tensor.HasField("raw_data") == (not typed and dtype is not DType.STRING)
    model = small_model()
    model.graph.initializer.append(tensor)
    imported = import_model(model)
    const = next(value.const for value in imported.graph.initializers if value.name == "t")
    assert isinstance(const, Tensor)
    assert const.dtype is dtype
    assert const.numpy().dtype == dtype.numpy
    np.testing.assert_array_equal(const.numpy().astype(object), expected.astype(object))
    assert difference(model, export_model(imported), "model") is None


def _samples(dtype: DType) -> np.ndarray:
    """Five elements, so that packed types do not fill their last byte."""
    if dtype is DType.STRING:
        return np.array([["a", "", "é", "\0", "long" * 50]], object)
    if dtype is DType.BOOL:
        return np.array([[True, False, True, True, False]])
    if dtype.is_integer:
        return np.array([[dtype.qmin, dtype.qmax, 0, 1, dtype.qmax - 1]]).astype(dtype.numpy)
    numbers = np.array([[1, 2, 0.5, 4, 1]], np.float32)
    if dtype in (DType.COMPLEX64, DType.COMPLEX128):
        return (numbers + 2j).astype(dtype.numpy)
    return numbers.astype(dtype.numpy)


def test_what_the_ir_shows() -> None:
    model = small_model()
    for make in (metadata_everywhere, sparse_initializer, overridable_and_unused_initializers, functions):
        make(model)
    imported = import_model(model)
    graph = imported.graph
    assert [node.op for node in graph.nodes] == ["Add", "Relu", "Add", "F"]
    add = graph.nodes.first
    assert add is not None
    assert add.metadata == {"b": "1", "a": ""}
    assert [value.name for value in graph.inputs] == ["x", "w"]
    assert [value.name for value in graph.initializers] == ["unused", "w", "s"]
    assert graph.inputs[1].is_initializer and not graph.inputs[1].is_constant
    assert isinstance(next(v for v in graph.initializers if v.name == "s").const, SparseTensor)
    assert [value.name for value in graph.recorded_types] == ["h"]
    assert imported.opset() == 17
    assert set(imported.functions) == {("my", "F", ""), ("my", "F", "second"), ("", "Empty", "")}
    function = imported.functions["my", "F", "second"]
    assert function.defaults[0].kind is AttrKind.FLOAT
    assert [value.shape for value in function.graph.inputs] == [("N",), None]


def test_the_default_domain_is_the_empty_one_however_it_is_spelled() -> None:
    model = small_model()
    default_domain_spelled_out(model)
    imported = import_model(model)
    assert imported.opset_imports == {"": 17}
    assert {node.domain for node in imported.graph.nodes} == {""}


def test_edits_win_over_what_the_file_spelled() -> None:
    model = small_model()
    for name in ("duplicate_and_partial_metadata", "default_domain_spelled_out", "present_but_empty", "odd_types"):
        FEATURES[name](model)
    model.graph.quantization_annotation.add(tensor_name="x").quant_parameter_tensor_names.add(key="a", value="w")
    imported = import_model(model)
    imported.opset_imports = {"": 18}
    imported.metadata = {"a": "3"}
    imported.producer_name = "qir"
    imported.graph.inputs[0].annotation = ()
    newer = next(value for value in imported.graph.inputs if value.name == "newer")
    newer.type = imported.graph.inputs[0].type
    exported = export_model(imported)
    assert [(entry.domain, entry.version) for entry in exported.opset_import] == [("", 18)]
    assert [(entry.key, entry.value) for entry in exported.metadata_props] == [("a", "3")]
    assert exported.producer_name == "qir"
    assert not exported.graph.quantization_annotation
    info = next(info for info in exported.graph.input if info.name == "newer")
    assert info.type == exported.graph.input[0].type


def test_the_collector_is_left_as_it_was() -> None:
    import gc

    gc.disable()
    try:
        import_model(small_model())
        assert not gc.isenabled()
    finally:
        gc.enable()
    import_model(small_model())
    assert gc.isenabled()
