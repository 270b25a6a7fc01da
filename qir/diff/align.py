"""Sequences aligned at least cost: the fine work of matching, on nodes in canonical order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["align", "common_runs"]


def align(
    levels_a: np.ndarray,
    levels_b: np.ndarray,
    costs: Sequence[float],
    other: float,
    alike: np.ndarray | None = None,
    discount: float = 0.0,
) -> list[tuple[int, int]]:
    """Pairs (i, j) of a cheapest monotone alignment, where to leave an item alone costs 1.

    ``levels_a`` has a row an item and a column a level of likeness, the strictest first: items that agree at level k
    cost ``costs[k]`` as a pair, those that agree at none ``other``. Pairs that are ``alike`` (n by m), but not equal,
    cost less by ``discount``. Needleman and Wunsch (1970), a diagonal at a time; O(n*m) time, and bytes for the way
    back.
    """
    n, m = len(levels_a), len(levels_b)
    if not n or not m:
        return []
    # steps[i, j]: how cell (i, j) was reached; 0 a pair, 1 an item of a left out, 2 one of b.
    steps = np.zeros((n + 1, m + 1), np.uint8)
    steps[1:, 0], steps[0, 1:] = 1, 2
    before: np.ndarray = np.zeros(n + 1)  # the last diagonal but one, by i
    last: np.ndarray = np.full(n + 1, np.inf)
    last[0] = 1.0
    last[1] = 1.0
    for diagonal in range(2, n + m + 1):
        low, high = max(1, diagonal - m), min(n, diagonal - 1)
        i = np.arange(low, high + 1)
        j = diagonal - i
        cost = np.full(len(i), other)
        for level in range(levels_a.shape[1] - 1, -1, -1):
            cost[levels_a[i - 1, level] == levels_b[j - 1, level]] = costs[level]
        if alike is not None:
            cost[alike[i - 1, j - 1] & (cost > 0)] -= discount
        pair = before[i - 1] + cost
        skip_a = last[i - 1] + 1.0
        skip_b = last[i] + 1.0
        best = np.minimum(np.minimum(pair, skip_a), skip_b)
        # Pairs first; an item is left out as early in b, as late in a, as it can be.
        steps[i, j] = np.where(pair <= best, 0, np.where(skip_b <= best, 2, 1))
        current = np.full(n + 1, np.inf)
        current[i] = best
        if diagonal <= m:
            current[0] = diagonal
        if diagonal <= n:
            current[diagonal] = diagonal
        before, last = last, current
    pairs = []
    x, y = n, m
    while x and y:
        step = steps[x, y]
        if step == 0:
            pairs.append((x - 1, y - 1))
        x -= step != 2
        y -= step != 1
    pairs.reverse()
    return pairs


def common_runs(a: Sequence[int], b: Sequence[int], least: int, most_edits: int) -> list[tuple[int, int, int]]:
    """Runs (i, j, length) of at least ``least`` equal items in a longest common subsequence.

    Myers (1986), "An O(ND) difference algorithm", greedy; gives up with [] beyond ``most_edits`` insertions and
    removals.
    """
    n, m = len(a), len(b)
    ends: dict[int, int] = {1: 0}
    trace: list[dict[int, int]] = []
    for edits in range(min(n + m, most_edits) + 1):
        trace.append({k: ends[k] for k in range(1 - edits, edits, 2)} if edits else dict(ends))
        for k in range(-edits, edits + 1, 2):
            if k < -m or k > n:
                continue
            left, right = ends.get(k - 1, -1), ends.get(k + 1, -1)
            x = right if k == -edits or (k != edits and left < right) else left + 1
            y = x - k
            if x > n or y > m:
                ends[k] = x
                continue
            while x < n and y < m and a[x] == b[y]:
                x += 1
                y += 1
            ends[k] = x
            if x >= n and y >= m:
                return _runs(trace, n, m, least)
    return []


def _runs(trace: list[dict[int, int]], n: int, m: int, least: int) -> list[tuple[int, int, int]]:
    runs = []
    x, y = n, m
    for edits in range(len(trace) - 1, -1, -1):
        ends = trace[edits]
        k = x - y
        left, right = ends.get(k - 1, -1), ends.get(k + 1, -1)
        down = k == -edits or (k != edits and left < right)
        start_x = right if down else left
        start_y = start_x - (k + 1 if down else k - 1)
        snake_x = start_x if down else start_x + 1
        if edits == 0:
            start_x, start_y, snake_x = 0, 0, 0
        if x - snake_x >= least:
            runs.append((snake_x, snake_x - k, x - snake_x))
        x, y = start_x, start_y
    runs.reverse()
    return runs
