"""A target in a file: a built-in one with other costs or options, as `qir targets tune` writes it.

::

    [target]
    base = "ort-cpu"
    name = "my-server"            # left out: the file's name

    [cost]                        # see CostTable; pairs are [float, integer]
    macs_per_us = [43000, 88000]

    [cost.element_ns]
    Add = [0.17, 0.18]

    [session_options]
    "session.x64quantprecision" = "1"

    [measured]                    # where and with what; for readers
    processor = "..."

Paths ending in .toml stand wherever a target's name can.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from qir.errors import OptionError, suggest
from qir.targets.cost import CostTable
from qir.targets.target import Target

__all__ = ["load_target_file", "target_text"]

_TABLES = ("target", "cost", "session_options", "measured")


def load_target_file(path: Path, base: Callable[[str], Target]) -> Target:
    """Read one; ``base`` gives the built-in target of a name.

    Raises OptionError where the file is missing, no TOML, or says what no target has.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"target file '{path}' cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise OptionError(f"target file '{path}' is no TOML: {error}") from error
    for table in content:
        if table not in _TABLES or not isinstance(content[table], dict):
            raise OptionError(f"target file '{path}': unknown entry {table!r}{suggest(table, _TABLES)}")
    head = content.get("target", {})
    if not isinstance(head.get("base"), str):
        raise OptionError(f"target file '{path}': [target] must have base = \"NAME\", the target that it is made from")
    for key in head:
        if key not in ("base", "name"):
            raise OptionError(f"target file '{path}': [target] has no {key!r}: only base and name")
    found = base(head["base"])
    options = content.get("session_options", {})
    if not all(isinstance(value, str) for value in options.values()):
        raise OptionError(f"target file '{path}': [session_options] holds texts, write numbers in quotes")
    return replace(
        found,
        name=str(head.get("name", path.stem)),
        cost=_cost(found.cost, content.get("cost", {}), path),
        session_options={**found.session_options, **options},
    )


def _cost(cost: CostTable, given: Mapping[str, Any], path: Path) -> CostTable:
    known = {field.name: getattr(cost, field.name) for field in fields(CostTable)}
    changes: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise OptionError(f"target file '{path}': [cost] has no {key!r}{suggest(key, known)}")
        where = f"target file '{path}': [cost] {key}"
        if isinstance(known[key], Mapping):
            if not isinstance(value, dict):
                raise OptionError(f"{where} must be a table: operator = [float, integer]")
            changes[key] = {**known[key], **{op: _numbers(pair, 2, f"{where} {op}") for op, pair in value.items()}}
        elif isinstance(known[key], tuple):
            changes[key] = _numbers(value, len(known[key]), where)
        else:
            changes[key] = _numbers([value], 1, where)[0]
    return replace(cost, **changes)


def _numbers(value: Any, count: int, where: str) -> tuple[float, ...]:
    good = isinstance(value, list) and len(value) == count
    if not good or any(isinstance(one, bool) or not isinstance(one, (int, float)) or one < 0 for one in value):
        what = "a number" if count == 1 else f"{count} numbers, [float, integer]"
        raise OptionError(f"{where} must be {what}, none below 0")
    return tuple(float(one) for one in value)


def target_text(base: str, name: str, cost: CostTable, measured: Mapping[str, str]) -> str:
    """The file's text for a measured cost table."""
    lines = ["[target]", f"base = {json.dumps(base)}", f"name = {json.dumps(name)}", "", "[cost]"]
    tables: list[str] = []
    for key, value in asdict(cost).items():
        if isinstance(value, Mapping):
            tables += ["", f"[cost.{key}]", *(f"{op} = {_number_text(pair)}" for op, pair in value.items())]
        else:
            lines.append(f"{key} = {_number_text(value)}")
    lines += [*tables, "", "[measured]", *(f"{key} = {json.dumps(value)}" for key, value in measured.items())]
    return "\n".join(lines) + "\n"


def _number_text(value: float | tuple[float, ...]) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"[{', '.join(f'{one:.4g}' for one in value)}]"
