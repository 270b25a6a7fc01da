"""Numbers for rewrites: every application of a rule takes one, so that bisection can stop a pass after the k-th."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from qir.ir import Node, Provenance
from qir.ir.provenance import flatten

__all__ = ["Application", "Numbering"]

_MOST_SOURCES = 16
_new_tuple = tuple.__new__


class Application(NamedTuple):
    """One rewrite that was made."""

    number: int
    """Its place among those of the pass, from 0."""
    rule: str
    node: str
    origins: tuple[Provenance, ...]
    """Of the nodes that were rewritten; flattened only when ``sources`` is asked, to keep a long run linear."""

    @property
    def sources(self) -> tuple[str, ...]:
        """At most 16 nodes of the imported model."""
        return tuple(flatten(self.origins, _MOST_SOURCES))


@dataclass(slots=True)
class Numbering:
    """Gives each application the next number; from ``limit`` on, none is made (bisection searches for that limit).

    ``apply_rules`` asks by itself. A pass that rewrites by hand asks before each rewrite::

        if ctx.numbering.allow("drop-identity", node):
            node.output.replace_all_uses(node.input(0))

    or, where it only knows afterwards that it did something, ``while not numbering.exhausted and (rule := ...)`` and
    then ``allow``.
    """

    limit: int | None = None
    last: Application | None = None
    """The latest application that was allowed."""
    used: int = 0

    @property
    def exhausted(self) -> bool:
        """No further application may be made."""
        return self.limit is not None and self.used >= self.limit

    def allow(self, rule: str, *nodes: Node) -> bool:
        """Whether ``rule`` may be applied to ``nodes``, the most important first; if so it has taken a number."""
        if self.exhausted:
            return False
        self.take(rule, nodes)
        return True

    def take(self, rule: str, nodes: tuple[Node, ...]) -> Application:
        """Take a number without asking for leave."""
        label = (nodes[0].name or nodes[0].label) if nodes else ""
        origins = tuple([node.provenance for node in nodes])
        self.last = last = _new_tuple(Application, (self.used, rule, label, origins))  # at half the price
        self.used += 1
        return last
