"""One call that shows what values can be, are declared to be, and were seen to be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from qir.calibration.collect import collect
from qir.calibration.data import open_data
from qir.calibration.specs import input_specs
from qir.calibration.statistics import MinMax
from qir.frontend import load
from qir.ir import DType, Interval, Model, Value
from qir.passes.annotation.analyze_ranges import AnalyzeRanges, parse_input_ranges
from qir.pipeline import NoProgress, PassContext, Progress
from qir.report.ranges import RangeRow, RangesReport

__all__ = ["ranges"]

_FLOATS = (DType.FLOAT, DType.FLOAT16, DType.DOUBLE, DType.BFLOAT16)


def ranges(
    model: str | os.PathLike[str] | Model,
    *,
    input_range: Sequence[str] = (),
    data: Any = None,
    progress: Progress | None = None,
) -> RangesReport:
    """For every float value: the range declared for it, the one proved from constants, operators and declarations, and
    with ``data`` (whatever ``calibration=`` takes) the one that samples show. Bodies are included where the runtime
    lets their values out.

    ``input_range``: ``NAME=LO:HI`` for inputs. Raises OptionError for a declaration that fits no input, DataError for
    data that does not fit.
    """
    source = (load(model) if not isinstance(model, Model) else model).clone()
    declared = parse_input_ranges(input_range)
    AnalyzeRanges(input_range=tuple(input_range)).run(source, PassContext())
    values = [value for graph in source.graphs() for value in graph.values() if _counts(value)]
    seen: dict[Value, Interval] = {}
    samples, name = 0, None
    if data is not None:
        opened = open_data(data, input_specs(source))
        found: dict[Value, MinMax] = collect(source, values, opened, progress=progress or NoProgress())
        seen = {value: statistic.interval for value, statistic in found.items()}
        samples, name = opened.count or 0, opened.name
    rows = [
        RangeRow(
            value=value.name,
            op=value.producer.op if value.producer is not None else "input",
            node=value.producer.label if value.producer is not None else "",
            declared=declared.get(value.name) if value.is_input else None,
            proved=value.range,
            seen=seen.get(value),
        )
        for value in values
    ]
    title = source.graph.name or "model" if isinstance(model, Model) else os.fspath(model)
    return RangesReport(title, name, samples, rows)


def _counts(value: Value) -> bool:
    return bool(value.name) and value.dtype in _FLOATS and not value.is_constant
