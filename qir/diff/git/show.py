"""What git prints: the semantic diff of two blobs, a model as text, a sentence where a blob is no model."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qir.diff.changes import GraphDiff
from qir.diff.differ import diff, diff_own
from qir.diff.git.settings import run_git
from qir.diff.render.text import to_text
from qir.errors import ModelError, QirError
from qir.frontend import load
from qir.ir import Model
from qir.ir.printer import print_model

__all__ = ["ChangedModel", "changed_models", "driver_text", "model_text"]

_POINTER = b"version https://git-lfs.github.com/spec/"
STUBS = "Weights that stand in files of their own were not compared: git hands out only the model file.\n"


@dataclass(frozen=True, slots=True)
class ChangedModel:
    """A model of two commits. ``diff`` is None where one side is missing, or no model; ``text`` is what to print.
    ``stubs``: weights were not compared. ``unread``: why there is no diff although both sides exist."""

    path: str
    diff: GraphDiff | None
    text: str
    stubs: bool = False
    unread: str = ""


def model_text(path: Path) -> str:
    """A model in IR text, weights as hashes; a sentence for what is no model. Never fails on a blob's content."""
    pointer = _pointer(path)
    if pointer is not None:
        return pointer + "\n"
    try:
        return print_model(_load(path)[0])
    except QirError as error:
        return f"not shown: {error}\n"


def driver_text(name: str, old: Path, new: Path) -> str:
    """What `git diff` prints for one file; an absent side is /dev/null."""
    title = f"diff --qir a/{name} b/{name}\n"
    gone = [_is_absent(path) for path in (old, new)]
    pointers = [None if absent else _pointer(path) for path, absent in zip((old, new), gone, strict=True)]
    if any(pointers):
        sides = zip(("old", "new"), pointers, strict=True)
        return title + "".join(f"{side}: {text}\n" for side, text in sides if text is not None)
    try:
        if all(gone):
            return title
        if any(gone):
            word, path = ("new", new) if gone[0] else ("deleted", old)
            return title + f"{word} model: {_facts(_load(path)[0])}\n"
        found, stubs = _compare(old, new, name)
    except QirError as error:
        return title + f"not compared: {error}\n"
    return title + to_text(found) + (STUBS if stubs else "")


def changed_models(old: str, new: str | None, names: Sequence[str] = ()) -> Iterator[ChangedModel]:
    """The models that differ between two commits, or between a commit and the index where ``new`` is None; all, or
    those of ``names``. Raises UnsupportedError where git knows no such commit."""
    compared = ["--cached", old] if new is None else [f"{old}...{new}"]
    base = old if new is None else run_git("merge-base", old, new).strip()
    listed = run_git("diff", *compared, "--name-only", "--no-renames", "-z", "--", *(names or ["*.onnx"]))
    top = Path(run_git("rev-parse", "--show-toplevel").strip())
    for name in filter(None, listed.split("\0")):
        with tempfile.TemporaryDirectory(prefix="qir-git-") as folder:
            before = _blob(f"{base}:{name}", Path(folder) / "old" / Path(name).name, top)
            after = _blob(f"{new or ''}:{name}", Path(folder) / "new" / Path(name).name, top)
            yield _changed(name, before, after)


def _changed(name: str, old: Path | None, new: Path | None) -> ChangedModel:
    absent = Path("/dev/null")
    if old is None or new is None:
        return ChangedModel(name, None, driver_text(name, old or absent, new or absent))
    if pointer := _pointer(old) or _pointer(new):
        return ChangedModel(name, None, driver_text(name, old, new), unread=pointer)
    try:
        found, stubs = _compare(old, new, name)
    except QirError as error:
        return ChangedModel(name, None, f"{name}: not compared: {error}\n", unread=str(error))
    return ChangedModel(name, found, f"{name}\n" + to_text(found) + (STUBS if stubs else ""), stubs)


def _blob(spec: str, path: Path, top: Path) -> Path | None:
    """What git keeps under a name, written to a file: through its filters, as Git LFS hands out a model, else as it is
    stored. None where it keeps nothing there."""
    path.parent.mkdir()
    for form in ("--filters", "blob"):
        with open(path, "wb") as file:
            done = subprocess.run(
                ["git", "cat-file", form, spec], stdout=file, stderr=subprocess.DEVNULL, cwd=top, check=False
            )
        if not done.returncode:
            return path
    return None


def _compare(old: Path, new: Path, name: str) -> tuple[GraphDiff, bool]:
    """The diff, and whether stubs stood for weights on both sides: a blob's data files are not beside it."""
    (before, old_stubs), (after, new_stubs) = _load(old), _load(new)
    if old_stubs != new_stubs:
        before, after = load(old, external_stubs=True), load(new, external_stubs=True)
    stubs = old_stubs or new_stubs
    return diff_own(before, after, (f"a/{name}", f"b/{name}")), stubs


def _load(path: Path) -> tuple[Model, bool]:
    try:
        return load(path), False
    except ModelError:
        return load(path, external_stubs=True), True


def _is_absent(path: Path) -> bool:
    return path.as_posix() == "/dev/null" or path.name == "nul"


def _pointer(path: Path) -> str | None:
    """A sentence for a Git LFS pointer (git-lfs, docs/spec.md), None for anything else."""
    with open(path, "rb") as file:
        head = file.read(1024)
    if not head.startswith(_POINTER):
        return None
    fields = dict(line.split(" ", 1) for line in head.decode("utf-8", "replace").splitlines() if " " in line)
    size, digest = fields.get("size", "?"), fields.get("oid", "").removeprefix("sha256:")[:12]
    return f"a Git LFS pointer to {size} bytes ({digest}): run 'git lfs pull' to see the model"


def _facts(model: Model) -> str:
    facts = diff(model, model).before.facts
    ops = ", ".join(f"{count} {op}" for op, count in list(facts.ops.items())[:6])
    return f"{facts.nodes} nodes ({ops}), {facts.parameters:,} parameters"
