"""From matched graphs to a list of changes: graphs, interfaces, and what is told once for all its readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from qir.diff.changes import Change, ChangeKind, Detail, NodeRef, QuantizationChange, WeightChange
from qir.diff.describe import Describer, content_text
from qir.diff.folding import Note
from qir.diff.matching import longest_increasing, match_graphs
from qir.diff.neighbours import GraphMatch, explained
from qir.diff.pairs import PairComparison
from qir.diff.quantization import (
    RESULT,
    Notes,
    bias_numbers,
    folded_nodes,
    form_key,
    is_restated,
    parameter_key,
    quantization,
    quantization_change,
)
from qir.diff.regions import find_regions, pair_replacements
from qir.diff.sentences import short, value_change, value_details
from qir.diff.view import Content, Interner, Slot, View
from qir.ir import Tensor, Value

__all__ = ["Comparison"]


class Comparison:
    """Collects changes over all graphs of two models. ``changes`` by kind of place in the report, ``pairs`` of ids."""

    def __init__(self, old: Describer, new: Describer, intern: Interner, *, weights: bool) -> None:
        self.old = old
        self.new = new
        self.intern = intern
        self.weights = weights
        self.interface: list[Change] = []
        self.nodes: list[Change] = []
        self.quantized: list[Change] = []
        self.pairs: dict[int, int] = {}
        self.metadata: list[tuple[NodeRef, NodeRef, list[Detail]]] = []
        self.docs: list[tuple[NodeRef, NodeRef]] = []
        self.passing: set[int] = set()
        """``id`` of the entries of lone nodes that only pass a value on."""
        self.pieces: dict[int, object] = {}
        """By ``id`` of the entries of lone nodes that hang together with several others: which piece it is."""
        self.respelled: dict[str, list[tuple[NodeRef, NodeRef]]] = {}
        """By what they say otherwise: nodes that are the same."""
        self._quantized_ids: set[int] = set()
        """Ids of old nodes that compute in other numbers now."""
        self._weights: dict[tuple[int, int], _Weight] = {}
        self._parameters: dict[tuple[object, ...], _Parameters] = {}

    def weight_changes(self) -> list[Change]:
        """Constants with another content; the bias of an operator that was quantized is part of that entry."""
        return [self._weight_change(weight) for weight in self._weights.values() if not self._is_corrected_bias(weight)]

    def _is_corrected_bias(self, weight: _Weight) -> bool:
        return bool(weight.makers) and all(maker in self._quantized_ids for maker in weight.makers)

    def parameter_changes(self) -> list[Change]:
        """Quantization parameters, the largest relative change first. A bias that is stored anew because of its
        operator's other scales is part of their entry."""
        told = Counter((id(found.match), found.x, found.y) for found in self._parameters.values())
        made = [
            self._parameter_change(found)
            for found in self._parameters.values()
            if told[id(found.match), found.x, found.y] == 1 or not self._is_restated(found)
        ]
        return sorted(made, key=lambda c: -((c.quantization and c.quantization.scale_change) or 0.0))

    def _is_restated(self, found: _Parameters) -> bool:
        one, two = found.contents()
        return one is not None and two is not None and is_restated(one, two, found.old, found.new)

    # Graphs

    def graphs(self, a: View, b: View, outer: dict[Value, int], around: GraphMatch | None = None) -> None:
        """Compare two views, and all bodies of nodes that correspond."""
        match = match_graphs(a, b, self.intern, outer, around)
        regions = find_regions(match) if -1 in match.forward or -1 in match.backward else []
        taken_a = {n for region in regions for n in region.a}
        taken_b = {n for region in regions for n in region.b}
        pair_replacements(match, taken_a, taken_b)
        main = a.graph.owner is None and a.graph.function is None
        if main:
            self._inputs(match)
        PairComparison(self, match, regions).run()
        self._outputs(match, named=main)
        ids_a, ids_b = self.old.ids, self.new.ids
        for x, y in enumerate(match.forward):
            if y >= 0:
                self.pairs[ids_a[a.nodes[x]]] = ids_b[b.nodes[y]]
                if x in a.bodies or y in b.bodies:
                    self._bodies(match, x, y, outer)

    def _bodies(self, match: GraphMatch, x: int, y: int, outer: dict[Value, int]) -> None:
        a, b = match.a, match.b
        bodies_a, bodies_b = a.bodies.get(x, {}), b.bodies.get(y, {})
        inner = dict(outer)
        for name, old in bodies_a.items():
            for body_a, body_b in zip(old, bodies_b.get(name, ()), strict=False):
                for side, (view, body) in enumerate(((a, body_a), (b, body_b))):
                    for value in _captured_values(body):
                        if (number := view.numbers.get(value)) is not None:
                            rank = self._outer_rank(match, side, view.values[number], number)
                            if rank is not None:
                                inner[value] = rank
                self.graphs(body_a, body_b, inner, match)

    def _outer_rank(self, match: GraphMatch, side: int, content: Content, number: int) -> int | None:
        """Of a value that a body captures: equal for values that correspond."""
        if content.constant is not None:
            return None
        if content.producer < 0:
            return (match.leaf_a, match.leaf_b)[side][number]
        mate = (match.forward, match.backward)[side][content.producer]
        if mate < 0:
            return None
        name = content.producer if side == 0 else mate
        return self.intern(("outer", id(match.a.graph), name, content.index))

    # Interfaces

    def _inputs(self, match: GraphMatch) -> None:
        old, new = match.a.inputs, match.b.inputs
        moved = _moved(match.inputs)
        for i, j in match.inputs:
            details = value_details(old[i], new[j], (i, j) if (i, j) in moved else None)
            if details:
                self.interface.append(value_change(ChangeKind.INPUT_CHANGED, "input", old[i], new[j], details))
        for value in _left(old, [i for i, _ in match.inputs]):
            self.interface.append(value_change(ChangeKind.INPUT_CHANGED, "input", value, None, []))
        for value in _left(new, [j for _, j in match.inputs]):
            self.interface.append(value_change(ChangeKind.INPUT_CHANGED, "input", None, value, []))

    def _outputs(self, match: GraphMatch, *, named: bool) -> None:
        old, new = match.a.graph.outputs, match.b.graph.outputs
        moved = _moved(match.outputs)
        for i, j in match.outputs:
            details = value_details(old[i], new[j], (i, j) if (i, j) in moved else None) if named else []
            slot_a, slot_b = match.a.outputs[i], match.b.outputs[j]
            if not explained(match, slot_a.value, slot_b.value):
                one, two = (self._operand(side, match, slot) for side, slot in ((0, slot_a), (1, slot_b)))
                details.append(Detail("operand", "computed by", one, two))
            else:
                content_a, content_b = match.a.values[slot_a.value], match.b.values[slot_b.value]
                self.constants(match, content_a, content_b, None)
                if form_key(slot_a.note) != form_key(slot_b.note) and (
                    content_a.producer < 0 or content_b.producer < 0
                ):
                    details.append(Detail("type", "stored as", _stored(slot_a.note), _stored(slot_b.note)))
                elif slot_a.note is not None and slot_b.note is not None and slot_a.note_key != slot_b.note_key:
                    x, y = content_a.producer, content_b.producer
                    if form_key(slot_a.note) == form_key(slot_b.note) and x >= 0 and y >= 0:
                        self.parameters(match, x, y, RESULT, slot_a.note, slot_b.note)
            if details:
                where = match.a.where
                change = value_change(ChangeKind.OUTPUT_CHANGED, "output", old[i], new[j], details, where)
                self.interface.append(change)
        for value in _left(old, [i for i, _ in match.outputs]):
            self.interface.append(value_change(ChangeKind.OUTPUT_CHANGED, "output", value, None, [], match.a.where))
        for value in _left(new, [j for _, j in match.outputs]):
            self.interface.append(value_change(ChangeKind.OUTPUT_CHANGED, "output", None, value, [], match.a.where))

    def _operand(self, side: int, match: GraphMatch, slot: Slot) -> str:
        return (self.old, self.new)[side].operand((match.a, match.b)[side], slot)

    # Constants

    def constants(self, match: GraphMatch, old: Content, new: Content, reader: tuple[int, int] | None) -> None:
        """Take down that a constant holds something else."""
        if old.constant is None or new.constant is None or old.key == new.key:
            return
        key = (id(old.constant), id(new.constant))
        weight = self._weights.get(key)
        if weight is None:
            weight = self._weights[key] = _Weight(old, new, match.a.where)
        if reader is not None:
            weight.makers.append(self._biased(match, reader[0]))
            weight.readers.append((self.old.ref(match.a, reader[0]), self.new.ref(match.b, reader[1])))

    def _biased(self, match: GraphMatch, x: int) -> int:
        """The id of the node whose result this one adds a constant to, its own if it may have a bias; -1: none."""
        view = match.a
        if view.ops[x] != ("", "Add", ""):
            return self.old.id(view.nodes[x])
        producers = [view.values[slot.value].producer for slot in view.slots[x]]
        return next((self.old.id(view.nodes[p]) for p in producers if p >= 0), -1)

    def quantized_node(self, match: GraphMatch, x: int) -> None:
        self._quantized_ids.add(self.old.id(match.a.nodes[x]))

    def parameters(self, match: GraphMatch, x: int, y: int, index: int, old: Note, new: Note) -> None:
        """Take down that quantization parameters have other values; one entry for the readers that share them."""
        key = (*parameter_key(old), *parameter_key(new))
        found = self._parameters.get(key)
        if found is None:
            found = self._parameters[key] = _Parameters(match, x, y, index, old, new)
        found.readers.append((self.old.ref(match.a, x), self.new.ref(match.b, y)))

    def _weight_change(self, weight: _Weight) -> Change:
        record = self._weight_record(weight.old, weight.new)
        readers = [ref.name for _, ref in weight.readers[:3]]
        more = f" and {len(weight.readers) - 3} more" if len(weight.readers) > 3 else ""
        of = f" of {', '.join(readers)}{more}" if readers else ""
        types = record.type_before, record.type_after
        resized = f": {types[0]} -> {types[1]}" if types[0] != types[1] else ""
        return Change(
            ChangeKind.WEIGHT_CHANGED,
            f"weight {record.name_after or record.name_before}{of}{resized}",
            weight.where,
            short(weight.old.constant),
            short(weight.new.constant),
            tuple(ref for ref, _ in weight.readers),
            tuple(ref for _, ref in weight.readers),
            weight=record,
        )

    def _weight_record(self, old: Content, new: Content) -> WeightChange:
        constants, names, dense = [], [], []
        for content in (old, new):
            assert content.constant is not None
            constants.append(content_text(content.constant))
            names.append("" if content.value is None else content.value.name)
            dense.append(content.constant if isinstance(content.constant, Tensor) else None)
        return WeightChange(names[0], names[1], constants[0], constants[1], dense[0], dense[1], self.weights)

    def _parameter_change(self, found: _Parameters) -> Change:
        match, x, y = found.match, found.x, found.y
        contents = found.contents()
        notes_a: Notes = {found.index: (contents[0].value if contents[0] else None, found.old)}
        notes_b: Notes = {found.index: (contents[1].value if contents[1] else None, found.new)}
        weight: WeightChange | None = None
        numbers: list[np.ndarray | None] = [None, None]
        if contents[0] and contents[1] and contents[0].constant and contents[0].key != contents[1].key:
            weight = self._weight_record(contents[0], contents[1])
            numbers = [bias_numbers(c, note) for c, note in zip(contents, (found.old, found.new), strict=True) if c]
            if numbers[0] is not None and numbers[1] is not None:
                before, after = (Tensor.of(array.astype(np.float32)) for array in numbers if array is not None)
                weight = replace(weight, before=before, after=after)
        change = self._quantization(match, x, y, notes_a, notes_b)
        old, new = change.before.operands[0], change.after.operands[0]
        refs_a = tuple(ref for ref, _ in found.readers)
        refs_b = tuple(ref for _, ref in found.readers)
        details = [
            Detail("content", what, one, two)
            for what, one, two in (
                ("scale", _number(old.scale), _number(new.scale)),
                ("zero point", _number(old.zero_point), _number(new.zero_point)),
            )
            if one != two
        ]
        relative = f" ({change.scale_change:+.1%} at most)" if change.scale_change else ""
        said = ", ".join(f"{d.name} {d.before} -> {d.after}" for d in details) or "quantization parameters"
        if weight is not None:
            said += ", other numbers" if numbers[0] is not None else ", other codes"
        if not details:
            details = [Detail("content", "parameters", change.before.text, change.after.text)]
        return Change(
            ChangeKind.QUANTIZATION_CHANGED,
            f"{refs_b[0].op} {refs_b[0].name}: {old.role} {said}{relative}",
            match.a.where,
            change.before.text,
            change.after.text,
            refs_a,
            refs_b,
            tuple(details),
            weight,
            change,
        )

    def _quantization(self, match: GraphMatch, x: int, y: int, old: Notes, new: Notes) -> QuantizationChange:
        before, after = quantization(match.a, x, old), quantization(match.b, y, new)
        folded = (
            [self.old.id(node) for node in folded_nodes(old)],
            [self.new.id(node) for node in folded_nodes(new)],
        )
        return quantization_change(before, after, folded)

    quantization_of = _quantization


class _Weight:
    """A constant that holds something else, and who reads it."""

    def __init__(self, old: Content, new: Content, where: str) -> None:
        self.old, self.new, self.where = old, new, where
        self.readers: list[tuple[NodeRef, NodeRef]] = []
        self.makers: list[int] = []
        """By reader: the id of the node whose bias this would be."""


class _Parameters:
    """Quantization parameters with other values; the first reader describes them."""

    def __init__(self, match: GraphMatch, x: int, y: int, index: int, old: Note, new: Note) -> None:
        self.match, self.x, self.y, self.index, self.old, self.new = match, x, y, index, old, new
        self.readers: list[tuple[NodeRef, NodeRef]] = []

    def contents(self) -> list[Content | None]:
        """The operand on either side; None where it is a result."""
        return [
            next((view.values[slot.value] for slot in view.slots[node] if slot.index == self.index), None)
            for view, node in ((self.match.a, self.x), (self.match.b, self.y))
        ]


def _moved(pairs: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """Pairs that do not keep the order of a longest sequence of others."""
    ordered = sorted(pairs)
    keep = {ordered[index] for index in longest_increasing([j for _, j in ordered])}
    return set(pairs) - keep


def _left(values: Iterable[Value], taken: Iterable[int]) -> list[Value]:
    gone = set(taken)
    return [value for place, value in enumerate(values) if place not in gone]


def _captured_values(body: View) -> list[Value]:
    return [value for number in body.captured if (value := body.values[number].value) is not None] + [
        value for inner in body.bodies.values() for views in inner.values() for view in views
        for value in _captured_values(view)
    ]  # fmt: skip


def _stored(note: Note | None) -> str:
    return "float" if note is None else str(note.dtype)


def _number(value: float | int | None) -> str | None:
    return None if value is None else f"{value:.4g}"
