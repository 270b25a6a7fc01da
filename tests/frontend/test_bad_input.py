"""Model files that are none, or damaged, or unsafe: one clear line each."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qir.errors import ModelError
from qir.frontend import import_model, load
from tests.frontend.test_fidelity import small_model


def refusal(path: Path, **options: bool) -> str:
    with pytest.raises(ModelError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_that_is_absent_or_empty_or_a_folder(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "absent.onnx")
    (tmp_path / "empty.onnx").touch()
    assert "is empty" in refusal(tmp_path / "empty.onnx")
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "no regular file" in refusal(tmp_path / "pipe.onnx")


FOREIGN = {
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "PyTorch": b"PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl" * 4,
    "web page": b"\n<!DOCTYPE html><html>404</html>",
    "JSON": b'{"irVersion": "8"}',
    "numpy": b"\x93NUMPY\x01\x00v\x00{'descr'",
    "TensorFlow Lite": b"\x1c\x00\x00\x00TFL3\x14\x00\x20\x00",
    ".ort": b"\x1c\x00\x00\x00ORTM\x14\x00\x20\x00",
    "give a binary": bytes(range(256)),
}


@pytest.mark.parametrize("hint", FOREIGN)
def test_something_else_is_told_apart(tmp_path: Path, hint: str) -> None:
    (tmp_path / "m.onnx").write_bytes(FOREIGN[hint])
    message = refusal(tmp_path / "m.onnx")
    assert "is not an ONNX file" in message
    assert hint in message


def test_random_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    path = tmp_path / "m.onnx"
    for length in (1, 2, 3, 5, 8, 40, 1000):
        for _ in range(40):
            path.write_bytes(generator.integers(0, 256, length, np.uint8).tobytes())
            refusal(path)


def test_a_file_cut_at_any_place_is_an_error(tmp_path: Path) -> None:
    whole = small_model().SerializeToString()
    ends = range(1, len(whole))
    path = tmp_path / "m.onnx"
    telling = 0
    for end in ends:
        path.write_bytes(whole[:end])
        try:
            load(path)
        except ModelError as error:
            telling += "truncated" in str(error)
        else:  # the cut took nothing but the opset import, which stands after the graph
            assert end >= len(whole) - 8
    assert telling > 0.9 * len(ends)


def test_a_damaged_byte_inside_never_raises_anything_else(tmp_path: Path) -> None:
    whole = bytearray(small_model().SerializeToString())
    for at in range(len(whole)):
        for bit in (0, 3, 7):
            changed = whole.copy()
            changed[at] ^= 1 << bit
            path = tmp_path / "m.onnx"
            path.write_bytes(changed)
            try:
                load(path)
            except ModelError as error:
                assert "\n" not in str(error)


def rejected(model: onnx.ModelProto) -> str:
    with pytest.raises(ModelError) as caught:
        import_model(model)
    return str(caught.value)


def test_an_operand_that_nothing_defines_names_node_and_input() -> None:
    model = small_model()
    model.graph.node[1].input[0] = "nowhere"
    assert "input 0 of node 'relu' (Relu) is 'nowhere', which nothing defines" in rejected(model)


def test_a_body_does_not_see_into_its_sibling() -> None:
    model = small_model()
    then = helper.make_graph(
        [helper.make_node("Relu", ["h"], ["inside"])], "t", [], [onnx.ValueInfoProto(name="inside")]
    )
    other = helper.make_graph([helper.make_node("Neg", ["inside"], ["o"])], "e", [], [onnx.ValueInfoProto(name="o")])
    model.graph.node.append(helper.make_node("If", ["h"], ["r"], "if", then_branch=then, else_branch=other))
    assert "'inside', which nothing defines" in rejected(model)


def test_an_output_that_nothing_defines() -> None:
    model = small_model()
    model.graph.output[0].name = "nowhere"
    assert "output 'nowhere' of graph 'g' is defined by no node" in rejected(model)


def test_names_that_are_defined_twice() -> None:
    for change, said in (
        (lambda g: g.node.append(g.node[0]), "node 'add' defines 'h', which is defined already"),
        (lambda g: g.initializer.append(g.initializer[0]), "initializer 'w' is defined twice"),
        (lambda g: g.input.append(g.input[0]), "graph input 'x' is listed twice"),
    ):
        model = small_model()
        change(model.graph)
        assert said in rejected(model)
    model = small_model()
    for _ in range(2):
        model.graph.node[0].attribute.add(name="a", type=2, i=1)
    assert "node 'add' has attribute 'a' twice" in rejected(model)
    model = small_model()
    for _ in range(2):
        model.functions.add(name="F", domain="my")
    assert "function my.F is defined twice" in rejected(model)


def test_tensors_that_do_not_fit_their_type() -> None:
    model = small_model()
    model.graph.initializer[0].raw_data = b"123"
    assert "tensor 'w' of f32[2] needs 8 bytes of data, the file has 3" in rejected(model)
    model = small_model()
    model.graph.initializer.add(name="t", data_type=1, dims=[3], float_data=[1])
    assert "tensor 't' of f32[3] needs 3 elements, the file has 1" in rejected(model)
    model.graph.initializer[1].dims[0] = -1
    assert "impossible shape" in rejected(model)
    model.graph.initializer[1].data_type = 77
    assert "unknown element type 77" in rejected(model)
    model.graph.initializer[1].CopyFrom(onnx.TensorProto(name="t", data_type=14, dims=[1], float_data=[1]))
    assert "half a complex number" in rejected(model)


# External data


def with_external_data(folder: Path, location: str = "w.bin") -> Path:
    """A model whose one large weight stands in ``w.bin``; ``location`` is what the model says."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64])],
        [numpy_helper.from_array(np.arange(64, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    if location != "w.bin":
        stored = onnx.load(path, load_external_data=False)
        stored.graph.initializer[0].external_data[0].value = location
        path.write_bytes(stored.SerializeToString())
    return path


def weight(path: Path, **options: bool) -> np.ndarray:
    (value,) = load(path, **options).graph.initializers
    assert value.tensor is not None
    return value.tensor.numpy()


def test_external_data_that_is_missing_or_short(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    data = tmp_path / "w.bin"
    np.testing.assert_array_equal(weight(path), np.arange(64))
    data.write_bytes(data.read_bytes()[:100])
    assert "'w.bin' has 100 bytes, tensor 'w' needs bytes 0 to 256: the file is truncated" in refusal(path)
    data.unlink()
    message = refusal(path)
    assert "w.bin' of tensor 'w' is missing" in message and "beside the model" in message
    data.mkdir()
    assert "no regular file" in refusal(path)


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "sub/../../w.bin", "C:\\w.bin", "..\\w.bin"])
def test_external_data_outside_of_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    path = with_external_data(tmp_path / "model", location)
    message = refusal(path)
    assert repr(location) in message and "outside of the model's folder" in message
    assert "allow_external_outside=True" in message


def test_external_data_outside_is_read_if_the_user_says_so(tmp_path: Path) -> None:
    path = with_external_data(tmp_path / "model", "../w.bin")
    (tmp_path / "model" / "w.bin").rename(tmp_path / "w.bin")
    np.testing.assert_array_equal(weight(path, allow_external_outside=True), np.arange(64))


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    path = with_external_data(tmp_path / "model")
    data = tmp_path / "model" / "w.bin"
    data.rename(tmp_path / "secret")
    data.symlink_to(tmp_path / "secret")
    assert "a link that leaves the model's folder" in refusal(path)
    np.testing.assert_array_equal(weight(path, allow_external_outside=True), np.arange(64))
    data.unlink()
    os.link(tmp_path / "secret", data)
    assert "a hard link outside of the model's folder" in refusal(path)
    np.testing.assert_array_equal(weight(path, allow_external_outside=True), np.arange(64))


def test_links_within_the_folder_are_followed(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    (tmp_path / "w.bin").rename(tmp_path / "real.bin")
    (tmp_path / "w.bin").symlink_to("real.bin")
    os.link(tmp_path / "real.bin", tmp_path / "again.bin")
    np.testing.assert_array_equal(weight(path), np.arange(64))


def test_a_model_and_its_data_linked_into_one_store(tmp_path: Path) -> None:
    """As Hugging Face's cache does."""
    made = with_external_data(tmp_path / "made")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1f3a"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    made.rename(blobs / "aa11")
    (tmp_path / "made" / "w.bin").rename(blobs / "bb22")
    (snapshot / "m.onnx").symlink_to("../../blobs/aa11")
    (snapshot / "w.bin").symlink_to("../../blobs/bb22")
    np.testing.assert_array_equal(weight(snapshot / "m.onnx"), np.arange(64))


def test_external_entries_that_make_no_sense(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    stored = onnx.load(path, load_external_data=False)
    entries = stored.graph.initializer[0].external_data

    def with_entry(key: str, value: str) -> str:
        copy = onnx.ModelProto()
        copy.CopyFrom(stored)
        next(e for e in copy.graph.initializer[0].external_data if e.key == key).value = value
        path.write_bytes(copy.SerializeToString())
        return refusal(path)

    assert {entry.key for entry in entries} >= {"location", "offset", "length"}
    assert "has offset '-1'" in with_entry("offset", "-1")
    assert "has length 'many'" in with_entry("length", "many")
    assert "is 3 bytes long, its type needs 256" in with_entry("length", "3")
    assert "without a location" in with_entry("location", "")


def test_a_proto_needs_to_be_told_where_its_data_lies(tmp_path: Path) -> None:
    proto = onnx.load(with_external_data(tmp_path), load_external_data=False)
    assert "say where that lies (base_dir)" in rejected(proto)
    (value,) = import_model(proto, tmp_path).graph.initializers
    assert value.tensor is not None
    np.testing.assert_array_equal(value.tensor.numpy(), np.arange(64))
