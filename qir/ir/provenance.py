"""Where a node came from: a shared tree of source node names, flattened only when somebody asks.

Merging two nodes makes one tuple; no sets are united, so a pass that fuses 100,000 nodes into one stays linear.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Provenance", "flatten", "format_sources", "merge", "parse_sources"]

Provenance = str | tuple["Provenance", ...]
"""The name of one source node, or what several provenances were merged into; ``()`` is "made by the compiler"."""

_MOST_NAMES = 16
_SEPARATOR = "\n"


def merge(parts: Iterable[Provenance]) -> Provenance:
    """The provenance of a node that stands for several others; O(number of parts)."""
    distinct = {id(part): part for part in parts if part != ()}
    return next(iter(distinct.values())) if len(distinct) == 1 else tuple(distinct.values())


def flatten(provenance: Provenance, limit: int | None = None) -> list[str]:
    """The distinct source names in order of first appearance, at most ``limit``; shared parts are visited once."""
    names: dict[str, None] = {}
    visited: set[int] = set()
    work: list[Provenance] = [provenance]
    while work and (limit is None or len(names) < limit):
        part = work.pop()
        if isinstance(part, str):
            names[part] = None
        elif id(part) not in visited:
            visited.add(id(part))
            work.extend(reversed(part))
    return list(names)


def format_sources(provenance: Provenance) -> str:
    """The text of the node metadata ``qir.source``: a name a line, at most 16, then ``+n`` for how many more."""
    names = flatten(provenance)
    shown = names[:_MOST_NAMES]
    if len(names) > _MOST_NAMES:
        shown.append(f"+{len(names) - _MOST_NAMES}")
    return _SEPARATOR.join(shown)


def parse_sources(text: str) -> Provenance:
    """The inverse of ``format_sources``; what ``+n`` stood for is lost."""
    names = text.split(_SEPARATOR)
    if len(names) > _MOST_NAMES and names[-1].startswith("+"):
        names.pop()
    return names[0] if len(names) == 1 else tuple(names)
