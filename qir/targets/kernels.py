"""Annotating one node for one of the target's kernels: what weights become, and how activations are read.

``make_dynamic`` turns a linear operator from static to dynamic activations and may be called on an annotated graph at
any time; ``passes/emission/emit_dynamic.py`` spells what is written here.
"""

from __future__ import annotations

import numpy as np

from qir.errors import OptionError
from qir.ir import DType, DynamicQuant, Node, StaticQuant, Tensor, Use, UseQuantMarker
from qir.quant.pairs import PairLayout, conv_layout, pair_safe_scale
from qir.quant.schemes import weight_scale
from qir.targets.regions import reason_against_dynamic, weight_axis
from qir.targets.target import Target, WeightRange

__all__ = ["make_attention", "make_dynamic", "make_dynamic_conv", "make_lookup", "make_recurrent", "weight_type"]


def weight_type(node: Node, tensor: Tensor, target: Target) -> StaticQuant:
    """How the target wants the weight of a convolution or linear operator: symmetric, a scale an output channel or, for
    some operators of some targets, one for all."""
    if node.op in target.per_tensor_weights:
        return StaticQuant.per_tensor(target.weight, float(weight_scale(tensor.numpy(), None, target.weight)))
    axis = weight_axis(node)
    return StaticQuant.per_axis(target.weight, _scale(tensor.numpy(), axis, _pair_layout(node, tensor), target), axis)


def make_dynamic(node: Node, target: Target) -> None:
    """Let a MatMul or Gemm with a constant weight quantize its activation at run time, with no calibration.

    A weight that has its type (from static annotation, or rounded for it) keeps it; a Gemm's bias becomes float, as
    such kernels add it. Raises OptionError where no dynamic kernel fits, with the reason.
    """
    reason = reason_against_dynamic(node)
    data, weight = node.use(0), node.use(1)
    if reason is not None or data is None or weight is None or weight.value.tensor is None:
        raise OptionError(f"{node.op} {node.label!r} cannot run on dynamically quantized activations: {reason}")
    data.quant = DynamicQuant(target.activation)
    if not isinstance(weight.quant, StaticQuant):
        weight.quant = weight_type(node, weight.value.tensor, target)
    bias = node.use(2)
    if bias is not None:
        bias.quant = UseQuantMarker.INHERIT
    node.kernel = "dynamic"


def make_dynamic_conv(node: Node) -> None:
    """Let a Conv with a constant weight quantize its activation at run time.

    The weight is symmetric u8, zero point 128, with a scale an output channel: kernels for s8 are not in every
    version of the runtime, and products of u8 by u8 saturate nowhere.
    """
    data, weight = node.use(0), node.use(1)
    assert data is not None and weight is not None and weight.value.tensor is not None
    data.quant = DynamicQuant(DType.UINT8)
    scale = weight_scale(weight.value.tensor.numpy(), 0, DType.INT8)
    weight.quant = StaticQuant.per_axis(DType.UINT8, scale, 0, 128)
    bias = node.use(2)
    if bias is not None:
        bias.quant = UseQuantMarker.INHERIT
    node.kernel = "dynamic"


def make_attention(node: Node) -> None:
    """Let onnxruntime's Attention, W [I, 3H], run as QAttention on an activation that is quantized at run time."""
    data, weight = node.use(0), node.use(1)
    assert data is not None and weight is not None and weight.value.tensor is not None
    data.quant = DynamicQuant(DType.UINT8)
    # Its products are u8 by s8 like those of a MatMul; neighbours down a column must not saturate.
    scale = pair_safe_scale(weight.value.tensor.numpy(), 1, PairLayout.COLUMNS)
    weight.quant = StaticQuant.per_axis(DType.INT8, scale, 1)
    node.kernel = "QAttention"


def make_recurrent(node: Node, target: Target, *, per_channel: bool = True) -> None:
    """Weights of an LSTM for the target's recurrent kernel, W [D, 4H, I] and R [D, 4H, H]: a scale a gate unit, or one
    for all of a direction.

    As a type that is one block per direction and row, along the last axis.
    """
    for use in (node.use(1), node.use(2)):
        assert use is not None and use.value.tensor is not None
        weight = use.value.tensor.numpy()
        scales = [_scale(part, 0 if per_channel else None, PairLayout.ROWS, target) for part in weight]
        scales = [np.broadcast_to(scale, part.shape[0]) for scale, part in zip(scales, weight, strict=True)]
        flat = tuple(np.concatenate(scales).astype(np.float32).tolist())
        use.quant = StaticQuant(target.weight, flat, (0,), 2, weight.shape[2])
    node.kernel = target.recurrent_kernels[node.op]


def make_lookup(node: Node) -> None:
    """Rows of a Gather's table with a scale each; nothing multiplies them, so they use all codes."""
    use: Use | None = node.use(0)
    assert use is not None and use.value.tensor is not None
    scale = weight_scale(use.value.tensor.numpy(), 0, DType.INT8)
    use.quant = StaticQuant.per_axis(DType.INT8, scale, 0)
    node.kernel = "integer"


def _scale(weight: np.ndarray, axis: int | None, layout: PairLayout | None, target: Target) -> np.ndarray:
    if target.weight_range is WeightRange.FULL or layout is None:
        return weight_scale(weight, axis, target.weight)
    if target.weight_range is WeightRange.REDUCED:
        return weight_scale(weight, axis, target.weight, reduce_range=True)
    return pair_safe_scale(weight, axis, layout)


def _pair_layout(node: Node, weight: Tensor) -> PairLayout | None:
    """Which weights the kernel multiplies side by side; None where its products cannot saturate."""
    if node.op == "Conv":
        return conv_layout(weight.shape, node.get("group", 1))
    return PairLayout.ROWS if node.get("transB", 0) else PairLayout.COLUMNS
