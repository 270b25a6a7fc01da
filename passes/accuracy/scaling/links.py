"""Links: a source whose result can be divided by a scale per channel, and the layers that can multiply it back.

Between the two may stand operators that commute with a positive factor per channel, because they are positively
homogeneous and do not mix channels (Relu, pooling, the product with something else), and additions of constants, which
are divided too. A link is complete where nothing else reads any of the scaled values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from qir.calibration.statistics import ChannelStatistics
from qir.ir import Model, Node, Tensor, Use, Value
from qir.passes.accuracy.scaling.layers import LINEAR_OPS, Layer, layer_of, replace_constant
from qir.rewriting.edits import constant_of, ints_of, is_standard
from qir.targets.regions import clip_bounds

__all__ = ["ClipAt", "Link", "Sink", "clip_limits", "find_links"]

_NORMS = {"LayerNormalization": (1, 2), "RMSNormalization": (1,), "SimplifiedLayerNormalization": (1,)}
_CHANNEL_NORMS = {"BatchNormalization": (1, 2), "InstanceNormalization": (1, 2)}
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "PRelu", "Identity", "Neg", "Abs"})
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})


@dataclass(frozen=True, slots=True)
class Sink:
    """A linear layer's node, the value that it reads and the axis of that value that holds the channels."""

    node: Node
    value: Value
    axis: int


@dataclass(frozen=True, slots=True)
class ClipAt:
    """A Clip from 0 to ``upper`` on the way: it commutes with the scale of a channel only where it never binds."""

    node: Node
    value: Value
    axis: int
    upper: float


@dataclass(slots=True)
class Link:
    """``source`` makes ``channels`` channels. ``obstacle`` says why the link is not complete; empty where it is."""

    source: Node
    channels: int
    sinks: list[Sink] = field(default_factory=list)
    offsets: list[tuple[Node, int, int]] = field(default_factory=list)
    """Additions on the way: node, index of the constant operand, axis of the channels in the result."""
    clips: list[ClipAt] = field(default_factory=list)
    scaled: dict[Value, int] = field(default_factory=dict)
    """Values that the scale divides, and their channel axes."""
    obstacle: str = ""

    @property
    def is_norm(self) -> bool:
        """The source only scales what was normalized."""
        return self.source.op not in LINEAR_OPS

    def divide_source(self, scale: np.ndarray, layers: Mapping[Node, Layer]) -> None:
        """Divide the source's result, and the constants that are added to it, by scale (channels,)."""
        if self.source.op in LINEAR_OPS:
            layers[self.source].scale_outputs(1 / scale)
        else:
            for index in _affine_operands(self.source):
                _divide_constant(self.source, index, scale, self.scaled[self.source.output])
        self.divide_offsets(scale)

    def divide_offsets(self, scale: np.ndarray) -> None:
        """Divide only the constants that are added on the way."""
        for node, index, axis in self.offsets:
            _divide_constant(node, index, scale, axis)

    def multiply_sinks(self, scale: np.ndarray, layers: Mapping[Node, Layer]) -> None:
        """Multiply the weights that read the scaled values by scale (channels,)."""
        for node in dict.fromkeys(sink.node for sink in self.sinks):
            layers[node].scale_inputs(scale)


def find_links(model: Model) -> Iterator[Link]:
    """The links of the main graph that reach a layer at all, complete ones or not, in topological order."""
    claimed: set[Value] = set()
    for node in model.graph.nodes:
        axis = _source_axis(node)
        if axis is None or node.output in claimed:
            continue
        channels = node.output.dim(axis)
        if not isinstance(channels, int):
            continue
        link = Link(node, channels)
        _follow(link, node.output, axis)
        if link.sinks:
            claimed.update(link.scaled)
            yield link


def clip_limits(link: Link, seen: Mapping[Value, ChannelStatistics], margin: float) -> np.ndarray | None:
    """The least scale of each channel (channels,), NaN where it has to stay 1; None where no Clip is in between.

    ``seen`` tells how far each channel reaches before a Clip. With a scale of at least reach / bound it does not bind
    afterwards either.
    """
    if not link.clips:
        return None
    least = np.zeros(link.channels)
    for clip in link.clips:
        reach = seen[clip.value].highest * (1 + margin)
        least = np.where(reach < clip.upper, np.maximum(least, reach / clip.upper), np.nan)
    return least


def _source_axis(node: Node) -> int | None:
    """Along which axis of its result the node can scale channels; None where it is no source."""
    if not node.outputs or node.output.shape is None or not node.output.shape:
        return None
    rank = len(node.output.shape)
    if node.domain not in ("", "ai.onnx", "com.microsoft"):
        return None
    if node.op in LINEAR_OPS:
        if isinstance(layer_of(node), str):
            return None
        return 1 if node.op.startswith("Conv") else rank - 1
    if node.op in _NORMS:
        last = node.get("axis", -1) % rank == rank - 1
        return rank - 1 if last and _editable(node, rank - 1) else None
    if node.op in _CHANNEL_NORMS:
        return 1 if _editable(node, 1) and not node.get("training_mode", 0) else None
    if node.op == "Mul" and is_standard(node) and (index := _constant_index(node)) is not None:
        tensor, size = constant_of(node.input(index)), node.output.dim(-1)
        if tensor is not None and isinstance(size, int) and size > 1 and tensor.shape[-1:] == (size,):
            return rank - 1 if tensor.size == size and _editable(node, rank - 1) else None
    return None


def _affine_operands(node: Node) -> tuple[int, ...]:
    """Indices of the constants that a scale of the result divides."""
    indices = _NORMS.get(node.op) or _CHANNEL_NORMS.get(node.op)
    if indices is None:
        index = _constant_index(node)
        assert index is not None
        return (index,)
    return tuple(index for index in indices if node.input(index) is not None)


def _editable(node: Node, axis: int) -> bool:
    for index in _affine_operands(node):
        value = node.input(index)
        tensor = constant_of(value)
        if tensor is None or not tensor.dtype.is_float or (value is not None and value.frozen):
            return False
        if not np.isfinite(tensor.numpy()).all() or tensor.size not in (1, node.output.dim(axis)):
            return False
    return True


def _constant_index(node: Node) -> int | None:
    """The index of the one constant operand of two."""
    found = [index for index, value in enumerate(node.inputs) if constant_of(value) is not None]
    return found[0] if len(found) == 1 and len(node.inputs) == 2 else None


def _follow(link: Link, value: Value, axis: int) -> None:
    """Collect all that a scale of ``value`` along ``axis`` concerns; notes the first obstacle and goes on."""
    link.scaled[value] = axis
    work = [(value, axis)]
    while work:
        current, axis = work.pop()
        for use in list(current.uses):
            step = _step(link, use, axis)
            if isinstance(step, str):
                link.obstacle = link.obstacle or step
            elif step is not None and step[0] not in link.scaled:
                link.scaled[step[0]] = step[1]
                work.append(step)
    for value in link.scaled:
        for node in value.users:
            if node.op in ("Mul", "Div") and sum(operand in link.scaled for operand in node.inputs) > 1:
                link.obstacle = link.obstacle or f"{node.op} {node.label!r} multiplies scaled values"


def _step(link: Link, use: Use, axis: int) -> tuple[Value, int] | str | None:
    """Where the scale goes on through one use; None where the use absorbs it; else what stands in the way."""
    node, value = use.node, use.value
    if node is None:
        return f"{value.name!r} is an output"
    if use.is_capture:
        return f"{value.name!r} is read inside of a body"
    where = f"{node.op} {node.label!r} reads {value.name!r} too"
    rank = len(value.shape or ())
    if not is_standard(node):
        return where
    if node.op in LINEAR_OPS and use.index == 0:
        layer = layer_of(node)
        if isinstance(layer, str):
            return layer
        if axis != (1 if node.op.startswith("Conv") else rank - 1) or layer.inputs != link.channels:
            return f"{node.op} {node.label!r} reads the channels along another axis"
        link.sinks.append(Sink(node, value, axis))
        return None
    if node.op in ("Shape", "Size"):
        return None
    if len([name for name in node.outputs if name.uses]) > 1:
        return where
    result = node.output
    if node.op in _HOMOGENEOUS and use.index == 0:
        return result, axis
    if node.op in _POOLS and axis == 1:
        return result, axis
    match node.op:
        case "Clip" if use.index == 0:
            low, high = clip_bounds(node)
            unbounded = [node.input(i) is None and node.get(name) is None for i, name in ((1, "min"), (2, "max"))]
            if (unbounded[0] or low == 0.0) and (unbounded[1] or (high is not None and high >= 3e38)):
                return result, axis
            if low == 0.0 and high is not None and high > 0:
                link.clips.append(ClipAt(node, value, axis, high))
                return result, axis
        case "Transpose":
            order = node.get("perm") or tuple(reversed(range(rank)))
            return result, list(order).index(axis)
        case "ReduceMean" if use.index == 0:
            return _reduced(node, axis, rank) or where
        case "Flatten" | "Reshape" | "Squeeze" if use.index == 0 and _only_drops_ones(value, result, axis):
            return result, 1
        case "Mul" | "Div" if node.op == "Mul" or use.index == 0:
            return _aligned(value, result, axis) or where
        case "Add" | "Sub" if use.index == 0 or node.op == "Add":
            other = 1 - use.index
            tensor = constant_of(node.input(other))
            aligned = _aligned(value, result, axis)
            if tensor is not None and aligned is not None and tensor.dtype.is_float and _finite(tensor):
                link.offsets.append((node, other, aligned[1]))
                return aligned
    return where


def _finite(tensor: Tensor) -> bool:
    return bool(np.isfinite(tensor.numpy()).all())


def _aligned(value: Value, result: Value, axis: int) -> tuple[Value, int] | None:
    """The axis in the broadcast result; None where the channels themselves were broadcast or the rank is unknown."""
    if value.shape is None or result.shape is None:
        return None
    moved = axis + len(result.shape) - len(value.shape)
    size = value.dim(axis)
    return (result, moved) if isinstance(size, int) and result.dim(moved) == size else None


def _reduced(node: Node, axis: int, rank: int) -> tuple[Value, int] | None:
    axes = node.get("axes") or ints_of(node.input(1))
    if not axes:
        return None
    gone = {one % rank for one in axes}
    if axis in gone:
        return None
    return node.output, axis if node.get("keepdims", 1) else axis - sum(one < axis for one in gone)


def _only_drops_ones(value: Value, result: Value, axis: int) -> bool:
    """(N, C, 1, 1) becomes (N, C)."""
    shape, size = value.shape, value.dim(axis)
    if shape is None or result.shape is None or axis != 1 or not isinstance(size, int):
        return False
    return all(one == 1 for one in shape[2:]) and len(result.shape) == 2 and result.dim(1) == size


def _divide_constant(node: Node, index: int, scale: np.ndarray, axis: int) -> None:
    """Divide a constant operand by the scale along ``axis`` of the node's result; norms take plain vectors."""
    tensor = constant_of(node.input(index))
    assert tensor is not None
    array = tensor.numpy().astype(np.float64)
    if node.op in _NORMS or node.op in _CHANNEL_NORMS:
        divided = np.broadcast_to(array, scale.shape) / scale
    else:
        rank = len(node.output.shape or ())
        behind = rank - 1 - axis
        divided = array / scale.reshape((-1,) + (1,) * behind)
    replace_constant(node, index, divided.astype(tensor.dtype.numpy))
