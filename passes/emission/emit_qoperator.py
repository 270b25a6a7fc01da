"""``emit-qoperator``: spell the annotations as operators that take integers and hand out integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from qir.ir import DType, Model, Node, StaticQuant, Tensor, TensorType, Value
from qir.passes.emission.emit_dynamic import EmitDynamic
from qir.passes.emission.emit_qdq import EmitQdq
from qir.passes.lifting.codes import NotLiftable, static_type
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.quant.arithmetic import bias_quant, quantize
from qir.rewriting.edits import constant_of
from qir.targets.regions import clip_bounds

__all__ = ["EmitQoperator"]

_CONTRIB = "com.microsoft"
_EIGHT_BITS = (DType.UINT8, DType.INT8)
_BINARY = {"Add": "QLinearAdd", "Mul": "QLinearMul"}
_UNARY = {
    "Sigmoid": "QLinearSigmoid",
    "LeakyRelu": "QLinearLeakyRelu",
    "GlobalAveragePool": "QLinearGlobalAveragePool",
    "AveragePool": "QLinearAveragePool",
    "Softmax": "QLinearSoftmax",
}
_MOVEMENT = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Tile", "MaxPool", "Split"}
)
_HEAVY = frozenset({"Conv", "MatMul", "Gemm"})


class _Stays(Exception):
    """Why a node keeps its quantizers around it."""


class _Operand(NamedTuple):
    codes: Value
    scale: Value
    zero: Value | None
    quant: StaticQuant


@dataclass(frozen=True)
class EmitQoperator(Pass):
    """Write annotations as QLinearConv, QLinearMatMul and MatMulInteger, for runtimes that fuse no quantizers; with
    ``contrib`` (the default) also as onnxruntime's QGemm, QLinearAdd, QLinearConcat and their like, and
    MatMulIntegerToFloat where a product's result is float. What has no such form keeps QuantizeLinear and
    DequantizeLinear around it. A model that has these already (QDQ) is rewritten as well.

    Results differ from ``emit-qdq`` by the rounding of integer kernels: a step of the result's scale.

    Before::

        %y: f32[1,8] q=u8(0.01, 0) = Conv(%x : u8(0.02, 128), @w : s8[axis=0](...), @b : bias)

    After::

        %y_q: u8[1,8] = QLinearConv(%x_q, @x_s, @x_z, @w_q, @w_s, @w_z, @y_s, @y_z, @b_q)
    """

    name: ClassVar[str] = "emit-qoperator"
    effect: ClassVar[Effect] = Effect.LOSSY

    contrib: bool = True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises UnsupportedError where the model's opset has no node for an annotation."""
        result = PassResult()
        dynamic = EmitDynamic(contrib=self.contrib).run(model, ctx)
        emitted = EmitQdq().run(model, ctx)
        result.changed = dynamic.changed or emitted.changed
        emitter = _Emitter(model, self.contrib, result)
        for graph in list(model.graph.graphs()):
            for node in list(graph.nodes):
                if node.graph is None:
                    continue
                try:
                    emitter.convert(node)
                except _Stays as reason:
                    if node.op in _HEAVY:
                        message = f"{node.op} keeps quantizers around it: {reason}"
                        result.remarks.append(self.missed(node, message))
        if emitter.used_contrib and model.opset(_CONTRIB) is None:
            model.opset_imports = {**model.opset_imports, _CONTRIB: 1}
        result.changed |= bool(result.statistics)
        for name, count in (*dynamic.statistics.items(), *emitted.statistics.items()):
            result.count(name, count)
        return result


class _Emitter:
    """Rewrites DQ -> operator -> Q, node by node in graph order."""

    def __init__(self, model: Model, contrib: bool, result: PassResult) -> None:
        self.model = model
        self.contrib = contrib
        self.used_contrib = False
        self.result = result

    def convert(self, node: Node) -> None:
        """Raises _Stays with the reason where the node has no integer form."""
        if node.domain not in ("", "ai.onnx") or not any(_dequantizer(value) for value in node.inputs):
            return
        if node.op == "Conv":
            self._convolution(node)
        elif node.op == "MatMul":
            self._product(node)
        elif node.op in _MOVEMENT:
            self._movement(node)
        elif not self.contrib:
            raise _Stays("standard ONNX has no integer form of it")
        elif node.op == "Gemm":
            self._gemm(node)
        elif node.op in _BINARY:
            self._binary(node)
        elif node.op in _UNARY:
            self._unary(node)
        elif node.op == "Concat":
            self._concat(node)
        elif node.op == "Where":
            self._where(node)

    def _convolution(self, node: Node) -> None:
        x, w = _operand(node, 0), _weight(node, 1, 0)
        y = self._result(node, x.quant.dtype)
        bias = self._bias(node, x, w)
        operands = [*_flat(x), *_flat(w), *y.parameters]
        self._replace(node, y, "QLinearConv", operands if bias is None else [*operands, bias], dict(node.attributes))

    def _product(self, node: Node) -> None:
        a = _operand(node, 0)
        b = _weight(node, 1, -1)
        if any(use.node is not None and use.node.op in ("QuantizeLinear", "Relu", "Clip") for use in node.output.uses):
            y = self._result(node, a.quant.dtype)
            self._replace(node, y, "QLinearMatMul", [*_flat(a), *_flat(b), *y.parameters], {})
            return
        if self.contrib:
            operands = [a.codes, b.codes, a.scale, b.scale, a.zero, b.zero]
            self._retype(node, "MatMulIntegerToFloat", operands, _CONTRIB)
            return
        graph = node.graph
        assert graph is not None
        sums = graph.insert_before(
            node, "MatMulInteger", [a.codes, b.codes, a.zero, b.zero],
            types=[TensorType(DType.INT32, node.output.shape)], source=[node],
        ).output  # fmt: skip
        number = graph.insert_before(
            node, "Cast", [sums], attributes={"to": DType.FLOAT.code}, types=[node.output.type], source=[node]
        ).output
        scales = bias_quant(a.quant, b.quant).scale_array()
        self._retype(node, "Mul", [number, graph.add_constant(np.asarray(scales), f"{node.output.name}_scale")], "")

    def _gemm(self, node: Node) -> None:
        if node.get("transA", 0) or node.get("alpha", 1.0) != 1.0 or node.get("beta", 1.0) != 1.0:
            raise _Stays("the integer Gemm takes no transA, alpha or beta")
        a, b = _operand(node, 0), _weight(node, 1, 0 if node.get("transB", 0) else 1)
        attributes = {"transB": 1} if node.get("transB", 0) else {}
        bias = self._bias(node, a, b)
        operands = [a.codes, a.scale, a.zero, b.codes, b.scale, b.zero, bias]
        if any(use.node is not None and use.node.op in ("QuantizeLinear", "Relu", "Clip") for use in node.output.uses):
            try:
                y = self._result(node, a.quant.dtype)
            except _Stays:
                pass  # a float activation follows, or several quantizers: the result stays float
            else:
                self._replace(node, y, "QGemm", [*operands, *y.parameters], attributes, _CONTRIB)
                return
        for name in list(node.attributes):
            node.remove(name)
        for name, value in attributes.items():
            node.set(name, value)
        self._retype(node, "QGemm", operands if bias is not None else operands[:6], _CONTRIB)

    def _binary(self, node: Node) -> None:
        a, b = _operand(node, 0), _operand(node, 1)
        y = self._result(node, a.quant.dtype)
        if b.quant.dtype is not a.quant.dtype:
            raise _Stays("its operands are of different types")
        self._replace(node, y, _BINARY[node.op], [*_flat(a), *_flat(b), *y.parameters], {}, _CONTRIB)

    def _unary(self, node: Node) -> None:
        x = _operand(node, 0)
        y = self._result(node, x.quant.dtype)
        attributes: dict[str, Any] = dict(node.attributes)
        if node.op == "Softmax":
            opset = self.model.opset() or 13
            attributes.setdefault("axis", -1 if opset >= 13 else 1)
            attributes["opset"] = opset
        if node.op == "AveragePool" and (attributes.pop("dilations", None) is not None):
            raise _Stays("the integer AveragePool takes no dilations")
        self._replace(node, y, _UNARY[node.op], [*_flat(x), *y.parameters], attributes, _CONTRIB)

    def _concat(self, node: Node) -> None:
        operands = [_operand(node, index) for index in range(len(node.uses))]
        y = self._result(node, operands[0].quant.dtype)
        if any(operand.quant.dtype is not operands[0].quant.dtype for operand in operands):
            raise _Stays("its operands are of different types")
        flat = [value for operand in operands for value in _flat(operand)]
        self._replace(node, y, "QLinearConcat", [*y.parameters, *flat], dict(node.attributes), _CONTRIB)

    def _where(self, node: Node) -> None:
        a, b = _operand(node, 1), _operand(node, 2)
        y = self._result(node, a.quant.dtype)
        if b.quant.dtype is not a.quant.dtype:
            raise _Stays("its operands are of different types")
        operands = [node.input(0), *_flat(a), *_flat(b), *y.parameters]
        self._replace(node, y, "QLinearWhere", operands, {}, _CONTRIB)

    def _movement(self, node: Node) -> None:
        """The same node on codes, where all its results are quantized as its operand was."""
        x = _operand(node, 0)
        quantizers = []
        for value in node.outputs:
            uses = list(value.uses)
            reader = uses[0].node if len(uses) == 1 else None
            if reader is None or reader.op != "QuantizeLinear" or _parameters(reader) != x.quant:
                raise _Stays("its result is not quantized as its operand is")
            quantizers.append(reader)
        old = node.input(0)
        node.set_input(0, x.codes)
        for value, reader in zip(node.outputs, quantizers, strict=True):
            value.type = TensorType(x.quant.dtype, value.shape)
            _take_over(reader, value)
        if old is not None:
            _clean(old)
        self.result.count(f"{node.op} on codes")

    # Results and operands

    def _result(self, node: Node, dtype: DType) -> _Result:
        value, merged = node.output, None
        reader = _only_reader(value)
        if reader is not None and reader.op in ("Relu", "Clip") and reader.domain == "":
            merged, value = reader, reader.output
            reader = _only_reader(value)
        if reader is None or reader.op != "QuantizeLinear":
            raise _Stays("its result is not read by one quantizer alone")
        quant = _parameters(reader)
        if quant.axis is not None or quant.dtype is not dtype:
            raise _Stays(f"its result is {quant.dtype}{'' if quant.axis is None else ' a channel'}, its input {dtype}")
        if merged is not None and not _redundant(merged, quant):
            raise _Stays(f"the codes of its result reach beyond the {merged.op} behind it")
        scale = reader.input(1)
        assert scale is not None
        return _Result(reader, merged, [scale, reader.input(2) or self._zero(node, quant)])

    def _zero(self, node: Node, quant: StaticQuant) -> Value:
        graph = node.graph
        assert graph is not None
        return graph.add_constant(np.asarray(quant.zero_point_array()).astype(quant.dtype.numpy), "zero_point")

    def _bias(self, node: Node, x: _Operand, w: _Operand) -> Value | None:
        """The bias as int32 at the product of its operands' scales."""
        bias = node.input(2)
        if bias is None:
            return None
        derived = bias_quant(x.quant, w.quant)
        maker = _dequantizer(bias)
        graph = node.graph
        assert graph is not None
        if maker is not None:
            quant, codes = _parameters(maker), maker.input(0)
            same = len(quant.scale) in (1, len(derived.scale)) and all(
                scale == quant.scale[i % len(quant.scale)] for i, scale in enumerate(derived.scale)
            )
            if codes is None or quant.dtype is not DType.INT32 or not same or not quant.is_symmetric:
                raise _Stays("its bias is not int32 at the product of its operands' scales")
            return codes
        constant = constant_of(bias)
        channels = constant_of(node.input(1)) or constant_of(w.codes)
        if constant is None or channels is None or len(constant.shape) != 1:
            raise _Stays("its bias is no constant vector")
        return graph.add_initializer(f"{bias.name}_quantized", Tensor.of(quantize(constant.numpy(), derived)))

    # Edits

    def _replace(
        self,
        node: Node,
        result: _Result,
        op: str,
        operands: list[Value | None],
        attributes: Mapping[str, Any],
        domain: str = "",
    ) -> None:
        graph = node.graph
        assert graph is not None
        reader = result.quantizer
        sources = [node] if result.merged is None else [node, result.merged]
        made = graph.insert_before(
            reader, op, operands, attributes=attributes, domain=domain,
            types=[TensorType(_parameters(reader).dtype, node.output.shape)], name=graph.fresh_name(node.name or op),
            outputs=[graph.fresh_name(f"{node.output.name}_codes")], source=sources,
        )  # fmt: skip
        _take_over(reader, made.output)
        for old in (result.merged, node):
            if old is not None:
                inputs = [value for value in old.inputs if value is not None]
                old.erase()
                for value in dict.fromkeys(inputs):
                    _clean(value)
        self.used_contrib |= domain == _CONTRIB
        self.result.count(op)

    def _retype(self, node: Node, op: str, operands: list[Value | None], domain: str) -> None:
        """Turn a node whose result stays float into another operator."""
        old = [value for value in node.inputs if value is not None]
        node.set_op(op, domain)
        while operands and operands[-1] is None:
            operands.pop()
        node.set_inputs(operands)
        for value in dict.fromkeys(old):
            _clean(value)
        self.used_contrib |= domain == _CONTRIB
        self.result.count("MatMulInteger" if op == "Mul" else op)


class _Result(NamedTuple):
    quantizer: Node
    merged: Node | None
    parameters: list[Value]


def _dequantizer(value: Value | None) -> Node | None:
    maker = None if value is None else value.producer
    return maker if maker is not None and maker.op == "DequantizeLinear" else None


def _parameters(node: Node) -> StaticQuant:
    """The type of a QuantizeLinear or DequantizeLinear. Raises _Stays where its parameters are not constant."""
    data = node.input(0)
    constant = constant_of(data)
    dtype = node.output.dtype if node.op == "QuantizeLinear" else (data.dtype if data is not None else None)
    try:
        return static_type(
            node.input(1), node.input(2), dtype or DType.UINT8, node.get("axis", 1), block=node.get("block_size", 0),
            shape=None if constant is None else constant.shape,
            rank=None if data is None or data.shape is None else len(data.shape),
        )  # fmt: skip
    except NotLiftable as reason:
        raise _Stays(str(reason)) from None


def _operand(node: Node, index: int) -> _Operand:
    """A per-tensor 8-bit operand."""
    value = node.input(index)
    maker = _dequantizer(value)
    if maker is None or value is None:
        raise _Stays(f"its operand {index} is float")
    quant, codes, scale = _parameters(maker), maker.input(0), maker.input(1)
    if codes is None or scale is None or quant.dtype not in _EIGHT_BITS:
        raise _Stays(f"its operand {index} is {quant.dtype}, not of 8 bits")
    if quant.axis is not None:
        raise _Stays(f"its operand {index} has a scale a channel")
    zero = maker.input(2)
    graph = node.graph
    if zero is None and graph is not None:
        zero = graph.add_constant(np.zeros((), quant.dtype.numpy), f"{value.name}_zero_point")
    return _Operand(codes, scale, zero, quant)


def _weight(node: Node, index: int, axis: int) -> _Operand:
    """An operand with one scale, or where it is constant, one for each index of ``axis`` of its matrix."""
    value = node.input(index)
    maker = _dequantizer(value)
    codes = None if maker is None else maker.input(0)
    constant = constant_of(codes)
    if maker is None or constant is None or codes is None or value is None:
        return _operand(node, index)
    quant, scale, zero = _parameters(maker), maker.input(1), maker.input(2)
    data = node.input(0)
    source = _dequantizer(data)
    if quant.dtype not in _EIGHT_BITS or quant.block_size is not None or scale is None:
        raise _Stays(f"its weight is {quant.dtype}{' in blocks' if quant.block_size else ''}")
    if quant.axis is not None and quant.axis != axis % len(constant.shape):
        raise _Stays(f"its weight has a scale for each index of axis {quant.axis}, its output channels are another")
    if quant.axis is not None and len(set(quant.zero_point)) > 1:
        raise _Stays("its weight's zero points differ from channel to channel")
    if source is not None and _parameters(source).dtype is DType.INT8 and quant.dtype is not DType.INT8:
        raise _Stays("no kernel multiplies s8 activations by u8 weights")
    graph = node.graph
    if zero is None and graph is not None:
        zero = graph.add_constant(np.zeros(quant.scale_array().shape, quant.dtype.numpy), f"{codes.name}_zero_point")
    return _Operand(codes, scale, zero, quant)


def _flat(operand: _Operand) -> list[Value | None]:
    return [operand.codes, operand.scale, operand.zero]


def _redundant(node: Node, quant: StaticQuant) -> bool:
    """Whether the codes of a type all lie where a Relu or Clip changes nothing."""
    lowest = (quant.dtype.qmin - quant.zero_point[0]) * np.float32(quant.scale[0])
    highest = (quant.dtype.qmax - quant.zero_point[0]) * np.float32(quant.scale[0])
    if node.op == "Relu":
        return bool(lowest >= 0)
    operands = [node.input(1), node.input(2)]
    lower, upper = clip_bounds(node)
    if any(value is not None and constant_of(value) is None for value in operands):
        return False
    above = lower is None or bool(lowest >= np.float32(lower))
    return above and (upper is None or bool(highest <= np.float32(upper)))


def _only_reader(value: Value) -> Node | None:
    uses = list(value.uses)
    return uses[0].node if len(uses) == 1 and not uses[0].is_capture else None


def _take_over(quantizer: Node, codes: Value) -> None:
    """Let readers of a quantizer's result read ``codes``, made before it, and drop the quantizer."""
    quantizer.output.replace_all_uses(codes)
    values = [value for value in quantizer.inputs if value is not None]
    quantizer.erase()
    for value in values:
        _clean(value)


def _clean(value: Value) -> None:
    """Drop a dequantizer and constants that nobody reads any more."""
    if value.uses or value.graph is None:
        return
    maker = value.producer
    if value.is_constant:
        value.graph.remove_initializer(value)
    elif maker is not None and maker.op in ("DequantizeLinear", "QuantizeLinear", "Constant"):
        inputs = [operand for operand in maker.inputs if operand is not None]
        maker.erase()
        for operand in dict.fromkeys(inputs):
            _clean(operand)
