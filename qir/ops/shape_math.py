"""Shape rules of elementwise ops, reductions, normalizations and linear algebra, float and quantized."""

from __future__ import annotations

from collections.abc import Sequence

from qir.ir import Dim, DType, Shape, TensorType, Type
from qir.ops import dims
from qir.ops.shape_rule import NodeView, RuleError, Unknown, axis_of, rule

__all__ = ["broadcast_shapes"]

Types = Sequence[Type | None]


def broadcast_shapes(*shapes: Shape | None) -> Shape | None:
    """Numpy's multidirectional broadcasting. Raises RuleError."""
    result: Shape | None = ()
    for shape in shapes:
        if shape is None:
            return None
        if result == shape or not result:
            result = shape
            continue
        assert result is not None
        short, long = (result, shape) if len(result) < len(shape) else (shape, result)
        offset = len(long) - len(short)
        try:
            tail = tuple(map(dims.broadcast, long[offset:], short))
        except ValueError as error:
            raise RuleError(str(error)) from None
        result = long[:offset] + tail
    return result


@rule(
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Clip", "Cos", "Cosh"),
    *("Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Hardmax", "Identity", "LRN", "LeakyRelu"),
    *("Log", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization", "Mish", "Neg", "Not", "PRelu", "Reciprocal"),
    *("Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax", "Softplus", "Softsign", "Sqrt"),
    *("Swish", "Tan", "Tanh", "ThresholdedRelu", "Trilu", "InstanceNormalization", "GroupNormalization", "CumSum"),
    *("RMSNormalization", "ScatterElements", "ScatterND", "Scatter", "ReverseSequence", "TensorScatter", "SwiGLU"),
)
def _like_first(view: NodeView) -> Types:
    first = view.types[0] if view.types else None
    if isinstance(first, TensorType) and (first.denotation or first.dim_denotations):
        return [TensorType(first.dtype, first.shape)]
    return [first]


@rule("Gelu", "FastGelu", "QuickGelu", "BiasGelu", domain="com.microsoft")
def _contrib_like_first(view: NodeView) -> Types:
    return _like_first(view)


@rule(
    *("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax"),
    domain="com.microsoft",
)
def _contrib_quantized_like_first(view: NodeView) -> Types:
    return _like_first(view)


@rule("IsNaN", "IsInf")
def _predicate(view: NodeView) -> Types:
    return [TensorType(DType.BOOL, view.shape(0))]


def _broadcast_operands(view: NodeView) -> Shape | None:
    if view.version < 7 and len(view.types) == 2:
        return view.shape(0)  # until opset 6, B was broadcast to A
    return broadcast_shapes(*(view.shape(i) for i in range(len(view.types))))


@rule(
    *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Sum", "Mean", "And", "Or", "Xor"),
    *("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift"),
)
def _elementwise(view: NodeView) -> Types:
    first = view.tensor(0)
    shape = _broadcast_operands(view)
    if shape is first.shape and not first.denotation and not first.dim_denotations:
        return [first]
    return [TensorType(first.dtype, shape)]


@rule("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")
def _compare(view: NodeView) -> Types:
    return [TensorType(DType.BOOL, _broadcast_operands(view))]


@rule("Where")
def _where(view: NodeView) -> Types:
    other = view.types[1] or view.types[2]
    if not isinstance(other, TensorType):
        raise Unknown
    return [TensorType(other.dtype, broadcast_shapes(view.shape(0), view.shape(1), view.shape(2)))]


@rule("Cast")
def _cast(view: NodeView) -> Types:
    to = view.attr("to")
    if isinstance(to, str):  # opset 1 to 5
        to = {"FLOAT": 1, "INT64": 7, "INT32": 6, "BOOL": 9, "DOUBLE": 11, "FLOAT16": 10}.get(to.upper(), 0)
    if to is None:
        raise RuleError("attribute 'to' is missing")
    try:
        return [TensorType(DType.from_code(to), view.shape(0))]
    except KeyError:
        raise RuleError(f"attribute 'to' is {to}, which is no element type") from None


@rule("CastLike")
def _cast_like(view: NodeView) -> Types:
    return [TensorType(view.dtype(1), view.shape(0))]


@rule("Dropout")
def _dropout(view: NodeView) -> Types:
    data = view.tensor(0)
    mask = DType.BOOL if view.version >= 10 else data.dtype
    return [TensorType(data.dtype, data.shape), TensorType(mask, data.shape)]


@rule("BatchNormalization")
def _batch_norm(view: NodeView) -> Types:
    data = view.tensor(0)
    first = TensorType(data.dtype, data.shape)
    rest = [view.types[i] if i < len(view.types) else None for i in (3, 4)]
    return [first, *rest, *rest]


@rule("LayerNormalization")
def _layer_norm(view: NodeView) -> Types:
    data = view.tensor(0)
    first = TensorType(data.dtype, data.shape)
    if len(view.node.outputs) == 1:
        return [first]
    statistics = DType.from_code(view.attr("stash_type", 1))
    reduced: Shape | None = None
    if data.shape is not None:
        axis = axis_of(view.attr("axis", -1), len(data.shape))
        reduced = data.shape[:axis] + (1,) * (len(data.shape) - axis)
    return [first, TensorType(statistics, reduced), TensorType(statistics, reduced)]


@rule("SkipLayerNormalization", domain="com.microsoft")
def _skip_layer_norm(view: NodeView) -> Types:
    data = view.tensor(0)
    same = TensorType(data.dtype, data.shape)
    return [same, None, None, same]


# Reductions


@rule(
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
def _reduce(view: NodeView) -> Types:
    data = view.tensor(0)
    by_input = view.version >= (13 if view.node.op == "ReduceSum" else 18)
    axes = view.axes(1 if by_input else None)
    keep = view.attr("keepdims", 1)
    if data.shape is None or (axes is None and not keep):
        return [TensorType(data.dtype)]
    if axes is None:
        return [TensorType(data.dtype, (None,) * len(data.shape))]
    if not axes and by_input and view.attr("noop_with_empty_axes", 0):
        return [TensorType(data.dtype, data.shape)]
    gone = {axis_of(a, len(data.shape)) for a in axes} or set(range(len(data.shape)))
    if keep:
        return [TensorType(data.dtype, tuple(1 if i in gone else d for i, d in enumerate(data.shape)))]
    return [TensorType(data.dtype, tuple(d for i, d in enumerate(data.shape) if i not in gone))]


@rule("ArgMax", "ArgMin")
def _arg(view: NodeView) -> Types:
    shape = view.shape(0)
    if shape is None:
        return [TensorType(DType.INT64)]
    axis = axis_of(view.attr("axis", 0), len(shape))
    middle: Shape = (1,) if view.attr("keepdims", 1) else ()
    return [TensorType(DType.INT64, shape[:axis] + middle + shape[axis + 1 :])]


@rule("TopK")
def _top_k(view: NodeView) -> Types:
    data = view.tensor(0)
    if data.shape is None:
        return [TensorType(data.dtype), TensorType(DType.INT64)]
    size: Dim
    if view.version >= 10:
        content = view.content(1)
        size = content[0] if content and isinstance(content[0], int | str) else None
    else:
        size = view.attr("k")
    axis = axis_of(view.attr("axis", -1), len(data.shape))
    shape = (*data.shape[:axis], size, *data.shape[axis + 1 :])
    return [TensorType(data.dtype, shape), TensorType(DType.INT64, shape)]


# Products


def _matmul_shape(a: Shape | None, b: Shape | None) -> Shape | None:
    if a is None or b is None:
        return None
    if not a or not b:
        raise RuleError("an operand is a scalar")
    left = a if len(a) > 1 else (1, *a)
    right = b if len(b) > 1 else (*b, 1)
    x, y = left[-1], right[-2]
    if isinstance(x, int) and isinstance(y, int) and x != y:
        raise RuleError(f"inner sizes {x} and {y} differ")
    batch = broadcast_shapes(left[:-2], right[:-2]) or ()
    rows: Shape = (left[-2],) if len(a) > 1 else ()
    columns: Shape = (right[-1],) if len(b) > 1 else ()
    return batch + rows + columns


@rule("MatMul")
def _matmul(view: NodeView) -> Types:
    return [TensorType(view.dtype(0), _matmul_shape(view.shape(0), view.shape(1)))]


@rule("MatMulInteger")
def _matmul_integer(view: NodeView) -> Types:
    return [TensorType(DType.INT32, _matmul_shape(view.shape(0), view.shape(1)))]


@rule("QLinearMatMul")
def _qlinear_matmul(view: NodeView) -> Types:
    return [TensorType(view.dtype(7), _matmul_shape(view.shape(0), view.shape(3)))]


@rule("DynamicQuantizeMatMul", "MatMulIntegerToFloat", domain="com.microsoft")
def _matmul_to_float(view: NodeView) -> Types:
    return [TensorType(view.dtype(2), _matmul_shape(view.shape(0), view.shape(1)))]


@rule("MatMulNBits", domain="com.microsoft")
def _matmul_nbits(view: NodeView) -> Types:
    data = view.tensor(0)
    if data.shape is None:
        return [TensorType(data.dtype)]
    return [TensorType(data.dtype, (*data.shape[:-1], view.attr("N")))]


def _gemm_shape(view: NodeView, a: Shape | None, b: Shape | None) -> Shape | None:
    rows: Dim = None
    columns: Dim = None
    if a is not None:
        if len(a) != 2:
            raise RuleError(f"A has rank {len(a)}, not 2")
        rows = a[1] if view.attr("transA", 0) else a[0]
    if b is not None:
        if len(b) != 2:
            raise RuleError(f"B has rank {len(b)}, not 2")
        columns = b[0] if view.attr("transB", 0) else b[1]
    return rows, columns


@rule("Gemm")
def _gemm(view: NodeView) -> Types:
    return [TensorType(view.dtype(0), _gemm_shape(view, view.shape(0), view.shape(1)))]


@rule("FusedGemm", domain="com.microsoft")
def _fused_gemm(view: NodeView) -> Types:
    return _gemm(view)


@rule("QGemm", domain="com.microsoft")
def _qgemm(view: NodeView) -> Types:
    dtype = view.dtype(8) if view.has(8) else DType.FLOAT
    return [TensorType(dtype, _gemm_shape(view, view.shape(0), view.shape(3)))]


# Quantization


@rule("QuantizeLinear")
def _quantize(view: NodeView) -> Types:
    if view.has(2):
        return [TensorType(view.dtype(2), view.shape(0))]
    return [TensorType(DType.from_code(view.attr("output_dtype", 0) or DType.UINT8.code), view.shape(0))]


@rule("DequantizeLinear")
def _dequantize(view: NodeView) -> Types:
    code = view.attr("output_dtype", 0)
    return [TensorType(DType.from_code(code) if code else view.dtype(1), view.shape(0))]


@rule("QuantizeLinear", domain="com.microsoft")
def _contrib_quantize(view: NodeView) -> Types:
    return _quantize(view)


@rule("DequantizeLinear", domain="com.microsoft")
def _contrib_dequantize(view: NodeView) -> Types:
    return [TensorType(view.dtype(1), view.shape(0))]


@rule("DynamicQuantizeLinear")
def _dynamic_quantize(view: NodeView) -> Types:
    return [TensorType(DType.UINT8, view.shape(0)), TensorType(DType.FLOAT, ()), TensorType(DType.UINT8, ())]


@rule("QLinearAdd", "QLinearMul", domain="com.microsoft")
def _qlinear_binary(view: NodeView) -> Types:
    return [TensorType(view.dtype(0), broadcast_shapes(view.shape(0), view.shape(3)))]
