"""Operands that say no more than their absence would."""

from __future__ import annotations

import numpy as np

from qir.diff.view import Constant
from qir.ir import OpId, Tensor

__all__ = ["is_default_operand"]


def is_default_operand(op: OpId, index: int, constant: Constant | None) -> bool:
    """Whether leaving this constant operand out means the same: Pad's value 0, Slice's steps 1, LSTM's state 0."""
    if not isinstance(constant, Tensor) or op[0] != "" or constant.size > 64:
        return False
    array = constant.numpy()
    match op[1], index:
        case ("Pad", 2) | ("Dropout", 2) | ("LSTM" | "GRU" | "RNN", 5) | ("LSTM", 6):
            return not np.any(array)
        case ("Slice", 4):
            return bool(np.all(array == 1))
        case ("Clip", 1):
            return bool(np.all(array <= np.finfo(np.float32).min))
        case ("Clip", 2):
            return bool(np.all(array >= np.finfo(np.float32).max))
    return False
