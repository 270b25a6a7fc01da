"""Does a quantized model keep to a target's constraints? Looks at the nodes alone: the runtime need not be here.

It reads QuantizeLinear and DequantizeLinear as anyone writes them. Each finding names its node and a rule, so that one
can look it up in the target's documentation (``Constraints.sources``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from qir.ir import DType, Model, Node, Tensor, Value
from qir.rewriting.edits import constant_of
from qir.targets.regions import clip_bounds, weight_axis
from qir.targets.target import Constraints, Target

__all__ = ["Finding", "lint"]

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
_STANDARD_INTEGER = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
_MOVEMENT = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Tile", "MaxPool", "Split"}
)


@dataclass(frozen=True, slots=True)
class Finding:
    """A node that breaks a rule. ``sources``: the user's nodes that it stands for, at most 16."""

    node: str
    op: str
    rule: str
    message: str
    sources: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.op} {self.node!r}: {self.message} [{self.rule}]"


@dataclass(frozen=True, slots=True)
class _Params:
    """What a quantizer's constant operands say; ``zeros`` and ``scales`` are None where they are not constant."""

    dtype: DType | None
    scales: np.ndarray | None
    zeros: np.ndarray | None
    axis: int
    block: int

    @property
    def per_tensor(self) -> bool:
        return self.scales is not None and self.scales.size == 1

    def same(self, other: _Params) -> bool:
        if self.scales is None or other.scales is None:
            return False
        mine, theirs = (np.zeros(1) if one.zeros is None else one.zeros.reshape(-1) for one in (self, other))
        scales_agree = np.array_equal(self.scales.reshape(-1), other.scales.reshape(-1))
        return self.dtype is other.dtype and scales_agree and bool(np.array_equal(mine, theirs))


def lint(model: Model, target: Target) -> list[Finding]:
    """All findings, in graph order. A float model has none but those about shapes."""
    return list(_findings(model, target.constraints))


def _findings(model: Model, rules: Constraints) -> Iterator[Finding]:
    if rules.fixed_shapes:
        yield from _symbolic_shapes(model)
    for node in model.walk():
        yield from _format(node, rules)
        if node.op == "QuantizeLinear":
            yield from _activation(node, rules)
        if node.op.startswith("QLinear") or node.op == "QGemm":
            yield from _codes(node, rules)
        if node.op in _WEIGHTED:
            yield from _weight(node, rules)
            yield from _bias(node, rules)
        for name in sorted(rules.traps):
            yield from _TRAPS[name](node)


def _symbolic_shapes(model: Model) -> Iterator[Finding]:
    for value in model.graph.inputs:
        shape = value.shape
        if not value.is_initializer and (shape is None or not all(isinstance(size, int) for size in shape)):
            shown = "of unknown rank" if shape is None else f"{list(shape)}"
            yield Finding(
                value.name, "input", "fixed-shapes", f"its shape {shown} is not fixed: set each axis to a number"
            )


def _format(node: Node, rules: Constraints) -> Iterator[Finding]:
    if node.domain in ("", "ai.onnx"):
        if node.op in _STANDARD_INTEGER and "qoperator" not in rules.formats:
            yield _found(node, "format", "the target reads QuantizeLinear and DequantizeLinear only")
    elif node.domain == "com.microsoft" and "contrib" not in rules.formats:
        if node.op not in ("QuantizeLinear", "DequantizeLinear"):
            yield _found(node, "format", "it is onnxruntime's own operator, which the target does not have")


def _activation(node: Node, rules: Constraints) -> Iterator[Finding]:
    if constant_of(node.input(0)) is not None:
        return
    params = _params(node)
    if params.dtype is not None and params.dtype not in rules.activations:
        allowed = " or ".join(sorted(map(str, rules.activations)))
        yield _found(node, "activation-type", f"an activation is {params.dtype}, the target runs {allowed}")
    if params.scales is None or params.zeros is None:
        if params.scales is None or node.input(2) is not None:
            yield _found(node, "constant-parameters", "its scale or zero point is not constant")
    if params.scales is not None and not params.per_tensor:
        yield _found(node, "per-tensor-activation", "an activation has more than one scale")
    if rules.symmetric_activations and not _symmetric(params):
        yield _found(
            node, "symmetric-activation", f"its zero point is {_first(params.zeros)}, the target has none but 0"
        )


def _codes(node: Node, rules: Constraints) -> Iterator[Finding]:
    """Of an operator that takes codes: its second and third operands are the first one's scale and zero point."""
    zero = constant_of(node.input(2))
    if zero is not None and zero.dtype.is_integer and zero.dtype not in rules.activations:
        allowed = " or ".join(sorted(map(str, rules.activations)))
        yield _found(node, "activation-type", f"it takes {zero.dtype}, the target runs {allowed}")
    if zero is not None and rules.symmetric_activations and np.any(zero.numpy()):
        yield _found(node, "symmetric-activation", f"its zero point is {_first(zero.numpy())}, not 0")


def _output_axis(node: Node, rank: int) -> int:
    """Of a weight; one of a MatMul may be a stack of matrices."""
    return rank - 1 if node.op == "MatMul" else weight_axis(node) % rank


def _weight(node: Node, rules: Constraints) -> Iterator[Finding]:
    maker = _dequantizer(node.input(1))
    shape = _weight_shape(maker)
    if maker is None or shape is None:
        return
    params = _params(maker)
    if params.block:
        if params.dtype not in rules.blocked:
            yield _found(
                node, "blocked-weight", f"its weight is {params.dtype} in blocks, which the target does not run"
            )
        return
    if params.dtype is not None and params.dtype not in rules.weights:
        allowed = " or ".join(sorted(map(str, rules.weights)))
        yield _found(node, "weight-type", f"its weight is {params.dtype}, the target runs {allowed}")
    if rules.symmetric_weights and not _symmetric(params):
        yield _found(node, "symmetric-weight", f"its weight has zero point {_first(params.zeros)}, not 0")
    if params.scales is None or params.per_tensor:
        return
    if node.op not in rules.per_channel:
        yield _found(node, "per-tensor-weight", "its weight has a scale a channel, the target takes one for all")
    elif (axis := params.axis % len(shape)) != (wanted := _output_axis(node, len(shape))):
        yield _found(
            node,
            "weight-axis",
            f"its weight has a scale for each index of axis {axis}, output channels are axis {wanted}",
        )


def _bias(node: Node, rules: Constraints) -> Iterator[Finding]:
    bias = node.input(2) if node.op != "MatMul" else None
    if bias is None or _dequantizer(node.input(0)) is None:
        return
    maker = _dequantizer(bias)
    dtype = DType.FLOAT if maker is None else _params(maker).dtype
    if dtype is not None and dtype not in rules.biases:
        allowed = " or ".join(sorted(map(str, rules.biases)))
        yield _found(node, "bias-type", f"its bias is {dtype}, the target takes {allowed}")


# Traps of single targets


def _one_quantizer(node: Node) -> Iterator[Finding]:
    if node.op not in ("Conv", "ConvTranspose") or _dequantizer(node.input(0)) is None:
        return
    if _dequantizer(node.input(1)) is None:
        return
    value = node.output
    uses = list(value.uses)
    if len(uses) == 1 and uses[0].node is not None and uses[0].node.op in ("Relu", "Clip"):
        activation = uses[0].node
        value = activation.output
        uses = list(value.uses)
        quantizer = uses[0].node if len(uses) == 1 else None
        if quantizer is not None and quantizer.op == "QuantizeLinear" and _cuts_more(activation, _params(quantizer)):
            yield _found(node, "one-quantizer", f"codes of its result reach beyond the {activation.op} behind it")
            return
    if len(uses) != 1 or uses[0].node is None or uses[0].node.op != "QuantizeLinear":
        yield _found(
            node, "one-quantizer", "its operands are quantized, but not exactly one quantizer reads its result"
        )


def _bias_scale(node: Node) -> Iterator[Finding]:
    if node.op not in ("Conv", "Gemm"):
        return
    makers = [_dequantizer(node.input(index)) for index in range(3)]
    if any(maker is None for maker in makers):
        return
    x, w, b = (_params(maker) for maker in makers if maker is not None)
    if x.scales is None or w.scales is None or b.scales is None:
        return
    wanted = x.scales.reshape(-1)[:1].astype(np.float32) * w.scales.reshape(-1).astype(np.float32)
    given = b.scales.reshape(-1)
    if given.size not in (1, wanted.size) or not np.array_equal(np.broadcast_to(given, wanted.shape), wanted):
        yield _found(node, "bias-scale", "the scale of its bias is not the product of the scales of input and weight")


def _float_weight(node: Node) -> Iterator[Finding]:
    if node.op not in ("Conv", "Gemm") or _dequantizer(node.input(0)) is None:
        return
    reader = node.output.uses.first
    weight = constant_of(node.input(1))
    if weight is not None and reader is not None and reader.node is not None and reader.node.op == "QuantizeLinear":
        yield _found(node, "float-weight", "the runtime will quantize its float weight by itself, with one scale")


def _table(node: Node) -> Iterator[Finding]:
    if node.op == "Gather" and _weight_shape(_dequantizer(node.input(0))) is not None:
        yield _found(node, "table", "the whole table is dequantized on every run: gather codes, then dequantize those")


def _slow_kernel(node: Node) -> Iterator[Finding]:
    if node.op in ("Softmax", "AveragePool") and _dequantizer(node.input(0)) is not None:
        if any(use.node is not None and use.node.op == "QuantizeLinear" for use in node.output.uses):
            yield _found(node, "slow-kernel", "the integer kernel is several times slower than the float one")


def _movement(node: Node) -> Iterator[Finding]:
    maker = _dequantizer(node.input(0)) if node.op in _MOVEMENT else None
    if maker is None or _weight_shape(maker) is not None:
        return
    before = _params(maker)
    for value in node.outputs:
        for user in value.users:
            if user.op == "QuantizeLinear" and not before.same(_params(user)):
                yield _found(node, "movement", "it only moves numbers, but is quantized differently before and behind")
                return


def _mixed_zeros(node: Node) -> Iterator[Finding]:
    maker = _dequantizer(node.input(1)) if node.op in _WEIGHTED else None
    zeros = None if maker is None or _weight_shape(maker) is None else _params(maker).zeros
    if zeros is not None and np.unique(zeros.astype(np.int64)).size > 1:
        yield _found(node, "mixed-zeros", "the zero points of its weight differ from channel to channel")


def _symmetric_channels(node: Node) -> Iterator[Finding]:
    maker = _dequantizer(node.input(1)) if node.op in _WEIGHTED else None
    if maker is None or _weight_shape(maker) is None:
        return
    params = _params(maker)
    if params.scales is not None and not params.per_tensor and not _symmetric(params):
        yield _found(node, "symmetric-channels", "its weight has a scale a channel and zero points that are not 0")


_TRAPS: Mapping[str, Callable[[Node], Iterator[Finding]]] = {
    "one-quantizer": _one_quantizer,
    "bias-scale": _bias_scale,
    "float-weight": _float_weight,
    "table": _table,
    "slow-kernel": _slow_kernel,
    "movement": _movement,
    "mixed-zeros": _mixed_zeros,
    "symmetric-channels": _symmetric_channels,
}


# Small things


def _found(node: Node, rule: str, message: str) -> Finding:
    return Finding(node.label, node.op, rule, message, tuple(node.sources[:16]))


def _dequantizer(value: Value | None) -> Node | None:
    maker = None if value is None else value.producer
    return maker if maker is not None and maker.op == "DequantizeLinear" else None


def _weight_shape(maker: Node | None) -> tuple[int, ...] | None:
    """The shape of what a dequantizer reads, where that is constant: codes, or floats behind a quantizer."""
    if maker is None:
        return None
    source = maker.input(0)
    if source is not None and source.producer is not None and source.producer.op == "QuantizeLinear":
        source = source.producer.input(0)
    constant = constant_of(source)
    return None if constant is None else constant.shape


def _params(node: Node) -> _Params:
    scale, zero = constant_of(node.input(1)), constant_of(node.input(2))
    codes = node.output if node.op == "QuantizeLinear" else node.input(0)
    dtype = zero.dtype if zero is not None else (codes.dtype if codes is not None else None)
    return _Params(dtype, _array(scale), _array(zero), node.get("axis", 1), node.get("block_size", 0))


def _array(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.numpy()


def _symmetric(params: _Params) -> bool:
    """No zero point but 0; float codes have none."""
    if params.zeros is None or params.dtype is None or not params.dtype.is_integer:
        return True
    return not np.any(params.zeros.astype(np.int64))


def _first(zeros: np.ndarray | None) -> int:
    return 0 if zeros is None or zeros.size == 0 else int(zeros.reshape(-1)[0])


def _cuts_more(activation: Node, params: _Params) -> bool:
    """Whether a Relu or Clip cuts off what the codes behind it reach."""
    if params.scales is None or params.dtype is None or not params.dtype.is_integer or not params.per_tensor:
        return False
    scale, zero = np.float32(params.scales.reshape(-1)[0]), _first(params.zeros)
    lowest, highest = (params.dtype.qmin - zero) * scale, (params.dtype.qmax - zero) * scale
    lower, upper = (0.0, None) if activation.op == "Relu" else clip_bounds(activation)
    below = lower is not None and bool(lowest < np.float32(lower))
    return below or (upper is not None and bool(highest > np.float32(upper)))
