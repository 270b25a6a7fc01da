"""Where samples may come from, what a feed is checked for, and the split that keeps some out."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from qir.calibration.data import DataSource, DataWarning, hold_out, open_data, spread
from qir.calibration.feeds import family, fit
from qir.calibration.pb import find_sets, read_set, write_set
from qir.errors import DataError
from qir.runtime.specs import DTYPES, InputSpec

SPEC = InputSpec("x", np.dtype(np.float32), (1, 2))


def feeds(count: int) -> list[dict[str, np.ndarray]]:
    return [{"x": np.full((1, 2), i, np.float32)} for i in range(count)]


def seen(data: DataSource) -> list[float]:
    return [float(feed["x"][0, 0]) for feed in data]


class Reader:
    """What onnxruntime calls a CalibrationDataReader."""

    def __init__(self, count: int) -> None:
        self._left = iter(feeds(count))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def generator() -> Iterator[dict[str, np.ndarray]]:
    yield from feeds(3)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        (feeds(3), 3),
        (tuple(feeds(3)), 3),
        (generator, None),
        (generator(), None),
        (Reader(3), None),
        (map(dict, feeds(3)), None),
    ],
    ids=["list", "tuple", "function", "generator", "CalibrationDataReader", "map"],
)
def test_python_sources_can_be_walked_over_again(source: object, count: int | None) -> None:
    data = open_data(source, [SPEC])
    assert data.count == count
    if count is None:
        with pytest.raises(TypeError, match="not known before"):
            len(data)
    assert seen(data) == seen(data) == [0, 1, 2]
    if count is None:
        assert len(data) == 3 and len(data.take(2)) == 2


def test_a_one_shot_source_survives_a_walk_that_stopped_early() -> None:
    data = open_data(generator(), [SPEC])
    first = iter(data)
    next(first)
    second = iter(data)
    assert [float(next(second)["x"][0, 0]) for _ in range(2)] == [0, 1]
    assert float(next(first)["x"][0, 0]) == 1
    assert seen(data) == [0, 1, 2]


def test_the_spool_keeps_strings_lists_and_ml_dtypes() -> None:
    specs = [
        InputSpec("t", np.dtype(object), ("N",)),
        InputSpec("s", None, None, "sequence"),
        InputSpec("b", np.dtype(ml_dtypes.bfloat16), ("N",)),
    ]
    feed = {"t": np.array(["a", "été"], object), "s": [np.ones(2), np.zeros(3)], "b": np.ones(2, ml_dtypes.bfloat16)}
    data = open_data(iter([feed]), specs)
    for _ in range(2):
        (got,) = data
        assert got["t"].tolist() == ["a", "été"] and got["t"].dtype == object
        assert [part.shape for part in got["s"]] == [(2,), (3,)]
        assert got["b"].dtype == ml_dtypes.bfloat16 and got["b"].tolist() == [1, 1]


def test_an_array_is_enough_for_a_model_of_one_input() -> None:
    assert seen(open_data(np.array([[3, 3], [4, 4]], np.float32), [SPEC])) == [3, 4]
    with pytest.raises(DataError, match="one array for a model of 2 inputs"):
        open_data(np.zeros((2, 2)), [SPEC, SPEC])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (3, "a int is no sample data"),
        (lambda: 3, "returned a int, not an iterable"),
        (
            [np.zeros((1, 2))],
            "the data, sample 0: is a ndarray; a sample is a dict of input name -> array with the keys 'x'",
        ),
        (iter([np.zeros((1, 2))]), "sample 0: is a ndarray"),
        (iter([{"x": object()}]), "sample 0: 'x' is no array of numbers or strings"),
        ([{"x": [[1.0], [1.0, 2.0]]}], "input 'x' is no array"),
        ("/nowhere/s.npz", "/nowhere/s.npz: no such file or folder"),
    ],
)
def test_what_is_no_data_says_what_would_be(source: object, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        list(open_data(source, [SPEC]))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_archive_say_how_to_make_one(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(2))
    (tmp_path / "x.npz").write_bytes(b"not a zip")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name, words in (
        ("x.npy", r"savez\(file, \*\*\{'x'"),
        ("x.npz", "is no .npz archive"),
        ("empty.npz", "is no .npz"),
    ):
        with pytest.raises(DataError, match=words):
            open_data(tmp_path / name, [SPEC])


def test_a_folder_of_archives_is_taken_in_name_order(tmp_path: Path) -> None:
    for name, value in (("b", 2), ("a", 1)):
        np.savez(tmp_path / f"{name}.npz", x=np.full((2, 2), value, np.float32), labels=np.full(2, value))
    data = open_data(tmp_path, [SPEC])
    assert seen(data) == [1, 1, 2, 2] and len(data) == 4
    assert [int(label) for label in data.labels or []] == [1, 1, 2, 2]
    np.savez(tmp_path / "c.npz", x=np.zeros((2, 2), np.float32))
    with pytest.raises(DataError, match="2 of 3 archives have labels"):
        open_data(tmp_path, [SPEC])


def test_an_empty_folder_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds neither test_data_set_N folders nor .npz"):
        open_data(tmp_path, [SPEC])


def test_test_data_sets_go_by_number_and_by_the_name_inside(tmp_path: Path) -> None:
    specs = [SPEC, InputSpec("h", np.dtype(np.float32), (1,))]
    for index in (0, 2, 10):
        h, x = np.full(1, index, np.float32), np.full((1, 2), index, np.float32)
        write_set(tmp_path / f"test_data_set_{index}", "input", {"h": h, "x": x})
    data = open_data(tmp_path, specs)
    assert len(data) == 3 and seen(data) == [0, 2, 10]
    assert seen(open_data(tmp_path / "test_data_set_2", specs)) == [2]


def test_a_tensor_without_a_name_goes_by_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "test_data_set_0"
    write_set(folder, "input", {"": np.zeros((1, 2), np.float32)})
    assert list(read_set(folder, "input", [SPEC])) == ["x"]


def test_sequences_and_optionals_pass_through_test_data_sets(tmp_path: Path) -> None:
    specs = [InputSpec("s", None, None, "sequence"), SPEC]
    values = {"s": [np.ones(2, np.float32), np.zeros(3, np.float32)], "x": np.zeros((1, 2), np.float32)}
    write_set(tmp_path / "test_data_set_0", "input", values)
    got = read_set(tmp_path / "test_data_set_0", "input", specs)
    assert [part.tolist() for part in got["s"]] == [[1, 1], [0, 0, 0]]


def test_hostile_or_damaged_tensors_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "test_data_set_0"
    write_set(folder, "input", {"x": np.zeros((1, 2), np.float32)})
    tensor = numpy_helper.from_array(np.zeros((1, 2), np.float32), "x")
    outside, short = onnx.TensorProto(), onnx.TensorProto()
    outside.CopyFrom(tensor)
    outside.data_location = onnx.TensorProto.EXTERNAL
    short.CopyFrom(tensor)
    short.raw_data = b"123"
    cases = (
        (outside.SerializeToString(), "another file"),
        (b"\xff\xff", "is no TensorProto"),
        (short.SerializeToString(), "does not hold"),
    )
    for raw, words in cases:
        (folder / "input_0.pb").write_bytes(raw)
        with pytest.raises(DataError, match=words):
            list(open_data(tmp_path, [SPEC]))
    assert find_sets(tmp_path) == [folder]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.array([1.5, 2]), np.float32),
        (np.array([1.5, 2], np.float32), np.float16),
        (np.array([1.5, 2], np.float16), ml_dtypes.bfloat16),
        (np.array([1, 2], np.int32), np.int64),
        (np.array([1, 2], np.int64), np.int32),
        (np.array([1, -2], np.int64), ml_dtypes.int4),
        (np.array([1, 2], ml_dtypes.uint4), np.uint8),
        (np.array(["a", "b"]), np.object_),
        (np.array([b"a", b"b"]), np.object_),
        (np.array([1.5, 2], ">f4"), np.float32),
        ([1.5, 2.0], np.float32),
    ],
)
def test_casts_that_lose_nothing_that_matters_are_made(value: Any, dtype: Any) -> None:
    got = fit(value, InputSpec("x", np.dtype(dtype), (2,)), "s")
    assert got.dtype == np.dtype(dtype) and got.dtype.isnative
    if np.dtype(dtype) == np.object_:
        assert got.tolist() == ["a", "b"]
    else:
        np.testing.assert_array_equal(got.astype(np.float64), np.asarray(value).astype(np.float64))


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (np.array([1, 2], np.uint8), np.float32, "is uint8, the model wants float32"),
        (np.array([1.0, 2.0]), np.int64, "is float64, the model wants int64"),
        (np.array([1, 300]), np.uint8, "int64 numbers that uint8 cannot hold"),
        (np.array([1, -1]), np.uint64, "int64 numbers that uint64 cannot hold"),
        (np.array([1, 1e300]), np.float32, "float64 numbers that float32 cannot hold"),
        (np.array([1, 70000.0]), np.float16, "float64 numbers that float16 cannot hold"),
        (np.array([1, 2]), np.object_, "is int64, the model wants strings"),
        (np.array([1, np.nan], ml_dtypes.bfloat16), ml_dtypes.bfloat16, "holds NaN"),
        (np.array([True, False]), np.int64, "is bool, the model wants int64"),
    ],
)
def test_other_element_types_are_refused_by_name(value: np.ndarray, dtype: Any, words: str) -> None:
    with pytest.raises(DataError, match=f"^s: input 'x'.*{words}"):
        fit(value, InputSpec("x", np.dtype(dtype), (2,)), "s")


def test_one_number_in_an_axis_of_its_own_is_a_scalar() -> None:
    spec = InputSpec("sr", np.dtype(np.int64), ())
    assert [feed["sr"].shape for feed in open_data([{"sr": np.array([16000])}, {"sr": 16000}], [spec])] == [(), ()]
    with pytest.raises(DataError, match=r"has shape \[2\], the model wants \[\]"):
        list(open_data([{"sr": np.array([1, 2])}], [spec]))


def test_every_onnx_element_type_has_a_family() -> None:
    assert {family(dtype) for dtype in DTYPES.values()} == {"float", "int", "bool", "string", "complex"}


def test_an_extra_key_warns_once_a_missing_one_fails() -> None:
    extra = [{**feed, "y": np.zeros(1)} for feed in feeds(3)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(list(open_data(extra, [SPEC]))) == 3
    assert [str(w.message) for w in caught] == ["the data, sample 0: 'y' is no input of the model and is ignored"]
    assert caught[0].category is DataWarning
    with pytest.raises(
        DataError, match=r"sample 1: no data for input x: float32\[1, 2\]; the keys are 'X' \(did you mean 'X'\?\)"
    ):
        list(open_data([feeds(1)[0], {"X": np.zeros((1, 2))}], [SPEC]))


@given(st.integers(0, 60))
def test_every_eighth_of_sixteen_or_more_is_kept_out(count: int) -> None:
    data = open_data(feeds(count), [SPEC])
    inside, outside = hold_out(data)
    if count < 16:
        assert inside is data and outside is None
        return
    assert outside is not None
    assert seen(outside) == list(range(7, count, 8))
    assert sorted(seen(inside) + seen(outside)) == list(range(count))
    assert len(inside) + len(outside) == count


def test_a_split_of_unknown_length_counts_and_keeps_labels_aligned() -> None:
    inside, outside = hold_out(open_data(iter(feeds(17)), [SPEC]))
    assert outside is not None and seen(outside) == [7, 15] and len(seen(inside)) == 15
    assert len(outside) == 2 and len(inside) == 15
    stacked = {"x": np.repeat(np.arange(16, dtype=np.float32)[:, None], 2, 1), "labels": np.arange(16)}
    inside, outside = hold_out(open_data(stacked, [SPEC]))
    assert outside is not None and [int(label) for label in outside.labels or []] == [7, 15]
    assert [int(label) for label in inside.labels or []] == seen(inside)


def test_errors_in_a_subset_name_the_place_in_the_full_source() -> None:
    bad = feeds(16)
    bad[15]["x"][0, 0] = np.nan
    _, outside = hold_out(open_data(bad, [SPEC]))
    assert outside is not None
    with pytest.raises(DataError, match="sample 15"):
        list(outside)


def test_spread_feeds_of_a_source_of_unknown_length_are_all_that_is_held() -> None:
    alive: set[int] = set()
    most = 0

    def source() -> Iterator[dict[str, np.ndarray]]:
        nonlocal most
        for feed in range(60):
            array = np.full((1, 2), feed, np.float32)
            alive.add(feed)
            weakref.finalize(array, alive.discard, feed)
            most = max(most, len(alive))
            yield {"x": array}
            del array

    found = spread(open_data(source, [SPEC]), 4)
    assert [float(feed["x"][0, 0]) for feed in found] == [0, 20, 39, 59]
    assert most <= 4 + 3


def test_taking_the_first_few_reads_no_further() -> None:
    drawn: list[int] = []

    def endless() -> Iterator[dict[str, np.ndarray]]:
        for feed in feeds(1000):
            drawn.append(1)
            yield feed

    assert seen(open_data(endless, [SPEC]).take(2)) == [0, 1] and len(drawn) == 2
    labelled = open_data({"x": np.zeros((5, 2), np.float32), "labels": np.arange(5)}, [SPEC]).take(2)
    assert len(labelled) == 2 and [int(label) for label in labelled.labels or []] == [0, 1]
