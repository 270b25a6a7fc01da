"""What a pipeline run did, pass by pass, for people and programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qir.ir import Model
from qir.pipeline.contract import Remark
from qir.pipeline.remarks import remark_to_json
from qir.pipeline.text import Raw, format_value
from qir.pipeline.timing import Timing

__all__ = ["PassReport", "PipelineResult"]


@dataclass(frozen=True, slots=True)
class PassReport:
    """One pass of a run. ``seconds`` is its own wall time, without shape inference and instruments.

    ``options`` are those that differ from their defaults. ``edits`` counts the journal's records by field: ``node`` and
    ``erased`` are nodes made and removed, ``inputs`` operands connected anew.
    """

    name: str
    options: Mapping[str, Raw]
    changed: bool
    rolled_back: bool
    seconds: float
    statistics: Mapping[str, int | float]
    remarks: tuple[Remark, ...]
    edits: Mapping[str, int]
    timing: Timing

    def summary(self) -> str:
        """One line: what changed, in the pass's own words and by the journal."""
        if self.rolled_back:
            return "rolled back"
        counts = ", ".join(f"{name} {_number(value)}" for name, value in self.statistics.items())
        made, erased = self.edits.get("node", 0), self.edits.get("erased", 0)
        nodes = f"nodes +{made} -{erased}" if made or erased else ""
        return "; ".join(filter(None, (counts, nodes))) or ("changed" if self.changed else "no change")

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "options": {name: format_value(value) for name, value in self.options.items()},
            "changed": self.changed,
            "rolled_back": self.rolled_back,
            "seconds": self.seconds,
            "statistics": {name: _finite(value) for name, value in self.statistics.items()},
            "edits": dict(self.edits),
            "remarks": [remark_to_json(remark) for remark in self.remarks],
        }


@dataclass(slots=True)
class PipelineResult:
    """``model`` is the compiled model, ``pipeline`` the text of what was asked for, ``passes`` what ran.

    ``stopped``: an instrument ended the run before the last pass.
    """

    model: Model
    pipeline: str
    timing: Timing
    passes: list[PassReport] = field(default_factory=list)
    stopped: bool = False
    first_remarks: list[Remark] = field(default_factory=list)
    """About the model as it came: types that could not be inferred or contradict the file."""

    @property
    def changed(self) -> bool:
        return any(report.changed for report in self.passes)

    @property
    def remarks(self) -> list[Remark]:
        """Those about the model as it came, then of all passes, in order. What a rolled-back pass said is left out."""
        return self.first_remarks + [
            remark for report in self.passes if not report.rolled_back for remark in report.remarks
        ]

    def __str__(self) -> str:
        """A line for each pass."""
        width = max((len(report.name) for report in self.passes), default=0)
        lines = [f"{report.name:{width}}  {report.summary()}" for report in self.passes]
        return "\n".join([*lines, *(["stopped by an instrument"] if self.stopped else [])])

    def to_json(self) -> dict[str, Any]:
        return {
            "pipeline": self.pipeline,
            "changed": self.changed,
            "stopped": self.stopped,
            "first_remarks": [remark_to_json(remark) for remark in self.first_remarks],
            "passes": [report.to_json() for report in self.passes],
            "timing": self.timing.to_json(),
        }


def _finite(value: int | float) -> int | float | None:
    """JSON has no infinity: null stands for it."""
    return value if math.isfinite(value) else None


def _number(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
