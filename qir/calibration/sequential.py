"""Visit the linear and recurrent layers of an annotated model in order, each with the inputs that the quantized layers
before it, already edited, make.

What sequential methods have in common: bias correction looks at each layer's results, weight rounding at its inputs.
Every node runs once a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qir.calibration.collect import expose
from qir.calibration.recurrent import can_observe, observed_operands, recurrent_inputs
from qir.calibration.stepper import Stepper
from qir.codegen import runnable
from qir.ir import Clone, DerivedQuant, DType, Graph, Model, Node, StaticQuant, Tensor, Use, Value
from qir.quant.layer_rows import RECURRENT
from qir.runtime.session import OrtRunner

__all__ = [
    "Layer",
    "Step",
    "float_means",
    "graph_layers",
    "integer_layers",
    "linear_layers",
    "recurrent_layers",
    "visit_layers",
]

Feeds = Sequence[Mapping[str, np.ndarray]]
Arrays = list[np.ndarray]


@dataclass(frozen=True, slots=True)
class Layer:
    """A Conv, Gemm or MatMul that is to run on integers, with static parameters of its input or dynamic ones; or one of
    the two weights of an LSTM, GRU or RNN, operand ``weight_index``.

    ``result`` is what it computes, bias included, with the channels along ``axis``. The bias is operand ``bias_index``
    of ``bias_owner``, which may be missing there: a Conv's or Gemm's own, or that of the Add behind a MatMul; a MatMul
    without such an Add has none.
    """

    node: Node
    result: Value
    axis: int
    bias_owner: Node | None
    bias_index: int = 2
    weight_index: int = 1

    @property
    def weight_use(self) -> Use:
        use = self.node.use(self.weight_index)
        assert use is not None
        return use

    @property
    def input_quant(self) -> StaticQuant | None:
        use = self.node.use(0)
        quant = use.effective_quant if use is not None else None
        return quant if isinstance(quant, StaticQuant) else None

    def channel_means(self, arrays: Arrays) -> np.ndarray:
        """Mean of each channel of the result in each sample, (N, C), float64."""
        return np.stack([_channel_mean(array, self.axis) for array in arrays])

    def add_to_bias(self, delta: np.ndarray) -> None:
        """Make the bias larger by ``delta`` (C,): in a copy of its own, or in a new one where there was none."""
        owner, graph = self.bias_owner, self.node.graph
        assert owner is not None and graph is not None
        old = owner.input(self.bias_index)
        if old is None:
            made = graph.add_initializer(f"{self.node.label}_bias", Tensor.of(delta, DType.FLOAT))
            owner.set_input(self.bias_index, made)
            use = owner.use(self.bias_index)
            assert use is not None
            if self.node.kernel == "integer":  # dynamic kernels add floats
                use.quant = DerivedQuant(0, 1)
            return
        assert old.tensor is not None
        corrected = (old.tensor.numpy() + delta.reshape(old.tensor.shape)).astype(np.float32)
        _replace_constant(owner.use(self.bias_index), Tensor.of(corrected), "corrected")

    def freeze_weight(self, numbers: np.ndarray) -> None:
        """Store ``numbers``, which lie on the grid of the weight's quantization, as this use's weight."""
        _replace_constant(self.weight_use, Tensor.of(numbers), "rounded").frozen = True


@dataclass(slots=True)
class Step:
    """One layer's turn. ``inputs``: the integer codes of its input, one array a sample, where they were asked for; of
    a dynamic or float layer the numbers themselves, of a recurrent one as ``recurrent_inputs`` gives them."""

    layer: Layer
    inputs: Arrays
    _stepper: Stepper
    _copy: Value
    """The emitted model's result."""
    _weight: Value | None
    """The emitted model's weight codes, where this layer alone reads them."""
    _constant: Value
    """The emitted model's weight, shared or not."""
    _transposed: bool = False
    """Whether they stand there transposed."""
    _results: Arrays | None = None

    @property
    def owns_weight(self) -> bool:
        return self._weight is not None

    def set_weight_codes(self, codes: np.ndarray) -> None:
        """Let the results, and everything after, be computed with these codes of the weight."""
        assert self._weight is not None and self._weight.tensor is not None and self._results is None
        stored = np.ascontiguousarray(codes.T) if self._transposed else codes
        self._weight.const = Tensor(self._weight.tensor.dtype, stored.shape, stored)

    def set_weight(self, numbers: np.ndarray) -> None:
        """Let the results, and everything after, be computed with these numbers: of a layer that is emitted as it is,
        and whoever else reads the same weight from here on."""
        assert self._constant.tensor is not None and self._results is None
        self._constant.const = Tensor.of(numbers, self._constant.tensor.dtype)

    def results(self) -> Arrays:
        """What the layer computes, one array a sample; only for a layer that can have a bias."""
        if self._results is None:
            _, self._results = self._stepper.advance()
        return self._results

    def shift_results(self, delta: np.ndarray) -> None:
        """Let everything after read results that are larger by ``delta`` (C,)."""
        results = self.results()
        shape = [1] * results[0].ndim
        shape[self.layer.axis] = -1
        self._stepper.replace(self._copy, [array + delta.reshape(shape) for array in results])


def integer_layers(model: Model) -> list[Layer]:
    """The layers of the main graph that are annotated to run on integers, in order."""
    return [layer for layer in linear_layers(model) if layer.node.kernel in ("integer", "dynamic")]


def linear_layers(model: Model) -> list[Layer]:
    """The layers of the main graph, annotated or not, in order."""
    return graph_layers(model.graph)


def graph_layers(graph: Graph) -> list[Layer]:
    """The same of any graph."""
    found = []
    for node in graph.nodes:
        if node.domain != "":
            continue
        if node.op in ("Conv", "Gemm"):
            found.append(Layer(node, node.output, 1, node))
        elif node.op == "MatMul":
            found.append(_matmul_layer(node))
    return found


def recurrent_layers(model: Model) -> list[Layer]:
    """Two for each LSTM, GRU and RNN of the main graph whose inputs and states can be observed: one of W, one of R."""
    return [
        Layer(node, node.outputs[0], -1, None, weight_index=index)
        for node in model.graph.nodes
        if node.op in RECURRENT
        for index in (1, 2)
        if can_observe(node, index)
    ]


def visit_layers(
    model: Model, layers: Sequence[Layer], feeds: Feeds, emit: Callable[[Model], object], *, inputs: bool
) -> Iterator[Step]:
    """Each layer's turn, in graph order. ``emit`` spells the annotations of a copy as nodes, in place.

    Edits of ``model`` during the visit are allowed (they do not reach the copy). Memory: see ``Stepper``.
    """
    clone = model.clone_with_map()
    emit(clone.model)
    clone.model.graph.sort()
    order = {node: index for index, node in enumerate(clone.model.graph.nodes)}
    emitted = {layer: _emitted(layer, clone) for layer in layers}
    ordered = sorted(layers, key=lambda layer: (order[emitted[layer]], layer.weight_index))
    stops: list[Value] = []
    for layer in ordered:
        if inputs:
            stops += _watched(layer, emitted[layer])
        if layer.bias_owner is not None:
            stops.append(clone.values[layer.result])
    stepper = Stepper(clone.model, feeds, stops)
    for layer in ordered:
        node = emitted[layer]
        arrays: Arrays = []
        if inputs:
            seen = dict(stepper.advance() for _ in _watched(layer, node))
            arrays = next(iter(seen.values()))
            if layer.node.op in RECURRENT:
                arrays = recurrent_inputs(layer.node, layer.weight_index, clone.model, node, seen)
        weight = _before(node, layer.weight_index)
        shared = weight.tensor is None or len(weight.uses) > 1
        shared = shared or (weight.users[0] is not node and len(weight.users[0].output.uses) > 1)
        transposed = node.op != layer.node.op and bool(layer.node.get("transB", 0))
        own = None if shared else weight
        step = Step(layer, arrays, stepper, clone.values[layer.result], own, weight, transposed)
        yield step
        if layer.bias_owner is not None:
            step.results()


def float_means(model: Model, layers: Sequence[Layer], feeds: Feeds) -> dict[Value, np.ndarray]:
    """Per layer's result, the mean of each channel in each sample, (N, C), in the float model."""
    exposed, names = expose(model, [layer.result for layer in layers])
    axes = {layer.result: layer.axis for layer in layers}
    means: dict[Value, list[np.ndarray]] = {value: [] for value in axes}
    with runnable(exposed, annotations="drop") as source:
        runner = OrtRunner(source)
        for feed in feeds:
            for name, array in runner.run(feed, list(names)).items():
                value = names[name]
                means[value].append(_channel_mean(array, axes[value]))
    return {value: np.stack(found) for value, found in means.items()}


def _matmul_layer(node: Node) -> Layer:
    """A MatMul, with the bias where only an Add with a constant row reads its result."""
    bare = Layer(node, node.output, -1, None)
    uses = list(node.output.uses)
    if len(uses) != 1 or (add := uses[0].node) is None or add.op != "Add" or add.graph is not node.graph:
        return bare
    index = 1 - uses[0].index
    bias, weight = add.input(index), node.input(1)
    if bias is None or bias.tensor is None or weight is None or weight.tensor is None:
        return bare
    columns = weight.tensor.shape[-1]
    if bias.tensor.size != columns or bias.tensor.shape[-1:] != (columns,):
        return bare
    return Layer(node, add.output, -1, add, index)


def _emitted(layer: Layer, clone: Clone) -> Node:
    """What computes a layer in an emitted copy: a dynamic kernel may stand where the bias was added."""
    node = clone.nodes[layer.node]
    if node.graph is not None:
        return node
    maker = clone.values[layer.result].producer
    assert maker is not None
    return maker


def _watched(layer: Layer, emitted: Node) -> list[Value]:
    """What has to be known for a layer's inputs."""
    return observed_operands(emitted) if layer.node.op in RECURRENT else [_before(emitted, 0)]


def _before(node: Node, index: int) -> Value:
    """The integers behind an operand of an emitted node; the numbers, where the runtime chooses their parameters or
    the layer stays float."""
    operand = node.input(index)
    assert operand is not None
    maker = operand.producer
    if maker is None or maker.op not in ("DequantizeLinear", "DynamicQuantizeLinear"):
        return operand
    source = maker.input(0)
    assert source is not None
    return source


def _channel_mean(array: np.ndarray, axis: int) -> np.ndarray:
    """float64, (C,); 0 where there is nothing."""
    axis %= array.ndim
    others = tuple(i for i in range(array.ndim) if i != axis)
    return np.asarray(array.sum(axis=others, dtype=np.float64) / max(array.size // max(array.shape[axis], 1), 1))


def _replace_constant(use: Use | None, tensor: Tensor, suffix: str) -> Value:
    """Let one use read another constant; the old one goes where nobody else reads it."""
    assert use is not None
    old = use.value
    graph = old.graph
    assert graph is not None
    new = use.value = graph.add_initializer(f"{old.name}_{suffix}", tensor)
    if old.quant is not None:
        new.quant = old.quant
    if not old.uses:
        graph.remove_initializer(old)
    return new
