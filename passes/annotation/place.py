"""``place``: check the annotations against what the runtime really fuses, and take back what it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qir.codegen import runnable
from qir.ir import Model, Node, StaticQuant, Use, UseQuantMarker, Value
from qir.passes.emission.emit_qdq import EmitQdq
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.pipeline.registry import load_target
from qir.targets import Target
from qir.targets.audit import Audit, audit
from qir.targets.kernels import make_dynamic
from qir.targets.regions import merged_result, reason_against_dynamic

__all__ = ["Place", "dequantize_node"]


@dataclass(frozen=True)
class Place(Pass):
    """Emit a copy, let the target's runtime optimise it, and audit the result: a node whose quantizers did not fuse
    would be dequantized and computed in float on every run, so its annotations are removed, or, of a linear operator,
    changed for a quantizer at run time. At most ``max-rounds`` times, because removing one quantizer can strand
    another.

    Before::

        %y: f32[1,8] q=u8(0.01, 0) = Conv(%x, @w : s8[axis=0](...)) kernel=integer

    After, where the runtime left that Conv float::

        %y: f32[1,8] = Conv(%x, @w) kernel=float
    """

    name: ClassVar[str] = "place"
    effect: ClassVar[Effect] = Effect.LOSSY
    keeps_observed: ClassVar[bool] = True

    max_rounds: int = 4

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises ModelError where the runtime refuses the emitted model."""
        result = PassResult()
        target = load_target(ctx.target)
        if not target.runs_here:
            message = f"nothing checked: {target.name} does not run here ('qir targets lint' holds a model against it)"
            result.remarks.append(self.note(None, message))
            return result
        if not any(node.kernel not in (None, "float") for node in model.walk()):
            return result
        for _ in range(self.max_rounds):
            found, originals = _audit_copy(model, target, ctx)
            if not found.islands:
                break
            for island in found.islands:
                node = originals[island.node]
                result.count("stranded")
                result.changed = True
                if node.kernel == "integer" and target.dynamic_linear and reason_against_dynamic(node) is None:
                    make_dynamic(node, target)  # the one linear kernel that gives floats to any reader
                    message = f"{node.op} quantizes its input at run time: {island.reason}"
                    result.remarks.append(self.applied(node, message))
                    continue
                for stranded in _with_combiners(node):
                    dequantize_node(stranded)
                    result.remarks.append(self.missed(stranded, f"{stranded.op} stays float: {island.reason}"))
        else:
            found, _ = _audit_copy(model, target, ctx)
        barriers = _raise_barriers(model, target)
        if barriers:
            result.count("barriers", barriers)
            result.changed = True
        for op, count in sorted((found.integer + found.float_heavy + found.quantizers).items()):
            result.count(op, count)
        return result


def _audit_copy(model: Model, target: Target, ctx: PassContext) -> tuple[Audit, dict[Node, Node]]:
    clone = model.clone_with_map()
    _raise_barriers(clone.model, target)
    EmitQdq().run(clone.model, ctx)
    with runnable(clone.model) as source:
        found = audit(clone.model, source)
    return found, {copy: node for node, copy in clone.nodes.items()}


def _with_combiners(node: Node) -> list[Node]:
    """The node; of a pool also the integer Concat or Add whose result it reads, which would only be dequantized."""
    found = [node]
    while node.op == "MaxPool" and (value := found[-1].input(0)) is not None and (maker := value.producer) is not None:
        if maker.kernel != "integer" or maker.op not in _COMBINERS:
            break
        found.append(maker)
    return found


_COMBINERS = frozenset({"Concat", "Add", "Mul"})


def _raise_barriers(model: Model, target: Target) -> int:
    """How many."""
    return sum(_raise_barrier(node, target) for node in list(model.walk()))


def _raise_barrier(node: Node, target: Target) -> bool:
    """Keep the runtime from making an integer operator of a float one between a dequantizer and a quantizer.

    A ``Max`` of one operand does nothing and is left alone by the optimiser.
    """
    operand = node.use(0)
    if node.kernel == "integer" or node.domain != "" or operand is None:
        return False
    if node.op in target.barriers and isinstance(operand.effective_quant, StaticQuant):
        result = merged_result(node, target)
        readers = [use for use in result.uses if isinstance(use.effective_quant, StaticQuant)]
    elif node.op in target.passed_by_quantizers and not isinstance(operand.effective_quant, StaticQuant):
        result = node.outputs[0]
        readers = [use for use in result.uses if _is_quantized_later(use)]
    else:
        return False
    maker, graph = result.producer, result.graph
    if not readers or maker is None or graph is None:
        return False
    barrier = graph.insert_after(maker, "Max", [result], types=[result.type], source=[node]).output
    for use in readers:
        use.value = barrier
    return True


_MOVED_THROUGH = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "MaxPool"})
"""Operators before which the runtime moves a quantizer that stands after them (QDQPropagation of onnxruntime)."""


def _is_quantized_later(use: Use) -> bool:
    """Whether a quantizer of this use may be moved back before the operator that makes the value."""
    if isinstance(use.effective_quant, StaticQuant):
        return True
    reader = use.node
    if reader is None or reader.domain != "" or reader.op not in _MOVED_THROUGH or use.index != 0:
        return False
    return any(_is_quantized_later(later) for later in reader.outputs[0].uses)


def dequantize_node(node: Node) -> None:
    """Let a node run in float: it reads and stores floats, whatever its neighbours do.

    Its result loses its quantizer, so a reader that wants integers gets a quantizer of its own.
    """
    node.kernel = "float"
    for use in node.uses:
        if use is not None:
            use.quant = UseQuantMarker.INHERIT
    for value in node.outputs:
        _unstore(value)
        for use in list(value.uses):
            reader = use.node
            if reader is not None and reader.op in ("Relu", "Clip") and len(value.uses) == 1:
                _unstore(reader.output)


def _unstore(value: Value) -> None:
    quant = value.quant
    if quant is None:
        return
    value.quant = None
    for use in value.uses:
        reader = use.node
        if use.quant is UseQuantMarker.INHERIT and reader is not None and reader.kernel == "integer":
            use.quant = quant
