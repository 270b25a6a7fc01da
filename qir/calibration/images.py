"""A folder of images as feeds, with the preprocessing in one line.

    resize=256 crop=224 scale=1/255 mean=0.485,0.456,0.406 std=0.229,0.224,0.225 layout=NCHW

`resize=N` makes the shorter side N, `resize=HxW` exactly that; `pad=letterbox` makes the image fit into it instead and
fills the rest (`fill=114`); `crop` cuts the centre out; `interpolation=bilinear|bicubic|nearest`; `color=rgb|bgr|gray`;
then `(pixel * scale - mean) / std`; `layout=NCHW|NHWC`. Pillow decodes (`pip install 'qir[images]'`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qir.errors import DataError, OptionError, UnsupportedError, suggest
from qir.runtime.specs import InputSpec, format_shape

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Images", "find_images", "image_labels", "read_image"]

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_MOST_PIXELS = 1 << 28
"""Of a resized image: a strip one pixel wide would become as long as its file is small."""
_CHOICES = {
    "interpolation": ("bilinear", "bicubic", "nearest"),
    "color": ("rgb", "bgr", "gray"),
    "layout": ("NCHW", "NHWC"),
    "pad": ("none", "letterbox"),
}


@dataclass(frozen=True)
class Images:
    """How images become feeds; see the module. Sizes are (height, width), a height alone the shorter side.
    ``labels``: ``folders`` numbers the sub-folders in the order of their names."""

    resize: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()
    pad: str = "none"
    fill: int = 114
    interpolation: str = "bilinear"
    color: str = "rgb"
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = "NCHW"
    labels: str | None = None

    @classmethod
    def parse(cls, text: str | None, labels: str | None = None) -> Images | None:
        """From the line, None where there is none. Raises OptionError, naming the nearest key."""
        if labels not in (None, "folders"):
            raise OptionError(f"labels={labels!r}: there is labels=folders, the names of sub-folders")
        if text is None:
            if labels is not None:
                raise OptionError("labels=folders is for images: give a preprocessing line too")
            return None
        known = [field.name for field in fields(cls) if field.name != "labels"]
        options: dict[str, Any] = {"labels": labels}
        for word in text.split():
            key, equals, value = word.partition("=")
            if key not in known or not equals:
                raise OptionError(f"preprocess: {word!r}{suggest(key, known)}: write KEY=VALUE of {', '.join(known)}")
            options[key] = _value(key, value)
        images = cls(**options)
        if images.pad == "letterbox" and not images.resize:
            raise OptionError("preprocess: pad=letterbox needs resize=, the size to fit into")
        if any(size == 0 for size in images.std):
            raise OptionError("preprocess: std=0 divides by zero")
        return images


def _value(key: str, text: str) -> Any:
    if key in _CHOICES:
        if text not in _CHOICES[key]:
            choices = _CHOICES[key]
            raise OptionError(f"preprocess: {key}={text}{suggest(text, choices)}: use {' or '.join(choices)}")
        return text
    try:
        if key in ("resize", "crop"):
            sizes = tuple(int(size) for size in text.split("x"))
            if len(sizes) > 2 or min(sizes) < 1:
                raise ValueError
            return sizes
        if key == "fill":
            return int(text)
        numbers = tuple(float(Fraction(number)) for number in text.split(","))
    except (ValueError, ZeroDivisionError):
        raise OptionError(f"preprocess: {key}={text} is no {_kind(key)}") from None
    if key == "scale" and len(numbers) != 1:
        raise OptionError(f"preprocess: scale={text} is no single number, such as 1/255")
    return numbers[0] if key == "scale" else numbers


def _kind(key: str) -> str:
    return {"resize": "size, 256 or 256x192", "crop": "size, 224 or 224x224", "fill": "whole number"}.get(
        key, "number, or numbers with commas between"
    )


def find_images(folder: Path) -> list[Path]:
    """Images in a folder and its sub-folders, in the order of their paths."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def image_labels(folder: Path, paths: Sequence[Path]) -> list[np.ndarray]:
    """The number of the sub-folder that each image is in. Raises DataError for an image in none."""
    names = []
    for path in paths:
        parts = path.relative_to(folder).parts
        if len(parts) < 2:
            raise DataError(f"{path}: labels=folders, but the image is in no sub-folder of {folder}")
        names.append(parts[0])
    number = {name: index for index, name in enumerate(sorted(set(names)))}
    return [np.asarray(number[name], np.int64) for name in names]


def read_image(path: Path, images: Images, spec: InputSpec) -> np.ndarray:
    """One image as a batch of one, in the input's element type. Raises DataError where it is none or does not fit."""
    Image = _pillow()
    try:
        with Image.open(path) as file:
            picture = file.convert("L" if images.color == "gray" else "RGB")
    except Exception as error:  # Pillow has many: not an image, truncated, a bomb
        raise DataError(f"{path}: cannot be read as an image: {' '.join(str(error).split())}") from error
    try:
        pixels = np.asarray(_sized(picture, images))
    except (MemoryError, OverflowError, ValueError) as error:
        raise DataError(f"{path}: cannot be resized as the preprocessing line says: {error}") from error
    if images.color == "bgr":
        pixels = pixels[:, :, ::-1]
    array: np.ndarray = pixels.astype(np.float32) if pixels.ndim == 3 else pixels.astype(np.float32)[:, :, None]
    array = array * np.float32(images.scale)
    for name, numbers in (("mean", images.mean), ("std", images.std)):
        if numbers and len(numbers) not in (1, array.shape[2]):
            raise OptionError(f"preprocess: {name} has {len(numbers)} numbers, the images {array.shape[2]} channels")
    if images.mean:
        array = array - np.asarray(images.mean, np.float32)
    if images.std:
        array = array / np.asarray(images.std, np.float32)
    array = array.transpose(2, 0, 1) if images.layout == "NCHW" else array
    return _fitted(np.ascontiguousarray(array[None]), spec, path)


def _sized(picture: Image.Image, images: Images) -> Image.Image:
    Image = _pillow()
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}.get(
        images.interpolation, Image.Resampling.NEAREST
    )
    width, height = picture.size
    if images.pad == "letterbox":
        high, wide = _pair(images.resize)
        ratio = min(high / height, wide / width)
        inner = picture.resize((max(round(width * ratio), 1), max(round(height * ratio), 1)), method)
        colour = images.fill if picture.mode == "L" else (images.fill,) * 3
        picture = Image.new(picture.mode, (wide, high), colour)
        picture.paste(inner, ((wide - inner.width) // 2, (high - inner.height) // 2))
    elif len(images.resize) == 2:
        picture = picture.resize((images.resize[1], images.resize[0]), method)
    elif images.resize:
        # The shorter side gets the size, the longer one keeps the proportion, cut to whole pixels.
        size = images.resize[0]
        wide, high = (size, size * height // width) if width <= height else (size * width // height, size)
        if wide * high > _MOST_PIXELS:
            raise ValueError(f"{width} x {height} would become {wide} x {high}")
        picture = picture.resize((wide, high), method)
    if images.crop:
        high, wide = _pair(images.crop)
        left, top = round((picture.width - wide) / 2), round((picture.height - high) / 2)
        picture = picture.crop((left, top, left + wide, top + high))
    return picture


def _pair(size: tuple[int, ...]) -> tuple[int, int]:
    return (size[0], size[0]) if len(size) == 1 else (size[0], size[1])


def _fitted(array: np.ndarray, spec: InputSpec, path: Path) -> np.ndarray:
    wanted = spec.shape
    if wanted is not None:
        fits = len(wanted) == 4 and all(
            not isinstance(size, int) or size == have for size, have in zip(wanted, array.shape, strict=True)
        )
        if not fits:
            raise DataError(
                f"{path}: becomes {format_shape(array.shape)}, input '{spec.name}' wants {format_shape(wanted)}: "
                "see resize, crop, color and layout of the preprocessing line"
            )
    if spec.dtype is None or spec.dtype == np.float32:
        return array
    if spec.dtype.kind in "iu":
        low, high = np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max
        array = np.clip(np.rint(array), low, high)
    made: np.ndarray = array.astype(spec.dtype)
    return made


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise UnsupportedError(
            "folders of images need Pillow: pip install 'qir[images]', or give the samples as .npz"
        ) from None
    return Image
