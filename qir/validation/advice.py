"""What to do about the error of a quantized model: which node to keep in float, which to quantize in another way, and
how many decibels that should bring.

A node's own error says little about the harm that it does at the outputs. So the errors of all nodes, which the cut
model gives, are injected into the float model, one node at a time: one float inference a node and sample, whatever the
format of the quantized file. Noise powers nearly add up, so the gain of a line is what the sum loses; what the lines
do together is injected together at the end.

Other ways to quantize (threshold methods, dynamic activations) are tried the same way: the cut model with other
quantizers gives other errors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qir.analysis.cost import model_cost, with_input_shapes
from qir.calibration.collect import expose
from qir.calibration.thresholds import mse_range, percentile_range
from qir.codegen import runnable
from qir.ir import DType, Interval, Model, Node, TensorType, Value
from qir.pipeline.contract import NoProgress, Progress
from qir.quant.arithmetic import fake_quantize
from qir.quant.recipe import METHODS, PRECISIONS, Choice, Method, Precision, Recipe
from qir.quant.schemes import activation_quant
from qir.runtime.session import OPTIMIZED, OrtRunner
from qir.targets import Target
from qir.validation.alignment import Quantizer, Unit, computes_on_codes, dequantizers
from qir.validation.layers import Arrays, Cut, LayerErrors
from qir.validation.metrics import OutputMetrics

__all__ = ["Advice", "Suggestion", "advise"]

_LINEAR = ("MatMul", "Gemm")
_METHODS = ("minmax", "mse", "percentile")
_VARIANTS_FOR = 20
"""Nodes for which other ways are tried: those that do most harm."""
_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One line of a recipe. ``gain_db``: what it adds to the lines before it, at the worst output; ``cost_percent``:
    estimated share of the model's time that it takes, from the target's cost table."""

    node: str
    op: str
    precision: str | None
    method: str | None
    gain_db: float
    cost_percent: float

    @property
    def choice(self) -> Choice:
        precision: Precision | None = next((one for one in PRECISIONS if one == self.precision), None)
        method: Method | None = next((one for one in METHODS if one == self.method), None)
        gain = f"{self.gain_db:+.1f} dB" if self.gain_db < 100 else "the rest"
        why = f"{gain} predicted, {self.cost_percent:+.1f} % time estimated"
        return Choice(self.node, precision, "qir compare", method, why)

    @property
    def line(self) -> str:
        """As one line of TOML."""
        said = f'precision = "{self.precision}"' if self.precision is not None else f'method = "{self.method}"'
        return f"match = {Recipe((self.choice,)).to_toml().split('match = ')[1].splitlines()[0]}, {said}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "match": self.node,
            "op": self.op,
            "precision": self.precision,
            "method": self.method,
            "gain_db": round(self.gain_db, 3),
            "cost_percent": round(self.cost_percent, 3),
        }


@dataclass(slots=True)
class Advice:
    """``suggestions`` in the order in which they should be taken. ``injected_db``: SQNR at the worst output with all
    errors injected into the float model, to hold against what was measured; ``predicted_db``: with those that the
    suggestions take away left out. ``harm``: for each node, the decibels that its errors alone leave."""

    suggestions: list[Suggestion] = field(default_factory=list)
    injected_db: float = math.inf
    predicted_db: float = math.inf
    harm: dict[str, float] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return Recipe(tuple(suggestion.choice for suggestion in self.suggestions))


def advise(
    found: LayerErrors,
    feeds: Sequence[Arrays],
    target: Target,
    *,
    most: int = 5,
    reach_db: float | None = None,
    progress: Progress | None = None,
) -> Advice:
    """At most ``most`` suggestions, fewer where less would gain next to nothing or ``reach_db`` is reached before.

    Every node of the quantized model takes a float inference a feed, so fewer ``feeds`` are used where these are large.
    """
    nodes = _quantized_nodes(found)
    if not nodes or not feeds:
        return Advice()
    costs = _costs(found.reference, nodes, feeds[0], target)
    feeds = feeds[: _affordable(found.reference, len(nodes), feeds[0])]
    watch = progress or NoProgress()
    with _bench(found, nodes) as bench:
        watch.start("injecting errors", None)
        plain = bench.noise(bench.cut, feeds, nodes, watch)
        harm = {node.label: _decibels(max(noise.values(), default=0.0)) for node, noise in plain.items()}
        worst = sorted(nodes, key=lambda node: -max(plain[node].values(), default=0.0))[:_VARIANTS_FOR]
        tried = {"float": bench.noise(None, feeds, worst, watch)}
        tried |= {name: bench.noise(cut, feeds, worst, watch) for name, cut in bench.variants(worst)}
        watch.finish()
        ordered = _choose(plain, tried, costs, bench.readers(), 2 * most)
        # Errors add up only nearly: what the lines do together decides which of them stay, and what is promised.
        reached = bench.together(feeds, _prefixes(ordered))
        gains = [after - before for before, after in itertools.pairwise(reached)]
        kept = [group for group, gain in zip(ordered, gains, strict=True) if gain > _LEAST_TOGETHER]
        while sum(map(len, kept)) > most:
            kept.pop()
        steps = bench.together(feeds, _prefixes(kept))
        count = next((i for i, db in enumerate(steps) if reach_db is not None and db >= reach_db), len(kept))
        count = max(range(count + 1), key=lambda i: (round(steps[i], 2), -i))
        suggestions = [
            _suggestion(node, way, (steps[i + 1] - steps[i]) / len(group), costs)
            for i, group in enumerate(kept[:count])
            for node, way in group
        ]
        return Advice(suggestions, steps[0], steps[count], harm)


def _suggestion(node: Node, way: str, gain: float, costs: Mapping[Node, float]) -> Suggestion:
    is_method = way in _METHODS
    cost = costs[node] if way == "float" else 0.0
    return Suggestion(node.label, node.op, None if is_method else way, way if is_method else None, gain, cost)


Noise = dict[str, float]
"""Noise power over signal power, by output."""

Group = list[tuple[Node, str]]
"""Nodes and what to do with them: ``float``, a threshold method, or ``int8-dynamic``."""


def _prefixes(groups: Sequence[Group]) -> list[Group]:
    return [[pair for group in groups[:count] for pair in group] for count in range(len(groups) + 1)]


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
            gain = _decibels(max(after.values())) - _decibels(max(total.values()))
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


_LEAST_GAIN, _LEAST_OTHER, _LEAST_TOGETHER = 0.1, 0.4, 0.05
"""dB; another range is easily fitted to the samples at hand."""


class _Bench:
    """The float model with a place for an error behind every quantized node, and the cut quantized one."""

    def __init__(
        self,
        found: LayerErrors,
        injected: OrtRunner,
        places: Mapping[Value, str],
        exposed: OrtRunner,
        names: Mapping[str, Value],
        cut: Cut,
        stack: ExitStack,
        units: Mapping[Node, list[Unit]],
    ) -> None:
        self._found = found
        self._injected = injected
        self._places = places
        self._exposed = exposed
        self._names = names
        self.cut = cut
        self._stack = stack
        self._units = units
        self._cuts: dict[str, Cut] = {}
        self._readers = _integer_readers(found)

    def noise(
        self, cut: Cut | None, feeds: Sequence[Arrays], nodes: Sequence[Node], watch: Progress
    ) -> dict[Node, Noise]:
        """What each node's errors alone put on the outputs; without a cut model, what is left of them in float."""
        metrics: dict[Node, dict[str, OutputMetrics]] = {node: {} for node in nodes}
        for feed in feeds:
            values = self._values(feed)
            errors = {} if cut is None else self._errors(cut, feed, values)
            expected = self._run(feed, {})
            for node in nodes:
                if cut is None:
                    errors = self._left_over(node, values, {node})
                got = self._run(feed, {unit: errors[unit] for unit in self._units[node]})
                _compare(expected, got, metrics[node])
            watch.advance()
        return {node: {name: _ratio(one) for name, one in by.items()} for node, by in metrics.items()}

    def together(self, feeds: Sequence[Arrays], plans: Sequence[Group]) -> list[float]:
        """SQNR in dB of the worst output with all errors, for each plan: those of its nodes as its ways leave them."""
        metrics: list[dict[str, OutputMetrics]] = [{} for _ in plans]
        used = {way for plan in plans for _, way in plan if way != "float"}
        for feed in feeds:
            values = self._values(feed)
            plain = self._errors(self.cut, feed, values)
            others = {way: self._errors(self._cuts[way], feed, values) for way in sorted(used)}
            expected = self._run(feed, {})
            for plan, found in zip(plans, metrics, strict=True):
                errors = dict(plain)
                floats = {node for node, way in plan if way == "float"}
                for node, way in plan:
                    left = self._left_over(node, values, floats) if way == "float" else others[way]
                    errors.update((unit, left[unit]) for unit in self._units[node])
                _compare(expected, self._run(feed, errors), found)
        return [_decibels(max((_ratio(one) for one in found.values()), default=0.0)) for found in metrics]

    def readers(self) -> dict[Node, set[Node | None]]:
        """For each node, who quantizes what it hands out, were it in float."""
        return {
            node: set().union(*(self._readers.get(unit, set()) for unit in units))
            for node, units in self._units.items()
        }

    def _left_over(self, node: Node, values: Mapping[Value, np.ndarray], floats: set[Node]) -> dict[Unit, np.ndarray]:
        """The errors of a node in float: readers on integers still quantize what it hands them."""
        errors: dict[Unit, np.ndarray] = {}
        for unit in self._units[node]:
            own = next((one.quant for one in unit.quantizers if one.is_result), None)
            if own is None or self._readers.get(unit, set()) <= floats:
                errors[unit] = _NOTHING
                continue
            factor = self.cut.factors.get(unit.value)
            value = values[unit.value].astype(np.float32)
            scaled = value if factor is None else value * factor
            error = fake_quantize(scaled, own) - scaled
            errors[unit] = error if factor is None else error / factor
        return errors

    def variants(self, nodes: Sequence[Node]) -> Iterator[tuple[str, Cut]]:
        """The cut model with all static quantizers of these nodes made in another way, where there are any."""
        histograms = {
            grid.quantizer.node: (grid.quantizer, grid.histogram)
            for layer in self._found.layers
            if layer.unit.node in set(nodes)
            for grid in layer.grids
        }
        for method in _METHODS:
            ranges = {
                quantizer.node: (quantizer, _range(method, histogram)) for quantizer, histogram in histograms.values()
            }
            yield from self._variant(method, lambda clones, ranges=ranges: _requantize(clones, ranges))
        inputs = [
            quantizer.node
            for units in (self._units[node] for node in nodes if node.op in _LINEAR)
            for unit in units
            for quantizer in unit.quantizers
            if not quantizer.is_result and quantizer.quant.dtype in (DType.UINT8, DType.INT8)
        ]
        if inputs:
            yield from self._variant("int8-dynamic", lambda clones: _make_dynamic(clones, inputs))

    def _variant(self, name: str, edit: Any) -> Iterator[tuple[str, Cut]]:
        units = [layer.unit for layer in self._found.layers]
        cut = self._stack.enter_context(Cut.open(self._found.quantized, units, self.cut.factors, edit))
        self._cuts[name] = cut
        yield name, cut

    def _values(self, feed: Arrays) -> dict[Value, np.ndarray]:
        got = self._exposed.run(_taken(self._exposed, feed), list(self._names))
        return {value: np.asarray(got[name]) for name, value in self._names.items()}

    def _errors(self, cut: Cut, feed: Arrays, values: Mapping[Value, np.ndarray]) -> dict[Unit, np.ndarray]:
        made = cut.run(feed, values)
        with np.errstate(invalid="ignore", over="ignore"):
            errors = {unit: made[unit] - values[unit.value] for units in self._units.values() for unit in units}
        return {unit: np.where(np.isfinite(error), error, 0.0) for unit, error in errors.items()}

    def _run(self, feed: Arrays, errors: Mapping[Unit, np.ndarray]) -> dict[str, Any]:
        kinds = {spec.name: spec.dtype for spec in self._injected.inputs}
        feeds: dict[str, Any] = {name: np.zeros((), kinds[name]) for name in self._places.values()}
        feeds |= {
            self._places[unit.value]: error.astype(kinds[self._places[unit.value]], copy=False)
            for unit, error in errors.items()
        }
        return self._injected.run({**_taken(self._injected, feed), **feeds})


_NOTHING = np.zeros((), np.float32)


@contextmanager
def _bench(found: LayerErrors, nodes: Sequence[Node]) -> Iterator[_Bench]:
    units: dict[Node, list[Unit]] = {node: [] for node in nodes}
    for layer in found.layers:
        if layer.unit.node in units and layer.own is not None:
            units[layer.unit.node].append(layer.unit)
    with ExitStack() as stack:
        model, places = _with_places(found.reference, [unit.value for own in units.values() for unit in own])
        exposed, names = expose(found.reference, [layer.unit.value for layer in found.layers])
        injected = OrtRunner(stack.enter_context(runnable(model, annotations="drop")), OPTIMIZED)
        values = OrtRunner(stack.enter_context(runnable(exposed, annotations="drop")), OPTIMIZED)
        every = [layer.unit for layer in found.layers]
        cut = stack.enter_context(Cut.open(found.quantized, every, found.factors))
        yield _Bench(found, injected, places, values, names, cut, stack, units)


def _with_places(reference: Model, values: Sequence[Value]) -> tuple[Model, dict[Value, str]]:
    """The float model with an Add of a further input behind each value; the input may be a scalar 0."""
    clone = reference.clone_with_map()
    graph = clone.model.graph
    places: dict[Value, str] = {}
    for index, value in enumerate(dict.fromkeys(values)):
        copy = clone.values[value]
        maker = copy.producer
        assert maker is not None and isinstance(copy.type, TensorType)
        error = graph.add_input(f"qir.error.{index}", TensorType(copy.type.dtype, None))
        add = graph.add_node("Add", [copy, error], types=[copy.type], before=maker.next)
        copy.replace_all_uses(add.output, where=lambda use, add=add: use.node is not add)  # type: ignore[misc]
        places[value] = error.name
    return clone.model, places


def _integer_readers(found: LayerErrors) -> dict[Unit, set[Node | None]]:
    """Which nodes read the codes of each unit; None for one that is no node of the float model."""
    owners = {layer.unit.operator: layer.unit.node for layer in found.layers}
    readers: dict[Unit, set[Node | None]] = {}
    for unit in (layer.unit for layer in found.layers):
        if unit.image is unit.result:
            continue
        quantizer = next(use.node for use in unit.result.uses)
        assert quantizer is not None
        users = (use.node for node in dequantizers(quantizer) for use in node.output.uses)
        readers[unit] = {owners.get(user) for user in users if user is not None and computes_on_codes(user)}
    return readers


def _requantize(clones: Mapping[Node, Node], ranges: Mapping[Node, tuple[Quantizer, Interval]]) -> None:
    """Let quantizers, and what dequantizes their results, cover other ranges."""
    for node, (quantizer, interval) in ranges.items():
        quant = activation_quant(interval, quantizer.quant.dtype)
        clone = clones[node]
        graph = clone.graph
        assert graph is not None
        scale = graph.add_constant(np.float32(quant.scale[0]), "qir.scale")
        zero = graph.add_constant(np.asarray(quant.zero_point[0]).astype(quant.dtype.numpy), "qir.zero")
        for one in [clone, *dequantizers(clone)]:
            one.set_input(1, scale)
            one.set_input(2, zero)


def _make_dynamic(clones: Mapping[Node, Node], quantizers: Sequence[Node]) -> None:
    for node in dict.fromkeys(quantizers):
        clone = clones[node]
        graph = clone.graph
        assert graph is not None
        dynamic = graph.add_node("DynamicQuantizeLinear", [clone.input(0)], outputs=3, before=clone)
        for one in list(dequantizers(clone)):
            one.set_inputs(dynamic.outputs)


def _range(method: str, histogram: Any) -> Interval:
    match method:
        case "mse":
            return mse_range(histogram)
        case "percentile":
            return percentile_range(histogram, 99.99)
        case _:
            interval: Interval = histogram.interval
            return interval


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
        slower += -conversion if node.op in _LINEAR else conversion + table.conversion_us(copy.outputs[0])
        costs[node] = 100 * slower / max(total, 1e-9)
    return costs


def _compare(expected: Mapping[str, Any], got: Mapping[str, Any], metrics: dict[str, OutputMetrics]) -> None:
    for name, wanted in expected.items():
        if isinstance(wanted, np.ndarray) and wanted.dtype.kind == "f":
            metrics.setdefault(name, OutputMetrics(name)).add(wanted, got[name])


def _ratio(metrics: OutputMetrics) -> float:
    """Noise power over signal power; what cannot be compared counts as all noise."""
    db = metrics.sqnr_db
    return 0.0 if math.isnan(db) else min(10 ** (-db / 10), 1e12) if db > -math.inf else 1e12


def _decibels(ratio: float) -> float:
    return -10 * math.log10(max(ratio, _TINY))


def _taken(runner: OrtRunner, feed: Arrays) -> dict[str, Any]:
    names = {spec.name for spec in runner.inputs}
    return {name: array for name, array in feed.items() if name in names}
