"""``emit-qdq``: spell the quantization annotations as QuantizeLinear and DequantizeLinear nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.errors import OptionError, UnsupportedError
from qir.ir import (
    DerivedQuant,
    Graph,
    Model,
    Node,
    QuantType,
    StaticQuant,
    Tensor,
    TensorType,
    Use,
    UseQuantMarker,
    Value,
)
from qir.passes.emission.emit_codebook import EmitCodebook
from qir.passes.emission.emit_dynamic import EmitDynamic
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.quant.arithmetic import bias_quant, quantize, scale_shape

__all__ = ["EmitQdq"]


@dataclass(frozen=True)
class EmitQdq(Pass):
    """Write every annotation as QuantizeLinear/DequantizeLinear nodes and clear it, those of dynamic kernels and
    look-ups as ``emit-dynamic`` does, codebooks as ``emit-codebook`` does.

    A stored value gets one quantizer behind its producer and one dequantizer per scope that reads it; a use with a
    type of its own gets a quantizer of its own, shared by the uses that agree. Weights become integers, once per
    distinct type; a bias becomes int32 at the scale that its consumer's operands dictate.

    Before::

        %y: f32[1,8] = MatMul(%x : u8(0.02, 128), @w : s8[axis=1](...))

    After::

        %x_q: u8[1,4] = QuantizeLinear(%x, @scale, @zero_point)
        %x_dq: f32[1,4] = DequantizeLinear(%x_q, @scale, @zero_point)
        %w_dq: f32[4,8] = DequantizeLinear(@w_q, @w_scale, @w_zero_point) {axis=1}
        %y: f32[1,8] = MatMul(%x_dq, %w_dq)
    """

    name: ClassVar[str] = "emit-qdq"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises UnsupportedError where the model's opset has no node for an annotation."""
        result = PassResult()
        result.statistics.update(EmitDynamic().run(model, ctx).statistics)
        for name, count in EmitCodebook().run(model, ctx).statistics.items():
            result.count(name, count)
        emitter = _Emitter(model, result)
        emitter.resolve_biases(model)
        for graph in list(model.graphs()):
            for value in list(graph.values()):
                if value.quant is not None or any(use.quant is not UseQuantMarker.INHERIT for use in value.uses):
                    emitter.emit(value)
        for node in list(model.walk()):
            if node.kernel is not None:
                node.kernel = None
        result.changed = bool(result.statistics)
        return result


class _Emitter:
    """Emits value by value; parameters of equal types are stored once."""

    def __init__(self, model: Model, result: PassResult) -> None:
        self.opset = model.opset() or 1
        self.graph = model.graph
        self.result = result
        self.parameters: dict[tuple[StaticQuant, tuple[int, ...]], tuple[Value, Value]] = {}
        self.biases: set[Use] = set()
        self.order = {node: place for place, node in enumerate(model.walk())}

    def resolve_biases(self, model: Model) -> None:
        """Give derived uses their numbers while the annotations of the operands that they name still stand."""
        for node in model.walk():
            for use in node.uses:
                if use is not None and isinstance(use.quant, DerivedQuant):
                    use.quant = bias_type(use)
                    self.biases.add(use)

    def emit(self, value: Value) -> None:
        if value.is_constant:
            self._emit_constant(value)
        else:
            self._emit_activation(value)
        value.quant = None

    def _readers(self, value: Value) -> list[Use]:
        """In the order of the graph: what the first of them reads may serve the others."""
        last = len(self.order)
        return sorted(value.uses, key=lambda use: last if use.node is None else self.order.get(use.node, last))

    # Activations

    def _emit_activation(self, value: Value) -> None:
        stored = None if value.quant is None else self._static(value.quant, value)
        readers = self._readers(value)
        integers: dict[StaticQuant, Value] = {}
        if stored is not None:
            integers[stored] = self._quantizer(value, value, stored)
        numbers: dict[tuple[StaticQuant, Graph], Value] = {}
        for use in readers:
            quant = use.effective_quant
            use.quant = UseQuantMarker.INHERIT
            if quant is None:
                continue
            wanted = self._static(quant, value)
            if wanted not in integers:
                # A type of its own beside a stored one: requantize what is stored.
                source = value if stored is None else self._dequantizer(value, integers[stored], stored, None)
                integers[wanted] = self._quantizer(value, source, wanted)
            graph = use.graph
            if (wanted, graph) not in numbers:
                numbers[wanted, graph] = self._dequantizer(value, integers[wanted], wanted, use)
            use.replace(numbers[wanted, graph])

    def _quantizer(self, value: Value, source: Value, quant: StaticQuant) -> Value:
        scale, zero = self._parameter_values(quant, value)
        after = source.producer
        graph = value.graph
        assert graph is not None
        node = graph.add_node(
            "QuantizeLinear",
            [source, scale, zero],
            self._axis_attribute(quant),
            outputs=[graph.fresh_name(f"{value.name}_quantized")],
            types=[TensorType(quant.dtype, value.shape)],
            name=graph.fresh_name(f"{value.name}_QuantizeLinear"),
            before=graph.nodes.first if after is None else after.next,
            source=_sources(value),
        )
        self.result.count("quantizers")
        return node.output

    def _dequantizer(self, value: Value, integers: Value, quant: StaticQuant, use: Use | None) -> Value:
        """In the reader's scope, because the runtime fuses nothing across scopes."""
        graph = value.graph if use is None else use.graph
        assert graph is not None
        producer = integers.producer
        if producer is not None and producer.graph is graph:
            before = producer.next
        else:
            before = use.node if use is not None and use.node is not None else None
        scale, zero = self._parameter_values(quant, value)
        node = graph.add_node(
            "DequantizeLinear",
            [integers, scale, zero],
            self._axis_attribute(quant),
            outputs=[graph.fresh_name(f"{value.name}_dequantized")],
            types=[value.type],
            name=graph.fresh_name(f"{value.name}_DequantizeLinear"),
            before=before,
            source=_sources(value),
        )
        self.result.count("dequantizers")
        return node.output

    # Constants

    def _emit_constant(self, value: Value) -> None:
        tensor = value.tensor
        assert tensor is not None
        numbers: dict[tuple[StaticQuant, Graph], Value] = {}
        codes: dict[StaticQuant, Value] = {}
        for use in self._readers(value):
            quant = use.effective_quant
            if quant is None:
                use.quant = UseQuantMarker.INHERIT
                continue
            static = self._static(quant, value)
            if static not in codes:
                codes[static] = self._codes(value, tensor, static)
            # A bias is never shared: every consumer folds it into its own accumulator.
            private = use in self.biases
            key = (static, use.graph)
            if private or key not in numbers:
                numbers[key] = self._constant_dequantizer(value, codes[static], static, use)
            use.quant = UseQuantMarker.INHERIT
            use.value = numbers[key]
        if not value.uses and value.graph is not None:
            value.graph.remove_initializer(value)

    def _codes(self, value: Value, tensor: Tensor, quant: StaticQuant) -> Value:
        graph = value.graph
        assert graph is not None
        codes = Tensor(quant.dtype, tensor.shape, quantize(tensor.numpy(), quant))
        self.result.count("weights")
        return graph.add_initializer(f"{value.name}_quantized", codes)

    def _constant_dequantizer(self, value: Value, codes: Value, quant: StaticQuant, use: Use) -> Value:
        graph = use.graph
        scale, zero = self._parameter_values(quant, value)
        node = graph.add_node(
            "DequantizeLinear",
            [codes, scale, zero],
            self._axis_attribute(quant),
            outputs=[graph.fresh_name(f"{value.name}_dequantized")],
            types=[value.type],
            name=graph.fresh_name(f"{value.name}_DequantizeLinear"),
            before=use.node,
            source=[] if use.node is None else [use.node],
        )
        self.result.count("dequantizers")
        return node.output

    # Parameters

    def _parameter_values(self, quant: StaticQuant, value: Value) -> tuple[Value, Value]:
        shape = scale_shape(value.tensor.shape, quant) if value.tensor is not None else quant.scale_array().shape
        key = (quant, shape)
        if key not in self.parameters:
            scale = quant.scale_array().reshape(shape)
            zero = np.asarray(quant.zero_point_array()).reshape(shape).astype(quant.dtype.numpy)
            self.parameters[key] = (
                self.graph.add_initializer(f"{value.name}_scale", Tensor.of(np.asarray(scale))),
                self.graph.add_initializer(f"{value.name}_zero_point", Tensor.of(zero, quant.dtype)),
            )
        return self.parameters[key]

    def _axis_attribute(self, quant: StaticQuant) -> dict[str, int]:
        if quant.axis is None:
            return {}
        if self.opset < 13:
            raise UnsupportedError(
                f"per-channel quantization needs opset 13, the model has {self.opset}: run 'convert-opset' first"
            )
        if quant.block_size is None:
            return {"axis": quant.axis}
        if self.opset < 21:
            raise UnsupportedError(
                f"blocked quantization needs opset 21, the model has {self.opset}: run 'convert-opset' first"
            )
        return {"axis": quant.axis, "block_size": quant.block_size}

    @staticmethod
    def _static(quant: QuantType, value: Value) -> StaticQuant:
        if isinstance(quant, StaticQuant):
            return quant
        raise UnsupportedError(
            f"value {value.name!r} is annotated as {type(quant).__name__}, which QDQ nodes cannot express here"
        )


def bias_type(use: Use) -> StaticQuant:
    """What a derived annotation stands for: int32 at the product of its operands' scales.

    Raises OptionError where an operand that it names is not quantized statically.
    """
    derived, node = use.quant, use.node
    assert isinstance(derived, DerivedQuant) and node is not None
    operands = [node.use(derived.input_index), node.use(derived.weight_index)]
    types = [None if operand is None else operand.effective_quant for operand in operands]
    if not all(isinstance(quant, StaticQuant) for quant in types):
        raise OptionError(f"the bias of {node.label!r} is derived from operands that are not quantized statically")
    x, w = types
    assert isinstance(x, StaticQuant) and isinstance(w, StaticQuant)
    return bias_quant(x, w, derived.dtype)


def _sources(value: Value) -> list[Node]:
    return [value.producer] if value.producer is not None else value.users[:1]
