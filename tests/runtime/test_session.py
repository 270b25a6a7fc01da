"""Sessions run every element type, describe their inputs exactly, and fail in one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qir.errors import ModelError, UnsupportedError
from qir.runtime import ort_values
from qir.runtime.reference import ReferenceRunner
from qir.runtime.session import OPTIMIZED, PLAIN, OrtRunner, SessionConfig
from qir.runtime.specs import DTYPES, InputSpec, format_shape
from tests.runtime.models import build, cast, mlp, tensor


@pytest.mark.parametrize("config", [OPTIMIZED, PLAIN, SessionConfig(level="extended", threads=1)])
def test_a_model_runs_from_bytes_and_from_a_path(tmp_path: Path, config: SessionConfig) -> None:
    model = mlp()
    onnx.save(model, tmp_path / "m.onnx")
    x = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)
    expected = ReferenceRunner(model.SerializeToString()).run({"x": x})["y"]
    for source in (model.SerializeToString(), tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        runner = OrtRunner(source, config)
        assert runner.inputs == (InputSpec("x", np.dtype(np.float32), ("N", 8)),)
        np.testing.assert_allclose(runner.run({"x": x})["y"], expected, rtol=1e-5, atol=1e-6)


def test_the_name_of_an_input_gives_what_is_fed() -> None:
    runner = OrtRunner(mlp().SerializeToString())
    x = np.ones((2, 8), np.float32)
    assert list(runner.run({"x": x}, ["y", "x"])) == ["y", "x"]
    assert runner.run({"x": x}, ["x"])["x"] is x
    with pytest.raises(ModelError, match="Invalid output name"):
        runner.run({"x": x}, ["z"])


def test_external_data_is_found_by_path_and_for_bytes_by_folder(tmp_path: Path) -> None:
    onnx.save(mlp(64), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=16)
    assert (tmp_path / "w.bin").is_file()
    x = np.ones((1, 64), np.float32)
    expected = OrtRunner(mlp(64).SerializeToString()).run({"x": x})["y"]
    np.testing.assert_array_equal(OrtRunner(tmp_path / "m.onnx").run({"x": x})["y"], expected)
    raw = (tmp_path / "m.onnx").read_bytes()
    np.testing.assert_array_equal(OrtRunner(raw, SessionConfig(data_folder=str(tmp_path))).run({"x": x})["y"], expected)


def test_a_scalar_is_told_from_an_unknown_rank() -> None:
    nodes = [helper.make_node("Add", ["s", "u"], ["y"])]
    model = build(nodes, [tensor("s", 1, []), tensor("u", 1, None)], [tensor("y", 1, None)])
    runner = OrtRunner(model.SerializeToString())
    assert [spec.shape for spec in runner.inputs] == [(), None]
    assert runner.outputs[0].shape is None
    assert [str(spec) for spec in runner.inputs] == ["s: float32[]", "u: float32[...]"]


def test_only_the_asked_outputs_come_back_in_the_asked_order() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["x"], ["b"])]
    outputs = [tensor("a", 1, ["N"]), tensor("b", 1, ["N"])]
    runner = OrtRunner(build(nodes, [tensor("x", 1, ["N"])], outputs).SerializeToString())
    x = np.array([1, -2], np.float32)
    assert list(runner.run({"x": x})) == ["a", "b"]
    assert list(runner.run({"x": x}, ["b", "a"])) == ["b", "a"]
    assert list(runner.run({"x": x}, ["b"])) == ["b"]
    assert runner.run({"x": x}, []) == {}


EXOTIC = [
    "bfloat16",
    "float8e4m3fn",
    "float8e4m3fnuz",
    "float8e5m2",
    "float8e5m2fnuz",
    "int4",
    "uint4",
    "int2",
    "uint2",
]


@pytest.mark.parametrize("name", EXOTIC)
def test_types_without_a_numpy_twin_come_out_and_go_in(name: str) -> None:
    element, dtype = TensorProto.DataType.Value(name.upper()), DTYPES[name]
    values = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]], np.float32)
    if name in ("bfloat16", "float8e4m3fn", "float8e5m2", "int4"):
        values[0] = [-1, 2, -4]
    out = OrtRunner(cast(TensorProto.FLOAT, element), PLAIN).run({"x": values})["y"]
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.astype(np.float32), values)
    back = OrtRunner(cast(element, TensorProto.FLOAT), PLAIN).run({"x": values.astype(dtype)})["y"]
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("name", ["int4", "bfloat16", "float8e4m3fn"])
def test_empty_tensors_of_those_types_pass_too(name: str) -> None:
    element = TensorProto.DataType.Value(name.upper())
    out = OrtRunner(cast(TensorProto.FLOAT, element), PLAIN).run({"x": np.zeros((0, 3), np.float32)})["y"]
    assert out.shape == (0, 3) and out.dtype == DTYPES[name]


PACKED: list[tuple[Any, int, int]] = [
    (ml_dtypes.int4, -8, 7),
    (ml_dtypes.uint4, 0, 15),
    (ml_dtypes.int2, -2, 1),
    (ml_dtypes.uint2, 0, 3),
]


@given(st.sampled_from(PACKED), st.integers(0, 17), st.randoms(use_true_random=False))
def test_packing_is_onnx_packing_and_unpacking_undoes_it(case: tuple[Any, int, int], count: int, random: Any) -> None:
    scalar, low, high = case
    array = np.array([random.randint(low, high) for _ in range(count)], np.int8).astype(scalar)
    packed = ort_values.pack(array)
    assert packed.tobytes() == onnx.numpy_helper.from_array(array).raw_data
    unpacked = ort_values.unpack(packed, array.dtype, array.shape)
    np.testing.assert_array_equal(unpacked.astype(np.int8), array.astype(np.int8))


def test_sequences_optionals_and_strings_come_out_as_python_objects() -> None:
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["seq"]),
        helper.make_node("Optional", ["x"], ["opt"]),
        helper.make_node("Identity", ["t"], ["text"]),
    ]
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    outputs = [
        helper.make_tensor_sequence_value_info("seq", TensorProto.FLOAT, None),
        helper.make_value_info("opt", helper.make_optional_type_proto(element)),
        tensor("text", TensorProto.STRING, ["M"]),
    ]
    model = build(nodes, [tensor("x", 1, ["N"]), tensor("t", TensorProto.STRING, ["M"])], outputs, None, 18, 8)
    runner = OrtRunner(model.SerializeToString())
    out = runner.run({"x": np.ones(2, np.float32), "t": np.array(["a", "é"], object)})
    assert [spec.kind for spec in runner.outputs] == ["sequence", "optional", "tensor"]
    assert isinstance(out["seq"], list) and len(out["seq"]) == 2
    np.testing.assert_array_equal(out["opt"], np.ones(2, np.float32))
    assert out["text"].tolist() == ["a", "é"]


def test_a_sequence_beside_bfloat16_is_refused_with_a_way_out() -> None:
    nodes = [helper.make_node("SequenceConstruct", ["x"], ["seq"]), helper.make_node("Cast", ["x"], ["b"], to=16)]
    outputs = [helper.make_tensor_sequence_value_info("seq", 1, None), tensor("b", TensorProto.BFLOAT16, ["N"])]
    runner = OrtRunner(build(nodes, [tensor("x", 1, ["N"])], outputs, None, 18, 8).SerializeToString())
    x = np.ones(2, np.float32)
    with pytest.raises(UnsupportedError, match=r"output 'seq'.*run of its own"):
        runner.run({"x": x})
    assert len(runner.run({"x": x}, ["seq"])["seq"]) == 1


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        (b"", ModelError, "cannot load the model: No graph was found"),
        (b"abc", ModelError, "protobuf parsing failed"),
        (Path("/nowhere/m.onnx"), ModelError, "cannot load '/nowhere/m.onnx'.*doesn't exist"),
        (cast(TensorProto.FLOAT, TensorProto.FLOAT, ir_version=99), UnsupportedError, "IR version"),
        (
            cast(TensorProto.FLOAT, TensorProto.FLOAT4E2M1),
            UnsupportedError,
            "Could not find an implementation for Cast",
        ),
    ],
)
def test_what_cannot_load_says_so_in_one_line(model: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        OrtRunner(model)
    assert "\n" not in str(caught.value) and "ONNXRuntimeError" not in str(caught.value)


def test_a_failing_run_names_the_node_without_the_runtimes_source_lines() -> None:
    node = helper.make_node("Reshape", ["x", "s"], ["y"], name="rs")
    model = build([node], [tensor("x", 1, ["N"]), tensor("s", 7, [2])], [tensor("y", 1, None)])
    with pytest.raises(ModelError, match=r"failed while running the model.*'rs'") as caught:
        OrtRunner(model.SerializeToString()).run({"x": np.ones(4, np.float32), "s": np.array([5, 5])})
    assert "\n" not in str(caught.value) and ".h:" not in str(caught.value)


@pytest.mark.parametrize("runner", [OrtRunner, ReferenceRunner])
def test_a_missing_feed_is_an_error_not_a_crash(runner: Any) -> None:
    with pytest.raises(ModelError, match="x"):
        runner(mlp().SerializeToString()).run({})


def test_the_reference_has_the_same_interface() -> None:
    runner = ReferenceRunner(mlp().SerializeToString())
    assert runner.inputs == (InputSpec("x", np.dtype(np.float32), ("N", 8)),)
    assert runner.outputs == (InputSpec("y", np.dtype(np.float32), ("N", 8)),)
    with pytest.raises(ModelError, match=r"onnx\.reference .* cannot load"):
        ReferenceRunner(b"abc")


def test_shapes_print_with_symbols_and_unknowns() -> None:
    assert format_shape(("N", 3, None)) == "[N, 3, ?]"
    assert format_shape(None) == "[...]"
    assert format_shape(()) == "[]"
