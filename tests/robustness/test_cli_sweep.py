"""Every command with every kind of bad input: exit code 2, one line that says what is wrong, no traceback, and not a
byte in the folder changed."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from qir.cli import main
from tests.cli.test_quantize import Capture, samples, small_model

ROOT = Path(__file__).resolve().parents[2]
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0

READING_A_MODEL = {
    "quantize": "quantize {} --calib x.npz -o out.onnx --effort fast",
    "opt": "opt {} --passes canonicalize -o out.onnx",
    "diff-old": "diff {} m.onnx -o out.html",
    "diff-new": "diff m.onnx {}",
    "compare-float": "compare {} m.onnx --data x.npz",
    "compare-quant": "compare m.onnx {} --data x.npz --write-recipe out.toml",
    "bench-a": "bench {} m.onnx --data x.npz",
    "bench-b": "bench m.onnx {} --data x.npz",
    "ranges": "ranges {} --data x.npz",
    "check": "check {} --golden x.npz --against m.onnx",
    "check-against": "check m.onnx --golden x.npz --against {}",
    "golden": "golden record {} --data x.npz -o out",
    "inspect": "inspect {} --json",
    "bisect": "bisect {} --passes canonicalize --golden x.npz",
    "explain": "explain conv-bn first {}",
    "lint": "targets lint ort-cpu {}",
}
MODELS = ["missing.onnx", "folder", "empty.onnx", "cut.onnx", "text.onnx", "bytes.onnx", "no.onnx"]

READING_DATA = {
    "quantize": "quantize m.onnx --calib {} -o out.onnx --effort fast",
    "quantize-golden": "quantize m.onnx --calib x.npz --golden {} -o out.onnx --effort fast",
    "opt": "opt m.onnx --passes calibrate --calib {} --print-ir-after-all",
    "opt-golden": "opt m.onnx --passes canonicalize --verify-numerics --golden {} -o out.onnx",
    "compare": "compare m.onnx m.onnx --data {} --write-recipe out.toml",
    "bench": "bench m.onnx m.onnx --data {}",
    "ranges": "ranges m.onnx --data {}",
    "check": "check m.onnx --golden {} --against m.onnx",
    "golden": "golden record m.onnx --data {} -o out",
    "bisect": "bisect m.onnx --passes canonicalize --golden {}",
}
DATA = [
    "missing.npz",
    "folder",
    "empty.npz",
    "cut.npz",
    "text.npz",
    "other_key.npz",
    "other_shape.npz",
    "strings.npz",
    "objects.npz",
    "no_rows.npz",
    "no.npz",
]

OPTIONS = [
    "quantize m.onnx --calib x.npz -o out.onnx --preset int7",
    "quantize m.onnx --calib x.npz -o out.onnx --preset nonsense,emit-qdq",
    "quantize m.onnx --calib x.npz -o out.onnx --preset quantize{{linear=sometimes}}",
    "quantize m.onnx --calib x.npz -o out.onnx --set quantize.nonsense=1",
    "quantize m.onnx --calib x.npz -o out.onnx --set quantize.linear=sometimes",
    "quantize m.onnx --calib x.npz -o out.onnx --set nonsense",
    "quantize m.onnx --calib x.npz -o out.onnx --effort more",
    "quantize m.onnx --calib x.npz -o out.onnx --target gpu-9000",
    "quantize m.onnx --calib x.npz -o out.onnx --target bad.toml",
    "quantize m.onnx --calib x.npz -o out.onnx --target missing.toml",
    "quantize m.onnx --calib x.npz -o out.onnx --recipe missing.toml",
    "quantize m.onnx --calib x.npz -o out.onnx --recipe bad.toml",
    "quantize m.onnx --calib x.npz -o out.onnx --recipe m.onnx",
    "quantize m.onnx --calib x.npz -o out.onnx --recipe nobody.toml",
    "quantize m.onnx --calib x.npz -o out.onnx --recipe folder",
    "quantize m.onnx --calib x.npz -o out.onnx --keep-float nobody",
    "quantize m.onnx --calib x.npz -o out.onnx --metric beauty",
    "quantize m.onnx --calib x.npz -o out.onnx --metric missing.py:f",
    "quantize m.onnx --calib x.npz -o out.onnx --input-range x=5:1",
    "quantize m.onnx --calib x.npz -o out.onnx --input-range nobody=0:1",
    "quantize m.onnx --calib x.npz -o out.onnx --format paper",
    "quantize m.onnx --calib x.npz -o out.onnx --io-dtype u7",
    "quantize m.onnx --calib x.npz -o out.onnx --min-sqnr loud",
    "quantize m.onnx --calib x.npz -o out.onnx --target-size huge",
    "quantize m.onnx --calib random:none -o out.onnx",
    "quantize m.onnx --calib folder --preprocess resize=big -o out.onnx",
    "quantize m.onnx --calib x.npz -o out.onnx --report page.pdf",
    "quantize m.onnx --calib x.npz",
    "quantize --replay missing.qir.json",
    "quantize --replay bad.toml",
    "quantize --replay folder",
    "opt m.onnx --passes nonsense",
    "opt m.onnx --passes fuse{{",
    "opt m.onnx --passes fuse{{only=nonsense}}",
    "opt m.onnx --pipeline bad.toml",
    "opt m.onnx --pipeline missing.toml",
    "opt m.onnx --plugin missing.py --passes canonicalize",
    "opt m.onnx --plugin bad.toml --passes canonicalize",
    "opt m.onnx --passes canonicalize --target gpu-9000",
    "opt m.onnx --passes canonicalize --remarks nonsense",
    "diff m.onnx m.onnx --fail-on nonsense",
    "diff m.onnx",
    "compare m.onnx m.onnx --data x.npz --target gpu-9000",
    "compare m.onnx m.onnx --data x.npz --recipe missing.toml",
    "ranges m.onnx --input-range x",
    "inspect m.onnx --target gpu-9000",
    "bisect m.onnx --passes nonsense --golden x.npz",
    "explain nonsense first m.onnx",
    "explain conv-bn nobody m.onnx",
    "passes nonsense",
    "targets show nonsense",
    "targets show bad.toml",
    "golden show folder",
    "golden show missing",
    "demo nonsense",
    "nonsense",
    "inspect --nonsense m.onnx",
]

OUTPUTS = {
    "quantize": "quantize m.onnx --calib x.npz --effort fast -o {}",
    "quantize-report": "quantize m.onnx --calib x.npz --effort fast -o out.onnx --report {}.html",
    "opt": "opt m.onnx --passes canonicalize -o {}",
    "diff": "diff m.onnx other.onnx -o {}.html",
    "compare": "compare m.onnx m.onnx --data x.npz --write-recipe {}.toml",
    "golden": "golden record m.onnx --data x.npz -o {}",
}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    small_model(folder / "m.onnx")
    shutil.copy(folder / "m.onnx", folder / "other.onnx")
    whole = (folder / "m.onnx").read_bytes()
    x = samples()
    np.savez(folder / "x.npz", x=x)
    (folder / "folder").mkdir()
    for end in ("onnx", "npz"):
        (folder / f"empty.{end}").write_bytes(b"")
        (folder / f"text.{end}").write_text("this is no model\n")
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "bytes.onnx").write_bytes(np.random.default_rng(0).bytes(4096))
    archive = (folder / "x.npz").read_bytes()
    (folder / "cut.npz").write_bytes(archive[: len(archive) // 2])
    np.savez(folder / "other_key.npz", z=x)
    np.savez(folder / "other_shape.npz", x=x[..., :1])
    np.savez(folder / "strings.npz", x=np.full(x.shape, "one"))
    np.savez(folder / "objects.npz", x=np.array([{}, {}], dtype=object))
    np.savez(folder / "no_rows.npz", x=x[:0])
    np.savez(folder / "nan.npz", x=np.where(np.arange(x.size).reshape(x.shape) % 7, x, np.nan).astype(np.float32))
    (folder / "bad.toml").write_text("[[node\nmatch=")
    (folder / "nobody.toml").write_text('[[node]]\nmatch = "nobody"\nprecision = "float"\n')
    for end, source in (("onnx", "m.onnx"), ("npz", "x.npz")):
        shutil.copy(folder / source, folder / f"no.{end}")
        (folder / f"no.{end}").chmod(0)
    return folder


@pytest.fixture
def here(material: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(material)
    monkeypatch.setattr("qir.api.quantizing._LATENCY_SAMPLES", 1)
    return material


def state(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and os.access(path, os.R_OK) else None
        for path in sorted(folder.rglob("*"))
    }


def refused(here: Path, capsys: Capture, line: str) -> str:
    """Run a command that must be refused; its one line."""
    before = state(here)
    capsys.readouterr()
    code = main(line.split())
    said = capsys.readouterr()
    assert code == 2, (line, code, said)
    lines = [text for text in said.err.splitlines() if not text.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), (line, said.err)
    assert "Traceback" not in said.out + said.err
    assert state(here) == before, line
    return lines[0]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("command", READING_A_MODEL)
def test_a_bad_model(here: Path, capsys: Capture, command: str, model: str) -> None:
    if model == "no.onnx" and IS_ROOT:
        pytest.skip("root may read everything")
    said = refused(here, capsys, READING_A_MODEL[command].format(model))
    assert model.removesuffix(".onnx") in said


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("command", READING_DATA)
def test_bad_data(here: Path, capsys: Capture, command: str, data: str) -> None:
    if data == "no.npz" and IS_ROOT:
        pytest.skip("root may read everything")
    said = refused(here, capsys, READING_DATA[command].format(data))
    assert data.removesuffix(".npz") in said


@pytest.mark.parametrize("command", READING_DATA)
def test_numbers_that_are_none_crash_nothing(here: Path, capsys: Capture, command: str) -> None:
    before = state(here)
    capsys.readouterr()
    assert main(READING_DATA[command].format("nan.npz").split()) in (0, 1, 2)
    assert "Traceback" not in capsys.readouterr().err
    for path in here.glob("out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert state(here) == before


@pytest.mark.parametrize("line", OPTIONS)
def test_bad_options(here: Path, capsys: Capture, line: str) -> None:
    refused(here, capsys, line.replace("{{", "{").replace("}}", "}"))


@pytest.mark.parametrize("command", sorted(OUTPUTS.keys() - {"golden"}))  # which makes the folders
def test_an_output_folder_that_is_not_there(here: Path, capsys: Capture, command: str) -> None:
    assert "nowhere" in refused(here, capsys, OUTPUTS[command].format("nowhere/out"))


@pytest.mark.parametrize("command", OUTPUTS)
@pytest.mark.skipif(IS_ROOT, reason="root may write everywhere")
def test_an_output_folder_that_may_not_be_written(here: Path, capsys: Capture, command: str) -> None:
    (here / "folder").chmod(0o555)
    try:
        assert "folder/out" in refused(here, capsys, OUTPUTS[command].format("folder/out"))
    finally:
        (here / "folder").chmod(0o755)


@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_folder_that_is_a_file(here: Path, capsys: Capture, command: str) -> None:
    assert "m.onnx" in refused(here, capsys, OUTPUTS[command].format("m.onnx/out"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that never ends")
@pytest.mark.parametrize("command", READING_DATA)
def test_data_that_never_end(here: Path, capsys: Capture, command: str) -> None:
    assert "/dev/full: is no regular file" in refused(here, capsys, READING_DATA[command].format("/dev/full"))


def test_no_model_without_the_report_that_was_asked_for(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *args: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    line = "quantize m.onnx --calib x.npz --effort fast -o out.onnx --report page.html"
    assert "'page.html' cannot be written (No space left on device)" in refused(here, capsys, line)


@pytest.mark.parametrize(
    "line",
    [
        "quantize m.onnx --calib x.npz --effort fast -o m.onnx",
        "quantize m.onnx --calib x.npz --effort fast -o x.npz",
        "quantize m.onnx --calib x.npz --effort fast -o ./folder/../m.onnx",
        "golden record m.onnx --data x.npz -o folder/../m.onnx",
    ],
)
def test_an_output_that_is_an_input(here: Path, capsys: Capture, line: str) -> None:
    refused(here, capsys, line)


@contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    """Writes beyond so many bytes fail with "File too large", as they do with another message on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.skipif(sys.platform == "win32", reason="the limit is POSIX's")
@pytest.mark.parametrize("command", OUTPUTS)
def test_a_full_disk(here: Path, capsys: Capture, command: str) -> None:
    with _files_of_at_most(0):
        refused(here, capsys, OUTPUTS[command].format("out"))


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_an_interrupt_leaves_nothing_half_written(here: Path, tmp_path: Path, share: float) -> None:
    command = [sys.executable, "-m", "qir", "quantize", str(here / "m.onnx"), "--calib", str(here / "x.npz"), "-o"]
    began = time.monotonic()
    subprocess.run([*command, str(tmp_path / "a.onnx")], cwd=ROOT, check=True, capture_output=True)
    seconds = time.monotonic() - began
    whole = (tmp_path / "a.onnx").read_bytes()
    process = subprocess.Popen([*command, str(tmp_path / "b.onnx")], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    time.sleep(share * seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    # Killed by the signal itself where it comes before Python has set itself up; shells call that 130 too.
    assert process.returncode in (0, 130, -signal.SIGINT), said
    assert process.returncode == 0 or "Traceback" not in said, said
    left = {path.name for path in tmp_path.iterdir()} - {"a.onnx", "a.onnx.qir.json"}
    assert left <= {"b.onnx", "b.onnx.qir.json"}
    assert "b.onnx" not in left or (tmp_path / "b.onnx").read_bytes() == whole
