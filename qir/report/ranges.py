"""Ranges side by side: declared, proved, observed; and what lies outside of what is possible."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from qir.ir import Interval
from qir.report.columns import middle, name_width

__all__ = ["RangeRow", "RangesReport"]

_SLACK = 1e-5
"""Of the magnitude: float arithmetic rounds, proofs are about exact numbers."""


@dataclass(frozen=True, slots=True)
class RangeRow:
    """One value; None where nothing is known. ``op`` is ``input`` for inputs."""

    value: str
    op: str
    node: str
    declared: Interval | None
    proved: Interval | None
    seen: Interval | None

    @property
    def impossible(self) -> bool:
        """It was seen outside of what is proved or declared: something is wrong with the data or the model."""
        seen = None if self.seen is None or self.seen.is_empty else self.seen.per_tensor()
        if seen is None:
            return False
        slack = _SLACK * seen.magnitude
        limits = [one.per_tensor() for one in (self.declared, self.proved) if one is not None]
        return any(not limit.contains(seen, slack) for limit in limits)

    @property
    def used(self) -> float | None:
        """How much of the proved range samples fill, 0 to 1; None where it is not bounded or nothing was seen."""
        if self.proved is None or self.seen is None or self.seen.is_empty:
            return None
        proved, seen = self.proved.per_tensor(), self.seen.per_tensor()
        width = proved.upper - proved.lower
        return (seen.upper - seen.lower) / width if math.isfinite(width) and width > 0 else None


@dataclass(frozen=True, slots=True)
class RangesReport:
    """What ``qir.ranges`` returns. ``data`` and ``samples``: what was observed, None and 0 without data."""

    model: str
    data: str | None
    samples: int
    rows: list[RangeRow]

    @property
    def impossible(self) -> list[RangeRow]:
        return [row for row in self.rows if row.impossible]

    def to_json(self) -> dict[str, Any]:
        """For ``--json``; keys are added, never changed. An infinite bound is null."""
        return {
            "model": self.model,
            "data": self.data,
            "samples": self.samples,
            "values": [
                {
                    "value": row.value,
                    "op": row.op,
                    "node": row.node,
                    "declared": _pair(row.declared),
                    "proved": _pair(row.proved),
                    "per_channel": row.proved is not None and row.proved.axis is not None,
                    "seen": _pair(row.seen),
                    "impossible": row.impossible,
                }
                for row in self.rows
            ],
            "impossible": [row.value for row in self.impossible],
        }

    def __str__(self) -> str:
        shown = f"{self.samples} samples of {self.data}" if self.data is not None else "no data: nothing was observed"
        lines = [f"{self.model}: {len(self.rows)} float values, {shown}"]
        width = name_width((row.value for row in self.rows), 24)
        lines.append(f"  {'value':{width}} {'op':10} {'declared':14} {'proved':14} {'seen':14}")
        for row in self.rows:
            cells = [_text(row.declared), _text(row.proved), _text(row.seen)]
            mark = "!" if row.impossible else " "
            name = f"{middle(row.value, width):{width}} {middle(row.op, 10):10}"
            line = f"{mark} {name} " + " ".join(f"{c:14}" for c in cells)
            lines.append(line.rstrip())
        if self.impossible:
            lines.append(
                f"! {len(self.impossible)} values were seen outside of what is possible: the data is not what was "
                "declared,"
            )
            lines.append("  or is preprocessed in another way than the model expects")
        return "\n".join(lines)


def _pair(interval: Interval | None) -> list[float | None] | None:
    if interval is None or interval.is_empty:
        return None
    whole = interval.per_tensor()
    return [bound if math.isfinite(bound) else None for bound in (whole.lower, whole.upper)]


def _text(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    if interval.is_empty:
        return "never"
    whole = interval.per_tensor()
    return f"{_number(whole.lower)}:{_number(whole.upper)}"


def _number(value: float) -> str:
    text = f"{value:.3g}"
    return text if len(text) <= 7 else f"{value:.1e}"
