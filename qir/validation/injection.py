"""The errors of a quantized model, injected into the float model: what they do at the outputs, all together or some of
them, and how that changes where nodes stay float or are quantized in another way.

One float inference a sample and question, whatever the format of the quantized file. Other ways to quantize (threshold
methods, dynamic activations) are other cuts of the quantized model, which make other errors; a bias correction takes
their means away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from qir.calibration.collect import expose
from qir.calibration.thresholds import mse_range, percentile_range
from qir.codegen import runnable
from qir.ir import DType, Interval, Model, Node, TensorType, Value
from qir.pipeline.contract import Progress
from qir.quant.arithmetic import fake_quantize
from qir.quant.schemes import activation_quant
from qir.runtime.session import OPTIMIZED, OrtRunner
from qir.validation.alignment import Quantizer, Unit, computes_on_codes, dequantizers
from qir.validation.layers import Arrays, Cut, LayerErrors
from qir.validation.metrics import OutputMetrics

__all__ = ["LINEAR", "TRIED_METHODS", "Bench", "Group", "Noise", "Plan", "decibels", "open_bench"]

LINEAR = ("MatMul", "Gemm")
TRIED_METHODS = ("minmax", "mse", "percentile")
_WITH_BIAS = (*LINEAR, "Conv", "ConvTranspose")
_TINY = 1e-30

Noise = dict[str, float]
"""Noise power over signal power, by output."""

Group = list[tuple[Node, str]]
"""Nodes and what to do with them: ``float``, a threshold method, or ``int8-dynamic``."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to a quantized model. A later pair wins over an earlier one of the same node; ``bias``: the mean
    error of each channel is corrected."""

    pairs: tuple[tuple[Node, str], ...] = ()
    bias: bool = False

    def with_(self, group: Group) -> Plan:
        return Plan((*self.pairs, *group), self.bias)


class Bench:
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
        self._cuts: dict[str | None, Cut] = {None: cut}
        self._means: dict[tuple[str | None, Unit], np.ndarray] = {}
        self._readers = _integer_readers(found)

    def noise(
        self, way: str | None, feeds: Sequence[Arrays], nodes: Sequence[Node], watch: Progress, bias: bool = False
    ) -> dict[Node, Noise]:
        """What each node's errors alone put on the outputs: as they are (None), or in another way."""
        metrics: dict[Node, dict[str, OutputMetrics]] = {node: {} for node in nodes}
        for feed in feeds:
            values = self._values(feed)
            errors = {} if way == "float" else self._errors(way, feed, values, bias)
            expected = self._run(feed, {})
            for node in nodes:
                if way == "float":
                    errors = self._left_over(node, values, {node})
                got = self._run(feed, {unit: errors[unit] for unit in self._units[node]})
                _compare(expected, got, metrics[node])
                watch.advance()
        return {node: {name: _ratio(one) for name, one in by.items()} for node, by in metrics.items()}

    def together(self, feeds: Sequence[Arrays], plans: Sequence[Plan], watch: Progress) -> list[float]:
        """SQNR in dB of the worst output with all errors, for each plan: those of its nodes as its ways leave them."""
        metrics: list[dict[str, OutputMetrics]] = [{} for _ in plans]
        used = {(way, plan.bias) for plan in plans for _, way in plan.pairs if way != "float"}
        used |= {(None, plan.bias) for plan in plans}
        for feed in feeds:
            values = self._values(feed)
            made = {key: self._errors(key[0], feed, values, key[1]) for key in sorted(used, key=str)}
            expected = self._run(feed, {})
            for plan, found in zip(plans, metrics, strict=True):
                errors = dict(made[None, plan.bias])
                ways = dict(plan.pairs)
                floats = {node for node, way in ways.items() if way == "float"}
                for node, way in ways.items():
                    left = self._left_over(node, values, floats) if way == "float" else made[way, plan.bias]
                    errors.update((unit, left[unit]) for unit in self._units[node])
                _compare(expected, self._run(feed, errors), found)
                watch.advance()
        return [decibels(max((_ratio(one) for one in found.values()), default=0.0)) for found in metrics]

    def learn_means(self, feeds: Sequence[Arrays], watch: Progress) -> None:
        """The mean error of each channel, which a bias correction takes away."""
        sums: dict[tuple[str | None, Unit], list[np.ndarray]] = {}
        units = [unit for units in self._units.values() for unit in units if unit.operator.op in _WITH_BIAS]
        for feed in feeds:
            values = self._values(feed)
            for way in self._cuts:
                errors = self._errors(way, feed, values, False)
                for unit in units:
                    others = tuple(i for i in range(errors[unit].ndim) if i != _channels(unit, errors[unit]))
                    sums.setdefault((way, unit), []).append(errors[unit].mean(axis=others, keepdims=True))
            watch.advance()
        self._means = {key: np.mean(arrays, axis=0).astype(np.float32) for key, arrays in sums.items()}

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

    def open_ways(self, nodes: Sequence[Node]) -> list[str]:
        """Cuts with all static quantizers of these nodes made in another way; which ways there are."""
        histograms = {
            grid.quantizer.node: (grid.quantizer, grid.histogram)
            for layer in self._found.layers
            if layer.unit.node in set(nodes)
            for grid in layer.grids
        }
        for method in TRIED_METHODS if histograms else ():
            ranges = {
                quantizer.node: (quantizer, _range(method, histogram)) for quantizer, histogram in histograms.values()
            }
            self._open(method, lambda clones, ranges=ranges: _requantize(clones, ranges))
        inputs = [
            quantizer.node
            for units in (self._units[node] for node in nodes if node.op in LINEAR)
            for unit in units
            for quantizer in unit.quantizers
            if not quantizer.is_result and quantizer.quant.dtype in (DType.UINT8, DType.INT8)
        ]
        if inputs:
            self._open("int8-dynamic", lambda clones: _make_dynamic(clones, inputs))
        return [way for way in self._cuts if way is not None]

    def _open(self, way: str, edit: Any) -> None:
        units = [layer.unit for layer in self._found.layers]
        self._cuts[way] = self._stack.enter_context(Cut.open(self._found.quantized, units, self.cut.factors, edit))

    def _values(self, feed: Arrays) -> dict[Value, np.ndarray]:
        got = self._exposed.run(_taken(self._exposed, feed), list(self._names))
        return {value: np.asarray(got[name]) for name, value in self._names.items()}

    def _errors(
        self, way: str | None, feed: Arrays, values: Mapping[Value, np.ndarray], bias: bool
    ) -> dict[Unit, np.ndarray]:
        made = self._cuts[way].run(feed, values)
        with np.errstate(invalid="ignore", over="ignore"):
            errors = {unit: made[unit] - values[unit.value] for units in self._units.values() for unit in units}
        errors = {unit: np.where(np.isfinite(error), error, 0.0) for unit, error in errors.items()}
        if bias:
            errors |= {unit: errors[unit] - mean for (of, unit), mean in self._means.items() if of == way}
        return errors

    def _run(self, feed: Arrays, errors: Mapping[Unit, np.ndarray]) -> dict[str, Any]:
        kinds = {spec.name: spec.dtype for spec in self._injected.inputs}
        feeds: dict[str, Any] = {name: np.zeros((), kinds[name]) for name in self._places.values()}
        feeds |= {
            self._places[unit.value]: error.astype(kinds[self._places[unit.value]], copy=False)
            for unit, error in errors.items()
        }
        return self._injected.run({**_taken(self._injected, feed), **feeds})


def _channels(unit: Unit, error: np.ndarray) -> int:
    return error.ndim - 1 if unit.operator.op in LINEAR else min(1, error.ndim - 1)


_NOTHING = np.zeros((), np.float32)


@contextmanager
def open_bench(found: LayerErrors, nodes: Sequence[Node]) -> Iterator[Bench]:
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
        yield Bench(found, injected, places, values, names, cut, stack, units)


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


def _compare(expected: Mapping[str, Any], got: Mapping[str, Any], metrics: dict[str, OutputMetrics]) -> None:
    for name, wanted in expected.items():
        if isinstance(wanted, np.ndarray) and wanted.dtype.kind == "f":
            metrics.setdefault(name, OutputMetrics(name)).add(wanted, got[name])


def _ratio(metrics: OutputMetrics) -> float:
    """Noise power over signal power; what cannot be compared counts as all noise."""
    db = metrics.sqnr_db
    return 0.0 if math.isnan(db) else min(10 ** (-db / 10), 1e12) if db > -math.inf else 1e12


def decibels(ratio: float) -> float:
    return -10 * math.log10(max(ratio, _TINY))


def _taken(runner: OrtRunner, feed: Arrays) -> dict[str, Any]:
    names = {spec.name for spec in runner.inputs}
    return {name: array for name, array in feed.items() if name in names}
