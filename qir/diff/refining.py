"""Second thoughts: pairs that agree upstream but make their readers differ are exchanged if that leaves fewer changes.

Of two equal operators in a row one was removed, and equal computations upstream say which nothing can tell; or two
constants were exchanged, and what is computed from them seems to have moved. The readers tell.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise

from qir.diff.neighbours import GraphMatch, explained
from qir.diff.view import CAPTURED

__all__ = ["cost", "prefer_names", "refine", "sort_out_twins"]

_ROUNDS = 4
_MOST = 400
"""Nodes with differing operands that are looked at a round."""
_CONTENT = 0.6
"""What a constant with another content costs; a node that differs costs 1, and so does one without a counterpart."""
_REACH = 6
_MOST_TWINS = 32

Move = list[tuple[int, int]]
"""Pairs to make; what they were paired with before is left alone unless another of the pairs takes it. (x, -1) and
(-1, y) leave a node alone."""


def refine(m: GraphMatch) -> None:
    """Exchange pairs of the matching while that leaves fewer changes."""
    suspects = [x for x, y in enumerate(m.forward) if not m.settled[x] and y >= 0 and m.down_a[x] != m.down_b[y]]
    for _ in range(_ROUNDS):
        bad = [x for x in suspects if m.forward[x] >= 0 and not m.settled[x] and any(_unexplained(m, x))][:_MOST]
        touched: set[int] = set()
        for x in bad:
            touched |= _improve(m, x)
        if not touched:
            return
        m.settle(touched)
        suspects = [*bad, *touched]


def sort_out_twins(m: GraphMatch) -> None:
    """Exchange counterparts of nodes that read the same value, each with another constant than before, where one of the
    constants then became what other readers of it say it became."""
    a, b = m.a, m.b
    unsettled = [x for x, settled in enumerate(m.settled) if not settled]
    differing = [
        x for x in unsettled if (y := m.forward[x]) >= 0 and a.equal[x] != b.equal[y] and a.strict[x] == b.strict[y]
    ]
    became: Counter[tuple[int, int]] = Counter()
    for x in differing:
        became.update(_became(m, x, m.forward[x]))
    if not became or max(became.values()) < 2:
        return
    groups: dict[object, list[int]] = defaultdict(list)
    for x in differing:
        read = tuple((slot.index, slot.value) for slot in a.slots[x] if a.values[slot.value].constant is None)
        groups[a.strict[x], read].append(x)
    for twins in groups.values():
        for i, one in enumerate(twins[:_MOST_TWINS]):
            for two in twins[i + 1 : _MOST_TWINS]:
                y, z = m.forward[one], m.forward[two]
                straight, crossed = (
                    sum(became[pair] > 1 for x, mate in pairs for pair in _became(m, x, mate))
                    for pairs in (((one, y), (two, z)), ((one, z), (two, y)))
                )
                if crossed > straight and _gain(m, [(one, z), (two, y)]) > -0.01:
                    _apply(m, [(one, z), (two, y)])


def prefer_names(m: GraphMatch) -> None:
    """Where one of two equal nodes is gone and either would do, the one is kept whose name was kept: a last resort, and
    only where it costs nothing."""
    for side, (view, other, partner, back) in enumerate(
        ((m.a, m.b, m.forward, m.backward), (m.b, m.a, m.backward, m.forward))
    ):
        lone = [n for n, mate in enumerate(partner) if mate < 0 and view.nodes[n].name]
        if not lone or len(lone) > _MOST or -1 in back:  # with lone nodes on both sides one may replace another yet
            continue
        named = {view.nodes[n].name: n for n in lone}
        for y, node in enumerate(other.nodes):
            x, rival = named.get(node.name, -1), back[y]
            if x < 0 or rival < 0 or view.equal[x] != view.equal[rival] or view.nodes[rival].name == node.name:
                continue
            move = [(x, y), (rival, -1)] if side == 0 else [(y, x), (-1, rival)]
            if _gain(m, move) >= 0:
                _apply(m, move)


def _became(m: GraphMatch, x: int, y: int) -> list[tuple[int, int]]:
    """(content before, content after) of the constants that two nodes read at the same place."""
    one, two = (
        {slot.index: content for slot in view.slots[node] if (content := view.values[slot.value]).constant is not None}
        for view, node in ((m.a, x), (m.b, y))
    )
    return [(before.key, two[at].key) for at, before in one.items() if at in two and two[at].key != before.key]


def _unexplained(m: GraphMatch, x: int, *, both: bool = False) -> Iterator[tuple[int, int]]:
    """(value of a, value of b) of the operands of a pair that do not correspond; of a commutative one in the order that
    explains more, or in ``both``."""
    y = m.forward[x]
    if m.a.free[x] and m.b.free[y]:
        (one, two), (other_one, other_two) = ([slot.value for slot in s] for s in (m.a.slots[x], m.b.slots[y]))
        straight, crossed = (
            [pair for pair in pairs if not explained(m, *pair)]
            for pairs in (((one, other_one), (two, other_two)), ((one, other_two), (two, other_one)))
        )
        if straight and crossed:
            yield from straight + crossed if both else min(straight, crossed, key=len)
        return
    others = {slot.index: slot.value for slot in m.b.slots[y]}
    for slot in m.a.slots[x]:
        other = others.get(slot.index)
        if other is not None and slot.index < CAPTURED and not explained(m, slot.value, other):
            yield slot.value, other


def _improve(m: GraphMatch, x: int) -> set[int]:
    """Make the best move for one node with differing operands; returns the nodes of ``a`` around it, none if none
    helps."""
    if m.forward[x] < 0:
        return set()
    for va, vb in list(_unexplained(m, x, both=True)):
        best: tuple[float, Move] | None = None
        made = m.a.values[va].producer, m.b.values[vb].producer
        for move in (*_moves(m, *made), *_exchanges(m, x, made[0])):
            gain = _gain(m, move)
            if gain > 0.01 and (best is None or gain > best[0]):
                best = gain, move
        if best is not None:
            around = _around(m, best[1])[0]
            _apply(m, best[1])
            return around
    return set()


def _moves(m: GraphMatch, p: int, q: int) -> Iterator[Move]:
    """``p`` makes the operand of ``a``, ``q`` that of ``b``; -1 where no node does."""
    if p >= 0 and q >= 0 and m.a.op_keys[p] == m.b.op_keys[q]:
        mate, rival = m.forward[p], m.backward[q]
        move = [(p, q)]
        if mate >= 0 and rival >= 0 and m.b.op_keys[mate] == m.a.op_keys[rival]:
            move.append((rival, mate))
        yield move
    if p >= 0 and m.forward[p] >= 0:
        for path in _twins(m, 0, p):
            yield [(path[-1], m.forward[p]), (p, -1)]
            if len(path) > 2:  # of a row of equals the first one is gone, not the last
                yield [*((n, m.forward[last]) for last, n in pairwise(path)), (p, -1)]
    if q >= 0 and m.backward[q] >= 0:
        for path in _twins(m, 1, q):
            yield [(m.backward[q], path[-1]), (-1, q)]
            if len(path) > 2:
                yield [*((m.backward[last], n) for last, n in pairwise(path)), (-1, q)]


def _exchanges(m: GraphMatch, x: int, p: int) -> Iterator[Move]:
    """``x`` paired with what reads the counterpart of ``p``, which makes an operand of ``x``."""
    y, q = m.forward[x], m.forward[p] if p >= 0 else -1
    if q < 0:
        return
    for reader in {reader for made in m.b.results[q] for reader, _ in m.b.consumers[made][:16]} - {y}:
        rival = m.backward[reader]
        if m.b.op_keys[reader] == m.a.op_keys[x] and (rival < 0 or m.a.op_keys[rival] == m.b.op_keys[y]):
            yield [(x, reader)] if rival < 0 else [(x, reader), (rival, y)]


def _twins(m: GraphMatch, side: int, node: int) -> list[list[int]]:
    """Nodes without a counterpart near a node, with its label: the ways there, through others with that label."""
    view, partner = ((m.a, m.forward), (m.b, m.backward))[side]
    found: list[list[int]] = []
    work, seen = [[node]], {node}
    while work:
        path = work.pop(0)
        near = [view.makers[slot.value] for slot in view.slots[path[-1]]]
        near += [reader for made in view.results[path[-1]] for reader, _ in view.consumers[made][:16]]
        for other in near:
            if other < 0 or other in seen:
                continue
            seen.add(other)
            if view.strict[other] != view.strict[node]:
                continue
            if partner[other] < 0:
                found.append([*path, other])
            elif len(path) < _REACH:
                work.append([*path, other])
    return found


def _gain(m: GraphMatch, move: Move) -> float:
    """By how much a move lowers the cost of the nodes around it."""
    nodes = _around(m, move)
    before = cost(m, *nodes)
    undo = _apply(m, move)
    after = cost(m, *nodes)
    for x, y in undo[0]:
        m.forward[x] = y
    for y, x in undo[1]:
        m.backward[y] = x
    return before - after


def _around(m: GraphMatch, move: Move) -> tuple[set[int], set[int]]:
    """Nodes of either graph whose cost a move may change: those of it, their partners and all readers."""
    nodes_a = {x for x, _ in move if x >= 0} | {m.backward[y] for _, y in move if y >= 0 and m.backward[y] >= 0}
    nodes_b = {y for _, y in move if y >= 0} | {m.forward[x] for x in nodes_a if m.forward[x] >= 0}
    nodes_a |= {reader for x in nodes_a for made in m.a.results[x] for reader, _ in m.a.consumers[made][:256]}
    readers_b = {reader for y in nodes_b for made in m.b.results[y] for reader, _ in m.b.consumers[made][:256]}
    nodes_a |= {m.backward[y] for y in readers_b if m.backward[y] >= 0}
    return nodes_a, nodes_b


def _apply(m: GraphMatch, move: Move) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns what undoes it."""
    xs = {x for x, _ in move if x >= 0} | {m.backward[y] for _, y in move if y >= 0 and m.backward[y] >= 0}
    ys = {y for _, y in move if y >= 0} | {m.forward[x] for x in xs if m.forward[x] >= 0}
    undo = [(x, m.forward[x]) for x in xs], [(y, m.backward[y]) for y in ys]
    for x in xs:
        m.forward[x] = -1
    for y in ys:
        m.backward[y] = -1
    for x, y in move:
        if x >= 0 and y >= 0:
            m.forward[x], m.backward[y] = y, x
    return undo


def cost(m: GraphMatch, nodes_a: Iterable[int], nodes_b: Iterable[int]) -> float:
    """What is to be told of these nodes."""
    total = float(sum(m.backward[y] < 0 for y in nodes_b))
    for x in nodes_a:
        y = m.forward[x]
        if y < 0:
            total += 1
            continue
        free = m.a.free[x] and m.b.free[y]
        constants = {0 if free else s.index: c for s in m.b.slots[y] if (c := m.b.values[s.value]).constant is not None}
        total += m.a.labels[x] != m.b.labels[y] or any(_unexplained(m, x))
        for slot in m.a.slots[x]:
            content, other = m.a.values[slot.value], constants.get(0 if free else slot.index)
            if content.constant is not None and other is not None:
                total += _CONTENT * (other.key != content.key)
    return total
