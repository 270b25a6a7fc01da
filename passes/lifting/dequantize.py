"""``dequantize``: drop the annotations and keep what quantization did to the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.ir import Model, StaticQuant, Tensor, UseQuantMarker, Value
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.quant.arithmetic import fake_quantize

__all__ = ["Dequantize"]


@dataclass(frozen=True)
class Dequantize(Pass):
    """Make a float model of an annotated one: activations are no longer rounded, weights are the numbers that their
    codes stand for (``weights=false`` leaves them as they are). After ``lift`` that turns any quantized model into a
    float one, to be measured, edited or quantized anew. Quantizers cut off what their codes do not reach, and many
    tools leave a Relu or Clip to that: where the smallest code is 0 and the result may be less, a Clip takes its place.

    Before::

        %y: f32[1,8] q=u8(0.01, 0) = Conv(%x : u8(0.02, 128), @w : s8[axis=0](...)) kernel=integer

    After::

        %y: f32[1,8] = Conv(%x, @w)
    """

    name: ClassVar[str] = "dequantize"
    effect: ClassVar[Effect] = Effect.LOSSY

    weights: bool = True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        result = PassResult()
        for graph in list(model.graphs()):
            for value in list(graph.values()):
                if value.is_constant and self.weights:
                    _round(value, result)
                elif not value.is_constant and _cuts(value):
                    _clip(value)
                    result.count("clips")
                self._clear(value, result)
            for node in graph.nodes:
                if node.kernel is not None:
                    node.kernel = None
                    result.count("kernels")
        result.changed = bool(result.statistics)
        return result

    @staticmethod
    def _clear(value: Value, result: PassResult) -> None:
        if value.quant is not None:
            value.quant = None
            result.count("values")
        for use in value.uses:
            if use.quant is not UseQuantMarker.INHERIT:
                use.quant = UseQuantMarker.INHERIT
                result.count("uses")
        if value.frozen:
            value.frozen = False
            result.count("thawed")


_MAY_BE_NEGATIVE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "BatchNormalization"})


def _cuts(value: Value) -> bool:
    """Whether the quantizer of a value does what an activation behind its producer did: nothing below 0 comes out."""
    quant, maker = value.quant, value.producer
    if not isinstance(quant, StaticQuant) or quant.axis is not None or not quant.dtype.is_integer or maker is None:
        return False
    proved = value.range is not None and value.range.per_tensor().lower >= 0
    return quant.zero_point[0] == quant.dtype.qmin and maker.op in _MAY_BE_NEGATIVE and not proved


def _clip(value: Value) -> None:
    quant, maker, graph = value.quant, value.producer, value.graph
    assert isinstance(quant, StaticQuant) and maker is not None and graph is not None
    highest = np.float32(quant.scale[0]) * np.float32(quant.dtype.qmax - quant.dtype.qmin)
    bounds = [graph.add_constant(np.asarray(bound, np.float32), "bound") for bound in (np.float32(0), highest)]
    clip = graph.insert_after(maker, "Clip", [value, *bounds], types=[value.type], source=[maker])
    value.replace_all_uses(clip.output, where=lambda use: use.node is not clip)


def _round(value: Value, result: PassResult) -> None:
    """Give each reader of a constant the numbers that it would see, one copy for each distinct type.

    Biases are left alone: their codes are finer than floats.
    """
    tensor, graph = value.tensor, value.graph
    if tensor is None or graph is None or value.frozen:
        return
    made: dict[StaticQuant, Value] = {}
    for use in list(value.uses):
        quant = use.effective_quant
        if isinstance(quant, StaticQuant):
            if quant not in made:
                rounded = Tensor.of(fake_quantize(tensor.numpy(), quant))
                made[quant] = graph.add_initializer(f"{value.name}_rounded", rounded)
                result.count("weights")
            use.value = made[quant]
    if not value.uses and not value.is_input:
        graph.remove_initializer(value)
