"""Semantic differences between models: what changed, whatever was renamed, reordered or stored in another form.

The room can be called: ``qir.diff(old, new)`` is ``qir.diff.diff(old, new)``.
"""

import sys
from types import ModuleType
from typing import Any

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


class _Callable(ModuleType):
    """A module named like the one function that most people want from it."""

    def __call__(self, *arguments: Any, **options: Any) -> GraphDiff:
        return diff(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
