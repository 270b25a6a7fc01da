"""Cut a piece out of a graph, as a model of its own that shares the tensors."""

from __future__ import annotations

from collections.abc import Sequence

from qir.ir.clone import clone_node, clone_value
from qir.ir.graph import Graph
from qir.ir.model import Model
from qir.ir.node import Node
from qir.ir.order import operands
from qir.ir.value import Value

__all__ = ["extract"]


def extract(model: Model, nodes: Sequence[Node], inputs: Sequence[Value], outputs: Sequence[Value]) -> Model:
    """A model of ``nodes`` (of one graph, in topological order) with these inputs and outputs, names as they were.

    Constants that the nodes read come along; annotations are copied. Functions are those of ``model``.
    """
    piece = Model(Graph("piece"), model.opset_imports, model.ir_version)
    state, graph = piece.graph._state, piece.graph
    values: dict[Value, Value] = {}
    copies: dict[Node, Node] = {}
    for value in inputs:
        values[value] = graph.add_input(value.name, value.type)
    for node in nodes:
        for value in operands(node):
            if value not in values and value.const is not None and value.producer is None and value.graph is node.graph:
                copy = clone_value(value, state, graph)
                values[value] = copy
                graph._link_initializer(copy)
        clone_node(node, graph, values, copies)
    for value in outputs:
        graph.add_output(values[value])
    piece.functions = model.functions
    return piece
