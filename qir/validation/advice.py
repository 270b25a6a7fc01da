"""What to do about the error of a quantized model: what to correct, whose ranges to choose in another way, what to
keep in float or give more bits, and how many decibels that should bring.

A node's own error says little about the harm that it does at the outputs, so errors are injected into the float model
(see ``injection``). First what costs no time: a bias correction, a threshold method for all. Then lines for nodes,
alone, with their readers, of a kind or in a row: the one that gains most less its price, measured together with the
lines before it; again and again. Last, what has become needless is left out: lines, and kinds of operators in them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qir.analysis.cost import model_cost, with_input_shapes
from qir.ir import Model, Node
from qir.pipeline.contract import NoProgress, Progress
from qir.quant.recipe import METHODS, PRECISIONS, Choice, Method, Precision, Recipe
from qir.targets import Target
from qir.validation.candidates import (
    LEAST_SET,
    Line,
    Prices,
    free_lines,
    of_kinds,
    prices,
    single_lines,
    sweeps,
)
from qir.validation.injection import TRIED_METHODS, Bench, Plan, open_bench
from qir.validation.layers import EXACT, Arrays, LayerErrors

__all__ = ["Advice", "Suggestion", "advise"]

_VARIANTS_FOR = 12
"""Nodes for which other ways are tried one by one: those that do most harm."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One table of a recipe, or a correction. ``nodes``: names, or one operator type, or ``*``; ``op``: what they are.
    ``gain_db``: what it adds to the lines before it, at the worst output; ``cost_percent``: estimated share of the
    model's time that it takes, from the target's cost table; ``size_percent``: by how much it makes the file larger;
    ``by_size``: that is what counts, since nothing but weights is quantized."""

    nodes: tuple[str, ...]
    op: str
    precision: str | None
    method: str | None
    gain_db: float
    cost_percent: float
    correction: str | None = None
    size_percent: float = 0.0
    by_size: bool = False

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
        return f"{gain} predicted, {self.price}"

    @property
    def price(self) -> str:
        return f"{self.size_percent:+.1f} % size" if self.by_size else f"{self.cost_percent:+.1f} % time estimated"

    def as_dict(self) -> dict[str, Any]:
        return {
            "match": self.nodes[0] if len(self.nodes) == 1 else list(self.nodes),
            "op": self.op,
            "precision": self.precision,
            "method": self.method,
            "correction": self.correction,
            "gain_db": round(self.gain_db, 3),
            "cost_percent": round(self.cost_percent, 3),
            "size_percent": round(self.size_percent, 3),
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
    cost = prices(found, nodes, feeds[0], target)
    feeds = feeds[: _affordable(found.reference, len(nodes), feeds[0])]
    watch = progress or NoProgress()
    with open_bench(found, nodes) as bench:
        watch.start("injecting errors", len(nodes) * len(feeds))
        harm = bench.harm(feeds, nodes, watch)
        watch.finish()
        ways = bench.open_ways(nodes)
        free = free_lines(nodes, ways, earlier or Recipe(), cost.stored_only)
        if free and free[0].bias:
            watch.start("mean errors", len(feeds))
            bench.learn_means(feeds, watch)
            watch.finish()
        search = _Search(bench, feeds, cost, watch)
        worst = sorted(nodes, key=harm.__getitem__)[:_VARIANTS_FOR]
        lines = search.add([], free, most, feeds)
        costly = [*sweeps(nodes, ways), *single_lines(worst, ways, bench.readers(), cost)]
        lines = search.pruned(search.add(lines, costly, most, feeds[:_TRIED_ON]))
        lines.sort(key=lambda line: not line.bias)  # a key of the file stands above its tables
        steps = search.steps(lines)
    count = next((i for i, db in enumerate(steps) if reach_db is not None and db >= reach_db), len(lines))
    count = max(range(count + 1), key=lambda i: (round(steps[i], 2), -i))
    made = [_suggestion(line, steps[i + 1] - steps[i], cost) for i, line in enumerate(lines[:count])]
    return Advice(made, steps[0], steps[count], {node.label: db for node, db in harm.items()})


def _suggestion(line: Line, gain: float, cost: Prices) -> Suggestion:
    if line.bias:
        return Suggestion(line.names, line.op, None, None, gain, 0.0, "bias")
    is_method = line.way in TRIED_METHODS
    return Suggestion(
        line.names,
        line.op,
        None if is_method else line.way,
        line.way if is_method else None,
        gain,
        cost.time_of(line),
        size_percent=cost.size_of(line),
        by_size=cost.stored_only,
    )


@dataclass(frozen=True, slots=True)
class _Search:
    """Greedy: the line that gains most decibels less its price, measured together with those chosen before it."""

    bench: Bench
    feeds: Sequence[Arrays]
    cost: Prices
    watch: Progress

    def add(self, chosen: Sequence[Line], candidates: Sequence[Line], most: int, feeds: Sequence[Arrays]) -> list[Line]:
        """The chosen lines and those of the candidates that gain enough after them, on ``feeds``. What gained most
        before is tried again after each choice, on all feeds; what gains little now will hardly gain more later."""
        lines = list(chosen)
        ranked = self._ranked(lines, [line for line in candidates if self._affordable(lines, line)], feeds)
        while len(lines) < most:
            ranked = [(line, worth) for line, worth in ranked if worth > 0]
            head = self._ranked(lines, [line for line, _ in ranked[:_TRIED_AGAIN]], self.feeds)
            if not head or head[0][1] <= 0:
                break
            lines.append(head[0][0])
            done = head[0][0].nodes
            ranked = [
                (line, worth)
                for line, worth in [*head[1:], *ranked[_TRIED_AGAIN:]]
                if not (line.group and line.nodes <= done) and self._affordable(lines, line)
            ]
        return lines

    def pruned(self, lines: Sequence[Line]) -> list[Line]:
        """Without what has become needless: whole lines, and kinds of operators in a line for several."""
        kept = list(lines)
        for line in lines:
            choices: list[list[Line]] = [kept, [one for one in kept if one is not line]]
            kinds = line.kinds if len(line.kinds) > 1 else {}
            for kind in kinds:
                fewer = of_kinds({name: own for name, own in kinds.items() if name != kind})
                choices.append([fewer if one is line else one for one in kept])
            reached = self._reached(choices, self.feeds)
            worth = [db - self._price(choice) for db, choice in zip(reached, choices, strict=True)]
            if worth[1] >= worth[0] - _least(line):
                kept = choices[1]
                continue
            # Kinds that do not pay, all at once: errors of different kinds hardly depend on each other here.
            needless = {kind for kind, one in zip(kinds, worth[2:], strict=True) if one >= worth[0]}
            left = {name: own for name, own in kinds.items() if name not in needless}
            if needless and left:
                kept = [of_kinds(left) if one is line else one for one in kept]
        return kept

    def steps(self, lines: Sequence[Line]) -> list[float]:
        """What is reached with none of the lines, with the first, with the first two ..."""
        return self._reached([lines[:count] for count in range(len(lines) + 1)], self.feeds)

    def _reached(self, choices: Sequence[Sequence[Line]], feeds: Sequence[Arrays]) -> list[float]:
        plans = []
        for lines in choices:
            plan = Plan()
            for line in lines:
                plan = line.added_to(plan)
            plans.append(plan)
        self.watch.start("trying lines", len(plans) * len(feeds))
        reached = self.bench.together(feeds, plans, self.watch)
        self.watch.finish()
        return reached

    def _affordable(self, lines: Sequence[Line], line: Line) -> bool:
        """Whether the file stays small; or most of the work on integers, and most of their speed with it: there single
        nodes are no matter."""
        if self.cost.stored_only:
            return sum(self.cost.size_of(one) for one in (*lines, line)) <= _MOST_SIZE
        if len(line.group) < LEAST_SET:
            return True
        floats = {node for one in (*lines, line) for node, way in one.group if way == "float"}
        slower = sum(max(self.cost.time[node], 0.0) for node in floats)
        return slower <= _MOST_PERCENT and sum(self.cost.work[node] for node in floats) <= _MOST_WORK

    def _ranked(
        self, lines: Sequence[Line], candidates: Sequence[Line], feeds: Sequence[Arrays]
    ) -> list[tuple[Line, float]]:
        """The candidates with their gain less their price and the least gain that counts, best first."""
        if not candidates:
            return []
        now, *then = self._reached([lines, *([*lines, line] for line in candidates)], feeds)
        worth = [db - now - _least(line) - self._price([line]) for db, line in zip(then, candidates, strict=True)]
        return sorted(zip(candidates, worth, strict=True), key=lambda pair: -pair[1])

    def _price(self, lines: Sequence[Line]) -> float:
        """In dB."""
        return sum(max(self.cost.of(line), 0.0) for line in lines) / _PERCENT_A_DB


def _least(line: Line) -> float:
    """What a line has to gain, in dB; another range is easily fitted to the samples at hand."""
    if len(line.group) != 1:
        return _LEAST_SWEEP
    return _LEAST_GAIN if line.way == "float" else _LEAST_OTHER


_LEAST_GAIN, _LEAST_OTHER, _LEAST_SWEEP = 0.1, 0.4, 0.3
_TRIED_ON = 3
"""Feeds on which all lines are tried; those that look best there are tried again on all."""
_TRIED_AGAIN = 6
_PERCENT_A_DB = 12.0
"""Of the model's time, or size, for which a dB is worth it."""
_MOST_PERCENT, _MOST_WORK, _MOST_SIZE = 30.0, 0.5, 60.0
"""Of the model's time, work or size; a set that costs more is no advice."""


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


_BUDGET, _FEWEST, _MOST = 300_000_000_000, 4, 24
"""Multiply-accumulates; some ten seconds of one thread."""
