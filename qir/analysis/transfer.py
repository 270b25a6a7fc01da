"""What a transfer function sees of a node, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from qir.analysis.bounds import Bounds, unit_roundoff
from qir.ir import DType, Node, Shape, Value

__all__ = ["At", "Transfer", "Transfers"]


@dataclass(frozen=True)
class At:
    """A node with what is known of its operands. Missing operands have unknown bounds and no constant."""

    node: Node
    known: Mapping[Value, Bounds]
    constants: Mapping[Value, np.ndarray]
    opset: int
    coarsest: float
    """Unit roundoff assumed where a type is not known."""

    @property
    def x(self) -> Bounds:
        return self.bounds(0)

    @property
    def count(self) -> int:
        return len(self.node.uses)

    @cached_property
    def operands(self) -> list[Bounds]:
        return [self.bounds(index) for index in range(self.count) if self.node.input(index) is not None]

    def bounds(self, index: int) -> Bounds:
        value = self.node.input(index)
        found = None if value is None else self.known.get(value)
        return Bounds.unknown() if found is None else found

    def constant(self, index: int) -> np.ndarray | None:
        """The content of an operand where it is known now, of any dtype."""
        value = self.node.input(index)
        if value is None:
            return None
        return value.tensor.numpy() if value.tensor is not None else self.constants.get(value)

    def shape(self, index: int) -> Shape | None:
        value = self.node.input(index)
        if value is None:
            return None
        content = self.constant(index)
        return value.shape if content is None else content.shape

    def rank(self, index: int) -> int | None:
        shape = self.shape(index)
        return None if shape is None else len(shape)

    @property
    def out_shape(self) -> Shape | None:
        return self.node.output.shape

    @property
    def out_rank(self) -> int | None:
        shape = self.out_shape
        return None if shape is None else len(shape)

    @property
    def dtype(self) -> DType | None:
        """The element type of the first result, or of the first operand."""
        value = self.node.input(0)
        return self.node.output.dtype or (None if value is None else value.dtype)

    @property
    def unit(self) -> float:
        return self.coarsest if self.dtype is None else unit_roundoff(self.dtype)

    @property
    def maybe_integer(self) -> bool:
        return self.dtype is None or self.dtype.is_integer

    def get(self, name: str, default: Any = None) -> Any:
        return self.node.get(name, default)

    def integers(self, name: str, index: int | None) -> list[int] | None:
        """A list of integers that older opsets keep in an attribute and newer ones in a constant operand."""
        if name in self.node.attributes:
            return [int(i) for i in np.atleast_1d(self.node.get(name))]
        content = None if index is None else self.constant(index)
        return None if content is None else [int(i) for i in content.reshape(-1)]

    def rounded(self, lo: np.ndarray | float, hi: np.ndarray | float, *operands: Bounds) -> Bounds:
        """Bounds of one correctly rounded operation on the operands (default: all)."""
        return Bounds.of(lo, hi, any(b.special for b in operands or self.operands)).outward(self.unit)

    def approximate(self, lo: np.ndarray | float, hi: np.ndarray | float, special: bool | None = None) -> Bounds:
        """Bounds of a function that the runtime approximates to a few units in the last place."""
        if special is None:
            special = any(b.special for b in self.operands)
        return Bounds.of(lo, hi, special).outward(self.unit or 2.0**-24, relative=max(2.0**-16, 16 * self.unit))


Transfer = Callable[[At], Bounds | Sequence[Bounds] | None]
"""Bounds of the results: of the first, of each in order, or None where nothing is known."""

Transfers = Mapping[str, Transfer]
