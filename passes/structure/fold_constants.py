"""The pass ``fold-constants``: compute once what never changes."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.ir import DType, Graph, Model, Node, Tensor, Value
from qir.passes.structure.folding import shape_values
from qir.passes.structure.folding.branches import inline_branch
from qir.passes.structure.folding.estimate import FOLDABLE, QUANTIZERS, Size, Unknown, elements, result_sizes
from qir.passes.structure.folding.evaluate import evaluate
from qir.passes.structure.folding.loops import unroll
from qir.passes.structure.folding.sizes import constant_operand
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.rewriting import Numbering
from qir.rewriting.edits import add_constant, constant_of, is_annotated, is_pure, is_standard, opset_of

__all__ = ["FoldConstants"]

_COMPUTABLE = frozenset(DType.from_text(text) for text in "f16 f32 f64 bool s8 s16 s32 s64 u8 u16 u32 u64".split())
_BATCH = 2048
"""Nodes in one session at most: what a session costs grows faster than its nodes."""


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes whose operands are all constant by their results, in the main graph, in bodies and in functions.

    Shape arithmetic on known and partly known shapes folds too, also where sizes are open: a Reshape copies an axis (0)
    or works it out (-1), an Expand or Slice that would keep an axis says so, and sizes that have the same name in the
    types are computed once. An If whose condition is known becomes the branch it takes, a Loop that runs once,
    or only on constants, or has at most ``unroll`` nodes in all its iterations, becomes these. QuantizeLinear and
    DequantizeLinear stay, so integer weights stay integers. Values are computed by onnxruntime's kernels without
    optimisations. Nothing is computed whose result would pass both ``max_bytes`` and the size of its operands, nor more
    than ``max_growth`` bytes in all beyond the operands' sizes; the size is worked out beforehand, so a small file that
    asks for a terabyte costs nothing. Random ops never fold.

    Before::

        %s: s64[2] = Shape(%x)            # %x: f32[N,8]
        %c: s64[1] = Gather(%s, @one)     # @one = [1]
        %t: s64[2] = Concat(@minus_one, %c) {axis=0}
        %y: f32[?,8] = Reshape(%z, %t)

    After::

        %y: f32[?,8] = Reshape(%z, @t)    # @t = [-1, 8]
    """

    name: ClassVar[str] = "fold-constants"
    effect: ClassVar[Effect] = Effect.EXACT
    keeps_observed: ClassVar[bool] = True

    max_bytes: int = 1 << 20
    """A result may have as many bytes, or as many as its constant operands together."""
    quantized: bool = False
    """Fold QuantizeLinear and DequantizeLinear too, which turns integer weights into float ones."""
    max_growth: int = 64 << 20
    """How many bytes results may have beyond those of their operands, all together."""

    unroll: int = 0
    """A Loop with a constant count becomes its iterations where these have at most so many nodes. One that runs once,
    or on constants alone, always does."""

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        result = PassResult()
        for root in [model.graph, *(function.graph for function in model.functions.values())]:
            folder = _Folder(self, model, opset_of(model, root), result, ctx.numbering)
            folder.fold(root)
            folder.finish()
        result.changed = bool(result.statistics)
        return result


class _Folder:
    """One graph with its bodies: what is computed, and what waits to be."""

    def __init__(
        self, settings: FoldConstants, model: Model, opset: int, result: PassResult, numbering: Numbering
    ) -> None:
        self.settings = settings
        self.model = model
        self.opset = opset
        self.result = result
        self.numbering = numbering
        self.arrays: dict[Value, np.ndarray] = {}
        """Contents of constants; partly known ones (dtype object) are in ``partial``."""
        self.partial: dict[Value, np.ndarray] = {}
        self.sizes: dict[Value, Size] = {}
        """Sizes of results that wait."""
        self.symbolic: ChainMap[Hashable, Value] = ChainMap()
        """Who computes a shape, by its elements, some of which are symbols: for each graph, and those around it."""
        self.released: list[Value] = []
        """Operands that lost a reader, and results that lost them all."""
        self.waiting: list[Node] = []
        self.folded: list[Node] = []
        self.growth = 0

    def fold(self, graph: Graph) -> None:
        """Visit the nodes in order; those of bodies after the node that holds them."""
        for node in graph.nodes:
            if node.op == "If" and is_standard(node) and self.inline(node):
                continue
            if node.op == "Loop" and is_standard(node) and self.unroll(node):
                continue
            self.visit(node)
            for body in node.bodies:
                self.symbolic = self.symbolic.new_child()
                self.fold(body)
                self.symbolic = self.symbolic.parents

    def inline(self, node: Node) -> bool:
        condition = node.input(0)
        array = self.content(condition)
        if array is None and condition is not None and condition in self.sizes:
            self.flush()
            array = self.content(condition)
        if array is None or array.size != 1 or self.numbering.exhausted:
            return False
        if not inline_branch(node, bool(array.reshape(()))):
            return False
        self.numbering.allow("inlined-if", node)
        self.result.count("inlined-if")
        return True

    def unroll(self, node: Node) -> bool:
        if self.numbering.exhausted or not unroll(node, self.opset, self.settings.unroll):
            return False
        self.numbering.allow("unrolled-loop", node)
        self.result.count("unrolled-loop")
        return True

    def visit(self, node: Node) -> None:
        self.settle(node)
        if not self.is_open(node) or not self.may_fold(node):
            return
        if self.compute_here(node):
            return
        if node.op in ("Shape", "Size") or not node.inputs or not all(self.is_known(value) for value in node.inputs):
            return
        sizes = self.estimate(node)
        if sizes is None or not self.within_budget(node, sizes):
            return
        self.waiting.append(node)
        self.sizes.update(zip(node.outputs, sizes, strict=True))
        if len(self.waiting) >= _BATCH:
            self.flush()

    def is_open(self, node: Node) -> bool:
        """Whether something is known of every operand, or the op asks for shapes alone: the cheapest question first."""
        if node.op in ("Shape", "Size"):
            return True
        for use in node.uses:
            if use is None:
                continue
            value = use.value
            if value in self.partial or value in self.sizes or value in self.arrays:
                continue
            maker = value.producer
            if (maker is not None and maker.op != "Constant") or self.content(value) is None:
                return False
        return True

    def may_fold(self, node: Node) -> bool:
        return (
            is_standard(node)
            and (node.op in FOLDABLE or (self.settings.quantized and node.op in QUANTIZERS))
            and is_pure(node, self.model.functions)
            and not is_annotated(node)
            and not any(attribute.ref for attribute in node.attributes.values())
            and not any(value.is_output for value in node.outputs)
            and all(value.dtype is None or value.dtype in _COMPUTABLE for value in node.outputs)
        )

    def compute_here(self, node: Node) -> bool:
        """Shape arithmetic: fold a small integer node at once, or note what is known of its result."""
        operands: list[np.ndarray | None] = []
        if node.op in ("Shape", "Size"):
            operands.append(self.stand_in(node.input(0)))
        else:
            for value in node.inputs:
                array = None if value is None else self.partial.get(value, self.content(value))
                if value is not None and (array is None or array.size > shape_values.MOST_ELEMENTS):
                    return False
                operands.append(array)
        array = shape_values.compute(node, operands, self.opset)
        if array is None:
            return False
        if not shape_values.is_complete(array):
            self.partial[node.output] = array
            self.share(node, array)
            return False
        self.arrays[node.output] = array
        self.folded.append(node)
        return True

    def settle(self, node: Node) -> None:
        """Write down constants for shape operands that are partly known where that says as much."""
        if node.op not in ("Reshape", "Expand", "Slice") or not is_standard(node) or is_annotated(node):
            return
        operands = [None if v is None else self.partial.get(v, self.content_of_small(v)) for v in node.inputs]
        if not any(value in self.partial for value in node.inputs[1:]):
            return
        for index, array in constant_operand(node, operands, self.opset).items():
            old = node.input(index)
            if old is None or old not in self.partial or not self.numbering.allow("settled-shape", node):
                continue
            node.set_input(index, add_constant(node, array, old.name))
            self.released.append(old)
            self.result.count("settled-shape")

    def content_of_small(self, value: Value) -> np.ndarray | None:
        if value in self.sizes:
            return None
        tensor = constant_of(value)
        small = value in self.arrays or (tensor is not None and tensor.size <= shape_values.MOST_ELEMENTS)
        return self.content(value) if small else None

    def share(self, node: Node, array: np.ndarray) -> None:
        """Let an earlier node that computes the same sizes stand for this one."""
        value, items = node.output, tuple(array.reshape(-1).tolist())
        if None in items or value.dtype not in (None, DType.INT64):
            return
        earlier = self.symbolic.setdefault((array.shape, items), value)
        outputs = any(use.is_graph_output for use in value.uses)
        if earlier is value or not value.uses or outputs or not self.numbering.allow("same-size", node):
            return
        value.replace_all_uses(earlier)
        self.released.append(value)
        self.result.count("same-size")

    def stand_in(self, value: Value | None) -> np.ndarray | None:
        """An array of the shape that a constant or waiting result has; None for what is neither."""
        if value is not None and isinstance(self.sizes.get(value), int):
            self.flush()
        size = None if value is None else self.sizes.get(value)
        if isinstance(size, tuple):
            return np.broadcast_to(np.zeros((), np.bool_), size)
        return self.content(value)

    def content(self, value: Value | None) -> np.ndarray | None:
        """The array of a constant, or of a result that has been computed."""
        if value is None:
            return None
        array = self.arrays.get(value)
        if array is None:
            tensor = constant_of(value)
            if tensor is None or tensor.dtype not in _COMPUTABLE:
                return None
            array = tensor.numpy()
            self.arrays[value] = array
        return array

    def is_known(self, value: Value | None) -> bool:
        return value is None or value in self.sizes or self.content(value) is not None

    def estimate(self, node: Node) -> list[Size] | None:
        """Sizes of the results; computes what waits where they depend on it. None where they cannot be told."""
        for attempt in range(2):
            try:
                return result_sizes(node, [self.shape(value) for value in node.inputs], lambda i: self.ints(node, i))
            except Unknown:
                if attempt or not self.waiting:
                    return None
                self.flush()
                if not all(self.is_known(value) for value in node.inputs):
                    return None
            except (ValueError, IndexError, TypeError, OverflowError):
                return None  # the operands contradict the op: the runtime will say so when the model is loaded
        return None

    def shape(self, value: Value | None) -> tuple[int, ...] | None:
        if value is None:
            return None
        size = self.sizes.get(value)
        if size is not None:
            return None if isinstance(size, int) else size
        array = self.content(value)
        return None if array is None else array.shape

    def ints(self, node: Node, index: int) -> tuple[int, ...]:
        value = node.input(index)
        array = None if value is None or value in self.sizes else self.content(value)
        if array is None or array.size > shape_values.MOST_ELEMENTS:
            raise Unknown
        return tuple(int(item) for item in array.reshape(-1))

    def within_budget(self, node: Node, sizes: list[Size]) -> bool:
        given = sum(self.bytes_of(value) for value in node.inputs if value is not None)
        wanted = sum(
            elements(size) * _width(value) for value, size in zip(node.outputs, sizes, strict=True) if value.name
        )
        growth = max(0, wanted - given)
        if wanted <= max(self.settings.max_bytes, given) and self.growth + growth <= self.settings.max_growth:
            self.growth += growth
            return True
        self.result.remarks.append(
            self.settings.missed(node, f"{node.op} is not folded: its result would take {wanted} bytes")
        )
        return False

    def bytes_of(self, value: Value) -> int:
        size = self.sizes.get(value)
        if size is not None:
            return elements(size) * _width(value)
        array = self.content(value)
        return 0 if array is None else array.nbytes

    def flush(self) -> None:
        """Compute what waits, in one session."""
        if not self.waiting:
            return
        nodes, self.waiting, self.sizes = self.waiting, [], {}
        results, failed = evaluate(nodes, self.content, self.opset)
        self.arrays.update(results)
        self.folded += [node for node in nodes if node not in failed]
        for node, reason in failed.items():
            self.result.remarks.append(self.settings.missed(node, f"{node.op} is not folded: {reason}"))

    def finish(self) -> None:
        """Put the results that somebody reads in the place of the nodes."""
        self.flush()
        operands: dict[Value, None] = {}
        for node in reversed(self.folded):
            read = [v for v in node.outputs if v in self.arrays and any(use.node is not None for use in v.uses)]
            if read and self.numbering.allow("folded-node", node):
                for value in read:
                    _replace(node, value, self.arrays[value])
            if not any(value.uses for value in node.outputs):
                operands.update(dict.fromkeys(value for value in node.inputs if value is not None))
                node.erase()
                self.result.count("folded-node")
        self.remove_unread([*operands, *self.released])

    def remove_unread(self, values: list[Value]) -> None:
        """Remove constants that nobody reads any more, and pure nodes, such as a Shape whose axis has been taken."""
        while values:
            value = values.pop()
            node, graph = value.producer, value.graph
            if graph is None or any(output.uses for output in ([value] if node is None else node.outputs)):
                continue
            if node is not None and is_pure(node, self.model.functions):
                values += [operand for operand in node.inputs if operand is not None]
                node.erase()
            elif value.is_initializer and not value.is_input:
                graph.remove_initializer(value)


def _replace(node: Node, value: Value, array: np.ndarray) -> None:
    name, value.name = value.name, ""
    constant = add_constant(node, Tensor.of(array), name)
    constant.name = name
    constant.range, constant.metadata, constant.doc = value.range, value.metadata, value.doc
    value.replace_all_uses(constant)


def _width(value: Value) -> int:
    return 8 if value.dtype is None else -(-value.dtype.bits // 8)
