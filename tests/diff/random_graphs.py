"""Random ModelProtos that are hard to match: repeated blocks of equal weights, twins, few operators, bodies."""

from __future__ import annotations

import random

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

_SOME = ("Relu", "Sigmoid", "Tanh", "Neg", "LeakyRelu", "Elu")
_BINARY = ("Add", "Mul", "Sub")


class _Builder:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, TensorProto] = {}
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def weight(self, seed: int) -> str:
        name = f"w{seed}"
        if name not in self.weights:
            array = np.random.default_rng(seed).standard_normal((4, 4)).astype(np.float32)
            self.weights[name] = numpy_helper.from_array(array, name)
        return name

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = self.name()
        self.nodes.append(helper.make_node(op, inputs, [name], "n" + name, **attributes))
        return name

    def block(self, x: str, plan: list[tuple[str, int]], shared: bool, index: int) -> str:
        """One layer: a list of steps, with a residual connection at its end."""
        y = x
        for op, seed in plan:
            if op == "MatMul":
                y = self.node("MatMul", y, self.weight(seed if shared else 1000 * (index + 1) + seed))
            elif op == "LeakyRelu":
                y = self.node(op, y, alpha=0.1 * (seed + 1))
            elif op == "twins":  # two equal branches that a sum brings together
                left, right = (self.node("Tanh", self.node("Neg", y)) for _ in range(2))
                y = self.node("Add", left, right)
            elif op == "If":
                y = self.branch(y, seed)
            else:
                y = self.node(op, y)
        return self.node("Add", x, y)

    def branch(self, x: str, seed: int) -> str:
        """An If whose bodies capture what is around and have constants of their own."""
        condition = self.node("Greater", self.node("ReduceMax", x, keepdims=0), self.scalar(seed))
        made = []
        for part in ("then", "else"):
            inside = [self.name() for _ in range(3)]
            own = numpy_helper.from_array(np.full((4, 4), seed + len(part), np.float32), self.name())
            nodes = [
                helper.make_node("Relu" if part == "then" else "Tanh", [x], [inside[0]], "n" + inside[0]),
                helper.make_node("Mul", [inside[0], own.name], [inside[1]], "n" + inside[1]),
                helper.make_node("Sigmoid", [inside[1]], [inside[2]], "n" + inside[2]),
            ]
            output = helper.make_tensor_value_info(inside[2], TensorProto.FLOAT, [4, 4])
            made.append(helper.make_graph(nodes, self.name(), [], [output], [own]))
        return self.node("If", condition, then_branch=made[0], else_branch=made[1])

    def scalar(self, value: float) -> str:
        name = f"s{value}"
        self.weights.setdefault(name, numpy_helper.from_array(np.float32(value), name))
        return name


def layered(seed: int, layers: int = 6) -> ModelProto:
    """Layers of one plan, with the same or with their own weights, and a few random nodes between."""
    rng = random.Random(seed)
    builder = _Builder(rng)
    steps = [*_SOME, "MatMul", "MatMul", "twins", "If"]
    plan = [(rng.choice(steps), rng.randrange(3)) for _ in range(rng.randrange(2, 6))]
    shared = rng.random() < 0.5
    x = "x"
    for index in range(layers):
        x = builder.block(x, plan, shared, index)
    return _model(builder, [x])


def tangled(seed: int, size: int = 30) -> ModelProto:
    """A DAG of few operators in which every value is read by somebody or an output."""
    rng = random.Random(seed)
    builder = _Builder(rng)
    values = ["x"]
    for _ in range(size):
        near = values[-8:]
        kind = rng.random()
        if kind < 0.45:
            values.append(builder.node(rng.choice(_SOME), rng.choice(near)))
        elif kind < 0.6:
            values.append(builder.node("MatMul", rng.choice(near), builder.weight(rng.randrange(4))))
        elif kind < 0.65:
            values.append(builder.branch(rng.choice(near), rng.randrange(3)))
        else:
            values.append(builder.node(rng.choice(_BINARY), rng.choice(near), rng.choice(near)))
    read = {name for node in builder.nodes for name in node.input}
    return _model(builder, [name for name in values[1:] if name not in read][-5:] or [values[-1]])


def _model(builder: _Builder, outputs: list[str]) -> ModelProto:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in outputs]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])
    graph = helper.make_graph(builder.nodes, "random", [x], infos, list(builder.weights.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
