"""Layer by layer: where the error of a quantized model comes from, and where it has got to.

Five runs a sample. The float model hands out every value; the quantized one too, which gives the accumulated error;
and the quantized one cut into pieces, each fed with the float values, which gives the error that a node adds by
itself. Two more runs of the pieces, with the runtime's optimisations on and off, give what its integer kernels add to
that: some compute less exactly than their operator says. Memory: the activations of one sample, a few times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import length_hint
from typing import Any

import numpy as np

from qir.calibration.collect import expose
from qir.calibration.histogram import Histogram
from qir.codegen import runnable
from qir.errors import DataError
from qir.ir import Model, Node, TensorType, Value
from qir.ops.shape_inference import infer
from qir.pipeline.contract import NoProgress, Progress
from qir.quant.arithmetic import quantize
from qir.runtime.session import OPTIMIZED, PLAIN, OrtRunner, SessionConfig
from qir.validation.alignment import Alignment, Quantizer, Unit, align, dequantizers
from qir.validation.metrics import OutputMetrics, finite_db

__all__ = ["EXACT", "Cut", "Edit", "Grid", "Layer", "LayerErrors", "compare_layers"]

Arrays = Mapping[str, np.ndarray]

EXACT = 110.0
"""dB at which an error is no more than float arithmetic's."""


@dataclass(slots=True)
class Grid:
    """How a value meets the grid that it is quantized to. ``histogram`` is of the float model's values."""

    value: str
    quantizer: Quantizer
    histogram: Histogram = field(default_factory=Histogram)
    elements: int = 0
    clipped: int = 0
    _used: set[int] = field(default_factory=set)

    def add(self, array: np.ndarray) -> None:
        quant = self.quantizer.quant
        values = array.astype(np.float32)
        codes = quantize(values, quant)
        scale, zero = quant.scale[0], quant.zero_point[0]
        low, high = (quant.dtype.qmin - zero - 0.5) * scale, (quant.dtype.qmax - zero + 0.5) * scale
        self.elements += values.size
        with np.errstate(over="ignore"):
            self.clipped += int(np.count_nonzero((values < low) | (values > high)))
        self._used.update(np.unique(np.asarray(codes).astype(np.int64)).tolist())
        self.histogram = self.histogram.merge(Histogram.of(values))

    @property
    def clipped_share(self) -> float:
        """Of all numbers, those beyond the ends of the grid."""
        return self.clipped / self.elements if self.elements else 0.0

    @property
    def levels(self) -> int:
        return int(self.quantizer.quant.dtype.qmax - self.quantizer.quant.dtype.qmin + 1)

    @property
    def used_levels(self) -> int:
        return len(self._used)

    def as_dict(self) -> dict[str, Any]:
        quant = self.quantizer.quant
        return {
            "value": self.value,
            "dtype": str(quant.dtype),
            "scale": quant.scale[0],
            "zero_point": quant.zero_point[0],
            "seen": [self.histogram.interval.lower, self.histogram.interval.upper] if self.elements else None,
            "clipped": self.clipped_share,
            "used_levels": self.used_levels,
            "levels": self.levels,
        }


@dataclass(slots=True)
class Layer:
    """One row of the comparison. ``own``: the error of this node alone, fed with float values; None where it only moves
    codes. ``total``: with all that came before. ``scaled``: the quantized model computes this value times a factor a
    channel (it was equalised), which is divided out."""

    unit: Unit
    own: OutputMetrics | None
    total: OutputMetrics
    grids: list[Grid]
    scaled: bool = False

    @property
    def node(self) -> str:
        return self.unit.node.label

    @property
    def own_db(self) -> float:
        return math.inf if self.own is None else self.own.sqnr_db

    @property
    def max_lsb(self) -> float | None:
        """The largest accumulated error, in steps of the value's own grid; None for a value that stays float."""
        grid = next((grid for grid in self.grids if grid.quantizer.is_result), None)
        return None if grid is None or self.scaled else self.total.max_abs / grid.quantizer.quant.scale[0]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; see ``finite_db`` for infinities."""
        return {
            "node": self.node,
            "op": self.unit.node.op,
            "value": self.unit.value.name,
            "precision": self.unit.kind,
            "own_sqnr_db": None if self.own is None else finite_db(self.own.sqnr_db),
            "own_cosine": None if self.own is None else self.own.cosine,
            "sqnr_db": finite_db(self.total.sqnr_db),
            "cosine": self.total.cosine,
            "max_abs_error": self.total.max_abs,
            "max_error_lsb": self.max_lsb,
            "scaled": self.scaled,
            "grids": [grid.as_dict() for grid in self.grids],
        }


@dataclass(slots=True)
class LayerErrors:
    """``layers`` in the order in which the quantized model computes them. ``paths``: for the name of a node that stands
    in a body, which; ``elsewhere``: nodes of bodies that only other samples run."""

    reference: Model
    quantized: Model
    layers: list[Layer]
    alignment: Alignment
    samples: int
    factors: Mapping[Value, np.ndarray] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    elsewhere: list[Layer] = field(default_factory=list)

    def add_branches(self, other: LayerErrors, paths: Mapping[str, str]) -> None:
        """Take in the nodes of bodies that ``other``, of other samples, ran and these did not."""
        self.elsewhere += [layer for layer in other.layers if layer.node in paths and layer.node not in self.paths]
        self.paths = {**paths, **self.paths}
        self.samples += other.samples

    def place(self, layer: Layer) -> str:
        """The node's name, after the body that it stands in."""
        path = self.paths.get(layer.node)
        return layer.node if path is None else f"{path}/{layer.node}"

    def noisy(self) -> list[Layer]:
        """Quantized nodes in order, and those whose weights were rounded in a form that only their error shows."""
        every = (*self.layers, *self.elsewhere)
        return [layer for layer in every if layer.unit.kind != "float" or layer.own_db < EXACT]

    def ranked(self) -> list[Layer]:
        """The noisy nodes that do more than to move codes, the one with the largest error of its own first."""
        return sorted((layer for layer in self.noisy() if layer.own is not None), key=lambda layer: layer.own_db)


def compare_layers(
    reference: Model, quantized: Model, feeds: Iterable[Arrays], *, progress: Progress | None = None
) -> LayerErrors:
    """Errors of every value that both models have, pooled over the feeds.

    Raises DataError where there is no feed, ModelError where the runtime refuses a model.
    """
    watch = progress or NoProgress()
    reference, quantized = reference.clone(), quantized.clone()
    infer(reference)
    infer(quantized)
    alignment = align(reference, quantized)
    found: LayerErrors | None = None
    with ExitStack() as stack:
        run: _Runs | None = None
        watch.start("comparing layers", length_hint(feeds) or None)
        remaining = iter(feeds)
        first = list(islice(remaining, _FITTED_ON))
        for feed in chain(first, remaining):
            if run is None:
                run = stack.enter_context(_runs(reference, quantized, alignment, first))
                layers = [_layer(unit, run.factor(unit)) for unit in alignment.units]
                found = LayerErrors(reference, quantized, layers, alignment, 0, run.cut.factors)
            assert found is not None
            _add(found, run, feed)
            watch.advance()
        watch.finish()
    if found is None:
        raise DataError("there is no sample to compare on: give at least one")
    return found


def _layer(unit: Unit, factor: np.ndarray | None) -> Layer:
    name = unit.value.name
    grids = [Grid(quantizer.value.name, quantizer) for quantizer in unit.quantizers]
    own = None if unit.moves else OutputMetrics(name)
    return Layer(unit, own, OutputMetrics(name), grids, factor is not None)


def _add(found: LayerErrors, run: _Runs, feed: Arrays) -> None:
    wanted, total = run.float_values(feed), run.accumulated(feed)
    own = run.own(feed, wanted)
    for layer in found.layers:
        unit = layer.unit
        layer.total.add(*_without_masks(wanted[unit.value], total[unit]))
        if layer.own is not None:
            layer.own.add(*_without_masks(wanted[unit.value], own[unit]))
        for grid in layer.grids:
            array = wanted.get(grid.quantizer.value)
            if array is None:
                array = np.asarray(feed[grid.value])
            factor = run.cut.factor_of(grid.quantizer.value)
            grid.add(array if factor is None else array * factor)
    found.samples += 1


def _without_masks(wanted: np.ndarray, got: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both without entries that a mask has made huge, such as -3.4e38 or -10000 beside scores: their power would hide
    any error of the others. Where all is huge, or the other side has no mask there, it counts as it is."""
    size = np.abs(wanted)
    masked = size >= _MASK
    if not masked.any() or masked.all():
        return wanted, got
    smallest = float(size.min(where=masked, initial=np.inf))
    if smallest < _BEYOND_SCALES and smallest < _DROWNS * float(size.max(where=~masked, initial=0.0)):
        return wanted, got
    with np.errstate(invalid="ignore"):
        masked &= ~(np.abs(got) < 0.5 * size)
    return np.where(masked, 0, wanted), np.where(masked, 0, got)


_MASK, _DROWNS, _BEYOND_SCALES = 5e3, 100.0, 1e30
"""From which size on an entry can be a mask's, how much larger than all others it then is, and what always is one."""


class _Runs:
    """The loaded models of one comparison."""

    def __init__(
        self, reference: OrtRunner, quantized: OrtRunner, names: _Names, cut: Cut, kernels: tuple[Cut, Cut] | None
    ) -> None:
        self._reference = reference
        self._quantized = quantized
        self._names = names
        self.cut = cut
        self._kernels = kernels

    def factor(self, unit: Unit) -> np.ndarray | None:
        return self.cut.factors.get(unit.value)

    def float_values(self, feed: Arrays) -> dict[Value, np.ndarray]:
        got = self._reference.run(_taken(self._reference, feed), list(self._names.ours))
        return {value: np.asarray(got[name]) for name, value in self._names.ours.items()}

    def own(self, feed: Arrays, wanted: Mapping[Value, np.ndarray]) -> dict[Unit, np.ndarray]:
        """What each unit makes of float values, with the error that the runtime's kernel makes of integers."""
        made = self.cut.run(feed, wanted)
        if self._kernels is None:
            return made
        fused, plain = (cut.run(feed, wanted) for cut in self._kernels)
        with np.errstate(invalid="ignore", over="ignore"):
            return {unit: array + (fused[unit] - plain[unit]) for unit, array in made.items()}

    def accumulated(self, feed: Arrays) -> dict[Unit, np.ndarray]:
        got = self._quantized.run(_taken(self._quantized, feed), list(self._names.theirs))
        return {unit: _divided(np.asarray(got[name]), self.factor(unit)) for name, unit in self._names.theirs.items()}


@dataclass(frozen=True, slots=True)
class _Names:
    ours: dict[str, Value]
    theirs: dict[str, Unit]


@contextmanager
def _runs(reference: Model, quantized: Model, alignment: Alignment, feeds: Sequence[Arrays]) -> Iterator[_Runs]:
    """Loads the models; units whose shapes differ on one of these feeds are dropped from the alignment."""
    with ExitStack() as stack:
        ours, our_names = expose(reference, [unit.value for unit in alignment.units])
        theirs, image_names = expose(quantized, [unit.image for unit in alignment.units])
        by_image = {unit.image: unit for unit in alignment.units}
        names = _Names(dict(our_names), {name: by_image[image] for name, image in image_names.items()})
        float_runner = OrtRunner(stack.enter_context(runnable(ours, annotations="drop")), PLAIN)
        their_runner = OrtRunner(stack.enter_context(runnable(theirs, annotations="drop")), OPTIMIZED)
        first = _Runs(float_runner, their_runner, names, Cut.none(), None)
        factors = _Factors()
        same = set(alignment.units)
        for feed in feeds:
            wanted, got = first.float_values(feed), first.accumulated(feed)
            same = {unit for unit in same if unit in got and wanted[unit.value].shape == got[unit].shape}
            for unit in same:
                factors.add(unit.value, wanted[unit.value], got[unit])
        alignment.units = [unit for unit in alignment.units if unit in same]
        values = {unit.value for unit in same}
        kept = _Names(
            {name: value for name, value in names.ours.items() if value in values},
            {name: unit for name, unit in names.theirs.items() if unit in same},
        )
        pieces = [
            stack.enter_context(Cut.open(quantized, alignment.units, factors.found(), requantize=again, config=config))
            for again, config in ((False, PLAIN), (True, OPTIMIZED), (True, PLAIN))
        ]
        yield _Runs(float_runner, their_runner, kept, pieces[0], (pieces[1], pieces[2]))


class Cut:
    """The quantized model in pieces: every aligned value is handed in as it is in the float model."""

    def __init__(
        self,
        model: Model | None,
        runner: OrtRunner | None,
        inputs: Mapping[str, Unit],
        outputs: Mapping[str, Unit],
        factors: Mapping[Value, np.ndarray],
    ) -> None:
        self.model = model
        self._runner = runner
        self._inputs = dict(inputs)
        self._outputs = dict(outputs)
        self.factors = factors

    @classmethod
    def none(cls) -> Cut:
        return cls(None, None, {}, {}, {})

    @classmethod
    @contextmanager
    def open(
        cls,
        quantized: Model,
        units: Sequence[Unit],
        factors: Mapping[Value, np.ndarray],
        edit: Edit | None = None,
        requantize: bool = False,
        config: SessionConfig = PLAIN,
    ) -> Iterator[Cut]:
        """``edit`` may change the clone: it gets the map from the quantized model's nodes to the clone's. With
        ``requantize`` the values handed in pass the quantizers that stand behind them."""
        clone = quantized.clone_with_map()
        graph = clone.model.graph
        while graph.outputs:
            graph.remove_output(len(graph.outputs) - 1)
        if edit is not None:
            edit(clone.nodes)
        inputs: dict[str, Unit] = {}
        outputs: dict[str, Unit] = {}
        for index, unit in enumerate(units):
            image = clone.values[unit.image]
            seen = [image]
            if unit.image is not unit.result:  # the dequantizers of other scopes say the same
                assert image.producer is not None
                quantizer = _quantizer_before(image.producer)
                seen = [node.output for node in dequantizers(quantizer)]
            if any(value.uses for value in seen):
                name = f"qir.cut.{index}"
                assert isinstance(image.type, TensorType)
                value = graph.add_input(name, TensorType(image.type.dtype, None))
                for one, given in zip(
                    seen, _requantized(value, seen, requantize and unit.image is not unit.result), strict=True
                ):
                    one.replace_all_uses(given)
                inputs[name] = unit
            graph.add_output(image)
            outputs[image.name] = unit
        with runnable(clone.model, annotations="drop") as source:
            yield cls(clone.model, OrtRunner(source, config), inputs, outputs, factors)

    def factor_of(self, value: Value) -> np.ndarray | None:
        return self.factors.get(value)

    def run(self, feed: Arrays, wanted: Mapping[Value, np.ndarray]) -> dict[Unit, np.ndarray]:
        """What each unit makes of float values, in the float model's scale."""
        assert self._runner is not None
        feeds: dict[str, Any] = dict(_taken(self._runner, feed))
        kinds = {spec.name: spec.dtype for spec in self._runner.inputs}
        for name, unit in self._inputs.items():
            array, factor = wanted[unit.value], self.factors.get(unit.value)
            feeds[name] = (array if factor is None else array * factor).astype(kinds[name], copy=False)
        got = self._runner.run(feeds, list(self._outputs))
        return {
            unit: _divided(np.asarray(got[name]), self.factors.get(unit.value)) for name, unit in self._outputs.items()
        }


def _quantizer_before(dequantizer: Node) -> Node:
    codes = dequantizer.input(0)
    assert codes is not None and codes.producer is not None
    return codes.producer


def _requantized(value: Value, seen: Sequence[Value], wanted: bool) -> list[Value]:
    """The value for each of the dequantized ones that it stands in for, through quantizers like theirs if wanted."""
    if not wanted:
        return [value] * len(seen)
    given = []
    for one in seen:
        old = one.producer
        assert old is not None and old.graph is not None
        codes = _like(_quantizer_before(old), value, old)
        given.append(_like(old, codes, old))
    return given


def _like(node: Node, operand: Value, before: Node) -> Value:
    assert before.graph is not None
    operands = [operand, *node.inputs[1:]]
    made = before.graph.add_node(
        node.op, operands, dict(node.attributes), domain=node.domain, types=[node.output.type], before=before
    )
    return made.output


Edit = Any
"""A function of the map from the quantized model's nodes to those of a clone, which it may edit."""


def _taken(runner: OrtRunner, feed: Arrays) -> dict[str, Any]:
    names = {spec.name for spec in runner.inputs}
    return {name: array for name, array in feed.items() if name in names}


def _divided(array: np.ndarray, factor: np.ndarray | None) -> np.ndarray:
    return array if factor is None else array / factor


_NOT_NOISE, _EXPLAINED, _OFF, _CLEAN = 0.3, 0.25, 0.01, 0.1
_FITTED_ON = 8
"""Feeds on which factors are estimated."""


class _Factors:
    """The factor a channel by which an equalised model's values differ: least squares along axis 1 of images, along the
    last axis of all else. One counts where a channel differs by more than 20 %, the values are less than 20 dB apart,
    and the factors explain three quarters of that and leave at least 10 dB."""

    def __init__(self) -> None:
        self._sums: dict[Value, list[np.ndarray]] = {}
        self._counts: dict[Value, int] = {}

    def add(self, value: Value, wanted: np.ndarray, got: np.ndarray) -> None:
        if wanted.ndim < 2 or not wanted.size:
            return
        axis = 1 if wanted.ndim >= 4 else wanted.ndim - 1
        others = tuple(index for index in range(wanted.ndim) if index != axis)
        ours, theirs = wanted.astype(np.float64), got.astype(np.float64)
        new = [(a * b).sum(axis=others, keepdims=True) for a, b in ((ours, ours), (ours, theirs), (theirs, theirs))]
        old = self._sums.get(value)
        if old is not None and old[0].shape != new[0].shape:
            return
        self._sums[value] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]
        self._counts[value] = self._counts.get(value, 0) + wanted.size // wanted.shape[axis]

    def found(self) -> dict[Value, np.ndarray]:
        factors = {}
        for value, (power, dot, theirs) in self._sums.items():
            count = self._counts[value]
            factor = np.where(power > 0, dot / np.maximum(power, 1e-30), 1.0)
            factor[factor <= 0] = 1.0
            if count < 4 or np.abs(np.log2(factor)).max() < _NOT_NOISE:
                continue
            before = (theirs - 2 * dot + power).sum()
            after = (theirs - 2 * factor * dot + factor**2 * power).sum() * count / (count - 1)
            if before > _OFF * power.sum() and after < min(_EXPLAINED * before, _CLEAN * theirs.sum()):
                factors[value] = factor.astype(np.float32)
        return factors
