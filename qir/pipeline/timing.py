"""The timing tree: where the wall time of a pipeline went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Timer", "Timing", "format_timing"]


@dataclass(slots=True)
class Timing:
    """Wall seconds of a piece of work, those of its parts included; several runs of a part are added up."""

    name: str
    seconds: float = 0.0
    parts: list[Timing] = field(default_factory=list)

    def part(self, name: str) -> Timing:
        """The part of this name, made where it is missing."""
        for part in self.parts:
            if part.name == name:
                return part
        self.parts.append(Timing(name))
        return self.parts[-1]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "seconds": self.seconds, "parts": [part.to_json() for part in self.parts]}


class Timer:
    """Builds a tree of timings from nested scopes."""

    __slots__ = ("_open", "root")

    def __init__(self, name: str = "total") -> None:
        self.root = Timing(name)
        self._open = [self.root]

    @contextmanager
    def scope(self, name: str) -> Iterator[Timing]:
        """Time what runs inside as a part of the innermost open scope."""
        timing = self._open[-1].part(name)
        with self._measure(timing):
            yield timing

    @contextmanager
    def new_scope(self, name: str) -> Iterator[Timing]:
        """Like ``scope``, but never added to an earlier one of the same name: a pass may run twice."""
        timing = Timing(name)
        self._open[-1].parts.append(timing)
        with self._measure(timing):
            yield timing

    @contextmanager
    def _measure(self, timing: Timing) -> Iterator[None]:
        self._open.append(timing)
        start = time.perf_counter()
        try:
            yield
        finally:
            timing.seconds += time.perf_counter() - start
            self._open.pop()


def format_timing(timing: Timing) -> str:
    """The tree as text: seconds, share of the whole, name indented by depth; without what took under a thousandth."""
    whole = timing.seconds or 1.0

    def lines(part: Timing, depth: int) -> Iterator[str]:
        yield f"{part.seconds:9.3f} s {100 * part.seconds / whole:5.1f}%  {'  ' * depth}{part.name}"
        for inner in (p for p in part.parts if p.seconds >= whole / 1000):
            yield from lines(inner, depth + 1)

    return "\n".join(lines(timing, 0))
