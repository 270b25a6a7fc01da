"""The worklist driver: applies rules until none fits, and stops when rules undo one another."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from qir.errors import QirError
from qir.ir import DerivedQuant, Graph, Model, Node, Use, UseQuantMarker, Value
from qir.rewriting.edits import is_annotated, merge_origin
from qir.rewriting.numbering import Application, Numbering
from qir.rewriting.patterns import Op
from qir.rewriting.rule import Match, Refused, Replacement, RewriteError, Rule, makers_of
from qir.rewriting.search import Search

__all__ = ["EndlessRewriteError", "RewriteError", "RewriteReport", "apply_rules"]

_REMEMBERED = 6


class EndlessRewriteError(QirError):
    """Rules undo one another's work without end."""


@dataclass(slots=True)
class RewriteReport:
    """What a run of the driver did, in order, and where a rule fitted but was refused, with the reason."""

    applications: list[Application] = field(default_factory=list)
    refusals: list[tuple[Rule, Node, str]] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for application in self.applications:
            counts[application.rule] = counts.get(application.rule, 0) + 1
        return counts


def apply_rules(
    rules: Sequence[Rule], model: Model, *, numbering: Numbering | None = None, max_rounds: int | None = None
) -> RewriteReport:
    """Apply ``rules``, the earlier first at each node, to the main graph, bodies and functions until none fits.

    Deterministic: nodes are visited in graph order; what a rewrite changed, and what reads it, is visited again. A
    chain of ``max_rounds`` rewrites (default: 1000 and two for each node of the model), each of a former one's result,
    that leave the graph no smaller is taken for endless: raises EndlessRewriteError, naming the rules.
    """
    return _Driver(rules, model, numbering or Numbering(), max_rounds).run()


class _Driver:
    def __init__(self, rules: Sequence[Rule], model: Model, numbering: Numbering, max_rounds: int | None) -> None:
        self.model = model
        self.numbering = numbering
        self.max_rounds = max_rounds
        self.rules: dict[str, list[tuple[Rule, list[Op]]]] = {}
        """By operator the rules that may start at it, each with its patterns that do."""
        self.heights: dict[str, int] = {}
        """How many nodes of a match may stand above one of an operator; ``*`` is any."""
        for rule in rules:
            patterns = rule.root_patterns()
            rule.pattern.heights(0, self.heights)
            for op in dict.fromkeys(op for pattern in patterns for op in pattern.ops):
                self.rules.setdefault(op, []).append((rule, [pattern for pattern in patterns if op in pattern.ops]))
        self.reach = {op: 1 + max(rule.pattern.depth for rule, _ in found) for op, found in self.rules.items()}
        """How far upstream of a root something may have changed that its rules see, checks a step further included."""
        self.makers = {op: _makers_for(found) for op, found in self.rules.items()}
        """Operators of which one has to make an operand of a root; empty where a rule asks for none."""
        self.furthest = max(self.reach.values(), default=0)
        self.queue: deque[Node] = deque()
        self.queued: set[Node] = set()
        self.rounds: dict[Node, int] = {}
        self.history: dict[Node, tuple[str, ...]] = {}
        self.refused: dict[tuple[str, Node], tuple[Rule, Node, str]] = {}
        self.orphans: dict[Value, None] = {}
        self.report = RewriteReport()

    def run(self) -> RewriteReport:
        size = 0
        rules = self.rules
        for node in self.model.walk():
            size += 1
            if node.op in rules:
                self.enqueue(node)
        if self.max_rounds is None:
            self.max_rounds = 1000 + 2 * size
        while self.queue:
            node = self.queue.popleft()
            if node in self.queued:  # else it was visited out of turn
                self.queued.discard(node)
                if node.graph is not None:
                    self.visit(node)
        for constant in self.orphans:
            graph = constant.graph
            if constant.is_initializer and not constant.uses and not constant.is_input and graph is not None:
                graph.remove_initializer(constant)
        self.report.refusals = [entry for entry in self.refused.values() if entry[1].graph is not None]
        return self.report

    def enqueue(self, node: Node) -> None:
        makers = self.makers.get(node.op)
        if makers is None or node in self.queued:
            return
        if makers and not self.refused and not _is_fed_by(node, makers):
            return  # before a maker is one of them, the node is woken again
        self.queued.add(node)
        self.queue.append(node)

    def hurry(self, nodes: Sequence[Node]) -> None:
        """Visit these next: a rewrite's own results first, so that one that grows without end is soon found out."""
        first = [node for node in nodes if node in self.queued]
        self.queue.extendleft(reversed(first))

    def visit(self, node: Node) -> None:
        graph = node.graph
        assert graph is not None, "an erased node is not visited"
        makers = makers_of(node)
        for rule, patterns in self.rules[node.op]:
            fitting = [pattern for pattern in patterns if pattern.fed_by(makers, node)]
            try:
                if self.apply_at(node, graph, rule, fitting):
                    return
            except QirError:
                raise
            except Exception as error:
                error.add_note(f"in rule {rule.name!r} at {node.op} {node.label!r}")
                raise

    def apply_at(self, node: Node, graph: Graph, rule: Rule, fitting: Sequence[Op]) -> bool:
        """Whether the rule rewrote something at ``node``; ``fitting`` are those of its patterns that may fit."""
        found = rule.search(node, self.model, fitting, Search(graph)) if fitting else None
        if self.refused:
            self.refused.pop((rule.name, node), None)
        if isinstance(found, Match):
            found = _guard(rule, found)
        if isinstance(found, Refused):
            self.refused[rule.name, node] = (rule, node, found.reason)
        elif found is not None and not self.numbering.exhausted:
            self.apply(rule, found)
            return True
        return False

    def apply(self, rule: Rule, match: Match) -> None:
        root = match.root
        self.report.applications.append(self.numbering.take(rule.name, match.nodes))
        rounds = max([self.rounds.get(node, 0) for node in match.nodes]) if self.rounds else 0
        history = (*self.history.get(root, ()), rule.name)[-_REMEMBERED:]
        if self.max_rounds is not None and rounds >= self.max_rounds:
            raise EndlessRewriteError(
                f"rewriting at {root.label!r} does not end: after {rounds} rounds {_still(sorted(set(history)))}"
            )
        graph, name, doc, extra = match.graph, root.name, root.doc, root.extra
        operands = [value for node in match.nodes for value in node.inputs if value is not None]
        pairs = _pairs(rule, root, rule.rewrite(match))
        if rule.keeps_quant:
            _carry_annotations(match, pairs)
        changed, readers = self.replace(match, pairs)
        erased = self.erase(match.nodes)
        if erased and len(erased) == len(match.nodes) == len(match.created) == 1:
            match.created[0].doc, match.created[0].extra = doc, extra
        if root.graph is None and pairs:
            _take_names(pairs, name, match, graph)
        grew = len(match.created) >= len(erased)
        for node in changed:
            self.rounds[node] = rounds + grew
            self.history[node] = history
        for value in operands:
            if value.is_initializer:
                self.orphans[value] = None
        self.wake([*changed, *readers], operands, graph)
        self.hurry(changed)

    def replace(self, match: Match, pairs: Mapping[Value, Value]) -> tuple[list[Node], list[Node]]:
        """Let the readers of the old results read the new; returns the new or edited nodes, and the readers."""
        changed: dict[Node, None] = dict.fromkeys(match.created)
        readers: dict[Node, None] = {}
        if not pairs:
            changed[match.root] = None
            for node in match.nodes[1:]:
                if not node.is_read:
                    merge_origin(match.root, node)
        for old, new in pairs.items():
            for use in old.uses:
                if use.node is not None:
                    readers[use.node] = None
            if new.type is None:
                new.type = old.type
            handed_out = [use for use in old.uses if use.is_graph_output]
            old.replace_all_uses(new)
            for use in handed_out:
                between = use.value.producer
                if use.value is not new and use.value is not old and between is not None:
                    for node in match.nodes:  # an Identity that hands out what cannot be an output itself
                        merge_origin(between, node)
            maker = new.producer
            if maker is not None and maker in match.nodes:
                changed[maker] = None
                new.range, new.metadata, new.doc = old.range, old.metadata, old.doc
                for node in match.nodes:
                    if node is not maker:
                        merge_origin(maker, node)
        if match.created:
            for other in match.nodes:
                if other.metadata:
                    for node in match.created:
                        node.metadata = {**other.metadata, **(node.metadata or {})}
        return [node for node in changed if node.graph is not None], list(readers)

    def erase(self, nodes: Sequence[Node]) -> list[Node]:
        """Erase the matched nodes that nobody reads any more, the root first."""
        erased: list[Node] = []
        progress = True
        while progress:
            progress = False
            for node in nodes:
                if not node.is_read and node.graph is not None and node.outputs:
                    node.erase()
                    erased.append(node)
                    progress = progress or node is not nodes[0]  # what feeds the root comes after it
        return erased

    def wake(self, changed: Iterable[Node], operands: Iterable[Value], graph: Graph) -> None:
        """Queue what a rewrite may have opened a match for: roots within a pattern's reach downstream of the change,
        and the last reader of an operand that lost the others."""
        frontier = {node: self.furthest - 1 for node in changed if node.graph is not None}
        for value in operands:
            uses = value.uses
            if len(uses) == 1:
                for use in uses:
                    if use.node is not None:
                        frontier[use.node] = self.furthest - 1
        # With each node goes how far downstream a root may be that sees the change through it: past a reader only
        # where a pattern has one of its kind below its root.
        farthest = dict(frontier)
        for distance in range(self.furthest):
            following: dict[Node, int] = {}
            for node, limit in frontier.items():
                if self.reach.get(node.op, 0) > distance:
                    self.enqueue(node)
                if distance:
                    limit = min(limit, distance + self.height(node))
                if limit <= distance:
                    continue
                for value in node.outputs:
                    for use in value.uses:
                        reader = use.node
                        if reader is not None and farthest.get(reader, 0) < limit:
                            farthest[reader] = following[reader] = limit
            if not following:
                break
            frontier = following
        if graph.owner is not None and graph.owner.graph is not None:
            self.enqueue(graph.owner)

    def height(self, node: Node) -> int:
        return max(self.heights.get(node.op, 0), self.heights.get("*", 0))


def _makers_for(rules: Iterable[tuple[Rule, list[Op]]]) -> frozenset[str]:
    sets = [pattern.makers for _, patterns in rules for pattern in patterns]
    return frozenset().union(*sets) if all(sets) else frozenset()


def _is_fed_by(node: Node, makers: frozenset[str]) -> bool:
    for use in node.uses:
        maker = None if use is None else use.value.producer
        if maker is not None and maker.op in makers:
            return True
    return False


def _guard(rule: Rule, match: Match) -> Match | Refused | None:
    """Refuse what the rule does not know to be careful with: quantized values, and parts of a region.

    None where the match is such a region itself: a rule has tagged it before.
    """
    if not rule.keeps_quant and any(is_annotated(node) for node in match.nodes):
        return Refused(match, "it carries quantization annotations, and the rule does not say it keeps them")
    regions = list(dict.fromkeys(node.region for node in match.nodes))
    if None not in regions and len(regions) == 1:
        return None
    region = next((region for region in regions if region is not None), None)
    if region is not None:
        return Refused(match, f"it is part of a {region.role} that has to stay whole")
    return match


def _carry_annotations(match: Match, pairs: Mapping[Value, Value]) -> None:
    """What the rewrite said nothing of goes on as it was: a new result is stored as the one it replaces, an operand is
    read by a new node as a matched one read it, and the readers of a value that was there before read it as theirs."""
    inherit = UseQuantMarker.INHERIT
    reads: dict[Value, Use] = {}
    for node in match.nodes:
        for use in node.uses:
            if use is not None and use.quant is not inherit:
                reads.setdefault(use.value, use)
    for node in match.created:
        if node.kernel is None and node.op_id == match.root.op_id:
            node.kernel = match.root.kernel
        for use in node.uses:
            known = None if use is None else reads.get(use.value)
            if use is None or known is None or use.quant is not inherit:
                continue
            if not isinstance(known.quant, DerivedQuant) or node.op_id == match.root.op_id:
                use.quant = known.quant
    for old, new in pairs.items():
        if new.producer in match.created:
            new.quant = new.quant or old.quant
        if new.quant != old.quant:
            for use in old.uses:
                if use.quant is inherit and use.node is not None:
                    use.quant = old.quant or UseQuantMarker.FLOAT


def _still(names: Sequence[str]) -> str:
    """What rules that go on and on have to stop."""
    if len(names) == 1:
        return f"the rule {names[0]!r} still changes it; let it leave alone what it has made"
    rules = " and ".join(map(repr, names))
    return f"the rules {rules} still change it; let one of them leave alone what the other makes"


def _pairs(rule: Rule, root: Node, replacement: Replacement) -> dict[Value, Value]:
    match replacement:
        case None:
            return {}
        case Mapping():
            return dict(replacement)
        case Value():
            values: Sequence[Value] = (replacement,)
        case Node():
            values = replacement.outputs
        case _:
            values = replacement
    if not isinstance(values, Sequence) or not all(isinstance(value, Value) for value in values):
        wrong = f"{replacement!r} where a value, a node or a list of values is due"
    elif len(values) != len(root.outputs):
        wrong = f"{len(values)} values for {len(root.outputs)} results"
    else:
        return dict(zip(root.outputs, values, strict=True))
    raise RewriteError(f"rule {rule.name!r} at {root.op} {root.label!r}: its rewrite answered {wrong}")


def _take_names(pairs: Mapping[Value, Value], name: str, match: Match, graph: Graph) -> None:
    """What replaces a node and its results goes by their names, so that users find it."""
    for old, new in pairs.items():
        maker = new.producer
        if maker is None or (maker not in match.created and maker not in match.nodes):
            continue
        if old.name and (not new.is_output or graph.outer is not None):  # the main graph's output has its name
            kept, old.name = old.name, ""
            new.name = kept
        if maker in match.created and maker.name != name and name:
            maker.name = name
