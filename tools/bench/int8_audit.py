"""The audit part of int8.py: what the runtime left in float of a quantized model, and whether each has a reason.

A *float region* is a set of executed float operators that hand values to each other with no quantizer between; an
*island* is one that reads dequantized values and whose results are quantized again. What must be explained: each heavy
float operator, each operator at the edge of an island, each quantizer that is left. A reason is a remark of the pass
that left the operator float, or that the target has no integer form for it; whatever has none is a bug, or a fusion
that the runtime did not make.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from qir.api.quantizing import quantize
from qir.codegen import runnable
from qir.ir import Model, Node
from qir.pipeline import Remark, RemarkKind
from qir.pipeline.registry import load_target
from qir.runtime.optimized import optimized_model, walk
from qir.runtime.session import SessionConfig
from qir.targets import Target

__all__ = ["HEADER", "Fusion", "audit_graph", "audit_model", "reason_class"]

HEADER = (
    "| model | integer kernels | heavy float operators | Q left | DQ left | islands | unexplained "
    "| why float, operators by reason |\n|" + "---|" * 8
)

_HEAVY = frozenset(
    {
        *("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "MatMul", "Gemm", "FusedGemm", "FusedMatMul"),
        *("LSTM", "GRU", "RNN", "Attention", "MultiHeadAttention", "Einsum"),
    }
)
_INTEGER = ("QLinear", "Integer", "QGemm", "QAttention", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "NBits")
_MOVES = frozenset(
    {
        *("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Tile", "Split"),
        *("DepthToSpace", "MaxPool", "Identity", "Concat", "Max", "NhwcMaxPool", "Pad", "Resize", "Where"),
    }
)
"""Operators that take codes as well as floats: which they have here, their operand's producer says."""

# The words that passes use, and what the table calls them; the first that fits counts.
_CLASSES = (
    ("would be slower on integers", "slower on integers"),
    ("as the first layer", "first layer"),
    ("alone on integers it leaves", "costs accuracy"),
    ("of its own as integers", "costs accuracy"),
    ("weight is not constant", "two activations"),
    ("weights are not constant", "two activations"),
    ("weights a direction", "small recurrent layer"),
    ("with their channels first", "slow pool"),
    ("no integer kernel", "no integer kernel"),
    ("integer kernel is", "no fast integer kernel"),
    ("does not fuse quantizers", "no integer kernel"),
    ("no calibration sample ran", "branch that no sample ran"),
    ("in such a scale all else would be zero", "mask constant"),
    ("nobody reads its result as integers", "no integer reader"),
    ("a pass before this one made it so", "outlier channels"),
    ("says so", "asked for"),
)
_NO_FORM = "no integer kernel"


def reason_class(message: str) -> str:
    """A few words for what a remark says; the message itself where it is of no known class."""
    return next((name for words, name in _CLASSES if words in message), message.rpartition("stays float: ")[2])


@dataclass
class Fusion:
    """What the runtime executes of one emitted model; see the head of this file."""

    integer: int = 0
    heavy: Counter[str] = field(default_factory=Counter)
    quantize: int = 0
    dequantize: int = 0
    islands: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)

    def markdown(self, model: str) -> str:
        heavy = ", ".join(f"{count} {op}" for op, count in sorted(self.heavy.items())) or "none"
        why = ", ".join(f"{name} {count}" for name, count in self.reasons.most_common()) or "–"
        counts = [self.quantize, self.dequantize, self.islands, len(self.unexplained)]
        return f"| {model} | {self.integer} | {heavy} | {' | '.join(map(str, counts))} | {why} |"


def audit_model(model: str, calibration: Any) -> Fusion:
    """Quantize a model file by the defaults and audit what came of it."""
    compiled = quantize(model, calibration=calibration, latency_seconds=0).compilation
    with runnable(compiled.model) as source:
        graph = optimized_model(source, SessionConfig(level="extended")).proto.graph
    return audit_graph(graph, compiled.model, compiled.remarks, load_target("ort-cpu"))


def audit_graph(graph: onnx.GraphProto, emitted: Model, remarks: Iterable[Remark], target: Target) -> Fusion:
    """``graph`` is what the runtime made of ``emitted``, ``remarks`` what the passes said that led to it."""
    return _Auditor(graph, _Reasons(emitted, remarks, target)).audit()


class _Reasons:
    """Why a node that is executed in float is so, by the node of the emitted model that it was."""

    def __init__(self, emitted: Model, remarks: Iterable[Remark], target: Target) -> None:
        self.target = target
        self.by_source: dict[str, str] = {}
        for remark in remarks:
            if remark.kind is RemarkKind.MISSED and "stays float" in remark.message:
                for name in (remark.subject, *remark.sources):
                    self.by_source[name] = remark.message
        self.by_name: dict[str, Node] = {}
        self.by_output: dict[str, Node] = {}
        for node in emitted.walk():
            self.by_name.setdefault(node.name, node)
            self.by_output.update((value.name, node) for value in node.outputs if value.name)

    def of(self, executed: onnx.NodeProto) -> str | None:
        """A reason class, None where nobody said why."""
        node: Node | None = self.by_name.get(executed.name) if executed.name else None
        node = node or next((self.by_output[name] for name in executed.output if name in self.by_output), None)
        heavy = executed.op_type in _HEAVY
        if node is None:  # the runtime made it of others, and they have no such name
            return None if heavy or self.target.rule(executed.domain, executed.op_type) else _NO_FORM
        while node is not None:
            names = (node.label, *node.sources)
            said = next((self.by_source[name] for name in names if name in self.by_source), None)
            if said is not None:
                return reason_class(said)
            if node.op not in self.target.merged and not (heavy and node.op not in _HEAVY):
                return None if self.target.rule(node.domain, node.op) else _NO_FORM
            before = node.input(0)  # what was fused into the operator before it is where that is
            node = None if before is None else before.producer
        return None


class _Auditor:
    def __init__(self, graph: onnx.GraphProto, reasons: _Reasons) -> None:
        self.reasons = reasons
        self.nodes = [node for _, node in walk(graph)]
        self.maker = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)

    def audit(self) -> Fusion:
        found = Fusion()
        for node in self.nodes:
            if _is_integer(node):
                found.integer += 1
            elif node.op_type == "QuantizeLinear":
                found.quantize += 1
                if not self._reaches_integers(node):
                    found.unexplained.append(f"quantizer {node.name!r}: no integer kernel reads its codes")
            elif node.op_type == "DequantizeLinear":
                found.dequantize += 1
                if reason := self._against_dequantizer(node):
                    found.unexplained.append(f"dequantizer {node.name!r}: {reason}")
            elif node.op_type in _HEAVY:
                found.heavy[node.op_type] += 1
                self._explain(node, found)
        for island in self._islands():
            found.islands += 1
            for node in island:
                if node.op_type not in _HEAVY and self._is_edge(node):
                    self._explain(node, found)
        return found

    def _explain(self, node: onnx.NodeProto, found: Fusion) -> None:
        reason = self.reasons.of(node)
        if reason is None:
            found.unexplained.append(f"{node.op_type} {node.name!r}: float, and nobody says why")
        else:
            found.reasons[reason] += 1

    def _reaches_integers(self, node: onnx.NodeProto) -> bool:
        """Whether codes that this node makes end in an integer kernel, moved about at most, or leave the graph."""
        readers = [reader for name in node.output for reader in self.readers[name]]
        if not readers:
            return True
        return any(_is_integer(one) or (one.op_type in _MOVES and self._reaches_integers(one)) for one in readers)

    def _against_dequantizer(self, node: onnx.NodeProto) -> str | None:
        codes = self.maker.get(node.input[0])
        while codes is not None and codes.op_type in _MOVES and codes.input[0] in self.maker:
            codes = self.maker[codes.input[0]]
        if codes is None:
            return "of a constant, or of an input"
        if codes.op_type == "QuantizeLinear":
            return "undoes a quantizer"
        readers = self.readers[node.output[0]]
        if readers and all(reader.op_type == "QuantizeLinear" for reader in readers):
            return "its result is quantized again"
        return None

    def _is_float(self, node: onnx.NodeProto) -> bool:
        """Executed in float, as far as operators tell; what only moves is what its operand is."""
        if _is_integer(node) or _is_quantizer(node):
            return False
        source = self.maker.get(node.input[0]) if node.input else None
        if node.op_type in _MOVES and source is not None:
            return source.op_type == "DequantizeLinear" or self._is_float(source)
        return True

    def _islands(self) -> list[list[onnx.NodeProto]]:
        """Float regions that read dequantized values and are quantized again."""
        inside = {id(node): node for node in self.nodes if self._is_float(node)}
        seen: set[int] = set()
        islands = []
        for key, start in inside.items():
            if key in seen:
                continue
            region, pending = [], [start]
            seen.add(key)
            while pending:
                node = pending.pop()
                region.append(node)
                around = [self.maker[name] for name in node.input if name in self.maker]
                around += [reader for name in node.output for reader in self.readers[name]]
                for other in around:
                    if id(other) in inside and id(other) not in seen:
                        seen.add(id(other))
                        pending.append(other)
            if any(self._reads(node) for node in region) and any(self._is_requantized(node) for node in region):
                islands.append(region)
        return islands

    def _is_edge(self, node: onnx.NodeProto) -> bool:
        return self._reads(node) or self._is_requantized(node)

    def _reads(self, node: onnx.NodeProto) -> bool:
        return any(name in self.maker and self.maker[name].op_type == "DequantizeLinear" for name in node.input)

    def _is_requantized(self, node: onnx.NodeProto) -> bool:
        return any(reader.op_type == "QuantizeLinear" for name in node.output for reader in self.readers[name])


def _is_integer(node: onnx.NodeProto) -> bool:
    return any(part in node.op_type for part in _INTEGER)


def _is_quantizer(node: onnx.NodeProto) -> bool:
    return node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


def audit_table(models: Mapping[str, tuple[str, Any]]) -> list[dict[str, Any]]:
    """Prints a row for each model, by name: its file and its calibration feeds; what is unexplained follows."""
    results: list[dict[str, Any]] = []
    print(HEADER, flush=True)
    for name, (model, calibration) in models.items():
        found = audit_model(model, calibration)
        print(found.markdown(name), flush=True)
        error = "; ".join(found.unexplained) or None
        results.append({"model": name, "error": error, "islands": found.islands, "reasons": dict(found.reasons)})
    for result in results:
        if result["error"]:
            print(f"\n{result['model']}, unexplained: {result['error']}", flush=True)
    return results
