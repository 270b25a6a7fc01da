"""`qir compare`, `bench`, `ranges`, `inspect`, and the options of `qir quantize` that steer and judge accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qir import golden_models
from qir.cli import main
from tests.cli.test_quantize import Capture, samples, small_model

CNN = golden_models.path("resnet-shapes")
MODEL, CALIB = str(CNN / "model.onnx"), str(CNN / "calib.npz")
PLAIN = (
    "canonicalize,convert-opset{to=13},fold-constants,fuse,canonicalize,legalize,analyze-ranges,calibrate,quantize,"
    "place,emit-qdq"
)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qir.api.quantizing._LATENCY_SAMPLES", 1)
    small_model(tmp_path / "m.onnx")
    np.savez("calib.npz", x=samples())
    return tmp_path


def quantize(*more: str, model: str = "m.onnx", out: str = "out.onnx", code: int = 0) -> None:
    arguments = ["quantize", model, "-o", out, *more]
    if "--calib" not in more:
        arguments += ["--calib", "calib.npz"]
    assert main(arguments) == code


def says(capsys: Capture, *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == code, capsys.readouterr()
    return capsys.readouterr().out


def error(capsys: Capture, *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("error: ") == 1
    return captured.err


def kernels(path: str) -> dict[str, bool]:
    """Convolutions by name, and whether their weights are dequantized."""
    graph = onnx.load(path).graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    return {n.name: made.get(n.input[1]) == "DequantizeLinear" for n in graph.node if n.op_type == "Conv"}


# compare


def test_compare_prints_lines_that_quantize_takes(work: Path, capsys: Capture) -> None:
    quantize("--preset", PLAIN)
    arguments = ["compare", "m.onnx", "out.onnx", "--data", "calib.npz"]
    text = says(capsys, *arguments, "--write-recipe", "r.toml")
    assert "[[node]]" in text and "own dB" in text and "precision" in (work / "r.toml").read_text()
    first = json.loads(says(capsys, *arguments, "--json"))
    quantize("--preset", PLAIN, "--recipe", "r.toml", out="better.onnx")
    better = json.loads(says(capsys, "compare", "m.onnx", "better.onnx", "--data", "calib.npz", "--json"))
    assert better["sqnr_db"] > first["sqnr_db"] + 1
    assert {layer["node"] for layer in first["layers"]} <= {"first", "second"}
    layer = first["layers"][0]
    assert layer["own_sqnr_db"] > 0 and layer["sqnr_db"] > 0 and layer["grids"][0]["used_levels"] > 1


def test_a_node_is_kept_float_by_copying_the_line_that_compare_prints(work: Path, capsys: Capture) -> None:
    quantize("--preset", PLAIN)
    assert kernels("out.onnx") == {"first": True, "second": True}
    said = json.loads(says(capsys, "compare", "m.onnx", "out.onnx", "--data", "calib.npz", "--json"))
    wanted = next(line for line in said["advice"] if line["precision"] == "float")
    (work / "mine.toml").write_text(f'[[node]]\nmatch = {json.dumps(wanted["match"])}\nprecision = "float"\n')
    quantize("--preset", PLAIN, "--recipe", "mine.toml")
    named = [wanted["match"]] if isinstance(wanted["match"], str) else wanted["match"]
    assert not any(kernels("out.onnx")[name] for name in named)


def test_compare_layers_lists_every_value_in_order(work: Path, capsys: Capture) -> None:
    quantize("--preset", PLAIN, "--calib", CALIB, model=MODEL)
    report = json.loads(
        says(capsys, "compare", MODEL, "out.onnx", "--data", CALIB, "--layers", "--lines", "0", "--json")
    )
    nodes = [layer["node"] for layer in report["layers"]]
    assert nodes[0] == "/conv1" and nodes[-1] == "/fc" and len(nodes) > 12
    assert report["advice"] == [] and report["not_aligned"] == []


def test_compare_of_other_models_is_refused(work: Path, capsys: Capture) -> None:
    assert "lacks" in error(capsys, "compare", MODEL, "m.onnx", "--data", CALIB)
    assert "no such file" in error(capsys, "compare", "m.onnx", "m.onnx", "--data", "no.npz")


# recipes, searches, names


def test_a_search_writes_a_recipe_that_gives_the_same_placement_again(work: Path, capsys: Capture) -> None:
    quantize("--calib", CALIB, "--golden", CALIB, "--write-recipe", "found.toml", "--min-sqnr", "40", model=MODEL)
    text = (work / "found.toml").read_text()
    assert 'precision = "float"' in text and 'precision = "int8"' in text
    quantize("--calib", CALIB, "--recipe", "found.toml", "--write-recipe", "again.toml", model=MODEL, out="again.onnx")
    assert (work / "again.toml").read_text() == text
    assert kernels("again.onnx") == kernels("out.onnx")


def test_a_region_stays_float_whatever_its_nodes_are_called(work: Path, capsys: Capture) -> None:
    (work / "r.toml").write_text('[[region]]\nfrom = "r1"\nprecision = "float"\n')
    quantize("--recipe", "r.toml", "--preset", PLAIN)
    assert kernels("out.onnx") == {"first": True, "second": False}
    (work / "r.toml").write_text('[[region]]\nfrom = "r2"\nprecision = "float"\n')
    text = error(capsys, "quantize", "m.onnx", "--calib", "calib.npz", "-o", "o.onnx", "--recipe", "r.toml")
    assert "no value 'r2' (did you mean" in text


def test_a_method_for_one_node_changes_its_scale_alone(work: Path, capsys: Capture) -> None:
    batch = samples().copy()
    batch.reshape(len(batch), -1)[:, 0] = 60.0
    np.savez("calib.npz", x=batch)

    def scales() -> dict[str, float]:
        graph = onnx.load("out.onnx").graph
        constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        return {n.output[0]: float(constants[n.input[1]]) for n in graph.node if n.op_type == "QuantizeLinear"}

    quantize("--preset", PLAIN)
    before = scales()
    (work / "r.toml").write_text('[[node]]\nmatch = "first"\nmethod = "mse"\n')
    quantize("--preset", PLAIN, "--recipe", "r.toml")
    after = scales()
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed and not any(name.startswith("y") for name in changed)
    assert all(after[name] < before[name] for name in changed)


def test_int8_in_a_recipe_is_not_taken_back_by_a_search(work: Path, capsys: Capture) -> None:
    (work / "r.toml").write_text('[[node]]\nmatch = "*"\nprecision = "int8"\n')
    quantize("--recipe", "r.toml", "--min-sqnr", "90", code=1)
    said = capsys.readouterr().out
    assert "NOT REACHED" in said and "leaves" not in said


def test_nodes_keep_the_names_that_recipes_use(work: Path, capsys: Capture) -> None:
    """A fused or replaced node answers to each name of the nodes that it stands for."""
    folder = golden_models.path("cnn-digits")
    float_names = {
        node.name for node in onnx.load(folder / "model.onnx").graph.node if node.op_type == "BatchNormalization"
    }
    name = sorted(float_names)[0]
    arguments = ["--calib", str(folder / "calib.npz"), "--effort", "fast", "--keep-float", name, "--json"]
    capsys.readouterr()
    quantize(*arguments, model=str(folder / "model.onnx"))
    report = json.loads(capsys.readouterr().out)
    kept = [r for r in report["remarks"] if r["pass"] == "quantize" and "--keep-float" in r["message"]]
    assert len(kept) == 1 and name in kept[0]["sources"]


# thresholds and task metrics


def labelled(path: str, count: int = 24) -> None:
    """Samples whose labels are what the float model says: its accuracy is 1."""
    from qir.runtime.session import OrtRunner

    runner, batch = OrtRunner("m.onnx"), samples(count)
    rows = [runner.run({"x": batch[i : i + 1]})["y"] for i in range(len(batch))]
    labels = np.stack([row.argmax(-1).reshape(-1) for row in rows])
    np.savez(path, x=batch, labels=labels)


def test_max_drop_judges_and_refuses(work: Path, capsys: Capture) -> None:
    labelled("golden.npz")
    quantize("--golden", "golden.npz", "--max-drop", "50", "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and report["drop_points"] <= 50 and report["max_drop"] == 50
    (work / "out.onnx").unlink()
    quantize("--golden", "golden.npz", "--max-drop", "-1", "--effort", "fast", code=1)
    assert "EXCEEDED" in capsys.readouterr().out and not (work / "out.onnx").exists()
    assert "max_drop needs samples" in error(
        capsys, "quantize", "m.onnx", "-o", "o.onnx", "--preset", "fp16", "--max-drop", "1"
    )


def test_max_drop_searches_until_it_is_kept(work: Path, capsys: Capture) -> None:
    """The plain placement changes decisions; the search leaves nodes in float until it does not."""
    labelled("golden.npz")

    def dropped(*more: str) -> float:
        capsys.readouterr()
        quantize("--calib", "golden.npz", "--golden", "golden.npz", "--json", *more)
        return float(json.loads(capsys.readouterr().out)["drop_points"])

    plain = dropped()
    assert plain > 0
    assert dropped("--max-drop", str(plain / 2)) <= plain / 2


def test_metrics_by_name_and_by_function(work: Path, capsys: Capture) -> None:
    labelled("golden.npz")
    (work / "mine.py").write_text("def half(outputs, labels):\n    return len(outputs) / len(labels) / 2\n")
    for metric, wanted in (("top5", 1.0), ("f1", 1.0), ("mine.py:half", 0.5)):
        capsys.readouterr()
        quantize("--golden", "golden.npz", "--metric", metric, "--json")
        found = json.loads(capsys.readouterr().out)["accuracy"]["metric"]
        assert found["name"] == metric.rpartition(":")[2] and found["reference"] == wanted
    base = ["quantize", "m.onnx", "--calib", "calib.npz", "-o", "o.onnx", "--golden", "golden.npz", "--metric"]
    assert "unknown metric 'acuracy' (did you mean 'accuracy'" in error(capsys, *base, "acuracy")
    assert "no function 'haf' (did you mean 'half'" in error(capsys, *base, "mine.py:haf")
    base[base.index("golden.npz")] = "calib.npz"
    assert "holds no labels" in error(capsys, *base, "f1")


def test_random_calibration_only_when_asked_for_and_loudly(work: Path, capsys: Capture) -> None:
    assert "looks at samples" in error(capsys, "quantize", "m.onnx", "-o", "o.onnx")
    quantize("--calib", "random:16")
    assert "RANDOM DATA: ranges and accuracy mean nothing" in capsys.readouterr().out
    quantize("--calib", "random:16", "--json")
    assert json.loads(capsys.readouterr().out)["synthetic_data"] is True


def test_input_range_reaches_the_analysis(work: Path, capsys: Capture) -> None:
    quantize("--input-range", "x=-1:1")
    base = ["quantize", "m.onnx", "--calib", "calib.npz", "-o", "o.onnx", "--input-range"]
    assert "is not NAME=LO:HI" in error(capsys, *base, "x=3")
    assert "(did you mean 'x'" in error(capsys, *base, "xx=0:1")


def test_images_calibrate_and_their_folders_are_labels(work: Path, capsys: Capture) -> None:
    image = pytest.importorskip("PIL.Image")
    draw = np.random.default_rng(0)
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (work / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(work / "photos" / name)
    line = "resize=32 crop=32 scale=1/255 layout=NCHW"
    arguments = ["--calib", "photos", "--golden", "photos", "--preprocess", line, "--labels", "folders", "--json"]
    capsys.readouterr()
    quantize(*arguments, "--effort", "fast", model=MODEL)
    report = json.loads(capsys.readouterr().out)
    assert report["calibration_samples"] == 3 and report["accuracy"]["task"]["result"]["count"] == 3


# ranges


def test_ranges_side_by_side_and_what_is_impossible(work: Path, capsys: Capture) -> None:
    base = ["ranges", "m.onnx", "--data", "calib.npz", "--json"]
    rows = {row["value"]: row for row in json.loads(says(capsys, *base, "--input-range", "x=-9:9"))["values"]}
    assert rows["x"]["declared"] == rows["x"]["proved"] == [-9, 9]
    assert rows["r1"]["proved"][0] == 0 and rows["r1"]["seen"][0] >= 0
    low, high = rows["y"]["proved"]
    assert low <= rows["y"]["seen"][0] and rows["y"]["seen"][1] <= high
    report = json.loads(says(capsys, *base, "--input-range", "x=0:0.5", code=1))
    assert "x" in report["impossible"]
    text = says(capsys, "ranges", "m.onnx", "--data", "calib.npz", "--input-range", "x=0:0.5", code=1)
    assert "! x" in text and "outside of what is possible" in text
    assert all(len(line) <= 88 for line in text.splitlines())


# bench


def test_bench_gives_a_ratio_and_the_nodes_that_changed(work: Path, capsys: Capture) -> None:
    quantize("--preset", PLAIN, "--calib", CALIB, model=MODEL)
    base = ["bench", MODEL, "out.onnx", "--seconds", "0.02"]
    report = json.loads(says(capsys, *base, "--data", CALIB, "--json"))
    assert report["low"] <= report["ratio"] <= report["high"] and report["samples"] == 8
    nodes = {row["node"]: row for row in report["nodes"]}
    assert nodes["/layer2/conv1"]["a_ops"] == ["Conv"] and nodes["/layer2/conv1"]["b_ops"] == ["QLinearConv"]
    assert nodes["/fc"]["b_us"] > 0
    for more in ((), ("--dim", "N=2")):
        text = says(capsys, *base, *more)
        assert "RANDOM DATA" in text and "95 % interval" in text


def test_bench_of_made_up_inputs_wants_sizes_of_all_axes_but_the_first(work: Path, capsys: Capture) -> None:
    words = str(CNN.parent / "gru-words" / "model.onnx")
    assert "(--dim length=1," in error(capsys, "bench", words, words)
    says(capsys, "bench", words, words, "--seconds", "0.02", "--dim", "length=5")
    assert "--dim is for made-up inputs" in error(capsys, "bench", MODEL, MODEL, "--data", CALIB, "--dim", "N=1")


# inspect


def facts(capsys: Capture, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(says(capsys, "inspect", *arguments, "--json"))
    return found


def test_inspect_counts_work_memory_and_integers(work: Path, capsys: Capture) -> None:
    found = facts(capsys, "m.onnx")
    assert found["macs"] == 64 * 8 * 8 * 9 + 64 * 2 * 8
    assert found["macs_by_precision"] == {"f32": found["macs"]}
    assert found["activation_peak_bytes"] == 2 * 4 * 8 * 64 and found["unknown_dims"] == []
    assert found["integers"]["ops"] == {"Conv": 2} and found["quantization"] is None
    quantize("--preset", PLAIN)
    assert facts(capsys, "out.onnx")["macs_by_precision"] == {"int8": found["macs"]}
    assert facts(capsys, "out.onnx")["integers"] is None
    sample = facts(capsys, MODEL)
    assert sample["assumed_dims"] == {"N": 1} and sample["unknown_dims"] == []
    assert sample["macs"] == facts(capsys, MODEL, "--dim", "N=1")["macs"] > 0
    assert "multiply-accumulates for N = 1" in says(capsys, "inspect", MODEL)
    assert facts(capsys, MODEL, "--dim", "N=2")["macs"] == 2 * facts(capsys, MODEL, "--dim", "N=1")["macs"]
    assert "did you mean 'N'" in error(capsys, "inspect", MODEL, "--dim", "n=2")
    assert "ort-cpu would run on integers: Conv 2" in says(capsys, "inspect", "m.onnx")
