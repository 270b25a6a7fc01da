"""``smooth``: shrink activation channels that stick out, and enlarge the weights that read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from qir.errors import DataError
from qir.ir import Model, Node, Value
from qir.passes.accuracy.scaling.layers import LINEAR_OPS, Layer, layer_of
from qir.passes.accuracy.scaling.links import Link, clip_limits, find_links
from qir.passes.accuracy.scaling.noise import Reader, best_scale
from qir.passes.accuracy.scaling.observe import observe_channels
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult

__all__ = ["Smooth"]


@dataclass(frozen=True)
class Smooth(Pass):
    """Activation-to-weight migration (Xiao et al., SmoothQuant, 2022): channel j of what linear layers read is divided
    by s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), their weights are multiplied by it. The division goes into the
    scale and bias of the norm before them, or into the outputs of the linear layer before them.

    Where something else reads a norm's result too (the residual of a post-norm transformer), ``insert`` puts one Mul
    in front of the linear layers. ``alpha`` is chosen for each link, by the noise that maxima and weights predict;
    a number fixes it. Links for which the prediction gains less than ``min-gain`` dB stay as they are.
    ``scope`` limits the sources: ``norms``, ``linear`` (``products``: without convolutions) or ``all``. Channels behind
    a Clip are scaled where the data stays ``margin`` below its bound.

    Before::

        %n: f32[1,8,2] = LayerNormalization(%x, @g, @b)      // channel 0 up to 90, channel 1 up to 1
        %y: f32[1,8,4] = MatMul(%n, @w)

    After, with channel 0 of @g and @b divided and row 0 of @w multiplied::

        %n: f32[1,8,2] = LayerNormalization(%x, @g, @b)
        %y: f32[1,8,4] = MatMul(%n, @w)
    """

    name: ClassVar[str] = "smooth"
    effect: ClassVar[Effect] = Effect.EXACT

    alpha: float | None = None
    insert: bool = True
    scope: Literal["norms", "linear", "products", "all"] = "norms"
    min_gain: float = 0.3
    margin: float = 0.1
    samples: int = 64
    """How many calibration samples give the channels' ranges."""

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError("alpha must lie between 0 and 1")
        if self.samples < 1 or self.margin < 0:
            raise ValueError("samples must be at least 1, margin must not be negative")

    @property
    def needs_calibration(self) -> bool:
        return True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError where there is something to smooth and no calibration data."""
        result = PassResult()
        links = [link for link in find_links(model) if self._wanted(link)]
        complete = [link for link in links if not link.obstacle]
        incomplete = [link for link in links if link.obstacle]
        shared = _shared_inputs(incomplete) if self.insert else {}
        for link in incomplete:
            if not any(sink.value in shared for sink in link.sinks):
                result.remarks.append(self.missed(link.source, f"not smoothed: {link.obstacle}"))
        axes = {sink.value: sink.axis for link in complete for sink in link.sinks}
        axes |= {clip.value: clip.axis for link in complete for clip in link.clips}
        axes |= {value: len(value.shape or ()) - 1 for value in shared}
        if not axes:
            return result
        if ctx.calibration is None:
            raise DataError("no calibration data to see which channels stick out: give samples with --calib")
        seen = observe_channels(model, axes, ctx, self.samples)
        nodes = [node for link in complete for node in (link.source, *(sink.node for sink in link.sinks))]
        nodes += [node for readers in shared.values() for node in readers]
        layers = {node: layer for node in dict.fromkeys(nodes) if isinstance(layer := layer_of(node), Layer)}
        for link in complete:
            readers = [Reader(layers[sink.node], seen[sink.value]) for sink in link.sinks]
            scale = self._choose(link.source, readers, clip_limits(link, seen, self.margin), result)
            if scale is not None:
                link.divide_source(scale, layers)
                link.multiply_sinks(scale, layers)
                for value in link.scaled:
                    if value in seen:
                        seen[value] = seen[value].divided(scale)
                result.count("folded")
        for value, users in shared.items():
            readers = [Reader(layers[node], seen[value]) for node in users]
            scale = self._choose(value, readers, None, result)
            if scale is not None:
                _insert(value, users, scale)
                for node in users:
                    layers[node].scale_inputs(scale)
                result.count("inserted")
        for layer in layers.values():
            layer.write()
        result.changed = bool(result.statistics)
        return result

    def _wanted(self, link: Link) -> bool:
        match self.scope:
            case "norms":
                return link.is_norm
            case "linear":
                return not link.is_norm
            case "products":
                return link.source.op in ("MatMul", "Gemm")
            case _:
                return True

    def _choose(
        self, about: Node | Value, readers: list[Reader], least: np.ndarray | None, result: PassResult
    ) -> np.ndarray | None:
        """The scales, or None with a remark where they are not worth it."""
        choice = best_scale(readers, self.alpha, least)
        how = f"alpha {choice.alpha:g}"
        if choice.gain < self.min_gain:
            result.remarks.append(
                self.missed(about, f"not smoothed: {how} promises {choice.gain:.1f} dB, below {self.min_gain:g}")
            )
            return None
        names = ", ".join(sorted({repr(reader.layer.node.label) for reader in readers}))
        result.remarks.append(
            self.applied(about, f"smoothed for {names} with {how}: {choice.gain:.1f} dB less noise expected")
        )
        return choice.scale


def _shared_inputs(links: list[Link]) -> dict[Value, list[Node]]:
    """Results of norms that linear layers and others read, with the layers."""
    found: dict[Value, list[Node]] = {}
    for link in links:
        if link.is_norm:
            for sink in link.sinks:
                if sink.node.op in LINEAR_OPS and not sink.node.op.startswith("Conv"):
                    found.setdefault(sink.value, []).append(sink.node)
    return found


def _insert(value: Value, users: list[Node], scale: np.ndarray) -> None:
    """A Mul by 1 / scale that ``users`` read in place of ``value``."""
    graph, maker = value.graph, value.producer
    assert graph is not None and maker is not None and value.dtype is not None
    factor = graph.add_constant((1 / scale).astype(value.dtype.numpy), f"{value.name}_smoothing")
    product = graph.insert_after(maker, "Mul", [value, factor], types=[value.type], source=[maker]).output
    for node in users:
        node.set_input(0, product)
