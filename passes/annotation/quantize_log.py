"""``quantize-log``: store weights as signs and exponents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from qir.ir import CodebookQuant, Model
from qir.passes.annotation.weight_codes import Weight, WeightCodes, gather_weights, store_weights
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.quant.codebook import narrow_scales, to_rows
from qir.quant.logarithmic import BASES, Base, decode_log, encode_log, log_levels

__all__ = ["QuantizeLog"]

_STEPS = 8
"""Scales tried in an octave."""


@dataclass(frozen=True)
class QuantizeLog(Pass):
    """Annotate weights as logarithmic codes: a sign and an exponent of ``base``, times a scale an output channel. A
    product is then a shift. ``base=auto`` takes, tensor by tensor, the base of the lesser error. The scale is chosen
    for least error, each weight counting by how strongly its input varies over the calibration samples, where there
    are some; codes and biases are then chosen as in ``cluster-weights``. ``power-of-two-scale`` makes scales shifts.

    Before::

        %y: f32[1,64,8,8] = Conv(%x, @w, @b)

    After::

        @w: f32[64,64,3,3] #... q=codebook[axis=0](4, [[1, 0.5, 0.25, ...]], scale=[...]) frozen
        %y: f32[1,64,8,8] = Conv(%x, @w, @b)
    """

    name: ClassVar[str] = "quantize-log"
    effect: ClassVar[Effect] = Effect.LOSSY

    bits: int = 4
    """Of a code, the sign included."""
    base: Literal["auto", "2", "sqrt2"] = "auto"
    power_of_two_scale: bool = False
    min_size: int = 512
    """Weights of fewer numbers stay float."""
    min_channel: int = 32
    """Weights of fewer numbers a channel (depthwise convolutions) stay float."""
    samples: int = 64
    """How many calibration samples weigh the inputs."""
    rows: int = 16384
    """At most so many rows of a layer's inputs are looked at."""
    keep_float: tuple[str, ...] = ()
    """Names, globs or operators of nodes that stay as they are."""
    recipe: str | None = None
    """A TOML file of choices by node; see ``docs/quantize.md``."""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError("bits must be 2 to 8")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        options = WeightCodes(
            self.min_size, self.min_channel, self.samples, self.rows, self.keep_float, self.recipe,
            refit="nothing" if self.power_of_two_scale else "scales",
        )  # fmt: skip
        result = PassResult()
        weights = gather_weights(self, options, model, result)
        store_weights(self, options, weights, self._code, model, ctx, result)
        return result

    def _code(self, weight: Weight, importance: np.ndarray) -> CodebookQuant:
        whole = CodebookQuant(self.bits, ((0.0,),), weight.axis)
        rows, weights = to_rows(weight.array, whole).astype(np.float64), to_rows(importance, whole)
        bases: tuple[Base, ...] = tuple(BASES) if self.base == "auto" else (self.base,)
        found = [(*self._scales(rows, weights, base), base) for base in bases]
        scale, _, base = min(found, key=lambda one: one[1])
        table = tuple(log_levels(self.bits, base).astype(np.float64).tolist())
        return CodebookQuant(self.bits, (table,), weight.axis, tuple(scale.tolist()))

    def _scales(self, rows: np.ndarray, weights: np.ndarray, base: Base) -> tuple[np.ndarray, float]:
        """The best scale a row, float32, and the error that is left in all."""
        largest = np.abs(rows).max(axis=1)
        largest = np.where(largest > 0, largest, 1.0)
        step = 1.0 if self.power_of_two_scale else 1.0 / _STEPS
        start = np.ceil(np.log2(largest)) if self.power_of_two_scale else np.log2(largest)
        best, least = np.zeros(len(rows), np.float32), np.full(len(rows), np.inf)
        for offset in np.arange(-1.0, 1.0 + step / 2, step):
            scale = narrow_scales(np.exp2(start + offset))
            numbers = decode_log(encode_log(rows / scale[:, None], self.bits, base), self.bits, base) * scale[:, None]
            error = (weights * (numbers - rows) ** 2).sum(axis=1)
            better = error < least
            best, least = np.where(better, scale, best), np.where(better, error, least)
        return best, float(least.sum())
