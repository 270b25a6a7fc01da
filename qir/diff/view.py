"""One graph as the matcher sees it: operators, operands and constants by number; quantization folded, names gone.

Constant nodes are constants like initializers, trailing missing operands and attributes at their defaults are not
there, and what newer opsets take as an operand (``axes`` of Squeeze ...) is an operand in older ones too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from qir.diff.folding import Folding, Note, resolve
from qir.ir import Attribute, AttrKind, DType, Graph, Model, Node, OpId, SparseTensor, Tensor, Value
from qir.ops.schema import schema_of

__all__ = [
    "FLATTENED",
    "Constant",
    "Content",
    "Interner",
    "Slot",
    "View",
    "ViewMaker",
    "all_views",
    "attribute_key",
    "content_of",
]

Constant = Tensor | SparseTensor

CAPTURED = 1000
"""Slots from here on are values that a node's bodies capture."""


class Interner(dict[Hashable, int]):
    """Equal keys get equal numbers, in the order of their coming; shared by both models of a diff."""

    def __call__(self, key: Hashable) -> int:
        return self.setdefault(key, len(self))


class Slot(NamedTuple):
    """One operand: which (input index, or ``CAPTURED`` + n), the number of its value in the view, how it is stored
    (``note_key``: equal for notes that say the same, 0 for none)."""

    index: int  # type: ignore[assignment]  # no one looks for an operand in an operand
    value: int
    note: Note | None
    note_key: int


_slot: Callable[[tuple[int, int, Note | None, int]], Slot] = partial(tuple.__new__, Slot)
"""``Slot`` of a tuple; for the hot loop, which makes hundreds of thousands."""


@dataclass(slots=True)
class Content:
    """What is known of a value: who makes it, or which constant it is. Inputs and captured values are neither."""

    value: Value | None
    """None for a constant that is an attribute in this opset."""
    producer: int = -1
    index: int = 0
    constant: Constant | None = None
    key: int = 0
    """Of a constant: equal for equal contents."""
    shape_key: int = 0
    """Of a constant: equal for equal shapes."""


@dataclass(slots=True)
class View:
    """``nodes`` in the file's order and by number: ``ops``, ``labels`` (operator and attributes), ``strict`` (bodies
    too), ``slots``. ``values`` by number; ``outputs`` are the operands of the graph's outputs."""

    graph: Graph
    where: str
    inputs: list[Value] = field(default_factory=list)
    """Without constants that a caller may override: those are constants here."""
    nodes: list[Node] = field(default_factory=list)
    ops: list[OpId] = field(default_factory=list)
    op_keys: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    strict: list[int] = field(default_factory=list)
    equal: list[int] = field(default_factory=list)
    """By node: the same number means the same but for what is read that is no constant."""
    attributes: list[dict[str, Attribute]] = field(default_factory=list)
    """Without graphs, defaults and what has become an operand."""
    slots: list[list[Slot]] = field(default_factory=list)
    values: list[Content] = field(default_factory=list)
    makers: list[int] = field(default_factory=list)
    """By value: ``producer`` of its ``Content``."""
    outputs: list[Slot] = field(default_factory=list)
    bodies: dict[int, dict[str, list[View]]] = field(default_factory=dict)
    consumers: list[list[tuple[int, int]]] = field(default_factory=list)
    """By value: (node, place) of its readers; the place is the operand's index, 0 for both of a commutative node."""
    free: bytearray = field(default_factory=bytearray)
    """By node: whether its two operands may stand in any order."""
    captured: set[int] = field(default_factory=set)
    """Values of scopes around this graph."""
    numbers: dict[Value, int] = field(default_factory=dict)
    results: list[list[int]] = field(default_factory=list)
    """By node: the values that it makes."""
    noted: bool = False
    """Whether any operand carries a note."""


# Attributes that later opsets made operands: the operator, its attribute, the operand's index.
_BECAME_OPERANDS: dict[str, dict[str, int]] = {
    "Clip": {"min": 1, "max": 2},
    "Dropout": {"ratio": 1},
    "Pad": {"pads": 1, "value": 2},
    "Slice": {"starts": 1, "ends": 2, "axes": 3},
    "Split": {"split": 1},
    "Squeeze": {"axes": 1},
    "TopK": {"k": 1},
    "Unsqueeze": {"axes": 1},
    "Upsample": {"scales": 1},
    **{f"Reduce{kind}": {"axes": 1} for kind in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum")},
    **{f"Reduce{kind}": {"axes": 1} for kind in ("LogSumExp", "SumSquare")},
}


FLATTENED = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
"""Before opset 13 they flattened what follows their axis, which was another one by default."""

_COMMUTATIVE = frozenset(
    {
        *("Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor"),
        *("Max", "Min", "Sum", "Mean"),
    }
)

_NO_ATTRIBUTES: dict[str, Attribute] = {}
"""Shared by all nodes that have none; nobody writes into the attributes of a view."""

# Attributes that only integer kernels have; a note says what they say.
_OF_KERNELS = frozenset({"K", "N", "bits", "block_size", "accuracy_level", "channels_last", "gather_axis"})


class ViewMaker:
    """Makes the views of one model; the interner is shared with the other model's. ``names``: operators that the views
    call otherwise, as the other model does."""

    def __init__(
        self, model: Model, folding: Folding, intern: Interner, names: Mapping[OpId, OpId] = MappingProxyType({})
    ) -> None:
        self.model = model
        self.folding = folding
        self.intern = intern
        self.names = names
        self._contents: dict[int, tuple[Constant, int, int]] = {}
        self._default_keys: dict[tuple[OpId, int], dict[str, Hashable]] = {}
        self._plain: dict[OpId, tuple[OpId, int, int, bool, bool]] = {}
        """By operator: what a node without attributes has as operator, operator's key and label, whether its operands
        may be exchanged, and whether the label depends on the number of results."""

    def view(self, graph: Graph, where: str = "") -> View:
        """The view of a graph and, inside, of its bodies."""
        view = View(graph, where)
        folding = self.folding
        view.inputs = [value for value in graph.inputs if value.const is None]
        for value in view.inputs:
            self._add_value(view, value)
        for node in graph.nodes:
            if node not in folding.gone and not (node.op == "Constant" and _is_constant(node)):
                view.nodes.append(node)
        numbers, values, results, makers = view.numbers, view.values, view.results, view.makers
        for number, node in enumerate(view.nodes):
            made = []
            for index, value in enumerate(node.outputs):
                numbers[value] = at = len(values)
                made.append(at)
                values.append(Content(value, number, index))
                makers.append(number)
            results.append(made)
        for number, node in enumerate(view.nodes):
            self._add_node(view, number, node)
        for index, value in enumerate(graph.outputs):
            view.outputs.append(self._slot(view, index, *resolve(value, folding)))
        self._index_readers(view)
        return view

    def _index_readers(self, view: View) -> None:
        """Fill ``consumers`` and ``equal``, which say again by value and by node what ``slots`` say."""
        values, makers, free, strict = view.values, view.makers, view.free, view.strict
        consumers: list[list[tuple[int, int]]] = [[] for _ in values]
        equal = list(strict)
        for number, slots in enumerate(view.slots):
            constants = None
            for index, value, _, note_key in slots:
                place = 0 if free[number] else index
                consumers[value].append((number, place))
                if makers[value] < 0 and (content := values[value]).constant is not None:
                    constants = (*(constants or ()), place, content.key, note_key)
            if constants is not None:
                equal[number] = self.intern((strict[number], constants))
        view.consumers, view.equal = consumers, equal

    def _add_node(self, view: View, number: int, node: Node) -> None:
        folded = self.folding.nodes.get(node) if self.folding.nodes else None
        if folded is None and not node.attributes and node.op not in FLATTENED:
            self._add_plain(view, node)
            return
        if folded is None:
            op = node.op_id if node.domain != "ai.onnx" else ("", node.op, node.overload)
            op = self.names.get(op, op)
            slots = self._slots(view, node)
        else:
            op, operands = folded
            slots = [self._slot(view, k, value, note) for k, (value, note) in enumerate(operands) if value is not None]
        attributes: dict[str, Attribute] = {}
        bodies: dict[str, list[View]] = {}
        keys: tuple[tuple[str, Hashable], ...] = ()
        if node.attributes or op[1] in FLATTENED:
            keys = self._attributes(view, node, op, attributes, slots, bodies)
        label = self.intern(("label", op, keys, _result_count(node)))
        view.ops.append(op)
        view.op_keys.append(self.intern(("op", op)))
        view.labels.append(label)
        view.attributes.append(attributes)
        if bodies:
            view.bodies[number] = bodies
            label = self._bodies(view, label, bodies, slots)
        view.strict.append(label)
        view.slots.append(slots)
        view.free.append(False)

    def _add_plain(self, view: View, node: Node) -> None:
        """What ``_add_node`` does for a node without attributes: most of a large graph."""
        op_id = node.op_id
        found = self._plain.get(op_id)
        if found is None or found[4]:
            op = self.names.get(op_id, op_id if op_id[0] != "ai.onnx" else ("", *op_id[1:]))
            label = self.intern(("label", op, (), _result_count(node)))
            counted = node.op in _COUNTED_RESULTS or op[0] != ""
            found = op, self.intern(("op", op)), label, op[1] in _COMMUTATIVE and op[0] == "", counted
            self._plain[op_id] = found
        op, op_key, label, commutes, _ = found
        view.ops.append(op)
        view.op_keys.append(op_key)
        view.labels.append(label)
        view.attributes.append(_NO_ATTRIBUTES)
        view.strict.append(label)
        slots = self._slots(view, node)
        view.slots.append(slots)
        view.free.append(commutes and len(slots) == 2 and slots[0][0] == 0 and slots[1][0] == 1)

    def _slots(self, view: View, node: Node) -> list[Slot]:
        """The operands of a node that is what it is."""
        alias, numbers = self.folding.alias, view.numbers
        slots = []
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            if alias and value in alias:
                slots.append(self._slot(view, index, *resolve(value, self.folding)))
            elif (number := numbers.get(value)) is not None:
                slots.append(_slot((index, number, None, 0)))
            else:
                slots.append(_slot((index, self._add_value(view, value), None, 0)))
        return slots

    def _attributes(
        self,
        view: View,
        node: Node,
        op: OpId,
        attributes: dict[str, Attribute],
        slots: list[Slot],
        bodies: dict[str, list[View]],
    ) -> tuple[tuple[str, Hashable], ...]:
        """Sort the attributes of a node into what they are: attributes, operands, bodies. Returns the former's keys."""
        defaults = self._defaults(node)
        lifted = _BECAME_OPERANDS.get(op[1], {}) if op[0] == "" else {}
        kernel = node in self.folding.nodes
        keys: list[tuple[str, Hashable]] = []
        for name, attribute in node.attributes.items():
            if attribute.kind in (AttrKind.GRAPH, AttrKind.GRAPHS) and attribute.value is not None:
                bodies[name] = [
                    self.view(body, _body_scope(view.where, node, name, index, len(attribute.graphs)))
                    for index, body in enumerate(attribute.graphs)
                ]
            elif name in lifted and not attribute.ref and len(node.uses) <= lifted[name]:
                slots.append(self._lifted(view, lifted[name], attribute))
                slots.sort(key=lambda slot: slot.index)
            elif not (kernel and name in _OF_KERNELS):
                key = attribute_key(attribute)
                if defaults.get(name) != key:
                    attributes[name] = attribute
                    keys.append((name, key))
        if op[1] in FLATTENED and op[0] == "" and (schema := schema_of(node, self.model)) is not None:
            spec = schema.attributes.get("axis")
            if "axis" not in attributes and spec is not None and isinstance(spec.default, int):
                attributes["axis"] = node.attributes.get("axis") or Attribute.of("axis", spec.default)
                keys.append(("axis", attribute_key(attributes["axis"])))
            keys.append(("flattens", schema.since_version < 13))
        keys.sort()
        return tuple(keys)

    def _bodies(self, view: View, label: int, bodies: dict[str, list[View]], slots: list[Slot]) -> int:
        """Add what the bodies capture to a node's operands; returns its label with what they compute."""
        from qir.diff.hashing import body_signature

        places: dict[Value, int] = {}
        signatures: list[Hashable] = []
        for name in sorted(bodies):
            for body in bodies[name]:
                signature, captures = body_signature(body, self.intern)
                for value in captures:
                    places.setdefault(value, len(places))
                # Which of the node's captured operands each one is belongs to what the body computes.
                signatures.append((name, signature, tuple(places[value] for value in captures)))
        slots += [self._slot(view, CAPTURED + place, value, None) for value, place in places.items()]
        return self.intern(("bodies", label, tuple(signatures)))

    def _slot(self, view: View, index: int, value: Value | None, note: Note | None) -> Slot:
        assert value is not None
        number = view.numbers.get(value)
        if number is None:
            number = self._add_value(view, value)
        if note is None:
            return Slot(index, number, None, 0)
        view.noted = True
        return Slot(index, number, note, self._note_key(note))

    def _add_value(self, view: View, value: Value) -> int:
        """An input, a constant, or a value of a scope around the graph."""
        number = view.numbers[value] = len(view.values)
        view.makers.append(-1)
        constant = content_of(value)
        if constant is None:
            view.values.append(Content(value))
            if value.graph is not view.graph:
                view.captured.add(number)
        else:
            _, key, shape_key = self.content(constant)
            view.values.append(Content(value, constant=constant, key=key, shape_key=shape_key))
        return number

    def _lifted(self, view: View, index: int, attribute: Attribute) -> Slot:
        value = attribute.value
        dtype = DType.FLOAT if attribute.kind in (AttrKind.FLOAT, AttrKind.FLOATS) else DType.INT64
        # TopK's k became a vector of one element, Clip's bounds are scalars.
        array = np.asarray([value] if attribute.name == "k" else value, dtype.numpy)
        constant, key, shape_key = self.content(Tensor.of(array, dtype))
        number = len(view.values)
        view.values.append(Content(None, constant=constant, key=key, shape_key=shape_key))
        view.makers.append(-1)
        return Slot(index, number, None, 0)

    def content(self, constant: Constant) -> tuple[Constant, int, int]:
        """The constant (kept, so that its id stays its own) with the numbers of its content and of its shape."""
        found = self._contents.get(id(constant))
        if found is None:
            key = self.intern(("constant", _content_key(constant)))
            found = self._contents[id(constant)] = constant, key, self.intern(("shape", constant.shape))
        return found

    def _note_key(self, note: Note) -> int:
        parts = tuple(None if value is None else self._parameter_key(value) for value in (note.scale, note.zero))
        others = tuple(
            attribute_key(other) if isinstance(other, Attribute) else self._parameter_key(other)
            for other in note.others
        )
        return self.intern(("note", note.dtype, parts, note.axis, note.block, note.dynamic, note.integer, others))

    def _parameter_key(self, value: Value) -> int:
        constant = content_of(value)
        return -1 if constant is None else self.content(constant)[1]

    def _defaults(self, node: Node) -> dict[str, Hashable]:
        """Keys of the attributes that the operator has where a node does not say."""
        key = (node.op_id, id(node.graph) if self.model.functions else 0)
        found = self._default_keys.get(key)
        if found is None:
            schema = schema_of(node, self.model)
            specs = {} if schema is None else schema.attributes
            found = self._default_keys[key] = {
                name: attribute_key(Attribute.of(name, spec.default))
                for name, spec in specs.items()
                if spec.default is not None and spec.default != ()
            }
        return found


def _is_constant(node: Node) -> bool:
    return node.op == "Constant" and node.domain in ("", "ai.onnx") and _constant_of(node) is not None


def content_of(value: Value) -> Constant | None:
    if value.const is not None:
        return value.const
    producer = value.producer
    return _constant_of(producer) if producer is not None and producer.op == "Constant" else None


def _constant_of(node: Node) -> Constant | None:
    """The content of a Constant node; None where it refers to an attribute of a function, or is none that we know."""
    for name, attribute in node.attributes.items():
        value = attribute.value
        if value is None:
            return None
        match name:
            case "value" | "sparse_value":
                return value if isinstance(value, Tensor | SparseTensor) else None
            case "value_float" | "value_floats":
                return Tensor.of(np.asarray(value, np.float32))
            case "value_int" | "value_ints":
                return Tensor.of(np.asarray(value, np.int64))
            case "value_string" | "value_strings":
                return Tensor.of(np.asarray(value, object), DType.STRING)
    return None


def _content_key(constant: Constant) -> Hashable:
    if isinstance(constant, SparseTensor):
        return (constant.shape, _content_key(constant.values), _content_key(constant.indices))
    return constant.bucket() if constant.is_stub else constant.key()


def attribute_key(attribute: Attribute) -> Hashable:
    if attribute.ref:
        return ("ref", attribute.ref)
    values = attribute.value if attribute.kind.is_list else (attribute.value,)
    return (attribute.kind, tuple(map(_value_key, values)) if values is not None else None)


def _value_key(value: Any) -> Hashable:
    if isinstance(value, Tensor | SparseTensor):
        return _content_key(value)
    # NaN is not equal to itself.
    return "nan" if isinstance(value, float) and value != value else value


_COUNTED_RESULTS = frozenset({"Split", "If", "Loop", "Scan"})


def _result_count(node: Node) -> int:
    """Where it says what the operator does; elsewhere results that nobody reads may be there or not."""
    return len(node.outputs) if node.op in _COUNTED_RESULTS or node.domain not in ("", "ai.onnx") else 0


def _body_scope(where: str, node: Node, attribute: str, index: int, count: int) -> str:
    number = f"[{index}]" if count > 1 else ""
    return f"{where + '/' if where else ''}{node.op} {node.label}/{attribute}{number}"


def all_views(view: View) -> Iterator[View]:
    """A view and those of its bodies."""
    yield view
    for bodies in view.bodies.values():
        for inner in bodies.values():
            for body in inner:
                yield from all_views(body)
