"""Which passes, presets and targets exist, and where each comes from. Nothing is imported before it is asked for.

The one table of built-ins is `[project.entry-points]` in pyproject.toml: an installed package hands it out through
`importlib.metadata`, in a source tree the file itself is read, and a plug-in package adds to it by the same door.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.metadata
import importlib.util
import re
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from inspect import isabstract
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from qir.errors import OptionError, suggest
from qir.pipeline.contract import Effect, Pass
from qir.pipeline.preset import Preset

__all__ = ["Entry", "Registry", "default_registry", "discover", "load_plugin", "load_target", "target_names"]

PASSES = "qir.passes"
TARGETS = "qir.targets"


@dataclass(frozen=True, slots=True)
class Entry:
    """A name, where it comes from (for messages), and how to get the object."""

    name: str
    source: str
    load: Callable[[], Any]


class Registry:
    """An immutable table from name to pass class or preset; ``with_...`` make a larger one.

    Raises OptionError where two sources give the same name to different things.
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: Mapping[str, Entry] = MappingProxyType(_table(entries, "pass or preset"))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def source(self, name: str) -> str:
        """Where a name comes from, e.g. ``qir`` or ``plug-in my_pass.py``."""
        return self._entry(name).source

    def get(self, name: str) -> type[Pass] | Preset:
        """The pass class or preset of that name, imported now.

        Raises OptionError where there is none (with the nearest names) or where what the entry names is neither.
        """
        entry = self._entry(name)
        found: object = entry.load()
        if isinstance(found, type) and issubclass(found, Pass):
            check_pass_class(found, entry.source)
        elif not isinstance(found, Preset):
            raise OptionError(f"{entry.source}: {name!r} is neither a Pass class nor a Preset but {found!r}")
        if found.name != name:
            raise OptionError(f"{entry.source}: registers {found.name!r} under the name {name!r}; make the two equal")
        return found

    def with_plugin(self, path: str | Path) -> Registry:
        """Add what a Python file defines; see ``load_plugin``."""
        return Registry([*self._entries.values(), *load_plugin(path)])

    def with_passes(self, *items: type[Pass] | Preset) -> Registry:
        """Add classes and presets that the program has at hand."""
        return Registry([*self._entries.values(), *(_entry_of(item, f"object {item!r}") for item in items)])

    def _entry(self, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise OptionError(f"unknown pass {name!r}{suggest(name, self._entries)}: 'qir passes' lists all")
        return entry


@cache
def default_registry() -> Registry:
    """The built-in passes and those of installed plug-in packages."""
    return Registry(discover(PASSES))


def load_target(name: str) -> Any:
    """What the entry point of group ``qir.targets`` with this name holds, or the target of a file (``*.toml``).

    Raises OptionError for an unknown name, with the nearest ones, or a file that is none.
    """
    if name.endswith(".toml"):
        from qir.targets.file import load_target_file

        return load_target_file(Path(name), load_target)
    table = _table(discover(TARGETS), "target")
    if name not in table:
        raise OptionError(f"unknown target {name!r}{suggest(name, table)}: there are {', '.join(sorted(table))}")
    from qir.targets import Target

    entry = table[name]
    target = entry.load()
    if not isinstance(target, Target):
        raise OptionError(f"{entry.source}: target {name!r} is no qir.targets.Target but {target!r}")
    if target.name != name:
        raise OptionError(f"{entry.source}: registers {target.name!r} under the name {name!r}; make the two equal")
    return target


def target_names() -> dict[str, str]:
    """The targets that there are, in order of their names, and where each comes from."""
    return {name: entry.source for name, entry in sorted(_table(discover(TARGETS), "target").items())}


def discover(group: str) -> list[Entry]:
    """The entries of one entry-point group, imported by nobody yet.

    In a source tree the tree's pyproject.toml speaks for qir, whatever else of qir is installed: the tree's modules
    are the ones that Python imports.
    """
    tree = _source_tree()
    entries = []
    if tree is not None:
        project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        points = project.get("entry-points", {}).get(group, {})
        entries = [
            _entry_from(importlib.metadata.EntryPoint(name, value, group), "qir") for name, value in points.items()
        ]
    for point in importlib.metadata.entry_points(group=group):
        package = point.dist.name if point.dist is not None else "unknown package"
        if tree is None or package != "qir":
            entries.append(_entry_from(point, package))
    return entries


def load_plugin(path: str | Path) -> list[Entry]:
    """Run a Python file; its own Pass classes (not the abstract or imported ones) and presets.

    The file is run again each time it is asked for. Raises OptionError where it is missing, fails or defines none.
    """
    path = Path(path)
    source = f"plug-in {str(path)!r}"
    module = _run_file(path, source)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, Preset) or (_is_pass_class(value) and value.__module__ == module.__name__)
    ]
    if not found:
        raise OptionError(f"{source} defines no pass: a pass is a frozen dataclass derived from qir.Pass")
    return [_entry_of(item, source) for item in dict.fromkeys(found)]


def check_pass_class(cls: type[Pass], source: str) -> None:
    """Raises OptionError where a class breaks the contract in a way that Python lets through."""
    missing = [field for field in ("name", "effect") if not hasattr(cls, field)]
    if missing:
        raise OptionError(f"{source}: pass class {cls.__name__!r} has no {missing[0]!r}")
    effect: object = cls.effect
    if not isinstance(effect, Effect):
        wrong = f"pass class {cls.__name__!r} has effect {effect!r}"
        raise OptionError(f"{source}: {wrong}: use Effect.EXACT or another")
    if not re.fullmatch(r"[a-z0-9_.]+(-[a-z0-9_.]+)*", cls.name):
        raise OptionError(f"{source}: pass class {cls.__name__!r} has the name {cls.name!r}: use kebab-case")
    if isabstract(cls):
        raise OptionError(f"{source}: pass class {cls.__name__!r} does not define 'run'")
    own = [field for field in dataclasses.fields(cls) if field.name in vars(cls).get("__annotations__", {})]
    annotated = [name for name, hint in vars(cls).get("__annotations__", {}).items() if "ClassVar" not in str(hint)]
    if len(own) < len(annotated):
        raise OptionError(
            f"{source}: pass class {cls.__name__!r} has options but is no dataclass: "
            "decorate it with @dataclass(frozen=True)"
        )


def _is_pass_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Pass) and not isabstract(value)


def _entry_of(item: type[Pass] | Preset, source: str) -> Entry:
    if isinstance(item, type):
        check_pass_class(item, source)
    return Entry(item.name, source, lambda: item)


def _entry_from(point: importlib.metadata.EntryPoint, package: str) -> Entry:
    def load() -> Any:
        try:
            return point.load()
        except (ImportError, AttributeError) as error:
            raise OptionError(
                f"{package}: entry point {point.name!r} ({point.value}) does not load: {error}"
            ) from error

    return Entry(point.name, package, load)


def _table(entries: Iterable[Entry], kind: str) -> dict[str, Entry]:
    table: dict[str, Entry] = {}
    for entry in entries:
        other = table.setdefault(entry.name, entry)
        if other is not entry:
            raise OptionError(
                f"two sources define the {kind} {entry.name!r}: {other.source} and {entry.source}; rename one"
            )
    return table


def _source_tree() -> Path | None:
    """The root of the source tree that this package was imported from; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() and (root / "passes" / "__init__.py").is_file() else None


def _run_file(path: Path, source: str) -> ModuleType:
    if not path.is_file():
        raise OptionError(f"{source}: no such file")
    digest = hashlib.blake2b(str(path.resolve()).encode(), digest_size=4).hexdigest()
    name = f"qir_plugin_{path.stem.replace('-', '_')}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise OptionError(f"{source}: not a Python file (the name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up by name; the name has the path in it, so none is overwritten.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise OptionError(f"{source}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        here = [frame for frame in frames if Path(frame.filename).absolute() == path.absolute()]
        line = f", line {here[-1].lineno}" if here else ""
        raise OptionError(f"{source}{line}: {type(error).__name__}: {error}") from error
    return module
