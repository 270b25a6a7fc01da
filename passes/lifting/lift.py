"""``lift``: an already quantized model becomes a float graph with annotations again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from qir.ir import DerivedQuant, DType, DynamicQuant, Graph, Model, Node, StaticQuant, UseQuantMarker, Value
from qir.passes.lifting.codes import MOVEMENT, Lifting, NotLiftable
from qir.passes.lifting.operators import CONTRIB_OPERATORS, STANDARD_OPERATORS
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.quant.arithmetic import bias_quant
from qir.quant.detect import is_quantized

__all__ = ["Lift"]

_CONTRIB = "com.microsoft"
_WEIGHTED = frozenset({"Conv", "MatMul", "Gemm", "ConvTranspose"})


@dataclass(frozen=True)
class Lift(Pass):
    """Read quantization that stands in a model as nodes back into annotations, whoever wrote it: QuantizeLinear and
    DequantizeLinear (weights stored as codes, or as floats behind a quantizer), QLinearConv and its kin,
    DynamicQuantizeLinear with MatMulInteger or ConvInteger, and onnxruntime's own operators. Weights become the
    numbers that their codes stand for, so that any ``emit-*`` pass writes the same codes again, and ``dequantize``
    leaves a float model. What cannot be read stays as it is, with a remark.

    Before::

        %x_q: u8[1,4] = QuantizeLinear(%x, @scale, @zero_point)
        %x_dq: f32[1,4] = DequantizeLinear(%x_q, @scale, @zero_point)
        %w_dq: f32[4,8] = DequantizeLinear(@w_q, @w_scale, @w_zero_point) {axis=1}
        %y: f32[1,8] = MatMul(%x_dq, %w_dq)

    After::

        %y: f32[1,8] = MatMul(%x : u8(0.02, 128), @w : s8[axis=1](...)) kernel=integer
    """

    name: ClassVar[str] = "lift"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        result = PassResult()
        lifting = Lifting(model, result)
        reasons: dict[Node, str] = {}
        for graph in list(model.graph.graphs()):
            for node in list(graph.nodes):
                if node.graph is None:  # a later part of a pattern that was lifted whole
                    continue
                try:
                    _lift(node, lifting)
                except NotLiftable as obstacle:
                    reasons[node] = str(obstacle)
        lifting.finish()
        self._remark(model, reasons, result)
        if result.statistics:
            result.changed = True
            for graph in list(model.graph.graphs()):
                _settle(graph, lifting)
        return result

    def _remark(self, model: Model, reasons: dict[Node, str], result: PassResult) -> None:
        kept: Counter[str] = Counter()
        for node in model.walk():
            if is_quantized(node) or node in reasons:
                why = reasons.get(node, "its integers go to or come from nodes that are not lifted")
                result.remarks.append(self.missed(node, f"{node.op} stays as it is: {why}"))
                kept[node.op] += 1
        if result.statistics:
            done = ", ".join(f"{count} {name}" for name, count in result.statistics.items())
            left = f"; {kept.total()} quantized nodes stay" if kept else ""
            result.remarks.append(self.applied(None, f"lifted {done}{left}"))


def _lift(node: Node, lifting: Lifting) -> None:
    """Raises NotLiftable with the reason."""
    standard = node.domain in ("", "ai.onnx")
    if not standard and node.domain != _CONTRIB:
        return
    if node.op == "QuantizeLinear":
        lifting.quantizer(node)
    elif node.op == "DequantizeLinear":
        lifting.dequantizer(node)
    elif node.op == "DynamicQuantizeLinear":
        lifting.dynamic_quantizer(node)
    elif (handler := (STANDARD_OPERATORS if standard else CONTRIB_OPERATORS).get(node.op)) is not None:
        handler(node, lifting)
    elif standard and node.op in MOVEMENT:
        lifting.movement(node)


def _settle(graph: Graph, lifting: Lifting) -> None:
    """Say on a value what all its readers say, let biases follow their operands, mark the kernels."""
    for value in graph.values():
        if not value.is_constant:
            _hoist(value, lifting)
    for node in graph.nodes:
        if node.op in ("Conv", "Gemm") and node.domain == "":
            _derive_bias(node)
        if node.kernel is None and node.op in _WEIGHTED and _reads_integers(node):
            node.kernel = "integer"


def _hoist(value: Value, lifting: Lifting) -> None:
    stored = value.quant or lifting.stored.get(value)
    if stored is None:
        types = {use.effective_quant for use in value.uses}
        only = next(iter(types)) if len(types) == 1 else None
        if not isinstance(only, StaticQuant):
            return
        stored = only
    for use in value.uses:
        if value.quant is None and use.quant is UseQuantMarker.INHERIT:
            use.quant = UseQuantMarker.FLOAT
        elif use.quant == stored:
            use.quant = UseQuantMarker.INHERIT
    value.quant = stored


def _derive_bias(node: Node) -> None:
    data, weight, bias = node.use(0), node.use(1), node.use(2)
    if data is None or weight is None or bias is None:
        return
    x, w, b = data.effective_quant, weight.effective_quant, bias.effective_quant
    if isinstance(x, StaticQuant) and isinstance(w, StaticQuant) and isinstance(b, StaticQuant):
        if b.dtype is DType.INT32 and x.axis is None and w.block_size is None and b.is_symmetric:
            wanted = bias_quant(x, w).scale
            if len(b.scale) in (1, len(wanted)) and all(
                s == b.scale[0 if len(b.scale) == 1 else i] for i, s in enumerate(wanted)
            ):
                bias.quant = DerivedQuant(0, 1)


def _reads_integers(node: Node) -> bool:
    operands = [use.effective_quant for use in (node.use(0), node.use(1)) if use is not None]
    return (
        len(operands) == 2
        and all(isinstance(quant, StaticQuant) for quant in operands)
        and not any(isinstance(quant, DynamicQuant) for quant in operands)
    )
