"""A matching of two graphs, and what stands around the nodes that it leaves over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from qir.diff.view import Content, View

__all__ = ["Around", "GraphMatch", "around", "explained", "problems"]

_REACH = 64
"""Nodes without a counterpart that are looked through for what lies behind them."""
_MOST_BEHIND = 256
"""The same for values."""


@dataclass(slots=True)
class GraphMatch:
    """``forward[i]``: the node of ``b`` that node i of ``a`` is, -1 for none; ``backward`` the inverse. ``inputs`` and
    ``outputs``: pairs of places in the graphs' lists. ``down_a``, ``down_b``: ranks of what nodes compute."""

    a: View
    b: View
    forward: list[int]
    backward: list[int]
    inputs: list[tuple[int, int]] = field(default_factory=list)
    outputs: list[tuple[int, int]] = field(default_factory=list)
    down_a: list[int] = field(default_factory=list)
    down_b: list[int] = field(default_factory=list)
    leaf_a: dict[int, int] = field(default_factory=dict)
    """By value: ranks of inputs and captured values, equal for those that correspond."""
    leaf_b: dict[int, int] = field(default_factory=dict)
    order_a: list[int] = field(default_factory=list)
    order_b: list[int] = field(default_factory=list)
    turned: set[int] = field(default_factory=set)
    """Commutative nodes of ``b`` whose operands the view has in the other order, that of their counterpart."""
    settled: list[bool] = field(default_factory=list)
    """By node of ``a``: see ``settle``."""
    outer: GraphMatch | None = None
    """Of bodies: that of the graphs around them."""
    exits: tuple[dict[int, int], dict[int, int]] | None = None
    """By value of either graph: the number of the pair of outputs that it is; made when first asked for."""

    def exits_of(self, side: int) -> dict[int, int]:
        """By value of one graph: the number of the pair of outputs that it is."""
        if self.exits is None:
            numbers = [{pair[side]: number for number, pair in enumerate(self.outputs)} for side in (0, 1)]
            one, two = (
                {slot.value: numbers[k][place] for place, slot in enumerate(view.outputs) if place in numbers[k]}
                for k, view in enumerate((self.a, self.b))
            )
            self.exits = one, two
        return self.exits[side]

    def settle(self, pairs: Iterable[int]) -> None:
        """Find out anew which of these nodes of ``a`` are the same as their counterpart and read the same: operands of
        pairs, equal constants, corresponding inputs, in this order and stored alike. So no more needs to be asked of
        most nodes."""
        a, b, forward, settled = self.a, self.b, self.forward, self.settled
        makers_a, makers_b, equal_a, equal_b = a.makers, b.makers, a.equal, b.equal
        values_a, values_b, slots_a, slots_b = a.values, b.values, a.slots, b.slots
        for x in pairs:
            y = forward[x]
            settled[x] = False
            if y < 0 or equal_a[x] != equal_b[y] or len(slots_a[x]) != len(slots_b[y]):
                continue
            for (index, va, _, note), (other_index, vb, _, other_note) in zip(slots_a[x], slots_b[y], strict=True):
                p = makers_a[va]
                if index != other_index or note != other_note:
                    break
                if p >= 0:
                    if forward[p] != makers_b[vb] or values_a[va].index != values_b[vb].index:
                        break
                elif makers_b[vb] >= 0 or not self._same_leaf(va, vb):
                    break
            else:
                settled[x] = True

    def _same_leaf(self, va: int, vb: int) -> bool:
        """Of values that no node makes: equal constants, or inputs that correspond."""
        one, two = self.a.values[va], self.b.values[vb]
        if one.constant is not None or two.constant is not None:
            return one.constant is not None and two.constant is not None and one.key == two.key
        return self.leaf_a[va] == self.leaf_b[vb]

    def orient(self, x: int, *, final: bool = False) -> None:
        """Exchange the operands of ``b``'s node in the view where it is commutative and they correspond the other way
        round; ``turned`` remembers. ``final``: what is not matched now was added or removed."""
        a, b, y = self.a, self.b, self.forward[x]
        (a0, a1), (b0, b1) = a.slots[x], b.slots[y]
        p, q, forward = a.makers[a0.value], a.makers[a1.value], self.forward
        if (
            p >= 0 <= q
            and forward[p] == b.makers[b0.value] >= 0 <= b.makers[b1.value] == forward[q]
            and a.values[a0.value].index == b.values[b0.value].index
            and a.values[a1.value].index == b.values[b1.value].index
        ):
            return  # the quick answer for most
        straight = self._likeness(a0.value, b0.value) + self._likeness(a1.value, b1.value)
        crossed = self._likeness(a0.value, b1.value) + self._likeness(a1.value, b0.value)
        if final and straight < 4:
            straight += 8 * (explained(self, a0.value, b0.value) + explained(self, a1.value, b1.value))
            crossed += 8 * (explained(self, a0.value, b1.value) + explained(self, a1.value, b0.value))
        if straight >= crossed:
            return
        b.slots[y] = [b1._replace(index=0), b0._replace(index=1)]
        self.turned ^= {y}

    def orient_all(self) -> None:
        """``orient`` every pair of commutative nodes."""
        free_a, free_b, settled = self.a.free, self.b.free, self.settled
        for x, y in enumerate(self.forward):
            if free_a[x] and not settled[x] and y >= 0 and free_b[y]:
                self.orient(x, final=True)

    def _likeness(self, va: int, vb: int) -> int:
        """2 for operands that correspond, 1 for constants of other contents."""
        a, b = self.a.values[va], self.b.values[vb]
        if a.constant is not None and b.constant is not None:
            return 2 if a.key == b.key else 1
        return 2 if self.same_value(va, vb) else 0

    def same_value(self, va: int, vb: int) -> bool:
        """Whether a value of ``a`` and one of ``b`` correspond: results of matched nodes, equal computations, inputs.

        Constants do where both are constants, whatever they hold.
        """
        a, b = self.a.values[va], self.b.values[vb]
        if a.producer >= 0 and b.producer >= 0:
            if a.index != b.index:
                return False
            return self.forward[a.producer] == b.producer or self.down_a[a.producer] == self.down_b[b.producer]
        if a.producer >= 0 or b.producer >= 0:
            return False
        if a.constant is not None or b.constant is not None:
            return a.constant is not None and b.constant is not None
        return self.leaf_a[va] == self.leaf_b[vb]


def problems(match: GraphMatch) -> list[tuple[list[int], list[int]]]:
    """The unmatched nodes of both graphs in groups that are connected or touch the same place of a matched node, in
    canonical order; groups with nodes of only one graph are left out."""
    union = _Union()
    for side, (view, partner) in enumerate(((match.a, match.forward), (match.b, match.backward))):
        exits = {pair[side]: number for number, pair in enumerate(match.outputs)}
        for node in [node for node, mate in enumerate(partner) if mate < 0]:
            me = (side, node)
            union.find(me)
            for slot in view.slots[node]:
                place = _place(match, side, slot.value, view.values[slot.value], partner)
                if place is not None:
                    union.join(me, place)
            for made in view.results[node]:
                for reader, index in view.consumers[made]:
                    other = partner[reader]
                    if other < 0:
                        union.join(me, (side, reader))
                    else:
                        union.join(me, ("reader", reader if side == 0 else other, index))
        for index, slot in enumerate(view.outputs):
            producer = view.makers[slot.value]
            if producer >= 0 and partner[producer] < 0 and index in exits:
                union.join((side, producer), ("output", exits[index]))
    groups: dict[object, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for side, (order, partner) in enumerate(((match.order_a, match.forward), (match.order_b, match.backward))):
        for node in [node for node in order if partner[node] < 0]:
            groups[union.find((side, node))][side].append(node)
    return [group for group in groups.values() if group[0] and group[1]]


def _place(match: GraphMatch, side: int, value: int, content: Content, partner: list[int]) -> object:
    """What an operand touches: an unmatched producer, a result of a matched one, or an input; None for a constant."""
    producer = content.producer
    if producer >= 0:
        mate = partner[producer]
        return (side, producer) if mate < 0 else ("made", _pair_name(match, side, producer), content.index)
    return ("leaf", (match.leaf_a, match.leaf_b)[side][value]) if content.constant is None else None


def _pair_name(match: GraphMatch, side: int, node: int) -> object:
    """What to call a matched node on either side: by what it computes where both compute the same, since nothing tells
    equal computations apart; else by the pair's node of ``a``."""
    x = node if side == 0 else match.backward[node]
    rank = match.down_a[x]
    return ("rank", rank) if rank == match.down_b[match.forward[x]] else x


def explained(m: GraphMatch, va: int, vb: int) -> bool:
    """Whether two operands correspond: the same value, or what stands around an added or a removed node."""
    if _corresponds(m, va, vb):
        return True
    content_a, content_b = m.a.values[va], m.b.values[vb]
    removed = content_a.producer >= 0 and m.forward[content_a.producer] < 0
    added = content_b.producer >= 0 and m.backward[content_b.producer] < 0
    if not removed and not added:
        return False
    behind_a = _behind(m.a, m.forward, va)
    behind_b = _behind(m.b, m.backward, vb)
    # Nodes that read nothing but constants may stand for anything.
    if not behind_a or not behind_b:
        return True
    return any(_corresponds(m, one, two) for one in behind_a for two in behind_b)


def _corresponds(m: GraphMatch, va: int, vb: int) -> bool:
    """The same value, or captured ones that correspond in the graphs around: what those read may have been removed."""
    if m.same_value(va, vb):
        return True
    content_a, content_b = m.a.values[va], m.b.values[vb]
    if va not in m.a.captured or vb not in m.b.captured or content_a.value is None or content_b.value is None:
        return False
    around = m.outer
    while around is not None:
        one, two = around.a.numbers.get(content_a.value), around.b.numbers.get(content_b.value)
        if one is not None and two is not None:
            return explained(around, one, two)
        around = around.outer
    return False


def _behind(view: View, partner: list[int], value: int) -> list[int]:
    """The value itself, or, where an unmatched node makes it, what that reads; past so many values, what was found."""
    found: list[int] = []
    work, seen = [value], {value}
    while work and len(seen) < _MOST_BEHIND:
        here = work.pop()
        content = view.values[here]
        if content.constant is not None:
            continue
        if content.producer < 0 or partner[content.producer] >= 0:
            found.append(here)
            continue
        for slot in view.slots[content.producer]:
            if slot.value not in seen:
                seen.add(slot.value)
                work.append(slot.value)
    return found


@dataclass(slots=True)
class Around:
    """What a set of unmatched nodes reads and is read by, directly (``near``: with the operand's place) and behind
    further unmatched nodes. Matched nodes go by the number of their pair in ``a``, so both sides compare."""

    sources: set[object] = field(default_factory=set)
    sinks: set[object] = field(default_factory=set)
    near: set[object] = field(default_factory=set)


def around(match: GraphMatch, side: int, nodes: list[int]) -> Around:
    view = (match.a, match.b)[side]
    partner = (match.forward, match.backward)[side]
    leaves = (match.leaf_a, match.leaf_b)[side]
    found = Around()
    start = set(nodes)
    work, seen = list(nodes), set(nodes)
    while work and len(seen) < len(start) + _REACH:
        here = work.pop()
        for slot in view.slots[here]:
            content = view.values[slot.value]
            producer = content.producer
            if producer < 0:
                if content.constant is None:
                    found.sources.add(("leaf", leaves[slot.value]))
                    if here in start:
                        found.near.add(("leaf", leaves[slot.value], slot.index))
            elif partner[producer] >= 0:
                name = _pair_name(match, side, producer)
                found.sources.add((name, content.index))
                if here in start:
                    found.near.add(("in", name, content.index, slot.index))
            elif producer not in seen:
                seen.add(producer)
                work.append(producer)
    exits = match.exits_of(side)
    work, seen = list(nodes), set(nodes)
    while work and len(seen) < len(start) + _REACH:
        here = work.pop()
        for made in view.results[here]:
            if made in exits:
                found.sinks.add(("output", exits[made]))
            for reader, index in view.consumers[made]:
                if partner[reader] >= 0:
                    name = reader if side == 0 else partner[reader]
                    found.sinks.add((name, index))
                    if here in start:
                        found.near.add(("out", name, index))
                elif reader not in seen:
                    seen.add(reader)
                    work.append(reader)
    return found


class _Union:
    """Disjoint sets of anything hashable."""

    def __init__(self) -> None:
        self._parent: dict[object, object] = {}

    def find(self, item: object) -> object:
        parent = self._parent
        root = parent.setdefault(item, item)
        while parent[root] is not root:
            root = parent[root]
        while parent[item] is not root:
            parent[item], item = root, parent[item]
        return root

    def join(self, one: object, two: object) -> None:
        one, two = self.find(one), self.find(two)
        if one is not two:
            self._parent[two] = one
