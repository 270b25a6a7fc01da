"""``quantize``: decide which nodes run on integers and with which parameters, as annotations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.errors import DataError, OptionError, suggest
from qir.ir import DerivedQuant, DType, Graph, Interval, Model, Node, StaticQuant, Use, Value
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.pipeline.registry import load_target
from qir.quant.recipe import Choice, Recipe
from qir.quant.schemes import activation_quant, bias_safe_scale
from qir.targets import Form, OpRule, Target
from qir.targets.kernels import make_dynamic, make_lookup, make_recurrent, weight_type
from qir.targets.regions import RegionPlan, clip_bounds, data_inputs, merged_result, plan_regions, weight_axis

__all__ = ["PRESETS", "Quantize"]

PRESETS = ("int8",)
LINEAR = ("auto", "static", "dynamic")


@dataclass(frozen=True)
class Quantize(Pass):
    """Annotate the graph for integer execution on the target.

    Needs observed ranges (pass ``calibrate``) for what it quantizes. Convolutions get one quantizer on their result,
    after the activation that the runtime merges; linear operators one on each use of their input, their result stays
    float; light operators join where that saves conversions. With ``linear=auto`` linear operators whose input and
    result stand as floats quantize their input at run time, with ``dynamic`` all do, with ``static`` none; recurrent
    operators always. (Their range is that of the whole batch: a sample's result then depends a little on its company.)
    Bodies of If, Loop and Scan are quantized like the main graph, as far as samples ran them. ``keep-float`` names
    nodes that stay float, by original name, glob or operator; ``recipe`` is a TOML file of the same and more.

    Before::

        %y: f32[1,8] seen=[-1.5, 2] = Conv(%x, @w, @b)

    After::

        %y: f32[1,8] seen=[-1.5, 2] q=u8(0.0137255, 109) =
            Conv(%x : u8(0.0078, 128), @w : s8[axis=0](...), @b : bias) kernel=integer
    """

    name: ClassVar[str] = "quantize"
    effect: ClassVar[Effect] = Effect.ANALYSIS
    keeps_observed: ClassVar[bool] = True

    preset: str = "int8"
    """Which types; ``int8`` is the only one."""
    linear: str = "auto"
    keep_float: tuple[str, ...] = ()
    recipe: str | None = None

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises OptionError for an unknown preset or a pattern that matches nothing, DataError without ranges."""
        if self.preset not in PRESETS:
            raise OptionError(f"unknown preset {self.preset!r}{suggest(self.preset, PRESETS)}: there is {PRESETS[0]}")
        if self.linear not in LINEAR:
            raise OptionError(
                f"unknown linear={self.linear!r}{suggest(self.linear, LINEAR)}: use {' or '.join(LINEAR)}"
            )
        target = load_target(ctx.target)
        chosen = Recipe.open(self.recipe).with_float(self.keep_float).assign(model, ctx.reference)

        wanted = {node for node, choice in chosen.items() if choice.precision in ("int8", "int8-dynamic")}

        def keep_float(node: Node) -> str | None:
            if node.kernel == "float":
                return "a pass before this one made it so that others can run on integers"
            choice = chosen.get(node)
            if choice is not None and choice.precision == "float":
                return f"{choice.origin} says so ({choice.match!r})"
            return _huge_numbers(node, target)

        result = PassResult()
        annotator = _Annotator(self, target, chosen, result)
        for graph in model.graph.graphs():
            plan = plan_regions(graph, target, keep_float, annotator.stored, wanted)
            if _silent(graph):
                plan.kept.update(dict.fromkeys(plan.integer, "no calibration sample ran the body that it stands in"))
                plan.integer.clear()
            annotator.annotate_all(plan)
            for node, reason in plan.kept.items():
                node.kernel = "float"
                result.remarks.append(self.missed(node, f"{node.op} stays float: {reason}"))
            result.changed |= bool(plan.integer)
        for node, choice in chosen.items():  # also those that nothing would have put on integers
            if choice.precision == "float" and node.kernel is None and target.rule(node.domain, node.op) is not None:
                node.kernel = "float"
        for function in model.functions.values():
            result.remarks.append(
                self.missed(None, f"function {function.domain}.{function.name} stays float: inline it to quantize it")
            )
        return result


class _Annotator:
    """Annotates graph after graph; a value that several of them read has one type."""

    def __init__(self, owner: Quantize, target: Target, chosen: Mapping[Node, Choice], result: PassResult) -> None:
        self.owner = owner
        self.target = target
        self.chosen = chosen
        self.result = result
        self.stored: set[Value] = set()
        self.chained: set[Value] = set()
        self.types: dict[Value, StaticQuant] = {}

    def annotate_all(self, plan: RegionPlan) -> None:
        self.stored |= plan.stored()
        self.chained |= _chained(plan)
        for node, rule in plan.integer.items():
            self.annotate(node, rule, plan.result[node])

    def dynamic(self, node: Node, result: Value) -> bool:
        """Whether a linear operator quantizes its input at run time.

        By default, where that and the result stand as floats: a static quantizer takes as long there, the dynamic
        kernel adds the bias along, and a range made for all samples is no better than a sample's own.
        """
        choice = self.chosen.get(node)
        if choice is not None and choice.precision is not None:
            return choice.precision == "int8-dynamic"
        if self.owner.linear == "auto":
            source = node.input(0)
            integers = source in self.stored or source in self.chained or result in self.chained
            return self.target.dynamic_linear and not integers
        return self.owner.linear == "dynamic"

    def annotate(self, node: Node, rule: OpRule, result: Value) -> None:
        self.result.count(node.op)
        if rule.form is Form.RECURRENT:
            make_recurrent(node, self.target)
            self.result.remarks.append(self.owner.applied(node, f"{node.op} runs as {node.kernel}"))
            return
        if rule.form is Form.LOOKUP:
            make_lookup(node)
            self.result.remarks.append(self.owner.applied(node, f"{node.op} reads its table as {DType.INT8} rows"))
            return
        if rule.form is Form.LINEAR and self.dynamic(node, result):
            make_dynamic(node, self.target)
            self.result.remarks.append(self.owner.applied(node, f"{node.op} quantizes its input at run time"))
            return
        node.kernel = "integer"
        for index in data_inputs(node, rule):
            use = node.use(index)
            if use is not None and use.value not in self.stored:
                use.quant = self._constant_type(use) if use.value.is_constant else self._type_of(use.value)
        if rule.weight_input is not None:
            self._annotate_weight(node, rule)
        if rule.form is Form.MOVEMENT:
            source = node.input(0)
            assert source is not None
            for value in node.outputs:
                if value.name:
                    value.quant = self.types[value] = self._type_of(source)
        elif rule.form is not Form.LINEAR:
            result.quant = self._type_of(result)
        message = f"{node.op} runs on integers"
        self.result.remarks.append(self.owner.applied(node, message))

    def _type_of(self, value: Value) -> StaticQuant:
        if value not in self.types:
            self.types[value] = self._fit_clip(value, self._activation_type(value_range(value)))
        return self.types[value]

    def _fit_clip(self, value: Value, quant: StaticQuant) -> StaticQuant:
        """Let the codes end inside of the Clip that makes the value, so that the quantizer makes it redundant.

        Rounding of the scale can put the last code an ulp outside, and the runtime then fuses nothing.
        """
        producer = value.producer
        if producer is None or producer.op != "Clip":
            return quant
        upper = clip_bounds(producer)[1]
        scale = np.float32(quant.scale[0])
        levels = np.float32(quant.dtype.qmax - quant.zero_point[0])
        if upper is None or scale * levels <= upper or scale * levels > upper * 1.001:
            return quant
        while scale * levels > upper:
            scale = np.nextafter(scale, np.float32(0))
        return StaticQuant.per_tensor(quant.dtype, float(scale), quant.zero_point[0])

    def _constant_type(self, use: Use) -> StaticQuant:
        tensor = use.value.tensor
        assert tensor is not None
        array = tensor.numpy()
        return self._activation_type(Interval(float(array.min()), float(array.max())))

    def _activation_type(self, range_: Interval) -> StaticQuant:
        return activation_quant(range_, self.target.activation, symmetric=self.target.symmetric)

    def _annotate_weight(self, node: Node, rule: OpRule) -> None:
        assert rule.weight_input is not None
        use = node.use(rule.weight_input)
        tensor = use.value.tensor if use is not None else None
        assert use is not None and tensor is not None
        quant = weight_type(node, tensor, self.target)
        scale = quant.scale_array()
        bias_use = node.use(rule.bias_input) if rule.bias_input is not None else None
        if bias_use is not None:
            bias = bias_use.value.tensor
            assert bias is not None
            input_use = node.use(0)
            assert input_use is not None
            input_type = input_use.effective_quant or self.types[input_use.value]
            assert isinstance(input_type, StaticQuant)
            safe = bias_safe_scale(scale, bias.numpy().reshape(-1), input_type.scale[0])
            raised = int((safe > scale).sum())
            if raised:
                self.result.remarks.append(
                    self.owner.note(node, f"weight scales of {raised} channels raised so that the bias fits 32 bits")
                )
            scale = safe
            bias_use.quant = DerivedQuant(0, rule.weight_input)
            if quant.axis is None:
                quant = StaticQuant.per_tensor(quant.dtype, float(np.max(scale)))
            else:
                quant = StaticQuant.per_axis(quant.dtype, scale, weight_axis(node))
        use.quant = quant


_MASK, _DROWNS = 1e4, 100.0
_BEYOND_SCALES = 1e30


def _huge_numbers(node: Node, target: Target) -> str | None:
    """Why a node's operands or result cannot have a scale: a mask such as -3.4e38 or -10000 beside ordinary numbers.

    Whatever is added or joined to it would be less than a step of the scale.
    """
    operands = [value for value in node.inputs if value is not None and value.dtype is DType.FLOAT]
    sizes = {value: size for value in operands if (size := _magnitude(value)) is not None}
    drowned = _DROWNS * min(sizes.values(), default=0.0)
    result = merged_result(node, target) if len(node.outputs) == 1 else None
    if result is not None and (size := _magnitude(result)) is not None:
        sizes[result] = size
    for value, size in sizes.items():
        joined = node.op in ("Add", "Concat") and size >= max(_MASK, drowned)
        if joined or (size >= _BEYOND_SCALES and not value.is_constant):
            return f"{value.name!r} reaches {size:.3g}: in such a scale all else would be zero"
    return None


def _magnitude(value: Value) -> float | None:
    """The largest absolute number that is known of a value; None where nothing is known or it holds none."""
    if value.tensor is not None:
        return float(np.abs(value.tensor.numpy()).max()) if value.tensor.size else None
    if value.observed is None or value.observed.is_empty:
        return None
    return value_range(value).magnitude


def value_range(value: Value) -> Interval:
    """What parameters must cover: what calibration saw, within what is possible.

    Raises DataError where nothing bounds the value.
    """
    observed, proved = value.observed, value.range
    if observed is not None and not observed.is_empty:
        if proved is not None:
            met = observed.per_tensor().meet(proved.per_tensor())
            return observed.per_tensor() if met.is_empty else met
        return observed.per_tensor()
    if proved is not None and proved.is_bounded:
        return proved.per_tensor()
    raise DataError(f"value {value.name!r} has no observed range: run 'calibrate' with samples before 'quantize'")


def _chained(plan: RegionPlan) -> set[Value]:
    """Results of linear operators that only integer nodes read: there the kernel itself writes integers."""
    found: set[Value] = set()
    for node, rule in plan.integer.items():
        if rule.form is not Form.LINEAR:
            continue
        value = plan.result[node]
        readers = [(use.node, use.index) for use in value.uses]
        if readers and all(_reads_data(plan, reader, index) for reader, index in readers):
            found.add(value)
    return found


def _reads_data(plan: RegionPlan, reader: Node | None, index: int) -> bool:
    rule = plan.integer.get(reader) if reader is not None else None
    return reader is not None and rule is not None and index in data_inputs(reader, rule)


def _silent(graph: Graph) -> bool:
    """Whether this is a body that no calibration sample ran: a branch not taken, a loop of no rounds.

    Calibration watches at least one value of each body; values from outside say nothing about it.
    """
    if graph.owner is None:
        return False
    return all(value.observed is None or value.observed.is_empty for value in graph.values())
