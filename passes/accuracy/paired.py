"""Is a variant of a model better than another? Decided from differences between the two on the same samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Gain"]

_NORMAL = 2.326
"""The 99 % quantile of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Gain:
    """What a variant gains in dB: ``mean`` over so many ``samples``, known to ``margin`` at 99 % to either side.

    The margin is Student's, from the samples' own spread: models differ in it by a factor of 30, and what is a clear
    gain on one is chance on the next.
    """

    mean: float
    margin: float
    samples: int

    @classmethod
    def of(cls, gains: np.ndarray) -> Gain:
        """From the gain on each sample, (N,). A single sample has an infinite margin."""
        count = len(gains)
        if count < 2:
            return cls(float(gains.mean()), float("inf"), count)
        error = float(gains.std(ddof=1) / np.sqrt(count))
        return cls(float(gains.mean()), _student(count - 1) * error if error else 0.0, count)

    def reaches(self, least: float) -> bool:
        """A gain for certain, of ``least`` dB or more as far as can be told."""
        return self.mean >= least and self.mean > self.margin

    def __str__(self) -> str:
        return f"{self.mean:+.2f} dB on average over {self.samples} samples, give or take {self.margin:.2f}"


def _student(freedom: int) -> float:
    """The 99 % quantile of Student's distribution (Abramowitz and Stegun, 26.7.5), within 4 % from 4 degrees on."""
    z = _NORMAL
    first = (z**3 + z) / (4 * freedom)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return z + first + second
