"""Sample data from wherever it is, as checked feeds: `open_data(source, specs)`.

A feed is a dict of input name -> array that a runtime takes as it is, batch axis included.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from qir.calibration.feeds import DataWarning, FeedChecker
from qir.calibration.images import Images, find_images, image_labels, read_image
from qir.calibration.npz import read_npz
from qir.calibration.spool import Spool
from qir.calibration.stacks import Feeds, MemoryStack, Stack, feeds_from_stacks, labels_from_stacks
from qir.calibration.synthetic import RandomData, is_random, random_feeds
from qir.errors import DataError
from qir.runtime.specs import InputSpec

__all__ = [
    "HELD_OUT_EVERY",
    "HELD_OUT_FROM",
    "DataSource",
    "DataWarning",
    "hold_out",
    "is_random",
    "open_data",
    "split_judges",
    "spread",
    "spread_indices",
]

HELD_OUT_FROM = 16  # samples; with fewer none is spared
HELD_OUT_EVERY = 8
_JUDGE_EVERY = 4

Item = TypeVar("Item")


class DataSource:
    """Feeds that can be walked over any number of times, one in memory at a time, each checked against the model.

    `name` says where they come from, for messages and reports. `labels`: one array a feed, or None.
    Iterating raises DataError for a sample that does not fit (see `FeedChecker.check`).
    """

    def __init__(
        self,
        specs: Sequence[InputSpec],
        name: str,
        feeds: Callable[[], Iterable[Any]],
        *,
        count: int | None = None,
        labels: Sequence[np.ndarray] | None = None,
        keep: Callable[[int], bool] | None = None,
    ) -> None:
        self.specs = tuple(specs)
        self.name = name
        self._feeds = feeds
        self._total = count
        self._all_labels = labels
        self._keep = keep
        self._checker = FeedChecker(specs)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        index = -1
        for index, feed in enumerate(self._feeds()):
            if self._keep is None or self._keep(index):
                yield self._checker.check(feed, f"{self.name}, sample {index}")
        if self._total is None:
            self._total = index + 1

    @property
    def count(self) -> int | None:
        """How many feeds there are; None where only a walk over all of them tells and there was none yet."""
        if self._total is None or self._keep is None:
            return self._total
        return sum(map(self._keep, range(self._total)))

    def counted(self) -> int:
        """How many feeds there are; walks over all of them where only that tells."""
        if self.count is None:
            for _ in self:
                pass
        return len(self)

    def __len__(self) -> int:
        count = self.count
        if count is None:
            raise TypeError(f"the number of samples in {self.name} is not known before they are read")
        return count

    def __bool__(self) -> bool:
        return True  # a source is a thing, not its length, which may be unknown

    @property
    def labels(self) -> list[np.ndarray] | None:
        if self._all_labels is None:
            return None
        return [label for index, label in enumerate(self._all_labels) if self._keep is None or self._keep(index)]

    def subset(self, keep: Callable[[int], bool]) -> DataSource:
        """The feeds whose place in this source `keep` accepts. Their errors still name the place in the full source."""
        if self._keep is not None:
            raise ValueError("a subset of a subset; take it from the full source")
        return DataSource(self.specs, self.name, self._feeds, count=self._total, labels=self._all_labels, keep=keep)

    def take(self, number: int) -> DataSource:
        """The first `number` feeds; what comes after them is not read."""
        if self._keep is not None:
            raise ValueError("the start of a subset; take it from the full source")
        return DataSource(
            self.specs,
            self.name,
            lambda: islice(self._feeds(), number),
            count=None if self._total is None else min(self._total, number),
            labels=None if self._all_labels is None else self._all_labels[:number],
        )


def hold_out(source: DataSource) -> tuple[DataSource, DataSource | None]:
    """(for calibration, kept out for checking): of 16 samples or more every 8th is kept out, of fewer none.

    A source of unknown length is walked over once to count it.
    """
    total = source.counted()
    if total < HELD_OUT_FROM:
        return source, None

    def out(index: int) -> bool:
        return index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1

    return source.subset(lambda index: not out(index)), source.subset(out)


def spread(data: DataSource, count: int) -> list[Mapping[str, np.ndarray]]:
    """At most ``count`` feeds of a source, evenly spread over it; only these are held."""
    wanted = set(spread_indices(data, count))
    return [feed for index, feed in enumerate(data) if index in wanted]


def spread_indices(data: DataSource, count: int) -> list[int]:
    """The places of at most ``count`` feeds, evenly spread; a source of unknown length is walked over to count it."""
    total = data.counted()
    if total <= count:
        return list(range(total))
    return sorted({round(index * (total - 1) / max(count - 1, 1)) for index in range(count)})


def split_judges(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Of one item a sample: those to choose by, and each fourth, to judge the choice by; none of fewer than four."""
    judged = list(items[_JUDGE_EVERY - 1 :: _JUDGE_EVERY])
    return [item for index, item in enumerate(items) if index % _JUDGE_EVERY != _JUDGE_EVERY - 1], judged


def open_data(
    source: object, specs: Sequence[InputSpec], *, ignore: Collection[str] = (), images: Images | None = None
) -> DataSource:
    """Sample data as a DataSource. `source` is one of:

    * the path of an `.npz`, or a mapping of stacked arrays: the convention of `qir.calibration.stacks`;
    * a folder of `test_data_set_N/input_K.pb`, or one such set, or a folder of `.npz` files (taken in name order);
    * a folder of images, with `images` to say how they become arrays, for a model of one input;
    * `random:COUNT` for inputs that are made up (see `qir.calibration.synthetic`);
    * an iterable of feeds; a function that returns one; an onnxruntime `CalibrationDataReader` (`get_next`).
      What can be walked over only once is kept in a temporary file;
    * an array, for a model of one input; a DataSource.

    Keys in `ignore` are not reported as unknown. Raises DataError when nothing there fits the model.
    """
    if isinstance(source, DataSource):
        return source
    if is_random(source):
        data = source if isinstance(source, RandomData) else RandomData.parse(str(source))
        return DataSource(specs, "RANDOM DATA", lambda: random_feeds(specs, data), count=data.count)
    if isinstance(source, (str, os.PathLike)):
        return _open_path(Path(os.fspath(source)), specs, ignore, images)
    if isinstance(source, np.ndarray):
        if len(specs) != 1:
            raise DataError(f"one array for a model of {len(specs)} inputs; pass a dict of input name -> array")
        source = {specs[0].name: source}
    if isinstance(source, Mapping):
        stacks = {str(key): MemoryStack(np.asarray(value)) for key, value in source.items()}
        return _from_stacks(stacks, specs, "the data", ignore)
    if hasattr(source, "get_next"):
        spool = Spool(iter(source.get_next, None))
        return DataSource(specs, type(source).__name__, lambda: spool)
    if isinstance(source, Iterator):
        once = Spool(source)
        return DataSource(specs, "the data", lambda: once)
    if isinstance(source, Iterable):
        return DataSource(specs, "the data", lambda: source, count=len(source) if isinstance(source, Sized) else None)
    if callable(source):
        return DataSource(specs, getattr(source, "__name__", "the data"), _called(source))
    raise DataError(
        f"a {type(source).__name__} is no sample data; pass the path of an .npz or folder, a dict of arrays, an "
        "iterable of feeds, or a function that returns one"
    )


def _called(function: Callable[[], Any]) -> Callable[[], Iterable[Any]]:
    def feeds() -> Iterable[Any]:
        result = function()
        if isinstance(result, Mapping) or not isinstance(result, Iterable):
            raise DataError(f"the data function returned a {type(result).__name__}, not an iterable of feeds")
        return result

    return feeds


def _open_path(path: Path, specs: Sequence[InputSpec], ignore: Collection[str], images: Images | None) -> DataSource:
    if path.is_dir():
        return _open_folder(path, specs, ignore, images)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not path.is_file():
        raise DataError(f"{path}: is no regular file: give an .npz, or a folder")
    if path.suffix == ".npy":
        name = specs[0].name if specs else "INPUT"
        raise DataError(f"{path}: a bare .npy names no input; numpy.savez(file, **{{'{name}': array}}) makes an .npz")
    return _from_stacks(read_npz(path), specs, str(path), ignore)


def _from_stacks(
    stacks: Mapping[str, Stack], specs: Sequence[InputSpec], name: str, ignore: Collection[str]
) -> DataSource:
    feeds = feeds_from_stacks(stacks, specs, name, ignore)
    return DataSource(specs, name, lambda: feeds, count=feeds.count, labels=labels_from_stacks(stacks, feeds, name))


def _open_images(folder: Path, paths: Sequence[Path], specs: Sequence[InputSpec], images: Images | None) -> DataSource:
    if images is None:
        raise DataError(
            f"{folder}: {len(paths)} images need a preprocessing line, such as "
            "--preprocess 'resize=256 crop=224 scale=1/255 layout=NCHW'"
        )
    if len(specs) != 1:
        raise DataError(f"{folder}: images for a model of {len(specs)} inputs; give an .npz with all of them")
    labels = image_labels(folder, paths) if images.labels is not None else None
    return DataSource(
        specs,
        str(folder),
        lambda: ({specs[0].name: read_image(path, images, specs[0])} for path in paths),
        count=len(paths),
        labels=labels,
    )


def _open_folder(
    folder: Path, specs: Sequence[InputSpec], ignore: Collection[str], images: Images | None
) -> DataSource:
    from qir.calibration.pb import find_sets, read_set

    sets = find_sets(folder)
    if sets:
        return DataSource(specs, str(folder), lambda: (read_set(one, "input", specs) for one in sets), count=len(sets))
    archives = sorted(folder.glob("*.npz"))
    if not archives:
        found = find_images(folder)
        if found:
            return _open_images(folder, found, specs, images)
        raise DataError(f"{folder}: holds neither test_data_set_N folders nor .npz files nor images")
    parts: list[tuple[Feeds, list[np.ndarray] | None]] = []
    for archive in archives:
        stacks = read_npz(archive)
        feeds = feeds_from_stacks(stacks, specs, str(archive), ignore)
        parts.append((feeds, labels_from_stacks(stacks, feeds, str(archive))))
    labels = [labels for _, labels in parts if labels is not None]
    if labels and len(labels) != len(parts):
        raise DataError(f"{folder}: {len(labels)} of {len(parts)} archives have labels; give all of them or none")
    return DataSource(
        specs,
        str(folder),
        lambda: (feed for feeds, _ in parts for feed in feeds),
        count=sum(feeds.count for feeds, _ in parts),
        labels=[label for some in labels for label in some] if labels else None,
    )
