"""rescue: values that integers ruin become float until the output is usable."""

from __future__ import annotations

import numpy as np
import pytest

from qir.errors import DataError
from qir.ir import Model, Tensor
from qir.passes.accuracy.rescue import Rescue
from qir.pipeline import Pipeline
from tests.passes.int8 import QUANTIZE, Feed, annotated, emit, feeds, kernels, model


def outliers() -> tuple[Model, list[Feed]]:
    """Two matrix products; the second reads a value with one huge column that its weight does not use."""
    used = np.random.default_rng(3).normal(size=(8, 5)).astype(np.float32)
    used[7] = 0
    source = model(
        """graph g(%x: f32[4,8]) -> (%y) {
          @w: f32[8,8] #01
          @gain: f32[8] = [1, 1, 1, 1, 1, 1, 1, 100000]
          @used: f32[8,5] #02
          %a = MatMul(%x, @w)
          %s = Mul(%a, @gain)
          %y = MatMul(%s, @used)
        }""",
        {"used": Tensor.of(used)},
    )
    return source, feeds(source)


def test_values_become_float_until_the_output_is_usable() -> None:
    source, samples = outliers()
    plain = annotated(source, samples).model
    assert kernels(plain) == ["MatMul", "MatMul"]
    assert emit(source, samples, f"{QUANTIZE},emit-qdq").on < 10
    rescued = emit(source, samples, f"{QUANTIZE},rescue,emit-qdq")
    assert rescued.on > 10
    remarks = [remark for remark in rescued.result.remarks if remark.pass_name == "rescue"]
    assert remarks and all("as integers and the output only" in remark.message for remark in remarks)
    assert "'s' has" in " ".join(remark.message for remark in remarks)


def test_a_good_model_is_left_alone() -> None:
    source = model("graph g(%x: f32[4,8]) -> (%y) {\n@w: f32[8,8] #01\n%y = MatMul(%x, @w)\n}")
    result = Pipeline([Rescue()]).run(annotated(source).model, calibration=feeds(source))
    assert not result.changed and kernels(result.model) == ["MatMul"]
    assert result.passes[0].statistics["sqnr_db"] > 20


def test_the_threshold_is_an_option_and_all_may_become_float() -> None:
    source = model("graph g(%x: f32[4,8]) -> (%y) {\n@w: f32[8,8] #01\n%y = MatMul(%x, @w)\n}")
    result = Pipeline([Rescue(min_sqnr=200)]).run(annotated(source).model, calibration=feeds(source))
    assert kernels(result.model) == [] and result.passes[0].statistics["sqnr_db"] > 200


def test_it_needs_samples_only_where_there_is_something_to_measure() -> None:
    source = model("graph g(%x: f32[4,8]) -> (%y) {\n@w: f32[8,8] #01\n%y = MatMul(%x, @w)\n}")
    with pytest.raises(DataError, match="no calibration data to measure on"):
        Pipeline([Rescue()]).run(annotated(source).model)
    assert not Pipeline([Rescue()]).run(source).changed
