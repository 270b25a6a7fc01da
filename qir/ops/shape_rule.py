"""What a shape rule is given, what it answers, and where it is registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from qir.ir import Attribute, Dim, DType, Node, Shape, Tensor, TensorType, Type, Value

__all__ = ["RULES", "Content", "Engine", "NodeView", "Rule", "RuleError", "Unknown", "axis_of", "known", "rule"]

Content = tuple[int | float | str | None, ...]
"""The elements of a small tensor of rank 0 or 1: numbers, symbols, or None for what is not known."""


class Unknown(Exception):
    """Nothing can be said about the outputs."""


class RuleError(Exception):
    """The inputs do not fit the op; the message says why."""


class Engine(Protocol):
    """What the rules use of the inference run."""

    def type_of(self, value: Value) -> Type | None: ...

    def constant_of(self, value: Value) -> Tensor | None: ...

    def content_of(self, value: Value) -> Content | None: ...

    def binding(self, name: str) -> Attribute | None: ...


class NodeView:
    """A node with the types of its inputs, at a version of its domain."""

    __slots__ = ("engine", "node", "types", "version")

    def __init__(self, engine: Engine, node: Node, types: Sequence[Type | None], version: int) -> None:
        self.engine = engine
        self.node = node
        self.types = types
        self.version = version

    def tensor(self, index: int) -> TensorType:
        """The type of an input. Raises Unknown where it is absent, unknown or no tensor."""
        found = self.types[index] if index < len(self.types) else None
        if isinstance(found, TensorType):
            return found
        raise Unknown

    def dtype(self, index: int) -> DType:
        return self.tensor(index).dtype

    def shape(self, index: int) -> Shape | None:
        found = self.types[index] if index < len(self.types) else None
        return found.shape if isinstance(found, TensorType) else None

    def has(self, index: int) -> bool:
        """Whether the operand is there."""
        return self.node.input(index) is not None

    def content(self, index: int) -> Content | None:
        """The elements of a small input of rank 0 or 1, as far as they are known."""
        value = self.node.input(index)
        return None if value is None else self.engine.content_of(value)

    def ints(self, index: int) -> tuple[int, ...] | None:
        """The elements of a small integer input, where all are known numbers."""
        content = self.content(index)
        return None if content is None else known(content)

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's value, a reference to one of the enclosing function resolved. Raises Unknown if it cannot."""
        attribute = self.node._attributes.get(name)
        if attribute is None:
            return default
        if attribute.ref:
            attribute = self.engine.binding(attribute.ref)
            if attribute is None:
                raise Unknown
        return attribute.python

    def axes(self, input_index: int | None, name: str = "axes") -> tuple[int, ...] | None:
        """Axes from an input (None: this version has none) or an attribute; () where neither is given.

        None where the input is there but not known.
        """
        if input_index is not None and self.has(input_index):
            return self.ints(input_index)
        return tuple(self.attr(name, ()))


Rule = Callable[[NodeView], Sequence[Type | None]]

RULES: dict[tuple[str, str], Rule] = {}
"""(domain, op) -> rule; filled by the modules of rules when they are imported, and never changed after."""


def rule(*names: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a rule for ops of a domain."""

    def register(function: Rule) -> Rule:
        for name in names:
            assert (domain, name) not in RULES, name
            RULES[domain, name] = function
        return function

    return register


def known(content: Content) -> tuple[int, ...] | None:
    """The content as integers, None where one is not known."""
    numbers = tuple([int(c) for c in content if isinstance(c, int)])
    return numbers if len(numbers) == len(content) else None


def axis_of(axis: int, rank: int) -> int:
    """A checked axis counted from the front. Raises RuleError."""
    if not -rank <= axis < rank:
        raise RuleError(f"axis {axis} of a tensor of rank {rank}")
    return axis % rank


def product(dims: Sequence[Dim]) -> Dim:
    """The number of elements along several axes."""
    from qir.ops.dims import multiply

    total: Dim = 1
    for dim in dims:
        total = multiply(total, dim)
    return total
