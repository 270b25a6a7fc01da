"""What the two weights of a recurrent layer are multiplied with: inputs with W, the hidden states before each with R.

The hidden states are observed: the layer runs alone over its inputs, with the weights that it has by then, and the
state that step t starts from is its own output Y of the step before (ONNX LSTM-14, GRU-14, RNN-14), or ``initial_h``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qir.codegen import runnable
from qir.ir import Graph, Model, Node, Value
from qir.ir.extract import extract
from qir.ir.order import operands
from qir.quant.layer_rows import RECURRENT, resets_state
from qir.runtime.session import OrtRunner, SessionConfig

__all__ = ["can_observe", "observed_operands", "recurrent_inputs"]

_X, _W, _R, _B, _LENGTHS, _STATE, _CELL, _PEEPHOLES = range(8)

Arrays = list[np.ndarray]


def can_observe(node: Node, weight_index: int) -> bool:
    """Whether what operand ``weight_index`` of a recurrent node is multiplied with can be computed: all weights are
    constants, and of a GRU that resets its state before the product, the reset gate is a sigmoid."""
    if node.domain != "" or node.op not in RECURRENT or weight_index not in (_W, _R):
        return False
    weights = [node.input(index) for index in (_W, _R, _B, _PEEPHOLES)]
    data = node.input(_X)
    if data is None or data.is_constant or any(value is not None and value.tensor is None for value in weights):
        return False
    gates = node.get("activations") or ["Sigmoid"]
    return weight_index == _W or not resets_state(node) or all(gate == "Sigmoid" for gate in gates[::2])


def observed_operands(node: Node) -> list[Value]:
    """The operands of a recurrent node, emitted or not, that differ from sample to sample."""
    found = (node.input(index) for index in (_X, _LENGTHS, _STATE, _CELL))
    return list(dict.fromkeys(value for value in found if value is not None and not value.is_constant))


def recurrent_inputs(
    layer: Node, weight_index: int, model: Model, node: Node, arrays: Mapping[Value, Arrays], threads: int = 0
) -> Arrays:
    """Per sample the rows that a weight is multiplied with, (groups, rows, columns): a group for each direction or,
    of a GRU that resets its state before the product, for each gate of each direction.

    ``node`` is what became of ``layer`` in ``model``; ``arrays``: its ``observed_operands``, one array a sample.
    """
    data = node.input(_X)
    assert data is not None
    samples = range(len(arrays[data]))
    inputs = [_Sample(layer, node, {value: arrays[value][index] for value in arrays}) for index in samples]
    if weight_index == _W:
        return [sample.data_rows() for sample in inputs]
    found = []
    with runnable(_alone(model, node, list(arrays))) as source:
        runner = OrtRunner(source, SessionConfig(threads=threads))
        for index, sample in enumerate(inputs):
            (states,) = runner.run({value.name: arrays[value][index] for value in arrays}).values()
            found.append(sample.state_rows(np.asarray(states)))
    return found


class _Sample:
    """One sample's operands, batch and sequence at the same places whatever the layout."""

    def __init__(self, layer: Node, node: Node, arrays: Mapping[Value, np.ndarray]) -> None:
        self.layer = layer
        self.batch_first = bool(layer.get("layout", 0))
        self.directions = {"forward": [1], "reverse": [-1]}.get(layer.get("direction", "forward"), [1, -1])

        def operand(index: int) -> np.ndarray | None:
            value = node.input(index)
            constant = None if value is None or value.tensor is None else value.tensor.numpy()
            return constant if value is None or value not in arrays else arrays[value]

        x, first, lengths = operand(_X), operand(_STATE), operand(_LENGTHS)
        assert x is not None
        self.x = np.swapaxes(x, 0, 1) if self.batch_first else x  # (steps, batch, columns)
        steps, batch = self.x.shape[:2]
        self.lengths = np.full(batch, steps) if lengths is None else lengths
        if first is not None and self.batch_first:
            first = np.swapaxes(first, 0, 1)
        self.first = first  # (directions, batch, columns)

    def data_rows(self) -> np.ndarray:
        """(directions, rows, columns): the inputs of all steps, those past a sequence's end left out."""
        rows = np.concatenate([self.x[:length, index] for index, length in enumerate(self.lengths)])
        return np.broadcast_to(rows, (len(self.directions), *rows.shape))

    def state_rows(self, states: np.ndarray) -> np.ndarray:
        """The hidden states that steps start from, given those that they end in."""
        if self.batch_first:
            states = states.transpose(1, 2, 0, 3)  # (steps, directions, batch, columns)
        befores = []
        for place, direction in enumerate(self.directions):
            parts = []
            for index, length in enumerate(self.lengths):
                ends = states[:length, place, index]
                first = np.zeros_like(states[:1, 0, 0]) if self.first is None else self.first[place, index][None]
                parts.append(np.concatenate([first, ends])[:-1] if direction > 0 else np.concatenate([ends, first])[1:])
            befores.append(np.concatenate(parts))
        rows = np.stack(befores)
        return self._reset(rows) if resets_state(self.layer) else rows

    def _reset(self, states: np.ndarray) -> np.ndarray:
        """What each gate of a GRU multiplies, (directions * 3, rows, columns): its last gate the state times the reset
        gate, which is the second."""
        w, r, bias = (self._weight(index) for index in (_W, _R, _B))
        assert w is not None and r is not None
        size = r.shape[-1]
        gate = slice(size, 2 * size)
        data = self.data_rows()
        found = []
        for place, before in enumerate(states):
            total = data[place] @ w[place, gate].T + before @ r[place, gate].T
            if bias is not None:
                total = total + bias[place, gate] + bias[place, 3 * size :][gate]
            found += [before, before, before / (1 + np.exp(-np.clip(total, -60, 60)))]
        return np.stack(found)

    def _weight(self, index: int) -> np.ndarray | None:
        value = self.layer.input(index)
        return None if value is None or value.tensor is None else value.tensor.numpy()


def _alone(model: Model, node: Node, inputs: list[Value]) -> Model:
    """The node with what decodes its weights, as a model whose output is Y, whether anybody reads that or not."""
    graph = node.graph
    assert graph is not None
    piece = extract(model, _decoders(node, set(inputs), graph), inputs, [])
    copy = piece.graph.nodes.last
    assert copy is not None
    states = copy.outputs[0]
    if not states.name:
        states.name = piece.graph.fresh_name(f"{node.label}_states")
    piece.graph.add_output(states)
    return piece


def _decoders(node: Node, known: set[Value], graph: Graph) -> list[Node]:
    """The node and what it needs beside the known values, in topological order."""
    found: dict[Node, None] = {}

    def visit(one: Node) -> None:
        for value in operands(one):
            maker = value.producer
            if maker is not None and value not in known and maker not in found and value.graph is graph:
                visit(maker)
        found[one] = None

    visit(node)
    return list(found)
