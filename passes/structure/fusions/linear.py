"""Fusions into Conv, ConvTranspose and Gemm: what follows or precedes them and is affine per channel.

For y = W*x + b, an affine y*s + t per output channel becomes the weight W*s and the bias b*s + t. Everything is
computed in float64 and rounded once to the weight's type.
"""

from __future__ import annotations

import math

import numpy as np

from qir.ir import Node, Tensor, TensorType, Value
from qir.rewriting import Any, Const, Match, Maybe, Op, Rule
from qir.rewriting.edits import add_constant, constant_of, ints_of, scalar_of

__all__ = ["RULES"]

_LINEAR = ("Conv", "ConvTranspose", "Gemm")


class _Linear:
    """The weights of a Conv, ConvTranspose or Gemm, to be edited in float64; what is not edited is not even read."""

    def __init__(self, node: Node, weight: Tensor, bias: Tensor | None) -> None:
        self.node = node
        self.stored_weight = weight
        self.stored_bias = bias
        self.shape = weight.shape
        self.group = int(node.get("group", 1))
        self.transposed = bool(node.get("transB", 0))
        self._weight: np.ndarray | None = None
        self._bias: np.ndarray | None = None
        self.results: list[tuple[int, Tensor, str]] = []
        """What is to be stored: index of the operand, tensor, and what it is; once that is final."""

    @classmethod
    def of(cls, node: Node) -> _Linear | str:
        """The reason where the weights are not constants that can be edited."""
        weight = constant_of(node.input(1))
        if weight is None or not weight.dtype.is_float:
            return f"the weight of {node.op} {node.label!r} is no constant float tensor"
        for value in node.inputs:
            if value is not None and value.frozen:
                return f"the weight of {node.op} {node.label!r} is frozen on its quantization grid"
        if node.input(2) is None:
            return cls(node, weight, None)
        bias = constant_of(node.input(2))
        if bias is None:
            return f"the bias of {node.op} {node.label!r} is no constant"
        linear = cls(node, weight, bias)
        size = linear.channels
        if bias.size not in (1, size) or (bias.size == size and bias.shape[-1:] not in ((size,), ())):
            return f"the bias of {node.op} {node.label!r} is not one number an output channel"
        return linear

    @property
    def weight(self) -> np.ndarray:
        if self._weight is None:
            return self.stored_weight.numpy().astype(np.float64)
        return self._weight

    @weight.setter
    def weight(self, new: np.ndarray) -> None:
        self._weight = new

    @property
    def bias(self) -> np.ndarray:
        """A vector, one number an output channel."""
        if self._bias is None:
            return self._stored_bias()
        return self._bias

    @bias.setter
    def bias(self, new: np.ndarray) -> None:
        self._bias = new

    def _stored_bias(self) -> np.ndarray:
        size = self.channels
        if self.stored_bias is None:
            return np.zeros(size)
        numbers = self.stored_bias.numpy().astype(np.float64).reshape(-1)
        if self.node.op == "Gemm":
            numbers = numbers * self.node.get("beta", 1.0)
        return numbers if numbers.size == size else numbers.repeat(size)

    @property
    def channels(self) -> int:
        """Number of output channels."""
        match self.node.op:
            case "Conv":
                return int(self.shape[0])
            case "ConvTranspose":
                return int(self.shape[1] * self.group)
            case _:
                return int(self.shape[0 if self.transposed else 1])

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        match self.node.op:
            case "Conv":
                return int(self.shape[1] * self.group)
            case "ConvTranspose":
                return int(self.shape[0])
            case _:
                return int(self.shape[1 if self.transposed else 0])

    @property
    def rank(self) -> int:
        """Of the input and of the output."""
        return len(self.shape)

    def scale_outputs(self, factor: np.ndarray) -> None:
        """``factor``: shape (channels,)."""
        match self.node.op:
            case "Conv":
                self.weight = self.weight * _along(factor, 0, self.rank)
            case "ConvTranspose":
                # (inputs, channels / group, ...): group g of the inputs makes the g-th part of the channels.
                self.weight = self._scaled_in_groups(factor)
            case _:
                self.weight = self.weight * _along(factor, 0 if self.transposed else 1, 2)
        self.bias = self.bias * factor

    def scale_inputs(self, factor: np.ndarray) -> None:
        """``factor``: shape (inputs,)."""
        match self.node.op:
            case "Conv":
                self.weight = self._scaled_in_groups(factor)
            case "ConvTranspose":
                self.weight = self.weight * _along(factor, 0, self.rank)
            case _:
                self.weight = self.weight * _along(factor, 1 if self.transposed else 0, 2)

    def _scaled_in_groups(self, factor: np.ndarray) -> np.ndarray:
        weight, group = self.weight, self.group
        parts = weight.reshape(group, -1, *weight.shape[1:])
        scaled: np.ndarray = parts * _along(factor.reshape(group, -1), (0, 2), weight.ndim + 1)
        return scaled.reshape(weight.shape)

    def shift_inputs(self, offset: np.ndarray) -> None:
        """``offset``: shape (inputs,); only where every output sees the whole kernel, so not with padding."""
        weight, group = self.weight, self.group
        if self.node.op == "Gemm":
            matrix = weight if self.transposed else weight.T
            self.bias = self.bias + self.node.get("alpha", 1.0) * (matrix @ offset)
            return
        taps = weight.reshape(group, -1, weight.shape[1], math.prod(weight.shape[2:])).sum(-1)
        self.bias = self.bias + np.einsum("goi,gi->go", taps, offset.reshape(group, -1)).reshape(-1)

    def unwritable(self) -> str | None:
        """Why the edited weights cannot be stored."""
        dtype = self.stored_weight.dtype
        edited: list[tuple[int, np.ndarray, str]] = []
        if self._weight is not None:
            edited.append((1, self._weight, "weight"))
        if self._bias is not None and (self.node.input(2) is not None or np.count_nonzero(self._bias)):
            edited.append((2, self._bias, "bias"))
        with np.errstate(over="ignore"):
            for index, array, role in edited:
                stored = array.astype(dtype.numpy)
                if np.count_nonzero(np.isfinite(stored)) < stored.size:
                    return f"the weights of {self.node.op} {self.node.label!r} would overflow {dtype}"
                self.results.append((index, Tensor(dtype, stored.shape, stored), role))
        return None

    def write(self) -> None:
        """Store the edited weights, which ``unwritable`` has judged, in place where nothing else reads them."""
        node = self.node
        for index, tensor, role in self.results:
            _write(node, index, tensor, role)
            if index == 2 and node.op == "Gemm" and node.get("beta", 1.0) != 1.0:
                node.set("beta", 1.0)


def _along(vector: np.ndarray, axes: int | tuple[int, ...], rank: int) -> np.ndarray:
    """``vector`` (one axis for each of ``axes``) shaped to broadcast in a tensor of ``rank`` axes."""
    shape = [1] * rank
    for axis, size in zip((axes,) if isinstance(axes, int) else axes, vector.shape, strict=True):
        shape[axis] = size
    return vector.reshape(shape)


def _write(node: Node, index: int, tensor: Tensor, role: str) -> None:
    value = node.input(index)
    if value is None or not value.is_initializer or len(value.uses) > 1:
        hint = f"{node.label}.{role}" if value is None else value.name
        node.set_input(index, add_constant(node, tensor, hint))
        return
    tensor.name = value.name
    value.const, value.range = tensor, None
    if value.shape != tensor.shape or value.dtype is not tensor.dtype:
        value.type = TensorType(tensor.dtype, tensor.shape)


_linear = Op(_LINEAR, Any("x"), Any("w"), Maybe(Any("b")), name="linear")


def _per_channel(value: Value, rank: int, channels: int) -> np.ndarray | None:
    """A constant as one number a channel (axis 1) in float64; None where it does not broadcast like that."""
    tensor = constant_of(value)
    if tensor is None or not tensor.dtype.is_float or len(tensor.shape) > rank:
        return None
    shape = (1,) * (rank - len(tensor.shape)) + tensor.shape
    if len(shape) < 2 or math.prod(shape) != shape[1] or shape[1] not in (1, channels):
        return None
    array = tensor.numpy().astype(np.float64).reshape(-1)
    if np.count_nonzero(np.isfinite(array)) < array.size:
        return None
    return array if array.size == channels else array.repeat(channels)


# Conv, ConvTranspose, Gemm + BatchNormalization


def _norm_numbers(match: Match, channels: int) -> tuple[np.ndarray, np.ndarray] | str:
    """Factor and offset of the BatchNormalization ``bn``, one number a channel each, or why it has none."""
    norm, opset = match.node("bn"), match.opset
    if norm.get("training_mode", 0) or (opset < 7 and not norm.get("is_test", 0)):
        return "it is in training mode"
    if any(value.uses for value in norm.outputs[1:]):
        return "its running statistics are read"
    numbers: list[np.ndarray] = []
    for value in norm.inputs[1:5]:
        tensor = constant_of(value)
        if tensor is None or tensor.size != channels:
            return "its parameters are no constants, one a channel"
        numbers.append(tensor.numpy().astype(np.float64).reshape(-1))
    gamma, beta, mean, variance = numbers
    factor = gamma / np.sqrt(variance + norm.get("epsilon", 1e-5))
    return factor, beta - mean * factor


def _check_batch_norm(match: Match) -> str | None:
    linear = _Linear.of(match.node("linear"))
    if isinstance(linear, str):
        return linear
    numbers = _norm_numbers(match, linear.channels)
    if isinstance(numbers, str):
        return numbers
    factor, offset = numbers
    linear.scale_outputs(factor)
    linear.bias = linear.bias + offset
    match.memo["linear"] = linear
    return linear.unwritable()


def _write_back(match: Match) -> Value:
    linear: _Linear = match.memo["linear"]
    linear.write()
    return linear.node.output


_batch_norm = Rule(
    "conv-bn",
    Op("BatchNormalization", _linear, *(Any(n) for n in ("gamma", "beta", "mean", "variance")), name="bn"),
    _write_back,
    _check_batch_norm,
)


# An affine Mul, Add, Sub or Div after


def _check_affine_after(match: Match) -> str | None:
    linear = _Linear.of(match.node("linear"))
    if isinstance(linear, str):
        return linear
    operand = _per_channel(match["c"], linear.rank, linear.channels)
    if operand is None:
        return f"constant {match['c'].name!r} is not one finite number an output channel"
    match match.root.op:
        case "Mul":
            linear.scale_outputs(operand)
        case "Div":
            if not operand.all():
                return f"constant {match['c'].name!r} divides by zero"
            linear.scale_outputs(1 / operand)
        case "Add":
            linear.bias = linear.bias + operand
        case _:
            linear.bias = linear.bias - operand
    match.memo["linear"] = linear
    return linear.unwritable()


_affine_after = Rule(
    "conv-affine", Op(("Mul", "Add", "Sub", "Div"), _linear, Const("c")), _write_back, _check_affine_after
)


# An affine before: a factor always; an offset only where no padding puts zeros beside it


def _check_affine_before(match: Match) -> str | None:
    node, affine = match.node("linear"), match.node("affine")
    if node.op == "Gemm" and node.get("transA", 0):
        return "Gemm transposes its input, whose channels are then its rows"
    linear = _Linear.of(node)
    if isinstance(linear, str):
        return linear
    if match["x"].shape is None or len(match["x"].shape) != linear.rank:
        return f"the rank of {match['x'].name!r} is not known to be {linear.rank}"
    operand = _per_channel(match["c"], linear.rank, linear.inputs)
    if operand is None:
        return f"constant {match['c'].name!r} is not one finite number an input channel"
    if affine.op in ("Mul", "Div"):
        if affine.op == "Div" and not operand.all():
            return f"constant {match['c'].name!r} divides by zero"
        linear.scale_inputs(operand if affine.op == "Mul" else 1 / operand)
    elif node.op == "ConvTranspose" or (node.op == "Conv" and _is_padded(node)):
        return f"{node.op} {node.label!r} pads with zeros, to which {affine.op} {affine.label!r} adds nothing"
    else:
        linear.shift_inputs(operand if affine.op == "Add" else -operand)
    match.memo["linear"] = linear
    return linear.unwritable()


def _is_padded(node: Node) -> bool:
    return node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(node.get("pads", ()))


def _rewrite_affine_before(match: Match) -> None:
    linear: _Linear = match.memo["linear"]
    linear.write()
    linear.node.set_input(0, match["x"])


_affine_before = Rule(
    "affine-conv",
    Op(
        _LINEAR,
        Op(("Mul", "Add", "Sub", "Div"), Any("x"), Const("c"), name="affine"),
        Any("w"),
        Maybe(Any("b")),
        name="linear",
    ),
    _rewrite_affine_before,
    _check_affine_before,
)


# BatchNormalization before: exact where nothing is padded, or where it adds nothing to the zeros beside it


def _check_norm_before(match: Match) -> str | None:
    node = match.node("linear")
    if node.op == "Gemm" and node.get("transA", 0):
        return "Gemm transposes its input, whose channels are then its rows"
    linear = _Linear.of(node)
    if isinstance(linear, str):
        return linear
    numbers = _norm_numbers(match, linear.inputs)
    if isinstance(numbers, str):
        return numbers
    factor, offset = numbers
    if offset.any():
        if node.op == "ConvTranspose" or (node.op == "Conv" and _is_padded(node)):
            return f"{node.op} {node.label!r} pads with zeros, to which the norm adds nothing"
        linear.shift_inputs(offset)
    linear.scale_inputs(factor)
    match.memo["linear"] = linear
    return linear.unwritable()


_norm_before = Rule(
    "bn-conv",
    Op(
        _LINEAR,
        Op("BatchNormalization", Any("x"), *(Any(n) for n in ("gamma", "beta", "mean", "variance")), name="bn"),
        Any("w"),
        Maybe(Any("b")),
        name="linear",
    ),
    _rewrite_affine_before,
    _check_norm_before,
)


# MatMul + Add of matrices


def _is_matrix(value: Value) -> bool:
    return value.shape is not None and len(value.shape) == 2


def _check_gemm(match: Match) -> str | None:
    if match.opset < 7:
        return "Gemm does not broadcast before opset 7"
    bias, rows, columns = match["bias"], match["x"].dim(0), match["w"].dim(1)
    shape = bias.shape
    if shape is None or len(shape) > 2 or match["x"].dtype is None or not match["x"].dtype.is_float:
        return "the bias is no float vector or matrix"
    sizes = (1,) * (2 - len(shape)) + shape
    if not (sizes[0] == 1 or (rows is not None and sizes[0] == rows)):
        return "the bias may have more rows than the product"
    if not (sizes[1] == 1 or (columns is not None and sizes[1] == columns)):
        return "the bias may have more columns than the product"
    return None


_gemm = Rule(
    "matmul-add",
    Op("Add", Op("MatMul", Any("x", _is_matrix), Any("w", _is_matrix)), Const("bias")),
    lambda match: match.add("Gemm", [match["x"], match["w"], match["bias"]]).output,
    _check_gemm,
)


# Pad into Conv, and into an AveragePool that counts the padding


def _check_pad(match: Match) -> str | None:
    pad, node = match.node("pad"), match.node("window")
    what = f"{node.op} {node.label!r}"
    if pad.get("mode", "constant") != "constant":
        return f"it pads by {pad.get('mode')}, {what} by zeros"
    if match.opset >= 11:
        pads, fill = ints_of(pad.input(1)), 0.0 if pad.input(2) is None else scalar_of(pad.input(2))
    else:
        pads, fill = pad.get("pads"), pad.get("value", 0.0)
    shape = match["x"].shape
    if pads is None or fill is None or shape is None:
        return "its widths, its fill or the rank of its input are unknown"
    if fill != 0:
        return f"it pads with {fill:g}, {what} with zeros"
    axes = tuple(range(len(shape)))
    if pad.input(3) is not None:
        listed = ints_of(pad.input(3))
        if listed is None:
            return "its axes are unknown"
        axes = tuple(axis % len(shape) for axis in listed)
    before = dict(zip(axes, pads[: len(axes)], strict=True))
    after = dict(zip(axes, pads[len(axes) :], strict=True))
    if any(before.get(axis) or after.get(axis) for axis in (0, 1)):
        return "it pads the batch or the channels"
    spatial = range(2, len(shape))
    extra = [before.get(axis, 0) for axis in spatial] + [after.get(axis, 0) for axis in spatial]
    if min(extra, default=0) < 0:
        return "it cuts (a negative width)"
    if node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"{what} chooses its padding itself"
    own = node.get("pads") or (0,) * len(extra)
    total = [a + b for a, b in zip(extra, own, strict=True)]
    match.memo["pads"] = total
    return _pool_obstacle(node, own, total) if node.op == "AveragePool" else None


def _pool_obstacle(node: Node, own: tuple[int, ...], total: list[int]) -> str | None:
    what = f"AveragePool {node.label!r}"
    if any(own) and not node.get("count_include_pad", 0):
        return f"{what} leaves its own padding out of the average, but not this one"
    if node.get("ceil_mode", 0):
        return f"{what} rounds its size up, so that its last windows depend on where the padding ends"
    kernel = node.get("kernel_shape", ())
    if any(width >= size for width, size in zip(total, (*kernel, *kernel), strict=True)):
        return f"{what} would be padded by its whole window"
    return None


def _rewrite_pad(match: Match) -> None:
    node = match.node("window")
    node.set("pads", match.memo["pads"])
    node.remove("auto_pad")
    if node.op == "AveragePool":
        node.set("count_include_pad", 1)
    node.set_input(0, match["x"])


_padded = Op("Pad", Any("x"), Maybe(Any()), Maybe(Any()), Maybe(Any()), name="pad")
_pad_conv = Rule("pad-conv", Op("Conv", _padded, Any(), Maybe(Any()), name="window"), _rewrite_pad, _check_pad)
_pad_pool = Rule("pad-pool", Op("AveragePool", _padded, name="window"), _rewrite_pad, _check_pad)

RULES = (_batch_norm, _affine_after, _affine_before, _norm_before, _gemm, _pad_conv, _pad_pool)
