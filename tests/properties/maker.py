"""Building one random ONNX graph: names, scopes, constants, and the choices that hypothesis makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

__all__ = ["BOOL", "FLOAT", "INT", "Maker", "Sample", "Scope", "Shape", "Val", "info_of"]

FLOAT, BOOL, INT = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
OPSETS = (11, 13, 17, 18, 21)
Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Val:
    """A float value; the first axis may be the batch ``N``."""

    name: str
    shape: Shape

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def dynamic(self) -> bool:
        return "N" in self.shape


@dataclass(frozen=True)
class Sample:
    """A model and the inputs that it takes."""

    model: onnx.ModelProto
    inputs: dict[str, tuple[Shape, int]]

    def __repr__(self) -> str:
        return f"Sample({onnx.printer.to_text(self.model)})"


@dataclass
class Scope:
    """One graph under construction."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    values: list[Val] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)


class Maker:
    """Draws one model."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self.opset = self.choose(OPSETS)
        self.rng = np.random.default_rng(self.integer(0, 9))
        self.count = 0
        self.scopes = [Scope()]
        self.constants: dict[tuple[Shape, int], list[str]] = {}
        self.called: set[str] = set()
        self.products = 0

    # Choices

    def choose(self, options: Sequence[Any]) -> Any:
        return options[self._draw(st.integers(0, len(options) - 1))]

    def integer(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def flag(self) -> bool:
        return self._draw(st.booleans())

    def order(self, count: int) -> list[int]:
        """A permutation."""
        return list(self._draw(st.permutations(range(count))))

    # Building

    @property
    def scope(self) -> Scope:
        return self.scopes[-1]

    def fresh(self, kind: str = "v") -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, domain: str = "", **attributes: Any) -> list[str]:
        names = [self.fresh() for _ in range(outputs)]
        node = helper.make_node(op, inputs, names, f"n_{names[0]}", domain=domain, **attributes)
        self.scope.nodes.append(node)
        return names

    def one(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        return self.add(op, inputs, **attributes)[0]

    def weight(self, shape: Sequence[int], scale: float = 1.0, positive: bool = False) -> str:
        """A float constant: an old one of the shape, a new initializer, or a Constant node."""
        key = (tuple(shape), int(positive))
        known = self.constants.setdefault(key, [])
        if known and self.integer(0, 2) == 0:
            return str(self.choose(known))
        array = self.rng.standard_normal(tuple(shape)).astype(np.float32) * np.float32(scale)
        if self.integer(0, 3) == 0:
            array = np.full(tuple(shape), self.choose((0.0, 1.0, 2.0, 0.5)), np.float32)
        name = self.tensor(np.abs(array) + np.float32(0.25) if positive else array)
        if len(self.scopes) == 1 and not any(name in node.output for node in self.scope.nodes):
            known.append(name)
        return name

    def tensor(self, content: np.ndarray | np.generic) -> str:
        """A constant of any kind: a Constant node, or an initializer here or in the main graph."""
        array = np.asarray(content)
        kind = self.integer(0, 5)
        if kind == 0:
            return self.one("Constant", [], value=numpy_helper.from_array(array))
        scope = self.scopes[0] if kind > 1 else self.scope
        name = self.fresh("c")
        scope.weights.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, numbers: Sequence[int]) -> str:
        return self.tensor(np.array(numbers, np.int64))

    def visible(self) -> list[Val]:
        return [value for scope in self.scopes for value in scope.values]

    def pick(self, fits: Callable[[Val], bool] = lambda value: True) -> Val | None:
        found = [value for value in self.visible() if fits(value)]
        if not found:
            return None
        recent = found[-4:] if self.integer(0, 2) else found
        value: Val = self.choose(recent)
        return value

    def keep(self, name: str, shape: Sequence[int | str]) -> Val:
        value = Val(name, tuple(shape))
        self.scope.values.append(value)
        return value

    def axes_op(self, op: str, x: str, axes: Sequence[int], since: int, **attributes: Any) -> str:
        """An op whose axes became an input with opset ``since``."""
        if self.opset >= since:
            return self.one(op, [x, self.ints(axes)], **attributes)
        return self.one(op, [x], axes=list(axes), **attributes)


def info_of(value: Val, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, kind, value.shape)
