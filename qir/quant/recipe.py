"""Recipes: choices per node or region, by the names of the imported model, in a TOML file that people, searches and
`qir compare` write alike.

::

    [[node]]
    match = "layer3/*"        # a name of the imported model, a glob over names, an operator type; or a list of these
    precision = "float"       # or "int8": stays integer whatever a search finds; or "int8-dynamic": a linear operator
                              # that quantizes its input at run time
    method = "mse"            # how the ranges of its quantizers are chosen (see the pass `calibrate`)

    [[region]]                # every node on a way from one value to another
    from = "stem_out"         # left out: from the inputs on
    to = "neck_out"           # left out: up to the outputs
    precision = "float"

    corrections = ["bias"]    # above all tables: the mean errors of channels are taken out of biases before emission

Nodes count before regions, later tables before earlier ones; precision and method each by itself. What a recipe gives a
precision is not searched any more.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from os import PathLike, fspath
from pathlib import Path
from typing import Literal, get_args

from qir.errors import OptionError, suggest
from qir.ir import Model, Node
from qir.quant.stretch import nodes_between

__all__ = ["CORRECTIONS", "METHODS", "PRECISIONS", "Choice", "Method", "Precision", "Recipe", "Region"]

Precision = Literal["float", "int8", "int8-dynamic"]
Method = Literal["minmax", "percentile", "mse", "entropy", "moving-average"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
METHODS: tuple[Method, ...] = get_args(Method)
CORRECTIONS = ("bias",)
_LONGEST = 4000
"""Of a pattern: globs take time that grows with the square of their length."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the nodes that ``match`` shall be; None leaves it open. ``origin`` is for messages, ``why`` for readers."""

    match: str
    precision: Precision | None
    origin: str = field(default="the recipe", compare=False)
    method: Method | None = None
    why: str = field(default="", compare=False)

    def matches(self, node: Node, names: Iterable[str]) -> bool:
        return node.op == self.match or any(name == self.match or fnmatchcase(name, self.match) for name in names)


@dataclass(frozen=True, slots=True)
class Region:
    """What the nodes between the values ``start`` and ``end`` shall be; None: from the inputs, up to the outputs."""

    start: str | None
    end: str | None
    precision: Precision | None
    origin: str = field(default="the recipe", compare=False)
    method: Method | None = None
    why: str = field(default="", compare=False)

    @property
    def match(self) -> str:
        """For messages."""
        return f"{self.start or 'inputs'} .. {self.end or 'outputs'}"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Regions and choices, each in order. ``corrections`` hold for all of it: ``qir.quantize`` adds their passes."""

    choices: tuple[Choice, ...] = ()
    regions: tuple[Region, ...] = ()
    corrections: tuple[str, ...] = ()

    @classmethod
    def open(cls, source: str | PathLike[str] | Recipe | None) -> Recipe:
        """A recipe from itself, the path of a TOML file, or TOML text (which has tables); None is the empty one."""
        if source is None or isinstance(source, Recipe):
            return source or cls()
        text = fspath(source)
        return cls.parse(text) if text.lstrip().startswith("[[") or "\n" in text else cls.load(text)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Recipe:
        """Read a TOML file. Raises OptionError where it cannot be read or says something unknown."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise OptionError(f"recipe {fspath(path)!r} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise OptionError(f"recipe {fspath(path)!r} is no TOML: {error}") from error
        return cls.parse(text, f"recipe {fspath(path)!r}")

    @classmethod
    def parse(cls, text: str, origin: str = "the recipe") -> Recipe:
        """Read TOML text; ``origin`` opens every message. Raises OptionError as ``load`` does."""
        try:
            content = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise OptionError(f"{origin} is no TOML: {error}") from error
        unknown = set(content) - {"node", "region", "corrections"}
        if unknown:
            name = min(unknown)
            raise OptionError(
                f"{origin}: unknown table {name!r}{suggest(name, ['node', 'region'])}: use [[node]] and [[region]]"
            )
        nodes = [choice for table, where in _tables(content, "node", origin) for choice in _choices(table, where)]
        regions = tuple(_region(table, where) for table, where in _tables(content, "region", origin))
        return cls(tuple(nodes), regions, _corrections(content.get("corrections", []), origin))

    def with_float(self, patterns: Iterable[str]) -> Recipe:
        """This recipe, then the patterns of nodes that stay float."""
        return self.then(Recipe(tuple(Choice(pattern, "float", "--keep-float") for pattern in patterns)))

    def then(self, later: Recipe) -> Recipe:
        """This recipe, then another, whose choices win."""
        corrections = tuple(dict.fromkeys((*self.corrections, *later.corrections)))
        return Recipe((*self.choices, *later.choices), (*self.regions, *later.regions), corrections)

    def to_toml(self) -> str:
        """The file's text; ``parse`` reads it back. Neighbouring choices that say the same share a table."""
        named = ", ".join(_quoted(name) for name in self.corrections)
        lines = [f"corrections = [{named}]"] if self.corrections else []
        for region in self.regions:
            lines += ["", "[[region]]", *_comment(region.why)]
            lines += [f"from = {_quoted(region.start)}"] if region.start is not None else []
            lines += [f"to = {_quoted(region.end)}"] if region.end is not None else []
            lines += _said(region)
        for group in _grouped(self.choices):
            names = [_quoted(choice.match) for choice in group]
            match = names if len(names) == 1 else ["[", *(f"  {name}," for name in names), "]"]
            lines += ["", "[[node]]", *_comment(group[0].why), "match = " + "\n".join(match), *_said(group[0])]
        return "\n".join(lines).lstrip() + "\n"

    def resolve(self, model: Model) -> Callable[[Node], str | None]:
        """A function that gives the reason for which a node stays float, None where no choice says so.

        Raises OptionError as ``assign`` does.
        """
        return {
            node: f"{choice.origin} says so ({choice.match!r})"
            for node, choice in self.assign(model).items()
            if choice.precision == "float"
        }.get

    def assign(self, model: Model, reference: Model | None = None) -> dict[Node, Choice]:
        """What holds for each node, bodies and functions included; nodes of which nothing is said are left out.

        ``reference`` is the imported model, by whose values regions are meant; without it, ``model`` is. Raises
        OptionError for a choice that matches no node and for a region without nodes, naming the nearest names.
        """
        assigned: dict[Node, Choice] = {}
        for region in self.regions:
            said = Choice(region.match, region.precision, region.origin, region.method, region.why)
            for node in nodes_between(model, reference or model, region.start, region.end, region.origin):
                assigned[node] = _merged(assigned.get(node), said)
        if not self.choices:
            return assigned
        used: set[int] = set()
        names: set[str] = set()
        for node in model.walk():
            own = {node.name, *node.sources, *(value.name for value in node.outputs)} - {""}
            names |= own | {node.op}
            for index, choice in enumerate(self.choices):
                if choice.matches(node, own):
                    used.add(index)
                    assigned[node] = _merged(assigned.get(node), choice)
        for index, choice in enumerate(self.choices):
            if index not in used:
                raise OptionError(
                    f"{choice.origin}: {choice.match!r} matches no node{suggest(choice.match, names, cutoff=0.3)}: "
                    "use a node's name, a glob like 'layer1/*', or an operator type"
                )
        return assigned

    def pinned(self, model: Model, reference: Model | None = None) -> set[Node]:
        """The nodes to which a precision is given: a search leaves them alone. Raises as ``assign`` does."""
        return {node for node, choice in self.assign(model, reference).items() if choice.precision is not None}


def _merged(earlier: Choice | None, later: Choice) -> Choice:
    if earlier is None:
        return later
    if later.precision is None:  # the earlier one still is who decides on precision
        return replace(earlier, method=later.method or earlier.method)
    return replace(later, method=later.method or earlier.method)


# Reading


def _tables(content: Mapping[str, object], kind: str, origin: str) -> Iterator[tuple[dict[str, object], str]]:
    tables = content.get(kind, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise OptionError(f"{origin}: write each choice as a table [[{kind}]]")
    for index, table in enumerate(tables):
        yield table, f"{origin}, [[{kind}]] {index + 1}"


def _choices(table: dict[str, object], where: str) -> list[Choice]:
    _check_keys(table, ("match", "precision", "method"), where)
    match = table.get("match")
    patterns = match if isinstance(match, list) else [match]
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise OptionError(f"{where}: 'match' must be a name, a glob or an operator type, or a list of these")
    if max(len(str(pattern)) for pattern in patterns) > _LONGEST:
        raise OptionError(f"{where}: 'match' is longer than {_LONGEST} characters: give a glob of the names' start")
    precision, method = _precision_and_method(table, where)
    return [Choice(str(pattern), precision, where, method) for pattern in patterns]


def _region(table: dict[str, object], where: str) -> Region:
    _check_keys(table, ("from", "to", "precision", "method"), where)
    start, end = table.get("from"), table.get("to")
    if start is None and end is None:
        raise OptionError(f"{where}: give 'from', 'to' or both: the values between which the region lies")
    for key, name in (("from", start), ("to", end)):
        if name is not None and not (isinstance(name, str) and name):
            raise OptionError(f"{where}: {key!r} must be the name of a value, not {name!r}")
    precision, method = _precision_and_method(table, where)
    return Region(None if start is None else str(start), None if end is None else str(end), precision, where, method)


def _corrections(said: object, origin: str) -> tuple[str, ...]:
    names = said if isinstance(said, list) else [said]
    for name in names:
        if name not in CORRECTIONS:
            raise OptionError(f"{origin}: 'corrections' must be a list of {', '.join(CORRECTIONS)}, not {name!r}")
    return tuple(str(name) for name in names)


def _check_keys(table: Mapping[str, object], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            raise OptionError(f"{where}: unknown key {key!r}{suggest(key, known)}: there are {', '.join(known)}")


def _precision_and_method(table: Mapping[str, object], where: str) -> tuple[Precision | None, Method | None]:
    precision, method = table.get("precision"), table.get("method")
    if precision is None and method is None:
        raise OptionError(f"{where}: 'precision' must be one of {', '.join(PRECISIONS)}, or give a 'method'")
    for key, said, known in (("precision", precision, PRECISIONS), ("method", method, METHODS)):
        if said is not None and said not in known:
            near = suggest(said, known) if isinstance(said, str) else ""
            raise OptionError(f"{where}: {key!r} must be one of {', '.join(known)}, not {said!r}{near}")
    return (
        next((one for one in PRECISIONS if one == precision), None),
        next((one for one in METHODS if one == method), None),
    )


# Writing


def _grouped(choices: Iterable[Choice]) -> Iterator[list[Choice]]:
    group: list[Choice] = []
    for choice in choices:
        said = (choice.precision, choice.method, choice.why)
        if group and said != (group[0].precision, group[0].method, group[0].why):
            yield group
            group = []
        group.append(choice)
    if group:
        yield group


def _said(choice: Choice | Region) -> list[str]:
    lines = [f'precision = "{choice.precision}"'] if choice.precision is not None else []
    return lines + ([f'method = "{choice.method}"'] if choice.method is not None else [])


def _comment(why: str) -> list[str]:
    return [f"# {line}" for line in why.splitlines()]


def _quoted(name: str) -> str:
    # A JSON string is a TOML string but for this one character.
    return json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")
