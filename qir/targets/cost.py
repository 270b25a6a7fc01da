"""What a node costs on a target, in microseconds, from a table: never from a clock, so that output is deterministic.

The model is coarse on purpose: multiply-accumulates at one rate for floats and one for integers, bytes at one rate,
a fixed price a node. It ranks choices; how fast a model is, a benchmark says.
"""

from __future__ import annotations

from dataclasses import dataclass

from qir.analysis.cost import node_cost, value_bytes
from qir.ir import Node, Value

__all__ = ["CostTable"]


@dataclass(frozen=True, slots=True)
class CostTable:
    """Rates of one thread. ``*_macs_per_us``: multiply-accumulates; ``bytes_per_us``: read and written activations;
    ``node_us``: fixed price of a node; ``convert_ns``: of quantizing or dequantizing one element."""

    float_macs_per_us: float = 22_000.0
    integer_macs_per_us: float = 42_000.0
    bytes_per_us: float = 8_000.0
    node_us: float = 1.5
    convert_ns: float = 0.12

    def node_us_as(self, node: Node, integer: bool) -> float:
        """One run of a node in floats or integers, conversions at its borders not included. Unknown shapes count 0."""
        cost = node_cost(node)
        moved = (cost.read_bytes or 0) + (cost.written_bytes or 0)
        rate = self.integer_macs_per_us if integer else self.float_macs_per_us
        return self.node_us + (cost.macs or 0) / rate + moved / self.bytes_per_us / (4 if integer else 1)

    def conversion_us(self, value: Value) -> float:
        """Quantizing or dequantizing a float value once."""
        return self.node_us + (value_bytes(value) or 0) / 4 * self.convert_ns / 1000

    def fallback_us(self, node: Node) -> float:
        """What computing an annotated integer node in float adds to a run; negative where float is faster.

        Slower arithmetic, and a conversion on either side inside of a region; an operand with a quantizer of its own
        saves that, or its share of it where others read the same.
        """
        slower = self.node_us_as(node, False) - self.node_us_as(node, True)
        for use in node.uses:
            if use is None or use.value.is_constant or use.effective_quant is None:
                continue
            if use.value.quant is not None:
                slower += self.conversion_us(use.value)
            else:
                readers = sum(other.effective_quant is not None for other in use.value.uses)
                slower -= self.conversion_us(use.value) / max(readers, 1)
        if any(value.quant is not None for value in node.outputs):
            slower += self.conversion_us(node.output)
        return slower
