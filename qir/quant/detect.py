"""Is a model quantized already?"""

from __future__ import annotations

from qir.ir import Model, Node

__all__ = ["first_quantized_node", "is_quantized"]

_OPS = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"),
        *("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QGemm", "QAttention", "QMoE"),
        *("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "QEmbedLayerNormalization"),
    }
)


def first_quantized_node(model: Model) -> Node | None:
    """The first node, bodies and functions included, that computes with or converts to quantized numbers."""
    return next(filter(is_quantized, model.walk()), None)


def is_quantized(node: Node) -> bool:
    """Whether a node computes with or converts to quantized numbers, by its operator."""
    return node.op in _OPS or node.op.startswith("QLinear")
