"""Random inputs, for who asks for them: `random:64`, or `random:64:seq=16` where axes beside the first have names.

They say nothing about the inputs that a model will meet. Ranges calibrated on them are wrong, so reports say so.
Floats are standard normal, integers 0 or 1 (safe as indices), booleans a coin; the same ones every time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qir.errors import DataError, OptionError, suggest
from qir.runtime.specs import InputSpec

__all__ = ["RandomData", "is_random", "parse_dims", "random_feeds"]

_TEXT = re.compile(r"random(?::(\d+))?(?::(.+))?")
_DEFAULT = 32


@dataclass(frozen=True)
class RandomData:
    """``count`` feeds; ``dims`` gives sizes to axes by their names. A first axis with a name, the batch, is 1 long."""

    count: int
    dims: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> RandomData:
        """From ``random``, ``random:COUNT`` or ``random:COUNT:AXIS=SIZE,...``. Raises OptionError."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise OptionError(f"{text!r}: write random:COUNT, or random:COUNT:AXIS=SIZE,AXIS=SIZE")
        count = _DEFAULT if match[1] is None else int(match[1])
        if not count:
            raise OptionError(f"{text!r}: ask for one sample at least")
        return cls(count, parse_dims(match[2].split(",") if match[2] else ()))


def is_random(source: object) -> bool:
    """Whether a data source, as a user names it, asks for random inputs."""
    return isinstance(source, RandomData) or (isinstance(source, str) and _TEXT.fullmatch(source) is not None)


def parse_dims(texts: Sequence[str]) -> dict[str, int]:
    """Sizes by axis name from texts like ``batch=1``. Raises OptionError."""
    sizes: dict[str, int] = {}
    for text in texts:
        name, _, size = text.rpartition("=")
        if not name or not size.isdecimal() or int(size) == 0:
            raise OptionError(f"axis size {text!r} is not NAME=SIZE, e.g. batch=1")
        sizes[name] = int(size)
    return sizes


def random_feeds(specs: Sequence[InputSpec], data: RandomData) -> Iterator[dict[str, Any]]:
    """Raises DataError for an input that is no tensor, or whose axes are not all known, OptionError for a name of no
    axis."""
    named = {size for spec in specs for size in spec.shape or () if isinstance(size, str)}
    for name in data.dims:
        if name not in named:
            raise OptionError(f"no input has an axis {name!r}{suggest(name, named)}")
    batches = {spec.shape[0]: 1 for spec in specs if spec.shape and isinstance(spec.shape[0], str)}
    shapes = {spec.name: _shape(spec, batches | dict(data.dims)) for spec in specs}
    draw = np.random.default_rng(0)
    for _ in range(data.count):
        yield {spec.name: _array(spec, shapes[spec.name], draw) for spec in specs}


def _shape(spec: InputSpec, dims: Mapping[str, int]) -> tuple[int, ...]:
    if spec.kind != "tensor" or spec.dtype is None or spec.dtype == np.object_ or spec.shape is None:
        raise DataError(f"input {spec} cannot be made up: give data")
    shape = []
    for size in spec.shape:
        known = size if isinstance(size, int) else dims.get(size or "")
        if known is None:
            wanted = "an axis without a name" if size is None else f"the axis {size!r}"
            remedy = "give data" if size is None else f"say how long it is (--dim {size}=1, random:16:{size}=1)"
            raise DataError(f"input {spec} has {wanted} of no fixed size: {remedy}")
        shape.append(known)
    return tuple(shape)


def _array(spec: InputSpec, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    assert spec.dtype is not None
    if spec.dtype.kind in "iub":
        return draw.integers(0, 2, shape).astype(spec.dtype)
    return draw.normal(size=shape).astype(spec.dtype)
