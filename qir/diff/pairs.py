"""Nodes that correspond, compared pair by pair; the lone ones and the regions between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING

from qir.diff.changes import Change, ChangeKind, Detail, NodeRef, QuantizationChange
from qir.diff.describe import attribute_text
from qir.diff.folding import Note
from qir.diff.neighbours import GraphMatch, explained
from qir.diff.neutral import is_default_operand, node_axis, passes_on, rank_of, same_row
from qir.diff.quantization import (
    RESULT,
    form_key,
    notes_of,
)
from qir.diff.regions import Region, components
from qir.diff.sentences import say, short, types_conflict
from qir.diff.view import CAPTURED, FLATTENED, Constant, Slot, attribute_key
from qir.ir import format_type
from qir.ops.schema import schema_of

if TYPE_CHECKING:
    from qir.diff.compare import Comparison

__all__ = ["PairComparison", "metadata_details"]

_PIECE = 4
"""Lone nodes that hang together and are one entry: a layer that came or went."""
_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Min", "Max", "Where"})


class PairComparison:
    """The nodes of one pair of graphs."""

    def __init__(self, owner: Comparison, match: GraphMatch, regions: list[Region]) -> None:
        self.owner = owner
        self.m = match
        self.regions = regions
        self.region_a = {n: number for number, region in enumerate(regions) for n in region.a}
        self.region_b = {n: number for number, region in enumerate(regions) for n in region.b}
        self.retyped: set[int] = set()

    def run(self) -> None:
        m, owner = self.m, self.owner
        first_a = {min(region.a): region for region in self.regions}
        paired = {n for region in self.regions for n, _ in region.pairs}
        result_notes = self._result_notes()
        pieces = self._pieces(0), self._pieces(1)
        for x in m.order_a:
            y = m.forward[x]
            if y >= 0:
                if x not in paired:
                    self._pair(x, y, result_notes.get(x))
                self._annotations(x, y)
            elif x not in self.region_a:
                owner.nodes.append(self._lone(ChangeKind.NODE_REMOVED, 0, x, pieces[0].get(x)))
            if x in first_a:
                owner.nodes.append(self._region(first_a[x]))
        for y in m.order_b:
            if m.backward[y] < 0 and y not in self.region_b:
                owner.nodes.append(self._lone(ChangeKind.NODE_ADDED, 1, y, pieces[1].get(y)))
        for y in sorted(m.turned):
            if m.backward[y] >= 0:
                self._respelled("operands in the other order, which is the same", m.backward[y], y)

    def _pieces(self, side: int) -> dict[int, int]:
        """By lone node that hangs together with several others: the first of them."""
        partner = (self.m.forward, self.m.backward)[side]
        taken = (self.region_a, self.region_b)[side]
        lone = [n for n, mate in enumerate(partner) if mate < 0 and n not in taken]
        if len(lone) < _PIECE:
            return {}
        return {n: part[0] for part in components(self.m, side, lone) if len(part) >= _PIECE for n in part}

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
        a = m.a
        same = m.settled[x] or m.down_a[x] == m.down_b[y]
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
        if a.ops[x] != b.ops[y]:
            details.append(Detail("op", "", self.owner.old.op(a, x), self.owner.new.op(b, y)))
        if a.labels[x] != b.labels[y]:
            details += self._attributes(x, y, len(details) > 0)
        details += self._bodies(x, y)
        details += self._operands(x, y)
        return details

    def _bodies(self, x: int, y: int) -> Iterator[Detail]:
        """Bodies that have no counterpart to be compared with."""
        old, new = self.m.a.bodies.get(x, {}), self.m.b.bodies.get(y, {})
        for name in sorted(old.keys() | new.keys()):
            one, two = len(old.get(name, ())), len(new.get(name, ()))
            if one != two:
                yield Detail("attribute", name, _count_of_bodies(one), _count_of_bodies(two))

    def _attributes(self, x: int, y: int, replaced: bool) -> Iterator[Detail]:
        a, b = self.m.a, self.m.b
        old, new = a.attributes[x], b.attributes[y]
        for name in sorted(old.keys() | new.keys()):
            one, two = old.get(name), new.get(name)
            equal = one is not None and two is not None and attribute_key(one) == attribute_key(two)
            if equal and (name != "axis" or a.ops[x][1] not in FLATTENED):
                continue
            if not replaced and name == "axis" and self._same_axis(x, y):
                if not equal:
                    self._respelled("an axis counted from the other end", x, y)
            elif not replaced or (one is not None and two is not None):
                yield Detail("attribute", name, attribute_text(one), attribute_text(two))
        count_a, count_b = len(a.nodes[x].outputs), len(b.nodes[y].outputs)
        if not replaced and count_a != count_b and old.keys() == new.keys():
            yield Detail("result", "count", str(count_a), str(count_b))

    def _same_axis(self, x: int, y: int) -> bool:
        """``axis`` says the same counted from either end. Softmax before opset 13 flattened what follows its axis, so
        there only the last one is the same."""
        found: list[tuple[int, int, bool]] = []
        for describer, view, number in ((self.owner.old, self.m.a, x), (self.owner.new, self.m.b, y)):
            node = view.nodes[number]
            source, schema = node.input(0) if node.inputs else None, schema_of(node, describer.model)
            if source is None or schema is None or (spec := schema.attributes.get("axis")) is None:
                return False
            rank = rank_of(describer.type_of(source))
            default = spec.default if isinstance(spec.default, int) else None
            if rank is None and node.get("axis", default) == -1:
                found.append((0, -1, False))
                continue
            axis = node_axis(node, default, rank)
            if axis is None or rank is None:
                return False
            flattens = node.op in FLATTENED and schema.since_version < 13
            found.append((rank, axis, flattens and axis != rank - 1))
        return found[0] == found[1]

    def _respelled(self, said: str, x: int, y: int) -> None:
        refs = self.owner.old.ref(self.m.a, x), self.owner.new.ref(self.m.b, y)
        self.owner.respelled.setdefault(said, []).append(refs)

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
                    yield Detail("attribute", name, short(content_a.constant), short(content_b.constant))
                elif one.note_key == two.note_key and self._same_row(x, y, content_a.constant, content_b.constant):
                    self._respelled("a constant with another number of leading 1s in its shape", x, y)
                elif one.note_key == two.note_key:
                    owner.constants(m, content_a, content_b, (x, y))
            elif not explained(m, one.value, two.value) and not self._inside(content_a.producer, content_b.producer):
                yield Detail("operand", name, owner.old.operand(m.a, one), owner.new.operand(m.b, two))

    def _inside(self, p: int, q: int) -> bool:
        """Whether a region that was replaced holds both nodes: it says what became of their readers' operands."""
        return p >= 0 and q >= 0 and self.region_a.get(p, -1) == self.region_b.get(q, -2)

    def _same_row(self, x: int, y: int, one: Constant, two: Constant) -> bool:
        if self.m.a.ops[x] != self.m.b.ops[y] or self.m.a.ops[x][1] not in _BROADCASTING or one.shape == two.shape:
            return False
        ranks = [
            rank_of(describer.type_of(view.nodes[number].output))
            for describer, view, number in ((self.owner.old, self.m.a, x), (self.owner.new, self.m.b, y))
        ]
        return ranks[0] == ranks[1] and same_row(one, two, ranks[0])

    def _neutral(self, x: int, y: int, index: int, one: Slot | None, two: Slot | None) -> bool:
        """An operand that only one side has but that says what the default says."""
        view, node, slot = (self.m.a, x, one) if one is not None else (self.m.b, y, two)
        assert slot is not None
        return is_default_operand(view.ops[node], index, view.values[slot.value].constant)

    def _quantized(self, x: int, y: int, result: tuple[Note | None, Note | None] | None) -> QuantizationChange | None:
        """A change of form of some operand; parameters alone are taken down for an entry of their own."""
        m, owner = self.m, self.owner
        if result is None and not (m.a.noted or m.b.noted):
            return None
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
            for notes, stored in ((notes_a, result[0]), (notes_b, result[1])):
                if stored is not None:
                    notes[RESULT] = (None, stored)
        if changed:
            owner.quantized_node(m, x)
        return owner.quantization_of(m, x, y, notes_a, notes_b) if changed else None

    def _changed(self, x: int, y: int, details: list[Detail], change: QuantizationChange | None) -> Change:
        m, owner = self.m, self.owner
        old, new = owner.old.ref(m.a, x), owner.new.ref(m.b, y)
        told = [detail for detail in details if detail.aspect != "op"]  # the title begins with the operators
        said = [say(detail) for detail in told[:3]]
        if len(told) > 3:
            said.append(f"{len(told) - 3} more")
        if change is not None:
            said.append(f"{change.before.text} -> {change.after.text}")
        tail = f": {'; '.join(said)}" if said else ""
        return Change(
            ChangeKind.NODE_CHANGED,
            f"{new.op if old.op == new.op else f'{old.op} -> {new.op}'} {new.name}{tail}",
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

    def _lone(self, kind: ChangeKind, side: int, number: int, piece: int | None) -> Change:
        view, describer = ((self.m.a, self.owner.old), (self.m.b, self.owner.new))[side]
        ref, text = describer.ref(view, number), describer.text(view, number)
        after = describer.after(view, number)
        verb = "added" if side else "removed"
        title = f"{ref.op} {ref.name} {verb}{f' after {after}' if after else ''}"
        change = (
            Change(kind, title, view.where, new=(ref,), after=text)
            if side
            else Change(kind, title, view.where, old=(ref,), before=text)
        )
        if piece is not None:
            self.owner.pieces[id(change)] = (id(view), piece)
        elif passes_on(view, number, describer.type_of):
            self.owner.passing.add(id(change))
        return change

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
            if not types_conflict(old, new) or old.is_output:
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


def metadata_details(old: Mapping[str, str] | None, new: Mapping[str, str] | None, prefix: str = "") -> list[Detail]:
    before, after = old or {}, new or {}
    return [
        Detail("metadata", prefix + key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key != "qir.source"
    ]


def _parameters_differ(m: GraphMatch, x: int, y: int, index: int) -> bool:
    one = next(slot for slot in m.a.slots[x] if slot.index == index)
    two = next(slot for slot in m.b.slots[y] if slot.index == index)
    return one.note_key != two.note_key


def _region_text(refs: tuple[NodeRef, ...]) -> str:
    """``Mul+Add+Erf``; an operator three times in a row once, with its number: ``3 Unsqueeze+Concat``."""
    parts: list[tuple[int, str]] = []
    for op, run in groupby(ref.op for ref in refs):
        number = len(list(run))
        parts += [(number, f"{number} {op}")] if number > 2 else [(1, op)] * number
    more = sum(number for number, _ in parts[6:])
    return "+".join(text for _, text in parts[:6]) + (f"+{more} more" if more else "")


def _count_of_bodies(count: int) -> str | None:
    return f"{count} {'body' if count == 1 else 'bodies'}" if count else None
