"""Structural ranks: numbers that are equal for nodes of both models in equal surroundings.

Downwards (from what a node reads), upwards (from who reads it up to the outputs) over the whole graph, and rings of a
bounded radius. Ranks are interned, not hashed, so equal means equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qir.diff.view import CAPTURED, Content, Interner, View
from qir.ir import Value

__all__ = ["body_signature", "canonical_order", "down_ranks", "ring_ranks", "up_ranks"]

Leaf = Callable[[int, Content], int]
"""The rank of a value that no node of the graph makes."""


def canonical_order(view: View, outputs: Sequence[int]) -> list[int]:
    """All nodes, each after those that it reads: depth first from these output values, operands in order.

    It depends on structure alone, never on names or on the order of the file, except for nodes that no output reads:
    those come last, by the file's order.
    """
    done = bytearray(len(view.nodes))
    order: list[int] = []
    makers, slots = view.makers, view.slots

    def visit(root: int) -> None:
        if done[root]:
            return
        done[root] = 1
        stack = [(root, 0)]
        while stack:
            node, place = stack[-1]
            operands = slots[node]
            while place < len(operands):
                producer = makers[operands[place][1]]
                place += 1
                if producer >= 0 and not done[producer]:
                    done[producer] = 1
                    stack[-1] = (node, place)
                    stack.append((producer, 0))
                    break
            else:
                order.append(node)
                stack.pop()

    for output in outputs:
        if makers[output] >= 0:
            visit(makers[output])
    if len(order) < len(view.nodes):
        for node in range(len(view.nodes)):
            if not any(view.consumers[made] for made in view.results[node]):
                visit(node)
    if len(order) < len(view.nodes):
        for node in range(len(view.nodes)):  # what is left stands on a cycle
            visit(node)
    return order


def down_ranks(
    view: View,
    order: Sequence[int],
    labels: Sequence[int],
    intern: Interner,
    leaf: Leaf,
    *,
    notes: bool,
    captured: bool,
) -> list[int]:
    """By node: equal where label and, recursively, all operands are. ``notes``: how operands are stored counts too;
    ``captured``: what bodies capture does."""
    ranks = [-1] * len(view.nodes)
    known: list[int] = [0] * len(view.values)
    for number, content in enumerate(view.values):
        if content.producer < 0:
            known[number] = leaf(number, content)
    free, all_slots, all_results, put = view.free, view.slots, view.results, intern.setdefault
    for node in order:
        slots = all_slots[node]
        key: tuple[int, ...]
        if len(slots) == 1 and slots[0][0] < CAPTURED:
            index, value, _, note = slots[0]
            key = (labels[node], index, known[value], note if notes else 0)
        elif free[node] and slots:
            (_, one, _, note), (_, two, _, other_note) = slots
            first, second = (known[one], note if notes else 0), (known[two], other_note if notes else 0)
            # Which of the operands of a commutative node comes first says nothing.
            key = (labels[node], *first, *second) if first <= second else (labels[node], *second, *first)
        else:
            parts = [labels[node]]
            for index, value, _, note in slots:
                if captured or index < CAPTURED:
                    parts += (index, known[value], note if notes else 0)
            key = tuple(parts)
        rank = ranks[node] = put(key, len(intern))
        results = all_results[node]
        if results:
            known[results[0]] = rank
            for index in range(1, len(results)):
                known[results[index]] = intern(("result", rank, index))
    return ranks


def up_ranks(
    view: View, order: Sequence[int], labels: Sequence[int], intern: Interner, outputs: Sequence[tuple[int, int]]
) -> list[int]:
    """By node: equal where label and, recursively, all readers are. ``outputs``: (value, rank) of graph outputs.

    Within one graph no two nodes on a path to an output have the same, for each path names one node.
    """
    ranks = [-1] * len(view.nodes)
    exits: dict[int, list[int]] = {}
    for value, rank in outputs:
        exits.setdefault(value, []).append(intern(("output", rank)))
    consumers, results, put = view.consumers, view.results, intern.setdefault
    for node in reversed(order):
        made_here = results[node]
        if len(made_here) == 1 and len(readers := consumers[made_here[0]]) == 1 and made_here[0] not in exits:
            reader, slot = readers[0]  # most nodes
            ranks[node] = put((labels[node], 0, slot, ranks[reader]), len(intern))
            continue
        parts: list[tuple[int, int, int]] = []
        for index, made in enumerate(made_here):
            for reader, slot in consumers[made]:
                parts.append((index, slot, ranks[reader]))
            if made in exits:
                parts += [(index, -1, rank) for rank in exits[made]]
        if len(parts) == 1:
            ranks[node] = intern((labels[node], *parts[0]))
        else:
            parts.sort()
            ranks[node] = put((labels[node], *parts), len(intern))
    return ranks


def ring_ranks(view: View, seeds: np.ndarray, leaves: np.ndarray, radius: int) -> np.ndarray:
    """By node, 64-bit hashes of everything within ``radius`` edges, both ways. ``seeds`` by node, ``leaves`` by value
    (of those that no node of the graph makes; others are not read)."""
    count = len(view.nodes)
    edges = [
        (node, 0 if view.free[node] else slot.index, slot.value, view.values[slot.value].producer)
        for node, slots in enumerate(view.slots)
        for slot in slots
    ]
    table = np.array(edges, np.int64).reshape(-1, 4)
    reader, index, value, producer = table.T
    inner = producer >= 0
    made_index = np.array([content.index for content in view.values], np.int64)
    place = _mix(index.astype(np.uint64) * np.uint64(64) + made_index[value].astype(np.uint64))
    down = up = seeds.astype(np.uint64)
    for _ in range(radius):
        read = np.where(inner, down[np.where(inner, producer, 0)], leaves[value])
        below = np.zeros(count, np.uint64)
        np.add.at(below, reader, _mix(read ^ place))
        above = np.zeros(count, np.uint64)
        np.add.at(above, producer[inner], _mix(up[reader[inner]] ^ ~place[inner]))
        down = _mix(seeds + np.uint64(3) * below)
        up = _mix(seeds + np.uint64(5) * above)
    return _mix(down ^ _mix(up))


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection that spreads bits (the finalizer of splitmix64)."""
    x = x.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def body_signature(body: View, intern: Interner) -> tuple[int, list[Value]]:
    """A number that is equal for bodies that compute the same, and what it captures in the order of first use."""
    outputs = [slot.value for slot in body.outputs]
    order = canonical_order(body, outputs)
    captures: dict[int, int] = {}
    for node in order:
        for slot in body.slots[node]:
            _capture(body, slot.value, captures)
    for number in outputs:
        _capture(body, number, captures)
    places = {body.numbers[value]: place for place, value in enumerate(body.inputs)}

    def leaf(number: int, content: Content) -> int:
        if content.constant is not None:
            return content.key
        if number in places:
            return intern(("body input", places[number]))
        return intern(("captured", captures.get(number, -1)))

    ranks = down_ranks(body, order, body.strict, intern, leaf, notes=True, captured=True)
    results = []
    for slot in body.outputs:
        content = body.values[slot.value]
        rank = ranks[content.producer] if content.producer >= 0 else leaf(slot.value, content)
        results.append((rank, content.index, slot.note_key))
    signature = intern(("body", len(places), tuple(results), tuple(sorted(ranks))))
    values = [body.values[number].value for number in captures]
    return signature, [value for value in values if value is not None]


def _capture(body: View, number: int, captures: dict[int, int]) -> None:
    content = body.values[number]
    if content.producer < 0 and content.constant is None and number in body.captured:
        captures.setdefault(number, len(captures))
