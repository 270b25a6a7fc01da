"""The pass ``fuse``: several nodes that one operator can do become that operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qir.errors import OptionError, suggest
from qir.ir import Model
from qir.passes.structure.fusions import chains, linear, reductions
from qir.passes.structure.fusions.activations import activation_rules
from qir.passes.structure.fusions.norm import layer_norm_rules, rms_norm_rules
from qir.passes.structure.fusions.regions import Regions
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.rewriting import RewriteReport, Rule, apply_rules
from qir.rewriting.edits import is_standard

__all__ = ["Fuse", "fusion_rules"]


def fusion_rules(model: Model) -> tuple[tuple[Rule, ...], ...]:
    """The rules of ``fuse`` for one model, in the stages in which they run.

    What stands for a single operator is recognised first, so that no other rule takes a part of it away.
    """
    regions = Regions(model)
    with_bias, without_bias = layer_norm_rules(regions)
    return (
        (with_bias, *activation_rules(regions)),
        (without_bias,),
        rms_norm_rules(regions),
        reductions.RULES,
        (*linear.RULES, *chains.RULES),
    )


@dataclass(frozen=True)
class Fuse(Pass):
    """Fuse nodes, in the main graph, in bodies and in functions. The rules, by the names that ``only`` takes:

    * ``conv-bn``: BatchNormalization into the Conv, ConvTranspose or Gemm before it
    * ``conv-affine``: Mul, Add, Sub, Div by one constant a channel into the Conv, ConvTranspose or Gemm before it
    * ``affine-conv``: the same into the one after it (Add and Sub only where that pads nothing)
    * ``bn-conv``: BatchNormalization into the one after it, on the same condition
    * ``matmul-add``: MatMul of two matrices + constant bias -> Gemm
    * ``pad-conv``, ``pad-pool``: Pad with zeros into Conv; into AveragePool where that counts the padding
    * ``matmul-scale``: Mul, Div by a number, or by one a column, into the constant matrix of the MatMul before it
    * ``transpose-gemm``: Transpose of a matrix into the Gemm after it
    * ``mul-mul``, ``add-add``, ``mul-add-mul``: constants that follow one another
    * ``clip-chain``: Relu, Clip, Max, Min by numbers that follow one another -> one Relu or Clip
    * ``slice-slice``, ``concat-concat``: slices of slices, concats of concats along the same axis
    * ``global-average-pool``: ReduceMean over exactly the spatial axes of an image
    * ``reduce-squeeze``, ``reduce-unsqueeze``, ``gather-axis``: an axis dropped and put back, or kept and dropped
    * ``log-softmax``: Log(Softmax(x))
    * ``hard-swish``, ``gelu-erf``, ``gelu-tanh``, ``layer-norm``, ``rms-norm``: from their pieces, where the model's
      opset has the operator (14, 20, 20, 17, 23); before that the pieces are tagged as a region, which later passes
      leave whole; ``silu`` is always only tagged

    Edited weights are computed in float64 and rounded once to their type. What a rule had to leave is a remark.

    Before::

        %c: f32[1,8,6,6] = Conv(%x, @w)
        %n: f32[1,8,6,6] = BatchNormalization(%c, @gamma, @beta, @mean, @var)
        %y: f32[1,8,6,6] = Relu(%n)

    After::

        %n: f32[1,8,6,6] = Conv(%x, @w, @c.bias)
        %y: f32[1,8,6,6] = Relu(%n)
    """

    name: ClassVar[str] = "fuse"
    effect: ClassVar[Effect] = Effect.EXACT

    only: tuple[str, ...] = ()
    """Names of the rules to apply; all where it is empty."""

    max_rounds: int = 0
    """How long a chain of rewrites, each of a former one's result, may get before it is taken for endless, which is an
    error that names the rules; 0: 1000 and two for each node."""

    def rules(self, model: Model) -> Sequence[Rule]:
        return [rule for stage in fusion_rules(model) for rule in stage]

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        if self.max_rounds < 0:
            raise OptionError(f"fuse{{max-rounds={self.max_rounds}}}: give 0 for the default, or a positive number")
        stages = fusion_rules(model)
        names = list(dict.fromkeys(rule.name for stage in stages for rule in stage))
        for name in self.only:
            if name not in names:
                raise OptionError(f"fuse has no rule {name!r}{suggest(name, names)}: it has {', '.join(names)}")
        result = PassResult()
        for stage in stages:
            chosen = [rule for rule in stage if not self.only or rule.name in self.only]
            self._note(apply_rules(chosen, model, numbering=ctx.numbering, max_rounds=self.max_rounds or None), result)
        if not self.only or "conv-bn" in self.only:
            self._explain_norms(model, stages, result)
        result.changed = bool(result.statistics)
        return result

    def _note(self, report: RewriteReport, result: PassResult) -> None:
        for name, count in report.counts.items():
            result.count(name, count)
        for rule, node, reason in report.refusals:
            if node.op != "BatchNormalization":
                result.remarks.append(self.missed(node, f"{node.op} {node.label!r} stays ({rule.name}): {reason}"))

    def _explain_norms(self, model: Model, stages: tuple[tuple[Rule, ...], ...], result: PassResult) -> None:
        """Say of each BatchNormalization that is left why it is."""
        rule = next(rule for stage in stages for rule in stage if rule.name == "conv-bn")
        for node in model.walk():
            if node.op == "BatchNormalization" and is_standard(node):
                reason = rule.explain(node, model).partition(": ")[2].rpartition("then: ")[2]
                result.remarks.append(self.missed(node, f"BatchNormalization {node.label!r} stays: {reason}"))
