"""The `.npz` convention, for archives and for arrays in memory: how rows become feeds, and what is refused."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qir.calibration.data import DataSource, DataWarning, open_data
from qir.calibration.npz import read_npz
from qir.errors import DataError
from qir.runtime.specs import InputSpec

pytestmark = pytest.mark.filterwarnings("error")

F32 = np.dtype(np.float32)
IMAGE = InputSpec("x", F32, ("N", 3, 4))


def save(path: Path, arrays: dict[str, np.ndarray], compressed: bool = False) -> Path:
    """Like np.savez, but keys may be any text and Fortran order stays."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=array.dtype.hasobject)
    return path


def numbers(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)


@st.composite
def stacked(draw: st.DrawFn) -> tuple[InputSpec, np.ndarray, list[np.ndarray]]:
    """(spec, stacked array, the feeds that it must give)."""
    form = draw(st.sampled_from(["own axis", "batch axis", "scalar", "scalar column"]))
    count = draw(st.integers(1, 5))
    rest = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    batch = draw(st.one_of(st.integers(1, 3), st.just("N"), st.none()))
    dtype = draw(st.sampled_from([np.float32, np.int64, np.uint8, np.bool_]))
    if form.startswith("scalar"):
        array = numbers((count,) if form == "scalar" else (count, 1), dtype)
        return InputSpec("x", array.dtype, ()), array, [array[i].reshape(()) for i in range(count)]
    rows = batch if isinstance(batch, int) else 1
    if form == "own axis":
        array = numbers((count, rows, *rest), dtype)
        feeds = list(array)
    else:
        array = numbers((count * rows, *rest), dtype)
        feeds = [array[i * rows : (i + 1) * rows] for i in range(count)]
    return InputSpec("x", array.dtype, (batch, *rest)), array, feeds


@settings(max_examples=150)
@given(stacked(), st.booleans(), st.booleans())
def test_archive_and_memory_give_the_feeds_of_the_convention(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[InputSpec, np.ndarray, list[np.ndarray]],
    compressed: bool,
    fortran: bool,
) -> None:
    spec, array, expected = case
    path = save(
        tmp_path_factory.mktemp("npz") / "s.npz", {"x": np.asfortranarray(array) if fortran else array}, compressed
    )
    for source in (path, {"x": array}):
        data = open_data(source, [spec])
        assert len(data) == len(expected)
        for _ in range(2):  # may be walked over again
            feeds = list(data)
            assert len(feeds) == len(expected)
            for feed, want in zip(feeds, expected, strict=True):
                assert feed["x"].dtype == want.dtype and feed["x"].shape == want.shape
                np.testing.assert_array_equal(feed["x"], want)


def test_numpys_own_archives_are_read(tmp_path: Path) -> None:
    x, y = numbers((5, 1, 3, 4)), numbers((5,), np.int64)
    specs = [IMAGE, InputSpec("step", np.dtype(np.int64), ())]
    np.savez(tmp_path / "a.npz", x=x, step=y)
    np.savez_compressed(tmp_path / "b.npz", x=x, step=y)
    for name in ("a.npz", "b.npz"):
        feeds = list(open_data(str(tmp_path / name), specs))
        np.testing.assert_array_equal(np.stack([feed["x"] for feed in feeds]), x)
        assert [int(feed["step"]) for feed in feeds] == [0, 1, 2, 3, 4]


def test_rows_stream_and_the_rest_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "s.npz", {"x": numbers((64, 1, 3, 4))})
    read: list[int] = []
    plain = zipfile.ZipExtFile.read

    def counting(self: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
        data = plain(self, n)
        read.append(len(data))
        return data

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counting)
    feeds = iter(open_data(tmp_path / "s.npz", [IMAGE]))
    next(feeds), next(feeds)
    assert max(read) <= 128 and sum(read) < 64 * 48 / 4


def test_one_row_is_repeated_where_others_have_many() -> None:
    data = open_data({"x": numbers((3, 1, 3, 4)), "h": numbers((1, 2))}, [IMAGE, InputSpec("h", F32, (1, 2))])
    feeds = list(data)
    assert len(feeds) == 3 and all((feed["h"] == numbers((1, 2))).all() for feed in feeds)


def test_ragged_samples_go_by_number_not_by_order_in_the_file(tmp_path: Path) -> None:
    spec = InputSpec("ids", np.dtype(np.int64), (1, "T"))
    arrays = {f"ids/{i:06d}": numbers((1, i + 1), np.int64) for i in (10, 2, 0)}
    data = open_data(save(tmp_path / "r.npz", arrays), [spec])
    assert [feed["ids"].shape for feed in data] == [(1, 1), (1, 3), (1, 11)]


def test_an_input_whose_own_name_looks_ragged_is_plain() -> None:
    spec = InputSpec("serving/0", F32, ("N", 2))
    assert len(open_data({"serving/0": numbers((4, 2))}, [spec])) == 4


def test_rows_that_fill_no_batch_are_left_out_with_a_warning() -> None:
    with pytest.warns(DataWarning, match="last 2 of 10 rows of 'x' do not fill the model's batch of 4"):
        data = open_data({"x": numbers((10, 3)), "labels": numbers((10,))}, [InputSpec("x", F32, (4, 3))])
    assert len(data) == 2
    assert [label.tolist() for label in data.labels or []] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_labels_are_reserved_and_aligned() -> None:
    data = open_data({"x": numbers((3, 3, 4)), "labels": np.array([7, 8, 9])}, [IMAGE])
    assert [int(label) for label in data.labels or []] == [7, 8, 9]
    assert open_data({"x": numbers((3, 3, 4))}, [IMAGE]).labels is None
    ragged = {"x": numbers((2, 3, 4)), "labels/000000": np.zeros(4), "labels/000001": np.zeros(5)}
    assert [label.shape for label in open_data(ragged, [IMAGE]).labels or []] == [(4,), (5,)]
    own = InputSpec("labels", F32, ("N",))
    assert open_data({"labels": numbers((3,))}, [own]).labels is None


def test_unknown_keys_are_a_warning_with_the_nearest_name() -> None:
    with pytest.warns(
        DataWarning, match=r"'images' is no input of the model and is ignored \(did you mean 'image'\?\)"
    ):
        open_data({"image": numbers((2, 3)), "images": numbers((2, 3))}, [InputSpec("image", F32, ("N", 3))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_data({"x": numbers((2, 3, 4)), "y": numbers((2,))}, [IMAGE], ignore={"y"})


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"img": numbers((2, 3, 4))}, r"no data for input x: float32\[N, 3, 4\]; the keys are 'img'"),
        ({"x": numbers((2, 3, 5))}, r"each sample: input 'x' has shape \[1, 3, 5\], the model wants \[N, 3, 4\]"),
        (
            {"x": numbers((3,))},
            r"'x' has shape \[3\]; input x: float32\[N, 3, 4\] takes the samples along a first axis",
        ),
        ({"x": np.float32(3)}, r"'x' is a single number"),
        ({"x": numbers((2, 3, 4), np.uint8)}, "'x' is uint8, the model wants float32"),
        ({"x": numbers((0, 3, 4))}, "'x' holds no samples"),
        ({"x": numbers((4, 3, 4)), "labels": np.zeros(3)}, "3 labels for 4 samples"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(arrays: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        open_data(arrays, [IMAGE])
    assert "\n" not in str(caught.value)


def test_inputs_with_different_counts_are_refused() -> None:
    specs = [IMAGE, InputSpec("h", F32, (1, 2))]
    with pytest.raises(DataError, match="differ in their number of samples: 'x' has 3, 'h' has 2"):
        open_data({"x": numbers((3, 3, 4)), "h": numbers((2, 1, 2))}, specs)
    with pytest.raises(DataError, match="'x' has 3 rows, the model's fixed batch takes 4"):
        open_data({"x": numbers((3, 2))}, [InputSpec("x", F32, (4, 2))])


def test_nan_names_the_sample_and_the_input() -> None:
    x = numbers((5, 3, 4))
    x[3, 1, 2] = np.nan
    with pytest.raises(DataError, match=r"the data, sample 3: input 'x' holds NaN \(1 of 12"):
        list(open_data({"x": x}, [IMAGE]))
    x[3, 1, 2] = -np.inf
    with pytest.raises(DataError, match="sample 3: input 'x' holds infinity"):
        list(open_data({"x": x}, [IMAGE]))


def test_an_object_array_is_refused_and_the_ragged_keys_proposed(tmp_path: Path) -> None:
    path = save(tmp_path / "o.npz", {"x": np.array([np.zeros(2), np.zeros(3)], object)})
    with pytest.raises(DataError, match=r"object array, which is never loaded.*'x/000000'"):
        open_data(path, [IMAGE])


def test_bfloat16_and_packed_types_come_back_from_an_archive(tmp_path: Path) -> None:
    for scalar in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
        array = numbers((3, 2)).astype(scalar)
        np.savez(tmp_path / "b.npz", x=array)
        feeds = list(open_data(tmp_path / "b.npz", [InputSpec("x", array.dtype, ("N", 2))]))
        np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), array)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_archive_is_one_clear_error(tmp_path: Path, compressed: bool) -> None:
    path = save(tmp_path / "s.npz", {"x": np.random.default_rng(0).random((8, 3, 4), np.float32)}, compressed)
    good = path.read_bytes()
    failures = 0
    for cut in range(0, len(good), 37):
        path.write_bytes(good[:cut])
        with pytest.raises(DataError):
            list(open_data(path, [IMAGE]))
    for place in range(0, len(good), 11):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            list(open_data(path, [IMAGE]))
        except DataError as error:
            failures += 1
            assert "\n" not in str(error)
    assert failures > 20


def test_a_header_that_promises_more_than_is_there_reserves_no_memory(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3, 4), }"
    header += b" " * (64 - (10 + len(header) + 1) % 64) + b"\n"
    with zipfile.ZipFile(tmp_path / "h.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 48)
    with pytest.raises(DataError, match="its header promises 48000000000000 bytes, 48 are there"):
        read_npz(tmp_path / "h.npz")


@pytest.mark.parametrize(
    "fields",
    [
        "'descr': '<f4', 'fortran_order': False, 'shape': (4, 3",
        "'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3)",
        "'descr': '<f4', 'fortran_order': True, 'shape': (True, 12)",
        "'descr': '<f4', 'fortran_order': 3, 'shape': (4, 3)",
        "'descr': 'zz', 'fortran_order': False, 'shape': (4, 3)",
        "'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4, 3)",
        "'descr': '<M8[s]', 'fortran_order': False, 'shape': (4, 3)",
        "'descr': '<f4', 'fortran_order': False, 'shape': (2**99,)",
    ],
)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_headers_that_lie_are_refused(tmp_path: Path, fields: str, version: int) -> None:
    header = f"{{{fields}, }}\n".encode()
    size = len(header).to_bytes(2 if version == 1 else 4, "little")
    with zipfile.ZipFile(tmp_path / "h.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY" + bytes([version, 0]) + size + header + b"\0" * 48)
    with pytest.raises(DataError, match="'x'") as caught:
        list(open_data(tmp_path / "h.npz", [InputSpec("x", F32, ("N", 3))]))
    assert "\n" not in str(caught.value)


def test_a_model_without_inputs_has_one_empty_feed() -> None:
    data = open_data({}, [])
    assert isinstance(data, DataSource) and list(data) == [{}]
