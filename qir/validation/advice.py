"""What to do about the error of a quantized model: what to correct, whose ranges to choose in another way, what to
keep in float, and how many decibels that should bring.

A node's own error says little about the harm that it does at the outputs, so errors are injected into the float model
(see ``injection``). First what costs no time: a bias correction, a threshold method for all. Then nodes, alone, with
their readers, of a kind or in a row, by decibels per percent of time. The gain of a line is measured together with all
lines before it, so none is given that makes worse what those before it reach.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qir.analysis.cost import model_cost, node_cost, with_input_shapes
from qir.ir import Model, Node
from qir.pipeline.contract import NoProgress, Progress
from qir.quant.recipe import METHODS, PRECISIONS, Choice, Method, Precision, Recipe
from qir.targets import Target
from qir.validation.injection import LINEAR, TRIED_METHODS, Bench, Group, Plan, open_bench
from qir.validation.layers import EXACT, Arrays, LayerErrors

__all__ = ["Advice", "Suggestion", "advise"]

_VARIANTS_FOR = 12
"""Nodes for which other ways are tried one by one: those that do most harm."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One table of a recipe, or a correction. ``nodes``: names, or one operator type, or ``*``; ``op``: what they are.
    ``gain_db``: what it adds to the lines before it, at the worst output; ``cost_percent``: estimated share of the
    model's time that it takes, from the target's cost table."""

    nodes: tuple[str, ...]
    op: str
    precision: str | None
    method: str | None
    gain_db: float
    cost_percent: float
    correction: str | None = None

    @property
    def recipe(self) -> Recipe:
        if self.correction is not None:
            return Recipe(corrections=(self.correction,))
        precision: Precision | None = next((one for one in PRECISIONS if one == self.precision), None)
        method: Method | None = next((one for one in METHODS if one == self.method), None)
        return Recipe(tuple(Choice(name, precision, "qir compare", method, self.why) for name in self.nodes))

    @property
    def why(self) -> str:
        gain = f"{self.gain_db:+.1f} dB" if self.gain_db < 100 else "the rest"
        return f"{gain} predicted, {self.cost_percent:+.1f} % time estimated"

    def as_dict(self) -> dict[str, Any]:
        return {
            "match": self.nodes[0] if len(self.nodes) == 1 else list(self.nodes),
            "op": self.op,
            "precision": self.precision,
            "method": self.method,
            "correction": self.correction,
            "gain_db": round(self.gain_db, 3),
            "cost_percent": round(self.cost_percent, 3),
        }


@dataclass(slots=True)
class Advice:
    """``suggestions`` in the order in which they should be taken. ``injected_db``: SQNR at the worst output with all
    errors injected into the float model, to hold against what was measured; ``predicted_db``: with the suggestions
    followed. ``harm``: for each node, the decibels that its errors alone leave."""

    suggestions: list[Suggestion] = field(default_factory=list)
    injected_db: float = math.inf
    predicted_db: float = math.inf
    harm: dict[str, float] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        recipe = Recipe()
        for suggestion in self.suggestions:
            recipe = recipe.then(suggestion.recipe)
        return recipe


@dataclass(frozen=True, slots=True)
class _Line:
    """A table of the recipe to be: its nodes, how they are named, and what happens to them."""

    group: Group
    names: tuple[str, ...]
    op: str
    bias: bool = False

    def added_to(self, plan: Plan) -> Plan:
        return Plan((*plan.pairs, *self.group), plan.bias or self.bias)

    def price(self, costs: Mapping[Node, float]) -> float:
        return sum(costs[node] for node, way in self.group if way == "float")


def advise(
    found: LayerErrors,
    feeds: Sequence[Arrays],
    target: Target,
    *,
    most: int = 5,
    reach_db: float | None = None,
    earlier: Recipe | None = None,
    progress: Progress | None = None,
) -> Advice:
    """At most ``most`` lines, fewer where less would gain next to nothing or ``reach_db`` is reached before. What the
    recipe ``earlier`` corrects already is not corrected again.

    Every node of the quantized model takes a float inference a feed, so fewer ``feeds`` are used where these are large.
    """
    nodes = _quantized_nodes(found)
    if not nodes or not feeds:
        return Advice()
    costs = _costs(found.reference, nodes, feeds[0], target)
    feeds = feeds[: _affordable(found.reference, len(nodes), feeds[0])]
    watch = progress or NoProgress()
    with open_bench(found, nodes) as bench:
        watch.start("injecting errors", len(nodes) * len(feeds))
        harm = bench.harm(feeds, nodes, watch)
        watch.finish()
        ways = bench.open_ways(nodes)
        free, costly = _sweeps(found, nodes, ways, earlier or Recipe())
        if free and free[0].bias:
            watch.start("mean errors", len(feeds))
            bench.learn_means(feeds, watch)
            watch.finish()
        worst = sorted(nodes, key=harm.__getitem__)[:_VARIANTS_FOR]
        search = _Search(bench, feeds[:_TRIED_ON], costs, _work(found.reference, nodes, feeds[0]), watch)
        lines = search.add([], free, most)
        lines = search.add(lines, [*costly, *_single(worst, ways, bench.readers())], most)
        lines.sort(key=lambda line: not line.bias)  # a key of the file stands above its tables
        steps = _steps(bench, feeds, lines, watch)
        gains = [after - before for before, after in itertools.pairwise(steps)]
        if min(gains, default=1.0) < _LEAST_TOGETHER:
            lines = [line for line, gain in zip(lines, gains, strict=True) if gain >= _LEAST_TOGETHER]
            steps = _steps(bench, feeds, lines, watch)
    count = next((i for i, db in enumerate(steps) if reach_db is not None and db >= reach_db), len(lines))
    count = max(range(count + 1), key=lambda i: (round(steps[i], 2), -i))
    made = [_suggestion(line, steps[i + 1] - steps[i], costs) for i, line in enumerate(lines[:count])]
    return Advice(made, steps[0], steps[count], {node.label: db for node, db in harm.items()})


def _steps(bench: Bench, feeds: Sequence[Arrays], lines: Sequence[_Line], watch: Progress) -> list[float]:
    """What is reached with none of the lines, with the first, with the first two ..."""
    plans = [Plan()]
    for line in lines:
        plans.append(line.added_to(plans[-1]))
    watch.start("checking lines together", len(plans) * len(feeds))
    steps = bench.together(feeds, plans, watch)
    watch.finish()
    return steps


def _suggestion(line: _Line, gain: float, costs: Mapping[Node, float]) -> Suggestion:
    if line.bias:
        return Suggestion(line.names, line.op, None, None, gain, 0.0, "bias")
    way = line.group[0][1]
    is_method = way in TRIED_METHODS
    return Suggestion(
        line.names, line.op, None if is_method else way, way if is_method else None, gain, line.price(costs)
    )


# Many nodes at once


def _sweeps(
    found: LayerErrors, nodes: Sequence[Node], ways: Sequence[str], earlier: Recipe
) -> tuple[list[_Line], list[_Line]]:
    """Lines for many nodes: those that cost no time, which are tried first, and those that do."""
    free: list[_Line] = []
    if "bias" not in earlier.corrections:
        free.append(_Line([], ("*",), "all means", bias=True))
    if not any(choice.match == "*" and choice.method is not None for choice in earlier.choices):
        # Chosen again on fewer samples a range only seems better: to those.
        free += [_Line([(node, way) for node in nodes], ("*",), "all ranges") for way in ways if way in TRIED_METHODS]
    kinds: dict[str, list[Node]] = {}
    for node in nodes:
        kinds.setdefault(node.op, []).append(node)
        if node.op == "Conv" and node.get("group", 1) != 1:
            kinds.setdefault("grouped Conv", []).append(node)
    every = Counter(node.op for node in found.quantized.walk())
    named = {kind: (kind,) if every[kind] == len(own) else _labels(own) for kind, own in kinds.items()}
    several = [kind for kind, own in kinds.items() if len(own) >= _LEAST_SET]
    costly = [
        _Line([(node, "int8-dynamic") for node in kinds[kind]], named[kind], f"{len(kinds[kind])} {kind}")
        for kind in several
        if kind in LINEAR and "int8-dynamic" in ways
    ]
    for count in (1, 2):
        for together in itertools.combinations(several, count):
            own = [node for kind in together for node in kinds[kind]]
            names = tuple(name for kind in together for name in named[kind])
            costly.append(_float_line(own, names, " and ".join(f"{len(kinds[kind])} {kind}" for kind in together)))
    cuts = [len(nodes) * index // _STRETCHES for index in range(_STRETCHES + 1)]
    for start, end in itertools.combinations(cuts, 2):
        own = list(nodes[start:end])
        if len(own) >= _LEAST_SET and end - start <= len(nodes) // 2:
            costly.append(_float_line(own, _labels(own), f"{len(own)} nodes in a row"))
    return free, costly


def _float_line(nodes: Sequence[Node], names: tuple[str, ...], what: str) -> _Line:
    return _Line([(node, "float") for node in nodes], names, what)


def _labels(nodes: Sequence[Node]) -> tuple[str, ...]:
    return tuple(node.label for node in nodes)


def _single(nodes: Sequence[Node], ways: Sequence[str], readers: Mapping[Node, set[Node]]) -> list[_Line]:
    """Lines for one node each. One in float alone is still quantized for its readers, so also together with them."""
    lines = []
    for node in nodes:
        lines.append(_float_line([node], (node.label,), node.op))
        others = sorted(readers[node], key=lambda one: one.label)
        if 0 < len(others) <= _MOST_READERS:
            own = [node, *others]
            lines.append(_float_line(own, _labels(own), " and ".join(dict.fromkeys(one.op for one in own))))
        for way in ways if len(lines) < _MOST_SINGLE else ():
            if way in TRIED_METHODS or node.op in LINEAR:
                lines.append(_Line([(node, way)], (node.label,), node.op))
    return lines


@dataclass(frozen=True, slots=True)
class _Search:
    """Greedy: the line that gains most decibels per percent of time, measured together with those chosen before it."""

    bench: Bench
    feeds: Sequence[Arrays]
    costs: Mapping[Node, float]
    work: Mapping[Node, float]
    watch: Progress

    def add(self, chosen: Sequence[_Line], candidates: Sequence[_Line], most: int) -> list[_Line]:
        """The chosen lines and those of the candidates that gain enough after them. What gained most before is tried
        again after each choice; what gains little now will hardly gain more later."""
        lines = list(chosen)
        open_ = [line for line in candidates if self._affordable(lines, line)]
        gains = self._gains(lines, open_)
        ranked = sorted(zip(open_, gains, strict=True), key=self._worth)
        while len(lines) < most:
            ranked = [(line, gain) for line, gain in ranked if gain > _least(line)]
            if not ranked:
                break
            line, _ = ranked.pop(0)
            lines.append(line)
            done = {node for node, _ in line.group}
            ranked = [
                pair
                for pair in ranked
                if not (pair[0].group and {node for node, _ in pair[0].group} <= done)
                and self._affordable(lines, pair[0])
            ]
            head = [line for line, _ in ranked[:_TRIED_AGAIN]]
            gains = self._gains(lines, head)
            again = sorted(zip(head, gains, strict=True), key=self._worth)
            ranked = [*again, *ranked[_TRIED_AGAIN:]]
        return lines

    def _affordable(self, lines: Sequence[_Line], line: _Line) -> bool:
        """Whether most of the work stays on integers and most of their speed with it; single nodes are no matter."""
        if len(line.group) < _LEAST_SET:
            return True
        floats = {node for one in (*lines, line) for node, way in one.group if way == "float"}
        slower = sum(max(self.costs[node], 0.0) for node in floats)
        return slower <= _MOST_PERCENT and sum(self.work[node] for node in floats) <= _MOST_WORK

    def _gains(self, lines: Sequence[_Line], candidates: Sequence[_Line]) -> list[float]:
        plan = Plan()
        for line in lines:
            plan = line.added_to(plan)
        self.watch.start("trying lines", (len(candidates) + 1) * len(self.feeds))
        plans = [plan, *(line.added_to(plan) for line in candidates)]
        now, *then = self.bench.together(self.feeds, plans, self.watch)
        self.watch.finish()
        return [after - now for after in then]

    def _worth(self, tried: tuple[_Line, float]) -> float:
        line, gain = tried
        return -gain / (_PRICE_OF_A_LINE + max(line.price(self.costs), 0.0))


def _least(line: _Line) -> float:
    """What a line has to gain, in dB; another range is easily fitted to the samples at hand."""
    if len(line.group) != 1:
        return _LEAST_SWEEP
    return _LEAST_GAIN if line.group[0][1] == "float" else _LEAST_OTHER


_LEAST_GAIN, _LEAST_OTHER, _LEAST_SWEEP, _LEAST_TOGETHER = 0.1, 0.4, 0.3, 0.1
_TRIED_ON = 3
"""Feeds on which lines are tried; the chosen ones are checked on all."""
_MOST_SINGLE = 40
_PRICE_OF_A_LINE = 0.5
"""In percent of time, so that what costs nothing has a price too."""
_MOST_PERCENT, _MOST_WORK = 30.0, 0.5
"""Of the model's time; a set that costs more is no advice."""
_LEAST_SET, _STRETCHES, _MOST_READERS, _TRIED_AGAIN = 3, 6, 4, 6


def _quantized_nodes(found: LayerErrors) -> list[Node]:
    """Nodes of the float model whose results carry an error of their own, in order."""
    noisy = [layer for layer in found.layers if layer.own is not None and layer.own_db < EXACT]
    return list(dict.fromkeys(layer.unit.node for layer in noisy))


def _affordable(reference: Model, nodes: int, feed: Arrays) -> int:
    """On how many feeds to inject: from the work that it is, never by a clock."""
    names = {value.name for value in reference.graph.inputs}
    sized = with_input_shapes(reference, {name: np.shape(array) for name, array in feed.items() if name in names})
    work = max(model_cost(sized).macs, 1) * (nodes + 60)
    return int(np.clip(_BUDGET // work, _FEWEST, _MOST))


_BUDGET, _FEWEST, _MOST = 100_000_000_000, 4, 24
"""Multiply-accumulates; some seconds of one thread."""


def _work(reference: Model, nodes: Sequence[Node], feed: Arrays) -> dict[Node, float]:
    """The share of the model's multiply-accumulates that each node does."""
    names = {value.name for value in reference.graph.inputs}
    sized = with_input_shapes(reference, {name: np.shape(array) for name, array in feed.items() if name in names})
    copies = dict(zip(reference.walk(), sized.walk(), strict=True))
    macs = {node: float(node_cost(copies[node]).macs or 0) for node in nodes}
    total = max(sum(macs.values()), 1.0)
    return {node: count / total for node, count in macs.items()}


def _costs(reference: Model, nodes: Sequence[Node], feed: Arrays, target: Target) -> dict[Node, float]:
    """Percent of the quantized model's time that each node costs in float. 0 where the target has no integer form."""
    names = {value.name for value in reference.graph.inputs}
    sized = with_input_shapes(reference, {name: np.shape(array) for name, array in feed.items() if name in names})
    copies = dict(zip(reference.walk(), sized.walk(), strict=True))
    table = target.cost
    whole = set(nodes)
    total = sum(table.node_us_as(copy, node in whole) for node, copy in copies.items())
    costs = {}
    for node in nodes:
        copy = copies[node]
        slower = table.node_us_as(copy, False) - table.node_us_as(copy, True)
        source = copy.input(0)
        conversion = table.conversion_us(source) if source is not None else 0.0
        slower += -conversion if node.op in LINEAR else conversion + table.conversion_us(copy.outputs[0])
        costs[node] = 100 * slower / max(total, 1e-9)
    return costs
