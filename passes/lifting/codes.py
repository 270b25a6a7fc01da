"""What a lifted model's integer tensors stand for: a float value and the type under which it was stored.

Nodes are lifted in order. Each integer tensor met is entered as "these are the codes of that float value"; a node that
computes on codes is replaced by the float one, whose result has codes in turn. Where a node that is not lifted still
reads codes, a quantizer makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qir.ir import DType, DynamicQuant, Model, Node, StaticQuant, Tensor, TensorType, Use, Value
from qir.pipeline.contract import PassResult
from qir.quant.arithmetic import dequantize, scale_shape
from qir.quant.detect import is_quantized
from qir.rewriting.edits import constant_of

__all__ = ["MOVEMENT", "Codes", "Lifting", "NotLiftable", "static_type"]

MOVEMENT: Mapping[str, Sequence[int] | None] = {
    **dict.fromkeys(
        (
            *("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "GatherElements"),
            *("GatherND", "Expand", "Tile", "Identity", "DepthToSpace", "SpaceToDepth", "MaxPool", "ReduceMax"),
            *("ReduceMin", "Split", "Resize"),
        ),
        (0,),
    ),
    "Concat": None,
    "Where": (1, 2),
    "Max": None,
    "Min": None,
}
"""Operators that select among codes or move them, and the operands (None: all) whose codes they take."""

_SUFFIXES = ("_quantized", "_QuantizeLinear_Output", "_q", "_DequantizeLinear_Output")


class NotLiftable(Exception):
    """Why a node stays as it is; a remark says it."""


@dataclass(frozen=True, slots=True)
class Codes:
    """An integer tensor: ``value`` stored as ``quant``; ``scale`` and ``zero`` are the tensors of a dynamic type."""

    value: Value
    quant: StaticQuant | DynamicQuant
    scale: Value | None = None
    zero: Value | None = None


class Lifting:
    """The state of one run over a model."""

    def __init__(self, model: Model, result: PassResult) -> None:
        self.model = model
        self.result = result
        self.codes: dict[Value, Codes] = {}
        self.stored: dict[Value, StaticQuant] = {}
        """Values that have to be stored as a type, because another type is made from that."""
        self._floats: dict[tuple[Value, StaticQuant], Value] = {}
        self._done: list[Node] = []

    def codes_of(self, node: Node, index: int) -> Codes | None:
        """What an operand stores; None where it is missing, or no quantizer's result."""
        value = node.input(index)
        return None if value is None else self.codes.get(value)

    # QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear

    def quantizer(self, node: Node) -> None:
        use, codes = node.use(0), node.output
        if use is None or use.value.dtype is not DType.FLOAT:
            raise NotLiftable("it quantizes what is no f32 tensor")
        code_type = codes.dtype
        if code_type is None:
            code_type = DType.from_code(node.get("output_dtype", 0) or DType.UINT8.code)
        quant = self._type_of(node, use.value, code_type)
        before = use.effective_quant
        if isinstance(before, StaticQuant) and before != quant:
            # Requantization: what is stored is made first, the other type from it.
            if self.stored.setdefault(use.value, before) != before:
                raise NotLiftable(f"{use.value.name!r} is stored under two types that others are made from")
        self.codes[codes] = Codes(use.value, quant)
        self._done.append(node)
        self.result.count("quantizers")

    def dequantizer(self, node: Node) -> None:
        source = node.input(0)
        if source is None or node.output.dtype not in (DType.FLOAT, None):
            raise NotLiftable("it makes no f32 tensor")
        known = self.codes.get(source)
        dtype = source.dtype
        constant = constant_of(source) if known is None else None
        if constant is not None:
            dtype = constant.dtype
        if dtype is None:
            raise NotLiftable("the type of its input is unknown")
        quant = self._type_of(node, source, dtype)
        if known is not None:
            if known.quant != quant:
                raise NotLiftable("its scale or zero point is not that of the quantizer")
            number = known.value
        elif constant is not None:
            number = self.weight(source, quant)
        else:
            raise NotLiftable(f"its input {source.name!r} is no result of a quantizer")
        for use in list(node.output.uses):
            self._read(use, number, quant)
        self._done.append(node)
        self.result.count("dequantizers")

    def dynamic_quantizer(self, node: Node) -> None:
        source = node.input(0)
        if source is None or source.dtype is not DType.FLOAT:
            raise NotLiftable("it quantizes what is no f32 tensor")
        codes, scale, zero = node.outputs[:3]
        self.codes[codes] = Codes(source, DynamicQuant(DType.UINT8), scale, zero)
        self._done.append(node)

    # Nodes that compute on codes

    def movement(self, node: Node) -> None:
        """The same operator on floats, where all that it moves are codes of one type."""
        chosen = MOVEMENT[node.op]
        indices = range(len(node.uses)) if chosen is None else chosen
        operands = [node.input(index) for index in indices]
        if 0 in indices:
            self._table(node)
        if any(operand is None or operand not in self.codes for operand in operands):
            return
        codes = [self.codes[operand] for operand in operands if operand is not None]
        first = codes[0].quant
        if not isinstance(first, StaticQuant) or first.axis is not None or any(code.quant != first for code in codes):
            raise NotLiftable("what it moves was quantized in different ways")
        if node.op == "Resize" and node.get("mode", "nearest") != "nearest":
            raise NotLiftable("it interpolates between integers")
        inputs = list(node.inputs)
        for index, code in zip(indices, codes, strict=True):
            inputs[index] = code.value
        attributes = dict(node.attributes)
        self.replace(node, node.op, inputs, attributes, dict.fromkeys(indices, first), [first] * len(node.outputs))

    def _table(self, node: Node) -> None:
        """Enter a constant table of codes, whose type only the reader of what is taken from it knows."""
        table = node.input(0)
        content = constant_of(table)
        if table is None or content is None or content.dtype not in (DType.INT8, DType.UINT8) or table in self.codes:
            return
        use, reader = _first_use(node.output)
        while reader is not None and reader.op in MOVEMENT and reader.domain == "":
            use, reader = _first_use(reader.output)
        if reader is None or not is_quantized(reader):
            return
        # Whatever reads codes has their scale and zero point behind them in its list of operands.
        quant = static_type(reader.input(use + 1), reader.input(use + 2), content.dtype)
        if quant.axis is None:
            self.codes[table] = Codes(self.weight(table, quant), quant)

    def operand(self, node: Node, index: int, quant: StaticQuant) -> Value:
        """The float value whose codes a node reads at ``index`` under ``quant``, constants included."""
        value = node.input(index)
        if value is None:
            raise NotLiftable(f"operand {index} is missing")
        known = self.codes.get(value)
        if known is not None:
            if known.quant != quant:
                raise NotLiftable(f"operand {value.name!r} was quantized with another scale or zero point")
            return known.value
        if constant_of(value) is None:
            raise NotLiftable(f"operand {value.name!r} is no result of a quantizer")
        return self.weight(value, quant)

    def replace(
        self,
        node: Node,
        op: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Any],
        reads: Mapping[int, Any],
        results: Sequence[StaticQuant | None],
        *,
        instead: Node | None = None,
        between: Sequence[Node] = (),
        domain: str = "",
        kernel: str | None = None,
    ) -> Node:
        """Put the float operator where ``node`` stands, before it; it reads operands under the types ``reads``.

        ``results``: per output the type under which it is stored; None where the old node hands out floats already,
        whose readers then read the new one. ``instead``: the node whose outputs are meant, where a pattern ends later,
        ``between``: what else goes with the pattern.
        """
        last = node if instead is None else instead
        graph = last.graph
        assert graph is not None
        names = [graph.fresh_name(_base(value.name)) if value.name else "" for value in last.outputs]
        made = graph.insert_before(
            last, op, inputs, attributes=attributes, outputs=names, domain=domain,
            types=[TensorType(DType.FLOAT, value.shape) for value in last.outputs],
            name=graph.fresh_name(_base_node(node.name) or op), source=[node] if last is node else [node, last],
        )  # fmt: skip
        made.kernel = kernel
        for index, quant in reads.items():
            use = made.use(index)
            if use is not None:
                use.quant = quant
        for old, new, stored in zip(last.outputs, made.outputs, results, strict=True):
            if stored is None:
                new.type = old.type
                old.replace_all_uses(new)
            elif old.name:
                self.stored[new] = stored
                self.codes[old] = Codes(new, stored)
        self._done += [node, *between, *([] if last is node else [last])]
        self.result.count(op)
        return made

    def weight(self, codes: Value, quant: StaticQuant, *, transposed: bool = False) -> Value:
        """An initializer with the numbers that constant codes stand for; ``transposed``: last two axes swapped back."""
        key = (codes, quant)
        if key not in self._floats:
            content, graph = constant_of(codes), codes.graph
            if content is None or graph is None:
                raise NotLiftable(f"weight {codes.name!r} is not constant")
            array = content.numpy()
            if transposed:
                array = np.ascontiguousarray(np.swapaxes(array, -1, -2))
            numbers = dequantize(array, quant)
            made = graph.add_initializer(_base(codes.name), Tensor.of(numbers))
            made.frozen = True
            self._floats[key] = made
            self.result.count("weights")
        return self._floats[key]

    # The end

    def finish(self) -> None:
        """Erase what nothing reads any more; make codes for what still does."""
        for node in reversed(self._done):
            if node.graph is None:
                continue
            if node.op == "QuantizeLinear" or node.op == "DynamicQuantizeLinear":
                if any(value.uses for value in node.outputs):
                    continue  # its codes go somewhere that was not lifted
            else:
                for value in node.outputs:
                    if value.uses and value in self.codes:
                        self._materialize(value)
            if any(value.uses for value in node.outputs):
                continue
            old = [value for value in node.inputs if value is not None]
            node.erase()
            for value in dict.fromkeys(old):
                _drop_unused(value)

    def _materialize(self, codes: Value) -> None:
        known = self.codes[codes]
        graph, quant = known.value.graph, known.quant
        assert isinstance(quant, StaticQuant) and graph is not None
        maker = known.value.producer
        zero = quant.zero_point_array().astype(quant.dtype.numpy)
        parameters = [
            graph.add_initializer(f"{known.value.name}_scale", Tensor.of(np.asarray(quant.scale_array()))),
            graph.add_initializer(f"{known.value.name}_zero_point", Tensor.of(np.asarray(zero), quant.dtype)),
        ]
        before = graph.nodes.first if maker is None else maker.next
        made = graph.add_node(
            "QuantizeLinear", [known.value, *parameters], outputs=[graph.fresh_name(f"{known.value.name}_quantized")],
            types=[codes.type], before=before, source=[] if maker is None else [maker],
        )  # fmt: skip
        codes.replace_all_uses(made.output)

    def _type_of(self, node: Node, data: Value, dtype: DType) -> StaticQuant:
        rank = None if data.shape is None else len(data.shape)
        content = constant_of(data)
        return static_type(
            node.input(1), node.input(2), dtype, node.get("axis", 1), rank=rank, block=node.get("block_size", 0),
            shape=None if content is None else content.shape,
        )  # fmt: skip

    def _read(self, use: Use, number: Value, quant: StaticQuant) -> None:
        """Let a reader of a dequantizer's result read the float value, quantized on the way."""
        use.replace(number)
        if use.value is number:
            use.quant = quant
        elif use.value.producer is not None and use.value.producer.op == "Identity":
            identity = use.value.producer.use(0)
            assert identity is not None
            identity.quant = quant


def static_type(
    scale: Value | None,
    zero: Value | None,
    dtype: DType,
    axis: int = 0,
    *,
    rank: int | None = None,
    block: int = 0,
    shape: tuple[int, ...] | None = None,
) -> StaticQuant:
    """The type that constant parameters spell. Raises NotLiftable where they are none."""
    scales = constant_of(scale)
    zeros = constant_of(zero)
    if scales is None or (zero is not None and zeros is None):
        raise NotLiftable("its scale or zero point is not constant")
    if scales.dtype is not DType.FLOAT:
        raise NotLiftable(f"its scale is {scales.dtype}, not f32")
    if zeros is not None:
        dtype = zeros.dtype
    numbers = scales.numpy().reshape(-1)
    if numbers.size == 0 or not (np.isfinite(numbers).all() and (numbers > 0).all()):
        raise NotLiftable("its scales are not all positive and finite")
    flat = (0,) if zeros is None else _zero_points(zeros, dtype)
    if numbers.size == 1 and not block:
        return StaticQuant(dtype, (float(numbers[0]),), flat[:1])
    rank = len(shape) if shape is not None else rank
    if rank is None and axis < 0:
        raise NotLiftable("its axis counts from the back of a tensor of unknown rank")
    axis = axis if rank is None else axis % max(rank, 1)
    if len(flat) not in (1, numbers.size):
        raise NotLiftable("it has not as many zero points as scales")
    flat = flat[:1] if len(set(flat)) == 1 else flat
    made = StaticQuant(dtype, tuple(numbers.tolist()), flat, axis, block or None)
    if shape is not None:
        scale_shape(shape, made)
    return made


def _first_use(value: Value) -> tuple[int, Node | None]:
    use = value.uses.first
    return (0, None) if use is None else (use.index, use.node)


def _zero_points(zeros: Tensor, dtype: DType) -> tuple[int, ...]:
    if not dtype.is_integer:
        return (0,)
    return tuple(int(zero) for zero in zeros.numpy().reshape(-1).astype(np.int64))


def _base(name: str) -> str:
    """The name that a float tensor had before a quantizer was put there, as far as such names say."""
    for suffix in _SUFFIXES:
        if name.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def _base_node(name: str) -> str:
    return name.removesuffix("_quant")


def _drop_unused(value: Value) -> None:
    if value.uses or value.graph is None:
        return
    if value.is_constant:
        value.graph.remove_initializer(value)
    elif value.producer is not None and value.producer.op == "Constant":
        value.producer.erase()
