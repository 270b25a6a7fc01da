"""``correct-bias``: take the mean error that quantization makes out of every channel, layer after layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.calibration.collect import expose
from qir.calibration.data import open_data
from qir.calibration.specs import input_specs
from qir.calibration.stepper import Stepper
from qir.codegen import runnable
from qir.errors import DataError
from qir.ir import DerivedQuant, DType, Model, Node, Tensor, Value
from qir.passes.emit_qdq import EmitQdq
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.runtime.session import OrtRunner

__all__ = ["CorrectBias", "correct_biases", "spread"]

Feeds = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Empirical bias correction: add to each bias what the layer's result lacks, per channel and on average, in the
    quantized model against the float one. Layers are visited in order, each with the inputs that the quantized and
    already corrected layers before it make (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias
    Correction, 2019, section 4.2 and appendix D).

    Before::

        %y: f32[1,8,4,4] q=u8(0.02, 0) = Conv(%x, @w : s8[axis=0](...), @b : bias)

    After, with another content of ``@b``::

        %y: f32[1,8,4,4] q=u8(0.02, 0) = Conv(%x, @w : s8[axis=0](...), @b_corrected : bias)
    """

    name: ClassVar[str] = "correct-bias"
    effect: ClassVar[Effect] = Effect.LOSSY

    samples: int = 8

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError without calibration samples."""
        result = PassResult()
        if not _layers(model):
            return result
        if ctx.calibration is None:
            raise DataError("no calibration data to correct biases on: give samples with --calib, or calibration=...")
        feeds = spread(open_data(ctx.calibration, input_specs(model)), self.samples)
        count = correct_biases(model, feeds, ctx)
        result.count("layers", count)
        result.changed = count > 0
        return result


def spread(data: object, count: int) -> list[Mapping[str, np.ndarray]]:
    """At most ``count`` feeds of a source, evenly spread over it."""
    from operator import length_hint

    feeds = list(data) if length_hint(data, -1) < 0 else None  # type: ignore[call-overload]
    total = len(feeds) if feeds is not None else length_hint(data)
    wanted = {round(index * (total - 1) / max(count - 1, 1)) for index in range(count)} if total > count else None
    source = feeds if feeds is not None else data
    return [feed for index, feed in enumerate(source) if wanted is None or index in wanted]  # type: ignore[arg-type]


def correct_biases(model: Model, feeds: Feeds, ctx: PassContext) -> int:
    """Correct the biases of an annotated model in place; the number of layers that were."""
    layers = _layers(model)
    expected = _float_means(model, layers, feeds)
    clone = model.clone_with_map()
    results = {clone.values[layer.result]: layer for layer in layers}
    EmitQdq().run(clone.model, ctx)
    clone.model.graph.sort()
    order = {node: index for index, node in enumerate(clone.model.graph.nodes)}
    stops = sorted(results, key=lambda value: order[_producer(value)])
    stepper = Stepper(clone.model, feeds, stops)
    for _ in stops:
        value, arrays = stepper.advance()
        layer = results[value]
        delta = (expected[layer.result] - _channel_mean(arrays, layer.axis)).astype(np.float32)
        shape = [1] * arrays[0].ndim
        shape[layer.axis] = -1
        stepper.replace(value, [array + delta.reshape(shape) for array in arrays])
        _add_to_bias(layer, delta)
    return len(layers)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A convolution or Gemm, or a MatMul with the Add behind it; ``result`` has the channels along ``axis``."""

    node: Node
    bias_owner: Node
    bias_index: int
    result: Value
    axis: int


def _layers(model: Model) -> list[_Layer]:
    found = []
    for node in model.graph.nodes:
        if node.kernel != "integer" or node.domain != "":
            continue
        if node.op == "Conv":
            found.append(_Layer(node, node, 2, node.output, 1))
        elif node.op == "Gemm":
            found.append(_Layer(node, node, 2, node.output, 1))
        elif node.op == "MatMul" and (layer := _matmul_layer(node)) is not None:
            found.append(layer)
    return found


def _matmul_layer(node: Node) -> _Layer | None:
    """A MatMul whose result only an Add with a constant row reads."""
    uses = list(node.output.uses)
    if len(uses) != 1 or (add := uses[0].node) is None or add.op != "Add" or add.graph is not node.graph:
        return None
    index = 1 - uses[0].index
    bias, weight = add.input(index), node.input(1)
    if bias is None or bias.tensor is None or weight is None or weight.tensor is None:
        return None
    columns = weight.tensor.shape[-1]
    if bias.tensor.size != columns or bias.tensor.shape[-1:] != (columns,):
        return None
    return _Layer(node, add, index, add.output, -1)


def _float_means(model: Model, layers: list[_Layer], feeds: Feeds) -> dict[Value, np.ndarray]:
    """Per layer, the mean of each channel over all samples in the float model."""
    exposed, names = expose(model, [layer.result for layer in layers])
    axes = {layer.result: layer.axis for layer in layers}
    sums: dict[Value, np.ndarray] = {}
    counts: dict[Value, int] = {}
    with runnable(exposed, annotations="drop") as source:
        runner = OrtRunner(source)
        for feed in feeds:
            for name, array in runner.run(feed, list(names)).items():
                value = names[name]
                total, count = _channel_sum(array, axes[value])
                sums[value] = sums.get(value, 0) + total
                counts[value] = counts.get(value, 0) + count
    return {value: sums[value] / max(counts[value], 1) for value in sums}


def _channel_mean(arrays: list[np.ndarray], axis: int) -> np.ndarray:
    parts = [_channel_sum(array, axis) for array in arrays]
    total = np.sum([part for part, _ in parts], axis=0)
    return np.asarray(total / max(sum(count for _, count in parts), 1))


def _channel_sum(array: np.ndarray, axis: int) -> tuple[np.ndarray, int]:
    """float64 sums of shape (C,), and how many numbers went into each."""
    axis %= array.ndim
    others = tuple(i for i in range(array.ndim) if i != axis)
    return array.sum(axis=others, dtype=np.float64), array.size // max(array.shape[axis], 1)


def _add_to_bias(layer: _Layer, delta: np.ndarray) -> None:
    owner, graph = layer.bias_owner, layer.node.graph
    assert graph is not None
    old = owner.input(layer.bias_index)
    if old is None:
        made = graph.add_initializer(f"{layer.node.label}_bias", Tensor.of(delta, DType.FLOAT))
        owner.set_input(layer.bias_index, made)
        use = owner.use(layer.bias_index)
        assert use is not None
        use.quant = DerivedQuant(0, 1)
        return
    assert old.tensor is not None
    corrected = (old.tensor.numpy() + delta.reshape(old.tensor.shape)).astype(np.float32)
    use = owner.use(layer.bias_index)
    assert use is not None
    use.value = graph.add_initializer(f"{old.name}_corrected", Tensor.of(corrected))
    if not old.uses:
        graph.remove_initializer(old)


def _producer(value: Value) -> Node:
    assert value.producer is not None
    return value.producer
