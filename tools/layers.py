"""The layer contract: imports inside qir run downhill only.

    python tools/layers.py              check this source tree
    python tools/layers.py FOLDER       check an installed package, FOLDER being .../site-packages/qir

Prints `file:line: what is wrong` for each violation and exits 1 if there is one. Every import counts: at the top of a
module, inside a function, under TYPE_CHECKING, and `import_module` of a literal name.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Lowest first. The rooms of one line are on one level: there "free" rooms may import one another unless that makes a
# circle of rooms, "apart" rooms may not import one another at all.
LEVELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("free", ("errors",)),
    ("apart", ("ir", "runtime")),
    ("free", ("ops",)),
    ("free", ("quant", "analysis", "rewriting")),
    ("free", ("targets",)),
    ("free", ("frontend", "codegen")),
    ("free", ("pipeline",)),
    ("free", ("calibration",)),
    ("free", ("validation",)),
    ("free", ("diff",)),
    ("free", ("report", "interop")),
    ("apart", ("passes", "golden_models")),
    ("free", ("api",)),
    ("free", ("cli",)),
    ("free", ("__main__",)),
)
LEVEL = {room: level for level, (_, rooms) in enumerate(LEVELS) for room in rooms}

# Libraries that a room must never load, so that the IR stays ours and the runtime room stays replaceable.
FOREIGN = {"errors": ("onnx", "onnxruntime", "numpy"), "ir": ("onnx", "onnxruntime")}


@dataclass(frozen=True, order=True)
class Import:
    """One import statement: where it stands, in which room, and the dotted name that it asks for."""

    file: str
    line: int
    room: str
    target: str

    def say(self, what: str) -> str:
        return f"{self.file}:{self.line}: {what}"


def imports_in(source: str, file: str, module: str, is_package: bool) -> Iterator[Import]:
    """Every import in `source`, relative ones resolved; `module` is its dotted name (`qir.ir.types`)."""
    room = module.split(".")[1] if "." in module else ""
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            # `from qir import x` asks for qir.x, a room; below that the prefix already names the room.
            targets = [f"{prefix}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and _is_import_call(node.func):
            literal = node.args[0]
            targets = [literal.value] if isinstance(literal, ast.Constant) and isinstance(literal.value, str) else []
        else:
            continue
        for target in targets:
            yield Import(file, node.lineno, room, target)


def _is_import_call(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")


def violations(imports: Iterable[Import]) -> list[str]:
    """What breaks the contract, sorted by file and line."""
    found: list[tuple[Import, str]] = []
    sideways: dict[str, dict[str, Import]] = {}  # room -> room of the same level -> one import that does it
    for it in sorted(imports):
        top, _, rest = it.target.partition(".")
        if it.room not in LEVEL:
            if it.room:
                found.append((it, f"room '{it.room}' is not in the contract; add it to LEVELS in tools/layers.py"))
            continue  # qir/__init__.py itself: its lazy table may name any room
        if top in FOREIGN.get(it.room, ()):
            found.append((it, f"{it.room} must not import {top}"))
        if top != "qir":
            continue
        room = rest.split(".")[0]
        if room == it.room or room.startswith("__"):  # __version__ and the like come from the package itself
            continue
        if room not in LEVEL:
            found.append(
                (it, f"{it.room} imports {it.target}, which is no room (inside qir, import from the room itself)")
            )
        elif LEVEL[room] > LEVEL[it.room]:
            found.append((it, f"{it.room} imports {room}, which is above it"))
        elif LEVEL[room] == LEVEL[it.room]:
            if LEVELS[LEVEL[room]][0] == "apart":
                found.append((it, f"{it.room} imports {room}; the two are independent"))
            else:
                sideways.setdefault(it.room, {}).setdefault(room, it)
    found += [(it, message) for it, message in _circles(sideways)]
    return [it.say(message) for it, message in sorted(found)]


def _circles(edges: dict[str, dict[str, Import]]) -> Iterator[tuple[Import, str]]:
    """The sideways imports that lie on a circle of rooms."""

    def reaches(start: str, goal: str) -> bool:
        seen, todo = {start}, [start]
        while todo:
            for room in edges.get(todo.pop(), {}):
                if room == goal:
                    return True
                if room not in seen:
                    seen.add(room)
                    todo.append(room)
        return False

    for room, targets in edges.items():
        for target, it in targets.items():
            if reaches(target, room):
                yield it, f"{room} imports {target}, and {target} (in)directly imports {room}: a circle of rooms"


def modules(roots: Sequence[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module under each (package name, folder)."""
    for package, folder in roots:
        for file in sorted(folder.rglob("*.py")):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def check(roots: Sequence[tuple[str, Path]], shown_from: Path) -> tuple[int, list[str]]:
    """(modules read, violations) of the packages at `roots`; files are shown relative to `shown_from`."""
    found: list[Import] = []
    count = 0
    for module, file in modules(roots):
        count += 1
        shown = str(file.relative_to(shown_from))
        found += imports_in(file.read_text(encoding="utf-8"), shown, module, file.name == "__init__.py")
    return count, violations(found)


def main(arguments: Sequence[str]) -> int:
    if arguments:
        folder = Path(arguments[0]).resolve()
        count, lines = check([("qir", folder)], folder.parent)
    else:
        tree = Path(__file__).resolve().parent.parent
        count, lines = check(
            [("qir", tree / "qir"), ("qir.passes", tree / "passes"), ("qir.golden_models", tree / "golden_models")],
            tree,
        )
    if count == 0:
        print(f"layers: no Python module under {arguments[0] if arguments else 'this tree'}", file=sys.stderr)
        return 2
    print("\n".join(lines) if lines else f"layers: {count} modules, all imports run downhill")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
