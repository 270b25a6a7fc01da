"""Rewriting: the pattern language, rules, the worklist driver, and the small edits they are built of."""

from qir.rewriting.driver import EndlessRewriteError, RewriteError, RewriteReport, apply_rules
from qir.rewriting.numbering import Application, Numbering
from qir.rewriting.patterns import Any, Const, Maybe, OneOf, Op, Pattern, Rest
from qir.rewriting.rule import Match, Refused, Replacement, Rule

__all__ = [
    "Any",
    "Application",
    "Const",
    "EndlessRewriteError",
    "Match",
    "Maybe",
    "Numbering",
    "OneOf",
    "Op",
    "Pattern",
    "Refused",
    "Replacement",
    "Rest",
    "RewriteError",
    "RewriteReport",
    "Rule",
    "apply_rules",
]
