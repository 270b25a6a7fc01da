"""``partition``: where regions of integers take longer than floats, conversions counted, let them stay float."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import networkx as nx

from qir.analysis.cost import node_cost, with_input_shapes
from qir.calibration.data import open_data, spread
from qir.calibration.sequential import graph_layers
from qir.calibration.specs import input_specs
from qir.errors import DataError
from qir.ir import Model, Node, StaticQuant, Use, Value
from qir.passes.annotation.place import dequantize_node
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.pipeline.registry import load_target
from qir.quant.recipe import Recipe
from qir.targets import Target
from qir.targets.cost import CostTable
from qir.targets.regions import merged_result

__all__ = ["Partition"]

_INTEGER, _FLOAT = "integer", "float"
_NANO = 1000
"""Capacities are whole nanoseconds: a minimum cut of whole numbers is exact."""
_NEVER = 10**12
_FIRST_BONUS = 1e-5


@dataclass(frozen=True)
class Partition(Pass):
    """Choose, of the nodes that are annotated for integers, those for which the target's cost table says that they are
    faster so: the cheapest division of the graph, where each node costs its time on its side and each value that is
    made on one side and read on the other a conversion. That is a minimum cut, found exactly.

    As integers are smaller, of several divisions within ``slack`` of the float model's time it is the one with most
    weights in integers; where that leaves all of them float, one within ``last-slack`` with at least half of all
    weights on integers, if there is one. Of a model that runs for less than ``small-us`` in all, size is what there
    is to win: at least half of the weights become integers, where that costs least; not of one with loops, whose
    rounds nobody counts. Where nobody measured the target's costs, nothing is taken back. Nodes of unknown shape stay
    as they are, and so do those to which a ``recipe`` gives a precision: whoever names a node knows why.

    Before, where the depthwise convolution loses more than the others win::

        %a: f32[1,8,4,4] q=u8(0.02, 0) = Conv(%x : u8(0.02, 0), @v : s8[axis=0](...)) kernel=integer
        %y: f32[1,8,4,4] q=u8(0.02, 0) = Conv(%a, @w : s8[axis=0](...)) {group=8} kernel=integer

    After::

        %a: f32[1,8,4,4] = Conv(%x, @v) kernel=float
        %y: f32[1,8,4,4] = Conv(%a, @w) {group=8} kernel=float
    """

    name: ClassVar[str] = "partition"
    effect: ClassVar[Effect] = Effect.ANALYSIS
    keeps_observed: ClassVar[bool] = True

    slack: float = 0.01
    last_slack: float = 0.02
    small_us: float = 60.0
    recipe: str | None = None

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError without samples, whose shapes stand for the symbols in the model's."""
        result = PassResult()
        target = load_target(ctx.target)
        movable = [node for node in model.walk() if node.kernel in ("integer", "dynamic")]
        if not movable:
            return result
        if not target.runs_here and target.cost == CostTable():
            text = f"costs of {target.name} were not measured: whatever it has an integer form for runs on integers"
            result.remarks.append(self.note(None, text))
            return result
        if ctx.calibration is None:
            raise DataError("no calibration data, whose shapes tell what nodes cost: give samples with --calib")
        feed = spread(open_data(ctx.calibration, input_specs(model)), 1)[0]
        sized = with_input_shapes(model, {name: array.shape for name, array in feed.items()})
        copies = dict(zip(model.walk(), sized.walk(), strict=True))
        network = _Network(movable, Recipe.open(self.recipe).pinned(model, ctx.reference), copies, target)
        total = sum(target.cost.node_us_as(copy, False) for copy in copies.values())
        small = total < self.small_us and not any(node.op in ("Loop", "Scan") for node in model.walk())
        time, slow = network.float_side(self.slack * total, at_least_half=small)
        if not network.integer_weights(slow):
            last, candidate = network.float_side(self.last_slack * total, at_least_half=False)
            weights = sum(node_cost(node).parameters for node in model.walk())
            if 2 * network.integer_weights(candidate) >= weights:
                time, slow = last, candidate
        moved = sum(target.cost.node_us_as(copies[node], False) for node in movable)
        result.count("us float", total)
        result.count("us", total - moved + time)
        for node in slow:
            dequantize_node(node)
            result.remarks.append(self.missed(node, f"{node.op} stays float: its region would be slower on integers"))
            result.count("float")
            result.changed = True
        return result


class _Network:
    """The nodes as a flow network: what is on the source's side of its minimum cut should be integer."""

    def __init__(
        self, movable: list[Node], pinned: Collection[Node], copies: Mapping[Node, Node], target: Target
    ) -> None:
        self.table = target.cost
        self.pinned = pinned
        self.copies = copies
        self.movable = dict.fromkeys(movable)
        self.absorbed = {
            layer.node: layer.bias_owner
            for graph in dict.fromkeys(node.graph for node in movable)
            for layer in (graph_layers(graph) if graph is not None else ())
            if layer.bias_owner not in (None, layer.node)
        }
        self.weights = {node: node_cost(node).parameters for node in movable}
        self.graph: Any = nx.DiGraph()
        self.graph.add_nodes_from([_INTEGER, _FLOAT])
        makers = {merged_result(node, target): node for node in movable if len(node.outputs) == 1}
        makers |= {value: node for node in movable for value in node.outputs if value.quant is not None}
        values = dict.fromkeys(makers)
        values |= {use.value: None for node in movable for use in node.uses if use is not None and _wants_integers(use)}
        for node in movable:
            integer, floating = self._times(node)
            _join(self.graph, _INTEGER, node, floating)
            _join(self.graph, node, _FLOAT, integer)
        for value in values:
            self._add_conversions(value, makers.get(value, _FLOAT) if value.quant is not None else _FLOAT)

    def float_side(self, slack_us: float, at_least_half: bool) -> tuple[float, list[Node]]:
        """The time of all movable nodes in microseconds and those that should be float, in graph order: of the cheapest
        cut, or of one within the slack, or with half of the weights, that has more weights on integers. A bonus on
        each weight finds it."""
        time, slow = self._cut(0.0)
        limit = time + slack_us
        total, bonus = sum(self.weights.values()), _FIRST_BONUS
        while any(self.weights[node] for node in slow):
            longer, candidate = self._cut(bonus)
            short = at_least_half and 2 * sum(self.weights[node] for node in slow) > total
            if longer > limit and not short:
                break
            time, slow, bonus = longer, candidate, 2 * bonus
        return time, slow

    def integer_weights(self, slow: list[Node]) -> int:
        """How many weights would stay on integers."""
        return sum(self.weights.values()) - sum(self.weights[node] for node in slow)

    def _cut(self, bonus: float) -> tuple[float, list[Node]]:
        """The time (microseconds, but for a constant) and the float nodes of the cheapest cut where a weight on
        integers earns ``bonus`` microseconds."""
        graph = self.graph.copy()
        for node, weights in self.weights.items():
            _join(graph, _INTEGER, node, bonus * weights)
        _, (integers, floats) = nx.minimum_cut(graph, _INTEGER, _FLOAT)
        edges = self.graph.edges(data="capacity")
        time = sum(capacity for start, end, capacity in edges if start in integers and end in floats)
        return time / _NANO, [node for node in self.movable if node in floats]

    def _times(self, node: Node) -> tuple[float, float]:
        """In microseconds, on integers and in float."""
        copy = self.copies[node]
        if node in self.pinned or node_cost(copy).macs is None or node_cost(copy).written_bytes is None:
            return 0.0, _NEVER
        floating = self.table.node_us_as(copy, False)
        integer = self.table.node_us_as(copy, True)
        if node.kernel == "dynamic":
            integer += self.table.convert_input_us(copy)
            bias = self.absorbed.get(node)  # which the kernel adds along
            integer -= 0.0 if bias is None else self.table.node_us_as(self.copies[bias], False)
        return integer, floating

    def _add_conversions(self, value: Value, maker: object) -> None:
        """One conversion where the maker is on one side and any reader on the other."""
        uses = [use for use in value.uses if use.node is not None]
        sized = next((self.copies[use.node].input(use.index) for use in uses if use.node is not None), None)
        if sized is None:
            return
        microseconds = self.table.conversion_us(sized)
        to_float, to_integer = (value, _FLOAT), (value, _INTEGER)
        for use in value.uses:
            if use.node in self.movable and _wants_integers(use):
                _join(self.graph, use.node, to_integer, _NEVER)
                if maker is not _FLOAT:
                    _join(self.graph, to_float, use.node, _NEVER)
            elif maker is not _FLOAT:
                _join(self.graph, to_float, _FLOAT, _NEVER)
        _join(self.graph, to_integer, maker, microseconds)
        if maker is not _FLOAT:
            _join(self.graph, maker, to_float, microseconds)


def _join(graph: Any, start: object, end: object, microseconds: float) -> None:
    capacity = max(0, round(microseconds * _NANO))
    if start == end or not capacity:
        return
    if graph.has_edge(start, end):
        capacity += graph[start][end]["capacity"]
    graph.add_edge(start, end, capacity=capacity)


def _wants_integers(use: Use) -> bool:
    node = use.node
    return (
        node is not None
        and node.kernel == "integer"
        and isinstance(use.effective_quant, StaticQuant)
        and not use.value.is_constant
    )
