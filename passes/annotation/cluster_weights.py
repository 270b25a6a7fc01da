"""``cluster-weights``: store weights as indices into small tables of learned numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.calibration.data import open_data, spread
from qir.calibration.specs import input_specs
from qir.ir import CodebookQuant, Model, Value
from qir.passes.annotation.spread_bits import FLOAT, MOST_BITS, spread_bits, weight_noises
from qir.passes.annotation.weight_codes import Weight, WeightCodes, gather_weights, nearest, store_weights
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.quant.codebook import (
    SCALE_BITS,
    coded_bytes,
    learn_tables,
    learn_vectors,
    narrow_scales,
    part_count,
    to_rows,
)

__all__ = ["ClusterWeights"]


@dataclass(frozen=True)
class ClusterWeights(Pass):
    """Annotate weights as codebooks: ``bits``-bit codes that index tables found by k-means over groups of output
    channels, times a scale a channel. Each weight counts by how strongly its input varies over the calibration
    samples, where there are some; the codes are then chosen by their effect on the layer's results, not one by one,
    and biases take up what is left of the mean error. ``emit-codebook`` spells the decoding.

    ``tables``: how many tables a tensor gets; by default as many as ``overhead`` (of the codes' size, scales included)
    pays for. ``dim``: how many neighbouring numbers one code stands for (vector quantization; one table a tensor):
    ``bits=8 dim=2`` takes 4 bits a number. With a ``budget``, what ``bits`` a weight leave of it goes to the weights
    whose errors the model's results feel most, as more bits. Weights under ``min-size`` numbers, or ``min-channel`` a
    channel (depthwise convolutions), stay float, as do biases and norms.

    Before::

        %y: f32[1,64,8,8] = Conv(%x, @w, @b)

    After::

        @w: f32[64,64,3,3] #... q=codebook[axis=0](4, [[...], ...], scale=[...]) frozen
        %y: f32[1,64,8,8] = Conv(%x, @w, @b)
    """

    name: ClassVar[str] = "cluster-weights"
    effect: ClassVar[Effect] = Effect.LOSSY

    bits: int = 4
    dim: int = 1
    tables: int | None = None
    overhead: float = 0.2
    budget: float | None = None
    """What codes, tables and scales may take of the float bytes of the coded weights; needs samples."""
    probes: int = 8
    """How many calibration samples tell how much the results feel a weight's error."""
    min_size: int = 512
    min_channel: int = 32
    samples: int = 64
    """How many calibration samples weigh the inputs."""
    rows: int = 16384
    """At most so many rows of a layer's inputs are looked at."""
    keep_float: tuple[str, ...] = ()
    """Names, globs or operators of nodes that stay as they are."""
    recipe: str | None = None
    """A TOML file of choices by node; see ``docs/quantize.md``."""

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError("bits must be 1 to 8")
        if self.dim not in (1, 2, 4, 8):
            raise ValueError("dim must be 1, 2, 4 or 8")
        if self.tables is not None and self.tables < 1:
            raise ValueError("tables must be 1 or more")
        if self.overhead < 0:
            raise ValueError("overhead must be 0 or more")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise ValueError("budget must be a share of the float bytes, 0 to 1")
        if self.probes < 1:
            raise ValueError("probes must be 1 or more")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        options = WeightCodes(
            self.min_size, self.min_channel, self.samples, self.rows, self.keep_float, self.recipe, refit="tables"
        )
        result = PassResult()
        weights = gather_weights(self, options, model, result)
        bits = self._choose_bits(weights, model, ctx, result)

        def coder(weight: Weight, importance: np.ndarray) -> CodebookQuant:
            return self._code(weight, importance, bits[weight.value])

        coded = [weight for weight in weights if bits[weight.value] != FLOAT]
        store_weights(self, options, coded, coder, model, ctx, result)
        return result

    def _choose_bits(
        self, weights: list[Weight], model: Model, ctx: PassContext, result: PassResult
    ) -> Mapping[Value, int]:
        if self.budget is None or self.dim > 1 or not weights:
            return dict.fromkeys((weight.value for weight in weights), self.bits)
        if ctx.calibration is None:
            text = f"{self.bits} bits everywhere: without samples nobody knows which weights need the budget's rest"
            result.remarks.append(self.missed(None, text))
            return dict.fromkeys((weight.value for weight in weights), self.bits)

        feeds = spread(open_data(ctx.calibration, input_specs(model)), self.probes)
        by_value = {weight.value: weight for weight in weights}

        def noises(bits: int) -> list[float]:
            def coded(value: Value) -> np.ndarray:
                weight = by_value[value]
                return nearest(weight, self._code(weight, np.ones_like(weight.array), bits))

            return weight_noises(model, list(by_value), coded, feeds, ctx)

        both = list(zip(noises(self.bits), noises(MOST_BITS), strict=True))
        budget = int(self.budget * sum(weight.array.nbytes for weight in weights))
        chosen = spread_bits(weights, both, self.bits, budget, self._bytes)
        for weight in weights:
            if chosen[weight.value] == FLOAT:
                text = "stays float: the results feel its errors most, for its size, and the budget allows it"
                result.remarks.append(self.missed(weight.value, text))
        return chosen

    def _bytes(self, weight: Weight, bits: int) -> int:
        """In the file, about."""
        channels = weight.array.shape[weight.axis]
        tables = self._parts(channels, weight.array.size // channels, bits)
        return coded_bytes(weight.array.size, bits, tables, channels)

    def _code(self, weight: Weight, importance: np.ndarray, bits: int) -> CodebookQuant:
        axis = weight.axis
        whole = CodebookQuant(bits, ((0.0,),), axis)
        rows, weights = to_rows(weight.array, whole).astype(np.float64), to_rows(importance, whole)
        scale = narrow_scales(np.abs(rows).max(axis=1))  # 0 for a channel of zeros, which no level need then be
        normal = rows / np.where(scale > 0, scale, 1).astype(np.float64)[:, None]
        mass = weights * np.square(scale.astype(np.float64))[:, None]
        mass = mass / (mass.mean() or 1.0)
        levels = 1 << bits
        scales = tuple(scale.tolist())
        if self.dim > 1 and rows.shape[1] % self.dim == 0:
            vectors = normal.reshape(-1, self.dim)
            words = learn_vectors(vectors, mass.reshape(-1, self.dim).mean(axis=1), min(levels, len(vectors)))
            return CodebookQuant(bits, (_halves(words.reshape(-1)),), axis, scales, self.dim)
        parts = self._parts(rows.shape[0], rows.shape[1], bits)
        table = learn_tables(normal.reshape(parts, -1), mass.reshape(parts, -1), levels)
        return CodebookQuant(bits, tuple(map(_halves, table)), axis, scales)

    def _parts(self, channels: int, elements: int, bits: int) -> int:
        if self.tables is not None:
            return max(part for part in range(1, min(self.tables, channels) + 1) if channels % part == 0)
        overhead = max(self.overhead - SCALE_BITS / (elements * bits), 0.0)
        return part_count(channels, elements, bits, overhead)


def _halves(levels: np.ndarray) -> tuple[float, ...]:
    """As numbers that f16 holds too, so that tables take half the bytes."""
    return tuple(levels.astype(np.float16).astype(np.float64).tolist())
