"""The errors of a quantized model, injected into the float model: what they do at the outputs, all together or some of
them, and how that changes where nodes stay float or are quantized in another way.

The error of a node is what its quantized form makes of the values that it gets in the quantized model, less what the
float node makes of these. So all errors together give the quantized model's very outputs, and a requantizer that
repeats the grid before it adds none. One float inference a sample and question, whatever the format of the quantized
file. Other ways to quantize (threshold methods, dynamic activations) are other cuts of the quantized model, which make
other errors; a bias correction takes their means away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from qir.calibration.collect import expose
from qir.calibration.histogram import Histogram
from qir.calibration.thresholds import mse_range, percentile_range
from qir.codegen import runnable
from qir.ir import DType, Interval, Model, Node, TensorType, Value
from qir.pipeline.contract import Progress
from qir.quant.schemes import activation_quant
from qir.runtime.session import OPTIMIZED, PLAIN, OrtRunner
from qir.validation.alignment import Quantizer, Unit, computes_on_codes, dequantizers
from qir.validation.layers import Arrays, Cut, Edit, LayerErrors
from qir.validation.metrics import OutputMetrics

__all__ = ["LINEAR", "MORE_BITS", "TRIED_METHODS", "Bench", "Group", "Plan", "open_bench"]

LINEAR = ("MatMul", "Gemm")
TRIED_METHODS = ("mse", "percentile")
MORE_BITS = "int8"
"""A weight in 8 bits instead of 4: the same error on a grid of 17 times as many steps."""
_FINER = 255 / 15
_WITH_BIAS = (*LINEAR, "Conv", "ConvTranspose")
_TINY = 1e-30

Group = list[tuple[Node, str]]
"""Nodes and what to do with them: ``float``, a threshold method, ``int8-dynamic``, or MORE_BITS for their weights."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to a quantized model. A later pair wins over an earlier one of the same node; ``bias``: the mean
    error of each channel is corrected."""

    pairs: tuple[tuple[Node, str], ...] = ()
    bias: bool = False


@dataclass(frozen=True, slots=True)
class _Values:
    """``given``: as the quantized model has them; ``made``: what each float node makes of those before it."""

    given: Mapping[Value, np.ndarray]
    made: Mapping[Value, np.ndarray]
    by_way: dict[str | None, Mapping[Unit, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _FloatCut:
    runner: OrtRunner
    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]


class Bench:
    """The float model with a place for an error behind every quantized node, and the cut quantized one."""

    def __init__(
        self,
        found: LayerErrors,
        injected: OrtRunner,
        places: Mapping[Value, str],
        exposed: OrtRunner,
        names: Mapping[str, Unit],
        float_cut: _FloatCut,
        cut: Cut,
        stack: ExitStack,
        units: Mapping[Node, list[Unit]],
    ) -> None:
        self._found = found
        self._injected = injected
        self._places = places
        self._exposed = exposed
        self._names = names
        self._float_cut = float_cut
        self._factors = found.factors
        self._stack = stack
        self._units = units
        self._cuts: dict[str | None, Cut] = {None: cut}
        self._means: dict[tuple[str | None, Unit], np.ndarray] = {}
        self._readers = _integer_readers(found)

    def harm(self, feeds: Sequence[Arrays], nodes: Sequence[Node], watch: Progress) -> dict[Node, float]:
        """SQNR in dB of the worst output with the errors of one node alone, for each node."""
        metrics: dict[Node, dict[str, OutputMetrics]] = {node: {} for node in nodes}
        for feed in feeds:
            errors = self._errors(Plan(), feed, self._values(feed))
            expected = self._run(feed, {})
            for node in nodes:
                got = self._run(feed, {unit: errors[unit] for unit in self._units[node]})
                _compare(expected, got, metrics[node])
                watch.advance()
        return {node: _worst(found) for node, found in metrics.items()}

    def together(self, feeds: Sequence[Arrays], plans: Sequence[Plan], watch: Progress) -> list[float]:
        """SQNR in dB of the worst output with all errors, for each plan."""
        metrics: list[dict[str, OutputMetrics]] = [{} for _ in plans]
        for feed in feeds:
            values = self._values(feed)
            expected = self._run(feed, {})
            for plan, found in zip(plans, metrics, strict=True):
                _compare(expected, self._run(feed, self._errors(plan, feed, values)), found)
                watch.advance()
        return [_worst(found) for found in metrics]

    def learn_means(self, feeds: Sequence[Arrays], watch: Progress) -> None:
        """The mean error of each channel, which a bias correction takes away."""
        sums: dict[tuple[str | None, Unit], list[np.ndarray]] = {}
        units = [unit for units in self._units.values() for unit in units if unit.operator.op in _WITH_BIAS]
        for feed in feeds:
            values = self._values(feed)
            for way in self._cuts:
                made = self._made(way, feed, values)
                for unit in units:
                    error = made[unit] - values.made[unit.value]
                    others = tuple(i for i in range(error.ndim) if i != _channels(unit, error))
                    sums.setdefault((way, unit), []).append(error.mean(axis=others, keepdims=True))
            watch.advance()
        self._means = {key: np.mean(arrays, axis=0).astype(np.float32) for key, arrays in sums.items()}

    def _made(self, way: str | None, feed: Arrays, values: _Values) -> Mapping[Unit, np.ndarray]:
        """What every unit quantized in this way makes of the quantized model's values."""
        if way not in values.by_way:
            values.by_way[way] = self._cuts[way].run(feed, values.given)
        return values.by_way[way]

    def _errors(self, plan: Plan, feed: Arrays, values: _Values) -> dict[Unit, np.ndarray]:
        """The error of every unit under a plan. Each gets the values of the quantized model, but of nodes that the plan
        changes what they make then: so a node in float whose reader quantizes what it hands out gains nothing."""
        ways = dict(plan.pairs)
        given = dict(values.given)
        for node, way in ways.items():
            for unit in self._units[node]:
                made_now = values.made[unit.value]
                if way == MORE_BITS:
                    given[unit.value] = made_now + (self._made(None, feed, values)[unit] - made_now) / _FINER
                else:
                    given[unit.value] = made_now if way == "float" else self._made(way, feed, values)[unit]
        wanted = self._float(feed, given) if ways else values.made
        errors: dict[Unit, np.ndarray] = {}
        for used in dict.fromkeys([None, *(way for way in ways.values() if way not in ("float", MORE_BITS))]):
            made = self._cuts[used].run(feed, given) if ways else self._made(used, feed, values)
            for node, units in self._units.items():
                finer = used is None and ways.get(node) == MORE_BITS
                for unit in units if finer or ways.get(node) == used else ():
                    mean = self._means.get((used, unit)) if plan.bias else None
                    with np.errstate(invalid="ignore", over="ignore"):
                        error = made[unit] - wanted[unit.value]
                        error = error if mean is None else error - mean
                        error = error / _FINER if finer else error
                    errors[unit] = np.where(np.isfinite(error), error, 0.0)
        return errors

    def readers(self) -> dict[Node, set[Node]]:
        """For each node, which others compute on its codes: a node in float alone is still quantized for them."""
        return {
            node: (set().union(*(self._readers.get(unit, set()) for unit in units)) - {node}) & self._units.keys()
            for node, units in self._units.items()
        }

    def open_ways(self, nodes: Sequence[Node]) -> list[str]:
        """Cuts with all static quantizers of these nodes made in another way; which ways there are."""
        chosen = set(nodes)
        histograms = {
            grid.quantizer.node: (grid.quantizer, grid.histogram)
            for layer in self._found.layers
            if layer.unit.node in chosen
            for grid in layer.grids
        }
        for method in TRIED_METHODS if histograms else ():
            ranges = {
                quantizer.node: (quantizer, _range(method, histogram)) for quantizer, histogram in histograms.values()
            }
            self._open(method, partial(_requantize, ranges=ranges))
        inputs = [
            quantizer.node
            for units in (self._units[node] for node in nodes if node.op in LINEAR)
            for unit in units
            for quantizer in unit.quantizers
            if not quantizer.is_result and quantizer.quant.dtype in (DType.UINT8, DType.INT8)
        ]
        if inputs:
            self._open("int8-dynamic", partial(_make_dynamic, quantizers=inputs))
        return [way for way in self._cuts if way is not None]

    def _open(self, way: str, edit: Edit) -> None:
        units = _cut_at(self._found)
        self._cuts[way] = self._stack.enter_context(
            Cut.open(self._found.quantized, units, self._factors, edit, True, OPTIMIZED)
        )

    def _values(self, feed: Arrays) -> _Values:
        got = self._exposed.run(_taken(self._exposed, feed), list(self._names))
        given: dict[Value, np.ndarray] = {}
        for name, unit in self._names.items():
            factor = self._factors.get(unit.value)
            given[unit.value] = np.asarray(got[name]) if factor is None else np.asarray(got[name]) / factor
        return _Values(given, self._float(feed, given))

    def _float(self, feed: Arrays, given: Mapping[Value, np.ndarray]) -> dict[Value, np.ndarray]:
        """What each float node makes of these values."""
        runner = self._float_cut.runner
        kinds = {spec.name: spec.dtype for spec in runner.inputs}
        feeds = dict(_taken(runner, feed))
        feeds |= {name: given[value].astype(kinds[name], copy=False) for name, value in self._float_cut.inputs.items()}
        made = runner.run(feeds, list(self._float_cut.outputs))
        return {value: np.asarray(made[name]) for name, value in self._float_cut.outputs.items()}

    def _run(self, feed: Arrays, errors: Mapping[Unit, np.ndarray]) -> dict[str, Any]:
        kinds = {spec.name: spec.dtype for spec in self._injected.inputs}
        feeds: dict[str, Any] = {name: np.zeros((), kinds[name]) for name in self._places.values()}
        feeds |= {
            self._places[unit.value]: error.astype(kinds[self._places[unit.value]], copy=False)
            for unit, error in errors.items()
        }
        return self._injected.run({**_taken(self._injected, feed), **feeds})


def _cut_at(found: LayerErrors) -> list[Unit]:
    """Where the models are cut: not behind nodes that hand codes on, or the grid before them would not be seen."""
    return [layer.unit for layer in found.layers if layer.own is not None]


def _channels(unit: Unit, error: np.ndarray) -> int:
    return error.ndim - 1 if unit.operator.op in LINEAR else min(1, error.ndim - 1)


@contextmanager
def open_bench(found: LayerErrors, nodes: Sequence[Node]) -> Iterator[Bench]:
    units: dict[Node, list[Unit]] = {node: [] for node in nodes}
    for layer in found.layers:
        if layer.unit.node in units and layer.own is not None:
            units[layer.unit.node].append(layer.unit)
    with ExitStack() as stack:
        model, places = _with_places(found.reference, [unit.value for own in units.values() for unit in own])
        every = _cut_at(found)
        exposed, images = expose(found.quantized, [unit.image for unit in every])
        by_image = {unit.image: unit for unit in every}
        names = {name: by_image[image] for name, image in images.items()}
        injected = OrtRunner(stack.enter_context(runnable(model, annotations="drop")), OPTIMIZED)
        values = OrtRunner(stack.enter_context(runnable(exposed, annotations="drop")), OPTIMIZED)
        float_cut = stack.enter_context(_float_cut(found.reference, [unit.value for unit in every]))
        cut = stack.enter_context(Cut.open(found.quantized, every, found.factors, None, True, OPTIMIZED))
        yield Bench(found, injected, places, values, names, float_cut, cut, stack, units)


@contextmanager
def _float_cut(reference: Model, values: Sequence[Value]) -> Iterator[_FloatCut]:
    """The float model in pieces: every one of these values is handed in, and what is computed for it handed out."""
    clone = reference.clone_with_map()
    graph = clone.model.graph
    while graph.outputs:
        graph.remove_output(len(graph.outputs) - 1)
    inputs: dict[str, Value] = {}
    outputs: dict[str, Value] = {}
    for index, value in enumerate(dict.fromkeys(values)):
        copy = clone.values[value]
        assert isinstance(copy.type, TensorType)
        if copy.uses:
            given = graph.add_input(f"qir.cut.{index}", TensorType(copy.type.dtype, None))
            copy.replace_all_uses(given)
            inputs[given.name] = value
        graph.add_output(copy)
        outputs[copy.name] = value
    with runnable(clone.model, annotations="drop") as source:
        yield _FloatCut(OrtRunner(source, PLAIN), inputs, outputs)


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
        readers = list(copy.uses)
        add = graph.add_node("Add", [copy, error], types=[copy.type], before=maker.next)
        for use in readers:
            use.replace(add.output)
        places[value] = error.name
    return clone.model, places


def _integer_readers(found: LayerErrors) -> dict[Unit, set[Node]]:
    """Which nodes of the float model read the codes of each unit."""
    owners = {layer.unit.operator: layer.unit.node for layer in found.layers}
    readers: dict[Unit, set[Node]] = {}
    for unit in (layer.unit for layer in found.layers):
        if unit.image is unit.result:
            continue
        quantizer = next(use.node for use in unit.result.uses)
        assert quantizer is not None
        users = (use.node for node in dequantizers(quantizer) for use in node.output.uses)
        readers[unit] = {owners[user] for user in users if user in owners and computes_on_codes(user)}
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


def _range(method: str, histogram: Histogram) -> Interval:
    return mse_range(histogram) if method == "mse" else percentile_range(histogram, 99.99)


def _compare(expected: Mapping[str, Any], got: Mapping[str, Any], metrics: dict[str, OutputMetrics]) -> None:
    for name, wanted in expected.items():
        if isinstance(wanted, np.ndarray) and wanted.dtype.kind == "f":
            metrics.setdefault(name, OutputMetrics(name)).add(wanted, got[name])


def _worst(metrics: Mapping[str, OutputMetrics]) -> float:
    return _decibels(max((_ratio(one) for one in metrics.values()), default=0.0))


def _ratio(metrics: OutputMetrics) -> float:
    """Noise power over signal power; what cannot be compared counts as all noise."""
    db = metrics.sqnr_db
    return 0.0 if math.isnan(db) else min(10 ** (-db / 10), 1e12) if db > -math.inf else 1e12


def _decibels(ratio: float) -> float:
    return -10 * math.log10(max(ratio, _TINY))


def _taken(runner: OrtRunner, feed: Arrays) -> dict[str, Any]:
    names = {spec.name for spec in runner.inputs}
    return {name: array for name, array in feed.items() if name in names}
