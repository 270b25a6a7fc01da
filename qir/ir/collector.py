"""Keeping Python's cyclic garbage collector from walking large graphs again and again, finding nothing.

A graph is all references in both directions, and it lives as long as it is of use. The collector does not know that:
left alone it walks all nodes, values and uses whenever enough of them were made, which costs up to half of the time
of loading or cleaning up a large model, and more the larger it is.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collector_paused", "collector_relaxed"]

_YOUNG = 200_000
"""New objects between two looks at them; Python's 700 (2,000 from 3.13 on) suits programs that make fewer."""


@contextmanager
def collector_paused() -> Iterator[None]:
    """Without the collector: while a graph is built, nothing of it is garbage, nor soon after."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if not (_relaxed() or gc.get_freeze_count()):
                _count_as_old()
            gc.enable()


@contextmanager
def collector_relaxed() -> Iterator[None]:
    """The collector skips what exists now, the model above all, and looks at new objects less often.

    For long work on a model that makes garbage too, such as running passes: what is made and dropped inside of the
    block is still collected. Within another such block it does nothing.
    """
    if _relaxed() or gc.get_freeze_count():
        yield
        return
    thresholds = gc.get_threshold()
    gc.freeze()
    if thresholds[0]:  # 0: the program has switched it off
        gc.set_threshold(max(thresholds[0], _YOUNG), *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        _count_as_old()


def _relaxed() -> bool:
    """Whether this is inside of ``collector_relaxed``. Asked first: counting what is frozen walks over all of it."""
    return gc.get_threshold()[0] >= _YOUNG


def _count_as_old() -> None:
    """Let what exists be looked at when a full collection is due, not at once because there is so much of it."""
    gc.freeze()
    gc.unfreeze()
