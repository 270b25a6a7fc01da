"""``emit-dynamic``: spell the kernels that quantize activations at run time, and look-ups in integer tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.errors import UnsupportedError
from qir.ir import (
    Attribute,
    DType,
    DynamicQuant,
    Graph,
    Model,
    Node,
    StaticQuant,
    Tensor,
    TensorType,
    Use,
    UseQuantMarker,
    Value,
)
from qir.ir.provenance import merge
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.quant.arithmetic import quantize

__all__ = ["EmitDynamic", "bias_behind", "drop_unused"]

_CONTRIB = "com.microsoft"
_DYNAMIC_LSTM, _ATTENTION = "DynamicQuantizeLSTM", "QAttention"


@dataclass(frozen=True)
class EmitDynamic(Pass):
    """Write dynamic linear operators as DynamicQuantizeLinear (one for all that read the same value) and
    MatMulIntegerToFloat, with the bias inside, or with ``contrib=false`` in standard ONNX as MatMulInteger, Cast and
    Mul; convolutions as ConvInteger; LSTMs as DynamicQuantizeLSTM; look-ups in a table with a scale a row as a Gather
    of codes times a Gather of scales. ``emit-qdq`` does this first, then spells the static annotations.

    Before::

        %y: f32[2,8] = MatMul(%x : dynamic(u8), @w : s8[axis=1](...)) kernel=dynamic

    After::

        %x_quantized: u8[2,4], %x_scale: f32[], %x_zero_point: u8[] = DynamicQuantizeLinear(%x)
        %y: f32[2,8] = com.microsoft.MatMulIntegerToFloat(%x_quantized, @w_quantized, %x_scale, @w_scale, %x_zero_point)
    """

    name: ClassVar[str] = "emit-dynamic"
    effect: ClassVar[Effect] = Effect.EXACT

    contrib: bool = True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises UnsupportedError where the model's opset lacks DynamicQuantizeLinear (11)."""
        result = PassResult()
        emitter = _Emitter(model, result)
        for node in list(model.walk()):
            if node.kernel == "dynamic" and node.op == "Conv":
                emitter.convolution(node)
            elif node.kernel == "dynamic" and self.contrib:
                emitter.linear(node)
            elif node.kernel == "dynamic":
                emitter.standard_linear(node)
            elif node.kernel == _ATTENTION:
                emitter.attention(node)
            elif node.kernel == _DYNAMIC_LSTM:
                emitter.recurrent(node)
            elif node.kernel == "integer" and node.op == "Gather" and _reads_typed_table(node):
                emitter.lookup(node)
        if emitter.contrib and model.opset(_CONTRIB) is None:
            model.opset_imports = {**model.opset_imports, _CONTRIB: 1}
        result.changed = bool(result.statistics)
        return result


class _Emitter:
    """Rewrites nodes in place, so that results keep their identity; each constant and quantizer is made once."""

    def __init__(self, model: Model, result: PassResult) -> None:
        self.opset = model.opset() or 1
        self.result = result
        self.contrib = False
        self.activations: dict[tuple[Value, Graph], tuple[Value, Value, Value]] = {}
        self.codes: dict[tuple[Value, StaticQuant, bool], Value] = {}
        self.scales: dict[tuple[Value, StaticQuant, tuple[int, ...]], Value] = {}

    def linear(self, node: Node) -> None:
        weight = node.use(1)
        assert weight is not None
        quant = _static(weight)
        codes, scale, zero = self._dynamic_operand(node)
        table = self._codes(weight.value, quant, transposed=bool(node.get("transB", 0)))
        weight_scale = self._scale(weight.value, quant, (len(quant.scale),) if quant.axis is not None else ())
        maker, bias = bias_behind(node)
        old = [value for value in node.inputs if value is not None]
        for name in list(node.attributes):
            node.remove(name)
        _clear(node)
        maker.set_op("MatMulIntegerToFloat", _CONTRIB)
        if maker is not node:
            old += [value for value in maker.inputs if value is not None]
        operands = [codes, table, scale, weight_scale, zero, self._weight_zero(weight.value, quant), bias]
        while operands[-1] is None:
            operands.pop()
        maker.set_inputs(operands)
        if maker is not node:
            maker.provenance = merge([node.provenance, maker.provenance])
            node.erase()
        drop_unused(old)
        self.contrib = True
        self.result.count("dynamic")

    def standard_linear(self, node: Node) -> None:
        """As MatMulInteger. The bias is an Add behind it, which the runtime may take in."""
        weight = node.use(1)
        assert weight is not None
        quant = _static(weight)
        codes, scale, zero = self._dynamic_operand(node)
        table = self._codes(weight.value, quant, transposed=bool(node.get("transB", 0)))
        weight_scale = self._scale(weight.value, quant, (len(quant.scale),) if quant.axis is not None else ())
        operands = [codes, table, zero, self._weight_zero(weight.value, quant)]
        self._integer(node, "MatMulInteger", operands, {}, scale, weight_scale)
        self.result.count("dynamic")

    def convolution(self, node: Node) -> None:
        """As ConvInteger, whose weights are u8: the runtime's older versions have no kernel for others."""
        weight = node.use(1)
        assert weight is not None
        quant = _static(weight)
        if quant.dtype is not DType.UINT8 or len(set(quant.zero_point)) > 1:
            raise UnsupportedError(
                f"Conv {node.label!r} is dynamic, but its weight is {quant.dtype}: it must be u8 with one zero point"
            )
        codes, scale, zero = self._dynamic_operand(node)
        table = self._codes(weight.value, quant, transposed=False)
        rank = len(weight.value.shape or ())
        shape = (1, len(quant.scale), *[1] * (rank - 2)) if quant.axis is not None else ()
        operands = [codes, table, zero, self._weight_zero(weight.value, quant)]
        weight_scale = self._scale(weight.value, quant, shape)
        self._integer(node, "ConvInteger", operands, dict(node.attributes), scale, weight_scale)
        self.result.count("dynamic")

    def _dynamic_operand(self, node: Node) -> tuple[Value, Value, Value]:
        data = node.use(0)
        if data is None or not isinstance(data.quant, DynamicQuant) or data.quant.dtype is not DType.UINT8:
            raise UnsupportedError(f"{node.op} {node.label!r} is dynamic, but its activation is no dynamic u8")
        return self._activation(node, data.value)

    def _weight_zero(self, weight: Value, quant: StaticQuant) -> Value | None:
        if set(quant.zero_point) == {0}:
            return None
        zero = quant.zero_point_array() if len(set(quant.zero_point)) > 1 else np.asarray(quant.zero_point[0])
        return self._constant(weight, f"{weight.name}_zero_point", zero.astype(quant.dtype.numpy))

    def _integer(
        self, node: Node, op: str, operands: list[Value | None], attributes: dict[str, Attribute], *scales: Value
    ) -> None:
        """Integer sums, cast and multiplied by both scales; with the node's own bias added, if it has one."""
        graph, bias, result = node.graph, node.input(2), node.output
        assert graph is not None
        shape = result.shape
        while operands[-1] is None:
            operands.pop()
        sums = graph.insert_before(
            node, op, operands, attributes=attributes, types=[TensorType(DType.INT32, shape)], source=[node]
        ).output
        number = graph.insert_before(
            node, "Cast", [sums], attributes={"to": DType.FLOAT.code}, types=[result.type], source=[node]
        ).output
        factor = graph.insert_before(node, "Mul", list(scales), types=[scales[1].type], source=[node]).output
        old = [value for value in node.inputs if value is not None]
        for name in list(node.attributes):
            node.remove(name)
        _clear(node)
        if bias is None:
            node.set_op("Mul")
            node.set_inputs([number, factor])
        else:
            if op == "ConvInteger":
                assert bias.tensor is not None
                rank = len(scales[1].shape or ()) or len(old[1].shape or ())
                array = bias.tensor.numpy().reshape(1, -1, *[1] * (rank - 2))
                bias = self._constant(bias, f"{bias.name}_row", array)
            scaled = graph.insert_before(node, "Mul", [number, factor], types=[result.type], source=[node]).output
            node.set_op("Add")
            node.set_inputs([scaled, bias])
        drop_unused(old)

    def attention(self, node: Node) -> None:
        """Operands of Attention: input, weights, bias, mask_index, past."""
        weight = node.use(1)
        assert weight is not None
        quant = _static(weight)
        codes, scale, zero = self._dynamic_operand(node)
        table = self._codes(weight.value, quant, transposed=False)
        weight_scale = self._scale(weight.value, quant, (len(quant.scale),) if quant.axis is not None else ())
        operands = [
            codes, table, node.input(2), scale, weight_scale, node.input(3), zero,
            self._weight_zero(weight.value, quant), node.input(4),
        ]  # fmt: skip
        while operands[-1] is None:
            operands.pop()
        old = weight.value
        _clear(node)
        node.set_op(_ATTENTION, _CONTRIB)
        node.set_inputs(operands)
        drop_unused([old])
        self.contrib = True
        self.result.count("attention")

    def recurrent(self, node: Node) -> None:
        operands = list(node.inputs) + [None] * (8 - len(node.inputs))
        parameters: list[Value | None] = []
        old = operands[1:3]
        directions = 2 if node.get("direction", "forward") == "bidirectional" else 1
        for index in (1, 2):
            use = node.use(index)
            assert use is not None
            quant = _static(use)
            operands[index] = self._codes(use.value, quant, transposed=True)
            numbers = quant.scale_array().reshape(directions, -1)
            zeros = quant.zero_point_array().reshape(directions, -1).astype(quant.dtype.numpy)
            if (numbers == numbers[:, :1]).all() and (zeros == zeros[:, :1]).all():
                numbers, zeros = numbers[:, 0], zeros[:, 0]  # the kernel is faster with one scale a direction
            scale = self._scale(use.value, quant, numbers.shape, numbers)
            zero = self._constant(use.value, f"{use.value.name}_zero_point", np.ascontiguousarray(zeros))
            parameters += [scale, zero]
        node.remove("layout")
        _clear(node)
        node.set_op(_DYNAMIC_LSTM, _CONTRIB)
        node.set_inputs([*operands, *parameters])
        drop_unused([value for value in old if value is not None])
        self.contrib = True
        self.result.count("recurrent")

    def lookup(self, node: Node) -> None:
        table, indices, graph = node.use(0), node.input(1), node.graph
        assert table is not None and indices is not None and graph is not None
        quant, value, result = _static(table), table.value, node.output
        codes = self._codes(value, quant, transposed=False)
        scales = self._scale(value, quant, (len(quant.scale), 1))
        shape = result.shape
        row = graph.insert_before(
            node, "Gather", [codes, indices], attributes={"axis": 0}, types=[TensorType(quant.dtype, shape)],
            source=[node],
        ).output  # fmt: skip
        number = graph.insert_before(
            node, "Cast", [row], attributes={"to": DType.FLOAT.code}, types=[result.type], source=[node]
        ).output
        narrow = None if shape is None else (*shape[:-1], 1)
        scale = graph.insert_before(
            node, "Gather", [scales, indices], attributes={"axis": 0}, types=[TensorType(DType.FLOAT, narrow)],
            source=[node],
        ).output  # fmt: skip
        node.remove("axis")
        _clear(node)
        node.set_op("Mul")
        node.set_inputs([number, scale])
        drop_unused([value])
        self.result.count("lookups")

    def _activation(self, node: Node, value: Value) -> tuple[Value, Value, Value]:
        """Codes, scale and zero point; in the reader's scope, because a body may never run."""
        if self.opset < 11:
            raise UnsupportedError(
                f"dynamic quantization needs opset 11, the model has {self.opset}: run 'convert-opset' first"
            )
        graph = node.graph
        assert graph is not None
        key = (value, graph)
        if key not in self.activations:
            names = [graph.fresh_name(f"{value.name}_{part}") for part in ("quantized", "scale", "zero_point")]
            types = [TensorType(DType.UINT8, value.shape), TensorType(DType.FLOAT, ()), TensorType(DType.UINT8, ())]
            made = graph.insert_before(
                node, "DynamicQuantizeLinear", [value], outputs=names, types=types, source=[node],
                name=graph.fresh_name(f"{value.name}_DynamicQuantizeLinear"),
            )  # fmt: skip
            self.activations[key] = made.outputs[0], made.outputs[1], made.outputs[2]
            self.result.count("quantizers")
        return self.activations[key]

    def _codes(self, value: Value, quant: StaticQuant, *, transposed: bool) -> Value:
        key = (value, quant, transposed)
        if key not in self.codes:
            assert value.tensor is not None
            codes = quantize(value.tensor.numpy(), quant)
            codes = np.ascontiguousarray(np.swapaxes(codes, -1, -2) if transposed else codes)
            self.codes[key] = self._constant(value, f"{value.name}_quantized", codes)
            self.result.count("weights")
        return self.codes[key]

    def _scale(
        self, value: Value, quant: StaticQuant, shape: tuple[int, ...], numbers: np.ndarray | None = None
    ) -> Value:
        """The type's scales, or the ``numbers`` that say the same in fewer, in a shape."""
        key = (value, quant, shape)
        if key not in self.scales:
            numbers = quant.scale_array() if numbers is None else numbers
            self.scales[key] = self._constant(value, f"{value.name}_scale", np.reshape(numbers, shape))
        return self.scales[key]

    @staticmethod
    def _constant(value: Value, name: str, array: np.ndarray) -> Value:
        """In the scope of the constant that it stands for, so that all readers of that see it too."""
        graph = value.graph
        assert graph is not None
        return graph.add_initializer(name, Tensor.of(np.asarray(array)))


def bias_behind(node: Node) -> tuple[Node, Value | None]:
    """Of a linear operator, the node whose result a kernel with a bias makes, and that bias as a vector: a Gemm's own,
    or an Add of a row."""
    own = node.input(2)
    if own is not None:
        return node, _vector(own)
    uses = list(node.output.uses)
    add = uses[0].node if len(uses) == 1 else None
    weight = node.input(1)
    if add is None or add.op != "Add" or add.domain != "" or add.graph is not node.graph or add.kernel == "integer":
        return node, None
    bias = add.input(1 - uses[0].index)
    if bias is None or bias.tensor is None or weight is None or weight.tensor is None:
        return node, None
    columns = weight.tensor.shape[0 if node.get("transB", 0) else 1]
    if bias.tensor.size != columns or bias.tensor.shape[-1:] != (columns,) or node.op == "Gemm":
        return node, None
    # A row of more axes than the product would add them to the result.
    fits = len(bias.tensor.shape) == 1 or len(bias.tensor.shape) <= len(node.output.shape or ())
    return (add, _vector(bias)) if fits else (node, None)


def drop_unused(values: list[Value]) -> None:
    """Remove the constants that nobody reads any more."""
    for value in dict.fromkeys(values):
        if value.is_constant and not value.uses and value.graph is not None:
            value.graph.remove_initializer(value)


def _vector(bias: Value) -> Value:
    if bias.shape is not None and len(bias.shape) == 1:
        return bias
    assert bias.tensor is not None and bias.graph is not None
    return bias.graph.add_initializer(f"{bias.name}_vector", Tensor.of(bias.tensor.numpy().reshape(-1)))


def _static(use: Use) -> StaticQuant:
    if not isinstance(use.quant, StaticQuant) or use.value.tensor is None:
        raise UnsupportedError(f"weight {use.value.name!r} has no static type: run 'quantize' first")
    return use.quant


def _reads_typed_table(node: Node) -> bool:
    use = node.use(0)
    return use is not None and isinstance(use.quant, StaticQuant) and use.quant.axis == 0 and use.value.is_constant


def _clear(node: Node) -> None:
    node.kernel = None
    for use in node.uses:
        if use is not None:
            use.quant = UseQuantMarker.INHERIT
