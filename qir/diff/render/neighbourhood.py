"""Pictures of what changed: changed nodes of both models with their neighbours, drawn into one graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from qir.diff.changes import Change, ChangeKind, GraphDiff, ModelSide
from qir.ir import Node, Value

__all__ = ["Picture", "PictureEdge", "PictureNode", "State", "pictures", "whole_graph"]

State = Literal["same", "added", "removed", "changed"]

_DRAWN = (
    ChangeKind.NODE_ADDED,
    ChangeKind.NODE_REMOVED,
    ChangeKind.NODE_CHANGED,
    ChangeKind.REGION_REPLACED,
    ChangeKind.QUANTIZATION_CHANGED,
)
_MOST_NODES = 24
_LONGEST_NAME = 28


@dataclass(frozen=True, slots=True)
class PictureNode:
    """``key`` is unique in the picture; ``lines`` its label: operator, name."""

    key: str
    lines: tuple[str, ...]
    state: State
    kind: Literal["node", "end"] = "node"
    """``end``: an input or output of a graph."""


@dataclass(frozen=True, slots=True)
class PictureEdge:
    begin: str
    end: str
    state: Literal["same", "added", "removed"]


@dataclass(frozen=True, slots=True)
class Picture:
    """One connected neighbourhood."""

    title: str
    nodes: tuple[PictureNode, ...]
    edges: tuple[PictureEdge, ...]
    left_out: int = 0
    """Nodes that it has no room for."""


def pictures(diff: GraphDiff, most: int, most_nodes: int = _MOST_NODES) -> list[Picture]:
    """Pictures of the first changed neighbourhoods, in the order of the changes. Only-quantization entries are drawn
    where nothing else is to be drawn."""
    changes = [change for change in diff.changes if change.kind in _DRAWN]
    structural = [change for change in changes if change.kind is not ChangeKind.QUANTIZATION_CHANGED]
    merged = _Merged(diff, structural or changes)
    found: list[Picture] = []
    for cluster in merged.clusters():
        if len(found) == most:
            break
        found.append(merged.picture(cluster, most_nodes))
    return found


@dataclass(slots=True)
class _Spot:
    """A node of the merged graph: of either model, or of both."""

    key: str
    lines: tuple[str, ...]
    state: State
    kind: Literal["node", "end"] = "node"
    near: dict[str, None] = field(default_factory=dict)
    """Keys of neighbours, in order: who feeds it and whom it feeds."""


class _Merged:
    """Both models around the changes as one graph; matched nodes are one."""

    def __init__(self, diff: GraphDiff, changes: Iterable[Change]) -> None:
        self._old, self._new = diff.before, diff.after
        self._to_new = diff.pairs
        self._to_old = {new: old for old, new in diff.pairs.items()}
        self._spots: dict[str, _Spot] = {}
        self._edges: dict[tuple[str, str], set[str]] = {}
        self._touched: dict[str, Change] = {}
        for change in changes:
            for refs, side in ((change.old, self._old), (change.new, self._new)):
                for ref in refs:
                    key = self._key(side, ref.id)
                    self._touched.setdefault(key, change)
                    self._spot(side, side.node(ref.id), key)
        for key in list(self._touched):
            for side, node in self._nodes_of(key):
                self._connect(side, node, key)

    def clusters(self) -> Iterator[list[str]]:
        """Touched spots that hang together, directly or by a common neighbour, in the order of the changes."""
        seen: set[str] = set()
        for start in self._touched:
            if start in seen:
                continue
            cluster, work = [], [start]
            seen.add(start)
            while work:
                key = work.pop(0)
                if key in self._touched:
                    cluster.append(key)
                for near in self._spots[key].near:
                    if near not in seen and (key in self._touched or near in self._touched):
                        seen.add(near)
                        work.append(near)
            yield cluster

    def picture(self, cluster: list[str], most: int) -> Picture:
        keys: dict[str, None] = dict.fromkeys(cluster)
        for key in cluster:
            keys.update(self._spots[key].near)
        shown = list(keys)[:most]
        edges = [
            PictureEdge(begin, end, "same" if len(sides) == 2 else "added" if "new" in sides else "removed")
            for (begin, end), sides in self._edges.items()
            if begin in shown and end in shown and (begin in self._touched or end in self._touched)
        ]
        spots = [self._spots[key] for key in _in_order(shown, edges)]
        nodes = tuple(PictureNode(spot.key, spot.lines, spot.state, spot.kind) for spot in spots)
        first = self._touched[cluster[0]]
        more = len(cluster) - 1
        title = first.title if not more else f"{first.title} (and {more} more here)"
        left_out = len(keys) - len(shown)
        return Picture(title + (f"; {left_out} nodes not drawn" if left_out else ""), nodes, tuple(edges), left_out)

    def _key(self, side: ModelSide, id_: int) -> str:
        if side is self._new:
            return f"n{id_}"
        return f"n{self._to_new[id_]}" if id_ in self._to_new else f"o{id_}"

    def _nodes_of(self, key: str) -> Iterator[tuple[ModelSide, Node]]:
        id_ = int(key[1:])
        if key[0] == "o":
            yield self._old, self._old.node(id_)
            return
        yield self._new, self._new.node(id_)
        if id_ in self._to_old:
            yield self._old, self._old.node(self._to_old[id_])

    def _spot(self, side: ModelSide, node: Node, key: str) -> _Spot:
        if key not in self._spots:
            state: State = "same"
            if key[0] == "o":
                state = "removed"
            elif int(key[1:]) not in self._to_old:
                state = "added"
            elif key in self._touched:
                state = "changed"
            lines = _lines(node)
            if state == "changed":
                old, new = self._old.node(self._to_old[int(key[1:])]), self._new.node(int(key[1:]))
                lines = _lines(new)
                if old.op_id != new.op_id:
                    lines = (f"{old.op} → {new.op}", *lines[1:])
            self._spots[key] = _Spot(key, lines, state)
        return self._spots[key]

    def _connect(self, side: ModelSide, node: Node, key: str) -> None:
        for value in node.inputs:
            if value is not None and (source := self._source(side, value)) is not None:
                self._link(side, source, key)
        for value in node.outputs:
            for end in self._readers(side, value, set()):
                self._link(side, key, end)

    def _source(self, side: ModelSide, value: Value) -> str | None:
        """The spot that makes a value, seen through nodes that quantization folds away; None for a constant."""
        seen = 0
        while (producer := value.producer) is not None and self._is_folded(side, producer) and seen < 8:
            first = next((operand for operand in producer.inputs if operand is not None), None)
            if first is None:
                return None
            value, seen = first, seen + 1
        if producer is not None:
            if producer.op == "Constant":
                return None
            key = self._key(side, side.id(producer))
            self._spot(side, producer, key)
            return key
        if value.is_input and not value.is_initializer:
            return self._end(f"i_{value.name}", value)
        return None

    def _readers(self, side: ModelSide, value: Value, seen: set[Value]) -> Iterator[str]:
        if value in seen or len(seen) > 8:
            return
        seen.add(value)
        for reader in value.users:
            if self._is_folded(side, reader):
                for result in reader.outputs:
                    yield from self._readers(side, result, seen)
            else:
                key = self._key(side, side.id(reader))
                self._spot(side, reader, key)
                yield key
        if value.is_output:
            yield self._end(f"r_{value.name}", value)

    def _end(self, name: str, value: Value) -> str:
        key = "e" + "".join(c if c.isalnum() else f"_{ord(c)}" for c in name)
        self._spots.setdefault(key, _Spot(key, (_short(value.name),), "same", "end"))
        return key

    def _is_folded(self, side: ModelSide, node: Node) -> bool:
        """In no pair and no change: a quantizer around an operator, which its entry stands for."""
        id_ = side.id(node)
        pairs: Mapping[int, int] = self._to_new if side is self._old else self._to_old
        return id_ not in pairs and self._key(side, id_) not in self._touched

    def _link(self, side: ModelSide, begin: str, end: str) -> None:
        self._edges.setdefault((begin, end), set()).add("new" if side is self._new else "old")
        self._spots[begin].near[end] = None
        self._spots[end].near[begin] = None


def _in_order(keys: list[str], edges: list[PictureEdge]) -> list[str]:
    """Keys with what feeds before what is fed, else in the order given; where two models together make a circle, it is
    cut at its first node."""
    waiting = dict.fromkeys(keys, 0)
    after: dict[str, list[str]] = {key: [] for key in keys}
    for edge in edges:
        waiting[edge.end] += 1
        after[edge.begin].append(edge.end)
    ordered: list[str] = []
    while waiting:
        key = next((key for key, count in waiting.items() if count == 0), next(iter(waiting)))
        del waiting[key]
        ordered.append(key)
        for end in after[key]:
            if end in waiting:
                waiting[end] -= 1
    return ordered


def _lines(node: Node) -> tuple[str, ...]:
    return (node.op, _short(node.label)) if node.label else (node.op,)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else "…" + name[-(_LONGEST_NAME - 1) :]


def whole_graph(diff: GraphDiff, side: ModelSide) -> tuple[list[PictureNode], list[PictureEdge]]:
    """The main graph of one of the models, constants and folded quantizers aside; keys are those of the pictures."""
    old = side is diff.before
    to_old = {new: old_id for old_id, new in diff.pairs.items()}
    changed = {ref.id for change in diff.changes for ref in (change.old if old else change.new)}
    nodes: list[PictureNode] = []
    edges: list[PictureEdge] = []
    keys: dict[Value, str] = {}
    for value in side.model.graph.inputs:
        if not value.is_initializer:
            keys[value] = f"i{len(nodes)}"
            nodes.append(PictureNode(keys[value], (_short(value.name),), "same", "end"))
    for node in side.model.graph.nodes:
        if node.op == "Constant":
            continue
        id_ = side.id(node)
        paired = id_ in diff.pairs if old else id_ in to_old
        key = f"n{diff.pairs[id_]}" if old and paired else f"{'o' if old else 'n'}{id_}"
        if not paired and id_ not in changed:  # a quantizer that its operator's entry stands for
            source = next((keys[value] for value in node.inputs if value in keys), None)
            if source is not None:
                keys.update(dict.fromkeys(node.outputs, source))
            continue
        state: State = "changed" if id_ in changed else "same"
        if not paired:
            state = "removed" if old else "added"
        nodes.append(PictureNode(key, _lines(node), state))
        edges += [PictureEdge(keys[v], key, "same") for v in dict.fromkeys(node.inputs) if v is not None and v in keys]
        keys.update(dict.fromkeys(node.outputs, key))
    for index, value in enumerate(side.model.graph.outputs):
        if value in keys:
            nodes.append(PictureNode(f"r{index}", (_short(value.name),), "same", "end"))
            edges.append(PictureEdge(keys[value], f"r{index}", "same"))
    return nodes, edges
