"""Shape rules of convolutions, pooling and recurrent layers, float and quantized."""

from __future__ import annotations

from collections.abc import Sequence

from qir.ir import Dim, DType, Shape, TensorType, Type
from qir.ops import dims
from qir.ops.shape_rule import NodeView, RuleError, Unknown, rule

__all__: list[str] = []

Types = Sequence[Type | None]


def _window(view: NodeView, spatial: Shape, kernel: Sequence[Dim], ceil: bool = False) -> Shape:
    """Sizes of the spatial axes after a sliding window (onnx Conv-11, MaxPool-12).

    out = floor((size + pads - ((kernel - 1) * dilation + 1)) / stride) + 1, ceil instead of floor with ceil_mode,
    where a last window that would start in the end padding is dropped.
    """
    count = len(spatial)
    if len(kernel) != count:
        raise RuleError(f"kernel of rank {len(kernel)} for {count} spatial axes")
    strides = view.attr("strides") or (1,) * count
    dilations = view.attr("dilations") or (1,) * count
    pads = view.attr("pads") or (0,) * 2 * count
    if len(strides) != count or len(dilations) != count or len(pads) != 2 * count:
        raise RuleError(f"strides, dilations or pads do not fit {count} spatial axes")
    if min(*strides, *dilations, 1) < 1:
        raise RuleError("strides and dilations are at least 1")
    auto_pad = view.attr("auto_pad", "NOTSET") or "NOTSET"
    sizes: list[Dim] = []
    for i, size in enumerate(spatial):
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            sizes.append(dims.ceil_divide(size, strides[i]))
            continue
        padding = 0 if auto_pad == "VALID" else pads[i] + pads[i + count]
        extent = dims.add(dims.multiply(dims.add(kernel[i], -1), dilations[i]), 1)
        room = dims.add(dims.add(size, padding), extent, -1)
        if isinstance(room, int) and room < 0:
            raise RuleError(f"window of {extent} does not fit into {size} with padding {padding}")
        if not ceil:
            sizes.append(dims.add(dims.floor_divide(room, strides[i]), 1))
            continue
        steps = dims.ceil_divide(room, strides[i])
        if isinstance(steps, int) and isinstance(size, int):
            begin = 0 if auto_pad == "VALID" else pads[i]
            # Runtimes differ on whether such a window counts: it has been dropped since onnx 1.16.
            sizes.append(None if steps * strides[i] >= size + begin else steps + 1)
        else:
            sizes.append(None)
    return tuple(sizes)


def _conv_shape(view: NodeView, x: Shape | None, w: Shape | None) -> Shape | None:
    if w is not None and len(w) < 3:
        raise RuleError(f"weight of rank {len(w)}")
    if x is None:
        return None if w is None else (None, w[0], *[None] * (len(w) - 2))
    if len(x) < 3:
        raise RuleError(f"input of rank {len(x)}")
    if w is not None and len(w) != len(x):
        raise RuleError(f"input of rank {len(x)}, weight of rank {len(w)}")
    kernel = view.attr("kernel_shape") or (None if w is None else w[2:])
    if w is not None:
        channels, group = dims.multiply(w[1], view.attr("group", 1)), x[1]
        if isinstance(channels, int) and isinstance(group, int) and channels != group:
            raise RuleError(f"input has {group} channels, weight wants {channels}")
    if kernel is None:
        return (x[0], None, *[None] * (len(x) - 2))
    return (x[0], None if w is None else w[0], *_window(view, x[2:], kernel))


@rule("Conv")
def _conv(view: NodeView) -> Types:
    return [TensorType(view.dtype(0), _conv_shape(view, view.shape(0), view.shape(1)))]


@rule("FusedConv", domain="com.microsoft")
def _fused_conv(view: NodeView) -> Types:
    return _conv(view)


@rule("ConvInteger")
def _conv_integer(view: NodeView) -> Types:
    return [TensorType(DType.INT32, _conv_shape(view, view.shape(0), view.shape(1)))]


@rule("QLinearConv")
def _qlinear_conv(view: NodeView) -> Types:
    return [TensorType(view.dtype(7), _conv_shape(view, view.shape(0), view.shape(3)))]


@rule("QLinearConv", domain="com.microsoft")
def _contrib_qlinear_conv(view: NodeView) -> Types:
    x = view.shape(0)
    if not view.attr("channels_last", 0):
        return _qlinear_conv(view)
    if x is None:
        return [TensorType(view.dtype(7))]
    found = _conv_shape(view, (x[0], x[-1], *x[1:-1]), view.shape(3))
    return [TensorType(view.dtype(7), None if found is None else (found[0], *found[2:], found[1]))]


@rule("ConvTranspose")
def _conv_transpose(view: NodeView) -> Types:
    data, w = view.tensor(0), view.shape(1)
    x = data.shape
    if x is None or w is None:
        return [TensorType(data.dtype)]
    count = len(x) - 2
    if count < 1 or len(w) != len(x):
        raise RuleError(f"a transposed convolution of rank {len(x)} with a kernel of rank {len(w)}")
    channels = dims.multiply(w[1], view.attr("group", 1))
    given = view.attr("output_shape")
    if given:
        return [TensorType(data.dtype, (x[0], channels, *given[-count:]))]
    strides = view.attr("strides") or (1,) * count
    dilations = view.attr("dilations") or (1,) * count
    pads = view.attr("pads") or (0,) * 2 * count
    extra = view.attr("output_padding") or (0,) * count
    kernel = view.attr("kernel_shape") or w[2:]
    if any(len(given) != count for given in (strides, dilations, extra, kernel)) or len(pads) != 2 * count:
        raise RuleError(f"strides, dilations, pads, output_padding or kernel_shape do not fit {count} spatial axes")
    auto_pad = view.attr("auto_pad", "NOTSET") or "NOTSET"
    sizes: list[Dim] = []
    for i, size in enumerate(x[2:]):
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            sizes.append(dims.multiply(size, strides[i]))
            continue
        padding = 0 if auto_pad == "VALID" else pads[i] + pads[i + count]
        reach = dims.add(dims.multiply(dims.add(kernel[i], -1), dilations[i]), 1 + extra[i] - padding)
        sizes.append(dims.add(dims.multiply(dims.add(size, -1), strides[i]), reach))
    return [TensorType(data.dtype, (x[0], channels, *sizes))]


def _pool_shape(view: NodeView, x: Shape | None) -> Shape | None:
    if x is None:
        return None
    kernel = view.attr("kernel_shape")
    if kernel is None:
        raise RuleError("attribute 'kernel_shape' is missing")
    return (*x[:2], *_window(view, x[2:], kernel, bool(view.attr("ceil_mode", 0))))


@rule("MaxPool", "AveragePool", "LpPool")
def _pool(view: NodeView) -> Types:
    shape = _pool_shape(view, view.shape(0))
    return [TensorType(view.dtype(0), shape), TensorType(DType.INT64, shape)]


@rule("QLinearAveragePool", domain="com.microsoft")
def _qlinear_pool(view: NodeView) -> Types:
    x = view.shape(0)
    if not view.attr("channels_last", 0) or x is None:
        return [TensorType(view.dtype(0), _pool_shape(view, x))]
    found = _pool_shape(view, (x[0], x[-1], *x[1:-1]))
    return [TensorType(view.dtype(0), None if found is None else (found[0], *found[2:], found[1]))]


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(view: NodeView) -> Types:
    data = view.tensor(0)
    x = data.shape
    return [TensorType(data.dtype, None if x is None else (*x[:2], *[1] * (len(x) - 2)))]


@rule("QLinearGlobalAveragePool", domain="com.microsoft")
def _qlinear_global_pool(view: NodeView) -> Types:
    data = view.tensor(0)
    x = data.shape
    if x is None or not view.attr("channels_last", 0):
        return _global_pool(view)
    return [TensorType(data.dtype, (x[0], *[1] * (len(x) - 2), x[-1]))]


@rule("LSTM", "GRU", "RNN")
def _recurrent(view: NodeView) -> Types:
    return _recurrent_types(view, hidden_from=view.shape(2))


@rule("DynamicQuantizeLSTM", domain="com.microsoft")
def _quantized_lstm(view: NodeView) -> Types:
    recurrence = view.shape(2)  # transposed: [directions, hidden, 4 * hidden]
    return _recurrent_types(view, None if recurrence is None else (recurrence[0], None, recurrence[1]))


def _recurrent_types(view: NodeView, hidden_from: Shape | None) -> Types:
    """Y [seq, directions, batch, hidden], Y_h and Y_c [directions, batch, hidden]; layout 1 puts batch first."""
    data = view.tensor(0)
    directions = 2 if view.attr("direction", "forward") == "bidirectional" else 1
    hidden: Dim = view.attr("hidden_size")
    if not isinstance(hidden, int | None):
        raise RuleError(f"hidden_size={hidden} is no number")
    if hidden is None and hidden_from is not None and len(hidden_from) == 3:
        hidden = hidden_from[2]
    if data.shape is not None and len(data.shape) != 3:
        raise RuleError(f"input of rank {len(data.shape)}, not 3")
    x: Shape = data.shape or (None, None, None)
    if view.version >= 14 and view.attr("layout", 0):
        every: Shape = (x[0], x[1], directions, hidden)
        last: Shape = (x[0], directions, hidden)
    else:
        every, last = (x[0], directions, x[1], hidden), (directions, x[1], hidden)
    return [TensorType(data.dtype, every), TensorType(data.dtype, last), TensorType(data.dtype, last)]


@rule("Einsum")
def _einsum(view: NodeView) -> Types:
    equation = view.attr("equation", "")
    if not isinstance(equation, str):
        raise RuleError("the equation is no text")
    equation = equation.replace(" ", "")
    if "." in equation:
        raise Unknown
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    sizes: dict[str, Dim] = {}
    for index, term in enumerate(terms):
        shape = view.shape(index)
        if shape is not None and len(shape) != len(term):
            raise RuleError(f"term {term!r} for a tensor of rank {len(shape)}")
        for letter, size in zip(term, shape or (None,) * len(term), strict=True):
            old = sizes.get(letter)
            sizes[letter] = size if old is None or old == 1 else old
    if not arrow:
        right = "".join(sorted(letter for letter in sizes if left.count(letter) == 1))
    if not set(right) <= set(sizes):
        raise RuleError(f"the equation's result {right!r} names an axis that no operand has")
    return [TensorType(view.dtype(0), tuple([sizes[letter] for letter in right]))]
