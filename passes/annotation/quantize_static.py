"""``quantize-static``: static quantization of any width or kind, for runtimes other than the one at hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from qir.calibration.collect import collect
from qir.calibration.data import open_data
from qir.calibration.specs import input_specs
from qir.errors import DataError, OptionError
from qir.ir import DerivedQuant, DType, Graph, Interval, Model, Node, StaticQuant, Use, UseQuantMarker, Value
from qir.passes.annotation.calibrate import choose_range, observer_of
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.pipeline.registry import load_target
from qir.quant.floats import float_format
from qir.quant.recipe import Choice, Method, Recipe
from qir.quant.schemes import SMALLEST_SCALE, activation_quant, bias_safe_scale, channel_magnitude, weight_quant
from qir.targets import Target
from qir.targets.kernels import make_dynamic, weight_type
from qir.targets.regions import weight_axis

__all__ = ["QuantizeStatic"]

TypeName = Literal["u8", "s8", "u16", "s16", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz"]
_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_PRODUCTS = frozenset({"Gemm", "MatMul"})
_LIGHT = frozenset(
    {"Add", "Sub", "Mul", "Div", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "Tanh", "Softmax"}
)
_MERGED = frozenset({"Relu", "Clip"})
_HUGE = 1e30


@dataclass(frozen=True)
class QuantizeStatic(Pass):
    """Annotate the operands of convolutions and matrix products with static types: ``activation`` per tensor,
    ``weight`` symmetric with a scale an output channel, or one for all where the target takes no other. No further
    rule of the target is asked: this is for types that it only emulates, to try them or to hand the file to a runtime
    that has kernels.

    Integers: asymmetric if unsigned; biases become s32. Floats: the scale brings the largest magnitude to the largest
    number of the type, zero point 0; biases stay float. For ort-cpu, which mistakes
    float codes for integers when it fuses, a Max of one operand stands on either side of quantizer and dequantizer.
    ``results`` also stores the results of these and of light operators in the activation's type, as runtimes without
    float units want it; but not of a matrix product for readers that a recipe keeps in float, where the target hands
    out floats as well.

    Before::

        %y: f32[1,8] = MatMul(%x, @w)

    After::

        %y: f32[1,8] = MatMul(%x : f8e4m3fn(0.0045, 0), @w : f8e4m3fn[axis=1](...)) kernel=integer
    """

    name: ClassVar[str] = "quantize-static"
    effect: ClassVar[Effect] = Effect.EXACT
    keeps_observed: ClassVar[bool] = True

    activation: TypeName = "f8e4m3fn"
    weight: TypeName = "f8e4m3fn"
    results: bool = False
    keep_float: tuple[str, ...] = ()
    """Names, globs or operators of nodes that stay as they are."""
    recipe: str | None = None
    """A TOML file of choices by node; see ``docs/quantize.md``."""

    @property
    def needs_calibration(self) -> bool:
        return True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError without calibration samples, OptionError for an unknown target."""
        if ctx.calibration is None:
            raise DataError("no calibration data: give samples with --calib, or calibration=... from Python")
        result = PassResult()
        chosen = Recipe.open(self.recipe).with_float(self.keep_float).assign(model, ctx.reference)
        nodes = list(self._nodes(model, chosen, result))
        values = dict.fromkeys(value for node in nodes for value in self._activations(node))
        if not nodes:
            return result
        data = open_data(ctx.calibration, input_specs(model))
        methods = self._methods(nodes, chosen)
        observers = {value: observer_of(methods.get(value, "minmax")) for value in values}
        found = collect(model, list(values), data, observers=observers, progress=ctx.progress)
        ranges = {value: choose_range(methods.get(value, "minmax"), one)[1] for value, one in found.items()}
        types = {value: self._activation_type(one) for value, one in ranges.items()}
        target = load_target(ctx.target)
        native = self._native(target) if target.runs_here else None
        # onnxruntime 1.31 moves and fuses float codes as if they were integers: it drops a Relu before a quantizer of
        # zero point 0, and refuses the integer operators that it makes.
        blocked = target.runs_here and DType.from_text(self.activation).is_float
        barriers: dict[tuple[Value, Graph], Value] = {}
        quantized = set(nodes)
        for node in nodes:
            choice = chosen.get(node)
            if choice is not None and choice.precision == "int8-dynamic":
                if native is None:
                    raise OptionError(f"{choice.origin}: {ctx.target} has no dynamic kernels for {self.activation}")
                make_dynamic(node, native)
                result.count("dynamic")
                result.changed = True
                continue
            missing = [value.name for value in self._activations(node) if types.get(value) is None]
            if missing:
                result.remarks.append(self.missed(node, f"{node.op} stays float: nothing was seen of {missing[0]!r}"))
                continue
            bare = native is not None and node.op in _PRODUCTS and _reads_float(_result(node), quantized, chosen)
            self._annotate(node, types, target, native, result, stored=self.results and not bare)
            if blocked:
                _raise_barriers(node, self._data(node), barriers)
            result.count(node.op)
            result.changed = True
        if target.runs_here and native is None:
            result.remarks.append(self.note(None, self._label()))
        return result

    def _native(self, target: Target) -> Target | None:
        """The target, where its own integer kernels are for these types."""
        types = (DType.from_text(self.activation), DType.from_text(self.weight))
        return target if types == (target.activation, target.weight) else None

    def _label(self) -> str:
        return (
            f"emulated on ort-cpu: it has no kernels for {self.activation} activations with {self.weight} weights and "
            "computes in f32 between quantizers"
        )

    def _nodes(self, model: Model, chosen: Mapping[Node, Choice], result: PassResult) -> Iterator[Node]:
        for node in model.graph.walk():
            wanted = node.op in _LINEAR or (self.results and node.op in _LIGHT)
            if node.domain not in ("", "ai.onnx") or not wanted or node.output.dtype is not DType.FLOAT:
                continue
            choice = chosen.get(node)
            if choice is not None and choice.precision == "float":
                reason = f"{choice.origin} says so ({choice.match!r})"
                result.remarks.append(self.missed(node, f"{node.op} stays float: {reason}"))
            else:
                yield node

    def _methods(self, nodes: list[Node], chosen: Mapping[Node, Choice]) -> dict[Value, Method]:
        """How the ranges of a node's quantizers are chosen: of its result, and of what it reads that nobody stores."""
        stored = {_result(node) for node in nodes} if self.results else set()
        methods: dict[Value, Method] = {}
        for node in nodes:
            choice = chosen.get(node)
            if choice is not None and choice.method is not None:
                own = [value for value in self._activations(node) if value not in stored or value is _result(node)]
                methods.update(dict.fromkeys(own, choice.method))
        return methods

    def _activations(self, node: Node) -> Iterator[Value]:
        """What needs a range: operands that are not constant and, if asked for, the result behind a merged clamp."""
        for use in self._data(node):
            if not use.value.is_constant:
                yield use.value
        if self.results:
            yield _result(node)

    def _data(self, node: Node) -> list[Use]:
        uses = node.uses[:2] if node.op in _LINEAR else node.uses
        return [use for use in uses if use is not None and use.value.dtype is DType.FLOAT]

    def _annotate(
        self,
        node: Node,
        types: dict[Value, StaticQuant | None],
        target: Target,
        native: Target | None,
        result: PassResult,
        *,
        stored: bool,
    ) -> None:
        for use in self._data(node):
            tensor = use.value.tensor
            if not use.value.is_constant:
                use.quant = types[use.value] or use.quant
            elif tensor is not None and node.op in _LINEAR and use.index == 1:
                if native is None or node.op == "ConvTranspose" or (node.op != "Conv" and len(tensor.shape) != 2):
                    use.quant = self._weight_type(node, tensor.numpy(), target)
                else:
                    use.quant = weight_type(node, tensor, native)
            elif tensor is not None and tensor.size:
                numbers = Interval(float(tensor.numpy().min()), float(tensor.numpy().max()))
                use.quant = self._activation_type(numbers) or use.quant
        self._bias(node, result)
        if stored:
            _result(node).quant = types[_result(node)]
        node.kernel = "integer"

    def _bias(self, node: Node, result: PassResult) -> None:
        """s32 at the product of the operands' scales, which is raised where the bias would not fit."""
        data, weight, bias = node.use(0), node.use(1), node.use(2)
        if node.op not in _LINEAR or data is None or weight is None or bias is None or bias.value.tensor is None:
            return
        x, w = data.effective_quant, weight.quant
        if not (isinstance(x, StaticQuant) and isinstance(w, StaticQuant) and w.dtype.is_integer):
            return
        numbers = bias.value.tensor.numpy().reshape(-1)
        channels = numbers.size if w.axis is None else len(w.scale)
        if numbers.size != channels or (node.op == "Gemm" and node.get("beta", 1.0) != 1.0):
            return
        scale = bias_safe_scale(w.scale_array(), numbers, x.scale[0])
        if (scale > w.scale_array()).any():
            result.remarks.append(self.note(node, "weight scales raised so that the bias fits 32 bits"))
        scales = scale.max(keepdims=True) if w.axis is None else scale
        weight.quant = replace(w, scale=tuple(scales.astype(np.float32).tolist()))
        bias.quant = DerivedQuant(0, 1)

    def _activation_type(self, range_: Interval) -> StaticQuant | None:
        bounds = range_.per_tensor()
        if bounds.is_empty or not bounds.is_bounded or bounds.magnitude >= _HUGE:
            return None
        dtype = DType.from_text(self.activation)
        if dtype.is_integer:
            return activation_quant(bounds, dtype, symmetric=dtype.is_signed)
        return StaticQuant.per_tensor(dtype, max(bounds.magnitude, SMALLEST_SCALE) / float_format(dtype).largest)

    def _weight_type(self, node: Node, weight: np.ndarray, target: Target) -> StaticQuant:
        dtype = DType.from_text(self.weight)
        whole = node.op in target.per_tensor_weights or weight.ndim < 2
        whole = whole or (node.op == "ConvTranspose" and node.get("group", 1) != 1)
        axis = None if whole else weight.ndim - 1 if node.op == "MatMul" else weight_axis(node)
        if dtype.is_integer:
            return weight_quant(weight, axis, dtype)
        largest = np.maximum(channel_magnitude(weight, axis), SMALLEST_SCALE)
        scale = (largest / float_format(dtype).largest).astype(np.float32)
        return StaticQuant(dtype, tuple(np.atleast_1d(scale).tolist()), (0,), axis)


def _reads_float(value: Value, quantized: set[Node], chosen: Mapping[Node, Choice]) -> bool:
    """Whether a recipe keeps a reader in float, and no reader is quantized."""
    readers = value.users
    kept = any((choice := chosen.get(node)) is not None and choice.precision == "float" for node in readers)
    return kept and not value.is_output and quantized.isdisjoint(readers)


def _raise_barriers(node: Node, uses: list[Use], made: dict[tuple[Value, Graph], Value]) -> None:
    """Put a ``Max`` of one operand before the quantizer and behind the dequantizer: nothing is fused across it."""
    for use in uses:
        quant, graph, value = use.quant, node.graph, use.value
        if value.is_constant or not isinstance(quant, StaticQuant) or graph is None:
            continue
        if (value, graph) not in made:
            before = graph.insert_before(node, "Max", [value], types=[value.type], source=[node])
            barrier = graph.insert_before(node, "Max", [before.output], types=[value.type], source=[node])
            operand = barrier.use(0)
            assert operand is not None
            operand.quant = quant
            made[value, graph] = barrier.output
        use.quant = UseQuantMarker.INHERIT
        use.value = made[value, graph]


def _result(node: Node) -> Value:
    """The node's result, behind a Relu or Clip that alone reads it."""
    value = node.output
    readers = list(value.uses)
    reader = readers[0].node if len(readers) == 1 else None
    if reader is not None and reader.op in _MERGED and readers[0].index == 0 and reader.graph is node.graph:
        return reader.output
    return value
