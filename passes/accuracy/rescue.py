"""``rescue``: where integers cost too much accuracy, let the worst values stay float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.calibration.collect import expose
from qir.calibration.data import open_data, spread
from qir.calibration.specs import input_specs
from qir.calibration.statistics import MinMax
from qir.codegen import runnable
from qir.errors import DataError
from qir.ir import DynamicQuant, Model, Node, StaticQuant, Value
from qir.passes.accuracy.evaluation import Evaluator
from qir.passes.annotation.place import dequantize_node
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.quant.arithmetic import fake_quantize
from qir.quant.recipe import Recipe
from qir.quant.schemes import activation_quant
from qir.runtime.session import OrtRunner

__all__ = ["Rescue"]

Feeds = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Rescue(Pass):
    """While an output of the annotated model is worse than ``min-sqnr`` dB on a few calibration samples, take the
    integers away from the values that lose most, by their own quantization error, twice as many each round. Nodes to
    which a ``recipe`` gives a precision keep it.

    Before::

        %h: f32[1,384] = Mul(%a, %b)
        %y: f32[1,384] = MatMul(%h : u8(0.9, 12), @w : s8[axis=1](...)) kernel=integer

    After::

        %y: f32[1,384] = MatMul(%h, @w) kernel=float
    """

    name: ClassVar[str] = "rescue"
    effect: ClassVar[Effect] = Effect.ANALYSIS
    keeps_observed: ClassVar[bool] = True

    min_sqnr: float = 10.0
    samples: int = 8
    """How many calibration samples are measured."""
    recipe: str | None = None

    @property
    def needs_calibration(self) -> bool:
        return True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError without calibration samples."""
        result = PassResult()
        if not _integer_nodes(model):
            return result
        if ctx.calibration is None:
            raise DataError("no calibration data to measure on: give samples with --calib, or calibration=...")
        feeds = spread(open_data(ctx.calibration, input_specs(model)), self.samples)
        evaluator = Evaluator(model, feeds, ctx)
        sqnr = evaluator.score(model)
        if sqnr >= self.min_sqnr:
            result.count("sqnr_db", sqnr)
            return result
        pinned = Recipe.open(self.recipe).pinned(model, ctx.reference)
        ranking = [(value, own) for value, own in _rank(model, feeds) if pinned.isdisjoint(_holders(value))]
        step = 1
        ctx.progress.start("taking back the worst values", None)
        while sqnr < self.min_sqnr and ranking:
            for value, own in ranking[:step]:
                for node in _float_value(value):
                    result.remarks.append(
                        self.missed(
                            node,
                            f"{node.op} stays float: {value.name!r} has {own:.1f} dB of its own as integers and the "
                            f"output only {sqnr:.1f} dB, below {self.min_sqnr:g}",
                        )
                    )
                result.count("values")
            ranking = ranking[step:]
            step *= 2
            result.changed = True
            sqnr = evaluator.score(model)
            ctx.progress.advance()
        ctx.progress.finish()
        result.count("sqnr_db", sqnr)
        return result


_INTEGER = ("integer", "dynamic")


def _integer_nodes(model: Model) -> list[Node]:
    return [node for node in model.walk() if node.kernel in _INTEGER]


def _rank(model: Model, feeds: Feeds) -> list[tuple[Value, float]]:
    """Quantized activations with the SQNR in dB that their own quantization leaves, the worst first."""
    types: dict[Value, StaticQuant | DynamicQuant] = {}
    for node in _integer_nodes(model):
        for use in node.uses:
            quant = use.effective_quant if use is not None else None
            if use is not None and isinstance(quant, StaticQuant | DynamicQuant) and not use.value.is_constant:
                types.setdefault(use.value, quant)
    exposed, names = expose(model, list(types))
    noise = dict.fromkeys(types, 0.0)
    power = dict.fromkeys(types, 0.0)
    with runnable(exposed, annotations="drop") as source:
        runner = OrtRunner(source)
        produced = [spec.name for spec in runner.outputs if spec.name in names]
        for feed in feeds:
            arrays = {**{name: feed[name] for name in names if name in feed}, **runner.run(feed, produced)}
            for name, array in arrays.items():
                value = names[name]
                quant = types[value]
                if isinstance(quant, DynamicQuant):
                    seen = MinMax.of(array)
                    quant = activation_quant(seen.interval, quant.dtype, symmetric=quant.symmetric)
                error = fake_quantize(array, quant) - array
                noise[value] += float(np.square(error, dtype=np.float64).sum())
                power[value] += float(np.square(array, dtype=np.float64).sum())
    ranked = [(value, 10 * np.log10(power[value] / max(noise[value], 1e-30))) for value in types if power[value] > 0]
    return sorted(ranked, key=lambda item: item[1])


def _holders(value: Value) -> list[Node]:
    """What stores the value and what reads it as integers."""
    nodes = [use.node for use in value.uses if use.node is not None and use.effective_quant is not None]
    producer = value.producer
    if producer is not None and value.quant is not None:
        source = producer
        if producer.kernel != "integer":  # an activation that the integer node before it computes along
            operand = producer.input(0)
            source = operand.producer if operand is not None and operand.producer is not None else producer
        nodes.append(source)
    return [node for node in dict.fromkeys(nodes) if node.kernel in _INTEGER]


def _float_value(value: Value) -> list[Node]:
    """Dequantize its holders; the nodes that changed."""
    changed = _holders(value)
    for node in changed:
        dequantize_node(node)
    return changed
