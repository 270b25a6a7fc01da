"""Graphs of any size for the benchmarks: chains, wide ones, diamonds, made of blocks that the exact passes have work
with. The same arguments give the same graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["SHAPES", "STYLES", "make_graph"]

CHANNELS = 4
SHAPE = [1, CHANNELS, 2, 2]
STYLES = ("float", "half", "old", "calls")
"""How a graph is spelled: float32 at opset 17; float16; opset 9; or with each block's convolution and activation as
the call of a local function."""
_CALLED = helper.make_opsetid("bench", 1)


class Builder:
    """A graph under construction."""

    def __init__(self, style: str) -> None:
        self.style = style
        self.dtype = np.dtype(np.float16 if style == "half" else np.float32)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.kernel = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS, 1, 1)) / CHANNELS
        for name, array in (("gamma", np.ones), ("beta", np.zeros), ("mean", np.zeros), ("var", np.ones)):
            self.weight(name, array(CHANNELS))

    def weight(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array.astype(self.dtype), name))
        return name

    def node(self, op: str, inputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name, domain=domain, **attributes))
        return name

    def block(self, x: str) -> str:
        """Conv, BatchNormalization, Relu, Identity, a transpose there and back, a constant expression: 8 nodes."""
        index = len(self.nodes)
        weight = self.weight(f"w{index}", self.kernel * (1 + index * 1e-6))
        constant = self.weight(f"c{index}", np.full((1, CHANNELS, 1, 1), index % 7))
        if self.style == "calls":
            y = self.node("ConvRelu", [x, weight], "bench")
        else:
            y = self.node("Conv", [x, weight])
            y = self.node("Relu", [self.node("BatchNormalization", [y, "gamma", "beta", "mean", "var"])])
        y = self.node("Identity", [y])
        y = self.node("Transpose", [self.node("Transpose", [y], perm=[0, 2, 3, 1])], perm=[0, 3, 1, 2])
        return self.node("Add", [y, self.node("Neg", [constant])])

    def flat_block(self, x: str) -> str:
        """A pair whose attribute became an input with opset 13."""
        return self.node("Squeeze", [self.node("Unsqueeze", [x], axes=[0])], axes=[0])

    def model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        interface = {name: helper.make_tensor_value_info(name, kind, SHAPE) for name in ("x", *outputs)}
        graph = helper.make_graph(
            self.nodes, "bench", [interface["x"]], [interface[name] for name in outputs], self.weights
        )
        opset = helper.make_opsetid("", 9 if self.style == "old" else 17)
        if self.style != "calls":
            return helper.make_model(graph, opset_imports=[opset], ir_version=8)
        body = [helper.make_node("Conv", ["a", "b"], ["c"], "conv"), helper.make_node("Relu", ["c"], ["d"], "relu")]
        function = helper.make_function("bench", "ConvRelu", ["a", "b"], ["d"], body, [opset])
        return helper.make_model(graph, opset_imports=[opset, _CALLED], ir_version=8, functions=[function])


def chain(builder: Builder, size: int) -> str:
    """Blocks one after the other."""
    x = "x"
    while len(builder.nodes) < size:
        x = builder.block(builder.flat_block(x) if builder.style == "old" else x)
    return x


def wide(builder: Builder, size: int) -> str:
    """Blocks that all read the input; one sum reads them all."""
    results = []
    while len(builder.nodes) < size:
        results.append(builder.block(builder.flat_block("x") if builder.style == "old" else "x"))
    return builder.node("Sum", results)


def diamond(builder: Builder, size: int) -> str:
    """Each step reads the last one several times: through a block, and twice through the same few nodes."""
    x = "x"
    while len(builder.nodes) < size:
        left, right = builder.block(x), builder.node("Exp", [builder.node("Neg", [x])])
        again = builder.node("Exp", [builder.node("Neg", [x])])
        x = builder.node("Sum", [left, right, again])
        x = builder.flat_block(x) if builder.style == "old" else x
    return x


SHAPES: dict[str, Callable[[Builder, int], str]] = {"chain": chain, "wide": wide, "diamond": diamond}


def make_graph(shape: str, size: int, style: str = "float") -> onnx.ModelProto:
    """A model of about ``size`` nodes, one input ``x`` and one output; shape and style as named above."""
    builder = Builder(style)
    return builder.model([SHAPES[shape](builder, size)])
