"""Rules: a pattern, a check that gives a reason, and what to put in the place of a match."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any as Object

import numpy as np

from qir.errors import QirError
from qir.ir import Graph, Model, Node, Type, Value
from qir.rewriting.edits import add_constant, constant_of, is_annotated, opset_of
from qir.rewriting.patterns import OneOf, Op, Pattern
from qir.rewriting.search import Search

__all__ = ["Check", "Match", "Refused", "Replacement", "Rewrite", "RewriteError", "Rule", "makers_of"]


class RewriteError(QirError):
    """A rule's check or rewrite answered what makes no sense."""


class Match:
    """A place where a pattern fits, and the means to build what replaces it.

    ``match["x"]`` is the value bound to ``x``, ``match.node("conv")`` the node. New nodes stand before the root.
    """

    __slots__ = ("_named", "_rests", "_values", "created", "memo", "model", "nodes", "root")

    def __init__(self, root: Node, search: Search, model: Model | None) -> None:
        self.root = root
        self.model = model
        self.nodes: tuple[Node, ...] = tuple(dict.fromkeys(search.nodes))
        """The matched nodes, each once, the root first."""
        self._named = {name: node for (_, name), node in zip(search.patterns, search.nodes, strict=True) if name}
        self._values = dict(search.values)
        self._rests = dict(search.rests)
        self.created: list[Node] = []
        """What ``add`` made."""
        self.memo: dict[str, Object] = {}
        """What the check worked out and the rewrite needs."""

    @property
    def graph(self) -> Graph:
        graph = self.root.graph
        assert graph is not None, "the match's root was erased"
        return graph

    @property
    def opset(self) -> int:
        """Version of the default domain. Raises ValueError where the match was made without a model."""
        if self.model is None:
            raise ValueError("this match knows no model, and so no opset: pass the model to Rule.match or Rule.explain")
        return opset_of(self.model, self.graph)

    def __getitem__(self, name: str) -> Value:
        """The operand of that name; for the name of a node, its first result. Raises KeyError."""
        if name in self._values:
            return self._values[name]
        if name in self._named:
            return self._named[name].output
        raise KeyError(self._missing(name, (*self._values, *self._named)))

    def get(self, name: str) -> Value | None:
        """The same, None where an optional part is missing."""
        return self[name] if name in self else None

    def __contains__(self, name: str) -> bool:
        return name in self._values or name in self._named

    def array(self, name: str) -> np.ndarray:
        """The content of an operand that is a constant, as of a ``Const``. Raises KeyError, ValueError for another."""
        tensor = constant_of(self[name])
        if tensor is None:
            raise ValueError(f"{name!r} is no constant here: let a Const stand for it in the pattern")
        return tensor.numpy()

    def node(self, name: str) -> Node:
        """Raises KeyError."""
        if name not in self._named:
            raise KeyError(self._missing(name, self._named))
        return self._named[name]

    def rest(self, name: str) -> tuple[Value, ...]:
        """What a ``Rest`` of that name matched. Raises KeyError."""
        if name not in self._rests:
            raise KeyError(self._missing(name, self._rests))
        return self._rests[name]

    def _missing(self, name: str, known: Iterable[str]) -> str:
        if name in self._rests:
            return f"{name!r} is a Rest: ask match.rest({name!r})"
        if name in self._values:
            return f"{name!r} is an operand: ask match[{name!r}]"
        has = ", ".join(map(repr, known)) or "none"
        return f"nothing is called {name!r} in this match (there is {has}); match.get answers None for an absent Maybe"

    def add(
        self,
        op: str,
        inputs: Sequence[Value | None] = (),
        attributes: Mapping[str, Object] | None = None,
        *,
        outputs: int = 1,
        types: Sequence[Type | None] | None = None,
        domain: str = "",
    ) -> Node:
        """A node before the root that stands for the matched ones; its result has the root's type by default."""
        root = self.root
        if types is None:
            types = [value.type for value in root.outputs] if outputs == len(root.outputs) else []
        node = self.graph.add_node(
            op,
            inputs,
            attributes,
            outputs=outputs,
            types=types,
            domain=domain,
            before=root,
            source=reversed(self.nodes),
        )
        self.created.append(node)
        return node

    def constant(self, array: np.ndarray, hint: str) -> Value:
        """A constant that the root can read."""
        return add_constant(self.root, array, hint)


Replacement = Value | Node | Sequence[Value] | Mapping[Value, Value] | None
"""What a rewrite answers: the value in place of the root's only result, those of all its results, or the node that
makes them; a mapping from any matched values to new ones; or None where it edited the matched nodes in place."""
Rewrite = Callable[[Match], Replacement]
Check = Callable[[Match], str | None]


@dataclass(frozen=True, slots=True)
class Refused:
    """The pattern fits, but the rewrite must not be made."""

    match: Match
    reason: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Where ``pattern`` fits and ``check`` finds no reason against it, ``rewrite`` says what comes in its place.

    A rule over values that carry quantization annotations must declare ``keeps_quant``: that its result means the same
    under them. New results and operands then take over the annotations of those they stand for, where the rewrite
    writes none itself.
    """

    name: str
    pattern: Op | OneOf
    rewrite: Rewrite
    check: Check | None = None
    keeps_quant: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a pattern that does not start at an operator."""
        if len(self.root_patterns()) < len(self._alternatives()):
            raise ValueError(f"rule {self.name!r}: the root of a pattern must be an Op")

    @property
    def roots(self) -> tuple[tuple[str, str], ...]:
        """(domain, op) of each node at which a match can start."""
        found: list[tuple[str, str]] = []
        for root in self.root_patterns():
            found += [("" if root.domain == "ai.onnx" else root.domain, op) for op in root.ops]
        return tuple(dict.fromkeys(found))

    def match(self, node: Node, model: Model | None = None) -> Match | Refused | None:
        """The first match with ``node`` at its root that nothing speaks against; else the first refusal; else None."""
        assert node.graph is not None, "an erased node cannot be matched"
        makers = makers_of(node)
        roots = [root for root in self.root_patterns() if node.op in root.ops and root.fed_by(makers, node)]
        return self.search(node, model, roots, Search(node.graph)) if roots else None

    def explain(self, node: Node, model: Model | None = None) -> str:
        """One line on how far the best match with ``node`` at its root gets, and where it stops."""
        if node.graph is None:
            return f"rule {self.name!r}: the node was erased"
        search = Search(node.graph, traced=True)
        where = f"rule {self.name!r} at {node.op} {node.label!r}"
        try:
            found = self.search(node, model, self.root_patterns(), search)
        except QirError:
            raise
        except Exception as error:  # the author's code: that it raises is the answer
            return f"{where}: a condition or its check raised {type(error).__name__}: {error}"
        if isinstance(found, Match):
            note = "; it carries quantization annotations, so it is left alone"
            return f"{where}: matches{note if not self.keeps_quant and any(map(is_annotated, found.nodes)) else ''}"
        if isinstance(found, Refused):
            return f"{where}: fits, but {found.reason}"
        total = max(_count(root) for root in self.root_patterns())
        reached = ", ".join(f"{n.op} {n.label!r}" for n in dict.fromkeys(search.furthest))
        so_far = f"matched {len(set(search.furthest))} of at most {total} nodes ({reached}), then: " if reached else ""
        return f"{where}: {so_far}{search.obstacle}"

    def root_patterns(self) -> Sequence[Op]:
        """The patterns of which a match has to fit one."""
        return [root for root in self._alternatives() if isinstance(root, Op)]

    def _alternatives(self) -> Sequence[Pattern]:
        return self.pattern.alternatives if isinstance(self.pattern, OneOf) else (self.pattern,)

    def search(self, node: Node, model: Model | None, roots: Sequence[Op], search: Search) -> Match | Refused | None:
        """``match`` for these of its root patterns."""
        refused: Refused | None = None
        for root in roots:
            for _ in root.match_node(node, search):
                match = Match(node, search, model)
                reason = _leak(search) or (self.check(match) if self.check is not None else None)
                if isinstance(reason, bool):
                    raise RewriteError(
                        f"rule {self.name!r} at {node.op} {node.label!r}: its check answered {reason}, where None (go "
                        "ahead) or a reason against it is due"
                    )
                if reason is None:
                    return match
                refused = refused or Refused(match, reason)
        return refused


def makers_of(node: Node) -> list[str]:
    """The operators that make the operands, "" for what no node makes: the cheapest question to a pattern."""
    makers = []
    for use in node.uses:
        maker = None if use is None else use.value.producer
        makers.append("" if maker is None else maker.op)
    return makers


def _leak(search: Search) -> str | None:
    """Why an inner node's result must not vanish: somebody outside of the match reads it."""
    inside = set(search.nodes)
    for (pattern, _), node in zip(search.patterns[1:], search.nodes[1:], strict=True):
        if isinstance(pattern, Op) and pattern.leaks:
            continue
        for value in node.outputs:
            for use in value.uses:
                if use.node not in inside:
                    who = "the graph's output" if use.node is None else f"{use.node.op} {use.node.label!r}"
                    return f"the result of {node.op} {node.label!r} is read by {who} too"
    return None


def _count(pattern: object) -> int:
    """The number of operators in a pattern, of the largest alternative."""
    seen: set[int] = set()

    def walk(item: object) -> int:
        if id(item) in seen:
            return 0
        seen.add(id(item))
        match item:
            case Op():
                return 1 + sum(map(walk, item.inputs))
            case OneOf():
                return max(map(walk, item.alternatives))
            case _:
                return walk(item.pattern) if hasattr(item, "pattern") else 0

    return walk(pattern)
