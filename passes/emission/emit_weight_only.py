"""``emit-weight-only``: spell weights in few bits, for kernels that read them or a loader that widens them."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.errors import UnsupportedError
from qir.ir import DType, Graph, Model, Node, Shape, StaticQuant, Tensor, TensorType, UseQuantMarker, Value
from qir.ir.provenance import merge
from qir.passes.emission.emit_dynamic import bias_behind, drop_unused
from qir.passes.emission.weight_forms import WORTH_PADDING, Form, choose_forms
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.quant.arithmetic import quantize, scale_shape
from qir.quant.slots import Role, WeightSlot, weight_slots

__all__ = ["EmitWeightOnly", "Form"]

_CONTRIB = "com.microsoft"
_KERNEL = "weight-only"
_LEAST_BLOCK = 16
_MOVING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
_ACCURACY_LEVEL = 4


@dataclass(frozen=True)
class EmitWeightOnly(Pass):
    """Write the weights that are annotated for float kernels as integers.

    Linear operators in one of three forms. ``contrib``: MatMulNBits (accuracy level 4, bias inside), which reads the
    integers at run time: least memory, fast for one or two rows of input. ``fold``: Cast and Mul, which the runtime
    computes once when it loads the model: small on disk, then float's own memory, speed and accuracy. ``qdq``:
    standard DequantizeLinear in blocks, which onnxruntime turns into MatMulNBits. ``auto``: contrib where inputs have
    at most 2 rows (by shape, or by a sample) or nobody knows, the weight has 65536 elements and its blocks are hardly
    longer than the sum, and where linear weights take more than 1 GiB; else fold, because more rows are slower on
    MatMulNBits than in float. Tables of a Gather become GatherBlockQuantized (with ``fold``, and ``auto`` up to 1 MiB
    in float, a folded table, which is looked up faster; with ``qdq`` and 8 bits, a Gather each of codes and scales);
    an embedding that is also a head is stored once. All other weights are folded (``qdq``: dequantized; that costs
    time on every run).

    Before::

        %y: f32[1,8] = MatMul(%x, @w : s4[axis=0, block=32](...)) kernel=weight-only

    After::

        %y: f32[1,8] = com.microsoft.MatMulNBits(%x, @w_packed, @w_scale) {K=64, N=8, bits=4, block_size=32}
    """

    name: ClassVar[str] = "emit-weight-only"
    effect: ClassVar[Effect] = Effect.EXACT

    form: Form = "auto"
    """Of linear operators, and of tables as above."""

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises UnsupportedError where the model's opset lacks 4-bit types or blocks (21)."""
        result = PassResult()
        slots = [slot for slot in weight_slots(model) if isinstance(slot.use.quant, StaticQuant)]
        slots = [slot for slot in slots if slot.node.kernel == _KERNEL]
        forms = choose_forms(self.form, model, slots, ctx)
        tables = {slot.value for slot in slots if slot.role is Role.LOOKUP and forms[slot.node] == "contrib"}
        emitter = Emitter(model, tables, result)
        for slot in slots:
            assert isinstance(slot.use.quant, StaticQuant)
            emitter.emit(slot, slot.use.quant, forms[slot.node])
        emitter.finish()
        result.changed = bool(slots)
        return result


class Emitter:
    """Rewrites nodes in place, so that results keep their identity; each constant is made once.

    ``tables``: weights that are read row by row as well; their codes have two axes. ``store`` is asked what stands in
    the model for each tensor that is made.
    """

    def __init__(
        self,
        model: Model,
        tables: Container[Value],
        result: PassResult,
        store: Callable[[Tensor], Tensor] = lambda t: t,
    ) -> None:
        self.model = model
        self.tables = tables
        self.opset = model.opset() or 1
        self.result = result
        self.contrib = False
        self.store = store
        self.codes: dict[tuple[Value, StaticQuant], np.ndarray] = {}
        self.constants: dict[tuple[Value, StaticQuant, str], Value] = {}
        self.widened: dict[tuple[Value, StaticQuant, Graph], Value] = {}

    def emit(self, slot: WeightSlot, quant: StaticQuant, form: Form) -> None:
        """Spell one use as that type; ``form`` is not ``auto``."""
        blocked = quant.axis == slot.axis and quant.block_size is not None and quant.block_size >= _LEAST_BLOCK
        value = slot.value
        if slot.role is Role.LINEAR and form == "contrib" and blocked:
            self._matmul_nbits(slot, quant)
        elif slot.role is Role.LOOKUP and form == "contrib" and blocked and slot.shape[1] * quant.dtype.bits % 8 == 0:
            self._gather_blocks(slot, quant)
        elif slot.role is Role.LOOKUP and form == "qdq" and blocked and quant.dtype.bits == 8:
            self._gather_codes(slot, quant)
        elif form == "qdq" and not (slot.role is Role.LINEAR and blocked and value.graph is not slot.node.graph):
            self._dequantize(slot, quant)  # in a body onnxruntime fuses only what stands in the body itself, or fails
        else:
            self._fold(slot, quant)
        if slot.node.graph is not None:
            slot.node.kernel = None
        drop_unused([value])
        if value.graph is None or not value.uses:
            for key in [key for key in self.codes if key[0] is value]:
                del self.codes[key]

    def forget(self) -> None:
        """Let go of what was kept for further readers of the weights so far."""
        self.codes.clear()
        self.constants.clear()
        self.widened.clear()

    def finish(self) -> None:
        if self.contrib and self.model.opset(_CONTRIB) is None:
            self.model.opset_imports = {**self.model.opset_imports, _CONTRIB: 1}

    # Forms

    def _matmul_nbits(self, slot: WeightSlot, quant: StaticQuant) -> None:
        node, value = slot.node, slot.value
        assert quant.block_size is not None
        rows = slot.shape[slot.channel_axis]
        packed = self._packed(slot, quant, flat=value in self.tables)
        blocks = -(-slot.shape[slot.axis] // quant.block_size)
        if len(packed.shape or ()) != 3:
            packed = self._reshaped(node, packed, (rows, blocks, quant.block_size * quant.dtype.bits // 8))
        operands: list[Value | None] = [node.input(0), packed, self._block_scales(slot, quant)]
        zeros = self._block_zeros(slot, quant)
        owner, bias = bias_behind(node)
        old = [operand for operand in (*node.inputs, *owner.inputs) if operand is not None]
        if zeros is not None or bias is not None:
            operands.append(zeros)
        if bias is not None:
            operands += [None, bias]
        for name in list(node.attributes):
            node.remove(name)
        _clear(node)
        attributes = {
            "K": slot.shape[slot.axis], "N": rows, "bits": quant.dtype.bits, "block_size": quant.block_size,
            "accuracy_level": _ACCURACY_LEVEL,
        }  # fmt: skip
        owner.set_op("MatMulNBits", _CONTRIB)
        for name, number in attributes.items():
            owner.set(name, number)
        owner.set_inputs(operands)
        _drop_transpose(slot)
        if owner is not node:
            owner.provenance = merge([node.provenance, owner.provenance])
            node.erase()
        drop_unused(old)
        self.contrib = True
        self.result.count("MatMulNBits")

    def _gather_blocks(self, slot: WeightSlot, quant: StaticQuant) -> None:
        node = slot.node
        indices = node.input(1)
        packed = self._packed(slot, quant, flat=True)
        operands: list[Value | None] = [packed, indices, self._block_scales(slot, quant)]
        zeros = self._block_zeros(slot, quant)
        if zeros is not None:
            operands.append(zeros)
        node.remove("axis")
        _clear(node)
        node.set_op("GatherBlockQuantized", _CONTRIB)
        attributes = {"bits": quant.dtype.bits, "block_size": quant.block_size, "gather_axis": 0, "quantize_axis": 1}
        for name, number in attributes.items():
            node.set(name, number)
        node.set_inputs(operands)
        self.contrib = True
        self.result.count("GatherBlockQuantized")

    def _gather_codes(self, slot: WeightSlot, quant: StaticQuant) -> None:
        """Rows of codes and rows of scales, then the numbers: nothing is widened that nobody asked for."""
        node = slot.node
        graph, indices = node.graph, node.input(1)
        assert graph is not None and indices is not None
        made: list[Value] = []
        rank = None if indices.shape is None else len(indices.shape) + 1
        if self.opset < 21 or rank is None:
            self._dequantize(slot, quant)
            return
        if _reaches_product(node):
            self._fold(slot, quant)
            return
        for part in ("codes", "scale", "zero"):
            if part == "zero" and quant.is_symmetric:
                continue
            constant = self._plain(slot.value, quant, part)
            assert constant.tensor is not None
            type_ = TensorType(constant.tensor.dtype, None)
            made.append(
                graph.insert_before(
                    node, "Gather", [constant, indices], attributes={"axis": 0}, types=[type_], source=[node]
                ).output
            )
        node.remove("axis")
        _clear(node)
        node.set_op("DequantizeLinear")
        node.set("axis", rank - 1)
        assert quant.block_size is not None
        node.set("block_size", quant.block_size)
        node.set_inputs(made)
        self.result.count("gathered codes")

    def _fold(self, slot: WeightSlot, quant: StaticQuant) -> None:
        node = slot.node
        number = self._widened(slot.value, quant, node)
        if slot.use.node is node:
            _read(slot, number)
        else:  # the Transpose may stand before what makes the numbers
            graph, turn = node.graph, slot.use.node
            assert graph is not None and turn is not None
            turned = TensorType(DType.FLOAT, slot.shape[::-1])
            made = graph.insert_before(
                node, "Transpose", [number], attributes={"perm": [1, 0]}, types=[turned], source=[turn]
            )
            node.set_input(1, made.output)
            _drop_transpose(slot)
        self.result.count("folded")

    def _dequantize(self, slot: WeightSlot, quant: StaticQuant) -> None:
        """A dequantizer of its own for each reader: a shared one would keep the runtime from fusing."""
        node, value = slot.node, slot.value
        if self.opset < (21 if quant.block_size is not None or quant.dtype.bits == 4 else 13):
            raise UnsupportedError(
                f"{quant.dtype} weights in blocks need opset 21, the model has {self.opset}: run 'convert-opset' first"
            )
        graph = node.graph
        assert graph is not None
        turned = slot.transposed and slot.role is Role.LINEAR
        parts = [self._plain(value, quant, part, turned) for part in ("codes", "scale")]
        if not quant.is_symmetric:
            parts.append(self._plain(value, quant, "zero", turned))
        attributes: dict[str, int] = {}
        if quant.axis is not None:
            attributes["axis"] = 1 - quant.axis if turned else quant.axis
        if quant.block_size is not None:
            attributes["block_size"] = quant.block_size
        shape = slot.shape[::-1] if turned else slot.shape
        number = graph.insert_before(
            node, "DequantizeLinear", parts, attributes=attributes, types=[TensorType(DType.FLOAT, shape)],
            name=graph.fresh_name(f"{value.name}_DequantizeLinear"), source=[node],
        ).output  # fmt: skip
        if slot.use.node is not node:
            node.set_input(1, number)
            _drop_transpose(slot)
            self.result.count("dequantizers")
            return
        _read(slot, number)
        if turned:
            node.remove("transB")
        self.result.count("dequantizers")

    def _widened(self, value: Value, quant: StaticQuant, node: Node) -> Value:
        """Float numbers by operators that the runtime computes when it loads the model, which it does not do with
        DequantizeLinear."""
        graph = node.graph
        assert graph is not None
        key = (value, quant, graph)
        if key in self.widened:
            return self.widened[key]
        if quant.dtype.bits == 4 and self.opset < 21:
            raise UnsupportedError(
                f"4-bit weights need opset 21, the model has {self.opset}: run 'convert-opset' first"
            )
        tensor = value.tensor
        assert tensor is not None
        shape, axis = tensor.shape, quant.axis or 0
        codes, scale, zero = self._code_array(value, quant), quant.scale_array(), quant.zero_point_array()
        if quant.block_size is None:
            grid: tuple[int, ...] = tuple(-1 if index == axis else 1 for index in range(len(shape)))
        else:
            blocks = scale_shape(shape, quant)[axis]
            missing = blocks * quant.block_size - shape[axis]
            ends = [missing if index == axis else 0 for index in range(len(shape))]
            late = codes.size // shape[axis] * missing * quant.dtype.bits // 8 > WORTH_PADDING
            if not late:
                codes = np.pad(codes, [(0, end) for end in ends])
            filled = (*shape[:axis], blocks * quant.block_size, *shape[axis + 1 :])
            inner = (*shape[:axis], blocks, quant.block_size, *shape[axis + 1 :])
            codes = codes if late else codes.reshape(inner)
            grid = (*shape[:axis], blocks, 1, *shape[axis + 1 :])
        laid = shape if quant.block_size is None else inner
        made = _Chain(graph, node, value, self.store)
        stored = made.constant("codes", Tensor.of(np.ascontiguousarray(codes), quant.dtype))
        number = made.apply("Cast", [stored], codes.shape, {"to": DType.FLOAT.code})
        if quant.block_size is not None and late:
            number = made.apply("Pad", [number, made.integers("pads", [0] * len(shape) + ends)], filled)
            number = made.apply("Reshape", [number, made.integers("inner", inner)], inner)
        if not quant.is_symmetric:
            offset = zero.reshape(grid) if zero.size > 1 else zero
            stored = made.constant("zero_point", Tensor.of(offset.astype(quant.dtype.numpy), quant.dtype))
            offset_number = made.apply("Cast", [stored], offset.shape, {"to": DType.FLOAT.code})
            number = made.apply("Sub", [number, offset_number], laid)
        scales = scale.reshape(grid) if quant.axis is not None else scale
        stored = made.constant("scale", Tensor.of(np.ascontiguousarray(scales)))
        number = made.apply("Mul", [number, stored], laid)
        if quant.block_size is not None:
            number = made.apply("Reshape", [number, made.integers("shape", filled)], filled)
            if missing:
                limits = {"starts": 0, "ends": shape[axis], "axes": axis}
                cut = [made.integers(name, [limit]) for name, limit in limits.items()]
                number = made.apply("Slice", [number, *cut], shape)
        self.widened[key] = number
        return number

    # Constants

    def _code_array(self, value: Value, quant: StaticQuant) -> np.ndarray:
        """Kept until all readers of the weight are done."""
        key = (value, quant)
        if key not in self.codes:
            assert value.tensor is not None
            self.codes[key] = quantize(value.tensor.numpy(), quant)
        return self.codes[key]

    def _store(
        self, value: Value, quant: StaticQuant, part: str, array: np.ndarray, dtype: DType | None = None
    ) -> Value:
        key = (value, quant, part)
        if key not in self.constants:
            graph = value.graph
            assert graph is not None
            tensor = self.store(Tensor.of(np.ascontiguousarray(array), dtype))
            self.constants[key] = graph.add_initializer(f"{value.name}_{part}", tensor)
        return self.constants[key]

    def _plain(self, value: Value, quant: StaticQuant, part: str, turned: bool = False) -> Value:
        """Codes, scales or zero points as DequantizeLinear takes them."""
        assert value.tensor is not None
        name = part + ("_T" if turned else "")
        known = self.constants.get((value, quant, name))
        if known is not None:
            return known
        if part == "codes":
            array, dtype = self._code_array(value, quant), quant.dtype
        else:
            numbers = quant.scale_array() if part == "scale" else quant.zero_point_array()
            array = np.asarray(numbers).reshape(scale_shape(value.tensor.shape, quant))
            dtype = DType.FLOAT if part == "scale" else quant.dtype
        array = array.astype(dtype.numpy)
        return self._store(value, quant, name, array.T if turned else array, dtype)

    def _packed(self, slot: WeightSlot, quant: StaticQuant, *, flat: bool) -> Value:
        """Unsigned codes, channel by channel, two of 4 bits a byte; one axis of blocks more unless ``flat``.

        Where the length is no multiple of the block, the last block is filled with zeros for a linear operator (three
        axes), not for a table.
        """
        value = slot.value
        even = slot.shape[slot.axis] % (quant.block_size or 1) == 0
        name = "packed" if even else f"packed_{slot.role.value}"
        known = self.constants.get((value, quant, name))
        if known is not None:
            return known
        assert quant.block_size is not None
        codes = self._code_array(value, quant)
        codes = codes if slot.axis == 1 else codes.T
        unsigned = codes.astype(np.int16) + (1 << quant.dtype.bits - 1 if quant.dtype.is_signed else 0)
        channels, length = unsigned.shape
        unit = quant.block_size if slot.role is Role.LINEAR else (2 if quant.dtype.bits == 4 else 1)
        unsigned = np.pad(unsigned.astype(np.uint8), [(0, 0), (0, -length % unit)])
        if quant.dtype.bits == 4:
            unsigned = unsigned[:, 0::2] | unsigned[:, 1::2] << 4
        if slot.role is Role.LINEAR and not flat:
            unsigned = unsigned.reshape(channels, -1, quant.block_size * quant.dtype.bits // 8)
        return self._store(value, quant, name, unsigned)

    def _block_scales(self, slot: WeightSlot, quant: StaticQuant) -> Value:
        known = self.constants.get((slot.value, quant, "scale_rows"))
        if known is not None:
            return known
        scale = quant.scale_array().reshape(scale_shape(slot.shape, quant))
        return self._store(slot.value, quant, "scale_rows", scale if slot.axis == 1 else scale.T)

    def _block_zeros(self, slot: WeightSlot, quant: StaticQuant) -> Value | None:
        """None where the kernels' own zero point, the middle code, is meant."""
        if quant.dtype.is_signed and quant.is_symmetric:
            return None
        known = self.constants.get((slot.value, quant, "zero_rows"))
        if known is not None:
            return known
        zeros = quant.zero_point_array().reshape(scale_shape(slot.shape, quant))
        zeros = (zeros if slot.axis == 1 else zeros.T).astype(np.int16)
        zeros = (zeros + (1 << quant.dtype.bits - 1 if quant.dtype.is_signed else 0)).astype(np.uint8)
        if quant.dtype.bits == 4:
            zeros = np.pad(zeros, [(0, 0), (0, zeros.shape[1] % 2)])
            zeros = zeros[:, 0::2] | zeros[:, 1::2] << 4
        return self._store(slot.value, quant, "zero_rows", zeros)

    def _reshaped(self, node: Node, packed: Value, shape: tuple[int, ...]) -> Value:
        made = _Chain(node.graph, node, packed, self.store)
        target = made.constant("shape", Tensor.of(np.array(shape)))
        return made.apply("Reshape", [packed, target], shape, dtype=DType.UINT8)


class _Chain:
    """Nodes in a row before a reader, named after the weight that they make."""

    def __init__(self, graph: Graph | None, before: Node, value: Value, store: Callable[[Tensor], Tensor]) -> None:
        assert graph is not None
        self.graph, self.before, self.value, self.store = graph, before, value, store

    def constant(self, part: str, tensor: Tensor) -> Value:
        graph = self.value.graph or self.graph
        return graph.add_initializer(f"{self.value.name}_{part}", self.store(tensor))

    def integers(self, part: str, numbers: Sequence[int]) -> Value:
        return self.constant(part, Tensor.of(np.array(numbers, np.int64)))

    def apply(
        self, op: str, operands: list[Value], shape: Shape, attributes: Mapping[str, int] | None = None,
        dtype: DType = DType.FLOAT,
    ) -> Value:  # fmt: skip
        return self.graph.insert_before(
            self.before, op, operands, attributes=dict(attributes or {}), types=[TensorType(dtype, shape)],
            name=self.graph.fresh_name(f"{self.value.name}_{op}"), source=[self.before],
        ).output  # fmt: skip


def _clear(node: Node) -> None:
    node.kernel = None
    for use in node.uses:
        if use is not None and use.quant is not UseQuantMarker.INHERIT:
            use.quant = UseQuantMarker.INHERIT


def _reaches_product(node: Node) -> bool:
    """Whether a product reads what a look-up gives: onnxruntime makes an integer product of dequantizers on both sides
    and then refuses the scale that each row has."""
    readers = [user for value in node.outputs for user in value.users]
    return any(user.op in ("MatMul", "Gemm") or (user.op in _MOVING and _reaches_product(user)) for user in readers)


def _drop_transpose(slot: WeightSlot) -> None:
    """Away with the Transpose that the operator read its weight through, if it did."""
    turn = slot.use.node
    if turn is not None and turn is not slot.node:
        _clear(turn)
        turn.erase()


def _read(slot: WeightSlot, number: Value) -> None:
    """Let a slot's use read floats that were made for it."""
    if slot.use.quant is not UseQuantMarker.INHERIT:
        slot.use.quant = UseQuantMarker.INHERIT
    slot.use.value = number
