"""Which nodes of a graph a target should run on integers, decided from structure alone.

Two linear sweeps. Forwards, a node joins where the target has an integer form for it and its operands are, or can
cheaply be, integers. Backwards, what only moves or combines integers leaves again where nobody reads its result as
integers: a quantizer less, and more accurate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import numpy as np

from qir.ir import DType, Graph, Node, Tensor, Value
from qir.targets.target import Form, OpRule, Target

__all__ = [
    "FLOAT_RESULT",
    "RegionPlan",
    "merged_result",
    "plan_regions",
    "reason_against_attention",
    "reason_against_dynamic",
    "reason_against_dynamic_conv",
    "weight_axis",
]


@dataclass(slots=True)
class RegionPlan:
    """``integer``: nodes that run on integers, in graph order. ``result``: where the quantizer of a node's result
    stands (after a merged activation). ``kept``: nodes that stay float although they compute much or the target has a
    form for their operator, with the reason."""

    integer: dict[Node, OpRule] = field(default_factory=dict)
    result: dict[Node, Value] = field(default_factory=dict)
    kept: dict[Node, str] = field(default_factory=dict)

    def stored(self) -> set[Value]:
        """Values that their producers store as integers."""
        found: set[Value] = set()
        for node, rule in self.integer.items():
            if rule.form is Form.MOVEMENT:
                found.update(node.outputs)
            elif rule.form not in FLOAT_RESULT:
                found.add(self.result[node])
        return found

    def quantized_values(self) -> list[Value]:
        """Every activation that needs parameters of its own, in graph order: what calibration has to watch."""
        found: dict[Value, None] = {}
        for node, rule in self.integer.items():
            for index in data_inputs(node, rule):
                value = node.input(index)
                if value is not None and not value.is_constant:
                    found[value] = None
            if rule.form is not Form.MOVEMENT and rule.form not in FLOAT_RESULT:
                found[self.result[node]] = None
        return list(found)


def plan_regions(
    graph: Graph,
    target: Target,
    keep_float: Callable[[Node], str | None] | None = None,
    stored: Iterable[Value] = (),
    wanted: Collection[Node] = (),
) -> RegionPlan:
    """The plan for one graph (its bodies are not entered), whose nodes must be in topological order.

    ``keep_float`` gives the reason for which a node must stay float, None where it need not. ``stored``: values of the
    graphs around a body that are integers already. ``wanted``: nodes that somebody asked for, which join wherever the
    target has a form for them, faster or not; of the others a word is said.
    """
    plan = RegionPlan()
    supplied: set[Value] = set(stored)
    for node in graph.nodes:
        asked = node in wanted
        rule = _rule(node, target, asked)
        if rule is None:
            if _is_heavy(node) or (asked and (node.domain or node.op not in target.merged)):
                plan.kept[node] = target.reason_for_float(node.domain, node.op)
            continue
        if not asked and not _is_candidate(node, rule, supplied):
            continue
        reason = keep_float(node) if keep_float is not None else None
        reason = reason or _reason_against(node, rule, supplied, target, asked)
        if reason is not None:
            plan.kept[node] = reason
            continue
        plan.integer[node] = rule
        plan.result[node] = merged_result(node, target) if rule.form in _MERGING else node.output
        if rule.form is Form.MOVEMENT:
            supplied.update(node.outputs)
        elif rule.form not in FLOAT_RESULT:
            supplied.add(plan.result[node])
    _drop_undemanded(plan, wanted)
    return plan


FLOAT_RESULT = frozenset({Form.LINEAR, Form.RECURRENT, Form.LOOKUP})
"""Forms whose kernels hand out floats."""

_SELF_STARTING = FLOAT_RESULT | {Form.CONVOLUTION}
_MERGING = (Form.CONVOLUTION, Form.LINEAR, Form.ELEMENTWISE)


def merged_result(node: Node, target: Target) -> Value:
    """The node's result, after an activation that the runtime computes together with the quantizer.

    That is a Relu, or a Clip from 0, which alone reads the result: its lower bound is then the smallest code.
    """
    result = node.output
    if len(result.uses) != 1 or result.is_output:
        return result
    use = result.uses.first
    assert use is not None
    reader = use.node
    if reader is None or use.is_capture or use.index != 0 or reader.domain != "" or reader.op not in target.merged:
        return result
    if reader.op == "Clip" and clip_bounds(reader)[0] != 0.0:
        return result
    return reader.output


def clip_bounds(node: Node) -> tuple[float | None, float | None]:
    """The constant bounds of a Clip of any opset; None where there is none or it is not constant."""
    bounds: list[float | None] = []
    for index, attribute in ((1, "min"), (2, "max")):
        operand = node.input(index)
        if operand is None:
            bounds.append(node.get(attribute))
        else:
            tensor = operand.tensor
            bounds.append(float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None)
    return bounds[0], bounds[1]


def weight_axis(node: Node) -> int:
    """The axis of a node's constant weight that numbers its output channels."""
    if node.op == "Gemm":
        return 0 if node.get("transB", 0) else 1
    return 1 if node.op in ("MatMul", "ConvTranspose") else 0


def data_inputs(node: Node, rule: OpRule) -> range | tuple[int, ...]:
    """Input indices of the operands that are quantized as activations."""
    return range(len(node.uses)) if rule.data_inputs is None else rule.data_inputs


def _rule(node: Node, target: Target, asked: bool) -> OpRule | None:
    """The target's rule for a node. A Gather from a constant table of rows is a lookup, if large or asked for."""
    rule = target.rule(node.domain, node.op)
    table = node.input(0)
    tensor = table.tensor if table is not None else None
    if node.op != "Gather" or rule is None or tensor is None:
        return rule
    is_table = tensor.dtype is DType.FLOAT and len(tensor.shape) == 2 and node.get("axis", 0) in (0, -2)
    return target.lookup if is_table and (asked or tensor.nbytes >= target.min_table_bytes) else None


def _is_candidate(node: Node, rule: OpRule, supplied: set[Value]) -> bool:
    """Light operators far from any integers are not worth a word."""
    if rule.form in _SELF_STARTING:
        return True
    return any(node.input(index) in supplied for index in data_inputs(node, rule))


def _is_heavy(node: Node) -> bool:
    return node.op in ("ConvTranspose", "LSTM", "GRU", "RNN", "Attention", "Einsum")


def _reason_against(node: Node, rule: OpRule, supplied: set[Value], target: Target, asked: bool) -> str | None:
    match rule.form:
        case Form.RECURRENT:
            return _reason_against_recurrent(node, 0 if asked else target.min_recurrent_weights)
        case Form.LOOKUP:
            table = node.input(0)
            finite = table is not None and table.tensor is not None and _is_finite(table.tensor)
            return None if finite else "its table holds infinities or NaN"
        case Form.CONVOLUTION:
            return _reason_against_weight(node, rule) or (None if asked else _reason_against_stem(node, target))
        case Form.LINEAR:
            return _reason_against_linear(node) or _reason_against_weight(node, rule)
        case Form.ELEMENTWISE:
            return _reason_against_elementwise(node, supplied)
        case _:
            return None


def _reason_against_weight(node: Node, rule: OpRule) -> str | None:
    assert rule.weight_input is not None
    weight = node.input(rule.weight_input)
    activation = node.input(0)
    tensor = weight.tensor if weight is not None else None
    if tensor is None or activation is None or activation.is_constant:
        return "its weight is not constant"
    if tensor.dtype is not DType.FLOAT:
        return f"its weight is {tensor.dtype}, not f32"
    if tensor.size == 0:
        return "its weight is empty"
    if not _is_finite(tensor):
        return "its weight holds infinities or NaN"
    bias = node.input(rule.bias_input) if rule.bias_input is not None else None
    if bias is None:
        return None
    if bias.tensor is None:
        return "its bias is not constant"
    channels = tensor.shape[weight_axis(node)]
    if bias.tensor.size != channels:
        return f"its bias has shape {list(bias.tensor.shape)}, not one number for each of {channels} channels"
    return None if _is_finite(bias.tensor) else "its bias holds infinities or NaN"


def _reason_against_stem(node: Node, target: Target) -> str | None:
    weight = node.input(1)
    assert weight is not None and weight.tensor is not None
    channels = weight.tensor.shape[1]
    if channels >= target.min_conv_channels or node.get("group", 1) > 1 or not _reads_model_input(node, target):
        return None
    if any(reader.op == "MaxPool" for reader in merged_result(node, target).users):
        # The runtime would move the quantizer before the pool, and that pool then has no fast kernel.
        return None
    return f"as the first layer, with {channels} input channels, it is as fast in float and spares all others its noise"


def _reads_model_input(node: Node, target: Target) -> bool:
    """Only light operators stand between an input of the graph and this node."""
    value = node.input(0)
    while value is not None and (maker := value.producer) is not None:
        rule = target.rule(maker.domain, maker.op)
        if _is_heavy(maker) or (rule is not None and rule.weight_input is not None):
            return False
        value = next((operand for operand in maker.inputs if operand is not None and not operand.is_constant), None)
    return value is not None


def _reason_against_linear(node: Node) -> str | None:
    if node.op == "MatMul":
        weight = node.input(1)
        if weight is not None and weight.tensor is not None and len(weight.tensor.shape) != 2:
            return f"its weight has {len(weight.tensor.shape)} axes, the integer kernels take 2"
        return None
    if node.get("transA", 0):
        return "the integer Gemm takes no transposed activation"
    if node.get("alpha", 1.0) != 1.0 or (node.input(2) is not None and node.get("beta", 1.0) != 1.0):
        return "the integer Gemm takes only alpha = beta = 1"
    return None


def reason_against_dynamic(node: Node) -> str | None:
    """Why a node cannot run as a linear operator on dynamically quantized activations; None where it can."""
    if node.op not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return "only MatMul and Gemm can"
    rule = OpRule(Form.LINEAR, weight_input=1, bias_input=2 if node.op == "Gemm" else None)
    return _reason_against_linear(node) or _reason_against_weight(node, rule)


def reason_against_dynamic_conv(node: Node, target: Target, wanted: bool = False) -> str | None:
    """Why a Conv cannot, or where it is not ``wanted`` in any case should not, quantize its activation at run time."""
    rule = OpRule(Form.CONVOLUTION, weight_input=1, bias_input=2)
    reason = _reason_against_weight(node, rule)
    weight = node.input(1)
    if reason is not None or weight is None or weight.tensor is None:
        return reason or "its weight is not constant"
    least, channels = target.min_dynamic_conv_channels, weight.tensor.shape[1]
    if wanted:
        return None
    if least is None:
        return f"{target.name} has no dynamic convolution that is faster than float"
    if node.get("group", 1) > 1:
        return "the dynamic kernel is slower than float in groups"
    if channels < least:
        return f"with {channels} input channels the dynamic kernel is no faster than float, from {least} on it is"
    products = _products(node, weight.tensor)
    if products is not None and products < target.min_dynamic_conv_macs:
        most = target.min_dynamic_conv_macs
        return f"with {products} products the dynamic kernel is no faster than float, from {most} on it is"
    return None


def _products(node: Node, weight: Tensor) -> int | None:
    """Multiply-accumulates of a convolution of one group, an open batch counted as 1; None where its sizes are open."""
    batch, _, *sizes = node.output.shape or (None, None, None)
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(sizes):
        return None
    return (batch if isinstance(batch, int) else 1) * math.prod(known) * weight.size


def reason_against_attention(node: Node) -> str | None:
    """Why an Attention of onnxruntime cannot run as QAttention."""
    weight, bias = node.input(1), node.input(2)
    tensor = weight.tensor if weight is not None else None
    if node.domain != "com.microsoft" or node.op != "Attention":
        return "only onnxruntime's Attention can"
    if tensor is None or tensor.dtype is not DType.FLOAT or len(tensor.shape) != 2 or not _is_finite(tensor):
        return "its weight is no finite constant f32 matrix"
    if bias is None or bias.tensor is None or bias.tensor.shape != (tensor.shape[1],):
        return "it has no constant bias, which the integer kernel wants"
    if node.input(5) is not None or node.input(6) is not None:
        return "the integer kernel takes no attention bias and no length of the past"
    if node.get("qkv_hidden_sizes") is not None or tensor.shape[1] % 3:
        return "its queries, keys and values are of different sizes"
    if node.get("rotary_embedding_dim", 0):
        return "the integer kernel has no partial rotary embedding"
    return None


def _reason_against_recurrent(node: Node, least: int) -> str | None:
    if node.get("layout", 0):
        return "the integer kernel takes no batch-major layout"
    size = 0
    for index in (1, 2):
        weight = node.input(index)
        tensor = weight.tensor if weight is not None else None
        if tensor is None:
            return "its weights are not constant"
        if tensor.dtype is not DType.FLOAT:
            return f"its weights are {tensor.dtype}, not f32"
        if not _is_finite(tensor):
            return "its weights hold infinities or NaN"
        size += tensor.size // max(tensor.shape[0], 1)
    if size < least:
        return f"with {size} weights a direction the integer kernel is slower than the float one"
    return None


def _reason_against_elementwise(node: Node, supplied: set[Value]) -> str | None:
    for value in node.inputs:
        if value is None or value in supplied:
            continue
        if value.tensor is None:
            # A quantizer on that operand costs less than two dequantizers and a quantizer around a float operator.
            if value.dtype is DType.FLOAT:
                continue
            return f"its operand {value.name!r} is {value.dtype or 'of unknown type'}, not f32"
        if value.tensor.dtype is not DType.FLOAT or not _is_finite(value.tensor) or value.tensor.size == 0:
            return f"its constant operand {value.name!r} is no finite f32 tensor"
    return None


def _is_finite(tensor: Tensor) -> bool:
    return bool(np.isfinite(tensor.numpy()).all())


def _drop_undemanded(plan: RegionPlan, wanted: Collection[Node]) -> None:
    """Remove, from the back, light nodes whose results nobody reads as integers and nobody asked for."""
    demanded: set[Value] = set()
    for node in reversed(list(plan.integer)):
        rule = plan.integer[node]
        if rule.form not in _SELF_STARTING and node not in wanted:
            results = node.outputs if rule.form is Form.MOVEMENT else (plan.result[node],)
            if not any(value in demanded for value in results):
                del plan.integer[node], plan.result[node]
                plan.kept[node] = "nobody reads its result as integers"
                continue
        for index in data_inputs(node, rule):
            value = node.input(index)
            if value is not None:
                demanded.add(value)
