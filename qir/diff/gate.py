"""Conditions on a diff, for a pull request's check: ``outputs,weights>0.1`` fails where one of them holds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from qir.diff.changes import ChangeKind, GraphDiff
from qir.errors import OptionError, suggest

__all__ = ["Condition", "parse_conditions"]

_TERM = re.compile(r"\s*([a-z-]+)\s*(?:>\s*([0-9.eE+-]+))?\s*")


def _weight_error(diff: GraphDiff) -> float:
    """The largest relative error of a changed weight, |new - old| / |old| in the 2-norm; infinite where the two cannot
    be compared element by element."""
    worst = 0.0
    for change in diff.of_kind(ChangeKind.WEIGHT_CHANGED):
        stats = change.weight.stats if change.weight is not None else None
        if stats is None or (stats.sqnr_db is None and stats.max_error > 0):
            return math.inf
        if stats.sqnr_db is not None:
            worst = max(worst, 10 ** (-stats.sqnr_db / 20))
    return worst


_MEASURES: dict[str, Callable[[GraphDiff], float]] = {
    "any": lambda diff: len(diff.changes),
    "functions": lambda diff: diff.summary.functions_changed,
    "inputs": lambda diff: diff.summary.inputs_changed,
    "interface": lambda diff: diff.summary.inputs_changed + diff.summary.outputs_changed,
    "metadata": lambda diff: diff.summary.metadata_changed,
    "nodes": lambda diff: diff.summary.nodes_added + diff.summary.nodes_removed + diff.summary.nodes_changed,
    "opsets": lambda diff: diff.summary.opsets_changed,
    "outputs": lambda diff: diff.summary.outputs_changed,
    "quantization": lambda diff: diff.summary.quantization_changed,
    "scales": lambda diff: diff.summary.scales_changed,
    "types": lambda diff: diff.summary.types_changed,
    "weights": _weight_error,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """``name`` says what is counted, ``limit`` what it may be at most. ``weights`` alone means any changed weight;
    ``weights>0.1`` a relative error above 0.1."""

    name: str
    limit: float | None = None

    def holds(self, diff: GraphDiff) -> bool:
        if self.limit is None:
            if self.name == "weights":
                return diff.summary.weights_changed > 0
            return _MEASURES[self.name](diff) > 0
        return _MEASURES[self.name](diff) > self.limit

    def __str__(self) -> str:
        return self.name if self.limit is None else f"{self.name}>{self.limit:g}"


def parse_conditions(text: str) -> list[Condition]:
    """Terms with commas between them: ``NAME`` or ``NAME>NUMBER``. Raises OptionError."""
    found = []
    for term in text.split(","):
        match = _TERM.fullmatch(term)
        if match is None:
            raise OptionError(
                f"condition {term.strip()!r} is neither NAME nor NAME>NUMBER, as in 'outputs,weights>0.1'"
            )
        name, limit = match.groups()
        if name not in _MEASURES:
            names = ", ".join(_MEASURES)
            raise OptionError(f"unknown condition {name!r}{suggest(name, _MEASURES)}: there are {names}")
        try:
            found.append(Condition(name, None if limit is None else float(limit)))
        except ValueError:
            raise OptionError(f"condition {term.strip()!r}: {limit!r} is no number") from None
    return found
