"""Quantization as a type: what a value is stored as, and what a use of it reads.

Three annotations live on the float graph (see ``Value.quant``, ``Use.quant``, ``Node.kernel``); the emit passes turn
them into nodes. A quantized integer q stands for ``(q - zero_point) * scale`` (ONNX operator DequantizeLinear).
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np

from qir.errors import OptionError
from qir.ir.dtypes import DType

__all__ = [
    "CodebookQuant",
    "DerivedQuant",
    "DynamicQuant",
    "QuantType",
    "StaticQuant",
    "UseQuant",
    "UseQuantMarker",
]


class UseQuantMarker(enum.Enum):
    """What a use reads when it names no type of its own."""

    __hash__ = object.__hash__  # Enum's own calls into Python, and every use of every node is asked
    INHERIT = "inherit"
    """The value as its producer stores it."""
    FLOAT = "float"
    """The unquantized value, past the quantizer."""


@dataclass(frozen=True, slots=True)
class StaticQuant:
    """Affine quantization with parameters known now.

    ``scale`` and ``zero_point`` have one entry per tensor (axis None), one per index of ``axis``, or, with
    ``block_size`` B, one per block of B consecutive elements along ``axis``, flattened in C order of the scale tensor
    (the data's shape with ``axis`` divided by B, rounded up; ONNX DequantizeLinear-21). Scales are float32 values,
    positive and finite, kept as Python floats so that the type is hashable. ``zero_point`` is one number for all where
    all are equal.
    """

    dtype: DType
    scale: tuple[float, ...]
    zero_point: tuple[int, ...] = (0,)
    axis: int | None = None
    block_size: int | None = None

    def __post_init__(self) -> None:
        if not all(s > 0 and math.isfinite(s) for s in self.scale):
            raise OptionError(f"quantization scales must be positive and finite, got {min(self.scale)!r}")
        if self.axis is None and (len(self.scale) != 1 or self.block_size is not None):
            raise OptionError("a quantization type without an axis has exactly one scale and no block size")
        if len(self.zero_point) not in (1, len(self.scale)):
            raise OptionError(f"{len(self.zero_point)} zero points do not go with {len(self.scale)} scales")

    @classmethod
    def per_tensor(cls, dtype: DType, scale: float, zero_point: int = 0) -> StaticQuant:
        return cls(dtype, (float(np.float32(scale)),), (int(zero_point),))

    @classmethod
    def per_axis(cls, dtype: DType, scale: np.ndarray, axis: int, zero_point: np.ndarray | int = 0) -> StaticQuant:
        """``scale``: shape (C,), one a channel; ``zero_point``: the same, or one for all."""
        zeros = np.atleast_1d(zero_point)
        return cls(dtype, tuple(np.asarray(scale, np.float32).tolist()), tuple(int(z) for z in zeros), axis)

    @property
    def is_symmetric(self) -> bool:
        return all(z == 0 for z in self.zero_point)

    def scale_array(self) -> np.ndarray:
        """float32, shape () per tensor, else (number of scales,)."""
        array = np.array(self.scale, np.float32)
        return array[0] if self.axis is None else array

    def zero_point_array(self) -> np.ndarray:
        """int64, of the same shape as ``scale_array``."""
        array = np.array(self.zero_point, np.int64)
        return array[0] if self.axis is None else np.broadcast_to(array, (len(self.scale),))


@dataclass(frozen=True, slots=True)
class DynamicQuant:
    """Affine per-tensor quantization whose parameters the runtime computes from the data."""

    dtype: DType
    symmetric: bool = False


@dataclass(frozen=True, slots=True)
class DerivedQuant:
    """A bias: scale is float32(scale of the input) * float32(scale of the weight), zero point 0.

    The operands are named by their input index in the node that uses the bias; numbers exist only at emission.
    """

    input_index: int = 0
    weight_index: int = 1
    dtype: DType = DType.INT32


@dataclass(frozen=True, slots=True)
class CodebookQuant:
    """Codes of ``bits`` bits that index a table of levels (float32).

    ``table`` has one row of levels a tensor, or with ``axis`` T of them, one for each T-th part of consecutive indices
    of it. ``scale``: what the levels are multiplied by, one number or one an index of ``axis``. With ``dim`` D a code
    stands for D numbers that follow each other in the data with ``axis`` moved to the front: a row holds 2^bits times
    D levels, those of one code side by side.
    """

    bits: int
    table: tuple[tuple[float, ...], ...]
    axis: int | None = None
    scale: tuple[float, ...] = (1.0,)
    dim: int = 1

    def __post_init__(self) -> None:
        if self.axis is None and (len(self.table) != 1 or len(self.scale) != 1):
            raise OptionError("a codebook without an axis has exactly one table and one scale")
        if not self.table or any(len(row) > self.dim << self.bits or len(row) % self.dim for row in self.table):
            raise OptionError(f"a codebook of {self.bits} bits has at most {1 << self.bits} levels a table")


QuantType = StaticQuant | DynamicQuant | DerivedQuant | CodebookQuant
UseQuant = StaticQuant | DynamicQuant | DerivedQuant | CodebookQuant | UseQuantMarker
