"""Task metrics against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from qir.errors import DataError, OptionError
from qir.validation.metrics import Comparison
from qir.validation.tasks import Metric, UserFunction, drop_points, open_metric


def score(metric: str | UserFunction, rows: list[list[float]], labels: list[Any]) -> float:
    return scored(open_metric(metric), rows, labels)


def scored(metric: Metric, rows: list[list[float]], labels: list[Any]) -> float:
    found = metric.start()
    for row, label in zip(rows, labels, strict=True):
        found.add({"y": np.asarray([row], np.float32)}, np.asarray(label))
    return found.value


ROWS = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.1, 0.7], [0.6, 0.3, 0.1]]
LABELS = [1, 0, 1, 0]  # guessed: 1, 0, 2, 0


def test_classes() -> None:
    assert score("accuracy", ROWS, LABELS) == 0.75
    assert score("recall", ROWS, LABELS) == pytest.approx((1 + 0.5 + 0) / 3)
    assert score("precision", ROWS, LABELS) == pytest.approx((1 + 1 + 0) / 3)
    assert score("f1", ROWS, LABELS) == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_labels_below_zero_do_not_count() -> None:
    assert score("accuracy", ROWS, [1, 0, -1, 0]) == 1.0


def test_top5_takes_the_five_best() -> None:
    row = [float(i) for i in range(8)]
    assert score("top5", [row, row], [3, 2]) == 0.5


def test_rmse_and_that_less_is_better() -> None:
    metric = open_metric("rmse")
    assert scored(metric, [[1.0, 2.0], [3.0, 5.0]], [[1, 2], [3, 3]]) == 1.0
    assert metric.less_is_better
    assert drop_points(metric, 1.0, 1.1) == pytest.approx(10)
    assert drop_points(open_metric("f1"), 0.8, 0.75) == pytest.approx(5)


def test_a_users_function_sees_everything_once() -> None:
    calls = []

    def mean_first(outputs: list[dict[str, Any]], labels: list[np.ndarray]) -> float:
        calls.append(len(outputs))
        return float(np.mean([out["y"][0, 0] for out in outputs]) + labels[0][0])

    assert score(mean_first, ROWS, [[2], [0], [0], [0]]) == pytest.approx(2.35)
    assert calls == [4]

    def fails(outputs: list[dict[str, Any]], labels: list[np.ndarray]) -> float:
        raise KeyError("boxes")

    with pytest.raises(OptionError, match="metric 'fails' fails with KeyError"):
        score(fails, ROWS, LABELS)


def test_labels_that_fit_no_output() -> None:
    with pytest.raises(DataError, match="no output makes 2 predictions a sample"):
        score("accuracy", ROWS, [[1, 2]] * 4)
    with pytest.raises(DataError, match="no output has 1 numbers a sample"):
        score("rmse", ROWS, LABELS)


def test_the_drop_is_of_the_metric_else_of_accuracy_else_of_agreement() -> None:
    def comparison(metric: str | None, labels: bool) -> Comparison:
        made = Comparison(["y"], None if metric is None else open_metric(metric))
        for row, label in zip(ROWS, LABELS, strict=True):
            wrong = [row[1], row[0], row[2]] if label == 1 else row
            sample = [np.asarray([one], np.float32) for one in (row, wrong)]
            made.add({"y": sample[0]}, {"y": sample[1]}, np.asarray([label]) if labels else None)
        return made

    assert comparison(None, labels=True).drop == pytest.approx(25)
    assert comparison(None, labels=False).drop == pytest.approx(25)
    expected = 100 * (
        math.fsum([1, 2 / 3, 0]) / 3
        - score("f1", [r if t == 0 else [r[1], r[0], r[2]] for r, t in zip(ROWS, LABELS, strict=True)], LABELS)
    )
    assert comparison("f1", labels=True).drop == pytest.approx(expected)
    assert comparison("f1", labels=True).as_dict()["metric"]["name"] == "f1"
