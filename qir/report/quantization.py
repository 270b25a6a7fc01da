"""The result of one quantization: size, accuracy, speed, what runs on integers, what stayed float and why."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qir.ir import StaticQuant
from qir.pipeline import PipelineResult, Remark, RemarkKind
from qir.pipeline.remarks import remark_to_json
from qir.quant.recipe import Recipe
from qir.report.check import output_lines, reaches, task_lines, worst_in_words
from qir.runtime.latency import LatencyComparison
from qir.validation.metrics import Comparison, finite_db

__all__ = ["NOISE", "RANDOM_WARNING", "QuantizationReport", "size_in_words", "speed_in_words"]

_SHOWN_REMARKS = 12
_INSTEAD = "'--preset int8-weights' makes the file smaller at float's speed"
_POOR = 10.0
"""Decibels below which an output has little to do with the float model's."""
NOISE = 0.02
"""Ratios of latency nearer to 1 than this are no difference that a reader should act on."""
RANDOM_WARNING = "RANDOM DATA: ranges and accuracy mean nothing for real inputs; do not ship this model"


@dataclass(slots=True)
class QuantizationReport:
    """What ``qir.quantize`` returns; ``str`` gives the text that the command line prints.

    ``accuracy`` holds the emitted model against the float model with the runtime's optimisations on,
    ``accuracy_plain`` with them off; ``measured_on`` says on which samples. ``latency`` is float against emitted, one
    thread, interleaved; None where it was not asked for. ``executed`` counts the nodes that the runtime runs on
    integers and the heavy ones that it runs in float, by op. ``session_options``: what the runtime should be given.
    ``integer_io``: what codes of integer inputs and outputs stand for. Without data there is no
    accuracy and no latency.
    """

    source: str
    output: str | None
    preset: str
    target: str
    compilation: PipelineResult
    accuracy: Comparison | None
    accuracy_plain: Comparison | None
    measured_on: str
    calibration_samples: int
    size_before: int
    size_after: int
    executed_integer: Mapping[str, int]
    executed_float: Mapping[str, int]
    latency: LatencyComparison | None = None
    min_sqnr: float | None = None
    max_drop: float | None = None
    placement: Recipe | None = None
    """What was decided for each node, as a recipe that gives the same without a search; None where nothing was."""
    synthetic: bool = False
    """Random inputs were asked for: the numbers mean nothing."""
    session_options: Mapping[str, str] = field(default_factory=dict)
    integer_io: Mapping[str, StaticQuant] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def sqnr_db(self) -> float | None:
        """Of the first float output, in dB; inf where it equals the float model's, None where nothing was measured."""
        return None if self.accuracy is None else self.accuracy.sqnr_db

    @property
    def sqnr_min_db(self) -> float | None:
        """Of the worst output, with optimisations on or off; None where nothing was measured."""
        return min((one.sqnr_min_db for one in self._measured), default=None)

    @property
    def _measured(self) -> list[Comparison]:
        return [one for one in (self.accuracy, self.accuracy_plain) if one is not None]

    @property
    def passed(self) -> bool:
        """The worst output reaches ``min_sqnr``, with optimisations on and off, without float outputs all decisions
        agree, and the task metric drops by at most ``max_drop`` points; true where no threshold was given."""
        measured = self._measured
        reached = self.min_sqnr is None or (bool(measured) and reaches(self.min_sqnr, measured))
        return reached and (self.max_drop is None or (self.drop is not None and self.drop <= self.max_drop))

    @property
    def drop(self) -> float | None:
        """Points of the task metric that are lost, see ``Comparison.drop``; the larger, optimisations on or off."""
        return max((one.drop for one in self._measured if one.drop is not None), default=None)

    @property
    def remarks(self) -> list[Remark]:
        return self.compilation.remarks

    @property
    def stays_float(self) -> bool:
        """The target's cost table knows no placement of integers that is faster than float: nothing was quantized."""
        slower = any(remark.pass_name == "partition" and remark.kind is RemarkKind.MISSED for remark in self.remarks)
        return slower and not self.executed_integer

    @property
    def kept_float(self) -> list[Remark]:
        """Why nodes of the user's model did not become integers."""
        return [remark for remark in self.remarks if remark.kind is RemarkKind.MISSED and remark.pass_name in _DECIDING]

    @property
    def stored(self) -> dict[int, int]:
        """How many weights are stored in how many bits and computed with as float, by bits."""
        found: Counter[int] = Counter()
        for one in self.compilation.passes:
            for name, count in one.statistics.items():
                if match := _BITS.fullmatch(name):
                    found[int(match[1])] += int(count)
        return dict(sorted(found.items()))

    def to_json(self) -> dict[str, Any]:
        """For ``--json``; the schema is stable: keys are added, never changed."""
        return {
            "source": self.source,
            "output": self.output,
            "preset": self.preset,
            "target": self.target,
            "passed": self.passed,
            "min_sqnr": self.min_sqnr,
            "max_drop": self.max_drop,
            "drop_points": None if self.drop is None or not math.isfinite(self.drop) else self.drop,
            "synthetic_data": self.synthetic,
            "sqnr_db": None if self.accuracy is None else finite_db(self.accuracy.sqnr_db),
            "sqnr_min_db": None if self.accuracy is None else finite_db(self.accuracy.sqnr_min_db),
            "agreement": None if self.accuracy is None else self.accuracy.agreement,
            "measured_on": self.measured_on,
            "calibration_samples": self.calibration_samples,
            "size": {
                "before": self.size_before,
                "after": self.size_after,
                "ratio": self.size_after / max(self.size_before, 1),
            },
            "latency": None
            if self.latency is None
            else {
                "float_ms": self.latency.a_ms,
                "quantized_ms": self.latency.b_ms,
                "ratio": self.latency.ratio,
                "low": self.latency.low,
                "high": self.latency.high,
            },
            "accuracy": None if self.accuracy is None else self.accuracy.as_dict(),
            "accuracy_optimizations_off": None if self.accuracy_plain is None else self.accuracy_plain.as_dict(),
            "executed_integer": dict(self.executed_integer),
            "executed_float": dict(self.executed_float),
            "stored_weights": {str(bits): count for bits, count in self.stored.items()},
            "session_options": dict(self.session_options),
            "integer_io": {
                name: {"dtype": quant.dtype.numpy.name, "scale": quant.scale[0], "zero_point": quant.zero_point[0]}
                for name, quant in self.integer_io.items()
            },
            "pipeline": self.compilation.pipeline,
            "passes": [report.to_json() for report in self.compilation.passes],
            "remarks": [remark_to_json(remark) for remark in self.remarks],
            "versions": dict(self.versions),
        }

    def __str__(self) -> str:
        return "\n".join([*self._headline(), *self._outputs(), *self._execution(), *self._labels(), *self._why_float()])

    def _headline(self) -> list[str]:
        size = size_in_words(self.size_before, self.size_after)
        lines = [
            f"{self.source} -> {self.output or 'nothing written'}  ({self.preset} for {self.target})",
            f"  size      {_bytes(self.size_before)} -> {_bytes(self.size_after)}  ({size})",
        ]
        if self.latency is not None:
            verdict = speed_in_words(self.latency.ratio)
            lines.append(
                f"  latency   {self.latency.a_ms:.3f} -> {self.latency.b_ms:.3f} ms, one thread  "
                f"({verdict}; 95 % interval {self.latency.low:.2f} to "
                f"{self.latency.high:.2f})"
            )
        if self.accuracy is None:
            lines.append("  accuracy  not measured, nor latency: no data (give --golden or --calib)")
        else:
            lines.append(f"  accuracy  measured on {self.measured_on}")
        if self.synthetic:
            lines.append(f"  {RANDOM_WARNING}")
        return lines

    def _outputs(self) -> list[str]:
        if self.accuracy is None or self.accuracy_plain is None:
            return []
        lines = [*output_lines(self.accuracy, self.accuracy_plain), *task_lines(self.accuracy)]
        worst = self.sqnr_min_db
        if worst is not None and worst < _POOR:
            lines.append(
                f"    POOR: below {_POOR:g} dB it is another model. 'qir ranges' says whether the samples are right, "
                "'qir compare' which nodes do it"
            )
        if self.min_sqnr is not None and worst is not None:
            verdict = "reached" if reaches(self.min_sqnr, self._measured) else "NOT REACHED"
            lines.append(f"    threshold {self.min_sqnr:g} dB {verdict}: {worst_in_words(self._measured)}")
        if self.max_drop is not None and self.drop is not None:
            verdict = "kept" if self.drop <= self.max_drop else "EXCEEDED"
            lines.append(f"    threshold {self.max_drop:g} points {verdict}: the drop is {self.drop:.2f}")
        return lines

    def _execution(self) -> list[str]:
        integer = ", ".join(f"{count} {op.rpartition('::')[2]}" for op, count in self.executed_integer.items())
        heavy = ", ".join(f"{count} {op.rpartition('::')[2]}" for op, count in self.executed_float.items())
        asked = "" if self.min_sqnr is None else f", or miss {self.min_sqnr:g} dB"
        nothing = f"none: they would be slower than float here{asked}; {_INSTEAD}" if self.stays_float else "none"
        lines = [f"  integers  {integer or nothing}", f"  float     {heavy or 'nothing heavy'}"]
        if self.stored:
            stored = ", ".join(f"{count} in {bits} bits" for bits, count in self.stored.items())
            lines.append(f"  weights   {stored}")
        for name, quant in self.integer_io.items():
            scale, zero = quant.scale[0], quant.zero_point[0]
            lines.append(f"  i/o       {name!r} is {quant.dtype}: number = (code - {zero}) * {scale:.6g}")
        if self.session_options:
            chosen = ", ".join(f"{key}={value}" for key, value in sorted(self.session_options.items()))
            lines.append(f"  session   run it with {chosen} (in the model's metadata as qir.session_options)")
        return lines

    def _labels(self) -> list[str]:
        """What holds for the whole model and readers must know, such as that a type is only emulated."""
        notes = [r for r in self.remarks if r.kind is RemarkKind.NOTE and r.pass_name in _DECIDING and not r.subject]
        return [f"  note      {remark.message}" for remark in notes]

    def _why_float(self) -> list[str]:
        grouped: dict[tuple[str, str], list[str]] = {}
        for remark in self.kept_float:
            message = _NAMED.sub(" stays float", remark.message)
            grouped.setdefault((remark.pass_name, message), []).append(remark.subject)
        lines = []
        for (_, message), subjects in list(grouped.items())[:_SHOWN_REMARKS]:
            named = ", ".join(repr(subject) for subject in subjects[:3] if subject)
            more = f" and {len(subjects) - 3} more" if len(subjects) > 3 else ""
            lines.append(f"    {message}{': ' if named else ''}{named}{more}")
        if len(grouped) > _SHOWN_REMARKS:
            lines.append(f"    ... and {len(grouped) - _SHOWN_REMARKS} more reasons (--json lists all)")
        return ["  stays float, and why", *lines] if lines else []


_NAMED = re.compile(r" '[^']*' stays float")
"""A weight that the subject, its node, stands for in words."""
_BITS = re.compile(r"(\d+) bits")
"""A statistic of the passes that store weights in few bits."""
_DECIDING = frozenset(
    {
        "quantize",
        "quantize-dynamic",
        "quantize-weights",
        "rescue",
        "place",
        "partition",
        "mixed-precision",
        "calibrate",
        "convert-float",
        "cluster-weights",
        "quantize-log",
        "quantize-static",
        "share-weights",
    }
)


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def speed_in_words(ratio: float) -> str:
    """``1.23x faster``; a ratio within NOISE of 1 is no difference."""
    if abs(ratio - 1) < NOISE:
        return f"as fast as float: {ratio:.2f}x"
    return f"{ratio:.2f}x faster" if ratio > 1 else f"{ratio:.2f}x of float's speed: SLOWER"


def size_in_words(before: int, after: int) -> str:
    """``3.11x smaller``; a difference of half a percent is none."""
    ratio = before / max(after, 1)
    if abs(ratio - 1) < 0.005:
        return "as large as before"
    return f"{ratio:.2f}x smaller" if ratio > 1 else f"{1 / ratio:.2f}x LARGER"
