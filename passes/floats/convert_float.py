"""``convert-float``: compute, or only store, a float32 model in 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from qir.calibration.collect import collect
from qir.calibration.data import open_data
from qir.calibration.specs import input_specs
from qir.calibration.statistics import MinMax
from qir.codegen.spool import Spool
from qir.errors import UnsupportedError
from qir.ir import Attribute, AttrKind, DType, Graph, Model, Node, Tensor, TensorType, Use, Value
from qir.passes.floats.half_plan import MASK, READS_ANY_TYPE, HalfPlan, plan_half
from qir.pipeline import Pipeline
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.pipeline.registry import load_target
from qir.quant.floats import float_format, relative_loss
from qir.quant.recipe import Recipe

__all__ = ["ConvertFloat"]

_Narrow = Callable[[Tensor, DType], Tensor]
_DTYPES = {"f16": DType.FLOAT16, "bf16": DType.BFLOAT16}
_SMALL = 256
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


@dataclass(frozen=True)
class ConvertFloat(Pass):
    """Turn float32 values, constants and casts into 16-bit floats, with a Cast only where a 16-bit region begins or
    ends.

    Nodes stay float32 that 16 bits would break: where ranges (proved, or seen on the calibration samples) pass what the
    type holds or fall below what it resolves, where a constant such as an epsilon would become zero, in long sums, in
    angles and counts, and where the operator has no such form. Masks like -3.4e38 are clamped. Integer regions and the
    interfaces of bodies stay as they are, and so do the model's inputs and outputs with ``keep-io``.

    ``form=storage`` leaves the computation alone and stores constants of at least ``min-size`` numbers in 16 bits,
    which a Cast widens when the model is loaded: half the size at float32's speed and nearly its accuracy. With
    ``file`` constants go there one by one, so that memory depends on the largest only; a journal beside it lets
    interrupted work go on.

    Before::

        %y: f32[1,8] = MatMul(%x, @w)          // %x: f32[1,4], a graph input

    After::

        %x_f16: f16[1,4] = Cast(%x) {to=10}
        %y_f16: f16[1,8] = MatMul(%x_f16, @w)
        %y: f32[1,8] = Cast(%y_f16) {to=1}
    """

    name: ClassVar[str] = "convert-float"
    effect: ClassVar[Effect] = Effect.LOSSY

    dtype: Literal["f16", "bf16"] = "f16"
    """The 16-bit type."""
    form: Literal["compute", "storage"] = "compute"
    keep_io: bool = True
    keep_float: tuple[str, ...] = ()
    """Names, globs or operators of nodes that stay as they are."""
    recipe: str | None = None
    """A TOML file of choices by node; see ``docs/quantize.md``."""
    min_size: int = 256
    """Of constants in form ``storage``."""
    file: str | None = None

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises UnsupportedError where the model's opset lacks the type, OutputError for the file."""
        if self.file is None:
            return self._convert(model, ctx, _narrow)
        with Spool(Path(self.file), {"pass": str(Pipeline([replace(self, file=None)]))}) as spool:
            return self._convert(model, ctx, partial(_narrow_into, spool))

    def _convert(self, model: Model, ctx: PassContext, narrow: _Narrow) -> PassResult:
        result = PassResult()
        dtype = _DTYPES[self.dtype]
        keep = Recipe.open(self.recipe).with_float(self.keep_float).resolve(model)
        if self.form == "storage":
            if dtype is DType.BFLOAT16 and (model.opset() or 0) < 13:
                raise UnsupportedError(f"bf16 needs opset 13, the model has {model.opset()}: run 'convert-opset' first")
            self._store(model, dtype, keep, narrow, result)
        else:
            plan = plan_half(model, dtype, self._seen(model, ctx), keep, keep_io=self.keep_io)
            _Converter(plan, self.keep_io, narrow, result).convert()
            for node, reason in plan.reasons.items():
                result.remarks.append(self.missed(node, f"{node.op} stays float32: {reason}"))
            if load_target(ctx.target).runs_here:
                _part_turned_products(model, result)
                result.remarks.append(self.note(None, _emulated(dtype)))
        result.changed = bool(result.statistics)
        return result

    def _seen(self, model: Model, ctx: PassContext) -> dict[Value, float]:
        """The largest magnitude of each float value that samples reached."""
        if ctx.calibration is None:
            return {}
        values = [
            value
            for graph in model.graph.graphs()
            for value in graph.values()
            if value.dtype is DType.FLOAT and not value.is_constant
        ]
        feeds = open_data(ctx.calibration, input_specs(model))
        found: dict[Value, MinMax] = collect(model, values, feeds, progress=ctx.progress)
        return {value: one.interval.magnitude for value, one in found.items() if not one.interval.is_empty}

    def _store(
        self, model: Model, dtype: DType, keep: Callable[[Node], str | None], narrow: _Narrow, result: PassResult
    ) -> None:
        limit = 16 * float_format(dtype).epsilon ** 2 / 12
        for graph in model.graph.graphs():
            first = graph.nodes.first
            for value in list(graph.initializers):
                tensor = value.tensor
                if tensor is None or tensor.dtype is not DType.FLOAT or tensor.size < self.min_size or value.is_output:
                    continue
                reason = next((why for node in value.users if (why := keep(node)) is not None), None)
                if reason is not None:
                    result.remarks.append(self.missed(value, f"stays float32: {reason}"))
                    continue
                # Masks are clamped, so their size says nothing.
                if relative_loss(tensor.numpy(), dtype, below=MASK) > limit:
                    result.remarks.append(self.missed(value, f"stays float32: its numbers do not fit {dtype}"))
                    continue
                stored = graph.add_initializer(f"{value.name}_{dtype}", narrow(tensor, dtype))
                node = graph.add_node(
                    "Cast",
                    [stored],
                    {"to": DType.FLOAT.code},
                    types=[TensorType(DType.FLOAT, tensor.shape)],
                    before=first,
                    source=value.users[:1],
                )
                value.replace_all_uses(node.output)
                graph.remove_initializer(value)
                result.count("constants")


def _part_turned_products(model: Model, result: PassResult) -> None:
    """onnxruntime 1.31 makes one operator of a Transpose that moves the rows and an f16 product with a matrix, and then
    crashes while it loads the model: a Max of one operand stands between the two."""
    for node in list(model.walk()):
        operand = node.input(0) if node.op == "MatMul" and node.domain == "" else None
        turn = None if operand is None else operand.producer
        if operand is None or turn is None or turn.op != "Transpose" or operand.dtype is not DType.FLOAT16:
            continue
        axes = list(turn.get("perm", ()))
        if len(axes) < 3 or axes[-1] != len(axes) - 1 or axes[-2] == len(axes) - 2 or node.graph is None:
            continue
        apart = node.graph.insert_before(node, "Max", [operand], types=[operand.type], source=[node])
        node.set_input(0, apart.output)
        result.count("barriers")


def _emulated(dtype: DType) -> str:
    if dtype is DType.BFLOAT16:
        return "onnxruntime's CPU provider has no bf16 kernels for most operators and does not load such a model"
    return (
        "emulated on ort-cpu: it has f16 kernels for few operators and computes the others in f32 between casts of its "
        "own, which may cost speed; preset fp16-weights keeps that of the float model"
    )


class _Converter:
    """Carries a plan out: types first, then constants, then casts where two types meet."""

    def __init__(self, plan: HalfPlan, keep_io: bool, narrow: _Narrow, result: PassResult) -> None:
        self.plan = plan
        self.narrow = narrow
        self.dtype = plan.dtype
        self.keep_io = keep_io
        self.result = result
        self.casts: dict[tuple[Value, Graph], Value] = {}
        self.narrowed: set[Value] = set()

    def convert(self) -> None:
        graph = self.plan.model.graph
        wanted = {use for node in self.plan.half for use in node.uses if use is not None and self._is_wanted(use)}
        made = [v for node in self.plan.half for v in node.outputs if _is_float(v) and self.plan.makes_half(v)]
        self.narrowed.update(made)
        if not self.keep_io:
            self.narrowed.update(value for value in graph.inputs if _is_float(value) and not value.is_initializer)
        constants = dict.fromkeys(use.value for node in graph.walk() for use in node.uses if use in wanted and use)
        for value in self.narrowed:
            assert isinstance(value.type, TensorType)
            value.type = replace(value.type, dtype=self.dtype)
        if self.narrowed:
            self.result.count("values", len(self.narrowed))
        for node in list(graph.walk()):
            if node in self.plan.half:
                self._attributes(node)
        for value in constants:
            if value.is_constant:
                self._constant(value, wanted)
        for node in list(graph.walk()):
            for use in node.uses:
                if use is not None and not use.value.is_constant:
                    self._meet(use, node, use in wanted)
        for body in list(graph.graphs()):
            self._outputs(body)

    def _is_wanted(self, use: Use) -> bool:
        return _is_float(use.value) and self.plan.wants_half(use)

    def _attributes(self, node: Node) -> None:
        """Casts to float32 become casts to 16 bits, and a tensor that tells the result's type is narrowed."""
        if not any(value in self.narrowed for value in node.outputs):
            return
        for attribute in list(node.attributes.values()):
            value: Any = attribute.value
            if attribute.kind is AttrKind.TENSOR and isinstance(value, Tensor) and value.dtype is DType.FLOAT:
                narrow = _narrow(value, self.dtype)
                node.set(attribute.name, Attribute(attribute.name, AttrKind.TENSOR, narrow, doc=attribute.doc))
            elif attribute.name in _TYPE_ATTRIBUTES and value == DType.FLOAT.code:
                node.set(attribute.name, self.dtype.code)

    def _constant(self, value: Value, wanted: set[Use]) -> None:
        assert isinstance(value.const, Tensor) and value.graph is not None
        narrow = self.narrow(value.const, self.dtype)
        readers = [use for use in value.uses if use in wanted]
        if len(readers) == len(value.uses) and not value.is_input:
            value.const = narrow
            value.type = TensorType(self.dtype, narrow.shape)
        else:
            copy = value.graph.add_initializer(f"{value.name}_{self.dtype}", narrow)
            for use in readers:
                use.value = copy
        self.result.count("constants")

    def _meet(self, use: Use, node: Node, half: bool) -> None:
        value = use.value
        if half != (value in self.narrowed) and node.op not in READS_ANY_TYPE:
            use.value = self._cast(value, use.graph, self.dtype if half else DType.FLOAT, node)

    def _outputs(self, graph: Graph) -> None:
        for use in graph.output_uses:
            value = use.value
            if value in self.narrowed and (self.keep_io or graph.owner is not None):
                use.replace(self._cast(value, graph, DType.FLOAT, None))

    def _cast(self, value: Value, graph: Graph, to: DType, before: Node | None) -> Value:
        """One cast of a value in a graph; nodes are visited in order, so the first place serves all."""
        if (value, graph) not in self.casts:
            assert isinstance(value.type, TensorType)
            source = [value.producer] if value.producer is not None else []
            type_ = replace(value.type, dtype=to)
            node = graph.add_node("Cast", [value], {"to": to.code}, types=[type_], before=before, source=source)
            self.casts[value, graph] = node.output
            self.result.count("casts")
        return self.casts[value, graph]


def _is_float(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype is DType.FLOAT


def _narrow(tensor: Tensor, dtype: DType) -> Tensor:
    """In 16 bits; what is finite stays finite. Masks stop at half of the range, so that two of them can be added."""
    array = tensor.numpy()
    largest = float_format(dtype).largest
    if np.isfinite(array).all() and np.abs(array).max(initial=0.0) <= largest:
        return Tensor.of(array.astype(dtype.numpy), dtype, tensor.name)
    beyond = np.isfinite(array) & (np.abs(array) > largest)
    clamped = np.where(beyond, np.copysign(np.float32(largest / 2), array), array)
    return Tensor.of(clamped.astype(dtype.numpy), dtype, tensor.name)


def _narrow_into(spool: Spool, tensor: Tensor, dtype: DType) -> Tensor:
    """The same in a data file, unless an earlier run has put it there; what is small stays in the model."""
    if tensor.size < _SMALL:
        return _narrow(tensor, dtype)
    done = spool.begin(f"{tensor.digest().hex()} {dtype}")
    stored = spool.put(_narrow(tensor, dtype) if done is None else tensor)
    spool.end({})
    tensor.release()
    return stored
