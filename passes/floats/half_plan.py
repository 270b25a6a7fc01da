"""Which nodes ``convert-float`` computes in 16 bits, and why the others stay float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from qir.ir import DType, Model, Node, Tensor, Use, Value
from qir.ops.schema import Formal, function_of, schema_of
from qir.ops.traits import is_data_movement, is_elementwise
from qir.quant.floats import float_format, relative_loss

__all__ = ["MASK", "READS_ANY_TYPE", "HalfPlan", "plan_half"]

READS_ANY_TYPE = frozenset({"Shape", "Size"})
"""No need to cast for these."""

MASK = 1e8
"""A constant of this magnitude stands for infinity: it is clamped, not kept."""
_HEADROOM = 4.0
"""Other samples may reach that much further than those seen."""
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_GENERATORS = frozenset({"RandomNormal", "RandomUniform", "Multinomial", "EyeLike", "Range", "Constant"})
_SUMS = frozenset({"ReduceSum", "ReduceMean", "ReduceSumSquare", "ReduceL1", "ReduceL2", "GlobalAveragePool", "CumSum"})
_GROWING = frozenset({"Exp", "Pow", "ReduceSumSquare", "ReduceL2", "ReduceProd", "CumSum", "Softplus", "Sinh", "Cosh"})
"""Stay float32 where no range says that they are safe."""
_SENSITIVE = frozenset({"Sqrt", "Reciprocal", "Log", "Div", "Pow", "Clip", "Max"})
"""What an epsilon was added for."""
_LONG_SUM = 4096
_ANGLE_DEPTH = 8


@dataclass(slots=True)
class HalfPlan:
    """``half``: the nodes that compute in 16 bits; ``reasons`` of the others, but for those that only move data between
    them. ``masks``: constants to clamp into the range."""

    dtype: DType
    model: Model
    half: set[Node] = field(default_factory=set)
    reasons: dict[Node, str] = field(default_factory=dict)
    masks: set[Value] = field(default_factory=set)

    def wants_half(self, use: Use) -> bool:
        """Whether this operand is read in 16 bits, given that it is float32 now."""
        node = use.node
        return node in self.half and node is not None and self._takes(_formal(node, self.model, use.index))

    def makes_half(self, value: Value) -> bool:
        """Whether this result, float32 now, will be of 16 bits."""
        node = value.producer
        if node is None or node not in self.half:
            return False
        schema = schema_of(node, self.model)
        return self._takes(None if schema is None else schema.output(value.index))

    def _takes(self, formal: Formal | None) -> bool:
        return formal is not None and _type_name(self.dtype) in formal.types


Magnitude = Callable[[Value], float | None]


def plan_half(
    model: Model, dtype: DType, seen: Mapping[Value, float], keep: Callable[[Node], str | None], *, keep_io: bool
) -> HalfPlan:
    """``seen``: the largest magnitude of values that samples reached; ``keep``: the user's reason to keep a node."""
    plan = HalfPlan(dtype, model)
    rules = _Rules(plan, seen)
    for node in model.graph.walk():
        reason = keep(node) or rules.reason(node)
        if reason is None:
            plan.half.add(node)
        else:
            plan.reasons[node] = reason
    _spread_epsilons(plan, rules)
    _spread_angles(plan)
    _join_islands(plan, keep_io)
    return plan


class _Rules:
    def __init__(self, plan: HalfPlan, seen: Mapping[Value, float]) -> None:
        self.plan = plan
        self.model = plan.model
        self.dtype = plan.dtype
        self.format = float_format(plan.dtype)
        self.seen = seen
        self.epsilons: set[Node] = set()
        # 16 times the error that rounding makes in the middle of the range.
        self.lossy = 16 * self.format.epsilon**2 / 12

    def reason(self, node: Node) -> str | None:
        """Why a node stays float32; None where nothing speaks against 16 bits."""
        if node.domain not in ("", "ai.onnx"):
            return f"{node.domain}.{node.op} may have no {self.dtype} form"
        if node.bodies or function_of(node, self.model) is not None:
            return f"the interface of {node.op} stays as it is"
        if node.op in _QUANTIZERS or _reads_integers(node):
            return "it belongs to an integer region"
        if node.op in _GENERATORS:
            return f"{node.op} makes numbers that 16 bits may not count"
        unknown = next((value.name for value in node.inputs if value is not None and value.type is None), None)
        if unknown is not None:
            return f"the type of {unknown!r} is not known"
        if not any(value is not None and value.dtype is DType.FLOAT for value in (*node.inputs, *node.outputs)):
            return None
        if not self._has_form(node):
            return f"{node.op} has no {self.dtype} form at opset {self.model.opset()}"
        return self._constants(node) or self._numbers(node)

    def _has_form(self, node: Node) -> bool:
        """Some operand or result is float32 now and may be of 16 bits, none is a sequence."""
        schema = schema_of(node, self.model)
        if schema is None:
            return False
        name = _type_name(self.dtype)
        operands = [(use.value, schema.input(use.index)) for use in node.uses if use is not None]
        results = [(value, schema.output(index)) for index, value in enumerate(node.outputs)]
        touched = [formal for value, formal in (*operands, *results) if value.dtype is DType.FLOAT]
        return any(formal is not None and name in formal.types for formal in touched)

    def _constants(self, node: Node) -> str | None:
        for use in node.uses:
            value = None if use is None else use.value
            tensor = None if value is None else value.tensor
            if value is None or tensor is None or tensor.dtype is not DType.FLOAT or not tensor.size:
                continue
            largest = _largest(tensor)
            if largest > self.format.largest:
                if largest < MASK:
                    return f"its constant {value.name!r} reaches {largest:.3g}, past what {self.dtype} holds"
                self.plan.masks.add(value)
                continue
            # A lone number is an epsilon or a factor: a tenth of it is no harm where rounding of a weight would be.
            if relative_loss(tensor.numpy(), self.dtype) > (self.lossy if tensor.size > 1 else 0.01):
                if tensor.size == 1:
                    self.epsilons.add(node)
                return f"its constant {value.name!r} of magnitude {largest:.3g} underflows in {self.dtype}"
        return None

    def _numbers(self, node: Node) -> str | None:
        limit = self.format.largest
        for value in (*node.inputs, *node.outputs):
            size = None if value is None else self.magnitude(value)
            if value is None or size is None or value.is_constant or value.dtype is not DType.FLOAT:
                continue
            if limit / _HEADROOM < size < MASK:
                return f"{value.name!r} reaches {size:.3g}: {self.dtype} holds {limit:.3g}"
            if value in self.seen and 0 < size < self.format.smallest_normal:
                return f"{value.name!r} stays below {size:.3g}: {self.dtype} underflows"
        if node.op in ("Sin", "Cos"):
            return "angles need float32: a large one has no digits left for its phase"
        if node.op == "Cast" and self.format.mantissa < 24:
            return self._counted(node)
        if node.op in _SUMS:
            return self._sum(node)
        result = node.outputs[0] if node.outputs else None
        if node.op in _GROWING and result is not None and self.magnitude(result) is None:
            return f"nothing bounds the results of {node.op}: calibrate with samples"
        return None

    def _counted(self, node: Node) -> str | None:
        """A Cast of whole numbers that 16 bits cannot tell apart."""
        source, exact = node.input(0), 2.0 ** (self.format.mantissa + 1)
        if (
            source is None
            or source.dtype is None
            or not source.dtype.is_integer
            or node.output.dtype is not DType.FLOAT
        ):
            return None
        size = self.magnitude(node.output)
        if size is not None and size <= exact:
            return None
        return f"it counts: {self.dtype} has no whole numbers above {exact:.0f}"

    def _sum(self, node: Node) -> str | None:
        source, result = node.input(0), node.outputs[0]
        if source is None or not isinstance(source.shape, tuple) or not isinstance(result.shape, tuple):
            return f"the length of its sum is unknown to {self.dtype}" if node.op == "CumSum" else None
        sizes = [_elements(shape) for shape in (source.shape, result.shape)]
        if not sizes[1]:
            return None
        terms = max(sizes[0] // sizes[1], 1) if node.op != "CumSum" else max(_known(source.shape))
        size = self.magnitude(source)
        if terms > _LONG_SUM:
            return f"it sums {terms} numbers, too many for {self.dtype}"
        grown = None if size is None else terms * (size**2 if node.op in ("ReduceSumSquare", "ReduceL2") else size)
        if grown is not None and self.format.largest < grown < MASK:
            return f"its sum of {terms} numbers may reach {grown:.3g}: {self.dtype} holds {self.format.largest:.3g}"
        return None

    def magnitude(self, value: Value) -> float | None:
        """The largest number seen or, where no sample said, proved; None where nothing is known."""
        if value in self.seen:
            return self.seen[value]
        proved = value.range.per_tensor() if value.range is not None else None
        if proved is None or proved.is_empty or not proved.is_bounded:
            return None
        # A proved bound beyond the limit is no evidence that anything gets there.
        return proved.magnitude if proved.magnitude <= self.format.largest / _HEADROOM else None


def _spread_epsilons(plan: HalfPlan, rules: _Rules) -> None:
    """What reads a sum with a tiny constant, to divide by it or take its root, stays float32 as well."""
    work = list(rules.epsilons)
    while work:
        for value in work.pop().outputs:
            for reader in value.users:
                if reader in plan.half and reader.op in _SENSITIVE:
                    plan.half.discard(reader)
                    plan.reasons[reader] = "it divides by, or takes the root of, what a tiny constant was added to"
                    work.append(reader)


def _spread_angles(plan: HalfPlan) -> None:
    """What computes the angle of a sine stays float32 too: rounded, a large angle is another one."""
    work = [(node, 0) for node in plan.model.graph.walk() if node.op in ("Sin", "Cos")]
    seen: set[Node] = set()
    while work:
        node, depth = work.pop()
        for value in node.inputs:
            maker = None if value is None else value.producer
            if maker is None or maker in seen or depth == _ANGLE_DEPTH or _has_weight(maker):
                continue
            seen.add(maker)
            work.append((maker, depth + 1))
            if maker in plan.half:
                plan.half.discard(maker)
                plan.reasons[maker] = "angles are made of its results"


def _has_weight(node: Node) -> bool:
    return any(value is not None and value.tensor is not None and value.tensor.size > 4096 for value in node.inputs)


def _join_islands(plan: HalfPlan, keep_io: bool) -> None:
    """Let light nodes between float32 neighbours stay float32 where that saves casts: first what hangs together as a
    whole, then what is left node by node."""
    light = [node for node in plan.model.graph.walk() if node in plan.half and _is_light(node)]
    seen: set[Node] = set()
    for start in light:
        if start in seen:
            continue
        island, work = {start}, [start]
        while work:
            for other in _neighbours(work.pop()):
                if other in plan.half and other not in island and _is_light(other):
                    island.add(other)
                    work.append(other)
        seen |= island
        if _prefers_full(plan, island, keep_io):
            plan.half -= island
    while light:
        node = light.pop()
        if node in plan.half and _is_light(node) and _prefers_full(plan, {node}, keep_io):
            plan.half.discard(node)
            light += [other for other in _neighbours(node) if other in plan.half]


def _prefers_full(plan: HalfPlan, island: set[Node], keep_io: bool) -> bool:
    """Whether more float32 than 16-bit values cross the border of these nodes; a value counts once."""
    near_half: set[Value] = set()
    near_full: set[Value] = set()
    for node in island:
        for value in () if node.op in READS_ANY_TYPE else node.inputs:
            if value is None or value.is_constant or value.dtype is not DType.FLOAT or value.producer in island:
                continue
            is_input = value.producer is None and value.graph is plan.model.graph
            half = not keep_io if is_input else value.producer in plan.half
            (near_half if half else near_full).add(value)
        for value in node.outputs:
            for use in value.uses if value.dtype is DType.FLOAT else ():
                reader = use.node
                if reader is None or (reader not in island and reader.op not in READS_ANY_TYPE):
                    half = reader in plan.half or (reader is None and not keep_io and use.graph is plan.model.graph)
                    (near_half if half else near_full).add(value)
    return len(near_half) < len(near_full)


def _neighbours(node: Node) -> Iterator[Node]:
    """Makers and readers of a node's float32 values."""
    for value in node.inputs:
        if value is not None and value.dtype is DType.FLOAT and value.producer is not None:
            yield value.producer
    for value in node.outputs:
        if value.dtype is DType.FLOAT:
            yield from (use.node for use in value.uses if use.node is not None)


def _is_light(node: Node) -> bool:
    return is_elementwise(node) or is_data_movement(node) or node.op in ("Relu", "Clip", "Concat", "Cast", "MaxPool")


def _reads_integers(node: Node) -> bool:
    """Whether the node computes on dequantized operands, and so on integers where the runtime fuses it."""
    makers = [value.producer.op if value is not None and value.producer is not None else "" for value in node.inputs]
    if node.op in ("Conv", "MatMul", "Gemm", "ConvTranspose"):
        return "DequantizeLinear" in makers[:2]
    read = {user.op for value in node.outputs for user in value.users}
    data = [maker for value, maker in zip(node.inputs, makers, strict=True) if value is not None and maker]
    return bool(data) and set(data) == {"DequantizeLinear"} and read == {"QuantizeLinear"}


def _formal(node: Node, model: Model, index: int) -> Formal | None:
    schema = schema_of(node, model)
    return None if schema is None else schema.input(index)


def _type_name(dtype: DType) -> str:
    return {DType.FLOAT16: "tensor(float16)", DType.BFLOAT16: "tensor(bfloat16)"}[dtype]


def _largest(tensor: Tensor) -> float:
    """Of the finite numbers; an infinity stays one in 16 bits."""
    array = np.abs(tensor.numpy())
    return float(array[np.isfinite(array)].max(initial=0.0))


def _known(shape: tuple[object, ...]) -> list[int]:
    return [size for size in shape if isinstance(size, int)] or [1]


def _elements(shape: tuple[object, ...]) -> int:
    """Number of elements, symbolic sizes counted as 1 (they are the same in what is compared)."""
    return int(np.prod(_known(shape), dtype=np.int64))
