"""Which value of a quantized model is which value of the float model that it was made from.

By name first, then by the provenance that qir writes into its files, then by structure. So it works for files of other
quantizers too, as long as their quantizers are QuantizeLinear and DequantizeLinear nodes or kernels between floats.

Who answers for a quantizer: the operator before it, where that reads integers itself (then the runtime fuses them: a
convolution with its result's quantizer); else each operator behind it (a MatMul that quantizes its input, while a float
residual reads the same value).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from qir.ir import DType, Model, Node, StaticQuant, Value
from qir.ops.traits import DATA_MOVEMENT

__all__ = ["Alignment", "Kind", "Quantizer", "Unit", "align", "computes_on_codes", "dequantizers"]

Kind = Literal["float", "static", "dynamic", "weights"]

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_MERGED = ("Relu", "Clip")
_LINEAR = ("MatMul", "Gemm")
_MOVES = DATA_MOVEMENT | {"MaxPool"}
_MOST_NODES = 256
"""Of one unit; a longer stretch without any aligned value is not worth walking."""


@dataclass(frozen=True, slots=True)
class Quantizer:
    """A QuantizeLinear node of the quantized model with constant parameters for the whole tensor.

    ``value`` is what it quantizes, in the float model. ``is_result``: it stands behind the unit, else before it.
    """

    node: Node
    value: Value
    quant: StaticQuant
    is_result: bool


@dataclass(frozen=True, slots=True)
class Unit:
    """A node of the float model, its result there and what computes that in the quantized model.

    ``result`` is computed by ``operator`` (and an activation merged into it); ``image`` is what the readers see, behind
    a quantizer that the operator answers for. ``moves``: it only rearranges codes. ``bits``: of its coded weights, the
    fewest, None where none are seen to be (codebooks, 16-bit floats).
    """

    node: Node
    value: Value
    result: Value
    image: Value
    operator: Node
    kind: Kind
    quantizers: tuple[Quantizer, ...]
    moves: bool
    bits: int | None = None


@dataclass(slots=True)
class Alignment:
    """``units`` in the quantized model's order. ``bodies``: nodes in If, Loop and Scan bodies, which are compared as
    part of the node that holds them. ``lost``: operators on integers that belong to no aligned value."""

    units: list[Unit] = field(default_factory=list)
    bodies: int = 0
    lost: list[Node] = field(default_factory=list)


def align(reference: Model, quantized: Model) -> Alignment:
    """Both models need inferred types. Linear in their size."""
    pairs = _by_name(reference, quantized)
    _by_node_name(reference, quantized, pairs)
    _by_provenance(reference, quantized, pairs)
    _by_structure(reference, quantized, pairs)
    merged = {result: _operator(result) for result in pairs if _stored(result) is not None}
    hidden = {operator.output for result, operator in merged.items() if operator is not result.producer}
    nodes_of = {result: value.producer for result, value in pairs.items()}
    pairs = {result: value for result, value in pairs.items() if result not in hidden}
    images = {_image(result): value for result, value in pairs.items()}
    own = {value.name: value for value in reference.graph.inputs}
    images |= {value: own[value.name] for value in quantized.graph.inputs if value.name in own}
    by_source = {source: node for node in reference.graph.nodes for source in node.sources}
    found = Alignment(bodies=sum(len(list(body.walk())) for node in quantized.graph.nodes for body in node.bodies))
    covered: set[Node] = set()
    for node in quantized.graph.nodes:
        for result in node.outputs:
            if result not in pairs:
                continue
            operator = merged.get(result, node)
            source = _source_node(operator, by_source) or nodes_of.get(operator.output) or pairs[result].producer
            assert source is not None
            segment = _segment(result, images)
            covered.update(segment)
            found.units.append(_unit(source, pairs[result], result, operator, segment, images))
    found.lost = [node for node in quantized.graph.nodes if node not in covered and _on_integers(node)]
    return found


# Matching


def _by_name(reference: Model, quantized: Model) -> dict[Value, Value]:
    names = {value.name: value for value in quantized.graph.values() if value.name}
    pairs: dict[Value, Value] = {}
    for node in reference.graph.nodes:
        for value in node.outputs:
            match = names.get(value.name)
            if match is not None and _is_float(value) and _is_float(match) and match.producer is not None:
                pairs[_before_quantizer(match)] = value
    return pairs


def _by_node_name(reference: Model, quantized: Model, pairs: dict[Value, Value]) -> None:
    """Nodes of the same name and operator. Where an activation behind the float one is gone, the quantizer's range
    stands in for it, so the quantized result is the activation's."""
    names = {(node.op, node.name): node for node in reference.graph.nodes if node.name}
    known = set(pairs.values())
    for node in quantized.graph.nodes:
        ours = names.get((node.op, node.name))
        if ours is None or len(node.outputs) != 1 or node.output in pairs or ours.output in known:
            continue
        value = ours.output
        reader = value.users[0] if len(value.uses) == 1 and value.users else None
        if reader is not None and reader.op in _MERGED and all(user.op not in _MERGED for user in node.output.users):
            value = reader.output
        if _is_float(value) and _is_float(node.output) and value not in known:
            pairs[node.output] = value


def _by_provenance(reference: Model, quantized: Model, pairs: dict[Value, Value]) -> None:
    """A node that stands for several stands for the last of them; of several for one, the last makes its result."""
    sources = {source: node for node in reference.graph.nodes for source in node.sources}
    place = {node: index for index, node in enumerate(reference.graph.nodes)}
    known = set(pairs.values())
    tentative: dict[Value, Value] = {}
    for node in quantized.graph.nodes:
        if node.op in (_Q, _DQ) or len(node.outputs) != 1 or node.output in pairs or not _is_float(node.output):
            continue
        meant = [sources[source] for source in node.sources if source in sources]
        last = max(meant, key=place.__getitem__, default=None)
        if last is not None and len(last.outputs) == 1 and _is_float(last.output) and last.output not in known:
            tentative[last.output] = node.output
    pairs.update({result: value for value, result in tentative.items()})


def _by_structure(reference: Model, quantized: Model, pairs: dict[Value, Value]) -> None:
    """The same operator on the same operands; of several, the one with the most alike constants."""
    Key = tuple[str, tuple[Value | None, ...]]
    waiting: dict[Key, list[Node]] = {}
    known = set(pairs.values())
    for node in reference.graph.nodes:
        if node.outputs and node.outputs[0] not in known:
            waiting.setdefault((node.op, _operands(node, {})), []).append(node)
    if not waiting:
        return
    ours = {value.name: value for value in reference.graph.inputs}
    to_float = {value: ours[value.name] for value in quantized.graph.inputs if value.name in ours}
    to_float |= pairs
    sources = {source for node in reference.graph.nodes for source in node.sources}
    for node in quantized.graph.nodes:
        if node.op in (_Q, _DQ) or not node.outputs or node.outputs[0] in to_float:
            continue
        if len(sources.intersection(node.sources)) > 1:
            continue  # it stands for several: what it computes is no node's result
        candidates = waiting.get((node.op, _operands(node, to_float)), [])
        if candidates:
            best = max(candidates, key=lambda candidate: _likeness(candidate, node))
            candidates.remove(best)
            for result, value in zip(node.outputs, best.outputs, strict=False):
                to_float[result] = value
                if _is_float(result) and _is_float(value):
                    pairs[result] = value


def _operands(node: Node, to_float: dict[Value, Value]) -> tuple[Value | None, ...]:
    """Non-constant operands, as values of the float model where they are known."""
    found: list[Value | None] = []
    for value in node.inputs:
        source = None if value is None else _before_quantizer(value)
        if source is not None and not _is_constant(source):
            found.append(to_float.get(source, source))
    return tuple(found)


def _likeness(ours: Node, theirs: Node) -> float:
    """Cosine of the largest constants of two nodes, the quantized one's dequantized; 0 where that means nothing."""
    wanted = max(
        (v.tensor.numpy() for v in ours.inputs if v is not None and v.tensor is not None), key=np.size, default=None
    )
    if wanted is None or wanted.dtype.kind != "f":
        return 0.0
    for value in theirs.inputs:
        array = None if value is None else _constant_array(value)
        if array is not None and array.size == wanted.size and array.size > 1:
            a, b = wanted.ravel().astype(np.float64), array.ravel().astype(np.float64)
            return float(a @ b) / max(math.sqrt(float(a @ a) * float(b @ b)), 1e-30)
    return 0.0


def _constant_array(value: Value) -> np.ndarray | None:
    if value.tensor is not None:
        return value.tensor.numpy()
    maker = value.producer
    data = maker.input(0) if maker is not None and maker.op == _DQ else None
    return data.tensor.numpy() if data is not None and data.tensor is not None else None


# Who answers for what


def _unit(
    source: Node, value: Value, result: Value, operator: Node, segment: list[Node], images: dict[Value, Value]
) -> Unit:
    stored = _stored(result)
    quantizers: list[Quantizer] = []
    if stored is not None and (quant := _parameters(stored)) is not None:
        quantizers.append(Quantizer(stored, value, quant, True))
    for node in segment:
        data = node.input(0)
        if node.op == _Q and data in images and (quant := _parameters(node)) is not None:
            quantizers.append(Quantizer(node, images[data], quant, False))
    kind = _kind(operator, segment, stored is not None)
    bits = min((found for node in segment if (found := _weight_bits(node)) is not None), default=None)
    kind = "weights" if kind == "float" and bits is not None else kind
    moves = _only_moves(operator, stored)
    return Unit(source, value, result, _image(result), operator, kind, tuple(quantizers), moves, bits)


def _weight_bits(node: Node) -> int | None:
    """Of the weight that a node decodes, or computes on; biases have 32."""
    if "NBits" in node.op or "BlockQuantized" in node.op:
        return int(node.get("bits", 4))
    codes = node.input(0) if node.inputs else None
    if codes is None or codes.tensor is None or not codes.tensor.dtype.is_integer:
        return None
    few = codes.tensor.dtype.bits
    return few if few < 8 or (few == 8 and node.op == _DQ) else None


def _stored(result: Value) -> Node | None:
    """The quantizer behind a value, where the operator before it answers for it."""
    uses = list(result.uses)
    reader = uses[0].node if len(uses) == 1 else None
    if reader is None or reader.op != _Q or uses[0].index != 0 or reader.graph is not result.graph:
        return None
    operator = _operator(result)
    if operator.op in _LINEAR or operator.op in (_Q, _DQ):
        return None
    return reader if computes_on_codes(operator) else None


def _operator(result: Value) -> Node:
    """The node that makes a value, before an activation that a runtime merges into it."""
    node = result.producer
    assert node is not None
    operand = node.input(0)
    if node.op in _MERGED and operand is not None and len(operand.uses) == 1 and operand.producer is not None:
        return operand.producer if operand.producer.op not in (_DQ, _Q) else node
    return node


def _image(result: Value) -> Value:
    stored = _stored(result)
    if stored is None:
        return result
    return next((use.node.output for use in stored.output.uses if use.node is not None and use.node.op == _DQ), result)


def _segment(result: Value, images: dict[Value, Value]) -> list[Node]:
    """What computes a value from aligned ones."""
    found: dict[Node, None] = {}
    work = [result]
    while work and len(found) < _MOST_NODES:
        value = work.pop()
        node = value.producer
        if node is None or node in found or (value in images and value is not result):
            continue
        found[node] = None
        work += [operand for operand in node.inputs if operand is not None]
    return list(found)


def _kind(operator: Node, segment: Iterable[Node], stored: bool) -> Kind:
    ops = {node.op for node in segment}
    if any(op.startswith("Dynamic") or op in ("MatMulInteger", "ConvInteger") for op in ops):
        return "dynamic"
    if stored or _Q in ops or computes_on_codes(operator):
        return "static"
    return "weights" if _DQ in ops or any("NBits" in op or "BlockQuantized" in op for op in ops) else "float"


def _only_moves(operator: Node, stored: Node | None) -> bool:
    """Whether a node hands codes on under the parameters that they have."""
    source = operator.input(0)
    maker = source.producer if source is not None else None
    if operator.op not in _MOVES or stored is None or maker is None or maker.op != _DQ:
        return False
    return _parameters(maker) == _parameters(stored)


def _on_integers(node: Node) -> bool:
    return node.op not in (_Q, _DQ) and computes_on_codes(node)


def computes_on_codes(node: Node) -> bool:
    """It reads dequantized activations, and no weight that was left in float."""
    weights = [value.tensor for value in node.inputs if value is not None and value.tensor is not None]
    if any(weight.dtype is DType.FLOAT and len(weight.shape) >= 2 for weight in weights):
        return False
    return any(_is_dequantized(value) for value in node.inputs)


# Small questions


def _source_node(operator: Node, by_source: dict[str, Node]) -> Node | None:
    meant = [by_source[source] for source in (operator.name, *operator.sources) if source in by_source]
    return next((node for node in meant if node.op == operator.op), None)


def _before_quantizer(value: Value) -> Value:
    """The float value behind a dequantizer that follows a quantizer; the value itself otherwise."""
    maker = value.producer
    if maker is None or maker.op != _DQ:
        return value
    codes = maker.input(0)
    quantizer = codes.producer if codes is not None else None
    source = quantizer.input(0) if quantizer is not None and quantizer.op == _Q else None
    return value if source is None or source.producer is None else source


def _is_dequantized(value: Value | None) -> bool:
    maker = value.producer if value is not None else None
    return maker is not None and maker.op == _DQ and not _is_constant(maker.output)


def _is_constant(value: Value) -> bool:
    maker = value.producer
    if maker is not None and maker.op == _DQ:
        codes = maker.input(0)
        return codes is not None and codes.is_constant
    return value.is_constant


def _is_float(value: Value) -> bool:
    return value.dtype in (DType.FLOAT, DType.FLOAT16, DType.BFLOAT16, DType.DOUBLE)


def _parameters(node: Node) -> StaticQuant | None:
    """Of a quantizer or dequantizer with one constant scale for the whole tensor and an integer type."""
    scale, zero = node.input(1), node.input(2)
    if scale is None or scale.tensor is None or scale.tensor.size != 1:
        return None
    if zero is not None and (zero.tensor is None or zero.tensor.size != 1):
        return None
    dtype = DType.UINT8 if zero is None or zero.dtype is None else zero.dtype
    if not dtype.is_integer:
        return None
    point = 0 if zero is None or zero.tensor is None else int(zero.tensor.numpy().reshape(-1)[0])
    return StaticQuant.per_tensor(dtype, float(scale.tensor.numpy().reshape(-1)[0]), point)


def dequantizers(quantizer: Node) -> Iterator[Node]:
    """The nodes that dequantize what a quantizer hands out, bodies included."""
    return (use.node for use in quantizer.output.uses if use.node is not None and use.node.op == _DQ)
