"""Local simplifications of ``canonicalize``: each looks at one node and the constants and nodes that feed it.

None asks how many readers a value has, so one walk in topological order reaches the fixpoint: what feeds a node is
simple before the node is looked at.
"""

from __future__ import annotations

from qir.ir import Node
from qir.passes.structure.simplifications import arithmetic, layout, neutral
from qir.passes.structure.simplifications.common import Scope, Simplifier
from qir.rewriting.edits import is_standard

__all__ = ["SIMPLIFIED", "Scope", "simplify"]

_BY_OP: dict[str, list[tuple[str, Simplifier]]] = {}
for _table in (neutral.RULES, layout.RULES, arithmetic.RULES):
    for _statistic, _ops, _function in _table:
        for _op in _ops:
            _BY_OP.setdefault(_op, []).append((_statistic, _function))
SIMPLIFIED = frozenset(_BY_OP)
"""The ops for which there is a simplification."""


def simplify(node: Node, scope: Scope) -> str | None:
    """Apply the first simplification that fits; the name of its statistic, None where none does."""
    if not is_standard(node) or not node.is_read:  # dead, perhaps by the last one
        return None
    for statistic, function in _BY_OP.get(node.op, ()):
        if function(node, scope):
            return statistic
    return None
