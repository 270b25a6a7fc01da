"""Metrics against their definitions on whole arrays, and what must never be averaged away."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qir.errors import DataError
from qir.runtime.session import OrtRunner
from qir.validation.metrics import Classification, Comparison, OutputMetrics, compare, finite_db, sqnr_db
from tests.runtime.models import mlp

F32 = np.float32


def measured(*pairs: tuple[Any, Any]) -> OutputMetrics:
    metrics = OutputMetrics("y")
    for reference, result in pairs:
        metrics.add(reference, result)
    return metrics


samples = st.lists(
    st.tuples(st.integers(1, 3), st.integers(2, 4)).flatmap(
        lambda shape: st.tuples(*[hnp.arrays(np.float32, shape, elements=st.floats(-100, 100, width=32))] * 2)
    ),
    min_size=1,
    max_size=4,
)


@given(samples)
def test_pooled_metrics_follow_their_definitions(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    metrics = measured(*pairs)
    reference = np.concatenate([a.ravel() for a, _ in pairs]).astype(np.float64)
    result = np.concatenate([b.ravel() for _, b in pairs]).astype(np.float64)
    signal, noise = (reference**2).sum(), ((reference - result) ** 2).sum()
    if noise == 0:
        assert metrics.sqnr_db == math.inf
    elif signal == 0:
        assert metrics.sqnr_db == -math.inf
    else:
        assert metrics.sqnr_db == pytest.approx(10 * math.log10(signal / noise), abs=1e-6)
    assert metrics.max_abs == np.abs(reference - result).max()
    if signal and (result**2).sum():
        wanted = float(reference @ result) / math.sqrt(signal * (result**2).sum())
        assert metrics.cosine == pytest.approx(wanted, abs=1e-9)
    same = [int(x == y) for a, b in pairs for x, y in zip(a.argmax(-1), b.argmax(-1), strict=True)]
    assert metrics.agreement == pytest.approx(sum(same) / len(same))


@given(samples, st.integers(0, 4))
def test_merging_parts_is_adding_all(pairs: list[tuple[np.ndarray, np.ndarray]], cut: int) -> None:
    left, right, whole = measured(*pairs[:cut]), measured(*pairs[cut:]), measured(*pairs)
    left.merge(right)
    a, b = left.as_dict(), whole.as_dict()
    assert a.keys() == b.keys()
    assert all(a[key] == pytest.approx(b[key], rel=1e-6, abs=1e-3) for key in a if key != "name" and a[key] is not None)


def test_a_large_sample_counts_by_its_energy_not_as_one_of_many() -> None:
    quiet = (np.array([[1, 1]], F32), np.array([[1, 0]], F32))
    loud = (np.full((1, 2), 100, F32), np.full((1, 2), 100, F32))
    assert measured(quiet, loud).sqnr_db == pytest.approx(10 * math.log10(20002))
    assert sqnr_db([quiet[0], loud[0]], [quiet[1], loud[1]]) == measured(quiet, loud).sqnr_db
    with pytest.raises(ValueError, match="shorter"):
        sqnr_db([quiet[0], loud[0]], [quiet[1]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_result_that_is_no_number_is_infinitely_wrong(bad: float) -> None:
    metrics = measured(
        (np.ones((1, 100), F32), np.ones((1, 100), F32)), (np.ones((1, 2), F32), np.array([[1, bad]], F32))
    )
    assert metrics.nonfinite == 1 and metrics.sqnr_db == -math.inf
    assert metrics.max_abs == 0


def test_numbers_missing_from_the_reference_are_left_out_and_counted() -> None:
    metrics = measured((np.array([[2, -np.inf, np.nan]], F32), np.array([[1, -3e38, 0]], F32)))
    assert metrics.unusable == 2 and metrics.nonfinite == 0
    assert metrics.sqnr_db == pytest.approx(10 * math.log10(4))
    assert metrics.as_dict()["unusable"] == 2


def test_another_shape_is_counted_and_infinitely_wrong() -> None:
    metrics = measured((np.ones((1, 2), F32), np.ones((1, 3), F32)), (np.ones((1, 2), F32), np.ones((1, 2), F32)))
    assert metrics.shape_mismatches == 1 and metrics.samples == 2 and metrics.sqnr_db == -math.inf
    only = measured(([np.ones(2, F32)], [np.ones(2, F32), np.ones(2, F32)]))
    assert only.shape_mismatches == 1


def test_integers_and_strings_agree_by_element_and_have_no_sqnr() -> None:
    metrics = measured((np.array([1, 2, 3]), np.array([1, 2, 4])), (np.array(["a"], object), np.array(["b"], object)))
    assert metrics.agreement == 0.5 and math.isnan(metrics.sqnr_db)
    assert "sqnr_db" not in metrics.as_dict()


def test_sequences_maps_and_absent_optionals_count_by_their_parts() -> None:
    parts = [np.ones((1, 2), F32), np.ones(3, F32)]
    assert measured((parts, parts), (None, None)).sqnr_db == math.inf
    assert measured((None, parts)).shape_mismatches == 1
    assert measured(({"b": 1.0, "a": 2.0}, {"a": 2.0, "b": 1.0})).sqnr_db == math.inf
    assert measured(({"a": 1.0}, {"b": 1.0})).agreement == 0


def test_argmax_is_left_alone_where_the_last_axis_is_no_class_axis() -> None:
    image = np.ones((1, 21, 4, 4), F32)
    assert measured((image, image)).agreement is None
    assert measured((np.ones((5, 1), F32), np.ones((5, 1), F32))).agreement is None


def test_json_holds_no_infinity() -> None:
    text = json.dumps(measured((np.ones((1, 2), F32), np.ones((1, 2), F32))).as_dict(), allow_nan=False)
    assert json.loads(text)["sqnr_db"] == 999
    assert finite_db(-math.inf) == -999 and finite_db(math.nan) is None and finite_db(12.34567) == 12.346


def test_classification_scores_of_a_known_table() -> None:
    # label 0: 2 right, 1 taken for 1; label 1: 1 right; label 2: 1 taken for 0; one label that does not count
    scores = Classification()
    scores.add(np.array([0, 0, 0, 1, 2, -1]), np.array([0, 0, 1, 1, 0, 0]))
    assert scores.count == 5 and scores.accuracy == pytest.approx(3 / 5)
    assert scores.precision == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert scores.recall == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores.f1 == pytest.approx((4 / 6 + 2 / 3 + 0) / 3)
    assert math.isnan(Classification().accuracy) and math.isnan(Classification().f1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_scores_lie_between_their_bounds(pairs: list[tuple[int, int]]) -> None:
    scores = Classification()
    labels, guesses = np.array(pairs).T
    scores.add(labels, guesses)
    for value in (scores.accuracy, scores.precision, scores.recall, scores.f1):
        assert 0 <= value <= 1
    if (labels == guesses).all():
        assert scores.accuracy == scores.precision == scores.recall == scores.f1 == 1


def test_a_comparison_has_headline_minimum_and_task() -> None:
    comparison = Comparison(["ids", "logits", "aux"])
    for label in (0, 1):
        reference = {"ids": np.array([label]), "logits": np.eye(2, dtype=F32)[[label]], "aux": np.ones((1, 4), F32)}
        result = {"ids": np.array([0]), "logits": np.array([[1, 0.5]], F32), "aux": np.ones((1, 4), F32)}
        comparison.add(reference, result, np.array(label))
    assert comparison.samples == 2
    assert comparison.sqnr_db == comparison.sqnr_min_db == pytest.approx(comparison.outputs["logits"].sqnr_db)
    assert comparison.agreement == 0.5
    out = comparison.as_dict()
    assert out["task"]["output"] == "logits"
    assert out["task"]["reference"]["accuracy"] == 1 and out["task"]["result"]["accuracy"] == 0.5
    json.dumps(out, allow_nan=False)


def test_labels_that_fit_no_output_make_no_task() -> None:
    comparison = Comparison(["y"])
    comparison.add({"y": np.ones((1, 2), F32)}, {"y": np.ones((1, 2), F32)}, np.zeros((5, 4)))
    assert comparison.task_output is None and "task" not in comparison.as_dict()


def test_a_lost_output_is_named() -> None:
    with pytest.raises(DataError, match="no output 'y' to compare; it has z"):
        Comparison(["y"]).add({"y": np.ones(1)}, {"z": np.ones(1)})


def test_two_models_are_compared_over_feeds() -> None:
    a, b = OrtRunner(mlp().SerializeToString()), OrtRunner(mlp(seed=1).SerializeToString())
    feeds: list[Mapping[str, Any]] = [{"x": np.full((1, 8), i + 1, F32)} for i in range(3)]
    same = compare(a, a, feeds, [np.array(0)] * 3)
    assert same.sqnr_db == math.inf and same.samples == 3 and same.task.count == 3
    other = compare(a, b, feeds)
    assert other.sqnr_db < 20 and other.task_output is None


def test_another_number_of_selected_boxes_is_disagreement_and_no_loss_of_decibels() -> None:
    boxes, indices = F32([[1, 2], [3, 4]]), np.int64([[0, 0, 5], [0, 1, 7]])
    selected = measured((indices, indices), (indices, indices[:1]))
    assert math.isnan(selected.sqnr_db) and selected.shape_mismatches == 1
    assert selected.agreement == 0.5
    assert measured((boxes, boxes), (boxes, boxes[:1])).sqnr_db == -math.inf
