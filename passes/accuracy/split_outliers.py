"""``split-outliers``: multiply the few activation channels that stick out in float, beside the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.calibration.sequential import Layer as SequentialLayer
from qir.calibration.sequential import linear_layers
from qir.calibration.statistics import ChannelStatistics
from qir.errors import DataError
from qir.ir import DType, Model, Node, TensorType, Value
from qir.passes.accuracy.scaling.layers import Layer, layer_of, replace_constant
from qir.passes.accuracy.scaling.observe import observe_channels
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.rewriting.edits import add_constant, constant_of

__all__ = ["SplitOutliers"]

_ACTIVATION_LEVELS = 255
_WEIGHT_LEVELS = 127
_NEARLY = 1.0
"""dB below the best within which fewer channels are preferred."""
_FEW = 16
"""At most one channel of so many is an outlier."""


@dataclass(frozen=True)
class SplitOutliers(Pass):
    """Where few channels of what a MatMul or Gemm reads are many times as large as the rest, they set the scale for
    all. They are taken out: a product with a mask makes them zero, and their rows of the weight are multiplied in float
    by a small MatMul whose result is added (after Dettmers et al., LLM.int8(), 2022, section 3.2, where the channels
    are looked for at run time).

    Their number, up to ``most`` and a sixteenth of all, is the least that comes within 1 dB of what any number
    is estimated to win, and only where that is ``min-gain`` dB or more. Weights of fewer than ``min-weights`` elements
    are left alone: there the additional operators take longer than what they spare.

    Before, with channel 5 of ``%x`` up to 90 and all others up to 1::

        %y: f32[4,8] = MatMul(%x, @w)

    After, ``@w_rest`` zero in row 5::

        %m: f32[4,6] = Mul(%x, @mask)
        %y: f32[4,8] = MatMul(%m, @w_rest)
        %o: f32[4,1] = Gather(%x, @five) {axis=-1}
        %p: f32[4,8] = MatMul(%o, @w_five) kernel=float
        %z: f32[4,8] = Add(%y, %p)
    """

    name: ClassVar[str] = "split-outliers"
    effect: ClassVar[Effect] = Effect.EXACT

    most: int = 8
    min_gain: float = 4.0
    min_weights: int = 1 << 15
    samples: int = 64
    """How many calibration samples give the channels' ranges."""

    def __post_init__(self) -> None:
        if self.most < 1 or self.samples < 1:
            raise ValueError("most and samples must be at least 1")

    @property
    def needs_calibration(self) -> bool:
        return True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError where there is a layer to look at and no calibration data."""
        result = PassResult()
        results = {layer.node: layer for layer in linear_layers(model)}
        readers: dict[Value, list[tuple[Node, Layer]]] = {}
        for node, sequential in results.items():
            layer = self._layer(node, sequential)
            if layer is not None:
                value = node.input(0)
                assert value is not None
                readers.setdefault(value, []).append((node, layer))
        if not readers:
            return result
        if ctx.calibration is None:
            raise DataError("no calibration data to see which channels stick out: give samples with --calib")
        seen = observe_channels(model, {value: len(value.shape or ()) - 1 for value in readers}, ctx, self.samples)
        for value, found in readers.items():
            channels, gain = self._choose([layer for _, layer in found], seen[value])
            if not channels.size:
                result.remarks.append(
                    self.missed(value, f"not split: {gain:.1f} dB are to be won, below {self.min_gain:g}")
                )
                continue
            _split(value, [(layer, results[node].result) for node, layer in found], channels)
            names = ", ".join(repr(node.label) for node, _ in found)
            result.remarks.append(
                self.applied(value, f"{channels.size} channels multiplied in float for {names}: {gain:.1f} dB expected")
            )
            result.count("values")
            result.count("channels", channels.size)
            result.changed = True
        return result

    def _layer(self, node: Node, sequential: SequentialLayer) -> Layer | None:
        """The layer, if it is one whose channels can be split off."""
        value = node.input(0)
        if node.op not in ("MatMul", "Gemm") or value is None or value.is_constant or value.dtype is not DType.FLOAT:
            return None
        layer = layer_of(node)
        if isinstance(layer, str) or layer.weight.size < self.min_weights or layer.inputs < _FEW:
            return None
        if value.shape is None or value.dim(-1) != layer.inputs or sequential.result.is_output:
            return None
        return layer if node.get("alpha", 1.0) == 1.0 else None

    def _choose(self, layers: Sequence[Layer], seen: ChannelStatistics) -> tuple[np.ndarray, float]:
        """The channels to split off, none where that is not worth it, and the dB that they (or the best) win."""
        order = np.argsort(-seen.magnitude, kind="stable")
        most = min(self.most, len(order) // _FEW)
        counts = [1 << power for power in range(most.bit_length())]
        before = _noise(layers, seen, order[:0])
        gains = [10 * np.log10(before / max(_noise(layers, seen, order[:count]), 1e-30)) for count in counts]
        best = max(gains)
        if before <= 0 or best < self.min_gain:
            return order[:0], float(best) if before > 0 else 0.0
        chosen = next(place for place, gain in enumerate(gains) if gain >= max(best - _NEARLY, self.min_gain))
        return np.sort(order[: counts[chosen]]), float(gains[chosen])


def _noise(layers: Sequence[Layer], seen: ChannelStatistics, outliers: np.ndarray) -> float:
    """Mean over the layers of noise / signal with these channels in float; see ``scaling.noise`` for the model. The
    step is that of each array by itself, as where activations are quantized at run time."""
    rest = np.ones(seen.lo.shape[1], bool)
    rest[outliers] = False
    span = seen.hi[:, rest].max(axis=1, initial=0.0) - seen.lo[:, rest].min(axis=1, initial=0.0)
    step = float(np.square(span / _ACTIVATION_LEVELS).mean()) if len(span) else 0.0
    energy = seen.mean_square
    ratios = []
    for layer in layers:
        weight = layer.weight[0, :, :, 0]
        column = np.square(weight).sum(axis=0)
        weight_step = np.abs(weight[:, rest]).max(axis=1, initial=0.0) / _WEIGHT_LEVELS
        noise = step * column[rest].sum() + np.square(weight_step).sum() * energy[rest].sum()
        ratios.append(noise / 12 / max(float(column @ energy), 1e-30))
    return float(np.mean(ratios))


def _split(value: Value, readers: Sequence[tuple[Layer, Value]], channels: np.ndarray) -> None:
    """Let each layer read the value without the channels, and add to its result what they contribute."""
    nodes = [layer.node for layer, _ in readers]
    graph, first = nodes[0].graph, nodes[0]
    assert graph is not None and value.shape is not None
    masked, source, factor = _masked(value, nodes, channels)
    index = add_constant(first, channels.astype(np.int64), f"{value.name}_outlier_channels")
    types = [TensorType(DType.FLOAT, (*value.shape[:-1], int(channels.size)))]
    from_ = [] if value.producer is None else [value.producer]
    picked = graph.insert_before(first, "Gather", [source, index], attributes={"axis": -1}, types=types, source=from_)
    for layer, result in readers:
        rows = layer.weight[0][:, channels, 0].T * factor[:, None]
        keep = np.ones(layer.inputs)
        keep[channels] = 0.0
        layer.scale_inputs(keep)
        layer.write()
        layer.node.set_input(0, masked)
        maker = result.producer
        assert maker is not None
        weight = add_constant(maker, rows.astype(np.float32), f"{layer.node.label}_outliers")
        inputs = [picked.output, weight]
        product = graph.insert_after(maker, "MatMul", inputs, types=[result.type], source=[layer.node])
        total = graph.insert_after(product, "Add", [result, product.output], types=[result.type], source=[layer.node])
        # A recipe that wants the layer on integers does not mean these, which stand for it too.
        product.kernel = total.kernel = "float"
        for use in [use for use in result.uses if use.node is not total]:
            use.value = total.output


def _masked(value: Value, nodes: Sequence[Node], channels: np.ndarray) -> tuple[Value, Value, np.ndarray]:
    """The value with zeros in the channels, where to read them, and by what they are to be multiplied then.

    A Mul that is there for these layers alone, such as ``smooth`` inserts, takes the mask along.
    """
    size = value.dim(-1)
    assert isinstance(size, int)
    maker = value.producer
    if maker is not None and maker.op == "Mul" and maker.domain == "" and set(value.users) == set(nodes):
        factors = constant_of(maker.input(1))
        source = maker.input(0)
        if factors is not None and factors.shape == (size,) and source is not None and source.shape == value.shape:
            array = factors.numpy().copy()
            factor = array[channels].astype(np.float64)
            array[channels] = 0.0
            replace_constant(maker, 1, array)
            return value, source, factor
    mask = np.ones(size, np.float32)
    mask[channels] = 0.0
    graph, first = nodes[0].graph, nodes[0]
    assert graph is not None
    constant = add_constant(first, mask, f"{value.name}_mask")
    from_ = [] if maker is None else [maker]
    product = graph.insert_before(first, "Mul", [value, constant], types=[value.type], source=from_)
    return product.output, value, np.ones(len(channels))
