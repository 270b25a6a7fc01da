"""Which weights get more bits than others, under a budget of bytes: those whose errors the model's results feel most.

One weight at a time is coded, and the noise that it alone puts on the results measured on samples: noises of single
weights add up, nearly, so each bit goes where it takes away most noise a byte. A bit takes away the same part of the
noise each time, three quarters where results follow the weights linearly (Bennett, Spectra of quantized signals, 1948).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from qir.ir import Model, Tensor, Value
from qir.passes.accuracy.evaluation import Evaluator
from qir.passes.annotation.weight_codes import Weight
from qir.pipeline.contract import PassContext

__all__ = ["FLOAT", "MOST_BITS", "spread_bits", "weight_noises"]

MOST_BITS = 8
FLOAT = 32
"""Bits of a weight that stays as it is."""
_INAUDIBLE = 1e-30


def weight_noises(
    model: Model,
    values: Sequence[Value],
    coded: Callable[[Value], np.ndarray],
    feeds: Sequence[Mapping[str, np.ndarray]],
    ctx: PassContext,
) -> list[float]:
    """For each weight the noise over the signal that it puts on the outputs, summed over them, when it alone has the
    numbers that ``coded`` gives."""
    evaluator = Evaluator(model, feeds, ctx)
    found = []
    ctx.progress.start("weighing weights", len(values))
    for value in values:
        kept = value.const
        changed = Tensor.of(coded(value))
        try:
            value.const = changed
            found.append(sum(evaluator.noise(model.clone()).values()))
        finally:
            value.const = kept
        ctx.progress.advance()
    ctx.progress.finish()
    return found


def spread_bits(
    weights: Sequence[Weight],
    noises: Sequence[tuple[float, float]],
    least: int,
    budget: int,
    cost: Callable[[Weight, int], int],
) -> dict[Value, int]:
    """Bits of each weight, from ``least`` to ``MOST_BITS``, or ``FLOAT``, that take away most noise for ``budget``
    bytes.

    ``noises``: of each weight with ``least`` bits and with the most. ``cost``: bytes of a weight in so many bits. More
    than the budget is taken only where ``least`` bits everywhere do.
    """
    chosen = {weight.value: least for weight in weights}
    queue: list[tuple[float, int, int, int]] = []

    def noise(index: int, bits: int) -> float:
        first, last = (max(one, _INAUDIBLE) for one in noises[index])
        part = (bits - least) / max(MOST_BITS - least, 1)
        return 0.0 if bits == FLOAT else float(first ** (1 - part) * min(last, first) ** part)

    def bytes_of(index: int, bits: int) -> int:
        return weights[index].array.nbytes if bits == FLOAT else cost(weights[index], bits)

    def offer(index: int, bits: int) -> None:
        """One step more for a weight that has ``bits``."""
        if bits == FLOAT:
            return
        finer = bits + 1 if bits < MOST_BITS else FLOAT
        more = bytes_of(index, finer) - bytes_of(index, bits)
        won = noise(index, bits) - noise(index, finer)
        heapq.heappush(queue, (-won / max(more, 1), index, finer, more))

    room = budget - sum(bytes_of(index, least) for index in range(len(weights)))
    for index in range(len(weights)):
        offer(index, least)
    while queue:
        _, index, bits, more = heapq.heappop(queue)
        if more <= room:
            room -= more
            chosen[weights[index].value] = bits
            offer(index, bits)
    return chosen
