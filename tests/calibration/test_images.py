"""Folders of images: every key of the preprocessing line against numbers worked out by hand, labels, and mistakes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from qir.calibration.data import open_data
from qir.calibration.images import Images
from qir.errors import DataError, OptionError, UnsupportedError
from qir.runtime.specs import InputSpec

Image = pytest.importorskip("PIL.Image")

SPEC = InputSpec("image", np.dtype(np.float32), ("N", 3, None, None))


def picture(path: Path, height: int = 4, width: int = 6, colour: tuple[int, int, int] | None = None) -> np.ndarray:
    """Writes an image whose pixels are all different (or of one colour); returns them (height, width, 3)."""
    pixels = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    if colour is not None:
        pixels[:] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def first(folder: Path, line: str, spec: InputSpec = SPEC) -> np.ndarray:
    feed = next(iter(open_data(folder, [spec], images=Images.parse(line))))
    array: np.ndarray = feed[spec.name]
    return array


def test_scale_mean_std_and_layout(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png")
    got = first(tmp_path, "scale=1/255 mean=0.5,0.25,0 std=0.5,1,2 layout=NCHW")
    wanted = (pixels / 255 - [0.5, 0.25, 0]) / [0.5, 1, 2]
    assert got.shape == (1, 3, 4, 6) and got.dtype == np.float32
    np.testing.assert_allclose(got[0], wanted.transpose(2, 0, 1), atol=1e-6)
    flat = InputSpec("image", np.dtype(np.float32), (1, 4, 6, 3))
    np.testing.assert_array_equal(first(tmp_path, "layout=NHWC", flat)[0], pixels)


def test_bgr_turns_the_channels_around_and_gray_is_one(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png")
    np.testing.assert_array_equal(first(tmp_path, "color=bgr")[0, 0], pixels[:, :, 2])
    gray = InputSpec("image", np.dtype(np.float32), (1, 1, 4, 6))
    assert first(tmp_path, "color=gray", gray).shape == (1, 1, 4, 6)


def test_the_shorter_side_is_resized_and_the_centre_cut_out(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png")
    assert first(tmp_path, "resize=8").shape == (1, 3, 8, 12)
    assert first(tmp_path, "resize=8x2").shape == (1, 3, 8, 2)
    np.testing.assert_array_equal(first(tmp_path, "crop=2")[0], pixels[1:3, 2:4].transpose(2, 0, 1))
    assert first(tmp_path, "resize=8 crop=4x6 interpolation=bicubic").shape == (1, 3, 4, 6)
    smooth, sharp = (first(tmp_path, f"resize=8 interpolation={how}") for how in ("bilinear", "nearest"))
    assert not np.array_equal(smooth, sharp)


def test_letterbox_fits_the_image_in_and_fills_the_rest(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 4, 8, (200, 200, 200))
    got = first(tmp_path, "resize=8 pad=letterbox fill=7")[0, 0]
    assert got.shape == (8, 8)
    assert (got[2:6] == 200).all() and (got[:2] == 7).all() and (got[6:] == 7).all()


def test_an_integer_input_gets_whole_numbers(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png")
    spec = InputSpec("image", np.dtype(np.uint8), (1, 3, 4, 6))
    got = first(tmp_path, "layout=NCHW", spec)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got[0], pixels.transpose(2, 0, 1))


def test_folders_are_labels_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/2.png", "cat/1.png"):
        picture(tmp_path / name)
    source = open_data(tmp_path, [SPEC], images=Images.parse("scale=1", "folders"))
    assert source.count == 3 and source.labels is not None
    assert [int(label) for label in source.labels] == [0, 0, 1]
    assert len(list(source)) == len(list(source)) == 3  # it can be walked over again


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rezise=3", "'rezise=3' (did you mean 'resize'"),
        ("resize", "write KEY=VALUE"),
        ("resize=big", "resize=big is no size, 256 or 256x192"),
        ("resize=0", "is no size"),
        ("crop=1x2x3", "is no size"),
        ("scale=1/0", "is no number"),
        ("scale=1,2", "is no single number"),
        ("mean=a", "is no number"),
        ("std=0", "divides by zero"),
        ("layout=NCWH", "(did you mean 'NCHW'"),
        ("color=rbg", "use rgb or bgr or gray"),
        ("pad=letterbox", "needs resize="),
    ],
)
def test_a_line_that_is_wrong(line: str, expected: str) -> None:
    with pytest.raises(OptionError) as caught:
        Images.parse(line)
    assert expected in str(caught.value)


def test_images_that_do_not_fit(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"becomes \[1, 3, 4, 6\], input 'image' wants \[N, 4, \?, \?\]"):
        first(tmp_path, "scale=1", InputSpec("image", np.dtype(np.float32), ("N", 4, None, None)))
    with pytest.raises(OptionError, match="mean has 2 numbers, the images 3 channels"):
        first(tmp_path, "mean=1,2")
    with pytest.raises(DataError, match="need a preprocessing line"):
        open_data(tmp_path, [SPEC])
    with pytest.raises(DataError, match="no sub-folder"):
        open_data(tmp_path, [SPEC], images=Images.parse("scale=1", "folders"))
    with pytest.raises(DataError, match="images for a model of 2 inputs"):
        open_data(tmp_path, [SPEC, SPEC], images=Images.parse("scale=1"))
    (tmp_path / "a.png").write_bytes(b"\x89PNG no image")
    with pytest.raises(DataError, match="cannot be read as an image"):
        first(tmp_path, "scale=1")


def test_without_pillow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'qir\[images\]'"):
        first(tmp_path, "scale=1")
