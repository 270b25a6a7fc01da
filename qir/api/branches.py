"""Models whose operators stand in the branches of Ifs, seen as the branches that samples take.

Values in a body cannot be handed out or in, so nothing could be said of the nodes there. But which branch a sample
takes is known, so samples are sorted by that, and for each sort the branches' nodes are moved to where their If stands,
in the float model and in the quantized one alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qir.calibration.collect import expose
from qir.codegen import runnable
from qir.ir import Graph, Model, Node, Tensor
from qir.passes.structure.folding.branches import inline_branch
from qir.pipeline import Progress
from qir.runtime.session import PLAIN, OrtRunner
from qir.validation.layers import LayerErrors, compare_layers

__all__ = ["View", "compare_views", "views"]

Feed = Mapping[str, np.ndarray]


@dataclass(slots=True)
class View:
    """Both models with the branches that ``feeds`` take in place of their Ifs. ``paths``: for the names of nodes that
    were in a body, which body: ``gate/then_branch``."""

    reference: Model
    quantized: Model
    feeds: list[Feed]
    paths: dict[str, str]


def compare_views(
    reference: Model, quantized: Model, feeds: Sequence[Feed], progress: Progress | None = None
) -> tuple[LayerErrors, list[Feed]]:
    """``compare_layers`` with the nodes of branches, and the feeds of the sort that has most: what was compared on them
    can be asked further. Raises as ``compare_layers`` does."""
    first, *others = views(reference, quantized, feeds)
    errors = compare_layers(first.reference, first.quantized, first.feeds, progress=progress)
    errors.paths = first.paths
    for view in others:
        errors.add_branches(compare_layers(view.reference, view.quantized, view.feeds, progress=progress), view.paths)
    return errors, first.feeds


def views(reference: Model, quantized: Model, feeds: Sequence[Feed]) -> list[View]:
    """At least one; the one with most feeds first. The models are not edited."""
    found = list(_split(View(reference, quantized, list(feeds), {})))
    return sorted(found, key=lambda view: -len(view.feeds))


def _split(view: View) -> Iterator[View]:
    """By the Ifs of the main graphs, then by those that stood in their branches."""
    pairs = _pairs(view.reference, view.quantized)
    if not pairs:
        yield view
        return
    sorts: dict[tuple[bool, ...], list[Feed]] = {}
    for feed, taken in zip(view.feeds, _taken(view.reference, [ours for ours, _ in pairs], view.feeds), strict=True):
        sorts.setdefault(taken, []).append(feed)
    for taken, feeds in sorts.items():
        ours, theirs = view.reference.clone_with_map(), view.quantized.clone_with_map()
        paths = dict(view.paths)
        for (one, other), condition in zip(pairs, taken, strict=True):
            paths |= _inline(ours.nodes[one], condition, view.paths)
            _inline(theirs.nodes[other], condition, {})
        yield from _split(View(ours.model, theirs.model, feeds, paths))


def _pairs(reference: Model, quantized: Model) -> list[tuple[Node, Node]]:
    """The Ifs of the main graphs that are the same one, by name or provenance."""
    theirs: dict[str, Node] = {}
    for node in filter(_can_open, quantized.graph.nodes):
        theirs.update(dict.fromkeys((node.label, *node.sources), node))
    pairs: dict[Node, Node] = {}
    for node in filter(_can_open, reference.graph.nodes):
        if node.label in theirs:
            pairs.setdefault(theirs[node.label], node)
    return [(ours, other) for other, ours in pairs.items()]


def _can_open(node: Node) -> bool:
    """Whether it is an If that ``inline_branch`` takes: none whose result is annotated."""
    return node.op == "If" and node.domain in ("", "ai.onnx") and all(value.quant is None for value in node.outputs)


def _taken(reference: Model, nodes: Sequence[Node], feeds: Sequence[Feed]) -> Iterator[tuple[bool, ...]]:
    """For each feed, the condition of each If: made in the model, fed, or a constant."""
    conditions = [value for node in nodes if (value := node.input(0)) is not None]
    exposed, names = expose(reference, conditions)
    known = {value: name for name, value in names.items()}
    defaults = {name: value.const.numpy() for name, value in names.items() if isinstance(value.const, Tensor)}
    with runnable(exposed, annotations="drop") as source:
        runner = OrtRunner(source, PLAIN)
        made_here = {spec.name for spec in runner.outputs} & set(names)
        for feed in feeds:
            got = {**defaults, **feed, **runner.run(feed, sorted(made_here))}
            yield tuple(bool(np.asarray(got[known[value]]).item()) for value in conditions)


def _inline(node: Node, condition: bool, paths: Mapping[str, str]) -> dict[str, str]:
    """Nodes keep their names, for recipes; those without one get that of their first result."""
    key = "then_branch" if condition else "else_branch"
    branch, label = node.get(key), node.label
    assert isinstance(branch, Graph)
    around = f"{paths[label]}/" if label in paths else ""
    names = {inner: inner.label for inner in branch.nodes}
    opened = inline_branch(node, condition)
    assert opened, "its results are not annotated"
    for inner, name in names.items():
        inner.name = name
    return dict.fromkeys(names.values(), f"{around}{label}/{key}")
