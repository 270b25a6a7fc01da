"""``emit-codebook``: spell weights that are stored as codes, with the nodes that decode them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.errors import UnsupportedError
from qir.ir import CodebookQuant, DType, Graph, Model, Node, Tensor, TensorType, UseQuantMarker, Value
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.quant.codebook import HALF_FROM, encode

__all__ = ["EmitCodebook"]


@dataclass(frozen=True)
class EmitCodebook(Pass):
    """Write weights that are annotated as codebooks as packed codes and the standard operators that decode them, all on
    constants: a runtime computes them once, when it loads the model, and then runs at the speed of the float model.
    Codes of 1, 2, 4 and 8 bits are stored as they are, others as the sum of such: 4 bits and 1 for 5. Four bits are u4
    from opset 21 on; else several share a byte, those of a tensor's first part in the low bits. ``emit-qdq`` does this
    too.

    Before::

        @w: f32[8,4] q=codebook[axis=0](4, [[-1, ..., 1], [-1, ..., 1]], scale=[...])
        %y: f32[1,8] = Gemm(%x, @w) {transB=1}

    After::

        %i: s32[2,16] = Cast(@w_codes) {to=6}        # @w_codes: u4[2,16], 4 channels a table
        %l: f32[2,16] = GatherElements(@w_table, %i) {axis=1}
        %r: f32[8,4] = Reshape(%l, @shape)
        %w: f32[8,4] = Mul(%r, @w_scale)
        %y: f32[1,8] = Gemm(%x, %w) {transB=1}
    """

    name: ClassVar[str] = "emit-codebook"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises UnsupportedError below opset 11, where bits cannot be shifted."""
        result = PassResult()
        for graph in list(model.graph.graphs()):
            emitter: _Emitter | None = None
            for value in list(graph.initializers):
                if isinstance(value.quant, CodebookQuant):
                    emitter = emitter or _Emitter(model.opset() or 1, graph)
                    emitter.emit(value, value.quant)
                    result.count("weights")
        result.changed = bool(result.statistics)
        return result


def _planes(bits: int) -> Iterator[tuple[int, int]]:
    """(offset, width) of the parts of a code, low bits first, each of a width that fills bytes."""
    offset = 0
    for width in (8, 4, 2, 1):
        if bits & width:
            yield offset, width
            offset += width


class _Emitter:
    """Emits at the start of one graph; equal constants are stored once."""

    def __init__(self, opset: int, graph: Graph) -> None:
        if opset < 11:
            raise UnsupportedError(f"codebooks need opset 11, the model has {opset}: run 'convert-opset' first")
        self.opset = opset
        self.graph = graph
        self.first = graph.nodes.first
        self.constants: dict[bytes, Value] = {}

    def emit(self, value: Value, quant: CodebookQuant) -> None:
        tensor = value.tensor
        assert tensor is not None
        shape = tensor.shape
        tables = len(quant.table)
        codes = encode(tensor.numpy(), quant).reshape(tables, -1)
        axis = 0 if quant.axis is None else quant.axis % len(shape)
        channels = 1 if quant.axis is None else shape[axis]
        moved = shape if quant.axis is None else (shape[axis], *shape[:axis], *shape[axis + 1 :])
        indices = self._indices(value, codes.reshape(-1) if tables == 1 else codes, quant.bits)
        table = self._table(value, quant)
        if tables == 1:
            numbers = self._add("Gather", [table, indices], TensorType(DType.FLOAT, None))
        else:
            numbers = self._add("GatherElements", [table, indices], TensorType(DType.FLOAT, codes.shape), axis=1)
        result = self._add("Reshape", [numbers, self._ints(moved)], TensorType(DType.FLOAT, moved))
        if quant.scale != (1.0,):
            scale = np.array(quant.scale, np.float32)
            if len(scale) == channels:
                scale = scale.reshape(-1, *[1] * (len(moved) - 1))
            factor = self._numbers(scale, f"{value.name}_scale")
            result = self._add("Mul", [result, factor], TensorType(DType.FLOAT, moved))
        if axis:
            order = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
            result = self._add("Transpose", [result], TensorType(DType.FLOAT, shape), perm=order)
        value.quant = None
        readers = list(value.users)
        if result.producer is not None and readers:
            result.producer.provenance = readers[0].provenance
        for use in list(value.uses):
            use.quant = UseQuantMarker.INHERIT
        value.replace_all_uses(result)
        self.graph.remove_initializer(value)

    def _indices(self, value: Value, codes: np.ndarray, bits: int) -> Value:
        """s32 of the shape of ``codes``, from their packed planes."""
        wide = TensorType(DType.INT32, codes.shape)
        total: Value | None = None
        for offset, width in _planes(bits):
            name = f"{value.name}_codes{offset or ''}"
            part = self._plane(name, (codes >> offset) & ((1 << width) - 1), width)
            part = self._add("Cast", [part], wide, to=DType.INT32.code)
            if total is None:
                total = part
                continue
            factor = self._constant(np.array(1 << offset, np.int32), "factor")
            total = self._add("Add", [total, self._add("Mul", [part, factor], wide)], wide)
        assert total is not None
        return total

    def _plane(self, name: str, codes: np.ndarray, width: int) -> Value:
        """``codes`` of ``width`` bits: u8, or u4 where the opset has that."""
        if width == 8:
            return self.graph.add_initializer(name, Tensor.of(codes))
        if width == 4 and self.opset >= 21:
            return self.graph.add_initializer(name, Tensor.of(codes, DType.UINT4))
        shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
        flat = codes.reshape(-1)
        each = -(-flat.size // len(shifts))
        filled = np.append(flat, np.zeros(each * len(shifts) - flat.size, np.uint8)).reshape(len(shifts), each)
        stored = self.graph.add_initializer(name, Tensor.of(np.bitwise_or.reduce(filled << shifts, axis=0)))
        byte = TensorType(DType.UINT8, filled.shape)
        result = self._add("BitShift", [stored, self._constant(shifts, "shifts")], byte, direction="RIGHT")
        result = self._add("Mod", [result, self._constant(np.array(1 << width, np.uint8), "codes")], byte)
        if filled.size > flat.size:
            result = self._add("Reshape", [result, self._ints((-1,))], TensorType(DType.UINT8, (filled.size,)))
            bounds = [self._ints((0,)), self._ints((flat.size,))]
            result = self._add("Slice", [result, *bounds], TensorType(DType.UINT8, (flat.size,)))
        return self._add("Reshape", [result, self._ints(codes.shape)], TensorType(DType.UINT8, codes.shape))

    def _table(self, value: Value, quant: CodebookQuant) -> Value:
        """f32: (tables, levels), one table (levels), or (levels, dim)."""
        table = np.array(quant.table, np.float32)
        if quant.dim > 1:
            table = table.reshape(-1, quant.dim)
        elif len(table) == 1:
            table = table[0]
        return self._numbers(table, f"{value.name}_table")

    def _numbers(self, array: np.ndarray, name: str) -> Value:
        """f32 numbers, stored as f16 where that holds them and they are many."""
        half = array.astype(np.float16)
        if array.size < HALF_FROM or not np.array_equal(half.astype(np.float32), array):
            return self._constant(array, name)
        stored = self._constant(half, name)
        return self._add("Cast", [stored], TensorType(DType.FLOAT, array.shape), to=DType.FLOAT.code)

    def _ints(self, numbers: tuple[int, ...]) -> Value:
        return self._constant(np.array(numbers, np.int64), "shape")

    def _constant(self, array: np.ndarray, name: str) -> Value:
        tensor = Tensor.of(array)
        key = tensor.digest()
        if key not in self.constants:
            self.constants[key] = self.graph.add_initializer(name, tensor)
        return self.constants[key]

    def _add(self, op: str, inputs: list[Value], type_: TensorType, **attributes: object) -> Value:
        node: Node = self.graph.add_node(op, inputs, attributes, types=[type_], before=self.first)
        return node.output
