"""Second-order rounding of weight-only layers, one after the other, with the inputs that the quantized ones make.

Codes are chosen for targets that make good what the layers before lost (``quant.catch_up``). How much of that to
trust, and whether rounding pays at all, calibration samples decide that were held out: by how far the layer's results,
with the inputs at hand, are from the float model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qir.calibration.data import split_judges
from qir.calibration.sequential import Layer, Step, visit_layers
from qir.ir import Model, Node, StaticQuant, Use, UseQuantMarker, Value
from qir.passes.emission.emit_qdq import EmitQdq
from qir.pipeline.contract import PassContext
from qir.quant.arithmetic import quantize
from qir.quant.blocks import units_like
from qir.quant.catch_up import best_damping, caught_up, cross_moment
from qir.quant.gptq import Moments, round_numbers
from qir.quant.layer_rows import Rows, layer_rows

__all__ = ["round_blocks"]

_WHOLE = 255
"""Each column of the inputs is rounded to so many steps of either sign: sums of their products are then exact, the same
on every machine."""

Feeds = Sequence[Mapping[str, np.ndarray]]


def round_blocks(
    model: Model, uses: Sequence[Use], feeds: Feeds, ctx: PassContext, *, rows: int, max_columns: int, damping: float
) -> dict[Layer, float | None]:
    """Round the annotated weights that ``uses`` (operand 1 of a MatMul, Gemm or Conv, 1 or 2 of a recurrent layer, of
    the main graph) read.

    Returns the gain in dB of each layer's results on samples held out, None where the codes stay the nearest.
    """
    layers = []
    for use in uses:
        assert use.node is not None
        layers.append(Layer(use.node, use.node.outputs[0], -1, None, weight_index=use.index))
    gains: dict[Layer, float | None] = {}
    moments = _InputMoments(rows)
    ctx.progress.start("rounding weights", len(layers))
    quantized = visit_layers(model, layers, feeds, lambda copy: EmitQdq().run(copy, ctx), inputs=True)
    plain = visit_layers(model, layers, feeds, _drop_annotations, inputs=True)
    for step, original in zip(quantized, plain, strict=True):
        gains[step.layer] = _round(step, original, moments, max_columns, damping)
        ctx.progress.advance()
    ctx.progress.finish()
    return gains


def _drop_annotations(model: Model) -> None:
    """Make a model the float one that it was."""
    for graph in model.graphs():
        for value in graph.values():
            value.quant = None
    for node in model.walk():
        node.kernel = None
        for use in node.uses:
            if use is not None:
                use.quant = UseQuantMarker.INHERIT


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """Moments of inputs x and of what the float model's are ahead of them, d, (groups, columns, columns):
    ``hessian`` E[x x^T], ``cross`` E[d x^T], ``ahead`` E[d d^T]."""

    hessian: np.ndarray
    cross: np.ndarray
    ahead: np.ndarray

    def error(self, targets: np.ndarray, numbers: np.ndarray) -> float:
        """Mean square by which results of ``numbers`` miss the float model's, of ``targets``; summed over rows."""
        lost = targets - numbers
        of_weights = ((lost @ self.hessian + 2 * targets @ self.cross) * lost).sum()
        return float(of_weights + ((targets @ self.ahead) * targets).sum())

    def cut(self, columns: slice) -> _Side:
        return _Side(*(one[:, columns, columns] for one in (self.hessian, self.cross, self.ahead)))


class _InputMoments:
    """Moments of the last input; layers in a row that read the same one share them."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._key: tuple[Value | Node | None, Rows] | None = None
        self._found: tuple[_Side, _Side] | None = None

    def of(self, step: Step, original: Step, geometry: Rows) -> tuple[_Side, _Side]:
        """What to fit on and what to judge by."""
        layer = step.layer
        key = (layer.node.input(0) if layer.weight_index == 1 else layer.node, geometry)
        if self._found is None or self._key != key:
            self._key, self._found = key, self._measure(step, original, geometry)
        return self._found

    def _measure(self, step: Step, original: Step, geometry: Rows) -> tuple[_Side, _Side]:
        wanted = max(1, -(-self._rows // max(len(step.inputs), 1)))
        parts, true = ([geometry.rows(array, wanted) for array in turn.inputs] for turn in (step, original))
        peak = np.max([np.abs(part).max(axis=1, initial=0) for part in parts], axis=0)  # (groups, columns)
        step_size = np.where(peak > 0, peak / _WHOLE, 1.0)
        whole, ahead = [], []
        for part, wish in zip(parts, true, strict=True):
            whole.append(np.rint(part / step_size[:, None]).astype(np.float32))
            ahead.append(np.rint(wish / step_size[:, None]).astype(np.float32) - whole[-1])
        area = step_size[:, :, None] * step_size[:, None, :]
        (fitted, judged), (fitted_ahead, judged_ahead) = split_judges(whole), split_judges(ahead)
        fit = _side(fitted, fitted_ahead, area)
        return fit, _side(judged, judged_ahead, area) if judged else fit


def _side(whole: list[np.ndarray], ahead: list[np.ndarray], area: np.ndarray) -> _Side:
    groups, _, columns = whole[0].shape
    moments = Moments(groups, columns)
    for part in whole:
        moments.add(part)
    x, d = np.concatenate(whole, axis=1), np.concatenate(ahead, axis=1)
    return _Side(moments.hessian() * area, cross_moment(d, x, 1.0) * area, cross_moment(d, d, 1.0) * area)


def _targets(wanted: np.ndarray, fit: _Side, judge: _Side) -> np.ndarray:
    """The weight, or what comes nearer to the float model's results with the inputs at hand."""
    damping = best_damping(wanted, (fit.hessian, fit.cross), (judge.hessian, judge.cross))
    return wanted if damping is None else wanted + caught_up(wanted, fit.hessian, fit.cross, damping)


def _round(step: Step, original: Step, moments: _InputMoments, max_columns: int, damping: float) -> float | None:
    use, quant = step.layer.weight_use, step.layer.weight_use.quant
    tensor = use.value.tensor
    if not step.owns_weight or tensor is None or not isinstance(quant, StaticQuant) or quant.axis is None:
        return None
    weight = tensor.numpy()
    geometry = layer_rows(step.layer.node, weight.shape, step.layer.weight_index)

    def spread(numbers: np.ndarray) -> np.ndarray:
        return geometry.matrix(units_like(numbers, weight.shape, quant.axis or 0, quant.block_size))

    scale = spread(quant.scale_array().astype(np.float64))
    zero = spread(np.asarray(quant.zero_point_array()))
    low, high = quant.dtype.qmin - zero, quant.dtype.qmax - zero
    wanted = geometry.matrix(weight).astype(np.float64)
    nearest = np.clip(np.rint(wanted / scale), low, high) * scale
    fit, judge = moments.of(step, original, geometry)
    numbers = np.empty_like(wanted)
    before = after = 0.0
    for start in range(0, wanted.shape[-1], max_columns):
        cut = slice(start, start + max_columns)
        fitted, judged = fit.cut(cut), judge.cut(cut)
        # Of 8 bits there is little to make good, and samples cannot tell it from chance: MiniLM loses 3 dB by it.
        targets = _targets(wanted[..., cut], fitted, judged) if quant.dtype.bits <= 4 else wanted[..., cut]
        numbers[..., cut] = round_numbers(
            targets, fitted.hessian, scale[..., cut], low[..., cut], high[..., cut], damping=damping
        )
        before += judged.error(wanted[..., cut], nearest[..., cut])
        after += judged.error(wanted[..., cut], numbers[..., cut])
    if not after < before:
        return None
    rounded = np.ascontiguousarray(geometry.weight(numbers).astype(np.float32))
    step.set_weight_codes(quantize(rounded, quant))
    step.layer.freeze_weight(rounded)
    return float(10 * np.log10(before / max(after, 1e-30)))
