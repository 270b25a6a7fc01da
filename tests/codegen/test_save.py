"""Files are written whole or not at all, weights inside or beside; over the file that is mapped, too."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qir.codegen import export_model, runnable, save, to_bytes
from qir.errors import OutputError, QirError
from qir.frontend import import_model, load
from qir.ir import DType, Model, StaticQuant, Tensor, UseQuantMarker
from qir.runtime.session import PLAIN, OrtRunner
from tests.protos import difference

BIG = np.arange(1 << 16, dtype=np.float32)
SMALL = np.arange(2048, dtype=np.float32)


def two_weights() -> onnx.ModelProto:
    """y = x + big; z = a branch's own weight, or x; an int4 weight and strings that nobody reads."""
    then = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, [2048])],
        [numpy_helper.from_array(SMALL, "inner")],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["small"], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, [2048])],
    )
    codes = helper.make_tensor("codes", TensorProto.INT4, [5001], [1, -8, 7, 0, 3] * 1000 + [-1])
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "big"], ["y"], "add"),
            helper.make_node("If", ["c"], ["z"], "if", then_branch=then, else_branch=other),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1 << 16]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1 << 16]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [2048]),
        ],
        [
            numpy_helper.from_array(SMALL, "small"),
            numpy_helper.from_array(BIG, "big"),
            codes,
            numpy_helper.from_array(np.float32([1]), "tiny"),
            helper.make_tensor("strings", TensorProto.STRING, [1], [b"text" * 1000]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def check(path: Path) -> None:
    assert difference(two_weights(), onnx.load(path), "model") is None
    assert difference(two_weights(), export_model(load(path)), "model") is None
    for branch, expected in ((True, SMALL), (False, -SMALL)):
        got = OrtRunner(path, PLAIN).run({"x": np.ones(1 << 16, np.float32), "c": np.array(branch)})
        np.testing.assert_array_equal(got["y"], BIG + 1)
        np.testing.assert_array_equal(got["z"], expected)


def files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_weights_inside(tmp_path: Path) -> None:
    save(import_model(two_weights()), tmp_path / "m.onnx")
    assert files(tmp_path) == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == to_bytes(load(tmp_path / "m.onnx"))
    check(tmp_path / "m.onnx")


def test_weights_beside(tmp_path: Path) -> None:
    save(import_model(two_weights()), tmp_path / "m.onnx", external_data=True)
    assert files(tmp_path) == ["m.onnx", "m.onnx.data"]
    check(tmp_path / "m.onnx")
    stored = {t.name: t for t in onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer}
    outside = {name for name, t in stored.items() if t.data_location == TensorProto.EXTERNAL}
    assert outside == {"small", "big", "codes"}
    offsets = {e.value for e in stored["big"].external_data if e.key == "offset"}
    assert all(int(offset) % 4096 == 0 for offset in offsets)


def test_the_threshold_says_what_stays_inside(tmp_path: Path) -> None:
    save(import_model(two_weights()), tmp_path / "m.onnx", external_data=True, external_threshold=100_000)
    assert (tmp_path / "m.onnx.data").stat().st_size == BIG.nbytes
    check(tmp_path / "m.onnx")


def test_weights_that_stood_beside_stay_beside_unless_told(tmp_path: Path) -> None:
    onnx.save(two_weights(), tmp_path / "a.onnx", save_as_external_data=True, location="a.bin")
    model = load(tmp_path / "a.onnx")
    for folder in ("b", "c"):
        (tmp_path / folder).mkdir()
    save(model, tmp_path / "b" / "m.onnx")
    save(model, tmp_path / "c" / "m.onnx", external_data=False)
    assert files(tmp_path / "b") == ["m.onnx", "m.onnx.data"]
    assert files(tmp_path / "c") == ["m.onnx"]
    check(tmp_path / "b" / "m.onnx")
    check(tmp_path / "c" / "m.onnx")


def test_weights_that_share_their_data_are_stored_once(tmp_path: Path) -> None:
    model = import_model(two_weights())
    big = next(value.tensor for value in model.graph.initializers if value.name == "big")
    assert big is not None
    model.graph.add_initializer("tied", big)
    path = tmp_path / "m.onnx"
    save(model, path, external_data=True)
    size = (tmp_path / "m.onnx.data").stat().st_size
    assert size < 1.5 * BIG.nbytes
    # Tensors are distinct objects once loaded, but stand at the same place.
    save(load(path), path)
    assert (tmp_path / "m.onnx.data").stat().st_size == size
    tied = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}["tied"]
    np.testing.assert_array_equal(tied, BIG)


def test_saving_over_the_file_that_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(import_model(two_weights()), path, external_data=True)
    model = load(path)
    edited = load(path)
    small = next(value for value in edited.graph.initializers if value.name == "small")
    small.const = Tensor.of(np.zeros(2048, np.float32))
    save(edited, path)
    assert (tmp_path / "m.onnx.2.data").stat().st_nlink == 1
    # The model that was loaded before still sees the data it was loaded with.
    assert difference(two_weights(), export_model(model), "model") is None
    save(model, path)
    check(path)
    assert files(tmp_path) == ["m.onnx", "m.onnx.data"]


def test_a_target_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    model = import_model(two_weights())
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "absent" / "m.onnx", tmp_path / "file" / "m.onnx", tmp_path / "folder"):
        with pytest.raises(OutputError, match=target.name) as caught:
            save(model, target)
        assert "\n" not in str(caught.value)
    assert files(tmp_path) == ["file", "folder"]
    if os.path.exists("/dev/null"):
        with pytest.raises(OutputError, match="no regular file"):
            save(model, "/dev/null")


def test_a_failure_in_the_middle_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    save(import_model(two_weights()), path, external_data=True)
    model = load(path)

    packed = Tensor.packed

    def fail(self: Tensor) -> np.ndarray:
        if self.nbytes == BIG.nbytes:
            raise OSError(28, "No space left on device")
        return packed(self)

    monkeypatch.setattr(Tensor, "packed", fail)
    for external in (True, False):
        with pytest.raises(OutputError, match="No space left on device"):
            save(model, path, external_data=external)
    monkeypatch.undo()
    assert files(tmp_path) == ["m.onnx", "m.onnx.data"]
    check(path)


def test_models_over_the_limit_of_protobuf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limit lowered; tools/bench/large.py writes a real one."""
    for module in ("exporter", "saving"):
        monkeypatch.setattr(f"qir.codegen.{module}.MOST_BYTES", 100_000)
    monkeypatch.setattr("qir.codegen.runnables.MOST_IN_MEMORY", 100_000)
    model = import_model(two_weights())
    with pytest.raises(OutputError, match="save it with external data"):
        to_bytes(model)
    with pytest.raises(OutputError, match="save it with external data"):
        save(model, tmp_path / "m.onnx", external_data=False)
    assert files(tmp_path) == []
    save(model, tmp_path / "m.onnx")
    with runnable(model) as form:
        assert isinstance(form, str)
        assert difference(two_weights(), onnx.load(form), "model") is None
    assert not os.path.exists(form)
    monkeypatch.undo()
    check(tmp_path / "m.onnx")


def test_a_small_model_runs_from_bytes() -> None:
    with runnable(import_model(two_weights())) as form:
        assert isinstance(form, bytes)
        assert difference(two_weights(), onnx.ModelProto.FromString(form), "model") is None


# What only the IR knows


def names_of_sources(model: Model) -> dict[str, str]:
    proto = export_model(model)
    return {node.name: entry.value for node in proto.graph.node for entry in node.metadata_props}


def test_provenance_is_written_where_it_tells_something() -> None:
    model = import_model(two_weights())
    add = model.graph.nodes.first
    assert add is not None and add.sources == ["add"]
    assert names_of_sources(model) == {}
    made = model.graph.add_node("Relu", [add.output], name="relu", source=[add, *list(model.graph.nodes)[1:2]])
    add.name = "renamed"
    model.graph.add_node("Neg", [made.output], name="made by the compiler")
    assert names_of_sources(model) == {"renamed": "add", "relu": "add\nif"}
    again = import_model(export_model(model))
    assert [node.sources for node in again.graph.nodes] == [["add"], ["if"], ["add", "if"], ["made by the compiler"]]
    assert names_of_sources(again) == names_of_sources(model)
    stripped = export_model(again, strip_provenance=True)
    assert not any(node.metadata_props for node in stripped.graph.node)


def test_provenance_stands_in_its_place_among_other_metadata() -> None:
    proto = two_weights()
    for key, value in (("a", "1"), ("qir.source", "x\ny"), ("b", "2")):
        proto.graph.node[0].metadata_props.add(key=key, value=value)
    model = import_model(proto)
    assert difference(proto, export_model(model), "model") is None
    add = model.graph.nodes.first
    assert add is not None
    add.provenance = "z"
    entries = export_model(model).graph.node[0].metadata_props
    assert [(e.key, e.value) for e in entries] == [("a", "1"), ("qir.source", "z"), ("b", "2")]


def test_annotations_are_no_part_of_a_file(tmp_path: Path) -> None:
    model = import_model(two_weights())
    quant = StaticQuant.per_tensor(DType.INT8, 0.1)
    first = model.graph.nodes.first
    assert first is not None
    use = first.use(0)
    assert use is not None
    places = [
        (first.output, None, "value 'y' is quantized"),
        (model.graph.inputs[0], None, "value 'x' is quantized"),
        (next(iter(model.graph.initializers)), None, "value 'small' is quantized"),
        (use, UseQuantMarker.INHERIT, "input 0 of node 'add' reads 'x' quantized"),
        (model.graph.output_uses[0], UseQuantMarker.INHERIT, "graph output 'y' is quantized"),
    ]
    for place, nothing, said in places:
        place.quant = quant
        with pytest.raises(QirError, match="emit-qdq") as caught:
            save(model, tmp_path / "m.onnx")
        assert said in str(caught.value)
        assert files(tmp_path) == []
        assert difference(two_weights(), export_model(model, annotations="drop"), "model") is None
        place.quant = nothing
    save(model, tmp_path / "m.onnx")


@pytest.mark.parametrize(("opset", "version"), [(7, 4), (13, 7), (17, 8), (21, 10), (24, 12), (26, 13)])
def test_the_file_version_is_the_lowest_that_does(opset: int, version: int) -> None:
    model = Model(opset_imports={"": opset})
    x = model.graph.add_input("x")
    weight = model.graph.add_constant(np.float32([1]))
    model.graph.add_output(model.graph.add_node("Add", [x, weight]).output)
    assert export_model(model).ir_version == version


def test_the_same_model_gives_the_same_bytes() -> None:
    first, second = (to_bytes(import_model(two_weights())) for _ in range(2))
    assert first == second == to_bytes(import_model(two_weights()).clone())


def other_weights() -> Model:
    model = import_model(two_weights())
    big = next(value for value in model.graph.initializers if value.name == "big")
    big.const = Tensor.of(BIG + 1)
    return model


def test_a_model_keeps_its_data_until_the_new_one_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    save(import_model(two_weights()), path, external_data=True)
    before = path.read_bytes(), data.read_bytes()

    def killed(source: str, target: str | Path) -> None:
        if Path(target) == path:
            raise KeyboardInterrupt
        os.rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save(other_weights(), path, external_data=True)
    assert (path.read_bytes(), data.read_bytes()) == before

    save(other_weights(), path, external_data=True)
    assert files(tmp_path) == ["m.onnx", "m.onnx.2.data"]
    save(import_model(two_weights()), path, external_data=True)
    assert files(tmp_path) == ["m.onnx", "m.onnx.data"]
    save(import_model(two_weights()), path, external_data=True)
    assert (path.read_bytes(), data.read_bytes()) == before, "the same model over itself gives the same bytes"
