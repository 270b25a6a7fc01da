"""Deep copies of models: structure and annotations are copied, tensors shared."""

from __future__ import annotations

from qir.ir.attribute import Attribute, AttrKind
from qir.ir.function import Function
from qir.ir.graph import Graph, _assign_inputs
from qir.ir.journal import EditState
from qir.ir.model import Clone, Model
from qir.ir.node import Node
from qir.ir.value import Use, Value

__all__ = ["clone_graph", "clone_model", "clone_node", "clone_value"]


def clone_model(model: Model) -> Clone:
    """See ``Model.clone_with_map``. Linear; an open transaction stays with the original."""
    state = EditState()
    state.calibrated = model._state.calibrated
    values: dict[Value, Value] = {}
    nodes: dict[Node, Node] = {}
    copy = Model(clone_graph(model.graph, state, values, nodes), model.opset_imports, model.ir_version)
    for slot in ("_producer_name", "_producer_version", "_domain", "_model_version", "_doc", "_extra", "_metadata"):
        setattr(copy, slot, getattr(model, slot))
    for function in model.functions.values():
        copy.add_function(
            Function(
                function.domain,
                function.name,
                clone_graph(function.graph, state, values, nodes),
                overload=function.overload,
                attributes=function.attributes,
                defaults=function.defaults,
                opset_imports=function.opset_imports,
                extra=function.extra,
            )
        )
    return Clone(copy, values, nodes)


def clone_graph(graph: Graph, state: EditState, values: dict[Value, Value], nodes: dict[Node, Node]) -> Graph:
    """A copy of a graph with its bodies; fills ``values`` and ``nodes`` with what became what.

    A captured value that ``values`` does not map is used as it is.
    """
    copy = Graph(graph.name, state)
    copy._doc, copy._extra, copy._metadata = graph._doc, graph._extra, graph._metadata
    for value in graph.inputs:
        values[value] = clone_value(value, state, copy)
    for value in graph.initializers:
        if value not in values:
            values[value] = clone_value(value, state, copy)
        copy._initializers.link(values[value])
    _assign_inputs(copy, tuple(values[value] for value in graph.inputs))
    # Results first: a graph may be out of order.
    for node in graph.nodes:
        _clone_results(node, copy, values, nodes)
    for node in graph.nodes:
        _clone_operands(node, values, nodes)
    copy._outputs = tuple(_clone_use(use, copy, values) for use in graph.output_uses)
    for value in graph.recorded_types:
        if value in values:
            copy.recorded_types[values[value]] = None
        elif value.graph is None and value.producer is None:  # an entry of the file that belongs to no value
            copy.recorded_types[clone_value(value, state, None)] = None
    return copy


def clone_node(node: Node, graph: Graph, values: dict[Value, Value], nodes: dict[Node, Node]) -> Node:
    """A copy of a node at the end of ``graph``, reading what ``values`` maps its operands to; see ``clone_graph``."""
    made = _clone_results(node, graph, values, nodes)
    _clone_operands(node, values, nodes)
    return made


def _clone_results(node: Node, graph: Graph, values: dict[Value, Value], nodes: dict[Node, Node]) -> Node:
    state = graph._state
    made = Node(state, node.op, node.domain, node.overload, node.name)
    for slot in ("_metadata", "_doc", "_extra", "_kernel", "_region", "_provenance"):
        setattr(made, slot, getattr(node, slot))
    nodes[node] = made
    made._graph = graph
    graph._nodes.link(made)
    results = []
    for value in node.outputs:
        result = values[value] = clone_value(value, state, None)
        result._producer, result._index = made, value.index
        results.append(result)
    made._outputs = tuple(results)
    return made


def _clone_operands(node: Node, values: dict[Value, Value], nodes: dict[Node, Node]) -> None:
    made = nodes[node]
    made._uses = [None if use is None else _clone_use(use, made, values) for use in node.uses]
    made._attributes = {
        name: _clone_attribute(attribute, made, made._state, values, nodes)
        for name, attribute in node.attributes.items()
    }


def clone_value(value: Value, state: EditState, graph: Graph | None) -> Value:
    copy = Value(state, value.name, value.type)
    copy._graph = graph
    for slot in ("_const", "_range", "_observed", "_quant", "_frozen", "_metadata", "_doc", "_extra", "_annotation"):
        setattr(copy, slot, getattr(value, slot))
    return copy


def _clone_use(use: Use, owner: Node | Graph, values: dict[Value, Value]) -> Use:
    value = values.get(use.value, use.value)
    copy = Use(owner, use.index, value)
    copy._quant = use._quant
    value._uses.link(copy)
    if (journal := value._state.journal) is not None:  # a body copied within its model captures what is around it
        journal.record(copy, "inputs", value._uses.unlink, copy)
    return copy


def _clone_attribute(
    attribute: Attribute, owner: Node, state: EditState, values: dict[Value, Value], nodes: dict[Node, Node]
) -> Attribute:
    if attribute.kind not in (AttrKind.GRAPH, AttrKind.GRAPHS) or attribute.value is None:
        return attribute
    bodies = tuple(clone_graph(body, state, values, nodes) for body in attribute.graphs)
    for body in bodies:
        body.owner = owner
    value = bodies if attribute.kind is AttrKind.GRAPHS else bodies[0]
    return Attribute(attribute.name, attribute.kind, value, attribute.ref, attribute.doc, attribute.extra)
