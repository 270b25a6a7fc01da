"""The ablation part of int8.py: what each preparation and threshold method gives by itself, in dB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qir.codegen import runnable
from qir.frontend import load
from qir.pipeline import Pipeline
from qir.runtime.session import OrtRunner
from qir.validation.metrics import compare

__all__ = ["ROWS", "ablate", "ablation_table", "pipeline_of"]

_BEFORE = "inline-functions,widen-float16,canonicalize,convert-opset{to=13},fold-constants,fuse,canonicalize,legalize"
_PLACED = "quantize,partition,place"
_SEARCHED = "quantize,partition,rescue,mixed-precision,partition,place"

# Preparation, calibration, correction; placement where it is another than the plain one.
ROWS: Mapping[str, tuple[str, str, str] | tuple[str, str, str, str]] = {
    "min-max, no correction": ("", "calibrate", ""),
    "min-max": ("", "calibrate", "correct-bias"),
    "`calibrate{method=mse}`": ("", "calibrate{method=mse}", "correct-bias"),
    "`calibrate{method=percentile}`": ("", "calibrate{method=percentile}", "correct-bias"),
    "`calibrate{method=entropy}`": ("", "calibrate{method=entropy}", "correct-bias"),
    "`calibrate{method=moving-average keep=0.98}`": (
        "",
        "calibrate{method=moving-average keep=0.98}",
        "correct-bias",
    ),
    "`equalize`": ("equalize", "calibrate", "correct-bias"),
    "`smooth` (norms)": ("smooth", "calibrate", "correct-bias"),
    "`smooth{scope=all}`": ("smooth{scope=all}", "calibrate", "correct-bias"),
    "`split-outliers`": ("split-outliers", "calibrate", "correct-bias"),
    "`smooth,split-outliers`": ("smooth,split-outliers", "calibrate", "correct-bias"),
    "`round-weights`": ("", "calibrate", "round-weights"),
    "without `partition`": ("", "calibrate", "correct-bias", "quantize,place"),
    "`mixed-precision`": ("", "calibrate", "correct-bias", _SEARCHED),
    "`tune`": ("", "calibrate,tune", "correct-bias"),
    "all of it, the default": ("", "calibrate,tune", "round-weights{samples=16}", _SEARCHED),
}
"""By what the table calls it."""


def pipeline_of(preparation: str, calibration: str, correction: str, placement: str = _PLACED) -> str:
    """The passes of one row; what a place is left empty for does not run."""
    parts = [_BEFORE, preparation, "analyze-ranges", calibration, placement, correction, "emit-qdq"]
    return ",".join(part for part in parts if part)


def ablate(model: str, calibration: Sequence[Mapping[str, np.ndarray]], feeds: Any) -> dict[str, float | None]:
    """SQNR in dB of the first output for each row; None where the row's preparation changes nothing."""
    source, reference = load(model), OrtRunner(model)
    found: dict[str, float | None] = {}
    for name, (preparation, *rest) in ROWS.items():
        text = pipeline_of(preparation, *rest)
        result = Pipeline.parse(text).run(source, calibration=calibration, target="ort-cpu", reference=source)
        prepared = {one.partition("{")[0] for one in preparation.split(",")}
        if preparation and not any(report.changed for report in result.passes if report.name in prepared):
            found[name] = None
            continue
        with runnable(result.model) as emitted:
            found[name] = compare(reference, OrtRunner(emitted), feeds).sqnr_db
    return found


def ablation_table(models: Mapping[str, tuple[str, Any, Any]]) -> list[dict[str, Any]]:
    """Prints a column for each model, by name: its file, calibration and evaluation feeds."""
    columns = {name: ablate(*what) for name, what in models.items()}
    print(f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for row in ROWS:
        values = [column[row] for column in columns.values()]
        print(
            f"| {row} | {' | '.join('nothing to do' if one is None else f'{one:.1f}' for one in values)} |", flush=True
        )
    return [{"model": name, "error": None, "rows": column} for name, column in columns.items()]
