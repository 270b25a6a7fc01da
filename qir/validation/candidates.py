"""The recipe lines that ``compare`` may advise: what they change, what they cost, and which of them to try."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qir.analysis.cost import node_cost, with_input_shapes
from qir.ir import Node, Tensor, Value
from qir.quant.recipe import Recipe
from qir.targets import Target
from qir.validation.alignment import Unit
from qir.validation.injection import LINEAR, MORE_BITS, TRIED_METHODS, Group, Plan
from qir.validation.layers import Arrays, LayerErrors

__all__ = ["LEAST_SET", "Line", "Prices", "free_lines", "of_kinds", "prices", "single_lines", "sweeps"]

_GROUPED = "grouped Conv"
_HEAVY = (*LINEAR, "Conv", "ConvTranspose", "LSTM", "GRU", "RNN")
LEAST_SET, _STRETCHES, _MOST_READERS, _MOST_SINGLE = 3, 6, 4, 40


@dataclass(frozen=True, slots=True)
class Line:
    """A table of the recipe to be: its nodes, how they are named, and what happens to them. ``kinds``: where the names
    are operators', the nodes of each."""

    group: Group
    names: tuple[str, ...]
    op: str
    bias: bool = False
    kinds: Mapping[str, Sequence[Node]] = field(default_factory=dict)

    @property
    def way(self) -> str | None:
        return self.group[0][1] if self.group else None

    @property
    def nodes(self) -> set[Node]:
        return {node for node, _ in self.group}

    def added_to(self, plan: Plan) -> Plan:
        return Plan((*plan.pairs, *self.group), plan.bias or self.bias)


@dataclass(frozen=True, slots=True)
class Prices:
    """What a node costs in float. ``time``: percent of the quantized model's, 0 for a node of which only the weights
    are quantized. ``size``: percent of the quantized model's bytes. ``work``: its share of all multiply-accumulates.
    ``bits``: of its coded weights, where these are all that is quantized and fewer than 8."""

    time: Mapping[Node, float]
    size: Mapping[Node, float]
    work: Mapping[Node, float]
    bits: Mapping[Node, int]
    stored_only: bool

    def time_of(self, line: Line) -> float:
        return sum(self.time[node] for node, way in line.group if way == "float")

    def size_of(self, line: Line) -> float:
        grown = {node: self._growth(node) if way == MORE_BITS else 1.0 for node, way in line.group}
        return sum(self.size[node] * grown[node] for node, way in line.group if way in ("float", MORE_BITS))

    def of(self, line: Line) -> float:
        """In percent of what the file is quantized for: of time, or of size where only weights are."""
        return self.size_of(line) if self.stored_only else self.time_of(line)

    def _growth(self, node: Node) -> float:
        bits = self.bits[node]
        return (8 - bits) / (32 - bits)


def prices(found: LayerErrors, nodes: Sequence[Node], feed: Arrays, target: Target) -> Prices:
    """From the target's cost table; time is 0 where the target has no integer form."""
    reference = found.reference
    names = {value.name for value in reference.graph.inputs}
    sized = with_input_shapes(reference, {name: np.shape(array) for name, array in feed.items() if name in names})
    copies = dict(zip(reference.walk(), sized.walk(), strict=True))
    units: dict[Node, list[Unit]] = {node: [] for node in nodes}
    for layer in found.layers:
        if layer.unit.node in units:
            units[layer.unit.node].append(layer.unit)
    computed = {node for node in nodes if any(unit.kind in ("static", "dynamic") for unit in units[node])}
    table = target.cost
    total = sum(table.node_us_as(copy, node in computed) for node, copy in copies.items())
    time: dict[Node, float] = dict.fromkeys(nodes, 0.0)
    for node in computed:
        copy = copies[node]
        slower = table.node_us_as(copy, False) - table.node_us_as(copy, True)
        source = copy.input(0)
        conversion = table.conversion_us(source) if source is not None else 0.0
        slower += -conversion if node.op in LINEAR else conversion + table.conversion_us(copy.outputs[0])
        time[node] = 100 * slower / max(total, 1e-9)
    macs = {node: float(node_cost(copies[node]).macs or 0) for node in nodes}
    work = {node: count / max(sum(macs.values()), 1.0) for node, count in macs.items()}
    whole, stored = _bytes(reference.values()), max(_bytes(found.quantized.values()), 1)
    bits = {node: min((unit.bits for unit in units[node] if unit.bits is not None), default=None) for node in nodes}
    size: dict[Node, float] = {}
    for node in nodes:
        own = _bytes(value for value in node.inputs if value is not None)
        now = (bits[node] or 8) / 32 if node in computed or bits[node] else min(stored / max(whole, 1), 1.0)
        size[node] = 100 * own * (1 - now) / stored
    fewer = {node: few for node, few in bits.items() if few is not None and few < 8 and node not in computed}
    return Prices(time, size, work, fewer, not computed)


def _bytes(values: Iterable[Value]) -> int:
    return sum(value.const.nbytes for value in values if isinstance(value.const, Tensor))


def free_lines(nodes: Sequence[Node], ways: Sequence[str], earlier: Recipe, stored_only: bool) -> list[Line]:
    """What costs no time: corrections and ranges of all."""
    free: list[Line] = []
    if "bias" not in earlier.corrections and not stored_only:
        free.append(Line([], ("*",), "all means", bias=True))
    if not any(choice.match == "*" and choice.method is not None for choice in earlier.choices):
        # Chosen again on fewer samples a range only seems better: to those.
        free += [Line([(node, way) for node in nodes], ("*",), "all ranges") for way in ways if way in TRIED_METHODS]
    return free


def sweeps(nodes: Sequence[Node], ways: Sequence[str]) -> list[Line]:
    """Lines for many nodes: all of a kind, all that are light, stretches of the graph."""
    kinds: dict[str, list[Node]] = {}
    for node in nodes:
        kinds.setdefault(node.op, []).append(node)
        if node.op == "Conv" and node.get("group", 1) != 1:
            kinds.setdefault(_GROUPED, []).append(node)
    made: list[Line] = []
    several = {kind: own for kind, own in kinds.items() if len(own) >= LEAST_SET}
    for kind, own in several.items():
        if kind in LINEAR and "int8-dynamic" in ways:
            made.append(Line([(node, "int8-dynamic") for node in own], (kind,), f"{len(own)} {kind}"))
        made.append(of_kinds({kind: own}))
    light = {kind: own for kind, own in several.items() if kind not in _HEAVY and kind != _GROUPED}
    if len(light) > 1:
        made.append(of_kinds(light))
    cuts = [len(nodes) * index // _STRETCHES for index in range(_STRETCHES + 1)]
    for start, end in itertools.combinations(cuts, 2):
        own = list(nodes[start:end])
        if len(own) >= LEAST_SET and end - start <= len(nodes) // 2:
            made.append(_float(own, _labels(own), f"{len(own)} nodes in a row"))
    return made


def of_kinds(kinds: Mapping[str, Sequence[Node]]) -> Line:
    """All nodes of these kinds in float. An operator's name also means those that add no error: no harm is done."""
    nodes = [node for own in kinds.values() for node in own]
    names: list[str] = []
    for kind, own in kinds.items():
        names += _labels(own) if kind == _GROUPED else [kind]
    what = " and ".join(f"{len(own)} {kind}" for kind, own in kinds.items())
    return Line([(node, "float") for node in nodes], tuple(names), what, kinds=kinds)


def single_lines(
    nodes: Sequence[Node], ways: Sequence[str], readers: Mapping[Node, set[Node]], prices: Prices
) -> list[Line]:
    """Lines for one node each. One in float alone is still quantized for its readers, so also together with them."""
    lines: list[Line] = []
    for node in nodes:
        lines.append(_float([node], (node.label,), node.op))
        if node in prices.bits:
            lines.append(Line([(node, MORE_BITS)], (node.label,), node.op))
        others = sorted(readers[node], key=lambda one: one.label)
        if 0 < len(others) <= _MOST_READERS:
            own = [node, *others]
            lines.append(_float(own, _labels(own), " and ".join(dict.fromkeys(one.op for one in own))))
        for way in ways if len(lines) < _MOST_SINGLE else ():
            if way in TRIED_METHODS or node.op in LINEAR:
                lines.append(Line([(node, way)], (node.label,), node.op))
    return lines


def _float(nodes: Sequence[Node], names: tuple[str, ...], what: str) -> Line:
    return Line([(node, "float") for node in nodes], names, what)


def _labels(nodes: Sequence[Node]) -> tuple[str, ...]:
    return tuple(node.label for node in nodes)
