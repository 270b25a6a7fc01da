"""How each operator that computes on codes reads as a float operator with annotations.

Operands as the ONNX specification and onnxruntime's docs/ContribOperators.md have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qir.ir import Attribute, DerivedQuant, DType, DynamicQuant, Node, StaticQuant, Tensor, Value
from qir.passes.lifting.codes import Codes, Lifting, NotLiftable, static_type
from qir.quant.arithmetic import bias_quant, dequantize
from qir.rewriting.edits import constant_of

__all__ = ["CONTRIB_OPERATORS", "STANDARD_OPERATORS"]

Handler = Callable[[Node, Lifting], None]


def _type(node: Node, scale: int, zero: int, data: int, axis: int = 0) -> StaticQuant:
    """The type that operands ``scale`` and ``zero`` give to operand ``data``, one scale a channel of ``axis``."""
    value = node.input(data)
    constant = constant_of(value)
    dtype = constant.dtype if constant is not None else (value.dtype if value is not None else None)
    shape = None if constant is None else constant.shape
    return static_type(node.input(scale), node.input(zero), dtype or DType.UINT8, axis, shape=shape)


def _result(node: Node, scale: int, zero: int) -> StaticQuant:
    return static_type(node.input(scale), node.input(zero), node.output.dtype or DType.UINT8)


def _bias(lifting: Lifting, bias: Value | None, x: StaticQuant, w: StaticQuant) -> tuple[Value | None, Any]:
    """An int32 bias as floats, and what its use reads."""
    if bias is None:
        return None, None
    return lifting.weight(bias, bias_quant(x, w)), DerivedQuant(0, 1)


def _attributes(node: Node, *dropped: str) -> dict[str, Attribute]:
    return {name: value for name, value in node.attributes.items() if name not in dropped}


def _convolution(node: Node, lifting: Lifting) -> None:
    if node.get("channels_last", 0):
        raise NotLiftable("it is in the runtime's own layout, channels last")
    x, w, y = _type(node, 1, 2, 0), _type(node, 4, 5, 3), _result(node, 6, 7)
    data, weight = lifting.operand(node, 0, x), lifting.operand(node, 3, w)
    bias, derived = _bias(lifting, node.input(8), x, w)
    reads = {0: x, 1: w, 2: derived}
    lifting.replace(
        node, "Conv", _trimmed(data, weight, bias), _attributes(node, "channels_last"), _present(reads), [y],
        kernel="integer",
    )  # fmt: skip


def _product(node: Node, lifting: Lifting) -> None:
    """QLinearMatMul."""
    a, y = _type(node, 1, 2, 0), _result(node, 6, 7)
    b = _column_type(node, 4, 5, 3)
    operands = [lifting.operand(node, 0, a), lifting.operand(node, 3, b)]
    lifting.replace(node, "MatMul", operands, {}, {0: a, 1: b}, [y], kernel="integer")


def _gemm(node: Node, lifting: Lifting) -> None:
    """QGemm; its result is float where it has no scale."""
    a = _type(node, 1, 2, 0)
    b = _type(node, 4, 5, 3, 0 if node.get("transB", 0) else 1)
    y = None if node.input(7) is None else _result(node, 7, 8)
    if node.get("alpha", 1.0) != 1.0 and node.input(6) is not None:
        raise NotLiftable("its alpha goes into the scale of its bias")
    bias, derived = _bias(lifting, node.input(6), a, b)
    operands = _trimmed(lifting.operand(node, 0, a), lifting.operand(node, 3, b), bias)
    lifting.replace(
        node, "Gemm", operands, _attributes(node), _present({0: a, 1: b, 2: derived}), [y], kernel="integer"
    )


def _binary(op: str) -> Handler:
    def lift(node: Node, lifting: Lifting) -> None:
        a, b, y = _type(node, 1, 2, 0), _type(node, 4, 5, 3), _result(node, 6, 7)
        operands = [lifting.operand(node, 0, a), lifting.operand(node, 3, b)]
        lifting.replace(node, op, operands, {}, {0: a, 1: b}, [y], kernel="integer")

    return lift


def _unary(op: str) -> Handler:
    def lift(node: Node, lifting: Lifting) -> None:
        if node.get("channels_last", 0):
            raise NotLiftable("it is in the runtime's own layout, channels last")
        x, y = _type(node, 1, 2, 0), _result(node, 3, 4)
        operands = [lifting.operand(node, 0, x)]
        attributes = _attributes(node, "channels_last", "opset")
        lifting.replace(node, op, operands, attributes, {0: x}, [y], kernel="integer")

    return lift


def _softmax(node: Node, lifting: Lifting) -> None:
    before = node.get("opset", 13) < 13
    if before != ((lifting.model.opset() or 13) < 13):
        raise NotLiftable("it has the meaning of Softmax in another opset than the model's")
    _unary("Softmax")(node, lifting)


def _concat(node: Node, lifting: Lifting) -> None:
    y = _result(node, 0, 1)
    operands: list[Value] = []
    reads: dict[int, StaticQuant] = {}
    for index in range(2, len(node.uses), 3):
        quant = _type(node, index + 1, index + 2, index)
        reads[len(operands)] = quant
        operands.append(lifting.operand(node, index, quant))
    lifting.replace(node, "Concat", operands, _attributes(node), reads, [y], kernel="integer")


def _where(node: Node, lifting: Lifting) -> None:
    a, b, y = _type(node, 2, 3, 1), _type(node, 5, 6, 4), _result(node, 7, 8)
    operands = [node.input(0), lifting.operand(node, 1, a), lifting.operand(node, 4, b)]
    lifting.replace(node, "Where", operands, {}, {1: a, 2: b}, [y], kernel="integer")


def _reduce_mean(node: Node, lifting: Lifting) -> None:
    if (lifting.model.opset() or 13) >= 18 and "axes" in node.attributes:
        raise NotLiftable("its axes are an attribute, which ReduceMean of the model's opset does not have")
    _unary("ReduceMean")(node, lifting)


# Integer products with a float result


def _integer_product(node: Node, lifting: Lifting) -> None:
    """MatMulInteger or ConvInteger, Cast, Mul by both scales: standard ONNX for a product with a float result."""
    source = lifting.codes_of(node, 0)
    if source is None:
        raise NotLiftable("its activation is no result of a quantizer")
    cast = _only_reader(node.output)
    last = _only_reader(cast.output) if cast is not None and cast.op == "Cast" else None
    if cast is None or last is None or last.op != "Mul" or cast.get("to") != DType.FLOAT.code:
        raise NotLiftable("its sums are not cast to float and scaled right away")
    factor = last.input(1) if last.input(0) is cast.output else last.input(0)
    is_conv = node.op == "ConvInteger"
    codes = constant_of(node.input(1))
    if codes is None:
        raise NotLiftable("its weight is not constant")
    axis = 0 if is_conv else len(codes.shape) - 1
    if source.scale is None:
        weight, between = _static_factor(node, source, factor, axis), [cast]
    else:
        scale, maker = _dynamic_factor(node, source, factor)
        weight = static_type(scale, node.input(3), codes.dtype, axis, shape=codes.shape)
        between = [cast, maker]
    weight_value = node.input(1)
    assert weight_value is not None
    lifting.replace(
        node, "Conv" if is_conv else "MatMul", [source.value, lifting.weight(weight_value, weight)],
        _attributes(node), {0: source.quant, 1: weight}, [None], instead=last, between=between,
        kernel="dynamic" if source.scale is not None else "integer",
    )  # fmt: skip


def _dynamic_factor(node: Node, source: Codes, factor: Value | None) -> tuple[Value, Node]:
    """The weight's scale, and the node that multiplies it with the activation's."""
    if node.input(2) is not source.zero:
        raise NotLiftable("its zero point is not that of its activation's quantizer")
    maker = factor.producer if factor is not None else None
    if maker is None or maker.op != "Mul" or source.scale not in maker.inputs:
        raise NotLiftable("its scales are not multiplied with each other")
    scale = maker.input(1) if maker.input(0) is source.scale else maker.input(0)
    if scale is None or constant_of(scale) is None:
        raise NotLiftable("the scale of its weight is not constant")
    return scale, maker


def _static_factor(node: Node, source: Codes, factor: Value | None, axis: int) -> StaticQuant:
    """The weight's type where one constant holds the product of its scale and the activation's."""
    product, codes = constant_of(factor), constant_of(node.input(1))
    x = source.quant
    if product is None or codes is None or not isinstance(x, StaticQuant) or x.axis is not None:
        raise NotLiftable("its scales are not constant")
    zero = constant_of(node.input(2))
    if (0 if zero is None else int(zero.numpy().reshape(-1)[0])) != x.zero_point[0]:
        raise NotLiftable("its zero point is not that of its activation's quantizer")
    scale = _factor_of(product.numpy().reshape(-1).astype(np.float32), np.float32(x.scale[0]))
    points = constant_of(node.input(3))
    zeros = (0,) if points is None else tuple(int(point) for point in points.numpy().reshape(-1).astype(np.int64))
    if scale.size == 1:
        return StaticQuant(codes.dtype, (float(scale[0]),), zeros[:1])
    if scale.size != codes.shape[axis]:
        raise NotLiftable("it has not as many scales as columns")
    return StaticQuant(codes.dtype, tuple(scale.tolist()), zeros[:1] if len(set(zeros)) == 1 else zeros, axis)


def _factor_of(product: np.ndarray, one: np.float32) -> np.ndarray:
    """float32 numbers that times ``one`` give ``product`` to the bit, where such ones are next to the quotient."""
    quotient = (product.astype(np.float64) / np.float64(one)).astype(np.float32)
    best = quotient.copy()
    for candidate in (np.nextafter(quotient, np.float32(0)), np.nextafter(quotient, np.float32(np.inf))):
        best = np.where((best * one != product) & (candidate * one == product), candidate, best)
    return best.astype(np.float32)


# Kernels that quantize and scale by themselves


def _dynamic_product(node: Node, lifting: Lifting) -> None:
    """DynamicQuantizeMatMul: A, B, b_scale, b_zero_point, bias."""
    data, weight = node.input(0), node.input(1)
    if data is None or weight is None:
        raise NotLiftable("an operand is missing")
    quant = _column_type(node, 2, 3, 1)
    if node.input(3) is None:
        quant = StaticQuant(quant.dtype, quant.scale, (0,), quant.axis)
    _with_bias(node, lifting, [data, lifting.weight(weight, quant)], {0: DynamicQuant(DType.UINT8), 1: quant}, 4)


def _product_to_float(node: Node, lifting: Lifting) -> None:
    """MatMulIntegerToFloat: A, B, a_scale, b_scale, a_zero_point, b_zero_point, bias."""
    source = lifting.codes_of(node, 0)
    b = _column_type(node, 3, 5, 1)
    if source is not None and source.scale is not None:
        if node.input(2) is not source.scale or node.input(4) is not source.zero:
            raise NotLiftable("its scale or zero point is not that of its activation's quantizer")
        data, a = source.value, source.quant
    else:
        a = _type(node, 2, 4, 0)
        data = lifting.operand(node, 0, a)
    _with_bias(node, lifting, [data, lifting.operand(node, 1, b)], {0: a, 1: b}, 6)


def _with_bias(node: Node, lifting: Lifting, operands: Sequence[Value], reads: Mapping[int, Any], bias: int) -> None:
    """A product, and an Add where the fused operator has a bias."""
    kernel = "dynamic" if isinstance(reads[0], DynamicQuant) else "integer"
    row, graph, result = node.input(bias), node.graph, node.output
    if row is None:
        lifting.replace(node, "MatMul", operands, {}, reads, [None], kernel=kernel)
        return
    assert graph is not None
    add = graph.insert_after(
        node, "Add", [result, row], outputs=[graph.fresh_name(f"{result.name}_sum")], types=[result.type], source=[node]
    )  # fmt: skip
    result.replace_all_uses(add.output, where=lambda use: use.node is not add)
    lifting.replace(node, "MatMul", operands, {}, reads, [None], kernel=kernel)


def _dynamic_lstm(node: Node, lifting: Lifting) -> None:
    """DynamicQuantizeLSTM: an LSTM's eight operands with W and R transposed, then their scales and zero points."""
    operands = list(node.inputs[:8])
    reads: dict[int, StaticQuant] = {}
    for index, scale_index in ((1, 8), (2, 10)):
        codes = node.input(index)
        content, scales = constant_of(codes), constant_of(node.input(scale_index))
        zeros = constant_of(node.input(scale_index + 1))
        if codes is None or content is None or scales is None or codes.graph is None:
            raise NotLiftable("its weights are not constant")
        directions, length, rows = content.shape
        flat = np.broadcast_to(scales.numpy().reshape(directions, -1), (directions, rows)).reshape(-1)
        points = np.zeros((directions, 1), np.int64) if zeros is None else zeros.numpy().astype(np.int64)
        spread = np.broadcast_to(points.reshape(directions, -1), (directions, rows)).reshape(-1)
        zero = (int(spread[0]),) if np.all(spread == spread[0]) else tuple(spread.tolist())
        reads[index] = StaticQuant(content.dtype, tuple(flat.astype(np.float32).tolist()), zero, 2, length)
        operands[index] = lifting.weight(codes, reads[index], transposed=True)
    while operands and operands[-1] is None:
        operands.pop()
    lifting.replace(
        node, "LSTM", operands, _attributes(node), reads, [None] * len(node.outputs), kernel="DynamicQuantizeLSTM"
    )


def _attention(node: Node, lifting: Lifting) -> None:
    """QAttention: input, weight, bias, input_scale, weight_scale, mask_index, input and weight zero points, past."""
    source = lifting.codes_of(node, 0)
    weight = node.input(1)
    if source is None or weight is None or source.scale is None or node.input(3) is not source.scale:
        raise NotLiftable("its activation is no result of DynamicQuantizeLinear")
    if node.input(6) is not source.zero:
        raise NotLiftable("its zero point is not that of its activation's quantizer")
    quant = _column_type(node, 4, 7, 1)
    if node.input(7) is None:
        quant = StaticQuant(quant.dtype, quant.scale, (0,), quant.axis)
    operands = [source.value, lifting.weight(weight, quant), node.input(2), node.input(5), node.input(8)]
    while operands[-1] is None:
        operands.pop()
    lifting.replace(
        node, "Attention", operands, _attributes(node), {0: source.quant, 1: quant}, [None] * len(node.outputs),
        domain="com.microsoft", kernel="QAttention",
    )  # fmt: skip


def _weight_only_product(node: Node, lifting: Lifting) -> None:
    """MatMulNBits: B [N, blocks, bytes] packs the weight's columns; low bits first."""
    k, n, block = (node.get(name, 0) for name in ("K", "N", "block_size"))
    bits = node.get("bits", 4)
    data, packed, scales = node.input(0), constant_of(node.input(1)), constant_of(node.input(2))
    if node.input(4) is not None:
        raise NotLiftable("its rows are in another order (g_idx)")
    if data is None or packed is None or scales is None or scales.dtype is not DType.FLOAT or bits not in (2, 4, 8):
        raise NotLiftable("its weight is not constant, or not of 2, 4 or 8 bits with f32 scales")
    blocks, dtype = -(-k // max(block, 1)), _PACKED[bits]
    if k < 1 or packed.size != n * blocks * block * bits // 8 or scales.size != n * blocks:
        raise NotLiftable(f"its weight or scales do not have the size that K={k}, N={n}, block_size={block} ask for")
    codes = _unpacked(packed.numpy().reshape(n, -1), bits)[:, :k]
    table = scales.numpy().reshape(n, blocks)
    zeros = _block_zeros(node, n, blocks, bits)
    quant = StaticQuant(dtype, tuple(table.T.reshape(-1).tolist()), zeros, 0, block)
    numbers = dequantize(np.ascontiguousarray(codes.T).astype(dtype.numpy), quant)
    source = node.input(1)
    assert source is not None and source.graph is not None
    weight = source.graph.add_initializer(f"{source.name}_float", Tensor.of(numbers))
    weight.frozen = True
    row, graph, result = node.input(5), node.graph, node.output
    assert graph is not None
    if row is not None:
        add = graph.insert_after(node, "Add", [result, row], types=[result.type], source=[node])
        result.replace_all_uses(add.output, where=lambda use: use.node is not add)
    lifting.replace(node, "MatMul", [data, weight], {}, {1: quant}, [None], kernel="weight-only")


def _block_gather(node: Node, lifting: Lifting) -> None:
    """GatherBlockQuantized: data [R, C] (u8: packed, low bits first), indices, scales [R, blocks], zero points."""
    source, content, scales = node.input(0), constant_of(node.input(0)), constant_of(node.input(2))
    bits, block = node.get("bits", 4), node.get("block_size", 128)
    if source is None or source.graph is None or content is None or scales is None or scales.dtype is not DType.FLOAT:
        raise NotLiftable("its table is not constant, or its scales are not f32")
    matrix = len(content.shape) == 2 == len(scales.shape)
    if not matrix or node.get("gather_axis", 0) != 0 or node.get("quantize_axis", 1) not in (1, -1):
        raise NotLiftable("its table is no matrix of rows with blocks along each")
    rows, blocks = content.shape[0], scales.shape[1]
    packed = content.dtype is DType.UINT8
    if packed and bits not in _PACKED:
        raise NotLiftable(f"its codes have {bits} bits, not 2, 4 or 8")
    codes = _unpacked(content.numpy(), bits) if packed and bits < 8 else content.numpy()
    dtype = _PACKED[bits] if packed else content.dtype
    zeros: tuple[int, ...] = (1 << (bits - 1),) if packed else (0,)
    if node.input(3) is not None:
        points = constant_of(node.input(3))
        if points is None:
            raise NotLiftable("its zero points are not constant")
        table = _unpacked(points.numpy(), bits)[:, :blocks] if packed and bits < 8 else points.numpy()
        flat = tuple(int(point) for point in table.reshape(-1).astype(np.int64))
        zeros = flat[:1] if len(set(flat)) == 1 else flat
    width = node.output.dim(-1)
    codes = codes[:, :width] if isinstance(width, int) else codes
    quant = StaticQuant(dtype, tuple(scales.numpy().reshape(-1).tolist()), zeros, 1, block)
    numbers = dequantize(np.ascontiguousarray(codes).astype(dtype.numpy), quant).reshape(rows, -1)
    weight = source.graph.add_initializer(f"{source.name}_float", Tensor.of(numbers))
    weight.frozen = True
    lifting.replace(node, "Gather", [weight, node.input(1)], {"axis": 0}, {0: quant}, [None], kernel="weight-only")


_PACKED = {2: DType.UINT2, 4: DType.UINT4, 8: DType.UINT8}
"""The type of codes of so many bits that stand several to a byte."""


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(packed.shape[0], -1)


def _block_zeros(node: Node, n: int, blocks: int, bits: int) -> tuple[int, ...]:
    if node.input(3) is None:
        return (1 << (bits - 1),)
    content = constant_of(node.input(3))
    if content is None or content.dtype is not DType.UINT8:
        raise NotLiftable("its zero points are no constant integers")
    points = _unpacked(content.numpy().reshape(n, -1), bits)[:, :blocks]
    flat = tuple(int(point) for point in points.T.reshape(-1))
    return flat[:1] if len(set(flat)) == 1 else flat


# Small things


def _column_type(node: Node, scale: int, zero: int, data: int) -> StaticQuant:
    """Of the second operand of a product, a scale for each column where there are several."""
    value = node.input(data)
    constant = constant_of(value)
    axis = 1 if constant is None else len(constant.shape) - 1
    return _type(node, scale, zero, data, axis)


def _only_reader(value: Value) -> Node | None:
    uses = list(value.uses)
    return uses[0].node if len(uses) == 1 else None


def _trimmed(*operands: Value | None) -> list[Value | None]:
    return list(operands) if operands[-1] is not None else list(operands[:-1])


def _present(reads: Mapping[int, Any]) -> dict[int, Any]:
    return {index: quant for index, quant in reads.items() if quant is not None}


STANDARD_OPERATORS: Mapping[str, Handler] = {
    "QLinearConv": _convolution,
    "QLinearMatMul": _product,
    "MatMulInteger": _integer_product,
    "ConvInteger": _integer_product,
}

CONTRIB_OPERATORS: Mapping[str, Handler] = {
    "QLinearConv": _convolution,
    "QGemm": _gemm,
    "QLinearAdd": _binary("Add"),
    "QLinearMul": _binary("Mul"),
    "QLinearSigmoid": _unary("Sigmoid"),
    "QLinearLeakyRelu": _unary("LeakyRelu"),
    "QLinearSoftmax": _softmax,
    "QLinearAveragePool": _unary("AveragePool"),
    "QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
    "QLinearReduceMean": _reduce_mean,
    "QLinearConcat": _concat,
    "QLinearWhere": _where,
    "DynamicQuantizeMatMul": _dynamic_product,
    "MatMulIntegerToFloat": _product_to_float,
    "DynamicQuantizeLSTM": _dynamic_lstm,
    "QAttention": _attention,
    "MatMulNBits": _weight_only_product,
    "GatherBlockQuantized": _block_gather,
}
