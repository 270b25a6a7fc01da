"""What a node costs on a target, in microseconds, from a table: never from a clock, so that output is deterministic.

The model is coarse on purpose: a few rates for each kind of kernel, as measured by timing chains of one operator. It
ranks choices; how fast a model is, a benchmark says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from qir.analysis.cost import node_cost, value_bytes
from qir.ir import Node, TensorType, Value

__all__ = ["CostTable"]

_ELEMENT_NS = {
    # Of one element of the result: float, integer.
    "Add": (0.17, 0.18),
    "Mul": (0.15, 0.25),
    "Concat": (0.16, 0.04),
    "Sigmoid": (0.36, 0.29),
    "LeakyRelu": (0.2, 0.3),
    "Transpose": (0.12, 0.06),
    "Slice": (0.1, 0.05),
    "Gather": (0.1, 0.05),
    "Split": (0.1, 0.05),
    "DepthToSpace": (0.12, 0.06),
    "MaxPool": (0.25, 0.2),
    "Reshape": (0.0, 0.0),
    "Flatten": (0.0, 0.0),
    "Squeeze": (0.0, 0.0),
    "Unsqueeze": (0.0, 0.0),
}


@dataclass(frozen=True, slots=True)
class CostTable:
    """Rates of one thread, those of float kernels first where there are two; measured on AVX2 without VNNI.

    ``macs_per_us`` of products, ``vector_macs_per_us`` where a weight is read for a few rows only (memory is the
    limit), ``depthwise_macs_per_us``; integer convolutions also take ``pixel_us`` for each pixel of the result and
    group (more with several groups, which are gathered one by one, and for odd numbers of channels); ``store_ns`` a
    result of an integer product. ``element_ns`` of light operators by name, ``convert_ns`` of quantizing or
    dequantizing an element, ``layout_ns`` of the change between channels last and first that images need then.
    ``lone_ns`` is what an element of an image takes more where a float node stands alone between integers: the
    runtime's blocked float layout, and a barrier (every other 1x1 convolution of 64 to 256 channels and 14x14 to 56x56
    pixels in float: 0.4 to 0.7 ns for each conversion in all).
    ``node_us``: a node; ``integer_node_us``: an integer product, whatever its size; ``dynamic_node_us``: what it takes
    more to find the scale of its input.
    """

    macs_per_us: tuple[float, float] = (43_000.0, 88_000.0)
    vector_macs_per_us: tuple[float, float] = (11_000.0, 36_000.0)
    depthwise_macs_per_us: tuple[float, float] = (23_000.0, 14_500.0)
    pixel_us: float = 0.006
    group_pixel_us: float = 0.035
    odd_pixel_us: float = 0.010
    store_ns: float = 0.19
    element_ns: Mapping[str, tuple[float, float]] = field(default_factory=lambda: _ELEMENT_NS)
    other_element_ns: float = 0.2
    convert_ns: float = 0.24
    layout_ns: float = 0.1
    lone_ns: float = 0.25
    node_us: float = 0.4
    integer_node_us: float = 0.9
    dynamic_node_us: float = 0.6

    def node_us_as(self, node: Node, integer: bool) -> float:
        """One run of a node in floats or integers, conversions at its borders not included. Unknown shapes count 0."""
        macs = node_cost(node).macs or 0
        if node.op == "Conv" and node.domain in ("", "ai.onnx"):
            return self._conv_us(node, macs, integer)
        if macs:
            return self._product_us(macs, _rows(node), _elements(node.output), integer)
        pair = self.element_ns.get(node.op)
        per_element = self.other_element_ns if pair is None else pair[integer]
        return self.node_us + per_element * sum(_elements(value) for value in node.outputs) / 1000

    def conversion_us(self, value: Value, lone: bool = False) -> float:
        """Quantizing or dequantizing a float value once; ``lone``: at the border of a single float node."""
        is_image = isinstance(value.type, TensorType) and value.type.rank in (4, 5)
        layout = self.layout_ns + (self.lone_ns if lone else 0.0)
        per_element = self.convert_ns + (layout if is_image else 0.0)
        return self.node_us + _elements(value) * per_element / 1000

    def fallback_us(self, node: Node) -> float:
        """What computing an annotated integer node in float adds to a run; negative where float is faster.

        Slower arithmetic, and a conversion on either side inside of a region; an operand with a quantizer of its own
        saves that, or its share of it where others read the same.
        """
        slower = self.node_us_as(node, False) - self.node_us_as(node, True)
        if node.kernel == "dynamic":
            return slower - self.convert_input_us(node)
        for use in node.uses:
            if use is None or use.value.is_constant or use.effective_quant is None:
                continue
            if use.value.quant is not None:
                slower += self.conversion_us(use.value, lone=True)
            else:
                readers = sum(other.effective_quant is not None for other in use.value.uses)
                slower -= self.conversion_us(use.value) / max(readers, 1)
        if any(value.quant is not None for value in node.outputs):
            slower += self.conversion_us(node.output, lone=True)
        return slower

    def convert_input_us(self, node: Node) -> float:
        """What a dynamic kernel takes to quantize its input."""
        source = node.input(0)
        return self.dynamic_node_us + (0.0 if source is None else _elements(source) * self.convert_ns / 1000)

    def dynamic_gain_us(self, rows: int, inner: int, columns: int, *, readers: int = 1, bias: bool = False) -> float:
        """What a product [rows, inner] x [inner, columns] with a constant weight saves a run where it quantizes its
        input at run time; negative where float is faster. ``readers`` share the quantized input; with ``bias`` the
        kernel adds one, for which float needs a node of its own."""
        macs, results = rows * inner * columns, rows * columns
        saved = self._product_us(macs, rows, results, False) - self._product_us(macs, rows, results, True)
        if bias:
            saved += self.node_us + self.element_ns["Add"][0] * results / 1000
        return saved - (self.dynamic_node_us + rows * inner * self.convert_ns / 1000) / readers

    def _product_us(self, macs: int, rows: int, results: int, integer: bool) -> float:
        rate = (self.vector_macs_per_us if rows <= _FEW_ROWS else self.macs_per_us)[integer]
        return macs / rate + (self.integer_node_us + self.store_ns * results / 1000 if integer else self.node_us)

    def _conv_us(self, node: Node, macs: int, integer: bool) -> float:
        weight = node.input(1)
        shape = weight.type.static_shape if weight is not None and isinstance(weight.type, TensorType) else None
        if shape is None:
            return self.node_us
        group = int(node.get("group", 1))
        elements, channels = _elements(node.output), shape[0] // max(group, 1)
        pixels = elements / max(shape[0], 1)
        if group > 1 and channels <= 2 and shape[1] == 1:
            walked = self.integer_node_us + pixels * self.pixel_us if integer else self.node_us
            return macs / self.depthwise_macs_per_us[integer] + walked
        rates = self.macs_per_us if pixels > _FEW_ROWS else self.vector_macs_per_us
        if not integer:  # eight channels at a time, and half as fast alone
            padded = _up(channels, 8)
            return macs * padded / channels / rates[0] / min(1.0, (padded + 2) / 20) + self.node_us
        gathered = math.prod(shape[2:]) > 1
        walk = (self.group_pixel_us if group > 1 else self.pixel_us) if gathered else self.pixel_us / 2
        if channels < 16 or channels % 8:
            walk += self.odd_pixel_us
        padded = _up(channels, 16)
        return (
            self.integer_node_us
            + macs * padded / channels / rates[1]
            + elements * self.store_ns / 1000
            + pixels * group * walk
        )


_FEW_ROWS = 4


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _elements(value: Value) -> int:
    """0 where the shape is not known."""
    size = value_bytes(value)
    return 0 if size is None or value.dtype is None else size * 8 // value.dtype.bits


def _rows(node: Node) -> int:
    """Of the result of a product."""
    shape = node.output.type.static_shape if isinstance(node.output.type, TensorType) else None
    return math.prod(shape[:-1]) if shape else 0
