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
_DEPTH = 4
"""Of Ifs in Ifs."""


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
    found = list(_split(View(reference, quantized, list(feeds), {}), _DEPTH))
    return sorted(found, key=lambda view: -len(view.feeds))


def _split(view: View, depth: int) -> Iterator[View]:
    pairs = _pairs(view.reference, view.quantized)
    if not pairs or depth == 0:
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
        yield from _split(View(ours.model, theirs.model, feeds, paths), depth - 1)


def _pairs(reference: Model, quantized: Model) -> list[tuple[Node, Node]]:
    """The Ifs of the main graphs that are the same one, by name or provenance."""
    theirs: dict[str, Node] = {}
    for node in quantized.graph.nodes:
        if node.op == "If" and node.domain in ("", "ai.onnx"):
            theirs.update(dict.fromkeys((node.label, *node.sources), node))
    return [
        (node, theirs[node.label])
        for node in reference.graph.nodes
        if node.op == "If" and node.domain in ("", "ai.onnx") and node.label in theirs
    ]


def _taken(reference: Model, nodes: Sequence[Node], feeds: Sequence[Feed]) -> Iterator[tuple[bool, ...]]:
    """For each feed, the condition of each If."""
    conditions = [node.input(0) for node in nodes]
    exposed, names = expose(reference, [value for value in conditions if value is not None])
    known = {value: name for name, value in names.items()}
    defaults = {name: value.const.numpy() for name, value in names.items() if isinstance(value.const, Tensor)}
    with runnable(exposed, annotations="drop") as source:
        runner = OrtRunner(source, PLAIN)
        made_here = {spec.name for spec in runner.outputs} & set(names)
        for feed in feeds:
            got = dict(feed) | (runner.run(feed, sorted(made_here)) if made_here else {})
            yield tuple(
                bool(np.asarray(got.get(known[value], defaults.get(known[value]))).reshape(-1)[0])
                for value in conditions
                if value is not None
            )


def _inline(node: Node, condition: bool, paths: Mapping[str, str]) -> dict[str, str]:
    """Nodes keep their names, for recipes; those without one get that of their first result."""
    key = "then_branch" if condition else "else_branch"
    branch, label = node.get(key), node.label
    assert isinstance(branch, Graph)
    around = f"{paths[label]}/" if label in paths else ""
    names = {inner: inner.label for inner in branch.nodes}
    if not inline_branch(node, condition):
        return {}
    for inner, name in names.items():
        inner.name = name
    return dict.fromkeys(names.values(), f"{around}{label}/{key}")
