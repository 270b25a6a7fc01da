"""Run a model piece by piece over a few samples, so that the caller can look at a value, and change it, on the way.

Sequential methods (bias correction, second-order weight rounding) need each layer's input as the layers before it,
already corrected, make it. Running the whole prefix again for every layer would cost a quadratic number of node runs;
here every node runs once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qir.codegen import runnable
from qir.ir import Model, Node, Value
from qir.ir.extract import extract
from qir.ir.order import operands
from qir.runtime.session import OrtRunner, SessionConfig

__all__ = ["Stepper"]

Arrays = list[np.ndarray]


class Stepper:
    """Computes values of a model's main graph, for all samples, in an order that the caller chooses.

    ``stops`` are the values that will be asked for, in topological order; one may come more than once. Memory: the
    values that later stops still need, times the number of samples. The model must not be edited meanwhile, but for the
    content of constants that only later pieces read.
    """

    def __init__(
        self, model: Model, feeds: Sequence[Mapping[str, np.ndarray]], stops: Sequence[Value], *, threads: int = 0
    ) -> None:
        self._model = model
        self._config = SessionConfig(threads=threads)
        self._stops = list(stops)
        self._step = 0
        self._samples = len(feeds)
        self._known: dict[Value, Arrays] = {
            value: [np.asarray(feed[value.name]) for feed in feeds]
            for value in model.graph.inputs
            if not value.is_initializer
        }
        self._pieces = self._cut()

    def advance(self) -> tuple[Value, Arrays]:
        """The next stop and its arrays, one a sample. Raises IndexError after the last."""
        stop, piece = self._stops[self._step], self._pieces[self._step]
        if piece.nodes:
            self._run(piece)
        self._step += 1
        arrays = self._known[stop]
        for value in piece.last_reads:
            del self._known[value]
        return stop, arrays

    def replace(self, value: Value, arrays: Arrays) -> None:
        """Let everything after the current stop read these arrays for ``value``."""
        if value in self._known:  # else nobody reads it any more
            self._known[value] = arrays

    def _cut(self) -> list[_Piece]:
        """For each stop, the nodes that it needs and no earlier one did, and what crosses the borders."""
        graph = self._model.graph
        position = {node: index for index, node in enumerate(graph.nodes)}
        piece_of: dict[Node, int] = {}
        pieces = []
        for step, stop in enumerate(self._stops):
            nodes = _nodes_before(stop, piece_of)
            nodes.sort(key=position.__getitem__)
            piece_of.update(dict.fromkeys(nodes, step))
            pieces.append(_Piece(nodes, {}, {}, []))
        last_reader: dict[Value, int] = {}
        for step, piece in enumerate(pieces):
            stop = self._stops[step]
            last_reader[stop] = step
            if stop.producer is not None:  # an earlier piece may have made it
                pieces[piece_of[stop.producer]].outputs[stop] = None
            for node in piece.nodes:
                for value in operands(node):
                    maker = value.producer
                    if value.graph is not graph or (maker is None and value not in self._known):
                        continue
                    if maker is not None and piece_of[maker] == step:
                        continue
                    piece.inputs[value] = None
                    last_reader[value] = step
                    if maker is not None:
                        pieces[piece_of[maker]].outputs[value] = None
        for value, step in last_reader.items():
            pieces[step].last_reads.append(value)
        return pieces

    def _run(self, piece: _Piece) -> None:
        for value in piece.outputs:
            self._known[value] = []
        model = extract(self._model, piece.nodes, list(piece.inputs), list(piece.outputs))
        with runnable(model) as source:
            runner = OrtRunner(source, self._config)
            for sample in range(self._samples):
                results = runner.run({value.name: self._known[value][sample] for value in piece.inputs})
                for value in piece.outputs:
                    self._known[value].append(results[value.name])


@dataclass(slots=True)
class _Piece:
    """Nodes that run together, what they read from before, what later pieces read, what nobody reads afterwards."""

    nodes: list[Node]
    inputs: dict[Value, None]
    outputs: dict[Value, None]
    last_reads: list[Value]


def _nodes_before(stop: Value, done: Mapping[Node, int]) -> list[Node]:
    found: dict[Node, None] = {}
    work = [stop]
    while work:
        maker = work.pop().producer
        if maker is not None and maker not in found and maker not in done and maker.graph is stop.graph:
            found[maker] = None
            work += operands(maker)
    return list(found)
