"""Second-order rounding of weight-only layers, one after the other, with the inputs that the quantized ones make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qir.calibration.sequential import Layer, Step, visit_layers
from qir.ir import Model, Node, StaticQuant, Use, Value
from qir.passes.emission.emit_qdq import EmitQdq
from qir.pipeline.contract import PassContext
from qir.quant.arithmetic import quantize
from qir.quant.blocks import units_like
from qir.quant.gptq import Moments, output_error, round_numbers
from qir.quant.layer_rows import Rows, layer_rows

__all__ = ["round_blocks"]

_WHOLE = 255
"""Each column of the inputs is rounded to so many steps of either sign: sums of their products are then exact, the same
on every machine."""
_HELD_OUT_EVERY = 4

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
    for step in visit_layers(model, layers, feeds, lambda copy: EmitQdq().run(copy, ctx), inputs=True):
        gains[step.layer] = _round(step, moments, max_columns, damping)
        ctx.progress.advance()
    ctx.progress.finish()
    return gains


class _InputMoments:
    """Moments of the last input; layers in a row that read the same one share them."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._key: tuple[Value | Node | None, Rows] | None = None
        self._found: tuple[np.ndarray, np.ndarray] | None = None

    def of(self, step: Step, geometry: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Second moments to fit on and to judge by; (groups, columns, columns)."""
        layer = step.layer
        key = (layer.node.input(0) if layer.weight_index == 1 else layer.node, geometry)
        if self._found is None or self._key != key:
            self._key, self._found = key, self._measure(step, geometry)
        return self._found

    def _measure(self, step: Step, geometry: Rows) -> tuple[np.ndarray, np.ndarray]:
        wanted = max(1, -(-self._rows // max(len(step.inputs), 1)))
        parts = [geometry.rows(array, wanted) for array in step.inputs]
        groups, _, columns = parts[0].shape
        peak = np.max([np.abs(part).max(axis=1, initial=0) for part in parts], axis=0)  # (groups, columns)
        step_size = np.where(peak > 0, peak / _WHOLE, 1.0)
        fitted, held_out = Moments(groups, columns), Moments(groups, columns)
        for index, part in enumerate(parts):
            whole = np.rint(part / step_size[:, None]).astype(np.float32)
            (held_out if index % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1 else fitted).add(whole)
        area = step_size[:, :, None] * step_size[:, None, :]
        hessian = fitted.hessian() * area
        return hessian, held_out.hessian() * area if held_out.rows else hessian


def _round(step: Step, moments: _InputMoments, max_columns: int, damping: float) -> float | None:
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
    fit, judge = moments.of(step, geometry)
    numbers = np.empty_like(wanted)
    before = after = 0.0
    for start in range(0, wanted.shape[-1], max_columns):
        cut = slice(start, start + max_columns)
        numbers[..., cut] = round_numbers(
            wanted[..., cut], fit[:, cut, cut], scale[..., cut], low[..., cut], high[..., cut], damping=damping
        )
        before += float(output_error(wanted[..., cut] - nearest[..., cut], judge[:, cut, cut]).sum())
        after += float(output_error(wanted[..., cut] - numbers[..., cut], judge[:, cut, cut]).sum())
    if not after < before:
        return None
    rounded = np.ascontiguousarray(geometry.weight(numbers).astype(np.float32))
    step.set_weight_codes(quantize(rounded, quant))
    step.layer.freeze_weight(rounded)
    return float(10 * np.log10(before / max(after, 1e-30)))
