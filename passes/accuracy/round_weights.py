"""``round-weights``: choose weight codes by what they do to the layer's results, not one by one to the nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.calibration.data import open_data, split_judges, spread
from qir.calibration.sequential import Step, float_means, integer_layers, visit_layers
from qir.calibration.specs import input_specs
from qir.errors import DataError
from qir.ir import Model, StaticQuant, Value
from qir.passes.accuracy.correct_bias import correct_bias
from qir.passes.emission.emit_qdq import EmitQdq
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.pipeline.registry import load_target
from qir.quant.arithmetic import dequantize, quantize
from qir.quant.gptq import Moments, output_error, round_codes
from qir.quant.layer_rows import Rows, layer_rows
from qir.quant.schemes import code_limit
from qir.targets import WeightRange

__all__ = ["RoundWeights"]

_MEAN_WEIGHT = 0.5
"""How much a mean error counts that the bias takes away: measured better than 0 and 1, as a bias that was fitted on
some samples is never quite right on others."""


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Second-order weight rounding (GPTQ): layer after layer, with the inputs that the quantized layers before make,
    codes are chosen so that the layer's results change least; ``quant.gptq`` has the method. Scales stay as annotated.
    A layer keeps its nearest codes where that does not lower its error on samples that were held out (every fourth;
    with fewer than four samples, on the same). The bias of each layer is corrected on the way, as ``correct-bias``
    does: a separate run would compute everything again, and where the mean error is taken care of, rounding minds the
    rest more.

    ``rows`` bounds the inputs that a layer's moments are taken of, ``max-columns`` the size of a matrix: a longer
    reduction is rounded in parts. ``damping`` is relative to the mean of the moments' diagonal.

    Before::

        %y: f32[1,8,4,4] q=u8(0.02, 0) = Conv(%x, @w : s8[axis=0](...), @b : bias)

    After, the new constants on the grid of their quantization::

        @w_rounded: f32[8,4,3,3] frozen
        %y: f32[1,8,4,4] q=u8(0.02, 0) = Conv(%x, @w_rounded : s8[axis=0](...), @b_corrected : bias)
    """

    name: ClassVar[str] = "round-weights"
    effect: ClassVar[Effect] = Effect.LOSSY

    samples: int = 32
    """How many calibration samples give the moments."""
    rows: int = 4096
    damping: float = 0.01
    activation_order: bool = True
    """Round the columns of the largest inputs first."""
    sweeps: int = 1
    """Rounds of coordinate descent over the codes after they were chosen once."""
    max_columns: int = 4096
    correct_bias: bool = True

    @property
    def needs_calibration(self) -> bool:
        return True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError without calibration samples."""
        result = PassResult()
        layers = integer_layers(model)
        if not layers:
            return result
        if ctx.calibration is None:
            raise DataError("no calibration data to round weights on: give samples with --calib, or calibration=...")
        feeds = spread(open_data(ctx.calibration, input_specs(model)), self.samples)
        biased = [layer for layer in layers if self.correct_bias and layer.bias_owner is not None]
        expected = float_means(model, biased, feeds)
        rounder = _Rounder(self, load_target(ctx.target).weight_range, result)
        ctx.progress.start("rounding weights", len(layers))
        for step in visit_layers(model, layers, feeds, lambda copy: EmitQdq().run(copy, ctx), inputs=True):
            rounder.round(step)
            if step.layer.result in expected:
                correct_bias(step, expected[step.layer.result])
                result.count("biases")
            ctx.progress.advance()
        ctx.progress.finish()
        result.changed = "rounded" in result.statistics or "biases" in result.statistics
        return result


class _Rounder:
    """Rounds one layer after the other; layers in a row that read the same input share its moments."""

    def __init__(self, owner: RoundWeights, weight_range: WeightRange, result: PassResult) -> None:
        self.owner = owner
        self.weight_range = weight_range
        self.result = result
        self.last: tuple[tuple[Value | None, Rows], list[_Part]] | None = None

    def round(self, step: Step) -> None:
        layer = step.layer
        reason = _reason_against(step)
        if reason is not None:
            self.result.remarks.append(self.owner.missed(layer.node, f"weights are rounded to the nearest: {reason}"))
            return
        use, quant = layer.weight_use, layer.weight_use.quant
        assert use.value.tensor is not None and isinstance(quant, StaticQuant)
        weight = use.value.tensor.numpy()
        geometry = layer_rows(layer.node, weight.shape)
        mean_weight = _MEAN_WEIGHT if self.owner.correct_bias and layer.bias_owner is not None else 1.0
        nearest = geometry.matrix(quantize(weight, quant))
        targets = geometry.matrix(_in_scales(weight, quant))
        parts = self._moments(step, geometry, targets)
        pairs = self.weight_range is WeightRange.PAIR_SAFE and geometry.layout is not None
        codes = np.empty_like(nearest)
        before = after = 0.0
        scales = geometry.matrix(np.broadcast_to(_scale_like(weight, quant), weight.shape))[..., 0]
        for part in parts:
            cut = (..., part.columns)
            codes[cut] = round_codes(
                targets[cut],
                part.fitted.hessian(mean_weight),
                limit=code_limit(quant.dtype, self.weight_range is WeightRange.REDUCED and geometry.layout is not None),
                pairs=pairs,
                damping=self.owner.damping,
                activation_order=self.owner.activation_order,
                sweeps=self.owner.sweeps,
            )
            judge = part.judge.hessian(mean_weight)
            before += float((output_error(targets[cut] - nearest[cut], judge) * scales**2).sum())
            after += float((output_error(targets[cut] - codes[cut], judge) * scales**2).sum())
        if not after < before or np.array_equal(codes, nearest):
            self.result.count("kept nearest")
            self.result.remarks.append(
                self.owner.missed(layer.node, "weights are rounded to the nearest: nothing better on held-out samples")
            )
            return
        self.result.count("rounded")
        gain = 10 * np.log10(before / max(after, 1e-30))
        self.result.remarks.append(
            self.owner.applied(layer.node, f"weights rounded to second order: {gain:.1f} dB less error in its results")
        )
        found = geometry.weight(codes)
        step.set_weight_codes(found)
        layer.freeze_weight(dequantize(found, quant))

    def _moments(self, step: Step, geometry: Rows, targets: np.ndarray) -> list[_Part]:
        key = (step.layer.node.input(0), geometry)
        if self.last is None or self.last[0] != key:
            quant = step.layer.input_quant
            self.last = key, self._measure(step, geometry, 0 if quant is None else quant.zero_point[0], targets)
        return self.last[1]

    def _measure(self, step: Step, geometry: Rows, zero_point: int, targets: np.ndarray) -> list[_Part]:
        groups, _, columns = targets.shape
        parts = [
            _Part(slice(start, min(start + self.owner.max_columns, columns)), groups)
            for start in range(0, columns, self.owner.max_columns)
        ]
        wanted = -(-self.owner.rows // len(step.inputs))
        fitted, held_out = split_judges(
            [geometry.rows(array.astype(np.float32) - np.float32(zero_point), wanted) for array in step.inputs]
        )
        for part in parts:
            for moments, chosen in ((part.fitted, fitted), (part.held_out, held_out)):
                if chosen:
                    moments.add(np.concatenate([rows[..., part.columns] for rows in chosen], axis=1))
        return parts


class _Part:
    """Columns of a layer, with the moments of what they multiply."""

    def __init__(self, columns: slice, groups: int) -> None:
        self.columns = columns
        self.fitted = Moments(groups, columns.stop - columns.start)
        self.held_out = Moments(groups, columns.stop - columns.start)

    @property
    def judge(self) -> Moments:
        return self.held_out if self.held_out.rows else self.fitted


def _reason_against(step: Step) -> str | None:
    layer = step.layer
    quant = layer.weight_use.effective_quant
    if not isinstance(quant, StaticQuant) or quant.block_size is not None or not quant.is_symmetric:
        return "their quantization is not static and symmetric"
    source = layer.input_quant
    if layer.node.kernel != "dynamic" and (source is None or source.axis is not None):
        return "the layer's input is not quantized statically per tensor"
    if quant.dtype.bits != 8 or (source is not None and source.dtype.bits > 8):
        return "the layer does not multiply 8-bit codes"
    if not step.owns_weight:
        return "another layer reads the same codes"
    return None


def _in_scales(weight: np.ndarray, quant: StaticQuant) -> np.ndarray:
    return np.asarray(weight / _scale_like(weight, quant), np.float64)


def _scale_like(weight: np.ndarray, quant: StaticQuant) -> np.ndarray:
    """float64 scales that broadcast to the weight."""
    scale = quant.scale_array().astype(np.float64)
    if quant.axis is None:
        return np.asarray(scale)
    shape = [1] * weight.ndim
    shape[quant.axis] = -1
    return scale.reshape(shape)
