"""The command line as a whole: exit codes, one line per error, help, pipes, speed of `--help` in imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import qir
from qir.cli import COMMANDS, main

TREE = Path(__file__).resolve().parents[2]
RUN = [sys.executable, "-c", "import sys; from qir.cli import main; sys.exit(main())"]


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"qir {name}" in text, name
        assert "Example:" in text or "Usage: qir " + name + " [OPTIONS] COMMAND" in " ".join(text.split()), name


def test_help_lists_every_command_and_loads_none() -> None:
    probe = (
        "import sys; from qir.cli import main; main(['--help']);"
        "print([m for m in sys.modules if m.startswith('qir.cli.') or m.split('.')[0] in ('onnx', 'numpy')])"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=TREE, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f" {name} " in done.stdout and summary[:40] in done.stdout for name, summary in COMMANDS.items())


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Commands" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"qir {qir.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["pases"], "unknown command 'pases' (did you mean 'passes'?): 'qir --help' lists all"),
        (["opt"], "give the MODEL to run passes over, or --reproduce FOLDER"),
        (
            ["opt", "--reproduce", "folder", "-o", "x.onnx"],
            "--reproduce takes no --output: its folder holds model, passes and options",
        ),
        (["demo", "--list", "cnn-digits"], "--list takes no NAME: it shows all models"),
        (["demo", "--copy", ".", "-o", "x"], "--copy takes no --output: nothing is quantized"),
        (["passes", "--toml"], "--toml prints one preset: name it, as in 'qir passes int8 --toml'"),
        (["opt", "m.onnx"], "give either --passes TEXT or --pipeline FILE.toml; 'qir passes' lists what there is"),
        (
            ["opt", "m.onnx", "--passes", "canonicalise"],
            "unknown pass 'canonicalise' (did you mean 'canonicalize'?): 'qir passes' lists all",
        ),
        (
            ["opt", "m.onnx", "--passes", "quantize{preset}"],
            "pass 'quantize': option 'preset' takes str, not a flag without a value",
        ),
        (
            ["opt", "m.onnx", "--passes", "", "--remarks", "misse"],
            "remark filter: unknown kind 'misse' (did you mean 'missed'?); there are applied, missed, note",
        ),
        (["opt", "m.onnx", "--passes", "", "--plugin", "no.py"], "plug-in 'no.py': no such file"),
        (["inspect", "no.onnx"], "there is no file 'no.onnx': check the path"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {line}\n"
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--jsn", "x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: No such option") and error.count("\n") == 1 and "'qir inspect --help'" in error


def test_a_bug_shows_its_traceback_and_a_hint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import qir.frontend

    def broken(path: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(qir.frontend, "load", broken)
    assert main(["inspect", "x.onnx"]) == 70
    error = capsys.readouterr().err
    assert "ZeroDivisionError: oops" in error
    assert error.endswith(f"error: this is a bug in qir {qir.__version__}, please report it with the lines above\n")


def test_an_interrupt_is_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import qir.frontend

    def interrupted(path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(qir.frontend, "load", interrupted)
    assert main(["inspect", "x.onnx"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_an_interrupt_while_the_runtime_is_loaded_is_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime's module makes an ImportError of it."""
    import qir.frontend

    def interrupted(path: object) -> None:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr(qir.frontend, "load", interrupted)
    assert main(["inspect", "x.onnx"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error() -> None:
    process = subprocess.Popen([*RUN, "passes"], cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 141
