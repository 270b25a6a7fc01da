"""`python -m tools.docs.terminal`: run real commands in a terminal of their own and draw what it shows as SVG.

Writes docs/images/terminal-*.svg: `qir quantize` under way and its report, `qir compare` with its advice, `qir diff`.
The commands run on a golden model, in a pseudo-terminal, so colours and the progress bar are those that people see.
"""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
MODEL = ROOT / "golden_models" / "resnet-shapes"
WIDTH = 112
PLAIN = (
    "canonicalize,convert-opset{to=13},fold-constants,fuse,canonicalize,legalize,analyze-ranges,calibrate,quantize,"
    "emit-qdq"
)
_HIDE, _UP, _ERASE = b"\x1b[?25l", b"\x1b[1A", b"\x1b[2K"


def run(command: str, folder: Path) -> bytes:
    """Everything that a command writes to its terminal."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(WIDTH), "PYTHONPATH": str(ROOT)}
    words = shlex.split(command)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", *words],
        cwd=folder,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
    )
    os.close(follower)
    said = bytearray()
    while True:
        ready, _, _ = select.select([leader], [], [], 0.1)
        if not ready and process.poll() is not None:
            break
        try:
            said += os.read(leader, 65536) if ready else b""
        except OSError:  # the other end is closed
            break
    if process.wait():
        raise SystemExit(f"{command}: exit code {process.returncode}\n{said.decode(errors='replace')}")
    return bytes(said)


def frames(said: bytes) -> list[str]:
    """The states of the progress bar: what stands between two erasures, as text with colours."""
    parts = said.split(_ERASE)
    found, current = [], bytearray()
    for part in parts:
        text = part.replace(_UP, b"").replace(_HIDE, b"").strip(b"\r\n")
        if part.startswith(_UP) or not current:
            if current:
                found.append(current.decode(errors="replace"))
            current = bytearray()
        current += text + b"\n"
    return [*found, current.decode(errors="replace")]


def after_progress(said: bytes) -> str:
    """What stays on the screen when the bar is gone."""
    return said.rsplit(_ERASE, 1)[-1].decode(errors="replace").replace("\r", "").lstrip("\n")


def draw(name: str, title: str, blocks: list[tuple[str, str]]) -> None:
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w", encoding="utf-8"))
    for command, said in blocks:
        if command:
            console.print(Text(f"$ {command}", style="bold green"))
            said = "\n".join(line for line in said.splitlines() if line.strip()) if "left" in said else said
        console.print(Text.from_ansi(said.rstrip()))
    IMAGES.mkdir(exist_ok=True)
    console.save_svg(str(IMAGES / f"terminal-{name}.svg"), title=title, unique_id=f"qir-{name}")


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source, file in (("model.onnx", "model.onnx"), ("calib.npz", "samples.npz"), ("eval.npz", "check.npz")):
            shutil.copy(MODEL / source, folder / file)
        quantize = "qir quantize model.onnx --calib samples.npz --golden check.npz -o model.int8.onnx"
        said = run(quantize, folder)
        shown = max(frames(said), key=lambda frame: ("left" in frame, frame.count("\n"), len(frame)))
        draw("quantize", "qir quantize", [(quantize, shown), ("", after_progress(said))])
        run(f"qir quantize model.onnx --calib samples.npz --preset '{PLAIN}' -o plain.onnx", folder)
        compare = "qir compare model.onnx plain.onnx --data check.npz --samples 8 --lines 3"
        draw("compare", "qir compare", [(compare, after_progress(run(compare, folder)))])
        diff = "qir diff model.onnx model.int8.onnx"
        try:
            changed = run(diff, folder)
        except SystemExit as stop:  # 1: the models differ
            changed = str(stop).partition("\n")[2].encode()
        lines = after_progress(changed).splitlines()
        draw("diff", "qir diff", [(diff, "\n".join(lines[:45]))])
    return 0


if __name__ == "__main__":
    sys.exit(main())
