"""`qir explain`: how far a rewriting rule gets at a node, and what stops it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qir.cli.options import JsonFlag, Plugins, print_json, registry_with
from qir.errors import ModelError, OptionError, suggest
from qir.pipeline import Pipeline, Preset, Registry

if TYPE_CHECKING:
    from qir.ir import Model, Node
    from qir.rewriting import Rule

__all__ = ["explain"]

_MOST_ROOTS = 4


def explain(
    rule: Annotated[str, typer.Argument(metavar="RULE", help="The name of a rule.", show_default=False)],
    node: Annotated[
        str, typer.Argument(metavar="NODE", help="The name of a node, or of one of its results.", show_default=False)
    ],
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.", show_default=False)],
    plugin: Plugins = None,
    passes: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Passes to run first, to see the graph that the rule sees.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Say whether a rewriting rule fits at a node; if not, how far the best attempt got and what stopped it.

    Example: [bold]qir explain conv-bn bn1 model.onnx --passes canonicalize[/bold]

    A node in the midst of a pattern is explained from where the pattern starts, further down in the graph.
    """
    from qir.frontend import load

    registry = registry_with(plugin)
    steps = Pipeline.parse(passes or "", registry=registry)
    loaded = steps.run(load(model), in_place=True).model
    rules = _rules(rule, loaded, registry)
    at = _node(node, loaded)
    lines = []
    for one in rules:
        starts = _starts(one, at)
        if not starts:
            ops = " or ".join(op for _, op in one.roots)
            lines.append(f"rule {one.name!r} at {at.op} {at.label!r}: it starts at {ops}, and none is here or below")
        lines += [one.explain(start, loaded) for start in starts]
    lines = list(dict.fromkeys(lines))
    if json:
        print_json({"model": str(model), "rule": rule, "node": at.label, "explanations": lines})
    else:
        typer.echo("\n".join(lines))


def _rules(name: str, model: Model, registry: Registry) -> list[Rule]:
    """The rules of that name of all passes; several where a rule has variants."""
    known: dict[str, list[Rule]] = {}
    for pass_name in registry:
        try:
            found = registry.get(pass_name)
        except OptionError as error:  # one broken plug-in does not hide the others
            print(f"warning: {error}", file=sys.stderr)
            continue
        if isinstance(found, Preset) or not _has_defaults(found):
            continue
        for rule in found().rules(model):
            known.setdefault(rule.name, []).append(rule)
    if name not in known:
        raise OptionError(f"there is no rule {name!r}{suggest(name, known)}; the rules are {', '.join(sorted(known))}")
    return known[name]


def _has_defaults(cls: type) -> bool:
    from qir.pipeline.options import options_of

    return not any(option.required for option in options_of(cls))


def _node(name: str, model: Model) -> Node:
    by_name: dict[str, Node] = {}
    for node in model.walk():
        for value in node.outputs:
            by_name.setdefault(value.name, node)
    by_name |= {node.name: node for node in model.walk() if node.name}
    if name not in by_name:
        raise ModelError(f"the model has no node {name!r}{suggest(name, by_name)}")
    return by_name[name]


def _starts(rule: Rule, node: Node) -> list[Node]:
    """The node itself where the rule's pattern can start there; else the nearest readers where it can."""
    seen = {node}
    frontier = [node]
    for _ in range(rule.pattern.depth + 1):
        found = [one for one in frontier if ("" if one.domain == "ai.onnx" else one.domain, one.op) in rule.roots]
        if found:
            return found[:_MOST_ROOTS]
        frontier = [user for one in frontier for value in one.outputs for user in value.users if user not in seen]
        frontier = list(dict.fromkeys(frontier))
        seen.update(frontier)
    return []
