"""tools/bench/int8_ablation.py: each row is a pipeline that parses, with its own passes and no others."""

from __future__ import annotations

import pytest

from qir.pipeline import Pipeline
from tools.bench.int8_ablation import ROWS, pipeline_of


@pytest.mark.parametrize("row", ROWS)
def test_each_row_is_a_pipeline(row: str) -> None:
    names = [one.name for one in Pipeline.parse(pipeline_of(*ROWS[row])).passes]
    assert names[-1] == "emit-qdq" and names.count("calibrate") == 1
    assert ("correct-bias" in names) == ROWS[row][2].startswith("correct")
    assert ("tune" in names) == ("tune" in row or "default" in row)
    assert names.count("partition") == (0 if "without" in row else 2 if "mixed-precision" in names else 1)
