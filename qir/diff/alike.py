"""Which nodes hold nearly the same constants: a sample of each tells the weights of one layer from those of another,
whatever they are called, after they were trained on or rounded."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from qir.diff.view import View
from qir.ir import Tensor

__all__ = ["alike_constants", "are_alike"]

_SAMPLE = 64
_LEAST = 8
"""Elements from which on a sample tells anything."""
_COSINE = 0.9
"""Between samples: weights that have an SQNR of more than 7 dB; independent ones stay far below."""


def alike_constants(a: View, nodes_a: list[int], b: View, nodes_b: list[int]) -> np.ndarray | None:
    """(nodes_a, nodes_b) whether two nodes of one operator read constants of one shape that are nearly the same; None
    where no two do."""
    groups: dict[object, tuple[list[tuple[int, np.ndarray]], list[tuple[int, np.ndarray]]]] = defaultdict(
        lambda: ([], [])
    )
    for side, (view, nodes) in enumerate(((a, nodes_a), (b, nodes_b))):
        for place, node in enumerate(nodes):
            constant = _largest(view, node)
            if constant is not None:
                groups[view.labels[node], constant.shape][side].append((place, _sample(constant)))
    found: np.ndarray | None = None
    for one, two in groups.values():
        if not one or not two:
            continue
        samples = [np.stack([sample for _, sample in side]) for side in (one, two)]
        near = samples[0] @ samples[1].T > _COSINE
        if near.any():
            if found is None:
                found = np.zeros((len(nodes_a), len(nodes_b)), bool)
            found[np.ix_([place for place, _ in one], [place for place, _ in two])] = near
    return found


def are_alike(a: View, x: int, b: View, y: int) -> bool | None:
    """Whether the largest constants of two nodes are nearly the same; None where they cannot be compared."""
    one, two = _largest(a, x), _largest(b, y)
    if one is None or two is None or one.shape != two.shape:
        return None
    return bool(_sample(one) @ _sample(two) > _COSINE)


def _largest(view: View, node: int) -> Tensor | None:
    """The largest constant that the node reads, where it is one of enough numbers."""
    best: Tensor | None = None
    for slot in view.slots[node]:
        constant = view.values[slot.value].constant
        if isinstance(constant, Tensor) and not constant.is_stub and constant.dtype.is_float:
            if constant.size >= _LEAST and (best is None or constant.size > best.size):
                best = constant
    return best


def _sample(constant: Tensor) -> np.ndarray:
    """At most 64 elements from all over it, centred, of length 1; zeros where they say nothing."""
    flat = constant.numpy().reshape(-1)
    picked = np.linspace(0, len(flat) - 1, min(len(flat), _SAMPLE)).astype(np.int64)
    sample = flat[picked].astype(np.float64)
    sample = np.where(np.isfinite(sample), sample, 0.0)
    sample = np.pad(sample - sample.mean(), (0, _SAMPLE - len(sample)))
    length = float(np.linalg.norm(sample))
    return sample / length if length > 0 else sample
