"""From matched graphs to a list of changes: pair by pair, in the words of a reviewer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qir.diff.changes import Change, ChangeKind, Detail, NodeRef, QuantizationChange, WeightChange
from qir.diff.describe import Describer, content_text
from qir.diff.folding import Note
from qir.diff.matching import match_graphs
from qir.diff.neighbours import GraphMatch, explained
from qir.diff.quantization import (
    RESULT,
    Notes,
    folded_nodes,
    form_key,
    notes_of,
    parameter_key,
    quantization,
    quantization_change,
)
from qir.diff.regions import Region, find_regions, pair_replacements
from qir.diff.view import CAPTURED, Content, Interner, Slot, View, attribute_key
from qir.ir import Graph, SparseTensor, Tensor, TensorType, Value, format_type

__all__ = ["Comparison", "compare_graphs"]


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
        """Quantization parameters, the largest relative change first."""
        made = [self._parameter_change(found) for found in self._parameters.values()]
        return sorted(made, key=lambda c: -((c.quantization and c.quantization.scale_change) or 0.0))

    # Graphs

    def graphs(self, a: View, b: View, outer: dict[Value, int]) -> None:
        """Compare two views, and all bodies of nodes that correspond."""
        match = match_graphs(a, b, self.intern, outer)
        regions = find_regions(match) if -1 in match.forward or -1 in match.backward else []
        taken_a = {n for region in regions for n in region.a}
        taken_b = {n for region in regions for n in region.b}
        pair_replacements(match, taken_a, taken_b)
        main = a.graph.owner is None and a.graph.function is None
        if main:
            self._inputs(match)
        _Pairs(self, match, regions).run()
        self._outputs(match, named=main)
        for x, y in enumerate(match.forward):
            if y >= 0:
                self.pairs[self.old.id(a.nodes[x])] = self.new.id(b.nodes[y])
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
                self.graphs(body_a, body_b, inner)

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
            details = _value_details(old[i], new[j], (i, j) if (i, j) in moved else None)
            if details:
                self.interface.append(_value_change(ChangeKind.INPUT_CHANGED, "input", old[i], new[j], details))
        for value in _left(old, [i for i, _ in match.inputs]):
            self.interface.append(_value_change(ChangeKind.INPUT_CHANGED, "input", value, None, []))
        for value in _left(new, [j for _, j in match.inputs]):
            self.interface.append(_value_change(ChangeKind.INPUT_CHANGED, "input", None, value, []))

    def _outputs(self, match: GraphMatch, *, named: bool) -> None:
        old, new = match.a.graph.outputs, match.b.graph.outputs
        moved = _moved(match.outputs)
        for i, j in match.outputs:
            details = _value_details(old[i], new[j], (i, j) if (i, j) in moved else None) if named else []
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
                change = _value_change(ChangeKind.OUTPUT_CHANGED, "output", old[i], new[j], details, where)
                self.interface.append(change)
        for value in _left(old, [i for i, _ in match.outputs]):
            self.interface.append(_value_change(ChangeKind.OUTPUT_CHANGED, "output", value, None, [], match.a.where))
        for value in _left(new, [j for _, j in match.outputs]):
            self.interface.append(_value_change(ChangeKind.OUTPUT_CHANGED, "output", None, value, [], match.a.where))

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
        """The id of the node whose result this one adds a constant to, or of itself where it has a bias; -1: neither."""
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
        readers = [ref.name for ref, _ in weight.readers[:3]]
        more = f" and {len(weight.readers) - 3} more" if len(weight.readers) > 3 else ""
        of = f" of {', '.join(readers)}{more}" if readers else ""
        types = record.type_before, record.type_after
        resized = f": {types[0]} -> {types[1]}" if types[0] != types[1] else ""
        return Change(
            ChangeKind.WEIGHT_CHANGED,
            f"weight {record.name_after or record.name_before}{of}{resized}",
            weight.where,
            _short(weight.old.constant),
            _short(weight.new.constant),
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
        contents = [
            next((view.values[slot.value] for slot in view.slots[node] if slot.index == found.index), None)
            for view, node in ((match.a, x), (match.b, y))
        ]
        notes_a: Notes = {found.index: (contents[0].value if contents[0] else None, found.old)}
        notes_b: Notes = {found.index: (contents[1].value if contents[1] else None, found.new)}
        weight = None
        if contents[0] and contents[1] and contents[0].constant and contents[0].key != contents[1].key:
            weight = self._weight_record(contents[0], contents[1])
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
            said += ", other codes"
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


class _Pairs:
    """The nodes of one pair of graphs."""

    def __init__(self, owner: Comparison, match: GraphMatch, regions: list[Region]) -> None:
        self.owner = owner
        self.m = match
        self.regions = regions
        self.retyped: set[int] = set()

    def run(self) -> None:
        m, owner = self.m, self.owner
        first_a = {min(region.a): region for region in self.regions}
        in_a = {n for region in self.regions for n in region.a}
        in_b = {n for region in self.regions for n in region.b}
        paired = {n for region in self.regions for n, _ in region.pairs}
        result_notes = self._result_notes()
        for x in m.order_a:
            y = m.forward[x]
            if y >= 0:
                if x not in paired:
                    self._pair(x, y, result_notes.get(x))
                self._annotations(x, y)
            elif x not in in_a:
                owner.nodes.append(self._lone(ChangeKind.NODE_REMOVED, 0, x))
            if x in first_a:
                owner.nodes.append(self._region(first_a[x]))
        for y in m.order_b:
            if m.backward[y] < 0 and y not in in_b:
                owner.nodes.append(self._lone(ChangeKind.NODE_ADDED, 1, y))

    def _result_notes(self) -> dict[int, tuple[Note | None, Note | None]]:
        """By node of ``a``: how outputs of the graph that it makes are stored, where the two sides differ."""
        found = {}
        for i, j in self.m.outputs:
            one, two = self.m.a.outputs[i], self.m.b.outputs[j]
            producer = self.m.a.values[one.value].producer
            if producer >= 0 and one.note_key != two.note_key and self.m.same_value(one.value, two.value):
                found[producer] = (one.note, two.note)
        return found

    # One pair

    def _pair(self, x: int, y: int, result: tuple[Note | None, Note | None] | None) -> None:
        m = self.m
        a, _b = m.a, m.b
        same = m.down_a[x] == m.down_b[y]
        if not same or result is not None:
            details = self._details(x, y)
            change = self._quantized(x, y, result)
            if details:
                self.owner.nodes.append(self._changed(x, y, details, change))
            elif change is not None:
                self.owner.quantized.append(self._requantized(x, y, change))
            elif not same:
                self._types(x, y)
            if details:
                self.retyped.update(a.results[x])
        else:
            self._types(x, y)

    def _details(self, x: int, y: int) -> list[Detail]:
        a, b = self.m.a, self.m.b
        details: list[Detail] = []
        if a.labels[x] == b.labels[y] and self._reads_the_same(x, y):
            return details
        if a.ops[x] != b.ops[y]:
            details.append(Detail("op", "", self.owner.old.op(a, x), self.owner.new.op(b, y)))
        if a.labels[x] != b.labels[y]:
            details += _attribute_details(a, x, b, y, len(details) > 0)
        details += self._operands(x, y)
        return details

    def _reads_the_same(self, x: int, y: int) -> bool:
        """The quick answer for most nodes downstream of a change."""
        m = self.m
        slots_a, slots_b = m.a.slots[x], m.b.slots[y]
        if len(slots_a) != len(slots_b):
            return False
        for one, two in zip(slots_a, slots_b, strict=True):
            if one.index != two.index or one.note_key != two.note_key:
                return False
            content_a, content_b = m.a.values[one.value], m.b.values[two.value]
            if content_a.constant is not None:
                if content_a.key != content_b.key or content_b.constant is None:
                    return False
            elif not m.same_value(one.value, two.value):
                return False
        return True

    def _operands(self, x: int, y: int) -> Iterator[Detail]:
        m, owner = self.m, self.owner
        slots_a = {slot.index: slot for slot in m.a.slots[x]}
        slots_b = {slot.index: slot for slot in m.b.slots[y]}
        replaced = m.a.ops[x] != m.b.ops[y]
        for index in sorted(slots_a.keys() | slots_b.keys()):
            one, two = slots_a.get(index), slots_b.get(index)
            if index >= CAPTURED:
                continue  # the body's own comparison says what it reads
            name = owner.new.operand_name(m.b, y, index) if two is not None else owner.old.operand_name(m.a, x, index)
            if one is None or two is None:
                if replaced or self._neutral(x, y, index, one, two):
                    continue
                before = None if one is None else owner.old.operand(m.a, one)
                after = None if two is None else owner.new.operand(m.b, two)
                yield Detail("operand", name, before, after)
                continue
            content_a, content_b = m.a.values[one.value], m.b.values[two.value]
            if content_a.constant is not None and content_b.constant is not None:
                if content_a.key == content_b.key or form_key(one.note) != form_key(two.note):
                    continue
                if content_a.value is None or content_b.value is None:  # an attribute in an older opset
                    yield Detail("attribute", name, _short(content_a.constant), _short(content_b.constant))
                elif one.note_key == two.note_key:
                    owner.constants(m, content_a, content_b, (x, y))
            elif not explained(m, one.value, two.value):
                yield Detail("operand", name, owner.old.operand(m.a, one), owner.new.operand(m.b, two))

    def _neutral(self, x: int, y: int, index: int, one: Slot | None, two: Slot | None) -> bool:
        """An operand that only one side has but that says what the default says."""
        from qir.diff.neutral import is_default_operand

        view, node, slot = (self.m.a, x, one) if one is not None else (self.m.b, y, two)
        assert slot is not None
        return is_default_operand(view.ops[node], index, view.values[slot.value].constant)

    def _quantized(self, x: int, y: int, result: tuple[Note | None, Note | None] | None) -> QuantizationChange | None:
        """A change of form of some operand; parameters alone are taken down for an entry of their own."""
        m, owner = self.m, self.owner
        notes_a, notes_b = notes_of(m.a, x), notes_of(m.b, y)
        changed = False
        for index in sorted(notes_a.keys() | notes_b.keys()):
            old, new = (notes.get(index, (None, None))[1] for notes in (notes_a, notes_b))
            if form_key(old) != form_key(new):
                changed = True
        if not changed:
            for index, (_, note) in notes_a.items():
                other = notes_b[index][1]
                if _parameters_differ(m, x, y, index):
                    owner.parameters(m, x, y, index, note, other)
        if result is not None and form_key(result[0]) != form_key(result[1]):
            changed = True
            for notes, note in ((notes_a, result[0]), (notes_b, result[1])):
                if note is not None:
                    notes[RESULT] = (None, note)
        if changed:
            owner.quantized_node(m, x)
        return owner.quantization_of(m, x, y, notes_a, notes_b) if changed else None

    def _changed(self, x: int, y: int, details: list[Detail], change: QuantizationChange | None) -> Change:
        m, owner = self.m, self.owner
        old, new = owner.old.ref(m.a, x), owner.new.ref(m.b, y)
        said = "; ".join(_say(detail) for detail in details[:3])
        more = f"; {len(details) - 3} more" if len(details) > 3 else ""
        if change is not None:
            more += f"; {change.before.text} -> {change.after.text}"
        return Change(
            ChangeKind.NODE_CHANGED,
            f"{new.op if old.op == new.op else f'{old.op} -> {new.op}'} {new.name}: {said}{more}",
            m.a.where,
            owner.old.text(m.a, x),
            owner.new.text(m.b, y),
            (old,),
            (new,),
            tuple(details),
            quantization=change,
        )

    def _requantized(self, x: int, y: int, change: QuantizationChange) -> Change:
        m, owner = self.m, self.owner
        old, new = owner.old.ref(m.a, x), owner.new.ref(m.b, y)
        title = f"{m.b.ops[y][1]} {new.name}: {change.before.text} -> {change.after.text}"
        return Change(
            ChangeKind.QUANTIZATION_CHANGED, title, m.a.where, change.before.text, change.after.text,
            (old,), (new,), quantization=change,
        )  # fmt: skip

    def _lone(self, kind: ChangeKind, side: int, number: int) -> Change:
        view, describer = ((self.m.a, self.owner.old), (self.m.b, self.owner.new))[side]
        ref, text = describer.ref(view, number), describer.text(view, number)
        after = describer.after(view, number)
        verb = "added" if side else "removed"
        title = f"{ref.op} {ref.name} {verb}{f' after {after}' if after else ''}"
        nodes = {"new": (ref,), "after": text} if side else {"old": (ref,), "before": text}
        return Change(kind, title, view.where, **nodes)  # type: ignore[arg-type]

    def _region(self, region: Region) -> Change:
        m, owner = self.m, self.owner
        old = tuple(owner.old.ref(m.a, n) for n in region.a)
        new = tuple(owner.new.ref(m.b, n) for n in region.b)
        before, after = _region_text(old), _region_text(new) or "constant"
        name = (new or old)[0].name
        change = None
        for x, y in region.pairs:
            if change is None and (change := self._quantized(x, y, None)) is not None:
                after += f", {change.after.text}"
        if change is None and len(region.b) >= 1 and not region.pairs:
            notes = [notes_of(m.b, n) for n in region.b]
            if any(notes):
                y = region.b[next(i for i, n in enumerate(notes) if n)]
                x = region.a[0]
                change = owner.quantization_of(m, x, y, notes_of(m.a, x), notes_of(m.b, y))
                after += f", {change.after.text}"
        return Change(
            ChangeKind.REGION_REPLACED, f"{before} -> {after} ({name})", m.a.where, before, after, old, new,
            quantization=change,
        )  # fmt: skip

    # What a pair carries along

    def _types(self, x: int, y: int) -> None:
        """A result of another type, where nothing upstream explains it."""
        m = self.m
        for made_a, made_b in zip(m.a.results[x], m.b.results[y], strict=False):
            old, new = m.a.values[made_a].value, m.b.values[made_b].value
            if old is None or new is None or old.type is None or new.type is None:
                continue
            if not _types_conflict(old, new) or old.is_output:
                continue
            self.retyped.add(made_a)
            if m.down_a[x] != m.down_b[y] or any(slot.value in self.retyped for slot in m.a.slots[x]):
                continue
            ref_a, ref_b = self.owner.old.ref(m.a, x), self.owner.new.ref(m.b, y)
            one, two = format_type(old.type), format_type(new.type)
            self.owner.nodes.append(
                Change(
                    ChangeKind.TYPE_CHANGED,
                    f"{ref_b.op} {ref_b.name}: result {one} -> {two}",
                    m.a.where,
                    one,
                    two,
                    (ref_a,),
                    (ref_b,),
                    (Detail("type", new.name, one, two),),
                )
            )

    def _annotations(self, x: int, y: int) -> None:
        old, new = self.m.a.nodes[x], self.m.b.nodes[y]
        if old.metadata or new.metadata:
            details = metadata_details(old.metadata, new.metadata)
            if details:
                refs = self.owner.old.ref(self.m.a, x), self.owner.new.ref(self.m.b, y)
                self.owner.metadata.append((*refs, details))
        if old.doc != new.doc:
            self.owner.docs.append((self.owner.old.ref(self.m.a, x), self.owner.new.ref(self.m.b, y)))


def compare_graphs(comparison: Comparison, a: View, b: View) -> None:
    """The main graphs, or the bodies of one function."""
    comparison.graphs(a, b, {})


def metadata_details(old: object, new: object, prefix: str = "") -> list[Detail]:
    before = dict(old or {})  # type: ignore[call-overload]
    after = dict(new or {})  # type: ignore[call-overload]
    return [
        Detail("metadata", prefix + key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key != "qir.source"
    ]


def _attribute_details(a: View, x: int, b: View, y: int, replaced: bool) -> Iterator[Detail]:
    old, new = a.attributes[x], b.attributes[y]
    for name in sorted(old.keys() | new.keys()):
        one, two = old.get(name), new.get(name)
        if one is not None and two is not None and attribute_key(one) == attribute_key(two):
            continue
        from qir.diff.describe import attribute_text

        if not replaced or (one is not None and two is not None):
            yield Detail("attribute", name, attribute_text(one), attribute_text(two))
    count_a, count_b = len(a.nodes[x].outputs), len(b.nodes[y].outputs)
    if not replaced and count_a != count_b and old.keys() == new.keys():
        yield Detail("result", "count", str(count_a), str(count_b))


def _parameters_differ(m: GraphMatch, x: int, y: int, index: int) -> bool:
    one = next(slot for slot in m.a.slots[x] if slot.index == index)
    two = next(slot for slot in m.b.slots[y] if slot.index == index)
    return one.note_key != two.note_key


def _types_conflict(old: Value, new: Value, *, interface: bool = False) -> bool:
    """Both are known and cannot be the same. Names of symbols are no difference; a size against a symbol or nothing is
    one in a declared ``interface`` only."""
    a, b = old.type, new.type
    if not isinstance(a, TensorType) or not isinstance(b, TensorType):
        return a != b if interface else a is not None and b is not None and type(a) is not type(b)
    if a.dtype is not b.dtype:
        return True
    if a.shape is None or b.shape is None:
        return interface and (a.shape is None) != (b.shape is None)
    if len(a.shape) != len(b.shape):
        return True
    sizes = [(p, q) for p, q in zip(a.shape, b.shape, strict=True) if isinstance(p, int) or isinstance(q, int)]
    return any(p != q and (interface or (isinstance(p, int) and isinstance(q, int))) for p, q in sizes)


def _value_details(old: Value, new: Value, places: tuple[int, int] | None) -> list[Detail]:
    details = []
    if old.name != new.name:
        details.append(Detail("name", "", old.name, new.name))
    if _types_conflict(old, new, interface=True):
        details.append(Detail("type", "", format_type(old.type), format_type(new.type)))
    if places is not None:
        details.append(Detail("position", "", str(places[0]), str(places[1])))
    return details


def _value_change(
    kind: ChangeKind, word: str, old: Value | None, new: Value | None, details: list[Detail], where: str = ""
) -> Change:
    name = (new or old).name  # type: ignore[union-attr]
    texts = [None if value is None else f"{value.name}: {format_type(value.type)}" for value in (old, new)]
    if old is None or new is None:
        title = f"{word} {name} {'added' if old is None else 'removed'}"
    else:
        title = f"{word} {old.name}: {'; '.join(_say(detail) for detail in details)}"
    return Change(kind, title, where, texts[0], texts[1], details=tuple(details))


def _say(detail: Detail) -> str:
    match detail.aspect:
        case "op":
            return f"{detail.before} -> {detail.after}"
        case "name":
            return f"renamed to {detail.after}"
    name = f" {detail.name}" if detail.name else ""
    if detail.before is None:
        return f"{detail.aspect}{name} added: {detail.after}"
    if detail.after is None:
        return f"{detail.aspect}{name} removed: {detail.before}"
    return f"{detail.aspect}{name}: {detail.before} -> {detail.after}"


def _region_text(refs: tuple[NodeRef, ...]) -> str:
    ops = [ref.op for ref in refs]
    return "+".join(ops[:6]) + (f"+{len(ops) - 6} more" if len(ops) > 6 else "")


def _moved(pairs: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """Pairs that do not keep the order of a longest sequence of others."""
    from qir.diff.matching import longest_increasing

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


def _short(constant: Tensor | SparseTensor | None) -> str | None:
    return None if constant is None else content_text(constant, values=True)


def _stored(note: Note | None) -> str:
    return "float" if note is None else str(note.dtype)


def _number(value: float | int | None) -> str | None:
    return None if value is None else f"{value:.4g}"


_ = Graph
