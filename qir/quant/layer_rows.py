"""A linear layer as a matrix product: which inputs meet which weights.

Rows of inputs (groups, rows, columns) times the transposed weight matrix (groups, channels a group, columns) give the
results. The columns of a convolution are in the order (kernel positions, channels), as in onnxruntime's kernels, so
that neighbours are what ``quant.pairs`` calls pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from qir.ir import Node
from qir.quant.pairs import PairLayout, conv_layout

__all__ = ["RECURRENT", "ConvRows", "GateRows", "MatrixRows", "Rows", "layer_rows", "resets_state", "spread_positions"]

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
"""Operators with a weight W of their inputs, operand 1, and R of their hidden states, operand 2: [D, gates * H, K]."""

_GOLDEN = 0.6180339887498949


def spread_positions(count: int, wanted: int) -> np.ndarray:
    """At most ``wanted`` of ``count`` positions, sorted; without a period that could match a width of the data."""
    if count <= wanted:
        return np.arange(count)
    # Multiples of the golden ratio, modulo 1, are spread evenly (Weyl's theorem).
    return np.unique((np.arange(wanted) * _GOLDEN % 1.0 * count).astype(np.int64))


@dataclass(frozen=True, slots=True)
class MatrixRows:
    """MatMul [..., K] x [K, N], or Gemm; ``transposed``: the weight is [N, K]."""

    transposed: bool

    @property
    def layout(self) -> PairLayout | None:
        return PairLayout.ROWS if self.transposed else PairLayout.COLUMNS

    def rows(self, x: np.ndarray, wanted: int) -> np.ndarray:
        """At most ``wanted`` rows of the input ``x``: (1, rows, K)."""
        flat = x.reshape(-1, x.shape[-1])
        return flat[None, spread_positions(len(flat), wanted)]

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        return (weight if self.transposed else weight.T)[None]

    def weight(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of ``matrix``."""
        return np.ascontiguousarray(matrix[0] if self.transposed else matrix[0].T)


@dataclass(frozen=True, slots=True)
class ConvRows:
    """A convolution of any rank; ``shape`` is its weight's, [M, C / group, *kernel]."""

    shape: tuple[int, ...]
    group: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str

    @property
    def layout(self) -> PairLayout | None:
        return conv_layout(self.shape, self.group)

    def rows(self, x: np.ndarray, wanted: int) -> np.ndarray:
        """At most ``wanted`` windows of ``x`` [N, C, ...]: (group, windows, kernel positions * C / group)."""
        kernel = self.shape[2:]
        spans = [(size - 1) * step + 1 for size, step in zip(kernel, self.dilations, strict=True)]
        x = np.pad(x, [(0, 0), (0, 0), *self._padding(x.shape[2:], spans)])
        places = [
            max((size - span) // stride + 1, 0)
            for size, span, stride in zip(x.shape[2:], spans, self.strides, strict=True)
        ]
        grid = (x.shape[0], *places)
        sample, *corner = np.unravel_index(spread_positions(int(np.prod(grid)), wanted), grid)
        offsets = np.array(list(product(*map(range, kernel)))).T  # (rank, positions)
        flat = np.zeros((len(sample), offsets.shape[1]), np.int64)
        for axis, size in enumerate(x.shape[2:]):
            along = corner[axis][:, None] * self.strides[axis] + offsets[axis] * self.dilations[axis]
            flat = flat * size + along
        windows = x.reshape(*x.shape[:2], -1)[sample[:, None], :, flat]  # (windows, positions, C)
        grouped = windows.reshape(*windows.shape[:2], self.group, -1)
        return np.moveaxis(grouped, 2, 0).reshape(self.group, len(sample), -1)

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        rows = np.moveaxis(weight, 1, -1)
        return rows.reshape(self.group, self.shape[0] // self.group, -1)

    def weight(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of ``matrix``."""
        rows = matrix.reshape(self.shape[0], *self.shape[2:], self.shape[1])
        return np.ascontiguousarray(np.moveaxis(rows, -1, 1))

    def _padding(self, sizes: Sequence[int], spans: Sequence[int]) -> list[tuple[int, int]]:
        rank = len(sizes)
        if self.auto_pad == "VALID":
            return [(0, 0)] * rank
        if self.auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
            return [(self.pads[axis], self.pads[axis + rank]) for axis in range(rank)]
        padding = []
        for size, span, stride in zip(sizes, spans, self.strides, strict=True):
            total = max((-(-size // stride) - 1) * stride + span - size, 0)
            less, more = total // 2, total - total // 2
            padding.append((less, more) if self.auto_pad == "SAME_UPPER" else (more, less))
        return padding


@dataclass(frozen=True, slots=True)
class GateRows:
    """W or R of a recurrent layer; ``shape`` is the weight's, [directions, gates * H, K]. A group is what meets the
    same rows: a direction, or one of its gates."""

    shape: tuple[int, ...]
    groups: int

    @property
    def layout(self) -> PairLayout | None:
        return PairLayout.ROWS

    def rows(self, x: np.ndarray, wanted: int) -> np.ndarray:
        """At most ``wanted`` rows of ``x`` (groups, any number, K)."""
        return x[:, spread_positions(x.shape[1], wanted)]

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        return weight.reshape(self.groups, -1, self.shape[-1])

    def weight(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of ``matrix``."""
        return np.ascontiguousarray(matrix.reshape(self.shape))


Rows = MatrixRows | ConvRows | GateRows


def resets_state(node: Node) -> bool:
    """Whether a GRU's last gate multiplies its weight R with the state times the reset gate, not with the state."""
    return node.op == "GRU" and not node.get("linear_before_reset", 0)


def layer_rows(node: Node, weight_shape: tuple[int, ...], weight_index: int = 1) -> Rows:
    """How a Conv, Gemm (transA = 0), MatMul with a matrix as its weight, or a recurrent layer lays out its product."""
    if node.op in RECURRENT:
        gates = 3 if weight_index == 2 and resets_state(node) else 1
        return GateRows(tuple(weight_shape), gates * weight_shape[0])
    if node.op != "Conv":
        return MatrixRows(bool(node.get("transB", 0)))
    rank = len(weight_shape) - 2
    return ConvRows(
        tuple(weight_shape),
        node.get("group", 1),
        tuple(node.get("strides") or [1] * rank),
        tuple(node.get("dilations") or [1] * rank),
        tuple(node.get("pads") or [0] * (2 * rank)),
        node.get("auto_pad") or "NOTSET",
    )
