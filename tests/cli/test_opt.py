"""`qir opt`, `qir passes` and `qir inspect` on real files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import qir
from qir import golden_models
from qir.cli import main
from qir.ir import DType, Model, Tensor, TensorType

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar
from qir import Effect, Pass, PassResult

@dataclass(frozen=True)
class DropIdentity(Pass):
    """Remove every Identity. A toy.

    Before::

        %y = Identity(%x)

    After::

        %y
    """

    name: ClassVar[str] = "drop-identity"
    effect: ClassVar[Effect] = Effect.EXACT
    limit: int = 100
    """At most so many."""
    fail: bool = False

    def run(self, model, ctx):
        result = PassResult()
        for node in list(model.walk())[: self.limit]:
            if node.op == "Identity":
                result.remarks.append(self.applied(node, "removed"))
                node.output.replace_all_uses(node.input(0))
                node.erase()
                result.count("removed")
                result.changed = True
        if self.fail:
            raise ValueError("a bug of the plug-in")
        return result
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, a plug-in and a pipeline file."""
    monkeypatch.chdir(tmp_path)
    model = Model(opset_imports={"": 17}, ir_version=8)
    graph = model.graph
    graph.name = "toy"
    type_ = TensorType(DType.FLOAT, ("N", 4))
    x = graph.add_input("x", type_)
    weight = graph.add_initializer("w", Tensor.of(np.ones((4, 4), np.float32)))
    a = graph.add_node("Identity", [x], name="first", types=[type_], source=["first"]).output
    b = graph.add_node("MatMul", [a, weight], name="mm", types=[type_], source=["mm"]).output
    c = graph.add_node("Identity", [b], name="second", types=[type_], source=["second"]).output
    graph.add_output(graph.add_node("Relu", [c], name="relu", outputs=["y"], types=[type_], source=["relu"]).output)
    qir.save(model, tmp_path / "m.onnx")
    (tmp_path / "p.py").write_text(PLUGIN)
    (tmp_path / "p.toml").write_text('[[pass]]\nname = "drop-identity"\nlimit = 1\n')
    return tmp_path


def ops(path: Path) -> list[str]:
    return [node.op for node in qir.load(path).walk()]


def test_opt_runs_passes_and_writes_the_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", "m.onnx", "--plugin", "p.py", "--passes", "drop-identity", "-o", "out.onnx"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "drop-identity  removed 2; nodes +0 -2\nwrote out.onnx\n"
    assert captured.err == ""
    assert ops(folder / "out.onnx") == ["MatMul", "Relu"]
    assert ops(folder / "m.onnx") == ["Identity", "MatMul", "Identity", "Relu"]


def test_opt_takes_a_pipeline_file_and_shows_remarks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["opt", "m.onnx", "--plugin", "p.py", "--pipeline", "p.toml"]
    assert main([*arguments, "--remarks", "applied subject=fir*"]) == 0
    assert capsys.readouterr().out == (
        "drop-identity  removed 1; nodes +0 -1\n[drop-identity] applied: first: removed\n"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["m.onnx", "p.py", "p.toml"]
    assert main([*arguments, "--print-pipeline"]) == 0
    assert capsys.readouterr().out == (folder / "p.toml").read_text()


def test_opt_prints_one_json_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", "m.onnx", "--plugin", "p.py", "--passes", "drop-identity{limit=50}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["output"], told["changed"]) == ("m.onnx", None, True)
    assert told["pipeline"] == "drop-identity{limit=50}"
    (report,) = told["passes"]
    assert report["options"] == {"limit": "50"} and report["statistics"] == {"removed": 2}
    assert [(remark["subject"], remark["sources"]) for remark in report["remarks"]] == [
        ("first", ["first"]),
        ("second", ["second"]),
    ]
    assert told["timing"]["name"] == "pipeline"


def test_opt_shows_the_ir_on_stderr_and_in_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["opt", "m.onnx", "--plugin", "p.py", "--passes", "drop-identity,drop-identity", "--print-ir-dir", "ir"]
    assert main([*arguments, "--print-ir-after-all"]) == 0
    text = capsys.readouterr().err
    assert text.startswith("// after pass 1, drop-identity\nmodel ")
    assert text.endswith("// after pass 2, drop-identity: no change\n")
    assert sorted(path.name for path in (folder / "ir").iterdir()) == ["00-input.qir", "01-drop-identity.qir"]
    assert "Identity" in (folder / "ir" / "00-input.qir").read_text()
    assert main([*arguments, "--print-ir-changed"]) == 0
    assert "pass 2" not in capsys.readouterr().err


def test_opt_times_the_parts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", "m.onnx", "--plugin", "p.py", "--passes", "drop-identity", "--timing"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("100.0%  pipeline") and any(line.endswith("%    drop-identity") for line in lines)
    assert any(line.endswith("%    verify") for line in lines)


def test_a_bug_in_a_plugin_names_the_pass(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", "m.onnx", "--plugin", "p.py", "--passes", "drop-identity{fail}", "-o", "out.onnx"]) == 70
    error = capsys.readouterr().err
    assert "ValueError: a bug of the plug-in\nin pass 'drop-identity', number 1 of the pipeline" in error
    assert "in run\n" in error and "qir/pipeline" not in error and "bug in qir" not in error  # only its own frames
    told = "error: ValueError: a bug of the plug-in, in pass 'drop-identity', number 1 of the pipeline"
    assert error.splitlines()[-1] == f"{told} ({folder / 'p.py'}, line 35)"
    assert not (folder / "out.onnx").exists()


def test_a_plugin_that_never_gets_to_run_is_not_called_a_bug_of_ours(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "p.py").write_text(PLUGIN.replace("def run(self, model, ctx)", "def run(self)"))
    assert main(["opt", "m.onnx", "--plugin", "p.py", "--passes", "drop-identity"]) == 70
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: TypeError: DropIdentity.run() takes 1 positional argument but 3 were given, in pass")


def test_a_plugin_may_not_take_a_name_that_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "p.py").write_text(PLUGIN.replace('"drop-identity"', '"canonicalize"'))
    assert main(["passes", "--plugin", "p.py"]) == 2
    assert capsys.readouterr().err == (
        "error: two sources define the pass or preset 'canonicalize': qir and plug-in 'p.py'; rename one\n"
    )


def test_passes_lists_and_describes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes", "--plugin", "p.py"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Remove every Identity  (plug-in 'p.py')" in " ".join(line for line in lines if line.startswith("drop-id"))
    assert any(line.startswith("optimize ") and "preset" in line for line in lines)
    assert lines == sorted(lines)
    assert main(["passes", "drop-identity", "--plugin", "p.py"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("drop-identity  (exact, from plug-in 'p.py')\n\nRemove every Identity. A toy.\n")
    assert text.endswith("Options:\n  limit: int, default 100\n      At most so many.\n  fail: bool, default false\n")
    assert main(["passes", "drop-identity", "--plugin", "p.py", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["before"], told["after"]) == ("%y = Identity(%x)", "%y")
    assert told["options"][0] == {"name": "limit", "type": "int", "default": "100", "doc": "At most so many."}


def test_every_pass_can_be_described(capsys: pytest.CaptureFixture[str]) -> None:
    """And says what it does, with a before and an after."""
    assert main(["passes", "--json"]) == 0
    for row in json.loads(capsys.readouterr().out):
        assert row["summary"], row["name"]
        assert main(["passes", row["name"], "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert row["kind"] == "preset" or (told["before"] and told["after"]), row["name"]


def test_a_preset_prints_as_a_pipeline_file_that_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes", "optimize", "--toml"]) == 0
    (folder / "mine.toml").write_text(capsys.readouterr().out)
    assert qir.Pipeline.from_toml("mine.toml") == qir.Pipeline.parse("optimize")


def test_inspect_tells_what_a_model_is_made_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "m.onnx"]) == 0
    assert capsys.readouterr().out == (
        "m.onnx: opset ai.onnx 17, IR 8\n"
        "  input  x: f32[N,4]\n"
        "  output y: f32[N,4]\n"
        "4 nodes; 16 parameters: f32 64 B\n"
        "  Identity  2\n"
        "  MatMul    1\n"
        "  Relu      1\n"
        "16 multiply-accumulates for N = 1: f32 16\n"
        "activations need up to 32 B for N = 1 at first\n"
        "not quantized\n"
        "ort-cpu would run on integers: MatMul 1\n"
    )
    assert main(["inspect", "m.onnx", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ops"] == {"Identity": 2, "MatMul": 1, "Relu": 1}
    assert told["parameter_bytes"] == {"f32": 64} and told["quantization"] is None


def test_inspect_sees_quantization(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Model(opset_imports={"": 17}, ir_version=8)
    graph = model.graph
    x = graph.add_input("x", TensorType(DType.FLOAT, (2, 4)))
    scale = graph.add_initializer("s", Tensor.of(np.ones(4, np.float32)))
    zero = graph.add_initializer("z", Tensor.of(np.zeros(4, np.int8)))
    q = graph.add_node("QuantizeLinear", [x, scale, zero], types=[TensorType(DType.INT8, (2, 4))]).output
    y = graph.add_node("DequantizeLinear", [q, scale, zero], outputs=["y"], types=[TensorType(DType.FLOAT, (2, 4))])
    graph.add_output(y.output)
    qir.save(model, folder / "q.onnx")
    assert main(["inspect", "q.onnx"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "quantized: DequantizeLinear 1, QuantizeLinear 1; dequantized from s8 1, 1 per channel"
    )


@pytest.mark.parametrize(("preset", "stored"), [("int4-weights", "u4"), ("bf16", "bf16"), ("codebook4", "u8")])
def test_inspect_sees_weights_that_are_decoded_at_load(
    preset: str, stored: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = golden_models.path("cnn-digits") / "model.onnx"
    qir.quantize(source, tmp_path / "out.onnx", preset=preset, latency_seconds=0)
    assert main(["inspect", str(source)]) == 0
    assert "\nnot quantized\n" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "out.onnx")]) == 0
    text = capsys.readouterr().out
    assert "not quantized" not in text and "weights stored in few bits, computed as float: " in text and stored in text
    assert not re.search(r"computed as float: .*(?<!b)f16", text)  # tables and scales are no weights
