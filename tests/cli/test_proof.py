"""`qir opt --verify-numerics`, reproducers, `qir bisect` and `qir explain` on real files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import qir
from qir.cli import main
from qir.errors import OptionError
from qir.ir import DType, Model, Tensor, TensorType
from qir.pipeline import Registry
from tests.validation.sloppy import PLUGIN, chain, feeds

OPT = ["opt", "m.onnx", "--plugin", "sloppy.py"]
CHECK = ["--verify-numerics", "--golden", "golden.npz"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    qir.save(chain([1.0, 1.5, 1.0]), "m.onnx")
    np.savez("golden.npz", **feeds())
    (tmp_path / "sloppy.py").write_text(PLUGIN)
    return tmp_path


def error_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "to see", "warning"))]


def test_a_failed_check_stops_with_one_line_and_leaves_a_reproducer_that_fails_alike(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*OPT, "--passes", "canonicalize,drop-ones", *CHECK, "-o", "out.onnx"]) == 1
    told, error = error_lines(capsys)
    assert told == "to see it again: qir opt --reproduce qir-reproducer-drop-ones"
    assert error.startswith("error: pass 'drop-ones': broke the model: output 'y' moved by ")
    assert not (folder / "out.onnx").exists()
    (folder / "m.onnx").unlink()
    (folder / "sloppy.py").unlink()
    assert main(["opt", "--reproduce", "qir-reproducer-drop-ones"]) == 1
    assert error_lines(capsys) == [error]


def test_a_second_reproducer_gets_a_name_of_its_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main([*OPT, "--passes", "drop-ones", *CHECK]) == 1
    assert "qir-reproducer-drop-ones-2" in capsys.readouterr().err
    assert main([*OPT, "--passes", "drop-ones", *CHECK, "--reproducer", "mine"]) == 1
    assert (folder / "mine" / "model.qir").is_file()
    assert main([*OPT, "--passes", "drop-ones", *CHECK, "--reproducer", "mine"]) == 2
    assert "'mine' exists already" in capsys.readouterr().err


def test_a_crash_is_replayed_with_its_exit_code_and_traceback(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OPT, "--passes", "canonicalize,by-hand{mode=crash}"]) == 70
    capsys.readouterr()
    assert main(["opt", "--reproduce", "qir-reproducer-by-hand"]) == 70
    assert "ZeroDivisionError: oops\nin pass 'by-hand'" in capsys.readouterr().err


INVALID = '''
from dataclasses import dataclass
from typing import ClassVar
from qir import Effect, Pass, PassResult, RewritePass
from qir.rewriting import Any, Op, Rule

@dataclass(frozen=True)
class Invalid(Pass):
    """Gives Neg an attribute that it has not."""
    name: ClassVar[str] = "invalid"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model, ctx):
        next(node for node in model.walk() if node.op == "Neg").set("axis", 3)
        return PassResult(changed=True)

@dataclass(frozen=True)
class Fight(RewritePass):
    """Rules that undo one another."""
    name: ClassVar[str] = "fight"
    effect: ClassVar[Effect] = Effect.EXACT

    def rules(self, model):
        def swap(name, one, other):
            return Rule(name, Op(one, Any("x")), lambda match: match.add(other, [match["x"]]).output)
        return [swap("there", "Neg", "Abs"), swap("back", "Abs", "Neg")]
'''


@pytest.mark.parametrize(("name", "complaint"), [("invalid", "has no attribute 'axis'"), ("fight", "does not end")])
def test_what_the_verifier_and_the_driver_refuse_is_replayed(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, complaint: str
) -> None:
    (folder / "sloppy.py").write_text(INVALID)
    assert main([*OPT, "--passes", f"canonicalize,{name}"]) == 2
    error = error_lines(capsys)[-1]
    assert complaint in error
    assert main(["opt", "--reproduce", f"qir-reproducer-{name}"]) == 2
    assert error_lines(capsys) == [error]


def test_a_mended_pass_no_longer_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OPT, "--passes", "drop-ones", *CHECK]) == 1
    place = folder / "qir-reproducer-drop-ones" / "plugins" / "sloppy.py"
    place.write_text(PLUGIN.replace("< 0.6", "< 0.1"))
    assert main(["opt", "--reproduce", "qir-reproducer-drop-ones"]) == 0
    assert "does not occur any more" in capsys.readouterr().out


def test_a_lossy_failure_after_a_lossy_pass_is_replayed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "halve{step=0.25},halve{step=5.0}"
    qir.save(chain([1.05, 1.5]), "m.onnx")
    assert main([*OPT, "--passes", text, *CHECK]) == 1
    error = error_lines(capsys)[-1]
    assert (folder / "qir-reproducer-halve" / "reference.qir").is_file()
    assert main(["opt", "--reproduce", "qir-reproducer-halve"]) == 1
    assert error_lines(capsys) == [error]


def test_rolling_back_goes_on_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*OPT, "--passes", "drop-ones,canonicalize", *CHECK, "--on-failure", "rollback", "-o", "out.onnx"]
    assert main(arguments) == 0
    (warning,) = error_lines(capsys)
    assert warning.startswith("warning: pass 'drop-ones' was undone, it broke the model: output 'y' moved")
    assert sum(node.op == "Mul" for node in qir.load("out.onnx").walk()) == 1  # canonicalize took x * 1 out
    assert not list(folder.glob("qir-reproducer*"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["m.onnx", "--passes", "canonicalize", "--verify-numerics"], "give inputs for it with --golden"),
        (["m.onnx", "--passes", "canonicalize", "--golden", "golden.npz"], "add that"),
        (["m.onnx", "--passes", "canonicalize", *CHECK, "--golden-samples", "0"], "at least 1"),
        (["--passes", "canonicalize"], "give the MODEL"),
        (["m.onnx", "--reproduce", "r"], "--reproduce takes no MODEL: its folder holds"),
        (["--reproduce", "missing"], "is no reproducer"),
    ],
)
def test_wrong_usage_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert main(["opt", *arguments]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err and captured.err.count("\n") == 1


def test_a_wrong_option_of_a_pass_leaves_no_reproducer(folder: Path) -> None:
    assert main([*OPT, "--passes", "fuse{only=[nonsense]}"]) == 2
    assert not list(folder.glob("qir-reproducer*"))


def test_bisect_says_when_nothing_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bisect", "m.onnx", "--passes", "canonicalize", "--golden", "golden.npz", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["broken"], told["model_runs"], told["samples"]) == (False, 2, 2)


def conv_bn(path: Path) -> None:
    model = Model(opset_imports={"": 17}, ir_version=8)
    graph = model.graph
    x = graph.add_input("x", TensorType(DType.FLOAT, (1, 2, 4, 4)))
    w = graph.add_initializer("w", Tensor.of(np.ones((3, 2, 1, 1), np.float32)))
    vectors = [graph.add_initializer(name, Tensor.of(np.ones(3, np.float32))) for name in ("s", "b", "m", "v")]
    conv = graph.add_node("Conv", [x, w], name="conv", source=["conv"]).output
    bn = graph.add_node("BatchNormalization", [conv, *vectors], name="bn", outputs=["y"], source=["bn"]).output
    graph.add_output(bn)
    graph.add_output(graph.add_node("Relu", [conv], name="relu", outputs=["z"], source=["relu"]).output)
    qir.save(model, path)


def test_explain_says_what_stops_a_rule(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conv_bn(folder / "c.onnx")
    assert main(["explain", "conv-bn", "bn", "c.onnx"]) == 0
    line = capsys.readouterr().out
    assert line == (
        "rule 'conv-bn' at BatchNormalization 'bn': fits, but the result of Conv 'conv' is read by Relu 'relu' too\n"
    )
    assert main(["explain", "conv-bn", "conv", "c.onnx"]) == 0
    assert capsys.readouterr().out == line
    assert main(["explain", "conv-bn", "relu", "c.onnx", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["explanations"] == [
        "rule 'conv-bn' at Relu 'relu': it starts at BatchNormalization, and none is here or below"
    ]


def test_explain_finds_rules_beside_a_broken_plugin(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Registry.get

    def get(self: Registry, name: str) -> object:
        if name == "canonicalize":
            raise OptionError("package 'other': cannot be imported")
        return known(self, name)

    conv_bn(folder / "c.onnx")
    monkeypatch.setattr(Registry, "get", get)
    assert main(["explain", "conv-bn", "bn", "c.onnx"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("rule 'conv-bn' at BatchNormalization 'bn': fits, but")
    assert said.err == "warning: package 'other': cannot be imported\n"


def test_explain_knows_rules_of_plugins_and_runs_passes_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", "mul-by-one", "mul1", "m.onnx", "--plugin", "sloppy.py"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "rule 'mul-by-one' at Mul 'mul1': matches\n"
    assert main([*arguments, "--passes", "drop-ones"]) == 2
    assert "no node 'mul1'" in capsys.readouterr().err
    assert main(["explain", "mul-by-on", "mul1", "m.onnx", "--plugin", "sloppy.py"]) == 2
    assert "did you mean 'mul-by-one'?" in capsys.readouterr().err
