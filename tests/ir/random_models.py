"""Random small models and random edits of them, for property tests. Same integers, same model."""

from __future__ import annotations

import random

from qir.ir import (
    DerivedQuant,
    DType,
    DynamicQuant,
    Graph,
    Interval,
    Model,
    Node,
    StaticQuant,
    Tensor,
    TensorType,
    UseQuantMarker,
    Value,
)

FLOAT = TensorType(DType.FLOAT, ("N", 4))
OPS = ("Add", "Mul", "Relu", "Concat")


def random_model(seed: int, size: int = 8) -> Model:
    """Some nodes in a valid order, some with bodies that capture, some annotated; valid by the structural verifier."""
    rng = random.Random(seed)
    graph = Graph("main")
    model = Model(graph, {"": 17}, 8)
    for index in range(rng.randint(1, 3)):
        graph.add_input(f"in/{index}:0", FLOAT)
    for _ in range(rng.randint(0, 3)):
        graph.add_constant(Tensor.of([[rng.random() for _ in range(rng.choice((1, 4, 20)))]], DType.FLOAT), "w")
    if rng.random() < 0.3:
        value = graph.add_initializer("default", Tensor.of([[1.0]], DType.FLOAT))
        graph.make_input(value)
    fill(graph, rng, size, [])
    return model


def fill(graph: Graph, rng: random.Random, size: int, outer: list[Value]) -> None:
    """Add nodes and outputs to a graph that reads its own values and those of ``outer``."""
    for _ in range(rng.randint(1, size)):
        add_node(graph, rng, outer)
    for value in rng.sample(own := list(graph.values()), min(len(own), rng.randint(1, 2))):
        graph.add_output(value)


def add_node(graph: Graph, rng: random.Random, outer: list[Value]) -> Node:
    own = list(graph.values())
    visible = [*own, *outer]
    operands = [rng.choice(visible) if visible and rng.random() > 0.1 else None for _ in range(rng.randint(0, 3))]
    attributes = {"axis": rng.randint(-2, 2), "alpha": rng.random()} if rng.random() < 0.3 else {}
    node = graph.add_node(rng.choice(OPS), operands, attributes, outputs=rng.randint(1, 2), types=[FLOAT])
    if rng.random() < 0.15:
        body = Graph("body")
        body.add_input(graph.fresh_name("i"), FLOAT)
        node.set("body", body)
        fill(body, rng, 3, visible)
    if rng.random() < 0.2:
        annotate(node, rng)
    return node


def annotate(node: Node, rng: random.Random) -> None:
    choice = rng.randrange(6)
    if choice == 0:
        node.output.quant = StaticQuant.per_tensor(DType.UINT8, rng.random() + 0.1, rng.randrange(256))
    elif choice == 1:
        node.output.range = Interval(-rng.random(), float("inf"))
        node.output.observed = Interval(-0.5, rng.random())
    elif choice == 2:
        node.kernel = rng.choice(("float", "integer", None))
    elif choice == 3:
        node.output.frozen = not node.output.frozen
    else:
        for use in node.uses:
            if use is not None:
                quants = (UseQuantMarker.FLOAT, UseQuantMarker.INHERIT, DynamicQuant(DType.UINT8))
                use.quant = rng.choice(quants)
        if len(node.uses) == 3 and all(node.uses):
            use = node.uses[2]
            assert use is not None
            use.quant = DerivedQuant(0, 1)


def all_nodes(model: Model) -> list[Node]:
    return list(model.walk())


def scope_of(graph: Graph) -> list[Value]:
    """Values of the graphs around this one that stand before it."""
    found: list[Value] = []
    owner = graph.owner
    while owner is not None and owner.graph is not None:
        found += before(owner)
        owner = owner.graph.owner
    return found


def before(node: Node) -> list[Value]:
    """Values of the node's own graph that stand before it."""
    graph = node.graph
    assert graph is not None
    found = [value for value in graph.values() if value.producer is None]
    for earlier in graph.nodes:
        if earlier is node:
            break
        found += earlier.outputs
    return found


def edit(model: Model, rng: random.Random) -> str:
    """One random edit through the public methods that keeps the model valid; says which."""
    nodes = all_nodes(model)
    node = rng.choice(nodes) if nodes else None
    graph = node.graph if node is not None else model.graph
    assert graph is not None
    kind = rng.choice(
        "add erase erase set_input set_inputs replace replace attribute annotate rename const output constant "
        "move input body op unbody".split()
    )
    if kind == "add":
        add_node(graph, rng, scope_of(graph))
    elif node is None:
        return "none"
    elif kind == "erase":
        unused = [n for n in nodes if not any(value.uses for value in n.outputs)]
        if unused:
            rng.choice(unused).erase()
    elif kind == "set_input":
        visible = [*before(node), *scope_of(graph), None]
        node.set_input(rng.randrange(4), rng.choice(visible))
    elif kind == "set_inputs":
        visible = [*before(node), *scope_of(graph), None]
        node.set_inputs([rng.choice(visible) for _ in range(rng.randrange(4))])
        drop_derived(node)
    elif kind == "replace":
        candidates = before(node)
        if candidates:
            node.output.replace_all_uses(rng.choice(candidates))
    elif kind == "attribute":
        if rng.random() < 0.5:
            node.set("axis", rng.randrange(9))
        else:
            node.remove("alpha")
    elif kind == "annotate":
        annotate(node, rng)
    elif kind == "rename":
        node.output.name = graph.fresh_name("renamed")
        node.name = graph.fresh_name("node")
    elif kind == "const":
        constants = list(model.graph.initializers)
        if constants:
            chosen = rng.choice(constants)
            chosen.const = Tensor.of([[rng.random()]], DType.FLOAT)
            chosen.type = TensorType(DType.FLOAT, (1, 1))
    elif kind == "output":
        if rng.random() < 0.5 and len(graph.outputs) > 1:
            graph.remove_output(rng.randrange(len(graph.outputs)))
        elif node.output not in graph.outputs:
            graph.add_output(node.output)
    elif kind == "constant":
        constant = graph.add_constant([rng.random()])
        if rng.random() < 0.5:
            graph.remove_initializer(constant)
    elif kind == "move":
        graph.move(node, None)
        graph.sort()
    elif kind == "input":
        graph.add_input(graph.fresh_name("late"), FLOAT)
    elif kind == "body":
        body = Graph("made detached")
        visible = [*before(node), *scope_of(graph)]
        if visible:
            inner = body.add_node("Relu", [rng.choice(visible)], name="", outputs=[graph.fresh_name("inner")])
            body.add_output(inner.output)
        node.set("body", body)
    elif kind == "op":
        node.set_op(rng.choice(OPS), "com.example")
    elif kind == "unbody":
        node.remove("body")
    for touched in all_nodes(model):
        drop_derived(touched)
    return kind


def drop_derived(node: Node) -> None:
    """An edit may have taken away what a derived quantization names."""
    for use in node.uses:
        if use is not None and isinstance(use.quant, DerivedQuant) and not all(node.uses[:2]):
            use.quant = UseQuantMarker.INHERIT
