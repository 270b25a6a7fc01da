"""The state of one attempt to match a pattern: bindings that are undone on the way back, and the best failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qir.ir import Graph, Node, Value

__all__ = ["NOTHING_HELD", "Held", "Search"]

Held = tuple[int | None, str, "list[Held] | None"]
"""A binding that was made: the pattern's id and the name, where they were not bound before; of a node that was entered,
also what its operands hold. A plain tuple: many are made at every attempt."""
NOTHING_HELD: Held = (None, "", None)


class Search:
    """Bindings by name and by pattern object; with ``traced``, also how far the best attempt got."""

    __slots__ = ("_by_pattern", "furthest", "graph", "nodes", "obstacle", "patterns", "rests", "traced", "values")

    def __init__(self, graph: Graph, traced: bool = False) -> None:
        self.graph = graph
        self.values: dict[str, Value] = {}
        self.rests: dict[str, tuple[Value, ...]] = {}
        self.nodes: list[Node] = []
        """The nodes matched so far, the root first."""
        self.patterns: list[tuple[object, str]] = []
        """The pattern of each of ``nodes``, with its name."""
        self._by_pattern: dict[int, Value] = {}
        self.traced = traced
        self.furthest: tuple[Node, ...] = ()
        self.obstacle = ""

    def fail(self, reason: Callable[[], str]) -> None:
        """Note why the attempt goes no further; the reason is only worded for the best attempt of a traced search."""
        if self.traced and (len(self.nodes) > len(self.furthest) or not self.obstacle):
            self.furthest = tuple(self.nodes)
            self.obstacle = reason()

    def seen(self, pattern: object) -> Value | None:
        """What the pattern object matched before in this attempt."""
        return self._by_pattern.get(id(pattern))

    def hold(self, pattern: object, name: str, value: Value) -> Held | None:
        """Bind until ``let_go``; None where that contradicts an earlier binding."""
        key, by_pattern, values = id(pattern), self._by_pattern, self.values
        by_key = by_pattern.get(key)
        by_name = values.get(name) if name else None
        known = by_name if by_key is None else by_key
        if known is not None and known is not value:
            other = known
            self.fail(lambda: f"{value.name!r} is not {other.name!r}, which {name or 'the same operand'} is elsewhere")
            return None
        by_pattern[key] = value
        if name:
            values[name] = value
        return (key if by_key is None else None, name if by_name is None else "", None)

    def let_go(self, held: Held) -> None:
        key, name, operands = held
        if operands is not None:
            for operand in reversed(operands):
                self.let_go(operand)
            self.nodes.pop()
            self.patterns.pop()
        if key is not None:
            del self._by_pattern[key]
        if name:
            del self.values[name]

    def bind_rest(self, name: str, values: tuple[Value, ...]) -> Iterator[None]:
        known = self.rests.get(name) if name else None
        if known is not None and known != values:
            self.fail(lambda: f"*{name} stands for other operands elsewhere")
            return
        if name:
            self.rests[name] = values
        yield
        if name and known is None:
            del self.rests[name]

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within the block, pattern objects that have matched may match other values."""
        outside, self._by_pattern = self._by_pattern, {}
        yield
        self._by_pattern = outside

    def enter(self, pattern: object, name: str, output: int, node: Node) -> int | None:
        """Put the node among those matched, and let ``pattern`` mean its result; for ``Held.key``."""
        self.nodes.append(node)
        self.patterns.append((pattern, name))
        key, outputs = id(pattern), node.outputs
        if output >= len(outputs) or key in self._by_pattern:
            return None
        self._by_pattern[key] = outputs[output]
        return key
