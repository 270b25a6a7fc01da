"""A one-shot iterator of feeds made re-iterable, at the cost of a temporary file instead of memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from qir.errors import DataError

# What one feed left in the file: (key, offset of each array, whether it was a list).
_Entry = list[tuple[str, list[int], bool]]


class Spool:
    """Iterates over what `source` gives; each feed is fetched once and read back from disk after that.

    Strings come back as numpy strings and ml_dtypes as raw bytes (`V2`), which the feed check turns into what the model
    wants.
    """

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source
        self._file = tempfile.TemporaryFile(prefix="qir-")
        self._entries: list[_Entry] = []

    def __iter__(self) -> Iterator[Any]:
        index = 0
        while index < len(self._entries) or self._fetch():
            yield self._read(self._entries[index])
            index += 1

    def _fetch(self) -> bool:
        """Takes one more feed from the source; False at its end."""
        try:
            feed = next(self._source)
        except StopIteration:
            return False
        where = f"sample {len(self._entries)}"
        if not isinstance(feed, dict):
            raise DataError(f"{where}: is a {type(feed).__name__}; a sample is a dict of input name -> array")
        self._file.seek(0, 2)
        self._entries.append([(str(key), *self._write(value, f"{where}: '{key}'")) for key, value in feed.items()])
        return True

    def _write(self, value: Any, where: str) -> tuple[list[int], bool]:
        is_list = isinstance(value, list) and all(isinstance(item, np.ndarray) for item in value)
        offsets = []
        for item in value if is_list else [value]:
            array = np.asarray(item)
            if array.dtype == np.object_ and all(isinstance(text, str) for text in array.flat):
                array = array.astype(str)
            offsets.append(self._file.tell())
            try:
                np.lib.format.write_array(self._file, array, allow_pickle=False)
            except ValueError as error:
                raise DataError(f"{where} is no array of numbers or strings") from error
        return offsets, is_list

    def _read(self, entry: _Entry) -> dict[str, Any]:
        feed: dict[str, Any] = {}
        for key, offsets, is_list in entry:
            arrays = []
            for offset in offsets:
                self._file.seek(offset)
                arrays.append(np.lib.format.read_array(self._file, allow_pickle=False))
            feed[key] = arrays if is_list else arrays[0]
        return feed
