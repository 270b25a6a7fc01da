"""An intrusive doubly linked list: O(1) insertion and removal, no cell objects, order kept.

Nodes of a graph, uses of a value and initializers of a graph are such lists. ``unlink`` leaves the removed item's own
pointers as they were, so that undoing edits in reverse order puts it back where it stood ("dancing links").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

__all__ = ["Linked", "LinkedList"]


class Linked:
    """A thing that can stand in one LinkedList at a time."""

    __slots__ = ("_linked", "_next", "_prev")

    _prev: Any  # of the list's type, which a cast would check at the price of a call an item
    _next: Any
    _linked: bool

    def __init__(self) -> None:
        self._prev = self._next = None
        self._linked = False


T = TypeVar("T", bound=Linked)


class LinkedList(Generic[T]):
    """Items in order.

    Iteration sees what is inserted after the current item and passes over what is removed, the current item included;
    take a snapshot where items move to another list or place meanwhile.
    """

    __slots__ = ("_count", "_first", "_last")

    def __init__(self) -> None:
        self._first: T | None = None
        self._last: T | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        return self._count > 0

    def __iter__(self) -> Iterator[T]:
        item = self._first
        while item is not None:
            yield item
            item = item._next
            while item is not None and not item._linked:
                item = item._next

    def __reversed__(self) -> Iterator[T]:
        item = self._last
        while item is not None:
            yield item
            item = item._prev
            while item is not None and not item._linked:
                item = item._prev

    @property
    def first(self) -> T | None:
        return self._first

    @property
    def last(self) -> T | None:
        return self._last

    def link(self, item: T, before: T | None = None) -> None:
        """Insert before ``before``; at the end where that is None."""
        after = before._prev if before is not None else self._last
        item._prev, item._next = after, before
        if after is None:
            self._first = item
        else:
            after._next = item
        if before is None:
            self._last = item
        else:
            before._prev = item
        item._linked = True
        self._count += 1

    def unlink(self, item: T) -> None:
        before, after = item._prev, item._next
        if before is None:
            self._first = after
        else:
            before._next = after
        if after is None:
            self._last = before
        else:
            after._prev = before
        item._linked = False
        self._count -= 1

    def relink(self, item: T) -> None:
        """Undo the latest ``unlink`` of ``item``: its neighbours are again what they were then."""
        before, after = item._prev, item._next
        if before is None:
            self._first = item
        else:
            before._next = item
        if after is None:
            self._last = item
        else:
            after._prev = item
        item._linked = True
        self._count += 1
