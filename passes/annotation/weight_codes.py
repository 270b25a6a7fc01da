"""Choosing weight codes that are only stored, never computed with: what ``cluster-weights`` and ``quantize-log`` share.

Layers are visited in order with the inputs that the coded layers before them make; each weight's importance is how
strongly its input varies, and rounding, where it goes to few levels, makes later columns pay for the errors of earlier
ones (``quant.gptq``). Constants that no such layer reads get their nearest levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qir.calibration.data import open_data
from qir.calibration.sequential import Layer, Step, float_means, linear_layers, visit_layers
from qir.calibration.specs import input_specs
from qir.ir import CodebookQuant, DType, Model, Node, Tensor, Value
from qir.passes.accuracy.correct_bias import correct_bias, spread
from qir.pipeline.contract import Pass, PassContext, PassResult
from qir.quant.codebook import decode, encode, level_count, row_levels
from qir.quant.gptq import Moments, output_error, round_levels
from qir.quant.layer_rows import layer_rows
from qir.quant.recipe import Recipe

__all__ = ["Coder", "Weight", "WeightCodes", "store_weights"]

_LARGEST_MOMENT = 2047.0
"""Inputs are scaled to whole numbers of this magnitude, whose products add up exactly: the same on any thread count."""
_MEAN_WEIGHT = 0.5
"""See ``round-weights``."""
_SMALL = 2.0**-10
_MOST_LEVELS = 64
"""With more levels the nearest one is near enough."""
_MOST_COLUMNS = 4096

_OPERANDS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (1,),
    "MatMul": (1, 0),
    "Gather": (0,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}
"""Which operands of which operators are weights."""


class Coder(Protocol):
    """Chooses levels: ``importance`` (of the weight's shape) weighs squared errors."""

    def __call__(self, weight: np.ndarray, axis: int | None, importance: np.ndarray) -> CodebookQuant: ...


@dataclass(frozen=True, slots=True)
class WeightCodes:
    """Options that passes of stored codes have in common; see their fields of the same names."""

    min_size: int
    min_channel: int
    samples: int
    rows: int
    keep_float: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant, the first node that reads it as a weight, and the axis of its output channels."""

    value: Value
    node: Node
    axis: int | None


def store_weights(owner: Pass, options: WeightCodes, coder: Coder, model: Model, ctx: PassContext) -> PassResult:
    """Annotate the model's weights with what ``coder`` chooses, and bring them onto those levels."""
    result = PassResult()
    weights = {weight.value: weight for weight in _weights(owner, options, model, result)}
    if ctx.calibration is not None and weights:
        feeds = spread(open_data(ctx.calibration, input_specs(model)), options.samples)
        layers = [layer for layer in linear_layers(model) if _reads_matrix(layer, weights)]
        biased = [layer for layer in layers if layer.bias_owner is not None]
        expected = float_means(model, biased, feeds) if biased else {}
        ctx.progress.start("choosing weight codes", len(layers))
        for step in visit_layers(model, layers, feeds, lambda copy: None, inputs=True):
            weight = weights.pop(step.layer.weight_use.value, None)
            if weight is not None:
                quant, numbers = _fit(step, weight, coder, options.rows)
                step.set_weight(numbers)
                _store(owner, weight, quant, numbers, result)
            if step.layer.result in expected:
                correct_bias(step, expected[step.layer.result])
                result.count("biases")
            ctx.progress.advance()
        ctx.progress.finish()
    for weight in weights.values():
        assert weight.value.tensor is not None
        array = weight.value.tensor.numpy()
        quant = coder(array, weight.axis, np.ones_like(array))
        _store(owner, weight, quant, decode(encode(array, quant), quant, array.shape), result)
    result.changed = bool(result.statistics)
    return result


def _weights(owner: Pass, options: WeightCodes, model: Model, result: PassResult) -> Iterator[Weight]:
    """The constants worth storing as codes; remarks say why the others are not."""
    kept = Recipe().with_float(options.keep_float).resolve(model)
    small: list[Value] = []
    for graph in model.graph.graphs():
        for value in graph.initializers:
            tensor = value.tensor
            if tensor is None or tensor.dtype is not DType.FLOAT or value.quant is not None or value.is_output:
                continue
            if tensor.size < options.min_size or len(tensor.shape) < 2:
                small.append(value)
                continue
            readers = [use for use in value.uses if use.node is not None]
            reader = next((use for use in readers if use.index in _OPERANDS.get(_standard_op(use.node), ())), None)
            if reader is None or reader.node is None:
                op = readers[0].node.op if readers and readers[0].node is not None else "nothing"
                result.remarks.append(owner.missed(value, f"stays float: {op} does not read it as a weight"))
                continue
            reason = next((why for use in readers if use.node is not None and (why := kept(use.node))), None)
            if reason is None and not np.isfinite(tensor.numpy()).all():
                reason = "it holds an infinity or NaN"
            axis = _channel_axis(reader.node, reader.index, tensor)
            numbers = tensor.size if axis is None else tensor.size // max(tensor.shape[axis], 1)
            if reason is None and numbers < options.min_channel:
                reason = f"{numbers} numbers a channel need too much of a scale, and few bits harm them most"
            if reason is not None:
                result.remarks.append(owner.missed(value, f"stays float: {reason}"))
                continue
            yield Weight(value, reader.node, axis)
    if small:
        bytes_ = sum(value.tensor.nbytes for value in small if value.tensor is not None)
        message = (
            f"{len(small)} small tensors ({bytes_} bytes: biases, norms, under {options.min_size} numbers) stay float"
        )
        result.remarks.append(owner.missed(None, message))


def _standard_op(node: Node | None) -> str:
    return node.op if node is not None and node.domain in ("", "ai.onnx") else ""


def _channel_axis(node: Node, operand: int, tensor: Tensor) -> int | None:
    rank = len(tensor.shape)
    match node.op:
        case "Conv" | "Gather":
            return 0
        case "ConvTranspose":
            return 1
        case "Gemm":
            return 0 if node.get("transB", 0) else 1
        case "MatMul":
            return rank - 1 if operand == 1 else rank - 2
        case _:
            return 1 if rank == 3 else None


def _reads_matrix(layer: Layer, weights: dict[Value, Weight]) -> bool:
    """Whether the layer is a product of its input with a constant matrix, as ``layer_rows`` understands it."""
    node, weight, data = layer.node, layer.node.input(1), layer.node.input(0)
    if weight not in weights or weight is None or weight.tensor is None or data is None or data.is_constant:
        return False
    if node.op == "MatMul":
        return len(weight.tensor.shape) == 2
    return node.op == "Conv" or (not node.get("transA", 0) and node.get("alpha", 1.0) == 1.0)


def _fit(step: Step, weight: Weight, coder: Coder, rows: int) -> tuple[CodebookQuant, np.ndarray]:
    """The levels of a layer's weight, and the weight on them."""
    assert weight.value.tensor is not None
    array = weight.value.tensor.numpy()
    geometry = layer_rows(step.layer.node, array.shape)
    wanted = -(-rows // max(len(step.inputs), 1))
    inputs = np.concatenate([geometry.rows(one.astype(np.float32), wanted) for one in step.inputs], axis=1)
    largest = float(np.abs(inputs).max(initial=0.0)) or 1.0
    whole = np.rint(inputs * np.float32(_LARGEST_MOMENT / largest))
    targets = geometry.matrix(array.astype(np.float64))
    mean_weight = _MEAN_WEIGHT if step.layer.bias_owner is not None else 1.0
    slices = [slice(at, min(at + _MOST_COLUMNS, whole.shape[2])) for at in range(0, whole.shape[2], _MOST_COLUMNS)]
    hessians = []
    for columns in slices:
        moments = Moments(whole.shape[0], columns.stop - columns.start)
        moments.add(whole[..., columns].astype(np.float64))
        hessians.append(moments.hessian(mean_weight))
    strength = np.concatenate([np.diagonal(hessian, axis1=1, axis2=2) for hessian in hessians], axis=1)
    # A dead input still has a weight, which some other input may wake.
    strength = strength + 1e-3 * strength.mean(axis=1, keepdims=True)
    importance = geometry.weight(np.broadcast_to(strength[:, None, :], targets.shape))
    quant = coder(array, weight.axis, importance)
    nearest = decode(encode(array, quant), quant, array.shape)
    levels = _useful_levels(quant, 1 if weight.axis is None else array.shape[weight.axis])
    if levels is None:
        return quant, nearest
    levels = np.broadcast_to(levels, (targets.shape[0] * targets.shape[1], levels.shape[1]))
    levels = levels.reshape(*targets.shape[:2], -1)
    plain = geometry.matrix(nearest)
    found = np.empty(targets.shape)
    before = after = 0.0
    for columns, hessian in zip(slices, hessians, strict=True):
        cut = (..., columns)
        found[cut] = round_levels(targets[cut], hessian, levels)
        before += float(output_error(targets[cut] - plain[cut], hessian).sum())
        after += float(output_error(targets[cut] - found[cut], hessian).sum())
    return quant, geometry.weight(found).astype(np.float32) if after < before else nearest


def _useful_levels(quant: CodebookQuant, channels: int) -> np.ndarray | None:
    """Ascending levels of each channel, or of all, (channels or 1, levels), among which rounding chooses.

    Of one table those next to zero are left out (a logarithmic one has hundreds); None where too many remain.
    """
    if quant.dim > 1:
        return None
    levels = row_levels(quant, channels)
    if len(quant.table) == 1:
        size = np.abs(np.array(quant.table[0]))
        levels = levels[:, (size == 0) | (size > _SMALL * size.max())]
    return np.sort(levels, axis=1) if levels.shape[1] <= _MOST_LEVELS else None


def _store(owner: Pass, weight: Weight, quant: CodebookQuant, numbers: np.ndarray, result: PassResult) -> None:
    value = weight.value
    assert value.tensor is not None
    value.const = Tensor.of(np.ascontiguousarray(numbers, np.float32), name=value.tensor.name)
    value.frozen = True
    value.quant = quant
    result.count("weights")
    result.count("numbers", numbers.size)
    cut = f"{len(quant.table)} tables of {level_count(quant)} levels" if len(quant.table) > 1 else "one table"
    result.remarks.append(owner.applied(weight.node, f"weight stored as {quant.bits}-bit codes, {cut}"))
