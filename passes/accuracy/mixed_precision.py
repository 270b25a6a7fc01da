"""``mixed-precision``: leave in float the few nodes that cost the most accuracy for the least time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log10
from typing import Any, ClassVar

from qir.analysis.cost import with_input_shapes
from qir.calibration.data import open_data
from qir.calibration.specs import input_specs
from qir.errors import DataError
from qir.ir import DerivedQuant, Model, Node, UseQuantMarker
from qir.passes.accuracy.correct_bias import spread
from qir.passes.accuracy.evaluation import Evaluator
from qir.passes.annotation.place import dequantize_node
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.pipeline.registry import load_target
from qir.quant.recipe import Recipe

__all__ = ["MixedPrecision"]


@dataclass(frozen=True)
class MixedPrecision(Pass):
    """Ablate: quantize one node at a time, measure the noise that it alone puts on the outputs, and let nodes go back
    to float by decibels won per time lost, as the target's cost table tells it. Noise powers of single nodes add up to
    what the whole has, nearly; the choice is measured, on ``check-samples``, before it is taken.

    Without ``min-sqnr``, a node goes back only where that pays: at least ``db-per-percent`` dB for each percent of the
    model's time, at most ``max-percent`` in all and ``max-share`` of the nodes. With it, more follow until the worst
    output reaches it in dB. Nodes to which a ``recipe`` gives a precision keep it.

    Before::

        %y: f32[1,8] = MatMul(%x : u8(0.9, 12), @w : s8[axis=1](...)) kernel=integer

    After, where that node's noise dominates::

        %y: f32[1,8] = MatMul(%x, @w) kernel=float
    """

    name: ClassVar[str] = "mixed-precision"
    effect: ClassVar[Effect] = Effect.ANALYSIS
    keeps_observed: ClassVar[bool] = True

    min_sqnr: float | None = None
    db_per_percent: float = 0.4
    max_percent: float = 6.0
    max_share: float = 0.3
    samples: int = 4
    check_samples: int = 16
    max_nodes: int = 120
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
                result.remarks.append(self.missed(None, message))
            return result
        if ctx.calibration is None:
            raise DataError("no calibration data to measure on: give samples with --calib, or calibration=...")
        feeds = spread(open_data(ctx.calibration, input_specs(model)), self.samples)
        costs = _costs(model, candidates, feeds[0], ctx)
        noise = self._ablate(model, candidates, Evaluator(model, feeds, ctx), ctx)
        more = spread(open_data(ctx.calibration, input_specs(model)), self.check_samples)
        evaluator = Evaluator(model, more, ctx)
        chosen = self._choose(noise, costs)
        before = evaluator.score(model)
        if self.min_sqnr is None:
            count = _worth_it(model, chosen, evaluator, before)
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
        result.count("sqnr_db", evaluator.score(model) if count else before)
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
        """Nodes in the order in which they should go back to float: decibels of the worst output per percent."""
        remaining = dict(noise)
        total = _sum(remaining)
        order: list[Node] = []
        spent = 0.0
        most = len(noise) if self.min_sqnr is not None else int(self.max_share * len(noise))
        while remaining and total:
            gains = {node: _worst(total) - _worst(_minus(total, own)) for node, own in remaining.items()}
            node = max(remaining, key=lambda n: gains[n] / max(costs[n], 0.05))
            gain = gains[node]
            if self.min_sqnr is None:
                if gain < self.db_per_percent * costs[node] or gain < 0.1 or spent + costs[node] > self.max_percent:
                    break
                if len(order) >= most:
                    break
            elif gain <= 0:
                break
            spent += costs[node]
            total = _minus(total, remaining.pop(node))
            order.append(node)
        return order

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


def _worth_it(model: Model, order: list[Node], evaluator: Evaluator, before: float) -> int:
    """How many of the first nodes are left in float: all, else half of them, ..., else none."""
    count = len(order)
    while count and _score_without(model, order[:count], evaluator) < before + _WORTH_IT:
        count //= 2
    return count


def _score_without(model: Model, nodes: list[Node], evaluator: Evaluator) -> float:
    """The score with these nodes in float."""
    trial = model.clone_with_map()
    for node in nodes:
        dequantize_node(trial.nodes[node])
    return evaluator.score(trial.model)


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


def _costs(model: Model, candidates: list[Node], feed: Mapping[str, Any], ctx: PassContext) -> dict[Node, float]:
    """What each node in float adds, in percent of the model's time."""
    table = load_target(ctx.target).cost
    sized = with_input_shapes(model, {name: array.shape for name, array in feed.items()})
    copies = dict(zip(model.walk(), sized.walk(), strict=True))
    total = sum(table.node_us_as(copies[node], node.kernel not in (None, "float")) for node in model.walk())
    return {node: 100 * table.fallback_us(copies[node]) / max(total, 1e-9) for node in candidates}


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
