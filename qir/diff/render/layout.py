"""Places for the nodes of a picture: layers from inputs down to outputs, few crossings, no overlaps.

The scheme is Sugiyama's (Sugiyama, Tagawa, Toda 1981) without dummy nodes: layers by longest path, order within a layer
by barycentre sweeps, then horizontal places near the mean of the neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Layout", "lay_out"]

_SWEEPS = 6


@dataclass(frozen=True, slots=True)
class Layout:
    """``places``: key -> centre (x, y), in the units of the spacing; ``width`` and ``height`` hold all of them."""

    places: Mapping[str, tuple[float, float]]
    width: float
    height: float


def lay_out(
    keys: Sequence[str], edges: Sequence[tuple[str, str]], widths: Mapping[str, float], *, gap: float, row: float
) -> Layout:
    """``keys`` in an order in which edges run forward mostly; an edge that runs back is drawn but moves nothing.
    ``widths`` of the nodes, ``gap`` between two beside each other, ``row`` from one layer to the next. O(n + e)
    a sweep.
    """
    position = {key: index for index, key in enumerate(keys)}
    forward = [(a, b) for a, b in dict.fromkeys(edges) if position[a] < position[b]]
    before: dict[str, list[str]] = {key: [] for key in keys}
    after: dict[str, list[str]] = {key: [] for key in keys}
    for a, b in forward:
        after[a].append(b)
        before[b].append(a)
    layers = _layers(keys, before, after)
    rows: list[list[str]] = [[] for _ in range(max(layers.values(), default=-1) + 1)]
    for key in keys:
        rows[layers[key]].append(key)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        _order(rows if down else rows[::-1], before if down else after)
    x = _columns(rows, before, after, widths, gap)
    left = min((x[key] - widths[key] / 2 for key in keys), default=0.0) - gap / 2
    right = max((x[key] + widths[key] / 2 for key in keys), default=0.0) + gap / 2
    places = {key: (x[key] - left, layers[key] * row + row / 2) for key in keys}
    return Layout(places, right - left, len(rows) * row)


def _layers(keys: Sequence[str], before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> dict[str, int]:
    layers: dict[str, int] = {}
    for key in keys:
        layers[key] = max((layers[source] + 1 for source in before[key]), default=0)
    for key in reversed(keys):
        if not before[key] and after[key]:  # a source stands right above what it feeds
            layers[key] = min(layers[reader] for reader in after[key]) - 1
    least = min(layers.values(), default=0)
    return {key: layer - least for key, layer in layers.items()}


def _order(rows: Sequence[list[str]], fixed: Mapping[str, list[str]]) -> None:
    """Sort each layer by the mean rank of its neighbours in the layers before it; those without keep their places."""
    rank: dict[str, float] = {}
    for layer in rows:
        middle = {
            key: sum(rank[near] for near in known) / len(known)
            for key in layer
            if (known := [near for near in fixed[key] if near in rank])
        }
        size = max(len(layer), 1)
        wanted = {key: middle.get(key, (index + 0.5) / size) for index, key in enumerate(layer)}
        layer.sort(key=wanted.__getitem__)
        for index, key in enumerate(layer):
            rank[key] = (index + 0.5) / size


def _columns(
    rows: Sequence[Sequence[str]],
    before: Mapping[str, list[str]],
    after: Mapping[str, list[str]],
    widths: Mapping[str, float],
    gap: float,
) -> dict[str, float]:
    x: dict[str, float] = {}
    for layer in rows:
        at = 0.0
        for key in layer:
            x[key] = at + widths[key] / 2
            at += widths[key] + gap
        shift = at / 2
        for key in layer:
            x[key] -= shift
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for layer in rows if down else rows[::-1]:
            near = before if down else after
            wanted = [sum(x[n] for n in near[key]) / len(near[key]) if near[key] else x[key] for key in layer]
            for key, place in zip(layer, _apart(layer, wanted, widths, gap), strict=True):
                x[key] = place
    return x


def _apart(layer: Sequence[str], wanted: Sequence[float], widths: Mapping[str, float], gap: float) -> list[float]:
    """Places in this order, as near to the wanted ones as two passes give, none overlapping."""
    right = list(wanted)
    for i in range(1, len(layer)):
        right[i] = max(right[i], right[i - 1] + (widths[layer[i - 1]] + widths[layer[i]]) / 2 + gap)
    left = list(wanted)
    for i in range(len(layer) - 2, -1, -1):
        left[i] = min(left[i], left[i + 1] - (widths[layer[i + 1]] + widths[layer[i]]) / 2 - gap)
    # The mean of two orders without overlaps has none either.
    return [(a + b) / 2 for a, b in zip(left, right, strict=True)]
