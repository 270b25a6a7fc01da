"""The convention that turns stacked arrays, in memory or in an `.npz`, into feeds.

A key is an input's name and the first axis the samples. An array of the input's rank + 1 holds one feed a row; of the
input's rank, rows are cut along axis 0 into the model's fixed batch, else one by one; a scalar input takes (N,) or
(N, 1). One row where others have N is repeated. Ragged samples are keys `name/000000`, `name/000001` ...; `labels` is
reserved for the labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Protocol

import numpy as np

from qir.calibration.feeds import DataWarning, FeedChecker, check_dtype, check_shape, missing
from qir.errors import DataError
from qir.runtime.specs import InputSpec, format_shape

LABELS = "labels"


class Stack(Protocol):
    """An array of rows that need not be in memory."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def rows(self, step: int) -> Iterator[np.ndarray]:
        """Arrays of `step` rows each, a rest left out; at least one axis."""
        ...

    def whole(self) -> np.ndarray:
        """All of it."""
        ...


class MemoryStack:
    """A stack over an array."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.dtype: np.dtype[Any] = array.dtype
        self.shape: tuple[int, ...] = array.shape

    def rows(self, step: int) -> Iterator[np.ndarray]:
        for start in range(0, self.shape[0] - step + 1, step):
            yield self._array[start : start + step]

    def whole(self) -> np.ndarray:
        return self._array


@dataclass(frozen=True)
class Column:
    """One input's data, cut into feeds."""

    spec: InputSpec
    count: int
    batch: int  # rows of the stack that one feed takes
    values: Callable[[], Iterator[Any]]


@dataclass(frozen=True)
class Feeds:
    """All inputs' data side by side. Iterates over dicts, as often as asked."""

    columns: tuple[Column, ...]
    count: int

    def __iter__(self) -> Iterator[dict[str, Any]]:
        names = [column.spec.name for column in self.columns]
        if not names:  # a model without inputs: the same empty feed
            yield from repeat({}, self.count)
            return
        streams = [
            repeat(next(column.values()), self.count) if column.count == 1 else column.values()
            for column in self.columns
        ]
        for row in zip(*streams, strict=True):
            yield dict(zip(names, row, strict=True))


def feeds_from_stacks(
    stacks: Mapping[str, Stack], specs: Sequence[InputSpec], where: str, ignore: Collection[str] = ()
) -> Feeds:
    """The feeds in `stacks` for the inputs `specs`. Everything that shapes and types can tell is checked here, early.

    Keys in `ignore` are nobody's mistake. Raises DataError; warns of unknown keys and of rows that fill no batch.
    """
    single, ragged = _split_ragged(stacks, {spec.name for spec in specs})
    columns = []
    for spec in specs:
        if spec.name in single:
            columns.append(_column(stacks[spec.name], spec, where))
        elif spec.name in ragged:
            columns.append(_ragged_column([stacks[key] for key in ragged[spec.name]], spec, where))
        else:
            raise missing(spec, [*single, *ragged], where)
    unknown = [*single, *ragged]
    FeedChecker(specs).warn_unknown((key for key in unknown if key != LABELS and key not in ignore), where)
    return Feeds(tuple(columns), _common_count(columns, where))


def _split_ragged(keys: Mapping[str, Stack], names: Collection[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Plain keys, and for each ragged name its keys in sample order. A key that is an input's full name is plain."""
    single: list[str] = []
    ragged: dict[str, list[tuple[int, str]]] = {}
    for key in keys:
        base, _, index = key.rpartition("/")
        if key not in names and base and index.isascii() and index.isdigit():
            ragged.setdefault(base, []).append((int(index), key))
        else:
            single.append(key)
    return single, {base: [key for _, key in sorted(found)] for base, found in ragged.items()}


def _column(stack: Stack, spec: InputSpec, where: str) -> Column:
    shape, wanted = stack.shape, spec.shape
    if not shape:
        raise DataError(f"{where}: '{spec.name}' is a single number; the first axis is the samples, give at least [1]")
    if wanted is None or len(shape) == len(wanted) + 1:
        count, batch, row_shape = shape[0], 1, shape[1:]
    elif wanted == () and shape[1:] == (1,):
        count, batch, row_shape = shape[0], 1, ()
    elif len(shape) == len(wanted):
        batch = wanted[0] if isinstance(wanted[0], int) and wanted[0] > 0 else 1
        count, row_shape = shape[0] // batch, (batch, *shape[1:])
        if rest := shape[0] - count * batch:
            if count == 0:
                raise DataError(
                    f"{where}: '{spec.name}' has {shape[0]} rows, the model's fixed batch takes {batch} at a time"
                )
            warnings.warn(
                f"{where}: the last {rest} of {shape[0]} rows of '{spec.name}' do not fill the model's batch of "
                f"{batch} and are left out",
                DataWarning,
                stacklevel=2,
            )
    else:
        raise DataError(
            f"{where}: '{spec.name}' has shape {format_shape(shape)}; input {spec} takes the samples along a "
            f"first axis of its own, {format_shape(('samples', *wanted))}"
            + (f", or along its batch axis, {format_shape(('samples', *wanted[1:]))}" if wanted else "")
        )
    check_shape(row_shape, spec, f"{where}, each sample")
    if spec.dtype is not None:
        check_dtype(stack.dtype, spec, where)

    def values() -> Iterator[np.ndarray]:
        for rows in stack.rows(batch):
            yield rows.reshape(row_shape)

    return Column(spec, count, batch, values)


def _ragged_column(stacks: list[Stack], spec: InputSpec, where: str) -> Column:
    for index, stack in enumerate(stacks):
        check_shape(stack.shape, spec, f"{where}, sample {index}")
        if spec.dtype is not None:
            check_dtype(stack.dtype, spec, f"{where}, sample {index}")
    return Column(spec, len(stacks), 1, lambda: (stack.whole() for stack in stacks))


def _common_count(columns: Sequence[Column], where: str) -> int:
    counts = {column.spec.name: column.count for column in columns}
    for name, count in counts.items():
        if count == 0:
            raise DataError(f"{where}: '{name}' holds no samples")
    most = max(counts.values(), default=1)
    if any(count not in (1, most) for count in counts.values()):
        listed = ", ".join(f"'{name}' has {count}" for name, count in counts.items())
        raise DataError(f"{where}: the inputs differ in their number of samples: {listed}")
    return most


def labels_from_stacks(stacks: Mapping[str, Stack], feeds: Feeds, where: str) -> list[np.ndarray] | None:
    """The reserved key `labels`, one array a feed; None without it, or when it is an input's name.

    Raises DataError when there are neither as many labels as feeds nor as many as rows.
    """
    if any(column.spec.name == LABELS for column in feeds.columns):
        return None
    ragged = _split_ragged(stacks, ())[1].get(LABELS)
    if ragged:
        found = [stacks[key].whole() for key in ragged]
        if len(found) != feeds.count:
            raise DataError(f"{where}: {len(found)} labels for {feeds.count} samples")
        return found
    if LABELS not in stacks:
        return None
    array = stacks[LABELS].whole()
    rows = array.shape[0] if array.ndim else 0
    batch = max((column.batch for column in feeds.columns), default=1)
    if rows == feeds.count:
        return list(array)
    if batch > 1 and 0 <= rows - feeds.count * batch < batch:
        return list(array[: feeds.count * batch].reshape(feeds.count, batch, *array.shape[1:]))
    raise DataError(f"{where}: {rows} labels for {feeds.count} samples")
