"""How much quantization noise a choice of scales leaves in a layer's result, estimated from statistics.

Rounding to a grid of step d makes an error of variance d^2 / 12 on each element, taken as independent of all else; what
lies beyond the range is cut. So for y = W x with per-tensor activations and one weight scale an output channel:

    noise  = dx^2 / 12 * sum W_ij^2  +  sum_i dw_i^2 / 12 * sum_j E[x_j^2]  +  sum W_ij^2 E[cut_j^2]
    signal = sum W_ij^2 E[x_j^2]

Dividing x_j by s_j and multiplying W_ij by s_j leaves the signal alone and changes dx, dw_i and what is cut. The last
is why scales are judged on other samples than they were chosen on: a channel of rare large values that was pulled up to
the end of the range looks good on the samples that defined the range, and is cut on the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qir.calibration.statistics import ChannelStatistics
from qir.passes.accuracy.scaling.layers import Layer

__all__ = ["Choice", "Reader", "best_scale", "noise_ratio", "smoothing_scale"]

_ACTIVATION_LEVELS = 255
_WEIGHT_LEVELS = 127
_WIDEST = 1e4
_FEW = 4
"""With fewer arrays there are no two halves worth the name."""
_ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_HEADROOMS = (1.0, 1.25, 1.6, 2.0, 3.0)


@dataclass(frozen=True, slots=True)
class Reader:
    """A layer and what was seen of the channels that it reads."""

    layer: Layer
    seen: ChannelStatistics

    def rows(self, which: slice) -> Reader:
        return Reader(self.layer, self.seen.rows(which))


@dataclass(frozen=True, slots=True)
class Choice:
    """Scales (channels,), how they were found, and by how many dB they should lower the noise on unseen samples."""

    scale: np.ndarray
    alpha: float
    headroom: float
    gain: float


def noise_ratio(readers: Sequence[Reader], scale: np.ndarray, unseen: Sequence[Reader] | None = None) -> float:
    """Mean over the readers of noise / signal, with inputs divided by ``scale`` (channels,).

    Ranges are those of ``readers``; ``unseen``, the same layers with other samples, says what is cut by them.
    """
    pairs = zip(readers, readers if unseen is None else unseen, strict=True)
    return float(np.mean([_noise_ratio(reader, scale, other.seen) for reader, other in pairs]))


def _noise_ratio(reader: Reader, scale: np.ndarray, unseen: ChannelStatistics) -> float:
    weight, seen = reader.layer.weight, reader.seen
    groups, size, taps = weight.shape[0], weight.shape[2], weight.shape[3]
    alive = (seen.magnitude > 0) | (unseen.magnitude > 0)
    if not alive.any():
        return 0.0
    low, high = float((seen.lowest / scale).min()), float((seen.highest / scale).max())
    step = (high - low) / _ACTIVATION_LEVELS
    scaled = weight * scale.reshape(groups, 1, size, 1)
    column = np.square(scaled).sum(axis=(1, 3)).reshape(-1)
    energy = (unseen.mean_square / scale**2).reshape(groups, size)
    weight_step = np.abs(scaled).max(axis=(2, 3)) / _WEIGHT_LEVELS
    # One element an array is known to lie beyond: its largest.
    beyond = np.maximum(unseen.hi / scale - high, 0) ** 2 + np.maximum(low - unseen.lo / scale, 0) ** 2
    cut = beyond.sum(axis=0) / max(float(unseen.weight.sum()), 1.0)
    from_inputs = step**2 / 12 * float(column[alive].sum())
    from_weights = float((weight_step**2 * energy.sum(axis=1, keepdims=True)).sum()) * taps / 12
    signal = float(column @ energy.reshape(-1))
    return float((from_inputs + from_weights + float(column @ cut)) / max(signal, 1e-30))


def smoothing_scale(readers: Sequence[Reader], alpha: float, headroom: float = 1.0) -> np.ndarray:
    """s_j = max|x_j|^alpha / max|w_j|^(1 - alpha) (Xiao et al., SmoothQuant, 2022, equation 4), in float64.

    Normalized so that the largest activation stays. No channel is enlarged beyond 1 / headroom of that. Channels that
    are dead on either side keep their scale.
    """
    largest: np.ndarray = np.max([reader.seen.magnitude for reader in readers], axis=0)
    weight = np.max([reader.layer.input_range() for reader in readers], axis=0)
    alive = (largest > 0) & (weight > 0)
    scale = np.ones_like(largest)
    if not alive.any():
        return scale
    top = largest.max()
    scale[alive] = largest[alive] ** alpha / weight[alive] ** (1 - alpha)
    scale[alive] *= (largest[alive] / scale[alive]).max() / top
    scale[alive] = np.maximum(scale[alive], np.minimum(headroom * largest[alive] / top, 1.0))
    return np.asarray(np.clip(scale, 1 / _WIDEST, _WIDEST))


def best_scale(readers: Sequence[Reader], alpha: float | None, least: np.ndarray | None) -> Choice:
    """The scales for one alpha, or for the alpha and headroom of the least noise in two-fold cross-validation.

    ``least``: lower bounds (channels,), NaN where the scale must be 1.
    """
    halves = [slice(0, None, 2), slice(1, None, 2)]
    folds = [([r.rows(a) for r in readers], [r.rows(b) for r in readers]) for a, b in (halves, halves[::-1])]
    if min(reader.seen.arrays for reader in readers) < _FEW:
        folds = [(list(readers), list(readers))]

    def scale_of(some: Sequence[Reader], alpha: float, headroom: float) -> np.ndarray:
        scale = smoothing_scale(some, alpha, headroom)
        return scale if least is None else np.where(np.isnan(least), 1.0, np.maximum(scale, least))

    def noise(alpha: float, headroom: float) -> float:
        return sum(noise_ratio(fit, scale_of(fit, alpha, headroom), check) for fit, check in folds)

    tried = [(noise(a, h), a, h) for a in (_ALPHAS if alpha is None else (alpha,)) for h in _HEADROOMS]
    best, alpha, headroom = min(tried)
    before = sum(noise_ratio(fit, np.ones_like(readers[0].seen.magnitude), check) for fit, check in folds)
    gain = 10 * float(np.log10(max(before, 1e-30) / max(best, 1e-30)))
    return Choice(scale_of(readers, alpha, headroom), alpha, headroom, gain)
