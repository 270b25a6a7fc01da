"""Recipes: per-node choices by original name, glob or operator type, in a TOML file that people and searches write.

::

    [[node]]
    match = "layer3/*"        # a name of the imported model, a glob over names, or an operator type
    precision = "float"       # or "int8", or "int8-dynamic": a linear operator that quantizes its input at run time
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args

from qir.errors import OptionError, suggest
from qir.ir import Model, Node

__all__ = ["Choice", "Recipe"]

Precision = Literal["float", "int8", "int8-dynamic"]
_PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True, slots=True)
class Choice:
    """What the nodes that ``match`` shall be; later choices win over earlier ones."""

    match: str
    precision: Precision
    origin: str

    def matches(self, node: Node, names: Iterable[str]) -> bool:
        return node.op == self.match or any(name == self.match or fnmatchcase(name, self.match) for name in names)


@dataclass(frozen=True, slots=True)
class Recipe:
    """An ordered list of choices."""

    choices: tuple[Choice, ...] = ()

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a TOML file. Raises OptionError where it cannot be read or says something unknown."""
        try:
            with open(path, "rb") as file:
                content = tomllib.load(file)
        except OSError as error:
            raise OptionError(f"recipe {str(path)!r} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise OptionError(f"recipe {str(path)!r} is no TOML: {error}") from error
        unknown = set(content) - {"node"}
        if unknown:
            name = min(unknown)
            raise OptionError(f"recipe {str(path)!r}: unknown table {name!r}{suggest(name, ['node'])}: use [[node]]")
        tables = content.get("node", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise OptionError(f"recipe {str(path)!r}: write each choice as a table [[node]]")
        return cls(tuple(_choice(table, f"recipe {str(path)!r}, [[node]] {i + 1}") for i, table in enumerate(tables)))

    def with_float(self, patterns: Iterable[str]) -> Recipe:
        """This recipe, then the patterns of nodes that stay float."""
        return Recipe((*self.choices, *(Choice(pattern, "float", "--keep-float") for pattern in patterns)))

    def resolve(self, model: Model) -> Callable[[Node], str | None]:
        """A function that gives the reason for which a node stays float, None where no choice says so.

        Raises OptionError as ``assign`` does.
        """
        return {
            node: f"{choice.origin} says so ({choice.match!r})"
            for node, choice in self.assign(model).items()
            if choice.precision == "float"
        }.get

    def assign(self, model: Model) -> dict[Node, Choice]:
        """The choice that holds for each node, bodies and functions included; nodes that none matches are left out.

        Raises OptionError for a choice that matches no node, naming the nearest names.
        """
        assigned: dict[Node, Choice] = {}
        if not self.choices:
            return assigned
        used: set[Choice] = set()
        names: set[str] = set()
        for node in model.walk():
            own = {node.name, *node.sources, *(value.name for value in node.outputs)} - {""}
            names |= own | {node.op}
            for choice in self.choices:
                if choice.matches(node, own):
                    used.add(choice)
                    assigned[node] = choice
        for choice in self.choices:
            if choice not in used:
                raise OptionError(
                    f"{choice.origin}: {choice.match!r} matches no node{suggest(choice.match, names, cutoff=0.3)}: "
                    "use a node's name, a glob like 'layer1/*', or an operator type"
                )
        return assigned


def _choice(table: dict[str, object], where: str) -> Choice:
    for key in table:
        if key not in ("match", "precision"):
            raise OptionError(f"{where}: unknown key {key!r}{suggest(key, ['match', 'precision'])}")
    match, precision = table.get("match"), table.get("precision")
    if not isinstance(match, str) or not match:
        raise OptionError(f"{where}: 'match' must be a name, a glob or an operator type")
    if precision not in _PRECISIONS:
        raise OptionError(f"{where}: 'precision' must be one of {', '.join(_PRECISIONS)}, not {precision!r}")
    return Choice(match, next(p for p in _PRECISIONS if p == precision), where)
