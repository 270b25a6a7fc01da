"""Entries that say the same thing many times over, said once: clean-ups, and a rewrite that was made in many places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from qir.diff.changes import Change, ChangeKind, Detail, NodeRef

__all__ = ["group"]

_MOST_NAMES = 3


def group(changes: Iterable[Change], passing: set[int], pieces: Mapping[int, object]) -> list[Change]:
    """The entries, each group of equal ones as one at the place of its first; ``Change.count`` says how many it was.

    ``passing``: ``id`` of entries of single nodes that only pass a value on (an Identity). Those are one entry, and so
    are regions that the same operators replaced with the same, and nodes of one of the ``pieces`` (by ``id``): a layer
    that was taken out.
    """
    groups: dict[object, list[Change]] = {}
    for change in changes:
        groups.setdefault(_key(change, passing, pieces), []).append(change)
    return [found[0] if len(found) == 1 else _joined(found, id(found[0]) in pieces) for found in groups.values()]


def _key(change: Change, passing: set[int], pieces: Mapping[int, object]) -> object:
    if id(change) in pieces:
        return (change.kind, "piece", pieces[id(change)])
    if id(change) in passing:
        return (change.kind, "passing")
    if change.kind is ChangeKind.REGION_REPLACED and change.quantization is None and change.weight is None:
        return (change.kind, change.before, change.after)
    return id(change)


def _joined(changes: list[Change], piece: bool) -> Change:
    first = changes[0]
    old = tuple(ref for change in changes for ref in change.old)
    new = tuple(ref for change in changes for ref in change.new)
    if first.kind is ChangeKind.REGION_REPLACED:
        heads = [(change.new or change.old)[0] for change in changes]
        times = "twice" if len(changes) == 2 else f"{len(changes)} times"
        title = f"{first.before} -> {first.after}, {times} ({_names(heads)})"
        details = [
            Detail("place", head.name, change.before, change.after) for head, change in zip(heads, changes, strict=True)
        ]
    else:
        heads = [*old, *new]
        ops = ", ".join(f"{number} {op}" for op, number in Counter(ref.op for ref in heads).most_common())
        verb = "removed" if old else "added"
        if piece:
            title = f"{len(heads)} connected nodes {verb}, {heads[0].name} to {heads[-1].name}: {ops}"
        else:
            title = f"{len(heads)} nodes that only pass a value on {verb}: {ops}"
        details = [
            Detail("place", ref.name, *((change.title, None) if old else (None, change.title)))
            for ref, change in zip(heads, changes, strict=True)
        ]
    wheres = {change.where for change in changes}
    return replace(
        first,
        title=title,
        where=first.where if len(wheres) == 1 else "",
        old=old,
        new=new,
        details=tuple(details),
        count=len(changes),
    )


def _names(refs: list[NodeRef]) -> str:
    names = ", ".join(ref.name for ref in refs[:_MOST_NAMES])
    return names + (f" and {len(refs) - _MOST_NAMES} more" if len(refs) > _MOST_NAMES else "")
