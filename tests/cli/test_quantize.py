"""`qir quantize`: the exact contract of its command line, and one clear line for every bad input."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as nh
import pytest

import qir
from qir import golden_models
from qir.cli import main
from qir.runtime.session import OrtRunner
from qir.validation.metrics import sqnr_db
from tests.cli.test_main import RUN

CNN = golden_models.path("cnn-digits")
MODEL = str(CNN / "model.onnx")
CALIB = str(CNN / "calib.npz")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a test. Latency is not what these tests are about, so its measurement is cut short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qir.api.quantizing._LATENCY_SAMPLES", 1)
    monkeypatch.setattr("qir.api.quantizing.compare_latency", _short_latency)
    return tmp_path


def _short_latency(*arguments: Any, **options: Any) -> Any:
    from qir.runtime.latency import compare_latency

    return compare_latency(*arguments, **{**options, "seconds": 0.01})


def small_model(path: Path) -> Path:
    """Conv, Relu, Conv over x: f32[1, 8, 8, 8]."""
    draw = np.random.default_rng(7)
    weights = {
        "w1": draw.normal(size=(8, 8, 3, 3)),
        "b1": draw.normal(size=8),
        "w2": draw.normal(size=(2, 8, 1, 1)),
    }
    nodes = [
        oh.make_node("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        oh.make_node("Relu", ["c1"], ["r1"], "act"),
        oh.make_node("Conv", ["r1", "w2"], ["y"], "second"),
    ]
    graph = oh.make_graph(
        nodes,
        "small",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 8, 8, 8])],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2, 8, 8])],
        [nh.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8), path)
    return path


def samples(count: int = 4, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 8, 8, 8)).astype(np.float32)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuses(capsys: Capture, *arguments: str, says: str | list[str]) -> str:
    """Exit code 2, one line on stderr, nothing on stdout, no file made or changed."""
    before = files(Path.cwd())
    code = main(["quantize", *arguments])
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, ""), captured
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    for part in [says] if isinstance(says, str) else says:
        assert part in lines[0]
    assert files(Path.cwd()) == before
    return lines[0]


# The contract


def test_the_exact_command_line(work: Path, capsys: Capture) -> None:
    arguments = ["quantize", MODEL, "--calib", CALIB, "-o", "out.onnx", "--golden", str(CNN / "eval.npz")]
    assert main([*arguments, "--preset", "int8", "--target", "ort-cpu", "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert captured.err == ""
    assert report["output"] == "out.onnx" and report["passed"]
    assert report["sqnr_db"] > 30 and report["size"]["ratio"] < 0.5 and report["executed_integer"]["QLinearConv"] >= 2
    assert sorted(files(work)) == ["out.onnx", "out.onnx.qir.json"]
    for level in ("all", "none"):
        from qir.runtime.session import SessionConfig

        OrtRunner("out.onnx", SessionConfig(level=level))  # type: ignore[arg-type]


def test_the_report_for_people(work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    np.savez("calib.npz", x=samples(16))
    assert main(["quantize", "m.onnx", "--calib", "calib.npz", "-o", "out.onnx"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "m.onnx -> out.onnx  (int8 for ort-cpu)" in captured.out
    assert "2 samples kept out of calibration" in captured.out and "dB SQNR" in captured.out


def test_stdout_is_one_object_even_in_a_pipe_and_with_warnings(work: Path) -> None:
    small_model(work / "m.onnx")
    np.savez("calib.npz", x=samples(), extra=np.zeros(4))
    done = subprocess.run(
        [*RUN, "quantize", "m.onnx", "--calib", "calib.npz", "-o", "out.onnx", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(qir.__file__).parents[1])},
    )
    assert done.returncode == 0
    json.loads(done.stdout)
    assert done.stderr == "warning: calib.npz: 'extra' is no input of the model and is ignored\n"


def test_below_min_sqnr_writes_nothing_and_leaves_what_was_there(work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    np.savez("calib.npz", x=samples())
    (work / "out.onnx").write_text("old")
    arguments = ["quantize", "m.onnx", "--calib", "calib.npz", "-o", "out.onnx", "--min-sqnr", "190", "--json"]
    before = files(work)
    assert main(arguments) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["passed"] and report["output"] is None and files(work) == before


def test_golden_data_may_hold_the_expected_outputs(work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    x = samples()
    expected = np.concatenate([OrtRunner("m.onnx").run({"x": row[None]})["y"] for row in x])
    np.savez("calib.npz", x=x)
    np.savez("golden.npz", x=x, y=expected)
    arguments = ["quantize", "m.onnx", "--calib", "calib.npz", "--golden", "golden.npz", "-o", "out.onnx", "--json"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["sqnr_db"] > 20 and captured.err == ""


# Models that are none


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no file"),
        (b"", "empty"),
        (b"hello, I am no model\n" * 20, "ONNX"),
        ("truncated", ""),
        ("folder", "folder"),
    ],
    ids=["absent", "empty", "text", "truncated", "folder"],
)
def test_no_model(content: bytes | str | None, says: str, work: Path, capsys: Capture) -> None:
    path = work / "bad.onnx"
    if content == "folder":
        path.mkdir()
    elif content == "truncated":
        whole = Path(MODEL).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    refuses(capsys, "bad.onnx", "--calib", CALIB, "-o", "out.onnx", says=["bad.onnx", says])


def test_external_data_missing_or_outside(work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    model = onnx.load("m.onnx")
    (work / "inner").mkdir()
    onnx.save(model, "inner/ext.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    np.savez("calib.npz", x=samples())
    (work / "inner" / "weights.bin").rename(work / "weights.bin")
    refuses(capsys, "inner/ext.onnx", "--calib", "calib.npz", "-o", "out.onnx", says="weights.bin")
    outside = onnx.load("inner/ext.onnx", load_external_data=False)
    for tensor in outside.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    (work / "inner" / "out.onnx").write_bytes(outside.SerializeToString())
    refuses(capsys, "inner/out.onnx", "--calib", "calib.npz", "-o", "out.onnx", says="../weights.bin")


def test_an_already_quantized_model(work: Path, capsys: Capture) -> None:
    qir.quantize(MODEL, "int8.onnx", calibration=CALIB, latency_seconds=0)
    refuses(
        capsys,
        *("int8.onnx", "--calib", CALIB, "-o", "out.onnx"),
        says=["the model is quantized already (QuantizeLinear", "give the float model"],
    )


# Calibration data


BAD_DATA: dict[str, tuple[Callable[[], Mapping[str, Any]], list[str]]] = {
    "wrong key": (lambda: {"y": samples()}, ["no data for input x: float32[1, 8, 8, 8]", "the keys are 'y'"]),
    "near key": (lambda: {"X": samples()}, ["no data for input x", "did you mean 'X'"]),
    "shape": (lambda: {"x": samples()[:, :, :4]}, ["'x' has shape [1, 8, 4, 8], the model wants [1, 8, 8, 8]"]),
    "rank": (lambda: {"x": np.zeros((4, 3), np.float32)}, ["'x' has shape [4, 3]", "[samples, 1, 8, 8, 8]"]),
    "dtype": (lambda: {"x": np.zeros((4, 8, 8, 8), np.int32)}, ["'x' is int32, the model wants float32"]),
    "none": (lambda: {"x": samples(0)}, ["'x' holds no samples"]),
    "NaN": (
        lambda: {"x": np.where(np.arange(4)[:, None, None, None] == 2, np.nan, samples())},
        ["sample 2", "'x'", "NaN"],
    ),
    "inf": (
        lambda: {"x": np.where(np.arange(4)[:, None, None, None] == 3, np.inf, samples())},
        ["sample 3", "infinity"],
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_calibration_data_that_does_not_fit(case: str, work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    arrays, says = BAD_DATA[case]
    np.savez("calib.npz", **arrays())  # type: ignore[arg-type]
    refuses(capsys, "m.onnx", "--calib", "calib.npz", "-o", "out.onnx", says=["calib.npz", *says])


def test_calibration_files_that_are_none(work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    (work / "text.npz").write_text("no archive")
    (work / "empty.npz").write_bytes(b"")
    (work / "folder").mkdir()
    np.save("x.npy", samples())
    np.savez("good.npz", x=samples())
    (work / "cut.npz").write_bytes((work / "good.npz").read_bytes()[:-300])
    for name, says in (
        ("absent.npz", "no such file"),
        ("text.npz", "is no .npz archive"),
        ("empty.npz", "is no .npz archive"),
        ("cut.npz", "is no .npz archive"),
        ("folder", "holds neither"),
        ("x.npy", "numpy.savez(file, **{'x': array}) makes an .npz"),
    ):
        refuses(capsys, "m.onnx", "--calib", name, "-o", "out.onnx", says=[name, says])


def test_golden_data_that_does_not_fit(work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    np.savez("calib.npz", x=samples())
    np.savez("golden.npz", x=samples()[:, :2])
    refuses(
        capsys,
        *("m.onnx", "--calib", "calib.npz", "--golden", "golden.npz", "-o", "out.onnx"),
        says=["golden.npz", "the model wants [1, 8, 8, 8]"],
    )


# Where the result goes


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("missing/out.onnx", "there is no folder 'missing'"),
        ("folder", "is a folder: name a file to write"),
        ("m.onnx/out.onnx", "cannot be written"),
        (".", "is a folder"),
    ],
)
def test_output_that_cannot_be_written(output: str, says: str, work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    np.savez("calib.npz", x=samples())
    (work / "folder").mkdir()
    refuses(capsys, "m.onnx", "--calib", "calib.npz", "-o", output, says=[repr(output), says])


@pytest.mark.parametrize("output", ["./m.onnx", "calib.npz", "link.onnx"])
def test_the_result_may_not_overwrite_what_it_is_made_from(output: str, work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    np.savez("calib.npz", x=samples())
    (work / "link.onnx").symlink_to("m.onnx")
    refuses(capsys, "m.onnx", "--calib", "calib.npz", "-o", output, says="would overwrite what it is made from")


# Names


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--preset", "int9", "did you mean 'int8'"),
        ("--target", "ort-cpv", "did you mean 'ort-cpu'"),
        ("--keep-float", "secnd", "did you mean 'second'"),
        ("--recipe", "absent.toml", "cannot be read"),
    ],
)
def test_unknown_names(option: str, value: str, says: str, work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    np.savez("calib.npz", x=samples())
    refuses(capsys, "m.onnx", "--calib", "calib.npz", "-o", "out.onnx", option, value, says=[repr(value), says])


def test_an_effort_that_a_preset_does_not_know(work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    np.savez("calib.npz", x=samples())
    arguments = ["m.onnx", "--calib", "calib.npz", "-o", "q.onnx", "--effort", "best", "--preset"]
    for preset in ("int8-dynamic", "canonicalize,calibrate,quantize,emit-qdq"):
        assert main(["quantize", *arguments, preset]) == 2
        assert "leave --effort out" in capsys.readouterr().err
    assert main(["quantize", *arguments[:-2], "fast", "--preset", "int8-fast"]) == 0


def test_outputs_stay_as_declared(work: Path) -> None:
    """Sizes that passes find out are no part of the interface."""
    np.savez("calib.npz", x=samples())
    source = onnx.load(small_model(work / "open.onnx"))
    for axis in source.graph.output[0].type.tensor_type.shape.dim:
        axis.Clear()
    onnx.save(source, work / "open.onnx")
    report = qir.quantize(work / "open.onnx", work / "q.onnx", calibration="calib.npz", latency_seconds=0)
    assert report.executed_integer
    assert onnx.load(work / "q.onnx").graph.output[0] == source.graph.output[0]


def quantized_nodes(report: dict[str, Any]) -> set[str]:
    return {r["subject"] for r in report["remarks"] if r["pass"] == "quantize" and r["kind"] == "applied"}


@pytest.mark.parametrize(
    ("pattern", "left"),
    [("second", {"first"}), ("fir*", {"second"}), ("r1", {"first", "second"}), ("Conv", set())],
)
def test_keep_float_by_name_glob_and_operator(pattern: str, left: set[str], work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    np.savez("calib.npz", x=samples())
    arguments = ["quantize", "m.onnx", "--calib", "calib.npz", "-o", "out.onnx", "--json", "--keep-float", pattern]
    assert main(arguments) == 0
    assert quantized_nodes(json.loads(capsys.readouterr().out)) == left


def test_recipe(work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    np.savez("calib.npz", x=samples())
    arguments = ["m.onnx", "--calib", "calib.npz", "-o", "out.onnx", "--recipe", "r.toml"]
    (work / "r.toml").write_text(
        '[[node]]\nmatch = "Conv"\nprecision = "float"\n[[node]]\nmatch = "first"\nprecision = "int8"\n'
    )
    assert main(["quantize", *arguments, "--json"]) == 0
    assert quantized_nodes(json.loads(capsys.readouterr().out)) == {"first"}
    (work / "out.onnx").unlink()
    for text, says in (
        ("[[node]]\nmatch = 'zeroth'\nprecision = 'float'", "'zeroth' matches no node (did you mean "),
        ("[[node]]\nmatch = 'first'\nprecision = 'int7'", "'precision' must be one of"),
        ("[[nodes]]\nmatch = 'first'", "unknown table 'nodes'"),
        ("[[node", "is no TOML"),
    ):
        (work / "r.toml").write_text(text)
        refuses(capsys, *arguments, says=["r.toml", says])


def test_effort_names_a_preset(work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    np.savez("calib.npz", x=samples())
    for effort, preset in (("fast", "int8-fast"), ("balanced", "int8")):
        assert main(["quantize", "m.onnx", "--calib", "calib.npz", "-o", "out.onnx", "--effort", effort, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["preset"] == preset


# Models that are unusual, not wrong


def test_operators_of_an_unknown_domain_stay_and_are_reported(work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    model = onnx.load("m.onnx")
    # A domain that the runtime knows and qir has no schema for: the model still runs.
    model.graph.node.append(oh.make_node("Gelu", ["y"], ["z"], "odd", domain="com.microsoft"))
    model.opset_import.append(oh.make_opsetid("com.microsoft", 1))
    model.graph.output[0].name = "z"
    onnx.save(model, "odd.onnx")
    np.savez("calib.npz", x=samples())
    assert main(["quantize", "odd.onnx", "--calib", "calib.npz", "-o", "out.onnx", "--json"]) == 0
    assert quantized_nodes(json.loads(capsys.readouterr().out)) == {"first", "second"}
    assert [n.op_type for n in onnx.load("out.onnx").graph.node if n.domain == "com.microsoft"] == ["Gelu"]


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("place", ["last", "first", "middle"])
def test_operators_that_the_runtime_lacks_stay_opaque_and_are_reported(
    place: str, opset: int, work: Path, capsys: Capture
) -> None:
    small_model(work / "m.onnx")
    model = onnx.load("m.onnx")
    model.opset_import[0].version = opset
    graph = model.graph
    model.opset_import.append(oh.make_opsetid("acme", 1))
    if place == "last":
        graph.node.append(oh.make_node("Frob", ["y", "w1"], ["z"], "odd", domain="acme", level=3))
        graph.output[0].name = "z"
    elif place == "first":
        graph.node.insert(0, oh.make_node("Frob", ["x"], ["x2"], "odd", domain="acme"))
        graph.node[1].input[0] = "x2"
    else:
        graph.node.insert(2, oh.make_node("Frob", ["r1"], ["r2"], "odd", domain="acme"))
        graph.node[3].input[0] = "r2"
    onnx.save(model, "odd.onnx")
    np.savez("calib.npz", x=samples())
    assert main(["quantize", "odd.onnx", "--calib", "calib.npz", "-o", "out.onnx", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert quantized_nodes(report) == {"last": {"first", "second"}, "first": set(), "middle": {"first"}}[place]
    [message] = [remark["message"] for remark in report["remarks"] if remark["subject"] == "odd"]
    assert message.startswith("acme.Frob is unknown to the runtime")
    result = onnx.load("out.onnx")
    before, after = ([n for n in one.graph.node if n.domain == "acme"] for one in (model, result))
    assert [(n.op_type, list(n.output), list(n.attribute)) for n in before] == [
        (n.op_type, list(n.output), list(n.attribute)) for n in after
    ]
    # With something known in its place, the result computes what the source does.
    for one in (model, result):
        for odd in (n for n in one.graph.node if n.domain == "acme"):
            del odd.attribute[:], odd.input[1:]
            odd.domain, odd.op_type = "", "Tanh"
    feed = {"x": samples(1, seed=5)}
    [wanted], [got] = (list(OrtRunner(one.SerializeToString()).run(feed).values()) for one in (model, result))
    assert sqnr_db([wanted], [got]) > 20
    assert list(result.graph.input) == list(model.graph.input)
    assert [value.name for value in result.graph.output] == [value.name for value in model.graph.output]
    qir.load("out.onnx")


def test_half_precision_keeps_its_interface(work: Path, capsys: Capture) -> None:
    model = onnx.load(MODEL)
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(nh.from_array(nh.to_array(tensor).astype(np.float16), tensor.name))
    onnx.save(model, "half.onnx")
    arguments = [
        "quantize",
        "half.onnx",
        "--calib",
        CALIB,
        "--golden",
        str(CNN / "eval.npz"),
        "-o",
        "out.onnx",
        "--json",
    ]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sqnr_db"] > 30 and report["executed_integer"]["QLinearConv"] >= 2
    runner = OrtRunner("out.onnx")
    assert [spec.dtype for spec in (*runner.inputs, *runner.outputs)] == [np.float16] * 2


# Without calibration data


def test_a_preset_that_looks_at_samples_says_so(work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    refuses(capsys, "m.onnx", "-o", "out.onnx", says=["preset 'int8' looks at samples (pass 'calibrate')", "--calib"])


def test_without_any_data_the_report_measures_nothing_and_says_so(work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    assert main(["quantize", "m.onnx", "-o", "out.onnx", "--preset", "optimize"]) == 0
    captured = capsys.readouterr()
    assert "not measured, nor latency: no data" in captured.out and "dB" not in captured.out
    assert (work / "out.onnx").exists()
    assert main(["quantize", "m.onnx", "-o", "out.onnx", "--preset", "optimize", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sqnr_db"] is None and report["accuracy"] is None and report["latency"] is None
    assert report["measured_on"] == "no data" and report["calibration_samples"] == 0


def test_a_preset_without_calibration_is_measured_on_golden_samples(work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    np.savez("golden.npz", x=samples())
    arguments = ["m.onnx", "--golden", "golden.npz", "-o", "out.onnx", "--preset", "optimize", "--json"]
    assert main(["quantize", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["measured_on"] == "4 golden samples of golden.npz"


def test_a_threshold_without_data_is_refused(work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    refuses(
        capsys,
        *("m.onnx", "-o", "out.onnx", "--preset", "optimize", "--min-sqnr", "20"),
        says="min_sqnr needs samples to measure on: give --golden or --calib",
    )


# Settings


def test_set_changes_an_option_of_a_pass(work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    arguments = ["quantize", "m.onnx", "-o", "out.onnx", "--preset", "optimize", "--json"]
    assert main([*arguments, "--set", "fuse.only=[conv-bn,pad-conv]", "--set", "fold-constants.max_bytes=64"]) == 0
    assert (
        "fold-constants{max-bytes=64},fuse{only=[conv-bn,pad-conv]}" in json.loads(capsys.readouterr().out)["pipeline"]
    )


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("fuse", "'fuse' is no setting: write PASS.OPTION=VALUE"),
        ("fuze.only=x", ["no pass 'fuze' to set", "did you mean 'fuse'"]),
        ("fuse.onli=3", ["no option 'onli'", "did you mean 'only'"]),
        ("fold-constants.max-bytes=many", ["option 'max-bytes' takes int", "'many'"]),
    ],
)
def test_settings_that_cannot_be(setting: str, says: str | list[str], work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    refuses(capsys, "m.onnx", "-o", "out.onnx", "--preset", "optimize", "--set", setting, says=says)


# What is said


def test_every_file_that_was_written_is_named(work: Path, capsys: Capture) -> None:
    small_model(work / "m.onnx")
    arguments = ["quantize", "m.onnx", "-o", "out.onnx", "--preset", "optimize"]
    assert main([*arguments, "--report", "r.md", "--write-recipe", "r.toml"]) == 0
    said = capsys.readouterr()
    assert "  also      out.onnx.qir.json, r.md\n" in said.out
    assert "warning: no 'r.toml': 'optimize' decides nothing for single nodes" in said.err
    assert set(files(work)) == {"m.onnx", "out.onnx", "out.onnx.qir.json", "r.md"}
    assert main([*arguments, "--no-manifest"]) == 0
    assert "  also " not in capsys.readouterr().out
