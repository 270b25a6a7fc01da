"""``mixed-precision``: leave in float the few nodes that cost the most accuracy for the least time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log10
from typing import Any, ClassVar

from qir.analysis.cost import node_cost, with_input_shapes
from qir.calibration.data import open_data, spread
from qir.calibration.specs import input_specs
from qir.errors import DataError
from qir.ir import DerivedQuant, Model, Node, UseQuantMarker
from qir.passes.accuracy.evaluation import Evaluator, Outputs, worst_sqnr
from qir.passes.accuracy.paired import Gain
from qir.passes.annotation.partition import Partition
from qir.passes.annotation.place import Place, dequantize_node
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.pipeline.registry import load_target
from qir.quant.recipe import Recipe

__all__ = ["MixedPrecision"]


@dataclass(frozen=True)
class MixedPrecision(Pass):
    """Let nodes go back to float that cost much accuracy for little time. One node at a time is quantized and the
    noise measured that it alone puts on the outputs; who comes first is decided by decibels won per time lost, as the
    target's cost table tells it. Noise powers of single nodes add up to what the whole has, nearly; the choice is
    measured, on ``check-samples``, before it is taken. Single nodes are measured on up to ``samples``, of large
    models on fewer.

    Without ``min-sqnr``, nodes go back only where that pays: ``db-per-percent`` dB for each percent of the model's
    time, at most ``max-percent`` of it in all and ``max-win`` of what integers win over float, ``max-share`` of the
    nodes, and of the weights; what ``partition`` and ``place`` make of the choice is counted. It has to gain for
    certain, as the samples' own spread tells. With it, more follow until the worst output reaches it in dB. Nodes to
    which a ``recipe`` gives a precision keep it.

    Before::

        %y: f32[1,8] = MatMul(%x : u8(0.9, 12), @w : s8[axis=1](...)) kernel=integer

    After, where that node's noise dominates::

        %y: f32[1,8] = MatMul(%x, @w) kernel=float
    """

    name: ClassVar[str] = "mixed-precision"
    effect: ClassVar[Effect] = Effect.ANALYSIS
    keeps_observed: ClassVar[bool] = True

    min_sqnr: float | None = None
    db_per_percent: float = 1.0
    max_percent: float = 6.0
    max_win: float = 0.3
    max_share: float = 0.3
    samples: int = 16
    check_samples: int = 32
    max_nodes: int = 120
    """A model with more candidates is left alone: each is measured by itself."""
    recipe: str | None = None

    @property
    def needs_calibration(self) -> bool:
        return True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError without calibration samples."""
        result = PassResult()
        pinned = Recipe.open(self.recipe).pinned(model, ctx.reference)
        candidates = [node for node in model.walk() if _is_candidate(node) and node not in pinned]
        if not candidates or len(candidates) > self.max_nodes:
            if candidates:
                message = f"{len(candidates)} nodes are more than max-nodes={self.max_nodes}, none was ablated"
                result.remarks.append(self.note(None, message))
            return result
        if ctx.calibration is None:
            raise DataError("no calibration data to measure on: give samples with --calib, or calibration=...")
        data = open_data(ctx.calibration, input_specs(model))
        costs, microseconds = _costs(model, candidates, spread(data, 1)[0], ctx)
        affordable = int(_ABLATION_US / max(microseconds * len(candidates), 1))
        feeds = spread(data, min(self.samples, max(affordable, _FEWEST)))
        noise = self._ablate(model, candidates, Evaluator(model, feeds, ctx), ctx)
        evaluator = Evaluator(model, spread(data, self.check_samples), ctx)
        chosen = self._choose(noise, costs)
        outputs = evaluator.outputs(model)
        before = after = worst_sqnr(evaluator.expected, outputs)
        if self.min_sqnr is None:
            count, after = self._worth_it(model, chosen, costs, evaluator, outputs, ctx)
        else:
            count = self._fewest(model, chosen, evaluator, before)
        for node in chosen[:count]:
            dequantize_node(node)
            own = -10 * log10(max(max(noise[node].values(), default=0.0), 1e-30))
            message = f"alone on integers it leaves {own:.1f} dB, and float costs about {costs[node]:.1f} % of the time"
            result.remarks.append(self.missed(node, f"{node.op} stays float: {message}"))
            result.count("float")
            result.changed = True
        result.count("sqnr_db_before", before)
        result.count("sqnr_db", after if self.min_sqnr is None or not count else evaluator.score(model))
        return result

    def _ablate(
        self, model: Model, candidates: list[Node], evaluator: Evaluator, ctx: PassContext
    ) -> dict[Node, dict[str, float]]:
        """Noise over signal on each output with that node alone quantized."""
        found = {}
        ctx.progress.start("ablating nodes", len(candidates))
        for node in candidates:
            clone = model.clone_with_map()
            alone = clone.nodes[node]
            for other in clone.model.walk():
                if other is not alone:
                    _strip(other, alone)
            for use in alone.uses:
                if use is not None and isinstance(use.quant, DerivedQuant):
                    use.quant = UseQuantMarker.INHERIT  # its input may be float now, and a bias adds next to no noise
            found[node] = evaluator.noise(clone.model)
            ctx.progress.advance()
        ctx.progress.finish()
        return found

    def _choose(self, noise: dict[Node, dict[str, float]], costs: Mapping[Node, float]) -> list[Node]:
        """Nodes in the order in which they should go back to float: decibels of the worst output per percent.

        Without ``min-sqnr``, those after which decibels won less time lost are highest: a node alone may win little,
        where several are to blame alike.
        """
        remaining = dict(noise)
        total = _sum(remaining)
        order: list[Node] = []
        won = spent = most = 0.0
        best = 0
        free = self.min_sqnr is not None
        while total:
            open_ = [node for node in remaining if free or spent + costs[node] <= self.max_percent]
            gains = {node: _worst(total) - _worst(_minus(total, remaining[node])) for node in open_}
            if not gains or (not free and len(order) >= int(self.max_share * len(noise))):
                break
            node = max(gains, key=lambda n: gains[n] / max(costs[n], 0.05))
            if gains[node] <= 0:
                break
            total = _minus(total, remaining.pop(node))
            order.append(node)
            spent += costs[node]
            won += gains[node] - max(self.db_per_percent * costs[node], _LEAST_GAIN)
            if won > most:
                best, most = len(order), won
        return order if free else order[:best]

    def _worth_it(
        self,
        model: Model,
        order: list[Node],
        costs: Mapping[Node, float],
        evaluator: Evaluator,
        outputs: Outputs,
        ctx: PassContext,
    ) -> tuple[int, float]:
        """How many of the first nodes are left in float, all, else half of them, ..., else none; the SQNR in dB then.

        ``outputs`` are those with none.
        """
        times = self._microseconds(model.clone(), ctx) if order else {}
        if not times:
            return 0, worst_sqnr(evaluator.expected, outputs)
        floats, integers = times["us float"], max(times["us"], _TINY_US)
        affordable = min(self.max_percent, max(self.max_win * 100 * (floats / integers - 1), _FREE_PERCENT))
        before = evaluator.sqnrs_of(outputs)
        weights = _integer_weights(model)
        count = len(order)
        while count:
            trial = _without(model, order[:count])
            spent = 100 * (self._microseconds(trial, ctx).get("us", floats) / integers - 1)
            if spent <= affordable and _integer_weights(trial) >= (1 - self.max_share) * weights:
                got = evaluator.outputs(trial)
                spent = max(spent, sum(costs[node] for node in order[:count]))
                if Gain.of(evaluator.sqnrs_of(got) - before).reaches(max(_WORTH_IT, self.db_per_percent * spent)):
                    return count, worst_sqnr(evaluator.expected, got)
            count //= 2
        return 0, worst_sqnr(evaluator.expected, outputs)

    def _microseconds(self, model: Model, ctx: PassContext) -> Mapping[str, float]:
        """What ``partition`` counts for the model as the later passes would leave it, which this edits; nothing of one
        that is all float."""
        Partition(recipe=self.recipe).run(model, ctx)
        Place().run(model, ctx)
        return Partition(recipe=self.recipe).run(model, ctx).statistics

    def _fewest(self, model: Model, order: list[Node], evaluator: Evaluator, before: float) -> int:
        """How many of the first nodes must be float to reach ``min_sqnr``, by bisection; all where that is too few."""
        assert self.min_sqnr is not None
        if before >= self.min_sqnr:
            return 0
        too_few, enough = 0, len(order)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if _score_without(model, order[:middle], evaluator) >= self.min_sqnr:
                enough = middle
            else:
                too_few = middle
        return enough


_WORTH_IT = 0.2
"""dB that a default choice must win on the samples, or nothing is changed."""
_FREE_PERCENT = 1.0
"""Of the time, which a choice may take where integers win nothing over float."""
_TINY_US = 1e-6
_LEAST_GAIN = 0.1
"""dB that a node must bring."""
_FEWEST = 2
"""Samples on which single nodes are measured at least."""
_ABLATION_US = 1.5e6
"""Microseconds of float inference, by the target's cost table, that measuring single nodes may take: counted, so that
the same samples are taken on every machine. What runs is several times slower, as quantizers do not fuse there."""


def _score_without(model: Model, nodes: list[Node], evaluator: Evaluator) -> float:
    """The score with these nodes in float."""
    return evaluator.score(_without(model, nodes))


def _without(model: Model, nodes: list[Node]) -> Model:
    """A copy with these nodes in float."""
    trial = model.clone_with_map()
    for node in nodes:
        dequantize_node(trial.nodes[node])
    return trial.model


def _integer_weights(model: Model) -> int:
    """How many weights are on integers."""
    return sum(node_cost(node).parameters for node in model.walk() if node.kernel not in (None, "float"))


def _is_candidate(node: Node) -> bool:
    return node.kernel in ("integer", "dynamic") and node.op in (
        "Conv",
        "MatMul",
        "Gemm",
        "Add",
        "Mul",
        "Concat",
        "Sigmoid",
    )


def _strip(node: Node, alone: Node) -> None:
    """Remove a node's annotations; the result of an activation that ``alone`` computes along is that one's."""
    operand = node.input(0)
    is_merged = node.kernel != "integer" and operand is not None and operand.producer is alone
    node.kernel = None
    for use in node.uses:
        if use is not None:
            use.quant = UseQuantMarker.INHERIT
    for value in node.outputs:
        if not is_merged:
            value.quant = None


def _costs(
    model: Model, candidates: list[Node], feed: Mapping[str, Any], ctx: PassContext
) -> tuple[dict[Node, float], float]:
    """What each node in float adds, in percent of the model's time, and the float model's microseconds."""
    table = load_target(ctx.target).cost
    sized = with_input_shapes(model, {name: array.shape for name, array in feed.items()})
    copies = dict(zip(model.walk(), sized.walk(), strict=True))
    total = sum(table.node_us_as(copies[node], node.kernel not in (None, "float")) for node in model.walk())
    floats = sum(table.node_us_as(copy, False) for copy in copies.values())
    return {node: 100 * table.fallback_us(copies[node]) / max(total, 1e-9) for node in candidates}, floats


def _sum(noise: Mapping[Node, Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for own in noise.values():
        for name, power in own.items():
            total[name] = total.get(name, 0.0) + power
    return total


def _minus(total: Mapping[str, float], own: Mapping[str, float]) -> dict[str, float]:
    return {name: max(power - own.get(name, 0.0), 1e-12) for name, power in total.items()}


def _worst(noise: Mapping[str, float]) -> float:
    """The worst output's noise in dB (the negative of its SQNR)."""
    return 10 * log10(max(noise.values()))
