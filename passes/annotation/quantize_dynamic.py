"""``quantize-dynamic``: integer weights, activations quantized at run time; no calibration data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from qir.analysis.cost import with_input_shapes
from qir.calibration.data import open_data
from qir.calibration.sequential import linear_layers
from qir.calibration.specs import input_specs
from qir.errors import OptionError, suggest
from qir.ir import Model, Node
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.pipeline.registry import load_target
from qir.quant.recipe import Recipe
from qir.targets import Form, Target
from qir.targets.kernels import make_attention, make_dynamic, make_dynamic_conv, make_lookup, make_recurrent
from qir.targets.regions import (
    plan_regions,
    reason_against_attention,
    reason_against_dynamic,
    reason_against_dynamic_conv,
)

__all__ = ["QuantizeDynamic"]

CONV = ("auto", "always", "never")


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Annotate the graph for kernels that quantize their activations at run time: MatMul and Gemm with a constant
    weight, LSTMs and look-ups in tables as the target has them. ``linear=auto`` leaves MatMul and Gemm in float where
    the target's cost table says that they are faster so: at their number of rows or, where shapes leave that open, at
    any; ``always`` takes them all (smaller files). ``conv=auto`` takes convolutions where the target's dynamic kernel
    is faster than float, by shape or by the first sample, if there is one; ``always`` wherever it works, ``never``
    none. ``lstm-scales``: one for each ``channel`` of an LSTM's weights, or for a whole ``tensor``, which runs faster
    and loses accuracy. ``keep-float`` names nodes that stay float, by original name, glob or operator; ``recipe`` is a
    TOML file of such choices, which come before all else.

    Before::

        %y: f32[N,256] = MatMul(%x, @w)

    After::

        %y: f32[N,256] = MatMul(%x : dynamic(u8), @w : s8[axis=1](...)) kernel=dynamic
    """

    name: ClassVar[str] = "quantize-dynamic"
    effect: ClassVar[Effect] = Effect.ANALYSIS
    keeps_observed: ClassVar[bool] = True

    linear: Literal["auto", "always"] = "auto"
    """Of MatMul and Gemm."""
    conv: str = "auto"
    lstm_scales: Literal["channel", "tensor"] = "channel"
    """What shares one scale in the weights of an LSTM: a gate's unit, or a direction."""
    keep_float: tuple[str, ...] = ()
    recipe: str | None = None

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises OptionError for an unknown option or a pattern that matches nothing."""
        if self.conv not in CONV:
            raise OptionError(f"unknown conv={self.conv!r}{suggest(self.conv, CONV)}: use {' or '.join(CONV)}")
        target = load_target(ctx.target)
        recipe = Recipe.load(self.recipe) if self.recipe is not None else Recipe()
        chosen = recipe.with_float(self.keep_float).assign(model)

        def keep_float(node: Node) -> str | None:
            choice = chosen.get(node)
            return f"{choice.origin} says so ({choice.match!r})" if choice and choice.precision == "float" else None

        sized = _with_sizes(model, ctx)
        biased = {layer.node for layer in linear_layers(model) if layer.bias_owner not in (None, layer.node)}

        def slower(node: Node) -> bool:
            wanted = self.linear == "always" or (node in chosen and chosen[node].precision != "float")
            return not wanted and _is_slower(node, target, node in biased)

        result = PassResult()
        for graph in list(model.graph.graphs()):
            plan = plan_regions(graph, target, keep_float)
            for node in list(graph.nodes):
                rule = plan.integer.get(node)
                if node.domain == "" and node.op in ("MatMul", "Gemm", "Conv"):
                    reason = keep_float(node) or self._annotate(node, sized[node], target, slower)
                elif (node.domain, node.op) == ("com.microsoft", "Attention"):
                    reason = keep_float(node) or self._attention(node, target)
                elif rule is not None and rule.form is Form.RECURRENT:
                    make_recurrent(node, target, per_channel=self.lstm_scales == "channel")
                    reason = None
                elif rule is not None and rule.form is Form.LOOKUP:
                    make_lookup(node)
                    reason = None
                elif node.op in _HEAVY and node.domain in ("", "com.microsoft"):
                    reason = plan.kept.get(node) or target.reason_for_float(node.domain, node.op)
                else:
                    continue
                if reason is None:
                    result.count(node.op)
                    result.changed = True
                    result.remarks.append(self.applied(node, f"{node.op} {_DONE.get(node.kernel or '', 'runs')}"))
                else:
                    node.kernel = "float"
                    result.remarks.append(self.missed(node, f"{node.op} stays float: {reason}"))
        return result

    @staticmethod
    def _attention(node: Node, target: Target) -> str | None:
        if not target.dynamic_linear:
            return f"{target.name} has no kernels that quantize at run time"
        reason = reason_against_attention(node)
        if reason is None:
            make_attention(node)
        return reason

    def _annotate(self, node: Node, sized: Node, target: Target, slower: Callable[[Node], bool]) -> str | None:
        """Annotate a linear operator or convolution, or say why not; ``sized``: its copy in which sizes are known."""
        if node.op != "Conv":
            if not target.dynamic_linear:
                return f"{target.name} has no kernels that quantize at run time"
            reason = reason_against_dynamic(node)
            if reason is None and slower(node):
                reason = (
                    "it is so small that quantizing its input takes longer than integers save (linear=always takes it)"
                )
            if reason is None:
                make_dynamic(node, target)
            return reason
        if self.conv == "never":
            return "conv=never"
        reason = reason_against_dynamic_conv(sized, target, wanted=self.conv == "always")
        if reason is None:
            make_dynamic_conv(node)
        return reason


def _with_sizes(model: Model, ctx: PassContext) -> dict[Node, Node]:
    """Each node, or what it is in a copy whose sizes are those of the first sample."""
    nodes = list(model.walk())
    feed = None if ctx.calibration is None else next(iter(open_data(ctx.calibration, input_specs(model))), None)
    if feed is None:
        return dict(zip(nodes, nodes, strict=True))
    sized = with_input_shapes(model, {name: array.shape for name, array in feed.items()})
    return dict(zip(nodes, sized.walk(), strict=True))


def _is_slower(node: Node, target: Target, bias: bool) -> bool:
    """Whether float is faster at the node's number of rows; where some sizes are open, at one row and at very many of
    them, hence at any."""
    data, weight = node.input(0), node.input(1)
    assert data is not None and weight is not None and weight.tensor is not None
    inner, columns = weight.tensor.shape[:: -1 if node.get("transB", 0) else 1]
    sizes = None if data.shape is None else data.shape[:-1]
    known = math.prod(size for size in sizes or () if isinstance(size, int))
    is_known = sizes is not None and all(isinstance(size, int) for size in sizes)
    readers = sum(
        reason_against_dynamic(use.node) is None for use in data.uses if use.node is not None and use.index == 0
    )
    return all(
        target.cost.dynamic_gain_us(rows, inner, columns, readers=max(readers, 1), bias=bias) < 0
        for rows in ([known] if is_known else [known, known * _VERY_MANY])
    )


_VERY_MANY = 1000
_HEAVY = frozenset({"ConvTranspose", "LSTM", "GRU", "RNN", "MultiHeadAttention", "GroupQueryAttention", "Einsum"})
_DONE = {
    "dynamic": "quantizes its input at run time",
    "integer": "reads its table as integers",
    "DynamicQuantizeLSTM": "runs as DynamicQuantizeLSTM",
    "QAttention": "runs as QAttention",
}
