"""Which node of one graph is which of the other, whatever they are called and in whatever order they stand.

In this order, each step on what the steps before left over:

1. whole-graph ranks: equal upstream and downstream, then upstream, then downstream (contents of constants included);
2. propagation along edges from matched nodes: producers by operand, readers where the choice is unique;
3. the connected rests, each with the rests of the other graph that touch the same matched nodes: large ones are cut by
   runs of equal nodes (in canonical order) and by ranks that forget what constants hold, small ones aligned;
What replaces one another between the same neighbours, as a region or one for one, is found afterwards (``regions``).
Names of nodes, values and constants play no part here, but where two equal nodes would do as well.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from qir.diff.align import align, common_runs
from qir.diff.alike import alike_constants, are_alike
from qir.diff.hashing import canonical_order, down_ranks, ring_ranks, up_ranks
from qir.diff.neighbours import GraphMatch, problems
from qir.diff.refining import cost, prefer_names, refine, sort_out_twins
from qir.diff.view import CAPTURED, Content, Interner, View
from qir.ir import Value

__all__ = ["longest_increasing", "match_graphs"]

_MOST_CELLS = 4_000_000
"""Of an alignment's table: 2000 by 2000 nodes take about half a second."""
_MOST_CELLS_AGAIN = 25_000_000
"""Where weights say that the first alignment went wrong."""
_MOST_EDITS = 500
_LONG_RUN = 6
_COSTS = (0.0, 0.6, 0.9, 1.1)
"""Of pairing nodes that are equal, equal but for what constants hold, alike in operator and attributes, in operator."""
_DISCOUNT = 0.3
"""Off the cost of a pair whose constants are nearly the same: trained on, or rounded."""
_FEW_STRANGERS = 4
"""Pairs of unlike weights, from which on a second matching is tried."""
_COST_OTHER = 1.7
"""Of pairing different operators: less than leaving both alone, more than leaving one alone."""


def match_graphs(
    a: View, b: View, intern: Interner, outer: dict[Value, int], around: GraphMatch | None = None
) -> GraphMatch:
    """Steps 1 to 3. ``outer``: ranks of values of the scopes around, equal for those that correspond; ``around``: the
    matching of the graphs that hold these bodies."""
    nobody = [-1] * len(a.nodes), [-1] * len(b.nodes)
    match = GraphMatch(a, b, *nobody, settled=[False] * len(a.nodes), outer=around)
    _Matcher(match, intern, outer).run()
    return match


class _Matcher:
    def __init__(self, match: GraphMatch, intern: Interner, outer: dict[Value, int]) -> None:
        self.m = match
        self.a, self.b = match.a, match.b
        self.intern = intern
        self.outer = outer

    def run(self) -> None:
        m, a, b = self.m, self.a, self.b
        main = a.graph.owner is None and a.graph.function is None
        m.inputs = _interface_pairs(a.inputs, b.inputs, by_name=main)
        m.outputs = _interface_pairs(a.graph.outputs, b.graph.outputs, by_name=main)
        self._leaves()
        exits_a, exits_b = self._exits()
        m.order_a = canonical_order(a, [value for value, _ in exits_a])
        m.order_b = canonical_order(b, [value for value, _ in exits_b])
        m.down_a = self._down(a, m.order_a, m.leaf_a)
        m.down_b = self._down(b, m.order_b, m.leaf_b)
        up_a = up_ranks(a, m.order_a, a.equal, self.intern, exits_a)
        up_b = up_ranks(b, m.order_b, b.equal, self.intern, exits_b)
        self._pair_equal(list(zip(m.down_a, up_a, strict=True)), list(zip(m.down_b, up_b, strict=True)), several=True)
        if self._finished() and m.down_a == [m.down_b[y] for y in m.forward]:
            m.settle(range(len(a.nodes)))
            m.orient_all()
            return
        self._pair_equal(m.down_a, m.down_b)
        self._pair_equal(up_a, up_b)
        sure = list(m.forward), list(m.backward)
        self._spread(a.equal, b.equal)
        self._rests()
        m.settle(range(len(a.nodes)))
        if self._reconsider(*sure):
            m.settle(range(len(a.nodes)))
        refine(m)
        sort_out_twins(m)
        prefer_names(m)
        m.orient_all()

    # Ranks

    def _leaves(self) -> None:
        m, intern = self.m, self.intern
        for side, (view, leaf) in enumerate(((self.a, m.leaf_a), (self.b, m.leaf_b))):
            places = {pair[side]: number for number, pair in enumerate(m.inputs)}
            for place, value in enumerate(view.inputs):
                number = places.get(place)
                key = ("lone input", side, place) if number is None else ("input", number)
                leaf[view.numbers[value]] = intern(key)
            for number, content in enumerate(view.values):
                if content.producer < 0 and content.constant is None and number not in leaf:
                    value_or_none = content.value
                    rank = None if value_or_none is None else self.outer.get(value_or_none)
                    leaf[number] = intern(("lone captured", side, number)) if rank is None else rank

    def _exits(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """(value, rank) of the outputs of both graphs, those with a counterpart first and in the same order."""
        found: list[list[tuple[int, int]]] = [[], []]
        for side, view in enumerate((self.a, self.b)):
            paired = {pair[side]: number for number, pair in enumerate(self.m.outputs)}
            for pair in self.m.outputs:
                found[side].append((view.outputs[pair[side]].value, self.intern(("exit", paired[pair[side]]))))
            for place, slot in enumerate(view.outputs):
                if place not in paired:
                    found[side].append((slot.value, self.intern(("lone exit", side, place))))
        return found[0], found[1]

    def _down(self, view: View, order: list[int], leaves: dict[int, int]) -> list[int]:
        def leaf(number: int, content: Content) -> int:
            return content.key if content.constant is not None else leaves[number]

        return down_ranks(view, order, view.strict, self.intern, leaf, notes=True, captured=True)

    def _anchored_ranks(self) -> tuple[list[list[int]], list[list[int]]]:
        """Ranks down and up of both graphs that forget what constants hold and bodies do; matched nodes are landmarks
        that end the view."""
        intern, m = self.intern, self.m
        downs, ups = [], []
        exits = self._exits()
        for side, view in enumerate((self.a, self.b)):
            partner = (m.forward, m.backward)[side]
            leaves = (m.leaf_a, m.leaf_b)[side]
            order = (m.order_a, m.order_b)[side]
            numbers = [n if p >= 0 and side == 0 else p for n, p in enumerate(partner)]  # a pair is its node of a
            labels = [
                view.labels[n] if partner[n] < 0 else intern(("pair", numbers[n])) for n in range(len(view.nodes))
            ]

            def leaf(number: int, content: Content, leaves: dict[int, int] = leaves) -> int:
                return leaves[number] if content.constant is None else intern(("shape", content.shape_key))

            downs.append(down_ranks(_cut(view, partner), order, labels, intern, leaf, notes=False, captured=False))
            ups.append(up_ranks(_cut_above(view, partner), order, labels, intern, exits[side]))
        return downs, ups

    # Steps

    def _finished(self) -> bool:
        return -1 not in self.m.forward or -1 not in self.m.backward

    def _pair(self, x: int, y: int) -> None:
        self.m.forward[x] = y
        self.m.backward[y] = x

    def _pair_equal(self, ranks_a: Sequence[object], ranks_b: Sequence[object], *, several: bool = False) -> bool:
        """Pair nodes whose rank is unique on both sides; ``several``: ranks that occur equally often too, in order."""
        m = self.m
        common = set(ranks_a).intersection(ranks_b)
        if not several:
            once_a, once_b = (
                _once(ranks, order, partner, common)
                for ranks, order, partner in ((ranks_a, m.order_a, m.forward), (ranks_b, m.order_b, m.backward))
            )
            pairs = [(x, y) for rank, x in once_a.items() if x >= 0 and (y := once_b.get(rank, -1)) >= 0]
            for x, y in pairs:
                self._pair(x, y)
            return bool(pairs)
        groups_a: dict[object, list[int]] = defaultdict(list)
        groups_b: dict[object, list[int]] = defaultdict(list)
        for node in m.order_a:
            if m.forward[node] < 0 and ranks_a[node] in common:
                groups_a[ranks_a[node]].append(node)
        for node in m.order_b:
            if m.backward[node] < 0 and ranks_b[node] in common:
                groups_b[ranks_b[node]].append(node)
        found = False
        for rank, nodes_a in groups_a.items():
            nodes_b = groups_b.get(rank, ())
            if len(nodes_a) == len(nodes_b):
                for x, y in zip(nodes_a, nodes_b, strict=True):
                    self._pair(x, y)
                found = True
        return found

    def _spread(self, labels_a: list[int], labels_b: list[int]) -> None:
        """From every matched pair along its edges to nodes of equal labels."""
        m, a, b = self.m, self.a, self.b
        forward, backward, makers_a, makers_b = m.forward, m.backward, a.makers, b.makers
        work = [(x, forward[x]) for x in self._border()]

        def fits(x: int, y: int) -> bool:
            return labels_a[x] == labels_b[y] and forward[x] < 0 and backward[y] < 0

        while work:
            x, y = work.pop()
            if a.free[x] and b.free[y]:
                m.orient(x)
            slots_a, slots_b = a.slots[x], b.slots[y]
            for place, (index, va, _, _) in enumerate(slots_a):
                p = makers_a[va]
                if p < 0 or forward[p] >= 0 or index >= CAPTURED:
                    continue
                other = slots_b[place] if place < len(slots_b) else None
                if other is None or other.index != index:
                    other = next((each for each in slots_b if each.index == index), None)
                if other is None or (q := makers_b[other.value]) < 0 or not fits(p, q):
                    continue
                if a.values[va].index == b.values[other.value].index:
                    self._pair(p, q)
                    work.append((p, q))
            for made_x, made_y in zip(a.results[x], b.results[y], strict=False):
                all_a, all_b = a.consumers[made_x], b.consumers[made_y]
                if len(all_a) == len(all_b) == 1:  # most values have one reader
                    (p, place), (q, other_place) = all_a[0], all_b[0]
                    if place == other_place and fits(p, q):
                        self._pair(p, q)
                        work.append((p, q))
                    continue
                readers_a = [r for r in all_a if forward[r[0]] < 0]
                if not readers_a:
                    continue
                readers_b = [r for r in all_b if backward[r[0]] < 0]
                if not readers_b or len(readers_a) * len(readers_b) > 4096:
                    continue
                for p, place in readers_a:
                    fitting = [q for q, other_place in readers_b if place == other_place and fits(p, q)]
                    if len(fitting) != 1:
                        continue
                    rivals = [r for r, other_place in readers_a if place == other_place and fits(r, fitting[0])]
                    if len(rivals) == 1:
                        self._pair(p, fitting[0])
                        work.append((p, fitting[0]))

    def _border(self) -> list[int]:
        """Matched nodes of ``a`` beside an unmatched one on either side."""
        m = self.m
        found: dict[int, None] = {}
        for side, (view, partner) in enumerate(((self.a, m.forward), (self.b, m.backward))):
            makers, consumers = view.makers, view.consumers
            for node in [node for node, mate in enumerate(partner) if mate < 0]:
                for slot in view.slots[node]:
                    other = makers[slot[1]]
                    if other >= 0 and partner[other] >= 0:
                        found[other if side == 0 else partner[other]] = None
                for made in view.results[node]:
                    for other, _ in consumers[made]:
                        if partner[other] >= 0:
                            found[other if side == 0 else partner[other]] = None
        return list(found)

    def _rests(self) -> None:
        if self._finished():
            return
        if self._align_rests():
            self._cut_large_rests()
            self._align_rests(last=True)

    def _cut_large_rests(self) -> None:
        """Rests too large to align: landmarks by surroundings, then by runs, with contents and then without."""
        a, b = self.a, self.b
        self._pair_rings(8)
        self._spread(a.equal, b.equal)
        if not self._large():
            return
        self._pair_runs(a.equal, b.equal)
        self._spread(a.equal, b.equal)
        if not self._large():
            return
        downs, ups = self._anchored_ranks()
        self._pair_equal(list(zip(downs[0], ups[0], strict=True)), list(zip(downs[1], ups[1], strict=True)))
        self._pair_equal(downs[0], downs[1])
        self._pair_equal(ups[0], ups[1])
        self._spread(a.labels, b.labels)
        if self._large():
            self._pair_runs(a.labels, b.labels)
            self._spread(a.labels, b.labels)

    def _large(self, most: int = _MOST_CELLS) -> bool:
        return any(len(x) * len(y) > most for x, y in problems(self.m))

    def _align_rests(self, most: int = _MOST_CELLS, *, last: bool = False) -> bool:
        """Align every rest of at most that many cells; returns whether one was too large. ``last``: take large ones in
        pieces as they come."""
        large = False
        for rest_a, rest_b in problems(self.m):
            if len(rest_a) * len(rest_b) <= most:
                self._align(rest_a, rest_b)
            elif last:
                piece = 300
                for start in range(0, max(len(rest_a), len(rest_b)), piece):
                    self._align(rest_a[start : start + piece], rest_b[start : start + piece])
            else:
                large = True
        if not large:
            self._spread(self.a.labels, self.b.labels)
            self._spread(self.a.op_keys, self.b.op_keys)
        return large

    def _align(self, rest_a: list[int], rest_b: list[int]) -> None:
        if not rest_a or not rest_b:
            return
        levels_a = np.array([self._levels(self.a, node) for node in rest_a], np.int64)
        levels_b = np.array([self._levels(self.b, node) for node in rest_b], np.int64)
        alike = alike_constants(self.a, rest_a, self.b, rest_b)
        for i, j in align(levels_a, levels_b, _COSTS, _COST_OTHER, alike, _DISCOUNT):
            if levels_a[i, -1] == levels_b[j, -1]:
                self._pair(rest_a[i], rest_b[j])

    def _levels(self, view: View, node: int) -> tuple[int, ...]:
        shapes = tuple(
            (0 if view.free[node] else s.index, view.values[s.value].shape_key)
            for s in view.slots[node]
            if _is_constant(view, s.value)
        )
        return (
            view.equal[node],
            self.intern(("shapes", view.labels[node], shapes)),
            view.labels[node],
            view.op_keys[node],
        )

    def _reconsider(self, forward: list[int], backward: list[int]) -> bool:
        """Where several weights seem to have become quite other ones, align all but the sure pairs by what weights
        hold: a layer may be gone whose neighbours, trained on, look like any other to what went before. Returns whether
        that told less."""
        m = self.m
        if sum(itertools.islice(self._strangers(), _FEW_STRANGERS)) < _FEW_STRANGERS:
            return False
        nodes = [[n for n, mate in enumerate(mates) if mate < 0] for mates in (forward, backward)]
        first, told = (m.forward, m.backward), self._told(nodes)
        m.forward, m.backward = forward, backward
        if self._large(_MOST_CELLS_AGAIN):
            m.forward, m.backward = first
            return False
        self._align_rests(_MOST_CELLS_AGAIN)
        if self._told(nodes) < told:
            return True
        m.forward, m.backward = first
        return False

    def _strangers(self) -> Iterator[int]:
        """1 for each pair whose constants are of one shape and have nothing to do with each other."""
        a, b, forward = self.a, self.b, self.m.forward
        for x in [x for x, settled in enumerate(self.m.settled) if not settled]:
            y = forward[x]
            if y < 0 or a.equal[x] == b.equal[y] or a.labels[x] != b.labels[y]:
                continue
            if are_alike(a, x, b, y) is False:
                yield 1

    def _told(self, nodes: list[list[int]]) -> float:
        """What there is to tell of these nodes, less what constants that are nearly the same take off."""
        m, a, b = self.m, self.a, self.b
        near = sum(
            a.equal[x] != b.equal[y] and are_alike(a, x, b, y) is True for x in nodes[0] if (y := m.forward[x]) >= 0
        )
        return cost(m, *nodes) - _DISCOUNT * near

    def _pair_rings(self, radius: int) -> None:
        """Nodes whose surroundings of this radius occur once in either graph, where they keep the order."""
        m = self.m
        hashes = []
        for view, partner in ((self.a, m.forward), (self.b, m.backward)):
            leaves = np.array([c.key if c.constant is not None else 1 for c in view.values] or [0], np.uint64)
            ring = ring_ranks(view, np.array(view.equal, np.uint64), leaves, radius)
            hashes.append([int(h) if partner[n] < 0 else -1 for n, h in enumerate(ring)])
        places = {node: place for place, node in enumerate(m.order_b)}
        once_a, once_b = _unique(hashes[0]), _unique(hashes[1])
        pairs = [(n, once_b[h]) for n in m.order_a if (h := hashes[0][n]) >= 0 and once_a.get(h) == n and h in once_b]
        for index in longest_increasing([places[y] for _, y in pairs]):
            self._pair(*pairs[index])

    def _pair_runs(self, keys_a: Sequence[int], keys_b: Sequence[int]) -> None:
        for rest_a, rest_b in problems(self.m):
            if len(rest_a) * len(rest_b) <= _MOST_CELLS:
                continue
            runs = common_runs([keys_a[n] for n in rest_a], [keys_b[n] for n in rest_b], _LONG_RUN, _MOST_EDITS)
            for i, j, length in runs:
                for offset in range(length):
                    self._pair(rest_a[i + offset], rest_b[j + offset])


def _once(ranks: Sequence[object], order: list[int], partner: list[int], common: set[object]) -> dict[object, int]:
    """By rank, of the ``common`` ones: the one unmatched node that has it, -1 where several have."""
    found: dict[object, int] = {}
    for node in order:
        rank = ranks[node]
        if rank in common and partner[node] < 0:
            found[rank] = -1 if rank in found else node
    return found


def _is_constant(view: View, value: int) -> bool:
    return view.values[value].constant is not None


def _cut(view: View, partner: list[int]) -> View:
    """The view with matched nodes reading nothing, so that their rank is that of their pair."""
    slots = [slots if partner[node] < 0 else [] for node, slots in enumerate(view.slots)]
    return View(
        view.graph, view.where, nodes=view.nodes, slots=slots, values=view.values, results=view.results, free=view.free
    )


def _cut_above(view: View, partner: list[int]) -> View:
    """The view with matched nodes read by nobody."""
    values = view.values
    consumers = [
        readers if values[value].producer < 0 or partner[values[value].producer] < 0 else []
        for value, readers in enumerate(view.consumers)
    ]
    return View(view.graph, view.where, nodes=view.nodes, results=view.results, consumers=consumers)


def _unique(hashes: Iterable[int]) -> dict[int, int]:
    found: dict[int, int] = {}
    double: set[int] = set()
    for node, value in enumerate(hashes):
        if value >= 0 and found.setdefault(value, node) != node:
            double.add(value)
    for value in double:
        del found[value]
    return found


def longest_increasing(numbers: Sequence[int]) -> list[int]:
    """Indices of a longest increasing subsequence (patience sorting, O(n log n))."""
    from bisect import bisect_left

    tails: list[int] = []
    ends: list[int] = []
    back = [-1] * len(numbers)
    for index, number in enumerate(numbers):
        place = bisect_left(tails, number)
        if place == len(tails):
            tails.append(number)
            ends.append(index)
        else:
            tails[place], ends[place] = number, index
        back[index] = ends[place - 1] if place else -1
    chain = []
    index = ends[-1] if ends else -1
    while index >= 0:
        chain.append(index)
        index = back[index]
    return chain[::-1]


def _interface_pairs(old: Sequence[Value], new: Sequence[Value], *, by_name: bool) -> list[tuple[int, int]]:
    """Inputs or outputs that correspond: by name where names are an interface, the rest by type, then by dtype."""
    if not by_name:
        return [(i, i) for i in range(min(len(old), len(new)))]
    left, right = dict(enumerate(old)), dict(enumerate(new))
    pairs: list[tuple[int, int]] = []
    keys: tuple[Callable[[Value], object], ...] = (lambda v: v.name, lambda v: v.type, lambda v: v.dtype)
    for key in keys:
        groups: dict[object, list[int]] = defaultdict(list)
        for j, value in reversed(right.items()):
            groups[key(value)].append(j)
        for i, value in list(left.items()):
            if found := groups.get(key(value)):
                j = found.pop()
                pairs.append((i, j))
                del left[i], right[j]
    return sorted(pairs)
