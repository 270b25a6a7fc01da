"""``calibrate``: run samples through the float model and note the range of every value that will be quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from qir.calibration.collect import collect
from qir.calibration.data import open_data
from qir.calibration.histogram import Histogram
from qir.calibration.specs import input_specs
from qir.calibration.statistics import MinMax, MovingRange
from qir.calibration.thresholds import entropy_range, mse_range, percentile_range
from qir.errors import DataError
from qir.ir import Interval, Model, Node, Value
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.pipeline.registry import load_target
from qir.quant.recipe import Choice, Method, Recipe
from qir.targets import Target
from qir.targets.regions import data_inputs, plan_regions

__all__ = ["PERCENTILE", "Calibrate", "choose_range", "observer_of", "ranges_of_each"]

PERCENTILE, KEEP = 99.99, 0.9

Found = Any
"""MinMax, MovingRange or Histogram: one kind for each value."""


@dataclass(frozen=True)
class Calibrate(Pass):
    """Stream the calibration samples through the model, once, and store the range of each value that the target's
    integer regions need. Memory does not depend on the number of samples.

    ``method`` says which range: ``minmax``, the exact one; ``percentile``, what holds ``percentile`` percent of all
    elements; ``mse``, that of least squared quantization error; ``entropy``, that which keeps the distribution of
    magnitudes; ``moving-average`` of each sample's minimum and maximum, of which ``keep`` remains at each step. What
    is narrower than the exact range is cut at run time, and a remark says so. Values inside of bodies get the exact
    range. A ``recipe`` may name another method for the quantizers of some nodes.

    Before::

        %y: f32[1,8] = Relu(%x)

    After::

        %y: f32[1,8] seen=[0, 11.2] = Relu(%x)
    """

    name: ClassVar[str] = "calibrate"
    effect: ClassVar[Effect] = Effect.ANALYSIS
    keeps_observed: ClassVar[bool] = True

    method: Method = "minmax"
    percentile: float = PERCENTILE
    keep: float = KEEP
    recipe: str | None = None

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ValueError("percentile must be above 50 and at most 100")
        if not 0 <= self.keep < 1:
            raise ValueError("keep must be at least 0 and below 1")

    @property
    def needs_calibration(self) -> bool:
        return True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError where there are no samples or they do not fit the model."""
        if ctx.calibration is None:
            raise DataError("no calibration data: give samples with --calib, or calibration=... from Python")
        result = PassResult()
        chosen = Recipe.open(self.recipe).assign(model, ctx.reference)
        values, planned, methods = _watched(model, load_target(ctx.target), chosen)
        methods = {value: methods.get(value, self.method) for value in values}
        if not planned:
            result.remarks.append(self.missed(None, "the target has no integer form for any node of this model"))
            return result
        if not values:
            return result
        feeds = open_data(ctx.calibration, input_specs(model))
        narrowed: list[Value] = []
        observers = {
            value: observer_of("minmax" if value.graph is not model.graph else methods[value], self.keep)
            for value in values
        }
        collected = collect(model, values, feeds, observers=observers, progress=ctx.progress, executor=ctx.executor)
        for value, found in collected.items():
            seen, value.observed = choose_range(methods[value], found, self.percentile)
            result.count("values")
            if value.observed != seen.interval:
                narrowed.append(value)
            if seen.nonfinite:
                result.remarks.append(
                    self.note(value, f"{seen.nonfinite} of {seen.count} numbers seen are infinite or NaN, left out")
                )
            outside = (
                value.range is not None
                and not seen.interval.is_empty
                and not value.range.per_tensor().contains(seen.interval, 1e-5 * seen.interval.magnitude)
            )
            if outside:
                result.remarks.append(
                    self.note(value, f"observed {seen.interval} lies outside of what is possible, {value.range}")
                )
        if narrowed:
            result.count("narrowed", len(narrowed))
            used = ", ".join(sorted({methods[value] for value in narrowed}))
            result.remarks.append(
                self.note(None, f"the ranges of {len(narrowed)} values are narrower than what was seen: {used}")
            )
        result.changed = True
        return result


def ranges_of_each(model: Model, methods: Sequence[Calibrate], ctx: PassContext) -> list[dict[Value, Interval]]:
    """What each of several calibrations would note as observed, from one run over the samples.

    Raises DataError as ``Calibrate.run`` does.
    """
    if ctx.calibration is None:
        raise DataError("no calibration data: give samples with --calib, or calibration=... from Python")
    target = load_target(ctx.target)
    named: list[dict[Value, str]] = []
    for one in methods:
        values, _, said = _watched(model, target, Recipe.open(one.recipe).assign(model, ctx.reference))
        inside = {value for value in values if value.graph is not model.graph}
        named.append({value: "minmax" if value in inside else said.get(value, one.method) for value in values})
    if not named or not named[0]:
        return [{} for _ in methods]
    each = list(zip(methods, named, strict=True))
    observers = {
        value: partial(_Several.of, kinds=tuple({_kind(said[value], one.keep): None for one, said in each}))
        for value in named[0]
    }
    feeds = open_data(ctx.calibration, input_specs(model))
    collected = collect(model, list(observers), feeds, observers=observers, executor=ctx.executor)
    return [
        {
            value: choose_range(said[value], found.parts[_kind(said[value], one.keep)], one.percentile)[1]
            for value, found in collected.items()
        }
        for one, said in each
    ]


_Kind = tuple[str, float]
"""A method, and how much a moving average keeps: statistics of one kind serve several methods."""


def _kind(method: str, keep: float) -> _Kind:
    if method == "minmax":
        return "minmax", 0.0
    return (method, keep) if method == "moving-average" else ("histogram", 0.0)


@dataclass(frozen=True, slots=True)
class _Several:
    """Statistics of several kinds."""

    parts: Mapping[_Kind, Found]

    @classmethod
    def of(cls, array: np.ndarray, kinds: tuple[_Kind, ...]) -> _Several:
        return cls({kind: observer_of(*kind)(array) for kind in kinds})

    def merge(self, other: _Several) -> _Several:
        return _Several({kind: found.merge(other.parts[kind]) for kind, found in self.parts.items()})


def observer_of(method: str, keep: float = KEEP) -> Callable[[np.ndarray], Found]:
    """What is remembered of an array: no more than the method needs."""
    if method == "minmax":
        return MinMax.of
    return partial(MovingRange.of, keep=keep) if method == "moving-average" else Histogram.of


def choose_range(method: str, found: Found, percentile: float = PERCENTILE) -> tuple[MinMax, Interval]:
    """What was seen exactly, and the range to quantize."""
    if isinstance(found, MinMax):
        return found, found.interval
    if isinstance(found, MovingRange):
        return found.seen, found.interval
    match method:
        case "percentile":
            return found.seen, percentile_range(found, percentile)
        case "mse":
            return found.seen, mse_range(found)
        case _:
            return found.seen, entropy_range(found)


def _watched(
    model: Model, target: Target, chosen: Mapping[Node, Choice]
) -> tuple[list[Value], bool, dict[Value, Method]]:
    """The values that parameters depend on, bodies included, whether any node is to run on integers, and which method
    the choices name for which value: what a node stores, and what it reads that nobody stores.

    In a body also an operand or result of what needs no parameters: it tells whether any sample ran the body.
    """
    values: dict[Value, None] = {}
    methods: dict[Value, Method] = {}
    stored: set[Value] = set()
    planned = False
    wanted = {node for node, choice in chosen.items() if choice.precision in ("int8", "int8-dynamic")}
    for graph in model.graph.graphs():
        plan = plan_regions(graph, target, stored=stored, wanted=wanted)
        stored |= plan.stored()
        planned |= bool(plan.integer)
        values.update(dict.fromkeys(plan.quantized_values()))
        for node, rule in plan.integer.items():
            choice = chosen.get(node)
            if choice is not None and choice.method is not None:
                reads = [node.input(index) for index in data_inputs(node, rule)]
                own = [plan.result[node], *(value for value in reads if value is not None and value not in stored)]
                methods.update(dict.fromkeys(own, choice.method))
        if graph.owner is not None:
            for node in plan.integer:
                first = node.input(0)
                inside = first is not None and first.graph is graph and not first.is_constant
                values[first if inside and first is not None else node.output] = None
    return list(values), planned, methods
