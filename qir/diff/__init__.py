"""Semantic differences between models: what changed, whatever was renamed, reordered or stored in another form."""

from qir.diff.changes import (
    Change,
    ChangeKind,
    Detail,
    GraphDiff,
    ModelFacts,
    ModelSide,
    NodeRef,
    OperandQuantization,
    Quantization,
    QuantizationChange,
    Summary,
    WeightChange,
)
from qir.diff.differ import diff
from qir.diff.weights import Histogram, WeightStats

__all__ = [
    "Change",
    "ChangeKind",
    "Detail",
    "GraphDiff",
    "Histogram",
    "ModelFacts",
    "ModelSide",
    "NodeRef",
    "OperandQuantization",
    "Quantization",
    "QuantizationChange",
    "Summary",
    "WeightChange",
    "WeightStats",
    "diff",
]
