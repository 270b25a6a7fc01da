"""The nodes between two values, found in the imported model and named in a later form of it."""

from __future__ import annotations

from qir.errors import OptionError, suggest
from qir.ir import Graph, Model, Node, Value
from qir.ir.order import operands

__all__ = ["nodes_between"]


def nodes_between(model: Model, reference: Model, start: str | None, end: str | None, where: str) -> list[Node]:
    """Nodes of ``model`` that stand for nodes of ``reference`` on a way from the value ``start`` to the value ``end``.

    None stands for the inputs, and for the outputs. The node that makes ``start`` is not among them, the one that makes
    ``end`` is; bodies of nodes between are. A node that several were fused into counts where the one of its operator
    does. Raises OptionError, opened by ``where``, for an unknown value and where nothing lies between.
    """
    graph, first, last = _ends(reference, start, end, where)
    inside = _reached(graph, first) if first is not None else set(graph.nodes)
    if last is not None:
        inside &= _needed(last)
    if not inside:
        raise OptionError(f"{where}: no node lies between {start or 'the inputs'!r} and {end or 'the outputs'!r}")
    within = {inner for node in inside for inner in node.walk()}
    ops: dict[str, str] = {}
    names: set[str] = set()
    for node in reference.walk():
        for source in node.sources:
            ops[source] = node.op
            if node in within:
                names.add(source)
    return [node for node in model.walk() if _belongs(node, ops, names)]


def _belongs(node: Node, ops: dict[str, str], names: set[str]) -> bool:
    namesakes = [source for source in node.sources if ops.get(source) == node.op]
    return any(source in names for source in namesakes or node.sources)


def _ends(model: Model, start: str | None, end: str | None, where: str) -> tuple[Graph, Value | None, Value | None]:
    by_name = {value.name: value for graph in model.graphs() for value in graph.values() if value.name}
    found: list[Value | None] = []
    for name in (start, end):
        if name is not None and name not in by_name:
            raise OptionError(f"{where}: the model has no value {name!r}{suggest(name, by_name, cutoff=0.3)}")
        found.append(None if name is None else by_name[name])
    first, last = found
    graphs = {value.graph for value in found if value is not None}
    if len(graphs) > 1:
        raise OptionError(f"{where}: {start!r} and {end!r} are not in the same graph: give two of one body")
    return next((graph for graph in graphs if graph is not None), model.graph), first, last


def _reached(graph: Graph, start: Value) -> set[Node]:
    """Nodes of the graph that depend on a value, directly or by a body of theirs."""
    known = {start}
    found: set[Node] = set()
    for node in graph.nodes:
        if any(value in known for value in operands(node)):
            found.add(node)
            known.update(node.outputs)
    return found


def _needed(end: Value) -> set[Node]:
    """Nodes that a value depends on, within its graph."""
    found: set[Node] = set()
    work: list[Value] = [end]
    while work:
        node = work.pop().producer
        if node is not None and node not in found and node.graph is end.graph:
            found.add(node)
            work.extend(operands(node))
    return found
