"""``correct-bias``: take the mean error that quantization makes out of every channel, layer after layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.calibration.data import open_data, spread
from qir.calibration.sequential import Step, float_means, integer_layers, visit_layers
from qir.calibration.specs import input_specs
from qir.errors import DataError
from qir.ir import Model
from qir.passes.emission.emit_qdq import EmitQdq
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult

__all__ = ["CorrectBias", "correct_bias", "correct_biases"]

Feeds = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Empirical bias correction: add to each bias what the layer's result lacks, per channel and on average over the
    samples (but for the extreme ones), in the quantized model against the float one. Layers are visited in order, each
    with the inputs that the quantized and already corrected layers before it make (Nagel et al., Data-Free Quantization
    Through Weight Equalization and Bias Correction, 2019, section 4.2 and appendix D).

    Before::

        %y: f32[1,8,4,4] q=u8(0.02, 0) = Conv(%x, @w : s8[axis=0](...), @b : bias)

    After, with another content of ``@b``::

        %y: f32[1,8,4,4] q=u8(0.02, 0) = Conv(%x, @w : s8[axis=0](...), @b_corrected : bias)
    """

    name: ClassVar[str] = "correct-bias"
    effect: ClassVar[Effect] = Effect.LOSSY

    samples: int = 16
    """How many calibration samples the mean error is taken of."""

    @property
    def needs_calibration(self) -> bool:
        return True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError without calibration samples."""
        result = PassResult()
        if not any(layer.bias_owner is not None for layer in integer_layers(model)):
            return result
        if ctx.calibration is None:
            raise DataError("no calibration data to correct biases on: give samples with --calib, or calibration=...")
        feeds = spread(open_data(ctx.calibration, input_specs(model)), self.samples)
        count = correct_biases(model, feeds, ctx)
        result.count("layers", count)
        result.changed = count > 0
        return result


def correct_biases(model: Model, feeds: Feeds, ctx: PassContext, means: dict[str, np.ndarray] | None = None) -> int:
    """Correct the biases of an annotated model in place; the number of layers that were.

    ``means`` remembers what the float model gives, by the names of the layers' results: hand the same dict in for
    other annotations of the same float model and the same feeds.
    """
    layers = [layer for layer in integer_layers(model) if layer.bias_owner is not None]
    expected = {} if means is None else means
    unknown = [layer for layer in layers if layer.result.name not in expected]
    if unknown:
        expected.update({value.name: found for value, found in float_means(model, unknown, feeds).items()})
    ctx.progress.start("correcting biases", len(layers))
    for step in visit_layers(model, layers, feeds, lambda copy: EmitQdq().run(copy, ctx), inputs=False):
        correct_bias(step, expected[step.layer.result.name])
        ctx.progress.advance()
    ctx.progress.finish()
    return len(layers)


def correct_bias(step: Step, expected: np.ndarray) -> None:
    """Make a layer's results right on average: ``expected`` are the means of each sample's channels, (N, C)."""
    delta = _typical(expected - step.layer.channel_means(step.results())).astype(np.float32)
    step.shift_results(delta)
    step.layer.add_to_bias(delta)


_TRIMMED = 5


def _typical(errors: np.ndarray) -> np.ndarray:
    """Mean over samples, (N, C) -> (C,), without the fifth that is largest and the fifth that is least.

    One sample that saturates somewhere would shift all others: on a MobileNetV2 plain means give 12 to 19 dB by which
    samples they are of, these 19 to 20.
    """
    cut = len(errors) // _TRIMMED
    return np.asarray(np.sort(errors, axis=0)[cut : len(errors) - cut].mean(axis=0))
