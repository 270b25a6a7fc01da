"""The pass ``canonicalize``: remove what does nothing, and what is there twice."""

from __future__ import annotations

import struct
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.ir import Attribute, AttrKind, Graph, Model, Node, Tensor, TensorType, UseQuantMarker, Value
from qir.ops.schema import schema_of
from qir.passes.structure.simplifications import SIMPLIFIED, Scope, simplify
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.rewriting import Numbering
from qir.rewriting.edits import (
    add_constant,
    constant_node_content,
    erase_dead,
    is_pure,
    is_standard,
    merge_origin,
    opset_of,
)

__all__ = ["Canonicalize"]

_TOLD_BY_OUTPUTS = frozenset(("BatchNormalization", "Dropout"))
"""Ops that train or not depending on how many results they have, in some versions."""


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Bring the graph into its plain form, in the main graph, in bodies and in functions.

    Removed are Identity, Dropout (at inference), casts, reshapes, transposes, pads, slices, concats, expands and tiles
    that change nothing, x + 0, x * 1 and the like, chains of reshapes (and squeezes, unsqueezes, flattens), of
    transposes or of casts but for one, slices and splits of what was just concatenated and the reverse, expansions
    that broadcasting does anyway, initial states of zeros, Clip and Relu whose bounds the proved range never reaches,
    what is done twice to no effect, nodes that compute what another computes already, duplicate constants, dead nodes,
    optional results that nobody reads and unused initializers. Constant nodes become initializers. An initializer that
    is listed as an input too stops being one (``keep-inputs`` leaves it, and then it is no constant: the caller of the
    model may override it).

    One linear walk; a second run changes nothing. Names of graph inputs and outputs stay.

    Before::

        %a: f32[2,3] = Identity(%x)
        %b: f32[3,2] = Transpose(%a) {perm=[1, 0]}
        %c: f32[2,3] = Transpose(%b) {perm=[1, 0]}
        %y: f32[2,3] = Relu(%c)
        %z: f32[2,3] = Relu(%x)
        %s: f32[2,3] = Add(%y, %z)

    After::

        %y: f32[2,3] = Relu(%x)
        %s: f32[2,3] = Add(%y, %y)
    """

    name: ClassVar[str] = "canonicalize"
    effect: ClassVar[Effect] = Effect.EXACT
    keeps_observed: ClassVar[bool] = True

    keep_inputs: bool = False

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        result = PassResult()
        if not self.keep_inputs:
            self._unlist_inputs(model, result)
        cleaner = _Cleaner(model, result, ctx.numbering)
        roots = [model.graph, *(function.graph for function in model.functions.values())]
        for root in roots:
            cleaner.clean(root)
        for root in roots:
            if erased := erase_dead(root):
                result.count("dead-node", erased)
        cleaner.drop_outputs()
        cleaner.remove_unused_initializers()
        result.changed = bool(result.statistics)
        return result

    def _unlist_inputs(self, model: Model, result: PassResult) -> None:
        graph = model.graph
        listed = [value for value in graph.inputs if value.const is not None]
        if not listed:
            return
        graph.remove_inputs(listed)
        if model.ir_version is not None and model.ir_version < 4:
            model.ir_version = 4  # the first that allows an initializer which is no input
        result.count("unlisted-input", len(listed))
        named = ", ".join(value.name for value in listed[:3]) + (", ..." if len(listed) > 3 else "")
        result.remarks.append(
            self.applied(
                None,
                f"{len(listed)} initializer(s) are no longer inputs that a caller may override ({named}); "
                "canonicalize{keep-inputs=true} leaves them",
            )
        )


class _Cleaner:
    """One run: the names that must not go, and what was counted."""

    def __init__(self, model: Model, result: PassResult, numbering: Numbering) -> None:
        self.model = model
        self.result = result
        self.numbering = numbering
        # quantization_annotation refers to initializers by name alone.
        self.annotated = {name for value in model.values() for _, name in value.annotation}
        self.several: list[Node] = []
        """Nodes of more than one result."""
        # Before IR version 4 an initializer has to be an input, so a lifted constant could be overridden.
        self.lifts = model.ir_version is None or model.ir_version >= 4

    def clean(self, graph: Graph) -> None:
        """Simplify ``graph`` and its bodies, in topological order."""
        in_function = _root(graph).function is not None
        if self.lifts and not in_function:
            for node in graph.nodes:
                if node.op == "Constant" and is_standard(node):
                    self._lift(graph, node)
        constants = _Constants(graph, self)
        scope = Scope(opset_of(self.model, graph), add_constant if in_function else constants.make)
        earlier = _Earlier()
        for node in graph.nodes:
            if node.op in SIMPLIFIED:
                while not self.numbering.exhausted and (statistic := simplify(node, scope)):
                    self.numbering.allow(statistic, node)
                    self.result.count(statistic)
            if node.is_read and (alike := earlier.add(node)):
                self._eliminate(node, alike, earlier)
            if len(node.outputs) > 1:
                self.several.append(node)
            for body in node.bodies:
                self.clean(body)

    def drop_outputs(self) -> None:
        """Leave out the optional results that nobody reads, so that no runtime computes them."""
        for node in self.several:
            outputs = node.outputs
            if node.graph is None or not is_standard(node) or node.op in _TOLD_BY_OUTPUTS:
                continue
            for index in reversed(range(len(outputs))):
                value = outputs[index]
                if not value.name or value.uses or value.quant is not None or not self._is_optional(node, index):
                    continue
                if self.numbering.allow("unused-output", node):
                    node.drop_output(index)
                    self.result.count("unused-output")

    def _is_optional(self, node: Node, index: int) -> bool:
        schema = schema_of(node, self.model)
        formal = None if schema is None else schema.output(index)
        return formal is not None and formal.optional

    def remove_unused_initializers(self) -> None:
        for graph in self.model.graphs():
            for value in graph.initializers:
                if not value.uses and not value.is_input and value.name not in self.annotated:
                    graph.remove_initializer(value)
                    self.result.count("unused-initializer")

    def _lift(self, graph: Graph, node: Node) -> None:
        """A Constant node becomes an initializer of the same name, unless it is itself what the graph hands out."""
        value = node.output
        content = constant_node_content(node)
        if content is None or value.is_output or value.quant is not None or not value.uses:
            return
        name, type_ = value.name, TensorType(content.dtype, content.shape)
        value.name = ""
        constant = graph.add_initializer(name, content, type_)
        constant.name = name
        constant.metadata, constant.doc = value.metadata, value.doc
        constant.range, constant.annotation = value.range, value.annotation
        value.replace_all_uses(constant)
        node.erase()
        self.result.count("lifted-constant")

    def _eliminate(self, node: Node, alike: list[Node], earlier: _Earlier) -> None:
        """Let an earlier node that computes the same stand for this one."""
        if node.op == "Constant" or not is_pure(node, self.model.functions):
            return
        for other in alike:
            if self.numbering.exhausted:
                return
            if _same_node(node, other) and self._merge(node, other):
                self.numbering.allow("common-subexpression", node, other)
                earlier.forget(node)
                return

    def _merge(self, node: Node, other: Node) -> bool:
        if any(value.is_output for value in node.outputs):
            # An output that cannot take its name along would only be exchanged for an Identity.
            if any(value.is_output for value in other.outputs) or node.graph is not other.graph:
                return False
        for gone, kept in zip(node.outputs, other.outputs, strict=True):
            gone.replace_all_uses(kept)
        merge_origin(other, node)
        self.result.count("common-subexpression")
        return True


class _Earlier:
    """The nodes of a graph that the walk has passed, by what they compute.

    Nearly all are told apart by their operator, first and last operand; only those that agree in these get a signature.
    """

    def __init__(self) -> None:
        self.alone: dict[Hashable, Node | None] = {}
        """None where there are several; they are in ``alike``."""
        self.alike: dict[Hashable, list[Node]] = {}

    def add(self, node: Node) -> list[Node] | None:
        """Remember a node; the earlier ones of the same signature."""
        key: Hashable = node.op
        if uses := node.uses:
            # Enough to tell nearly all apart.
            first, last = uses[0], uses[-1]
            key = (key, None if first is None else id(first.value), None if last is None else id(last.value))
        other = self.alone.setdefault(key, node)
        if other is node:
            return None
        if other is not None:
            self.alone[key] = None
            self.alike.setdefault(_signature(other), []).append(other)
        found = self.alike.setdefault(_signature(node), [])
        found.append(node)
        return found[:-1]

    def forget(self, node: Node) -> None:
        """The latest that was added."""
        self.alike[_signature(node)].pop()


class _Constants:
    """The distinct constants of one graph, found by content."""

    def __init__(self, graph: Graph, cleaner: _Cleaner) -> None:
        self.graph = graph
        self.buckets: dict[Hashable, list[Value]] = {}
        for value in graph.initializers:
            tensor = value.const
            if not isinstance(tensor, Tensor) or value.is_input or value.name in cleaner.annotated:
                continue
            bucket = self.buckets.setdefault(tensor.bucket(), [])
            twin = self._find(tensor, value) if bucket else None
            if twin is None:
                bucket.append(value)
            elif not value.is_output and value.uses:
                value.replace_all_uses(twin)
                cleaner.result.count("duplicate-constant")

    def make(self, node: Node, array: np.ndarray, hint: str) -> Value:
        tensor = Tensor.of(array)
        twin = self._find(tensor, None)
        if twin is None:
            twin = self.graph.add_initializer(hint, tensor)
            self.buckets.setdefault(tensor.bucket(), []).append(twin)
        return twin

    def _find(self, tensor: Tensor, like: Value | None) -> Value | None:
        for candidate in self.buckets.get(tensor.bucket(), ()):
            marks = (candidate.quant, candidate.frozen, candidate.annotation)
            wanted = (None, False, ()) if like is None else (like.quant, like.frozen, like.annotation)
            if marks == wanted and isinstance(candidate.const, Tensor) and candidate.const.same_content(tensor):
                return candidate
        return None


def _root(graph: Graph) -> Graph:
    while graph.outer is not None:
        graph = graph.outer
    return graph


def _signature(node: Node) -> Hashable:
    """Equal for nodes that compute the same; attributes that hold tensors are compared later."""
    inherit = UseQuantMarker.INHERIT
    operands = tuple(
        [
            None if use is None else id(use.value) if use.quant is inherit else (id(use.value), use.quant)
            for use in node.uses
        ]
    )
    found = node.attributes
    attributes = tuple([_attribute_key(found[name]) for name in sorted(found)]) if found else ()
    return (node.op_id, operands, attributes, len(node.outputs), node.kernel, node.region)


def _attribute_key(attribute: Attribute) -> Hashable:
    value = attribute.value
    match attribute.kind:
        case AttrKind.FLOAT if value is not None:
            value = struct.pack("d", value)  # so that NaN equals itself and 0.0 is not -0.0
        case AttrKind.FLOATS if value is not None:
            value = struct.pack(f"{len(value)}d", *value)
        case AttrKind.INT | AttrKind.INTS | AttrKind.STRING | AttrKind.STRINGS:
            pass
        case _:
            value = None
    return (attribute.name, attribute.kind, attribute.ref, value)


def _same_node(a: Node, b: Node) -> bool:
    return all(attribute.same(b.attributes[name]) for name, attribute in a.attributes.items()) and all(
        x.quant == y.quant and bool(x.name) == bool(y.name) for x, y in zip(a.outputs, b.outputs, strict=True)
    )
