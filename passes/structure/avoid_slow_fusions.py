"""``avoid-slow-fusions``: spell sums so that the runtime does not merge them into kernels slower than their parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qir.ir import DType, Model, Node, UseQuantMarker, Value
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.pipeline.registry import load_target
from qir.rewriting.edits import opset_of

__all__ = ["AvoidSlowFusions"]

_FIRST_OPSET = 8  # Sum broadcasts as Add does from then on


@dataclass(frozen=True)
class AvoidSlowFusions(Pass):
    """Add before a layer normalization -> Sum, where the target's fused kernel of the two is slower than both.

    onnxruntime makes SkipLayerNormalization of the pair, which on x64 costs a sentence encoder 8 % of its time; it
    leaves Sum alone, whose kernel is Add's. Only float sums of two results, and not where the Add belongs to a pattern
    of more: an embedding, or a layer of attention whose three products are float (a fusion that pays).
    The number of nodes and all results stay. Only for targets of which that is known: a GPU profits from the fusion.

    Before::

        %s: f32[2,8,64] = Add(%x, %branch)
        %y: f32[2,8,64] = LayerNormalization(%s, @scale, @bias)

    After::

        %s: f32[2,8,64] = Sum(%x, %branch)
        %y: f32[2,8,64] = LayerNormalization(%s, @scale, @bias)
    """

    name: ClassVar[str] = "avoid-slow-fusions"
    effect: ClassVar[Effect] = Effect.EXACT
    keeps_observed: ClassVar[bool] = True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        result = PassResult()
        if "SkipLayerNormalization" not in load_target(ctx.target).slow_fusions:
            return result
        for graph in model.graphs():
            if opset_of(model, graph) < _FIRST_OPSET:
                continue
            for node in graph.nodes:
                found = _is_residual(node) and _is_normalized(node.output) and not _is_in_pattern(node)
                if found and ctx.numbering.allow("sum", node):
                    node.set_op("Sum")
                    result.count("sums")
        result.changed = bool(result.statistics)
        return result


def _is_residual(node: Node) -> bool:
    """An Add of two float results, none of them annotated."""
    return (
        node.op == "Add"
        and node.domain == ""
        and node.kernel in (None, "float")
        and node.output.dtype is DType.FLOAT
        and node.output.quant is None
        and all(use is not None and not use.value.is_constant for use in node.uses)
        and all(
            use is not None
            and (use.quant is UseQuantMarker.FLOAT or (use.quant is UseQuantMarker.INHERIT and use.value.quant is None))
            for use in node.uses
        )
    )


def _is_normalized(value: Value) -> bool:
    """Whether a LayerNormalization reads it, or what a runtime makes one of: its mean and its distance from that."""
    readers = {(use.node.op, use.index) for use in value.uses if use.node is not None and use.node.domain == ""}
    return ("LayerNormalization", 0) in readers or readers >= {("ReduceMean", 0), ("Sub", 0)}


def _is_in_pattern(add: Node) -> bool:
    """Whether the runtime may fuse the Add with what is before it: EmbedLayerNormalization, Attention."""
    operands = [use.value for use in add.uses if use is not None]
    return any(_is_embedding(value) or _starts_attention(value) for value in operands)


def _is_embedding(value: Value, depth: int = 2) -> bool:
    maker = value.producer
    if maker is None or depth == 0:
        return False
    if maker.op == "Add":
        return any(_is_embedding(use.value, depth - 1) for use in maker.uses if use is not None)
    return maker.op == "Gather"


def _starts_attention(value: Value) -> bool:
    """Three float products with weights read it: query, key and value."""
    weights = (
        use.node.uses[1]
        for use in value.uses
        if use.node is not None and use.node.op == "MatMul" and use.index == 0 and use.node.kernel in (None, "float")
    )
    plain = (UseQuantMarker.INHERIT, UseQuantMarker.FLOAT)
    return sum(use is not None and use.value.is_constant and use.quant in plain for use in weights) >= 3
