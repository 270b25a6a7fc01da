"""Nodes, operands and attributes of a model in a few words."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from qir.diff.changes import NodeRef
from qir.diff.view import CAPTURED, Constant, Slot, View
from qir.ir import Attribute, Model, Node, SparseTensor, Tensor, Type, Value
from qir.ops.schema import schema_of

__all__ = ["MOST_INFERRED", "Describer", "attribute_text", "content_text", "foreign_sources"]

MOST_INFERRED = 20_000
"""Nodes of a model whose shapes are inferred for what the file does not state."""

_LONGEST = 60


class Describer:
    """Speaks about the nodes of one model."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @cached_property
    def ids(self) -> dict[Node, int]:
        """By node: its place in ``Model.walk()``."""
        return {node: index for index, node in enumerate(self.model.walk())}

    def id(self, node: Node) -> int:
        return self.ids[node]

    def ref(self, view: View, number: int) -> NodeRef:
        node = view.nodes[number]
        sources = tuple(foreign_sources(node)[:16])
        outputs = tuple(value.name for value in node.outputs)
        return NodeRef(self.id(node), node.label, _op(node), view.where, outputs, sources)

    @cached_property
    def _inferred(self) -> list[Node]:
        """The nodes of a copy with inferred types, by id; none where the model is too large for that."""
        from qir.ops.shape_inference import infer

        if len(self.ids) > MOST_INFERRED:
            return []
        copy = self.model.clone()
        infer(copy)
        return list(copy.walk())

    def type_of(self, value: Value) -> Type | None:
        """The value's type, inferred for results of nodes."""
        producer = value.producer
        if producer is None or not self._inferred:
            return value.type
        return self._inferred[self.ids[producer]].outputs[value.index].type

    def op(self, view: View, number: int) -> str:
        return _op(view.nodes[number])

    def operand_name(self, view: View, number: int, index: int) -> str:
        """As the operator's schema calls it, else its index."""
        if index >= CAPTURED:
            return "captured"
        schema = schema_of(view.nodes[number], self.model)
        formal = None if schema is None else schema.input(index)
        if formal is None or formal.variadic:
            return str(index)
        return formal.name

    def operand(self, view: View, slot: Slot) -> str:
        """Where an operand comes from: a node, an input, or a constant with its type."""
        content = view.values[slot.value]
        if content.producer >= 0:
            node = view.nodes[content.producer]
            return f"{node.op} {node.label}" + (f" [{content.index}]" if content.index else "")
        if content.constant is not None:
            return content_text(content.constant, values=True)
        return content.value.name if content.value is not None else "?"

    def text(self, view: View, number: int) -> str:
        """``Conv(x, f32[8,3,3,3]) pads=[1, 1, 1, 1]``."""
        operands = ", ".join(self.operand(view, slot) for slot in view.slots[number][:8])
        more = ", ..." if len(view.slots[number]) > 8 else ""
        attributes = "".join(
            f" {name}={attribute_text(attribute)}" for name, attribute in sorted(view.attributes[number].items())
        )
        return f"{_op(view.nodes[number])}({operands}{more}){attributes}"

    def after(self, view: View, number: int) -> str:
        """The first thing that it reads and is no constant."""
        for slot in view.slots[number]:
            if view.values[slot.value].constant is None:
                return self.operand(view, slot)
        return ""


def foreign_sources(node: Node) -> list[str]:
    """What a node says that it stands for, where that is more than itself: its name, else its first result."""
    provenance = node.provenance
    own = node.name or (node.outputs[0].name if node.outputs else "")
    return [] if provenance == own or provenance == () else node.sources


def _op(node: Node) -> str:
    return f"{node.domain}.{node.op}" if node.domain not in ("", "ai.onnx") else node.op


def attribute_text(attribute: Attribute | None) -> str | None:
    if attribute is None:
        return None
    if attribute.ref:
        return f"@{attribute.ref}"
    value = attribute.python
    if isinstance(value, Tensor | SparseTensor):
        return content_text(value, values=True)
    if isinstance(value, tuple):
        text = "[" + ", ".join(_item(item) for item in value[:12]) + (", ...]" if len(value) > 12 else "]")
    else:
        text = _item(value)
    return text


def _item(value: object) -> str:
    if isinstance(value, float):
        return f"{np.float32(value):.6g}"
    if isinstance(value, Tensor | SparseTensor):
        return content_text(value)
    text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def content_text(constant: Constant, *, values: bool = False) -> str:
    """``f32[64,3,7,7]``; with ``values``, a few elements instead: ``[1, -1]``."""
    sparse = "sparse " if isinstance(constant, SparseTensor) else ""
    kind = f"{sparse}{constant.dtype}[{','.join(map(str, constant.shape))}]"
    if not values or isinstance(constant, SparseTensor) or constant.size > 6:
        return kind
    items = constant.numpy().reshape(-1)
    shown = ", ".join(
        f"{x:.6g}" if constant.dtype.is_float else (x.decode(errors="replace") if isinstance(x, bytes) else str(x))
        for x in items
    )
    return shown if constant.shape == () else f"{kind} [{shown}]"
