"""`python -m tools.docs.outputs PAGE...`: run the commands of pages and paste what they print now.

A line that is shown is replaced by the printed line with the same words between its numbers. Lines that have no such
counterpart stay, and are named: someone has to look at them. Commands run in a folder with the model and the samples
that the tests of the pages use.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from qir.cli import main as qir
from tests.docs.snippets import Block, Command, printed_for, run_page

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "golden_models" / "resnet-shapes"


def refreshed(page: Path) -> str:
    """The page's text with the outputs of today."""
    text = page.read_text(encoding="utf-8")
    changed: list[tuple[str, str]] = []

    def heard(block: Block, command: Command, got: str) -> None:
        for shown, printed in printed_for(command.expected or "", got):
            if printed is None:
                print(f"{page.name}:{block.line}: qir {command.arguments[0]} printed nothing like {shown!r}")
            elif shown != printed.rstrip():
                changed.append((shown, printed.rstrip()))

    with tempfile.TemporaryDirectory() as name:
        for source, target in (("model.onnx", "model.onnx"), ("calib.npz", "samples.npz"), ("eval.npz", "check.npz")):
            shutil.copy(MODEL / source, Path(name) / target)
        before = Path.cwd()
        os.chdir(name)
        try:
            run_page(text, page.name, qir, heard)
        finally:
            os.chdir(before)
    at = 0
    for shown, printed in changed:  # they come in the page's order
        at = text.index(f"\n{shown}\n", at)
        text = text[:at] + f"\n{printed}\n" + text[at + len(shown) + 2 :]
    return text


def main(arguments: list[str]) -> int:
    for page in map(Path, arguments):
        page.write_text(refreshed(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
