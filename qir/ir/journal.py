"""The journal: every change of a mutable field while a transaction runs, so that it can be listed and undone.

Setters record themselves here when the model has a transaction open (``EditState.journal``); an undo runs the records
backwards. Outside of a transaction nothing is recorded and nothing is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar, overload

if TYPE_CHECKING:
    from qir.ir.graph import Graph
    from qir.ir.model import Model
    from qir.ir.node import Node
    from qir.ir.value import Value

__all__ = ["Edit", "EditState", "Journal", "Journaled", "Stale", "journaled"]

SEMANTIC_EDITS = frozenset({"inputs", "attributes", "const", "op"})
"""Kinds of edits after which a node's outputs, or a constant, may hold other numbers."""


class Edit(NamedTuple):
    """One change of ``field`` of ``subject`` (a Value, Use, Node, Graph, Function or Model)."""

    subject: Any
    field: str
    undo: Callable[..., None]
    arguments: tuple[Any, ...]


_new_tuple = tuple.__new__


class Stale(NamedTuple):
    """In the place of calibration data that an edit made worthless; ``edit`` says which."""

    edit: str


class EditState:
    """What all graphs of one model share: the open journal, and the names that are taken."""

    __slots__ = ("calibrated", "journal", "model", "names", "next_suffix")

    def __init__(self) -> None:
        self.journal: Journal | None = None
        self.model: Model | None = None
        """None while graphs are detached."""
        self.calibrated = False
        self.names: set[str] | None = None
        self.next_suffix: dict[str, int] = {}

    def fresh_name(self, hint: str, taken: Callable[[], set[str]]) -> str:
        """``hint`` if it is free, else ``hint_1``, ...; ``taken`` is called once, to collect the names in use."""
        if self.names is None:
            self.names = taken()
        name = hint
        suffix = self.next_suffix.get(hint, 0)
        while not name or name in self.names:
            suffix += 1
            name = f"{hint}_{suffix}"
        if suffix:
            self.next_suffix[hint] = suffix
        self.names.add(name)
        return name

    def take(self, name: str) -> None:
        if self.names is not None:
            self.names.add(name)


class Journal:
    """The edits of one transaction, in order."""

    __slots__ = ("edits", "label")

    def __init__(self, label: str) -> None:
        self.label = label
        self.edits: list[Edit] = []

    def record(self, subject: Any, field: str, undo: Callable[..., None], *arguments: Any) -> None:
        self.edits.append(_new_tuple(Edit, (subject, field, undo, arguments)))  # Edit(...) at half the price

    def mark(self) -> int:
        """A place to which ``undo_to`` can go back."""
        return len(self.edits)

    def undo_to(self, mark: int = 0) -> None:
        """Undo everything recorded since ``mark``, the latest first."""
        while len(self.edits) > mark:
            edit = self.edits.pop()
            edit.undo(*edit.arguments)

    def counts(self, since: int = 0) -> Counter[str]:
        """How many edits of each field: the per-pass change summary."""
        return Counter(edit.field for edit in self.edits[since:])

    def touched_nodes(self, since: int = 0, *, retyped: bool = False) -> list[Node]:
        """Nodes still in a graph that were added, or whose inputs, attributes, op or bodies' outputs changed.

        ``retyped``: without those whose results must have the types that they had, since all that happened to them is
        that an operand of the same type came in, of two axes or more, so that no shape is read off its content.
        """
        from qir.ir.graph import Graph
        from qir.ir.node import Node
        from qir.ir.value import Use, _restore_use

        seen: dict[Node, None] = {}
        for node, field, undo, arguments in self.edits[since:] if since else self.edits:
            if field not in _NODE_EDITS:
                continue
            if isinstance(node, Use):
                if retyped and undo is _restore_use and _are_typed_alike(arguments[1], node._value):
                    continue
                node = node._owner
            if isinstance(node, Graph):
                node = node.owner  # another output of a body is another result of the node around it
            if isinstance(node, Node) and node._graph is not None:
                seen[node] = None
        return list(seen)

    def touched_constants(self, since: int = 0) -> list[Value]:
        """Values whose constant was changed; each once, in order."""
        return list({edit.subject: None for edit in self.edits[since:] if edit.field == "const"})

    def drop_observed(self) -> int:
        """Make the calibration data of everything downstream of the edits stale; how many values that were."""
        work: list[Value] = [value for node in self.touched_nodes() for value in node.outputs]
        for constant in self.touched_constants():
            work += _results_of_users(constant)
        dropped = 0
        seen: set[int] = set()
        while work:
            value = work.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if value._observed is not None and not isinstance(value._observed, Stale):
                value._observed = Stale(self.label)
                dropped += 1
            work += _results_of_users(value)
        return dropped


_NODE_EDITS = SEMANTIC_EDITS | {"node", "interface"}


def _are_typed_alike(old: Value, new: Value) -> bool:
    type_ = new._type
    if type_ is None or (type_ is not old._type and type_ != old._type):
        return False
    shape = getattr(type_, "shape", None)
    return shape is not None and len(shape) > 1


def _results_of_users(value: Value) -> list[Value]:
    """Outputs of the nodes that read ``value``, and of the nodes around them where the use is inside of a body."""
    results: list[Value] = []
    for use in value.uses:
        node = use.node
        graph: Graph | None = use.graph
        if node is not None:
            results += node.outputs
            graph = node.graph
        while graph is not None and graph.owner is not None:
            results += graph.owner.outputs
            graph = graph.owner.graph
    return results


T = TypeVar("T")


class Journaled(Generic[T]):
    """The type of a field made by ``journaled``, as a type checker sees it: reads and writes a T."""

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> Self | T:
        raise NotImplementedError

    def __set__(self, instance: object, value: T) -> None:
        raise NotImplementedError


def journaled(slot: str) -> Any:
    """A property over the private ``slot`` whose setter records the old content; the getter is as fast as C allows."""
    field = slot.removeprefix("_")

    get = attrgetter(slot)

    def set_(self: Any, new: Any) -> None:
        old = get(self)
        if new is old:
            return
        journal = self._state.journal
        if journal is not None:
            journal.record(self, field, setattr, self, slot, old)
        setattr(self, slot, new)

    return property(get, set_)
