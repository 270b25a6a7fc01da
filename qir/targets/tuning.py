"""Measure a cost table on this machine: chains of one operator, float and integer, timed on one thread.

A chain's time over its length is what a node takes; rates come from shapes at which one thing dominates. What is not
measured keeps the base table's number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qir.runtime.session import OrtRunner, SessionConfig
from qir.targets.cost import CostTable

__all__ = ["STEPS", "tune_costs"]

STEPS = 11
"""How often ``tune_costs`` reports that it has come further."""

_SIDE, _CHANNELS, _LENGTH, _MANY = 28, 64, 6, 60
_CONV_SHAPES = ((32, 28), (64, 28), (64, 14), (128, 14), (256, 7))
"""Channels and side of the 3x3 convolutions that the integer rates are fitted to."""


Link = Callable[["_Builder", str, int], str]
"""Adds one link to a chain: builder, the value so far, how many links there are."""


@dataclass(frozen=True, slots=True)
class _Timer:
    """``rounds`` runs of a chain after a few to warm up; the median counts."""

    rounds: int

    def us(self, model: bytes, shape: tuple[int, ...]) -> float:
        """Microseconds of one run on a float input of this shape."""
        runner = OrtRunner(model, SessionConfig(threads=1))
        feed = {"x": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
        times = np.empty(self.rounds)
        for _ in range(3):
            runner.run(feed)
        for index in range(self.rounds):
            start = time.perf_counter()
            runner.run(feed)
            times[index] = time.perf_counter() - start
        return float(np.median(times) * 1e6)


def tune_costs(base: CostTable, *, quick: bool = False, step: Callable[[str], None] = lambda name: None) -> CostTable:
    """``base`` with the rates of this machine in place of those that are measured. ``step`` is told each measurement;
    ``quick`` takes a few seconds and is less certain."""
    timer = _Timer(8 if quick else 40)
    step("a node")
    node = _slope(timer, _light("Abs"), (1, 8), _MANY)
    step("an integer product")
    integer_node = _slope(timer, _product(16, True), (1, 16), _MANY)
    step("conversions")
    image = (1, _CHANNELS, _SIDE, _SIDE)
    elements = int(np.prod(image))
    pair = _slope(timer, _convert, image) - _slope(timer, _light("Abs"), image)
    convert = max(pair - 2 * node, 0.0) / 2 / elements * 1000
    step("float convolutions")
    macs = _CHANNELS * _CHANNELS * 9 * _SIDE**2
    float_conv = _slope(timer, _conv(_CHANNELS, 1, False), image)
    step("integer convolutions")
    rate, store = _fit_integer_conv(timer, base, integer_node)
    step("products of one row")
    vectors = [_slope(timer, _product(1024, integer), (1, 1024)) for integer in (False, True)]
    step("depthwise convolutions")
    deep = [_slope(timer, _conv(_CHANNELS, _CHANNELS, integer), image) for integer in (False, True)]
    walked = integer_node + _SIDE**2 * base.pixel_us
    deep_macs = elements * 9
    element_ns = dict(base.element_ns)
    for op in ("Add", "Mul", "Sigmoid", "LeakyRelu"):
        step(op)
        element_ns[op] = _element_pair(timer, op, image, node)
    return replace(
        base,
        macs_per_us=(_rate(macs, float_conv - node, base.macs_per_us[0]), rate),
        vector_macs_per_us=(
            _rate(1024**2, vectors[0] - node, base.vector_macs_per_us[0]),
            _rate(1024**2, vectors[1] - integer_node, base.vector_macs_per_us[1]),
        ),
        depthwise_macs_per_us=(
            _rate(deep_macs, deep[0] - node, base.depthwise_macs_per_us[0]),
            _rate(deep_macs, deep[1] - walked, base.depthwise_macs_per_us[1]),
        ),
        store_ns=store,
        element_ns=element_ns,
        convert_ns=convert or base.convert_ns,
        node_us=node or base.node_us,
        integer_node_us=integer_node or base.integer_node_us,
    )


def _slope(timer: _Timer, link: Link, shape: tuple[int, ...], length: int = _LENGTH) -> float:
    """Microseconds that one more link takes: what a run costs besides cancels out."""
    short, long = (timer.us(_chain(count, shape, link), shape) for count in (2, 2 + length))
    return max(long - short, 0.0) / length


def _rate(count: float, us: float, otherwise: float) -> float:
    """Of something that took next to no time nothing is known."""
    return count / us if us > count / 1e7 else otherwise


def _element_pair(timer: _Timer, op: str, image: tuple[int, ...], node: float) -> tuple[float, float]:
    elements = int(np.prod(image))
    found = [max(_slope(timer, _light(op, integer), image) - node, 0.0) / elements * 1000 for integer in (False, True)]
    return found[0], found[1]


def _fit_integer_conv(timer: _Timer, base: CostTable, node: float) -> tuple[float, float]:
    """Rate, and nanoseconds a stored result: least squares over shapes, relative errors alike. What a pixel costs is
    the base's number: beside these two it drowns."""
    rows, times = [], []
    for channels, side in _CONV_SHAPES:
        shape = (1, channels, side, side)
        us = _slope(timer, _conv(channels, 1, True), shape) - node - side**2 * base.pixel_us
        rows.append([channels * channels * 9 * side**2, channels * side**2 / 1000])
        times.append(max(us, 0.1))
    matrix, wanted = np.array(rows), np.array(times)
    slowness, store = np.linalg.lstsq(matrix / wanted[:, None], np.ones(len(times)), rcond=None)[0]
    if store > 0 and slowness > 0:
        return float(1 / slowness), float(store)
    rest = np.maximum(wanted - matrix[:, 1] * base.store_ns, 0.1)
    return float(np.median(matrix[:, 0] / rest)), base.store_ns


# Chains


class _Builder:
    """Collects the nodes and constants of one chain."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {
            "s": np.array(0.05, np.float32),
            "z": np.array(128, np.uint8),
            "t": np.array(0.05, np.float32),
            "wz": np.array(0, np.int8),
        }

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def quantized(self, value: str) -> str:
        """Through a quantizer and a dequantizer."""
        return self.add("DequantizeLinear", self.add("QuantizeLinear", value, "s", "z"), "s", "z")


def _chain(count: int, shape: tuple[int, ...], link: Link) -> bytes:
    builder = _Builder()
    value = "x"
    for index in range(count):
        value = link(builder, value, index)
    graph = helper.make_graph(
        builder.nodes, "chain", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in builder.constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _light(op: str, quantized: bool = False) -> Link:
    def link(builder: _Builder, value: str, index: int) -> str:
        if quantized and index == 0:
            value = builder.quantized(value)
        operands = [value, value] if op in ("Add", "Mul") else [value]
        made = builder.add(op, *operands)
        return builder.quantized(made) if quantized else made

    return link


def _convert(builder: _Builder, value: str, index: int) -> str:
    """A pair that stays a pair, because a float node stands between it and the next."""
    return builder.add("Abs", builder.quantized(value))


def _conv(channels: int, group: int, quantized: bool) -> Link:
    def link(builder: _Builder, value: str, index: int) -> str:
        draw = np.random.default_rng(index)
        shape = (channels, channels // group, 3, 3)
        if not quantized:
            builder.constants[f"w{index}"] = draw.normal(0, 0.03, shape).astype(np.float32)
            return builder.add("Conv", value, f"w{index}", pads=[1, 1, 1, 1], group=group)
        if index == 0:
            value = builder.quantized(value)
        weight = _integer_weight(builder, draw.integers(-63, 64, shape).astype(np.int8), index)
        return builder.quantized(builder.add("Conv", value, weight, pads=[1, 1, 1, 1], group=group))

    return link


def _product(size: int, quantized: bool) -> Link:
    def link(builder: _Builder, value: str, index: int) -> str:
        draw = np.random.default_rng(index)
        if not quantized:
            builder.constants[f"w{index}"] = draw.normal(0, 0.03, (size, size)).astype(np.float32)
            return builder.add("MatMul", value, f"w{index}")
        if index == 0:
            value = builder.quantized(value)
        weight = _integer_weight(builder, draw.integers(-63, 64, (size, size)).astype(np.int8), index)
        return builder.quantized(builder.add("MatMul", value, weight))

    return link


def _integer_weight(builder: _Builder, codes: np.ndarray, index: int) -> str:
    builder.constants[f"w{index}"] = codes
    return builder.add("DequantizeLinear", f"w{index}", "t", "wz")
