"""Edits planted into ModelProtos, and re-spellings that change nothing. Nothing here knows how a diff works."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

UNARY = ("Relu", "Sigmoid", "Tanh", "Neg", "Exp", "Abs", "Sqrt", "Softplus", "Erf", "HardSigmoid", "Elu", "LeakyRelu")
_FLOATS = (TensorProto.FLOAT,)
_TYPED = 1 << 16
"""Elements from which on a tensor is not rewritten as a list of numbers, which takes seconds."""

Expected = Counter[str]
Edit = Callable[[ModelProto, random.Random], Expected | None]
"""Changes the model in place and returns the counts that a diff should show; None where there is no place for it."""


def copied(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from graphs(body)


# Re-spellings


def rename_inside(model: ModelProto, rng: random.Random) -> None:
    """New names for all nodes, initializers and inner values, permuted among them, so that old names mislead."""
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    names: dict[str, None] = {}
    for graph in graphs(model.graph):
        for body_value in (*graph.input, *graph.output) if graph is not model.graph else ():
            names[body_value.name] = None
        for tensor in graph.initializer:
            names[tensor.name] = None
        for node in graph.node:
            names.update(dict.fromkeys(node.output))
    old = [name for name in names if name and name not in kept]
    new = list(old)
    rng.shuffle(new)
    table = dict(zip(old, new, strict=True))

    def renamed(name: str) -> str:
        return table.get(name, name)

    labels = [node.name for graph in graphs(model.graph) for node in graph.node]
    rng.shuffle(labels)
    for graph in graphs(model.graph):
        if graph is not model.graph:
            for value in (*graph.input, *graph.output):
                value.name = renamed(value.name)
        for tensor in graph.initializer:
            tensor.name = renamed(tensor.name)
        for info in graph.value_info:
            info.name = renamed(info.name)
        for annotation in graph.quantization_annotation:
            annotation.tensor_name = renamed(annotation.tensor_name)
        for node in graph.node:
            node.name = labels.pop()
            node.input[:] = [renamed(name) for name in node.input]
            node.output[:] = [renamed(name) for name in node.output]


def reorder(model: ModelProto, rng: random.Random) -> None:
    """Another topological order of the nodes of every graph, another order of initializers and value infos."""
    for graph in list(graphs(model.graph)):
        nodes = [_copied_node(node) for node in graph.node]
        made = {name: index for index, node in enumerate(nodes) for name in node.output if name}
        waiting = [{made[name] for name in reads(node) if name in made} - {i} for i, node in enumerate(nodes)]
        order: list[int] = []
        ready = [i for i, needs in enumerate(waiting) if not needs]
        readers: dict[int, list[int]] = {}
        for i, needs in enumerate(waiting):
            for need in needs:
                readers.setdefault(need, []).append(i)
        left = [len(needs) for needs in waiting]
        while ready:
            index = ready.pop(rng.randrange(len(ready)))
            order.append(index)
            for reader in readers.get(index, ()):
                left[reader] -= 1
                if left[reader] == 0:
                    ready.append(reader)
        assert len(order) == len(nodes)
        del graph.node[:]
        graph.node.extend(nodes[index] for index in order)
        for field in (graph.initializer, graph.value_info):
            items = list(field)
            rng.shuffle(items)
            del field[:]
            field.extend(items)


def restore(model: ModelProto, rng: random.Random) -> None:
    """Other spellings of the same: raw data or typed fields, Constant nodes or initializers, doc strings, producer."""
    model.producer_name, model.producer_version, model.doc_string = "somebody", "else", "says so"
    for graph in list(graphs(model.graph)):
        overridable = {value.name for value in graph.input}
        outputs = {value.name for value in graph.output}
        for node in graph.node:
            node.doc_string = "made at line 7"
        del graph.value_info[:]
        constants = []
        for tensor in list(graph.initializer):
            if tensor.data_location == TensorProto.EXTERNAL:
                continue
            array = numpy_helper.to_array(tensor)
            if tensor.name not in overridable and tensor.name not in outputs and rng.random() < 0.3:
                constants.append(helper.make_node("Constant", [], [tensor.name], value=numpy_helper.from_array(array)))
                graph.initializer.remove(tensor)
            elif tensor.data_type in (TensorProto.FLOAT, TensorProto.INT64) and array.size < _TYPED:
                typed = helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.reshape(-1).tolist())
                tensor.CopyFrom(typed if tensor.HasField("raw_data") else numpy_helper.from_array(array, tensor.name))
        for constant in reversed(constants):
            graph.node.insert(0, constant)


def commute(model: ModelProto, rng: random.Random) -> None:
    """Operands of some sums and products in the other order."""
    for graph in graphs(model.graph):
        for node in graph.node:
            if node.op_type in ("Add", "Mul", "Max") and len(node.input) == 2 and rng.random() < 0.3:
                node.input[:] = list(node.input)[::-1]


def reads(node: NodeProto) -> set[str]:
    """Names that a node reads, its bodies' captures included."""
    found = {name for name in node.input if name}
    for body in bodies(node):
        inside = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        for inner in body.node:
            found |= reads(inner) - inside
            inside |= set(inner.output)
        found |= {value.name for value in body.output} - inside
    return found


def _copied_node(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


# Edits


def _readers(graph: GraphProto) -> dict[str, list[tuple[NodeProto, int]]]:
    found: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            found.setdefault(name, []).append((node, index))
    return found


def _captured(graph: GraphProto) -> set[str]:
    """Names that bodies inside read from this graph or from further out."""
    return {
        name for node in graph.node for body in bodies(node) for name in reads(helper.make_node("If", [], [], b=body))
    }


def _fresh(model: ModelProto, rng: random.Random) -> str:
    taken = {name for graph in graphs(model.graph) for node in graph.node for name in (*node.input, *node.output)}
    while True:
        name = f"v{rng.randrange(10**9)}"
        if name not in taken:
            return name


def _some_graph(model: ModelProto, rng: random.Random, inside: bool) -> GraphProto | None:
    found = [graph for graph in graphs(model.graph) if (graph is not model.graph) == inside and graph.node]
    return rng.choice(found) if found else None


def _computed(graph: GraphProto) -> set[str]:
    return {name for node in graph.node if node.op_type != "Constant" for name in node.output if name}


def insert_node(model: ModelProto, rng: random.Random, *, inside: bool = False) -> Expected | None:
    """One unary node between a node's result and one of its readers, or all of them."""
    graph = _some_graph(model, rng, inside)
    if graph is None:
        return None
    computed = _computed(graph)
    places = [(i, k) for i, node in enumerate(graph.node) for k, name in enumerate(node.input) if name in computed]
    if not places:
        return None
    position, index = rng.choice(places)
    source, made = graph.node[position].input[index], _fresh(model, rng)
    producer = next(i for i, node in enumerate(graph.node) if source in node.output)
    op = rng.choice(UNARY)
    readers = _readers(graph)[source] if rng.random() < 0.5 else [(graph.node[position], index)]
    for node, place in readers:
        node.input[place] = made
    graph.node.insert(producer + 1, helper.make_node(op, [source], [made], made + "_node"))
    return Counter(nodes_added=1)


def _unary_places(graph: GraphProto) -> list[int]:
    outputs = {value.name for value in graph.output} | _captured(graph)
    return [i for i, node in enumerate(graph.node) if node.op_type in UNARY and node.output[0] not in outputs]


def remove_node(model: ModelProto, rng: random.Random, *, inside: bool = False) -> Expected | None:
    """One unary node bypassed."""
    graph = _some_graph(model, rng, inside)
    places = [] if graph is None else _unary_places(graph)
    readers = {} if graph is None else _readers(graph)
    places = [] if graph is None else [i for i in places if graph.node[i].output[0] in readers]
    if graph is None or not places:
        return None
    node = graph.node[rng.choice(places)]
    for reader, index in readers[node.output[0]]:
        reader.input[index] = node.input[0]
    graph.node.remove(node)
    return Counter(nodes_removed=1)


def replace_node(model: ModelProto, rng: random.Random, *, inside: bool = False) -> Expected | None:
    """One unary node becomes another."""
    graph = _some_graph(model, rng, inside)
    places = [] if graph is None else [i for i, node in enumerate(graph.node) if node.op_type in UNARY]
    if graph is None or not places:
        return None
    node = graph.node[rng.choice(places)]
    node.op_type = rng.choice([op for op in UNARY if op != node.op_type])
    del node.attribute[:]
    return Counter(nodes_changed=1)


def change_attribute(model: ModelProto, rng: random.Random, *, inside: bool = False) -> Expected | None:
    """One number in one attribute."""
    graph = _some_graph(model, rng, inside)
    if graph is None:
        return None
    kinds = (AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.INTS, AttributeProto.FLOATS)
    places = [(node, a) for node in graph.node if node.op_type != "Constant" for a in node.attribute if a.type in kinds]
    if not places:
        return None
    _, attribute = rng.choice(places)
    match attribute.type:
        case AttributeProto.INT:
            attribute.i += 7
        case AttributeProto.FLOAT:
            attribute.f += 0.375
        case AttributeProto.INTS:
            if not attribute.ints:
                return None
            attribute.ints[rng.randrange(len(attribute.ints))] += 7
        case _:
            if not attribute.floats:
                return None
            attribute.floats[rng.randrange(len(attribute.floats))] += 0.375
    return Counter(nodes_changed=1)


def _some_weight(model: ModelProto, rng: random.Random, inside: bool, least: int) -> TensorProto | None:
    read = {name for graph in graphs(model.graph) for node in graph.node for name in node.input}
    found = [
        tensor
        for graph in graphs(model.graph)
        if (graph is not model.graph) == inside
        for tensor in graph.initializer
        if tensor.name in read
        and tensor.data_type in _FLOATS
        and tensor.data_location != TensorProto.EXTERNAL
        and int(np.prod(tensor.dims)) >= least
    ]
    return rng.choice(found) if found else None


def change_weight(model: ModelProto, rng: random.Random, *, inside: bool = False) -> Expected | None:
    """One element of one initializer."""
    tensor = _some_weight(model, rng, inside, 1)
    if tensor is None:
        return None
    array = numpy_helper.to_array(tensor).copy()
    place = rng.randrange(array.size)
    array.reshape(-1)[place] = array.reshape(-1)[place] * np.float32(1.5) + np.float32(0.25)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return Counter(weights_changed=1)


def permute_weight(model: ModelProto, rng: random.Random, *, inside: bool = False) -> Expected | None:
    """The elements of one initializer in reverse."""
    tensor = _some_weight(model, rng, inside, 2)
    if tensor is None:
        return None
    array = numpy_helper.to_array(tensor)
    turned = np.ascontiguousarray(array.reshape(-1)[::-1].reshape(array.shape))
    if np.array_equal(array, turned):
        return None
    tensor.CopyFrom(numpy_helper.from_array(turned, tensor.name))
    return Counter(weights_changed=1)


def swap_weights(model: ModelProto, rng: random.Random) -> Expected | None:
    """The contents of two initializers of the same shape."""
    read = Counter(name for graph in graphs(model.graph) for node in graph.node for name in node.input)
    groups: dict[tuple[int, ...], list[TensorProto]] = {}
    for tensor in model.graph.initializer:
        if tensor.data_type in _FLOATS and len(tensor.dims) > 1 and read[tensor.name] == 1:
            groups.setdefault(tuple(tensor.dims), []).append(tensor)
    pools = [tensors for tensors in groups.values() if len(tensors) > 1]
    if not pools:
        return None
    one, two = rng.sample(rng.choice(pools), 2)
    a, b = numpy_helper.to_array(one).copy(), numpy_helper.to_array(two).copy()
    if np.array_equal(a, b):
        return None
    one.CopyFrom(numpy_helper.from_array(b, one.name))
    two.CopyFrom(numpy_helper.from_array(a, two.name))
    return Counter(weights_changed=2)


def rename_input(model: ModelProto, rng: random.Random) -> Expected | None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if not inputs:
        return None
    value = rng.choice(inputs)
    old, value.name = value.name, value.name + "_renamed"
    for graph in graphs(model.graph):
        for node in graph.node:
            node.input[:] = [value.name if name == old else name for name in node.input]
        if graph is not model.graph:
            for output in graph.output:
                output.name = value.name if output.name == old else output.name
    if any(output.name == old for output in model.graph.output):
        return None
    return Counter(inputs_changed=1)


def rename_output(model: ModelProto, rng: random.Random) -> Expected | None:
    value = rng.choice(list(model.graph.output))
    if any(value.name in (v.name for v in model.graph.input) for _ in (0,)):
        return None
    old, value.name = value.name, value.name + "_renamed"
    for graph in graphs(model.graph):
        for tensor in graph.initializer:
            tensor.name = value.name if tensor.name == old else tensor.name
        for node in graph.node:
            node.input[:] = [value.name if name == old else name for name in node.input]
            node.output[:] = [value.name if name == old else name for name in node.output]
    return Counter(outputs_changed=1)


SINGLE: dict[str, Edit] = {
    "insert": insert_node,
    "remove": remove_node,
    "replace": replace_node,
    "attribute": change_attribute,
    "weight": change_weight,
    "permute": permute_weight,
    "swap": swap_weights,
    "rename input": rename_input,
    "rename output": rename_output,
    "insert in a body": lambda model, rng: insert_node(model, rng, inside=True),
    "remove in a body": lambda model, rng: remove_node(model, rng, inside=True),
    "replace in a body": lambda model, rng: replace_node(model, rng, inside=True),
    "attribute in a body": lambda model, rng: change_attribute(model, rng, inside=True),
    "weight in a body": lambda model, rng: change_weight(model, rng, inside=True),
}


def respelled(model: ModelProto, rng: random.Random) -> ModelProto:
    """A copy under other names, in another order, stored in another form, operands of sums exchanged."""
    copy = copied(model)
    rename_inside(copy, rng)
    restore(copy, rng)
    commute(copy, rng)
    reorder(copy, rng)
    onnx.checker.check_model(copy) if copy.ByteSize() < 1 << 24 and not copy.functions else None
    return copy
