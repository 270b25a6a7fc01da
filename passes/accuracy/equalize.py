"""``equalize``: even out the weights of a layer's channels by moving scales to the next layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from qir.errors import DataError
from qir.ir import Model, Node, Value
from qir.passes.accuracy.scaling.layers import LINEAR_OPS, Layer, layer_of
from qir.passes.accuracy.scaling.links import Link, clip_limits, find_links
from qir.passes.accuracy.scaling.observe import observe_channels
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult

__all__ = ["Equalize"]

_LARGEST_STEP = 1e4
"""A scale beyond this or below its inverse says that a channel is dead, not that it is uneven."""


@dataclass(frozen=True)
class Equalize(Pass):
    """Cross-layer equalisation (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
    2019, section 4.1): output channel i of a layer is divided by s_i and input channel i of the layers that read it
    multiplied by s_i, with s_i = sqrt(r1_i / r2_i) for the largest weights r1, r2 on both sides. Repeated over all
    pairs until nothing moves. What stands between has to commute with a positive factor: Relu, LeakyRelu, PRelu,
    pooling, products, added constants.

    A Clip from 0 to c does not, except on a channel that never reaches c. ``clip`` says how to know: ``never`` leaves
    pairs around a Clip alone; ``observed`` scales the channels whose largest number in the calibration data stays
    ``margin`` below c, before and after (then the function is the same as far as the data reaches).

    Before::

        %h: f32[1,2,4,4] = Conv(%x, @w1, @b1)      // rows of @w1 up to 8 and 0.5
        %r: f32[1,2,4,4] = Relu(%h)
        %y: f32[1,2,4,4] = Conv(%r, @w2)           // columns of @w2 up to 0.5 and 2

    After, with rows up to 2 and 1, columns up to 2 and 1::

        %h: f32[1,2,4,4] = Conv(%x, @w1, @b1)
        %r: f32[1,2,4,4] = Relu(%h)
        %y: f32[1,2,4,4] = Conv(%r, @w2)
    """

    name: ClassVar[str] = "equalize"
    effect: ClassVar[Effect] = Effect.EXACT

    clip: Literal["never", "observed"] = "never"
    margin: float = 0.1
    rounds: int = 20
    """Passes over the pairs of layers, at most; fewer where scales stop changing."""
    samples: int = 64
    """With ``clip=observed``: how many calibration samples are looked at."""

    def __post_init__(self) -> None:
        if self.margin < 0 or self.rounds < 1 or self.samples < 1:
            raise ValueError("margin must not be negative, rounds and samples must be at least 1")

    @property
    def needs_calibration(self) -> bool:
        return self.clip == "observed"

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError where ``clip=observed`` finds no calibration samples."""
        result = PassResult()
        links = self._usable(model, result)
        limits = self._clip_limits(model, links, ctx)
        layers = {node: layer for node in _nodes(links) if isinstance(layer := layer_of(node), Layer)}
        total = {link.source: np.ones(link.channels) for link in links}
        for _ in range(self.rounds):
            moved = [_balance(link, layers, total, limits[link.source]) for link in links]
            if not any(moved):
                break
        for link in links:
            scale = total[link.source]
            channels = int(np.sum(np.abs(np.log(scale)) > 1e-3))
            if not channels:
                continue
            link.divide_offsets(scale)
            result.count("links")
            result.count("channels", channels)
            note = " where the data never reaches the clip's bound" if link.clips else ""
            targets = ", ".join(sorted({repr(sink.node.label) for sink in link.sinks}))
            result.remarks.append(
                self.applied(link.source, f"scales of {channels} of {link.channels} channels moved to {targets}{note}")
            )
            result.changed = True
        if result.changed:
            for layer in layers.values():
                layer.write()
        return result

    def _usable(self, model: Model, result: PassResult) -> list[Link]:
        found = []
        for link in find_links(model):
            if link.source.op not in LINEAR_OPS:
                continue
            reason = link.obstacle
            if not reason and link.clips and self.clip == "never":
                reason = f"Clip {link.clips[0].node.label!r} is in between: clip=observed takes it where it never binds"
            if reason:
                result.remarks.append(self.missed(link.source, f"not equalised: {reason}"))
            else:
                found.append(link)
        return found

    def _clip_limits(self, model: Model, links: list[Link], ctx: PassContext) -> Mapping[Node, np.ndarray | None]:
        """For each source the least scale of each channel: 0 where anything goes, NaN where the scale has to stay."""
        limits: dict[Node, np.ndarray | None] = dict.fromkeys(link.source for link in links)
        clips = [clip for link in links for clip in link.clips]
        if not clips:
            return limits
        if ctx.calibration is None:
            raise DataError("no calibration data to see whether a Clip binds: give samples with --calib")
        wanted: dict[Value, int] = {clip.value: clip.axis for clip in clips}
        seen = observe_channels(model, wanted, ctx, self.samples)
        for link in links:
            limits[link.source] = clip_limits(link, seen, self.margin)
        return limits


def _nodes(links: list[Link]) -> list[Node]:
    return list(dict.fromkeys(node for link in links for node in (link.source, *(sink.node for sink in link.sinks))))


def _balance(link: Link, layers: Mapping[Node, Layer], total: dict[Node, np.ndarray], least: np.ndarray | None) -> bool:
    """One step for one link; whether it moved anything."""
    made = layers[link.source].output_range()
    read = np.max([layers[sink.node].input_range() for sink in link.sinks], axis=0)
    alive = (made > 0) & (read > 0)
    scale = np.ones(link.channels)
    scale[alive] = np.sqrt(made[alive] / read[alive])
    before = total[link.source]
    after = np.clip(before * scale, 1 / _LARGEST_STEP, _LARGEST_STEP)
    if least is not None:
        after = np.where(np.isnan(least), 1.0, np.maximum(after, least))
    scale = after / before
    if np.abs(np.log(scale)).max() < 1e-3:
        return False
    layers[link.source].scale_outputs(1 / scale)
    link.multiply_sinks(scale, layers)
    total[link.source] = after
    return True
