"""Computes constant nodes in batches, in the runtime that the model will run in, unoptimised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from qir.codegen import to_bytes
from qir.errors import QirError
from qir.ir import Graph, Model, Node, Tensor, TensorType, Value

__all__ = ["evaluate"]

_INLINE_BYTES = 1024


def evaluate(
    nodes: Sequence[Node], content: Callable[[Value], np.ndarray | None], opset: int
) -> tuple[dict[Value, np.ndarray], dict[Node, str]]:
    """Results of ``nodes`` (in topological order) that others read, and which nodes failed, with the reason.

    ``content``: the array of a constant, None for what is none.

    One session for all; where it fails, one for each half, so that a bad node costs log n sessions and takes only
    those along that need it.
    """
    results: dict[Value, np.ndarray] = {}
    failed: dict[Node, str] = {}

    def lookup(value: Value) -> np.ndarray | None:
        array = results.get(value)
        return content(value) if array is None else array

    _evaluate(list(nodes), lookup, opset, results, failed)
    return results, failed


def _evaluate(
    nodes: list[Node],
    lookup: Callable[[Value], np.ndarray | None],
    opset: int,
    results: dict[Value, np.ndarray],
    failed: dict[Node, str],
) -> None:
    nodes = _computable(nodes, lookup)
    if not nodes:
        return
    try:
        made = _run(nodes, lookup, opset)
    except QirError as error:
        if len(nodes) == 1:
            failed[nodes[0]] = str(error)
            return
        half = len(nodes) // 2
        _evaluate(nodes[:half], lookup, opset, results, failed)
        _evaluate(nodes[half:], lookup, opset, results, failed)
        return
    results.update(made)


def _computable(nodes: list[Node], lookup: Callable[[Value], np.ndarray | None]) -> list[Node]:
    """Those that need nothing of a node that failed."""
    made: set[Value] = set()
    computable = []
    for node in nodes:
        if all(value is None or value in made or lookup(value) is not None for value in node.inputs):
            computable.append(node)
            made.update(node.outputs)
    return computable


def _run(nodes: list[Node], lookup: Callable[[Value], np.ndarray | None], opset: int) -> dict[Value, np.ndarray]:
    from qir.runtime.session import PLAIN, OrtRunner

    graph = Graph("constants")
    twins: dict[Value, Value] = {}
    feeds: dict[str, np.ndarray] = {}
    inside = set(nodes)
    wanted: list[Value] = []
    for node in nodes:
        for value in node.inputs:
            if value is not None and value not in twins:
                array = lookup(value)
                assert array is not None, "a node waits whose operand is no constant"
                twins[value] = _operand(graph, f"c{len(twins)}", array, feeds)
        names = [f"v{len(twins) + index}" if value.name else "" for index, value in enumerate(node.outputs)]
        attributes = dict(node.attributes)
        made = graph.add_node(node.op, _twins(node, twins), attributes, outputs=names, name="")
        for value, twin in zip(node.outputs, made.outputs, strict=True):
            twins[value] = twin
            if value.name and any(use.node not in inside for use in value.uses):
                wanted.append(value)
                graph.add_output(twin)
    if not wanted:
        return {}
    outputs = OrtRunner(to_bytes(Model(graph, {"": opset})), PLAIN).run(feeds)
    arrays = {value: outputs[twins[value].name] for value in wanted}
    return {value: array for value, array in arrays.items() if isinstance(array, np.ndarray)}


def _twins(node: Node, twins: Mapping[Value, Value]) -> list[Value | None]:
    return [None if value is None else twins[value] for value in node.inputs]


def _operand(graph: Graph, name: str, array: np.ndarray, feeds: dict[str, np.ndarray]) -> Value:
    """Small constants go into the model, large ones are fed, so that they are not copied."""
    tensor = Tensor.of(array)
    if array.nbytes <= _INLINE_BYTES:
        return graph.add_initializer(name, tensor)
    feeds[name] = array
    return graph.add_input(name, TensorType(tensor.dtype, tensor.shape))
