"""Choosing weight codes that are only stored, never computed with: what ``cluster-weights`` and ``quantize-log`` share.

Layers are visited in order with the inputs that the coded layers before them make; each weight's importance is a power
of how strongly its input varies, and rounding, where it goes to few levels, makes later columns pay for the errors of
earlier ones (``quant.gptq``). Which power, and whether rounding pays, calibration samples that were held out decide,
layer by layer. Levels are then fitted to the codes and codes to the levels, in turn (``quant.refit``). Constants that
no such layer reads get their nearest levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from qir.calibration.data import open_data, split_judges, spread
from qir.calibration.sequential import Layer, Step, float_means, linear_layers, recurrent_layers, visit_layers
from qir.calibration.specs import input_specs
from qir.ir import CodebookQuant, DType, Model, Node, Tensor, Value
from qir.passes.accuracy.correct_bias import correct_bias
from qir.pipeline.contract import Pass, PassContext, PassResult
from qir.quant.catch_up import best_damping, caught_up, cross_moment
from qir.quant.codebook import decode, encode, level_count, row_levels
from qir.quant.gptq import Moments, damped_moments, output_error, round_levels
from qir.quant.layer_rows import layer_rows
from qir.quant.recipe import Recipe
from qir.quant.refit import refit_levels
from qir.quant.slots import WeightSlot, weight_slots

__all__ = ["Coder", "Weight", "WeightCodes", "gather_weights", "nearest", "store_weights"]

_LARGEST_MOMENT = 2047.0
"""Inputs are scaled to whole numbers of this magnitude, whose products add up exactly: the same on any thread count."""
_WEIGHTINGS = (1.0, 0.5, 0.0)
"""Powers of the inputs' second moments that weigh squared errors of weights when levels are learned. What the diagonal
says is right for codes chosen one by one; codes chosen by their effect want levels for all weights, in parts."""
_MEAN_WEIGHT = 0.5
"""See ``round-weights``."""
_SMALL = 2.0**-10
_MOST_LEVELS = 64
"""With more levels the nearest one is near enough."""
_MOST_COLUMNS = 4096
_REFITS = 2
_DAMPINGS = (0.01, 0.1)
"""Of the moments, see ``gptq.round_levels``."""


class Coder(Protocol):
    """Chooses levels: ``importance`` (of the weight's shape) weighs squared errors."""

    def __call__(self, weight: Weight, importance: np.ndarray) -> CodebookQuant: ...


@dataclass(frozen=True, slots=True)
class WeightCodes:
    """Options that passes of stored codes have in common; see their fields of the same names."""

    min_size: int
    min_channel: int
    samples: int
    rows: int
    keep_float: tuple[str, ...]
    recipe: str | None = None
    refit: Literal["tables", "scales", "nothing"] = "nothing"
    """What is fitted to the codes once they are chosen; ``tables``: scales as well."""


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A constant, the first node that reads it as a weight, the axis of its output channels, and the numbers to code:
    its own, or others that serve the layer better."""

    value: Value
    node: Node
    axis: int
    array: np.ndarray


def store_weights(
    owner: Pass,
    options: WeightCodes,
    found: Iterable[Weight],
    coder: Coder,
    model: Model,
    ctx: PassContext,
    result: PassResult,
) -> None:
    """Annotate the weights ``found`` with what ``coder`` chooses, and bring them onto those levels."""
    weights = {weight.value: weight for weight in found}
    if ctx.calibration is not None and weights:
        feeds = spread(open_data(ctx.calibration, input_specs(model)), options.samples)
        layers = [layer for layer in linear_layers(model) if _reads_matrix(layer, weights)]
        layers += [layer for layer in recurrent_layers(model) if layer.weight_use.value in weights]
        biased = [layer for layer in layers if layer.bias_owner is not None]
        expected = float_means(model, biased, feeds) if biased else {}
        ctx.progress.start("choosing weight codes", len(layers))
        coded, plain = (visit_layers(model, layers, feeds, lambda copy: None, inputs=True) for _ in range(2))
        for step, original in zip(coded, plain, strict=True):
            weight = weights.pop(step.layer.weight_use.value, None)
            if weight is not None:
                quant, numbers, power = _fit(step, original, weight, coder, options)
                step.set_weight(numbers)
                _store(owner, weight, quant, numbers, result)
                result.count(f"weighted by moment^{power:g}")
            if step.layer.result in expected:
                correct_bias(step, expected[step.layer.result])
                result.count("biases")
            ctx.progress.advance()
        ctx.progress.finish()
    for weight in weights.values():
        quant = coder(weight, np.ones_like(weight.array))
        _store(owner, weight, quant, nearest(weight, quant), result)
    result.changed = bool(result.statistics)


def nearest(weight: Weight, quant: CodebookQuant) -> np.ndarray:
    """The weight on the nearest levels."""
    return decode(encode(weight.array, quant), quant, weight.array.shape)


def gather_weights(owner: Pass, options: WeightCodes, model: Model, result: PassResult) -> list[Weight]:
    """The constants worth storing as codes; remarks in ``result`` say why the others are not."""
    return list(_gather(owner, options, model, result))


def _gather(owner: Pass, options: WeightCodes, model: Model, result: PassResult) -> Iterator[Weight]:
    kept = Recipe.open(options.recipe).with_float(options.keep_float).resolve(model)
    small: list[Value] = []
    slots: dict[Value, WeightSlot] = {}
    for slot in weight_slots(model):
        slots.setdefault(slot.value, slot)
    for graph in model.graph.graphs():
        for value in graph.initializers:
            tensor = value.tensor
            if tensor is None or tensor.dtype is not DType.FLOAT or value.quant is not None or value.is_output:
                continue
            if tensor.size < options.min_size or len(tensor.shape) < 2:
                small.append(value)
                continue
            found = slots.get(value)
            if found is None:
                op = value.users[0].op if value.users else "nothing"
                result.remarks.append(owner.missed(value, f"stays float: {op} does not read it as a weight"))
                continue
            reason = next((why for node in (found.node, *value.users) if (why := kept(node))), None)
            if reason is None and not np.isfinite(tensor.numpy()).all():
                reason = "it holds an infinity or NaN"
            numbers = tensor.size // tensor.shape[found.channel_axis]
            if reason is None and numbers < options.min_channel:
                reason = f"{numbers} numbers a channel need too much of a scale, and few bits harm them most"
            if reason is not None:
                result.remarks.append(owner.missed(value, f"stays float: {reason}"))
                continue
            yield Weight(value, found.node, found.channel_axis, tensor.numpy())
    if small:
        bytes_ = sum(value.tensor.nbytes for value in small if value.tensor is not None)
        message = (
            f"{len(small)} small tensors ({bytes_} bytes: biases, norms, under {options.min_size} numbers) stay float"
        )
        result.remarks.append(owner.missed(None, message))


def _reads_matrix(layer: Layer, weights: dict[Value, Weight]) -> bool:
    """Whether the layer is a product of its input with a constant matrix, as ``layer_rows`` understands it."""
    node, weight, data = layer.node, layer.node.input(1), layer.node.input(0)
    if weight not in weights or weight is None or weight.tensor is None or data is None or data.is_constant:
        return False
    if node.op == "MatMul":
        return len(weight.tensor.shape) == 2
    return node.op == "Conv" or (not node.get("transA", 0) and node.get("alpha", 1.0) == 1.0)


def _fit(
    step: Step, original: Step, weight: Weight, coder: Coder, options: WeightCodes
) -> tuple[CodebookQuant, np.ndarray, float]:
    """The levels of a layer's weight, the weight on them, and the power of the weighting that they are chosen with.

    ``original``: the layer's turn in the float model. Codes are chosen for a weight that makes good what the layers
    before lost, where that helps on samples held out (``quant.catch_up``).

    How much a weight counts, whether rounding by effect pays, and how far to trust few samples' moments, is decided on
    samples held out; the levels and codes are then chosen anew, on all of them.
    """
    layer = _Layer(step, original, weight, coder, options.rows)
    trials = [layer.code(power, _DAMPINGS[0], layer.fitted, layer.held_out) for power in _WEIGHTINGS]
    best = min(trials, key=lambda trial: trial.error)
    trials = [best, *(layer.code(best.power, damping, layer.fitted, layer.held_out) for damping in _DAMPINGS[1:])]
    best = min(trials, key=lambda trial: trial.error)
    final = layer.code(best.power, best.damping, layer.all, None)
    if final.rounded is None or not best.rounding_pays:
        return final.quant, nearest(layer.weight, final.quant), best.power
    quant, rounded = final.quant, final.rounded
    if options.refit != "nothing" and layer.can_refit:
        for _ in range(_REFITS):
            quant, rounded = layer.refit(quant, rounded, best.damping, tables=options.refit == "tables")
    return quant, layer.geometry.weight(rounded).astype(np.float32), best.power


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """``rounded``: the weight as a matrix, rounded by effect; None where there are too many levels for it to matter.
    ``error``: mean square error of the layer's results with the better of the nearest and the rounded weight."""

    power: float
    damping: float
    quant: CodebookQuant
    rounded: np.ndarray | None
    error: float
    rounding_pays: bool


class _Layer:
    """A layer's weight, as the matrix ``targets``, and second moments of its inputs: of all samples, of those to choose
    by, and of those to judge by, (groups, columns, columns) each, cut where there are very many columns."""

    def __init__(self, step: Step, original: Step, weight: Weight, coder: Coder, rows: int) -> None:
        self.weight, self.coder = weight, coder
        self.geometry = layer_rows(step.layer.node, weight.array.shape, step.layer.weight_index)
        self.targets = self.geometry.matrix(weight.array.astype(np.float64))
        wanted = -(-rows // max(len(step.inputs), 1))
        parts, true = (
            [self.geometry.rows(one.astype(np.float32), wanted) for one in turn.inputs] for turn in (step, original)
        )
        largest = max(float(np.abs(part).max(initial=0.0)) for part in parts) or 1.0
        step_size = np.float32(largest / _LARGEST_MOMENT)
        whole = [np.rint(part / step_size) for part in parts]
        ahead = [np.rint(one / step_size) - part for one, part in zip(true, whole, strict=True)]
        self.mean_weight = _MEAN_WEIGHT if step.layer.bias_owner is not None else 1.0
        columns = self.targets.shape[-1]
        self.cuts = [slice(at, min(at + _MOST_COLUMNS, columns)) for at in range(0, columns, _MOST_COLUMNS)]
        self.all = self._hessians(whole)
        chosen, judged = split_judges(whole)
        self.fitted = self._hessians(chosen) if judged else self.all
        self.held_out = self._hessians(judged) if judged else self.all
        if judged and len(self.cuts) == 1:
            self._catch_up(whole, ahead)

    def _catch_up(self, whole: list[np.ndarray], ahead: list[np.ndarray]) -> None:
        """Move the targets to what comes nearer to the float model's results with the inputs at hand."""

        def cross(ahead: list[np.ndarray], whole: list[np.ndarray]) -> np.ndarray:
            return cross_moment(np.concatenate(ahead, axis=1), np.concatenate(whole, axis=1), self.mean_weight)

        chosen, judged = (cross(*both) for both in zip(split_judges(ahead), split_judges(whole), strict=True))
        damping = best_damping(self.targets, (self.fitted[0], chosen), (self.held_out[0], judged))
        if damping is not None:
            self.targets = self.targets + caught_up(self.targets, self.all[0], cross(ahead, whole), damping)
            self.weight = replace(self.weight, array=self.geometry.weight(self.targets).astype(np.float32))

    def _hessians(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        inputs = np.concatenate(parts, axis=1)
        found = []
        for columns in self.cuts:
            moments = Moments(inputs.shape[0], columns.stop - columns.start)
            moments.add(inputs[..., columns].astype(np.float64))
            found.append(moments.hessian(self.mean_weight))
        return found

    def code(self, power: float, damping: float, hessians: list[np.ndarray], judges: list[np.ndarray] | None) -> _Trial:
        """Levels and codes by ``hessians``, each weight counted by that power of its input's strength; the error
        without ``judges`` is 0."""
        strength = np.concatenate([np.diagonal(hessian, axis1=1, axis2=2) for hessian in hessians], axis=1)
        # A dead input still has a weight, which some other input may wake.
        strength = np.power(strength + 1e-3 * strength.mean(axis=1, keepdims=True), power)
        importance = self.geometry.weight(np.broadcast_to(strength[:, None, :], self.targets.shape))
        quant = self.coder(self.weight, importance)
        levels, rounded = self._levels(quant), None
        if levels is not None:
            rounded = np.empty(self.targets.shape)
            for cut, hessian in zip(self.cuts, hessians, strict=True):
                # What is best with the sweep is best without it, nearly: trials go without.
                rounded[..., cut] = round_levels(
                    self.targets[..., cut], hessian, levels, damping=damping, sweeps=0 if judges else 1
                )
        if judges is None:
            return _Trial(power, damping, quant, rounded, 0.0, False)
        plain = self.geometry.matrix(nearest(self.weight, quant))
        errors = [math.inf if one is None else self._error(one, judges) for one in (plain, rounded)]
        return _Trial(power, damping, quant, rounded, min(errors), errors[1] < errors[0])

    @property
    def can_refit(self) -> bool:
        """Whether the moments are whole, and no two rows share a scale."""
        groups, rows, _ = self.targets.shape
        return len(self.cuts) == 1 and self.weight.array.shape[self.weight.axis] == groups * rows

    def refit(
        self, quant: CodebookQuant, rounded: np.ndarray, damping: float, *, tables: bool
    ) -> tuple[CodebookQuant, np.ndarray]:
        """Levels fitted to the codes of ``rounded``, by all samples, and codes that go down from there."""
        (hessian,) = self.all
        quant, numbers = refit_levels(quant, self.targets, rounded, damped_moments(hessian, damping), tables=tables)
        levels = self._levels(quant)
        assert levels is not None
        return quant, round_levels(self.targets, hessian, levels, damping=damping, start=numbers)

    def _levels(self, quant: CodebookQuant) -> np.ndarray | None:
        """Ascending levels of each row that rounding chooses among, (groups, rows, levels), if there are few."""
        levels = _useful_levels(quant, self.weight.array.shape[self.weight.axis])
        if levels is None:
            return None
        groups, rows, _ = self.targets.shape
        # Directions of a recurrent layer have their levels in common.
        return np.tile(levels, (groups * rows // len(levels), 1)).reshape(groups, rows, -1)

    def _error(self, numbers: np.ndarray, judges: list[np.ndarray]) -> float:
        lost = self.targets - numbers
        return sum(
            float(output_error(lost[..., cut], judge).sum()) for cut, judge in zip(self.cuts, judges, strict=True)
        )


def _useful_levels(quant: CodebookQuant, channels: int) -> np.ndarray | None:
    """Ascending levels of each channel, or of all, (channels or 1, levels), among which rounding chooses.

    Of one table those next to zero are left out (a logarithmic one has hundreds); None where too many remain.
    """
    if quant.dim > 1:
        return None
    levels = row_levels(quant, channels)
    if len(quant.table) == 1:
        size = np.abs(np.array(quant.table[0]))
        levels = levels[:, (size == 0) | (size > _SMALL * size.max())]
    return np.sort(levels, axis=1) if levels.shape[1] <= _MOST_LEVELS else None


def _store(owner: Pass, weight: Weight, quant: CodebookQuant, numbers: np.ndarray, result: PassResult) -> None:
    value = weight.value
    assert value.tensor is not None
    value.const = Tensor.of(np.ascontiguousarray(numbers, np.float32), name=value.tensor.name)
    value.frozen = True
    value.quant = quant
    result.count(f"{quant.bits} bits")
    result.count("numbers", numbers.size)
    cut = f"{len(quant.table)} tables of {level_count(quant)} levels" if len(quant.table) > 1 else "one table"
    result.remarks.append(owner.applied(weight.node, f"weight stored as {quant.bits}-bit codes, {cut}"))
