"""The fusion audit: what the runtime made of an emitted model, node by node.

It loads the model, reads back the optimised graph (bodies included) and traces every heavy node and every left-over
quantizer to the node of the emitted model, and of the user's model, that it came from. It only reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from qir.ir import Model, Node, Value
from qir.runtime.optimized import op_name, optimized_model, walk
from qir.runtime.session import SessionConfig
from qir.runtime.specs import Model as Serialized

__all__ = ["Audit", "Island", "audit"]

_HEAVY_FLOAT = frozenset({"Conv", "FusedConv", "MatMul", "Gemm", "FusedGemm", "FusedMatMul", "ConvTranspose"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_MOVEMENT = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Concat", "MaxPool", "Split", "Gather"})
_SLOW_POOL = "the runtime would pool integers with their channels first, which takes dozens of times as long"


@dataclass(frozen=True, slots=True)
class Island:
    """A node that was meant to run on integers, by the quantizers around it, and runs as float."""

    op: str
    node: Node
    reason: str


@dataclass(frozen=True, slots=True)
class Audit:
    """``integer``, ``float_heavy``, ``quantizers``: executed nodes by op. ``islands``: what should have fused."""

    integer: Counter[str] = field(default_factory=Counter)
    float_heavy: Counter[str] = field(default_factory=Counter)
    quantizers: Counter[str] = field(default_factory=Counter)
    islands: tuple[Island, ...] = ()

    @property
    def integer_nodes(self) -> int:
        return sum(self.integer.values())


def audit(emitted: Model, serialized: Serialized) -> Audit:
    """``serialized`` is ``emitted`` (after an emit pass) for the runtime. Raises ModelError where that refuses it."""
    # "extended": the integer fusions without the layout changes of "all", which rename values.
    graph = optimized_model(serialized, SessionConfig(level="extended")).proto.graph
    by_name, by_output = _index(emitted)
    integer: Counter[str] = Counter()
    heavy: Counter[str] = Counter()
    quantizers: Counter[str] = Counter()
    islands: list[Island] = []
    for _, executed in walk(graph):
        name = op_name(executed)
        short = executed.op_type
        if _is_integer(short):
            integer[name] += 1
        elif short in _QUANTIZERS:
            quantizers[name] += 1
        elif short in _HEAVY_FLOAT:
            heavy[name] += 1
            node = _trace(executed, by_name, by_output)
            if node is not None and (reason := _reads_quantized_weight(node)):
                islands.append(Island(short, node, reason))
    islands += [Island("MaxPool", node, _SLOW_POOL) for node in _slow_pools(emitted, serialized)]
    return Audit(integer, heavy, quantizers, tuple(islands))


def _slow_pools(emitted: Model, serialized: Serialized) -> list[Node]:
    """MaxPools that run on integers, but not with channels last, the only layout for which there is a fast kernel.

    The runtime changes the layout where most of what surrounds a pool has it: a Concat with one operand from a float
    convolution before the pool is enough to prevent it.
    """
    pools = [node for node in emitted.walk() if node.op == "MaxPool" and _is_dequantized(node.input(0))]
    if not pools:
        return []
    by_name = {node.name: node for node in pools if node.name}
    by_output = {reader.output.name: node for node in pools for reader in node.output.users if len(reader.outputs) == 1}
    executed = [node for _, node in walk(optimized_model(serialized).proto.graph)]
    makers = {name: node for node in executed for name in node.output}  # names are unique, bodies included
    slow = [node for node in executed if op_name(node) == "MaxPool" and not _is_float(node.input[0], makers)]
    found = [by_name.get(node.name) or by_output.get(node.output[0]) for node in slow]
    return [node for node in found if node is not None]


def _is_float(name: str, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a value that a pool reads is a float one: nothing that makes integers stands before what moves it."""
    while (maker := makers.get(name)) is not None:
        if maker.op_type == "QuantizeLinear" or _is_integer(maker.op_type) or maker.op_type == "NhwcMaxPool":
            return False
        if maker.op_type not in _MOVEMENT:
            return True
        name = maker.input[0]
    return True


def _is_dequantized(value: Value | None) -> bool:
    return value is not None and value.producer is not None and value.producer.op == "DequantizeLinear"


def _is_integer(op: str) -> bool:
    parts = ("QLinear", "Integer", "QGemm", "NBits", "DynamicQuantize", "QAttention", "BlockQuantized")
    return any(part in op for part in parts)


def _index(model: Model) -> tuple[dict[str, Node], dict[str, Node]]:
    by_name: dict[str, Node] = {}
    by_output: dict[str, Node] = {}
    for node in model.walk():
        if node.name:
            by_name.setdefault(node.name, node)
        for value in node.outputs:
            if value.name:
                by_output[value.name] = node
    return by_name, by_output


def _trace(executed: onnx.NodeProto, by_name: dict[str, Node], by_output: dict[str, Node]) -> Node | None:
    """The emitted node behind an executed one: of the same name, else the heavy one that makes its result.

    A fused activation leaves the result's name to the last of the nodes that were fused.
    """
    node = by_name.get(executed.name)
    if node is not None and node.op in ("Conv", "MatMul", "Gemm", "ConvTranspose"):
        return node
    node = by_output.get(executed.output[0])
    for _ in range(4):
        if node is None or node.op in ("Conv", "MatMul", "Gemm", "ConvTranspose"):
            return node
        first = node.input(0)
        node = first.producer if first is not None else None
    return None


def _reads_quantized_weight(node: Node) -> str:
    """Why the node was expected to run on integers; empty where it was not."""
    operands = [node.input(0), node.input(1)]
    producers = [None if value is None else value.producer for value in operands]
    if not all(producer is not None and producer.op == "DequantizeLinear" for producer in producers):
        return ""
    reader = node.output.users
    if not any(user.op == "QuantizeLinear" or user.op in ("Relu", "Clip") for user in reader):
        return "its operands are dequantized, but nothing quantizes its result"
    return "its operands and result are quantized, but the runtime did not fuse them"
