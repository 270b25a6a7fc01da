"""A pass that is nothing but rewriting rules: name them, and counting, remarks and bisection come by themselves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from qir.errors import OptionError
from qir.ir import Model
from qir.pipeline.contract import Pass, PassContext, PassResult, Remark, RemarkKind
from qir.rewriting import Rule, apply_rules

__all__ = ["RewritePass"]


@dataclass(frozen=True)
class RewritePass(Pass):
    """Applies its ``rules`` everywhere until none fits. A subclass defines ``name``, ``effect`` and ``rules``.

    Each application is counted under its rule's name and has a remark, with the nodes of the user's model that it
    concerned; where a rule fits but is refused a remark says why.
    """

    @abstractmethod
    def rules(self, model: Model) -> Sequence[Rule]:
        """The rules for this model, the more important first."""

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        rules = self.rules(model)
        if not isinstance(rules, Sequence) or not all(isinstance(rule, Rule) for rule in rules):
            raise OptionError(f"rules answered {rules!r} where a list of Rules is due")
        report = apply_rules(rules, model, numbering=ctx.numbering)
        result = PassResult(changed=bool(report.applications), statistics=dict(report.counts))
        for made in report.applications:
            result.remarks.append(Remark(RemarkKind.APPLIED, self.name, made.rule, made.node, made.sources))
        for rule, node, reason in report.refusals:
            result.remarks.append(self.missed(node, f"{node.op} {node.label!r} stays ({rule.name}): {reason}"))
        return result
