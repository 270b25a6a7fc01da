"""Names of nodes and values in columns of text."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["middle", "name_width"]

_WIDEST = 44
"""Beyond that a table breaks its lines on most terminals."""


def name_width(names: Iterable[str], least: int) -> int:
    """Characters for a column of these names: as many as the longest needs, from ``least`` to 44."""
    return max([least, *(min(len(name), _WIDEST) for name in names)])


def middle(text: str, width: int) -> str:
    """The text, or its start and end: names of layers begin with the block and end with the operator."""
    half = (width - 2) // 2
    return text if len(text) <= width else f"{text[: width - 2 - half]}..{text[-half:]}"
