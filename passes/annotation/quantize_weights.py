"""``quantize-weights``: weights in 4 or 8 bits with a scale a block, everything computed in float."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from qir.calibration.collect import expose
from qir.calibration.data import open_data, spread
from qir.calibration.recurrent import can_observe
from qir.calibration.specs import input_specs
from qir.codegen import runnable
from qir.codegen.exporter import model_message
from qir.errors import DataError, OptionError
from qir.ir import Model, Node, StaticQuant, Value
from qir.passes.accuracy.round_blocks import round_blocks
from qir.passes.annotation.spread_bits import weight_noises
from qir.passes.emission.weight_forms import FILLED, WORTH_PADDING
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.quant.arithmetic import fake_quantize
from qir.quant.blocks import Fit, block_quant
from qir.quant.layer_rows import RECURRENT
from qir.quant.recipe import Recipe
from qir.quant.slots import Role, WeightSlot, weight_slots
from qir.runtime.session import OrtRunner

__all__ = ["QuantizeWeights", "Weight", "gather_weights", "layout_of"]

_SPELLED, _SPELLED_FILLED, _SPELLED_LATE = (350, 27, 5), (460, 37, 6), (620, 47, 8)
"""The most that the nodes of a quantized weight take in the file, in bytes: in all, for each character of its name, and
for each of its node's name, which every node has as its source; the same where the last block is filled up in the file,
and when the model is loaded, and has to be cut off again."""
_KERNEL = "weight-only"
_LEAST_BLOCK = 16


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store weights of MatMul, Gemm, Conv, ConvTranspose, LSTM, GRU, RNN and Gather in few bits, compute in float.

    A block of ``block-size`` weights along the sum shares a scale (and with ``symmetric=false`` a zero point); where
    the sum is no longer than a block (a convolution of few channels), a channel does; ``block-size=none``: always a
    channel. ``rounding``: ``nearest`` (scales cover the extremes), ``mse`` (scales of least squared error, each weight
    counted by its input's energy where samples are at hand), ``gptq`` (codes chosen by what they do to the layer's
    results, layer after layer, with the inputs that the quantized layers before make), ``auto`` (gptq with samples,
    else mse). With ``target-size``, a share of the float file's size, each weight gets 4 bits, 8 bits or float, so
    that error falls most per byte: the noise that it alone puts on the model's results, without samples on its
    layer's. Weights of fewer than ``min-size`` elements stay float. A recipe's ``precision``: ``float``, or ``int8``
    for 8 bits instead of 4.

    Before::

        %y: f32[1,8] = MatMul(%x, @w)

    After::

        %y: f32[1,8] = MatMul(%x, @w : s4[axis=0, block=32](...)) kernel=weight-only
    """

    name: ClassVar[str] = "quantize-weights"
    effect: ClassVar[Effect] = Effect.LOSSY

    bits: Literal[4, 8] = 4
    """Of a weight."""
    block_size: int | None = 32
    symmetric: bool = False
    rounding: Literal["auto", "nearest", "mse", "gptq"] = "auto"
    target_size: float | None = None
    min_size: int = 1024
    keep_float: tuple[str, ...] = ()
    """Names, globs or operators of nodes that stay as they are."""
    recipe: str | None = None
    """A TOML file of choices by node; see ``docs/quantize.md``."""
    samples: int = 64
    """How many calibration samples ``mse`` and ``gptq`` look at."""
    rows: int = 2048
    """At most so many rows of a layer's inputs are looked at."""
    max_columns: int = 4096
    """Of ``gptq``: a longer sum is rounded in parts, one of a convolution by ``mse``."""
    damping: float = 0.01
    """Of ``gptq``: what is added to the diagonal of the moments, relative to its mean."""

    def __post_init__(self) -> None:
        if self.block_size is not None and (self.block_size < 16 or self.block_size & (self.block_size - 1)):
            raise OptionError(f"quantize-weights: block-size={self.block_size} is no power of two from 16 on")
        if self.target_size is not None and not 0 < self.target_size <= 1:
            raise OptionError(f"quantize-weights: target-size={self.target_size} is no share of the float file, 0 to 1")

    @property
    def needs_calibration(self) -> bool:
        return self.rounding == "gptq"

    @property
    def fit(self) -> Fit:
        return "nearest" if self.rounding == "nearest" else "mse"

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError where ``gptq`` has no samples, OptionError for an unreachable size."""
        if self.rounding == "gptq" and ctx.calibration is None:
            raise DataError("no calibration data to round weights on: give samples with --calib, or calibration=...")
        result = PassResult()
        weights = gather_weights(self, model, result)
        feeds = []
        if ctx.calibration is not None and self.rounding != "nearest":
            feeds = spread(open_data(ctx.calibration, input_specs(model)), self.samples)
        energy = input_energy(model, weights, feeds) if feeds else {}
        bits = self.choose_bits(model, weights, energy, ctx, feeds)
        for weight in weights:
            chosen = bits[weight.value]
            self.say(weight, chosen, result)
            if chosen is None:
                continue
            for slot, quant in zip(weight.slots, weight.types(self, chosen, energy), strict=True):
                slot.use.quant = quant
                slot.node.kernel = _KERNEL
        if self.rounding in ("auto", "gptq") and feeds:
            self._round(model, weights, feeds, ctx, result)
        result.changed = bool(weights)
        return result

    def say(self, weight: Weight, bits: int | None, result: PassResult) -> None:
        """The remark on what was chosen for a weight; None is float."""
        if bits is None:
            result.remarks.append(self.missed(weight.first, f"{weight.label} stays float: the size allows it"))
            result.count("float")
        else:
            result.remarks.append(self.applied(weight.first, f"{weight.label} is stored in {bits} bits"))
            result.count(f"{bits} bits")

    def choose_bits(
        self,
        model: Model,
        weights: Sequence[Weight],
        energy: Mapping[Value, np.ndarray],
        ctx: PassContext,
        feeds: Sequence[Mapping[str, np.ndarray]] = (),
    ) -> Mapping[Value, int | None]:
        """4, 8, or None for float, of each weight. Raises OptionError for an unreachable size."""
        said = Recipe.open(self.recipe).assign(model, ctx.reference)
        finer = {
            weight.value
            for weight in weights
            if any((one := said.get(slot.node)) is not None and one.precision == "int8" for slot in weight.slots)
        }
        if self.target_size is None:
            chosen: Mapping[Value, int | None] = {weight.value: self.bits for weight in weights}
        else:
            chosen = _within_budget(self, model, weights, energy, self.target_size, ctx, feeds)
        return {value: 8 if value in finer and bits is not None else bits for value, bits in chosen.items()}

    def _round(
        self,
        model: Model,
        weights: Sequence[Weight],
        feeds: Sequence[Mapping[str, np.ndarray]],
        ctx: PassContext,
        result: PassResult,
    ) -> None:
        uses = [slot.use for weight in weights for slot in weight.slots if _has_moments(slot, model, self.max_columns)]
        uses = [use for use in uses if isinstance(use.quant, StaticQuant)]
        if not uses:
            return
        gains = round_blocks(
            model, uses, feeds, ctx, rows=self.rows, max_columns=self.max_columns, damping=self.damping
        )
        for layer, gain in gains.items():
            result.count("kept nearest" if gain is None else "rounded")
            if gain is not None:
                which = "weights" if layer.weight_index == 1 else "weights of the hidden state"
                text = f"{which} rounded to second order: {gain:.1f} dB less error in its results"
                result.remarks.append(self.applied(layer.node, text))


@dataclass(slots=True)
class Weight:
    """A constant with the slots that read it; all get the same bits."""

    value: Value
    slots: list[WeightSlot] = field(default_factory=list)

    @property
    def first(self) -> Node:
        return self.slots[0].node

    @property
    def array(self) -> np.ndarray:
        assert self.value.tensor is not None
        return self.value.tensor.numpy()

    @property
    def label(self) -> str:
        return f"{self.first.op} weight {self.value.name!r}"

    def layouts(self, options: QuantizeWeights) -> list[tuple[int, int | None]]:
        """The distinct (axis, block size) that it is stored with."""
        return list(dict.fromkeys(layout_of(slot, options.block_size) for slot in self.slots))

    def quant(
        self, options: QuantizeWeights, layout: tuple[int, int | None], bits: int, energy: Mapping[Value, np.ndarray]
    ) -> StaticQuant:
        return block_quant(
            self.array, *layout, bits, symmetric=options.symmetric, fit=options.fit,
            importance=self.importance(energy),
        )  # fmt: skip

    def importance(self, energy: Mapping[Value, np.ndarray]) -> np.ndarray | None:
        """How much the square of each weight's error counts, in a shape that broadcasts to the weight."""
        slot = self.slots[0]
        data = _multiplied(slot)
        found = None if data is None else energy.get(data)
        if found is None or len(found) != slot.shape[slot.axis] or not found.any():
            return None
        counted = found / found.mean() + 1e-3  # nothing counts nothing: other inputs than the samples may come
        return np.asarray(counted).reshape([-1 if axis == slot.axis else 1 for axis in range(len(slot.shape))])

    def types(self, options: QuantizeWeights, bits: int, energy: Mapping[Value, np.ndarray]) -> list[StaticQuant]:
        """What each slot reads."""
        known = {layout: self.quant(options, layout, bits, energy) for layout in self.layouts(options)}
        return [known[layout_of(slot, options.block_size)] for slot in self.slots]

    def bytes(self, options: QuantizeWeights, bits: int | None) -> int:
        """In the file, about."""
        size = int(np.prod(self.slots[0].shape))
        if bits is None:
            return 4 * size
        total = 0
        for axis, block in self.layouts(options):
            shape = self.slots[0].shape
            units = shape[axis] if block is None else size // shape[axis] * -(-shape[axis] // block)
            missing = 0 if block is None else units * block - size
            filled = missing * bits // 8  # the last block is filled up
            spelled = _SPELLED_FILLED if missing else _SPELLED
            if filled > WORTH_PADDING and missing + size > FILLED * size:  # for no kernel, hence when it is loaded
                filled, spelled = 0, _SPELLED_LATE
            nodes, letter, source = spelled
            total += nodes + letter * len(f"{self.value.name}_rounded") + source * len(self.first.label)
            total += size * bits // 8 + filled + 4 * units + (0 if options.symmetric else units * bits // 8)
        return total

    def error(self, options: QuantizeWeights, bits: int, energy: Mapping[Value, np.ndarray]) -> float:
        """Noise that the rounded weight adds to its results over their power, about."""
        weight, counted = self.array, self.importance(energy)
        difference = fake_quantize(weight, self.quant(options, self.layouts(options)[0], bits, energy)) - weight
        squares = np.float32(1) if counted is None else counted.astype(np.float32)
        power = float((weight**2 * squares).sum(dtype=np.float64))
        return float((difference**2 * squares).sum(dtype=np.float64)) / max(power, 1e-30)


def layout_of(slot: WeightSlot, block_size: int | None) -> tuple[int, int | None]:
    """(axis, block size): blocks along the sum where it is longer than one, or where a kernel wants blocks; no block is
    more than twice as long as the sum, because kernels fill the last one."""
    length = slot.shape[slot.axis]
    if block_size is None or (slot.role is Role.OTHER and length < block_size):
        return slot.channel_axis, None
    return slot.axis, min(block_size, max(_LEAST_BLOCK, 1 << (length - 1).bit_length()))


def gather_weights(options: QuantizeWeights, model: Model, result: PassResult) -> list[Weight]:
    """The weights to quantize, each with all of its readers; a remark for each that stays float."""
    reason = Recipe.open(options.recipe).with_float(options.keep_float).resolve(model)
    weights: dict[Value, Weight] = {}
    for slot in weight_slots(model):
        weights.setdefault(slot.value, Weight(slot.value)).slots.append(slot)
    found = []
    for weight in weights.values():
        why = _reason_for_float(weight, options, reason)
        if why is None:
            found.append(weight)
        else:
            result.remarks.append(options.missed(weight.first, f"{weight.label} stays float: {why}"))
    return found


def _reason_for_float(weight: Weight, options: QuantizeWeights, reason: Callable[[Node], str | None]) -> str | None:
    for slot in weight.slots:
        said = reason(slot.node)
        if said is not None:
            return said
        if slot.node.kernel not in (None, "float"):
            return f"it runs as {slot.node.kernel} already"
    if len(weight.value.uses) > len(weight.slots):
        return "something else reads it as float"
    size = int(np.prod(weight.slots[0].shape))
    if size < options.min_size:
        return f"it has {size} elements, fewer than min-size={options.min_size}"
    return None


def _multiplied(slot: WeightSlot) -> Value | None:
    """What is multiplied with a weight, its channels last; the hidden states of a recurrent layer, where somebody reads
    them, for the weight that multiplies them one step later."""
    if slot.role is Role.LINEAR or (slot.node.op in RECURRENT and slot.use.index == 1):
        return slot.node.input(0)
    states = slot.node.outputs[0] if slot.node.op in RECURRENT else None
    return states if states is not None and states.uses else None


def input_energy(
    model: Model, weights: Sequence[Weight], feeds: Sequence[Mapping[str, np.ndarray]]
) -> dict[Value, np.ndarray]:
    """The mean square of each channel (last axis) of what linear operators and recurrent layers of the main graph
    multiply with their weights."""
    wanted: dict[Value, None] = {}
    for weight in weights:
        for slot in weight.slots:
            data = _multiplied(slot)
            if data is not None and data.graph is model.graph and not data.is_constant:
                wanted[data] = None
    if not wanted:
        return {}
    exposed, names = expose(model, list(wanted))
    sums: dict[Value, np.ndarray] = {}
    counts: dict[Value, int] = {}
    with runnable(exposed, annotations="drop") as source:
        runner = OrtRunner(source)
        for feed in feeds:
            for name, array in runner.run(feed, list(names)).items():
                flat = np.asarray(array, np.float64).reshape(-1, array.shape[-1])
                value = names[name]
                sums[value] = sums.get(value, 0) + (flat * flat).sum(axis=0)
                counts[value] = counts.get(value, 0) + len(flat)
    return {value: total / max(counts[value], 1) for value, total in sums.items()}


def _has_moments(slot: WeightSlot, model: Model, most: int) -> bool:
    """Whether the layer's inputs can be looked at as rows; second moments take the square of their length."""
    node = slot.node
    if node.graph is not model.graph:
        return False
    if node.op in RECURRENT:
        return can_observe(node, slot.use.index) and slot.shape[2] <= most
    if slot.use.index != 1 or node.op not in ("MatMul", "Gemm", "Conv"):
        return False
    length = int(np.prod(slot.shape)) // slot.shape[slot.channel_axis]
    return slot.role is Role.LINEAR or (node.op == "Conv" and length <= most)


def _within_budget(
    options: QuantizeWeights,
    model: Model,
    weights: Sequence[Weight],
    energy: Mapping[Value, np.ndarray],
    share: float,
    ctx: PassContext,
    feeds: Sequence[Mapping[str, np.ndarray]],
) -> dict[Value, int | None]:
    """4 bits, 8 bits or float for each weight: from 4 on, always the change that takes away most error a byte."""
    whole = model_message(ctx.reference or model, annotations="drop").size
    rest = model_message(model, annotations="drop").size - sum(weight.bytes(options, None) for weight in weights)
    steps: tuple[int | None, ...] = (4, 8, None)
    room = share * whole - rest - sum(weight.bytes(options, 4) for weight in weights)
    if room < 0:
        least = (share * whole - room) / whole
        raise OptionError(
            f"target-size={share:.3g} is out of reach: with every weight in 4 bits the file has {least:.1%} of the "
            "float file; a larger block-size takes less"
        )
    chosen: dict[Value, int | None] = {}
    queue: list[tuple[float, int, int, int]] = []
    errors = _errors(options, model, weights, energy, ctx, feeds)

    def offer(index: int, level: int) -> None:
        """The best of the steps up from a level, by error a byte."""
        weight = weights[index]
        for higher in range(level + 1, len(steps)):
            cost = weight.bytes(options, steps[higher]) - weight.bytes(options, steps[level])
            gain = errors[index][level] - errors[index][higher]
            heapq.heappush(queue, (-gain / max(cost, 1), index, level, higher))

    for index, weight in enumerate(weights):
        chosen[weight.value] = 4
        offer(index, 0)
    while queue:
        _, index, level, higher = heapq.heappop(queue)
        weight = weights[index]
        if chosen[weight.value] != steps[level]:
            continue
        cost = weight.bytes(options, steps[higher]) - weight.bytes(options, steps[level])
        if cost <= room:
            room -= cost
            chosen[weight.value] = steps[higher]
            offer(index, higher)
    return chosen


def _errors(
    options: QuantizeWeights,
    model: Model,
    weights: Sequence[Weight],
    energy: Mapping[Value, np.ndarray],
    ctx: PassContext,
    feeds: Sequence[Mapping[str, np.ndarray]],
) -> list[tuple[float, float, float]]:
    """Of each weight in 4 bits, in 8 and in float: the noise that it puts on the model's results, or without samples on
    its layer's, over the signal there."""
    if not feeds:
        return [(weight.error(options, 4, energy), weight.error(options, 8, energy), 0.0) for weight in weights]
    by_value = {weight.value: weight for weight in weights}

    def noises(bits: int) -> list[float]:
        def coded(value: Value) -> np.ndarray:
            weight = by_value[value]
            return fake_quantize(weight.array, weight.quant(options, weight.layouts(options)[0], bits, energy))

        return weight_noises(model, list(by_value), coded, feeds, ctx)

    return [(coarse, fine, 0.0) for coarse, fine in zip(noises(4), noises(8), strict=True)]
