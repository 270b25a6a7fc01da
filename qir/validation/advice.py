"""What to do about the error of a quantized model: what to correct, whose ranges to choose in another way, what to
keep in float, and how many decibels that should bring.

A node's own error says little about the harm that it does at the outputs, so errors are injected into the float model
(see ``injection``). First what helps many nodes at once and costs no time: a bias correction, a threshold method for
all. Then sets of nodes of one kind, then single ones, by decibels per percent of time: noise powers nearly add up, so
the gain of a node is what the sum loses. What the lines do together is injected together at the end, and a line that
adds nothing to those before it is not given.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qir.analysis.cost import model_cost, with_input_shapes
from qir.ir import Model, Node
from qir.pipeline.contract import NoProgress, Progress
from qir.quant.recipe import METHODS, PRECISIONS, Choice, Method, Precision, Recipe
from qir.targets import Target
from qir.validation.injection import LINEAR, TRIED_METHODS, Bench, Group, Noise, Plan, decibels, open_bench
from qir.validation.layers import Arrays, LayerErrors

__all__ = ["Advice", "Suggestion", "advise"]

_VARIANTS_FOR = 20
"""Nodes for which other ways are tried one by one: those that do most harm."""
_TINY = 1e-30


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
        harm = bench.noise(None, feeds, nodes, watch)
        watch.finish()
        ways = bench.open_ways(nodes)
        lines = _sweeping(bench, feeds, _sweeps(found, nodes, ways, earlier or Recipe()), costs, most, watch)
        plan = Plan()
        for line in lines:
            plan = line.added_to(plan)
        lines += _single(bench, feeds, nodes, ways, plan, costs, most - len(lines), watch)
        steps = _steps(bench, feeds, lines, watch)
        gains = [after - before for before, after in itertools.pairwise(steps)]
        lines = [line for line, gain in zip(lines, gains, strict=True) if gain > _LEAST_TOGETHER]
        steps = _steps(bench, feeds, lines, watch)
    count = next((i for i, db in enumerate(steps) if reach_db is not None and db >= reach_db), len(lines))
    count = max(range(count + 1), key=lambda i: (round(steps[i], 2), -i))
    made = [_suggestion(line, steps[i + 1] - steps[i], costs) for i, line in enumerate(lines[:count])]
    left = {node.label: decibels(max(noise.values(), default=0.0)) for node, noise in harm.items()}
    return Advice(made, steps[0], steps[count], left)


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


def _sweeps(found: LayerErrors, nodes: Sequence[Node], ways: Sequence[str], earlier: Recipe) -> list[list[_Line]]:
    """Lines for many nodes, in stages: each stage is finished before the next is begun."""
    free: list[_Line] = []
    if "bias" not in earlier.corrections:
        free.append(_Line([], ("*",), "all means", bias=True))
    free += [_Line([(node, way) for node in nodes], ("*",), "all ranges") for way in ways if way in TRIED_METHODS]
    kinds: dict[str, list[Node]] = {}
    for node in nodes:
        kinds.setdefault(node.op, []).append(node)
        if node.op == "Conv" and node.get("group", 1) != 1:
            kinds.setdefault("grouped Conv", []).append(node)
    every = {op: {node.label for node in found.quantized.walk() if node.op == op} for op in kinds}
    costly: list[_Line] = []
    for kind, own in kinds.items():
        if len(own) < _LEAST_SET:
            continue
        whole = kind in every and len(every[kind]) == len(own)
        names = (kind,) if whole else tuple(node.label for node in own)
        for way in ("float", *(way for way in ways if way == "int8-dynamic" and kind in LINEAR)):
            costly.append(_Line([(node, way) for node in own], names, f"{len(own)} {kind}"))
    return [free, costly]


def _sweeping(
    bench: Bench,
    feeds: Sequence[Arrays],
    stages: Sequence[Sequence[_Line]],
    costs: Mapping[Node, float],
    most: int,
    watch: Progress,
) -> list[_Line]:
    """Greedily, the effect of every line measured together with the chosen ones."""
    if any(line.bias for stage in stages for line in stage):
        watch.start("mean errors", len(feeds))
        bench.learn_means(feeds, watch)
        watch.finish()
    chosen: list[_Line] = []
    plan = Plan()
    for stage in stages:
        remaining = [line for line in stage if line.price(costs) <= _MOST_PERCENT]
        while remaining and len(chosen) < most:
            watch.start("trying lines", (len(remaining) + 1) * len(feeds))
            now, *then = bench.together(feeds, [plan, *(line.added_to(plan) for line in remaining)], watch)
            watch.finish()
            gains = [after - now for after in then]
            good = [index for index, gain in enumerate(gains) if gain > _LEAST_SWEEP]
            if not good:
                break
            best = max(good, key=lambda index: gains[index] / (0.5 + max(remaining[index].price(costs), 0.0)))
            chosen.append(remaining[best])
            plan = remaining[best].added_to(plan)
            # What gains little now will hardly gain more later; of ranges for the same nodes one choice is enough.
            remaining = [
                line
                for index, line in enumerate(remaining)
                if line is not chosen[-1]
                and (line.bias or (index in good and (chosen[-1].bias or line.names != chosen[-1].names)))
            ]
    return chosen


# Single nodes


def _single(
    bench: Bench,
    feeds: Sequence[Arrays],
    nodes: Sequence[Node],
    ways: Sequence[str],
    plan: Plan,
    costs: Mapping[Node, float],
    most: int,
    watch: Progress,
) -> list[_Line]:
    """Lines for the nodes that a plan leaves as they are, or whose ranges it chooses."""
    done = dict(plan.pairs)
    open_ = [node for node in nodes if done.get(node) in (None, *TRIED_METHODS)]
    if most <= 0 or not open_:
        return []
    watch.start("trying nodes", len(feeds) * (len(open_) + _VARIANTS_FOR * (1 + len(ways))))
    plain: dict[Node, Noise] = {}
    for way in dict.fromkeys(done.get(node) for node in open_):
        those = [node for node in open_ if done.get(node) == way]
        plain |= bench.noise(way, feeds, those, watch, plan.bias)
    worst = sorted(open_, key=lambda node: -max(plain[node].values(), default=0.0))[:_VARIANTS_FOR]
    tried = {way: bench.noise(way, feeds, worst, watch, plan.bias) for way in ("float", *ways)}
    watch.finish()
    groups = _choose(plain, tried, costs, bench.readers(), _NODES_PER_LINE * most)
    plans = [plan]
    for group in groups:
        plans.append(plans[-1].with_(group))
    watch.start("checking lines together", len(plans) * len(feeds))
    reached = bench.together(feeds, plans, watch)
    watch.finish()
    gains = [after - before for before, after in itertools.pairwise(reached)]
    return _tables([group for group, gain in zip(groups, gains, strict=True) if gain > _LEAST_TOGETHER], most)


def _tables(groups: Sequence[Group], most: int) -> list[_Line]:
    """Groups as at most so many lines: those that come first stand alone, the others share a table by what is done."""
    alone = [group for group in groups if len({way for _, way in group}) == 1]
    count = len(alone) if len(alone) <= most else max(most - 2, 0)
    lines = [_line(group) for group in alone[:count]]
    shared: dict[str, Group] = {}
    for group in alone[count:]:
        shared.setdefault(group[0][1], []).extend(group)
    return [*lines, *(_line(group) for group in list(shared.values())[: most - count])]


def _line(group: Group) -> _Line:
    ops = sorted({node.op for node, _ in group})
    return _Line(group, tuple(node.label for node, _ in group), ops[0] if len(ops) == 1 else "several")


def _choose(
    plain: Mapping[Node, Noise],
    tried: Mapping[str, Mapping[Node, Noise]],
    costs: Mapping[Node, float],
    readers: Mapping[Node, set[Node | None]],
    most: int,
) -> list[Group]:
    """Greedily, decibels per percent of time. A node in float alone leaves its result to be quantized for its readers,
    so a node is also considered together with them."""
    floats: set[Node] = set()
    total = _sum(plain.values())
    remaining = dict(plain)
    chosen: list[Group] = []
    while remaining and total and sum(map(len, chosen)) < most:
        best: tuple[float, Group, Noise] | None = None
        for group in _groups(remaining, tried, readers):
            after = _sum([total], [remaining[node] for node, _ in group])
            new = floats | {node for node, way in group if way == "float"}
            rests = [tried[way][node] for node, way in group if way != "float" or not readers[node] <= new]
            gone = [tried["float"][node] for node in floats if not readers[node] <= floats and readers[node] <= new]
            after = _sum([after, *rests], gone)
            gain = decibels(max(after.values())) - decibels(max(total.values()))
            price = 0.5 + sum(max(costs[node], 0.0) for node, way in group if way == "float")
            least = _LEAST_GAIN * len(group) if group[0][1] == "float" else _LEAST_OTHER
            if gain > least and (best is None or gain / price > best[0]):
                best = (gain / price, group, after)
        if best is None:
            break
        _, group, total = best
        for node, way in group:
            del remaining[node]
            floats |= {node} if way == "float" else set()
        chosen.append(group)
    return chosen


def _groups(
    remaining: Mapping[Node, Noise], tried: Mapping[str, Mapping[Node, Noise]], readers: Mapping[Node, set[Node | None]]
) -> Iterator[Group]:
    for way, by in tried.items():
        for node in by:
            if node not in remaining:
                continue
            yield [(node, way)]
            others = [one for one in readers[node] if one is not None and one is not node]
            if way == "float" and 0 < len(others) <= 2 and all(one in remaining and one in by for one in others):
                yield [(node, way), *((one, way) for one in sorted(others, key=list(remaining).index))]


def _sum(plus: Iterable[Noise], minus: Iterable[Noise] = ()) -> Noise:
    total: Noise = {}
    for sign, noises in ((1.0, plus), (-1.0, minus)):
        for noise in noises:
            for name, power in noise.items():
                total[name] = max(total.get(name, 0.0) + sign * power, _TINY)
    return total


_LEAST_GAIN, _LEAST_OTHER, _LEAST_TOGETHER, _LEAST_SWEEP = 0.1, 0.4, 0.05, 0.5
"""dB; another range is easily fitted to the samples at hand."""
_MOST_PERCENT = 30.0
"""Of the model's time; a set that costs more is no advice."""
_LEAST_SET, _NODES_PER_LINE = 3, 4


def _quantized_nodes(found: LayerErrors) -> list[Node]:
    """Nodes of the float model whose results carry an error of their own, in order."""
    noisy = [layer for layer in found.layers if layer.own is not None and layer.own_db < _EXACT]
    return list(dict.fromkeys(layer.unit.node for layer in noisy if layer.unit.kind != "float"))


_EXACT = 110.0
"""dB at which an error is no more than float arithmetic's."""


def _affordable(reference: Model, nodes: int, feed: Arrays) -> int:
    """On how many feeds to inject: from the work that it is, never by a clock."""
    names = {value.name for value in reference.graph.inputs}
    sized = with_input_shapes(reference, {name: np.shape(array) for name, array in feed.items() if name in names})
    work = max(model_cost(sized).macs, 1) * (nodes + 60)
    return int(np.clip(_BUDGET // work, _FEWEST, _MOST))


_BUDGET, _FEWEST, _MOST = 100_000_000_000, 4, 24
"""Multiply-accumulates; some seconds of one thread."""


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
