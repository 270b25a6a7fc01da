"""The result of checking a model against golden outputs: how close each output is, and whether that is close enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qir.validation.metrics import Comparison, OutputMetrics, finite_db

__all__ = ["CheckReport", "output_lines", "reaches", "task_lines", "worst_in_words"]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What ``qir.check`` returns; ``str`` gives the text that the command line prints.

    ``optimized`` and ``plain`` hold the model with the runtime's optimisations on and off against the expected outputs.
    ``min_sqnr`` in dB; ``threshold_from`` says where it came from.
    """

    model: str
    golden: str
    reference: str
    optimized: Comparison
    plain: Comparison
    min_sqnr: float | None = None
    threshold_from: str = ""

    @property
    def worst_db(self) -> float:
        """Of the worst float output, on or off, in dB; NaN for a model without float outputs."""
        return min(self.optimized.sqnr_min_db, self.plain.sqnr_min_db)

    @property
    def broken(self) -> list[str]:
        """Outputs whose shape is not the expected one, or that hold NaN or infinity where a number is expected."""
        found = [*self.optimized.outputs.values(), *self.plain.outputs.values()]
        return list(dict.fromkeys(m.name for m in found if m.shape_mismatches or m.nonfinite))

    @property
    def passed(self) -> bool:
        """Nothing is broken, and the worst output reaches ``min_sqnr``; without float outputs all decisions agree."""
        if self.broken:
            return False
        return self.min_sqnr is None or reaches(self.min_sqnr, (self.optimized, self.plain))

    def to_json(self) -> dict[str, Any]:
        """For ``--json``; keys are added, never changed."""
        return {
            "model": self.model,
            "golden": self.golden,
            "reference": self.reference,
            "passed": self.passed,
            "min_sqnr": self.min_sqnr,
            "threshold_from": self.threshold_from or None,
            "sqnr_db": finite_db(self.optimized.sqnr_db),
            "sqnr_min_db": finite_db(self.worst_db),
            "agreement": self.optimized.agreement,
            "broken": self.broken,
            "optimizations_on": self.optimized.as_dict(),
            "optimizations_off": self.plain.as_dict(),
        }

    def __str__(self) -> str:
        lines = [
            f"{self.model} against {self.reference}, {self.optimized.samples} samples of {self.golden}",
            *output_lines(self.optimized, self.plain),
            *task_lines(self.optimized),
        ]
        lines += [f"  BROKEN: {name!r} has another shape than expected, or NaN or infinity" for name in self.broken]
        if self.min_sqnr is not None:
            verdict = "reached" if self.passed else "NOT REACHED"
            worst = worst_in_words((self.optimized, self.plain))
            lines.append(f"  threshold {self.min_sqnr:g} dB ({self.threshold_from}) {verdict}: {worst}")
        elif not self.broken:
            lines.append("  no threshold: --min-sqnr DB sets one")
        return "\n".join(lines)


def reaches(min_sqnr: float, measured: Sequence[Comparison]) -> bool:
    """Whether the worst float output has ``min_sqnr`` dB, with optimisations on and off; without float outputs, whether
    all decisions are the same."""
    worst = [one.sqnr_min_db for one in measured]
    if any(map(math.isnan, worst)):
        return all(metrics.agreement in (None, 1.0) for one in measured for metrics in one.outputs.values())
    return min(worst) >= min_sqnr


def worst_in_words(measured: Sequence[Comparison]) -> str:
    """``the worst output has 31.20 dB``."""
    worst = min(one.sqnr_min_db for one in measured)
    if not math.isnan(worst):
        return f"the worst output has {worst:.2f} dB"
    shares = [one.agreement for one in measured if one.agreement is not None]
    return f"no float output, {min(shares):.2%} same decisions" if shares else "no float output"


def output_lines(optimized: Comparison, plain: Comparison) -> list[str]:
    """A line for each output: how close it is to what was expected, optimisations on (and off)."""
    width = max((len(name) for name in optimized.outputs), default=0)
    return [f"    {name:{width}}  {_line(metrics, plain.outputs[name])}" for name, metrics in optimized.outputs.items()]


def _line(metrics: OutputMetrics, plain: OutputMetrics) -> str:
    decisions = "" if metrics.agreement is None else f"{metrics.agreement:.2%} same decisions"
    if not metrics.is_float:
        return decisions or "no numbers to compare"
    numbers = (
        f"{metrics.sqnr_db:6.2f} dB SQNR ({plain.sqnr_db:.2f} with optimisations off), "
        f"cosine {metrics.cosine:.5f}, max error {metrics.max_abs:.4g}"
    )
    return f"{numbers}, {decisions}" if decisions else numbers


def task_lines(comparison: Comparison) -> list[str]:
    """Lines about labels, none without them."""
    lines = []
    values = comparison.metric_values
    if comparison.metric is not None and values is not None:
        lines.append(f"    labels: {comparison.metric.name} {values[0]:.4g} -> {values[1]:.4g}")
    if comparison.task_output is not None:
        before, after = comparison.reference_task.accuracy, comparison.task.accuracy
        lines.append(f"    labels: accuracy {before:.2%} -> {after:.2%} on {comparison.task.count} decisions")
    return lines
