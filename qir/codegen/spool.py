"""A data file that grows tensor by tensor beside the model to be, with a journal: interrupted work can go on.

``PATH`` holds the data; ``PATH.journal`` has a line of JSON for what the work is (any change of it starts anew) and one
for each finished step: its key, and the tensors that it made with place and hash. A line is written only after its
data is on the disk; what stands behind the last whole line was being written, and is written again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qir.errors import OutputError
from qir.ir import DType, ExternalFile, ExternalLocation, Tensor

__all__ = ["Spool", "discard_spool"]

_ALIGNMENT = 64
_CHUNK = 1 << 24


class Spool:
    """The data file and its journal. ``work`` says what is being done; with another one, nothing is taken over.

    Raises OutputError where the files cannot be written.
    """

    def __init__(self, path: Path, work: Mapping[str, Any]) -> None:
        self.path = path
        self._journal_path = journal_of(path)
        self._external = ExternalFile(path)
        self._known: dict[str, dict[str, Any]] = {}
        self._key = ""
        self._entries: list[dict[str, Any]] = []
        self._done: list[dict[str, Any]] | None = None
        self.resumed = 0
        try:
            self._end = self._take_over(json.dumps(work, sort_keys=True))
            self._data = open(path, "r+b" if path.exists() else "w+b")
            self._data.truncate(self._end)
            self._journal = open(self._journal_path, "a", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{str(path)!r} cannot be written ({error.strerror}): choose another place") from error

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._data.close()
        self._journal.close()

    def begin(self, key: str) -> dict[str, Any] | None:
        """Begin a step. Where an earlier run has finished it and its data is whole, what it noted."""
        self._key, self._entries, self._done = key, [], None
        record = self._known.get(key)
        if record is None or any(self._digest(e["offset"], e["length"]) != e["digest"] for e in record["tensors"]):
            return None
        self._done = list(record["tensors"])
        self.resumed += 1
        notes: dict[str, Any] = record["notes"]
        return notes

    def put(self, tensor: Tensor) -> Tensor:
        """The next tensor of the step, with its data in the file; of a finished step, the one that is there."""
        if self._done is not None:
            return self._tensor(self._done.pop(0))
        packed = tensor.packed()
        offset = -(-self._end // _ALIGNMENT) * _ALIGNMENT
        digest = hashlib.blake2b(digest_size=16)
        try:
            self._data.seek(offset)
            for start in range(0, len(packed), _CHUNK):
                chunk = np.ascontiguousarray(packed[start : start + _CHUNK]).data
                self._data.write(chunk)
                digest.update(chunk)
        except OSError as error:
            raise self._failed(error) from error
        self._end = offset + len(packed)
        entry = {
            "dtype": tensor.dtype.code, "shape": list(tensor.shape), "offset": offset, "length": len(packed),
            "digest": digest.hexdigest(),
        }  # fmt: skip
        self._entries.append(entry)
        return self._tensor(entry)

    def end(self, notes: Mapping[str, Any]) -> None:
        """The step is finished; from now on it need not be done again."""
        if self._done is not None:
            return
        try:
            self._data.flush()
            os.fsync(self._data.fileno())
            record = {"key": self._key, "tensors": self._entries, "notes": dict(notes)}
            self._journal.write(json.dumps(record) + "\n")
            self._journal.flush()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(f"{str(self.path)!r} cannot be written ({error.strerror}): make room there and run it again")

    def _take_over(self, work: str) -> int:
        """Read the journal of an earlier run of the same work, or begin a new one; where its data ends."""
        lines = []
        if self._journal_path.exists() and self.path.exists():
            lines = self._journal_path.read_text(encoding="utf-8", errors="replace").splitlines()
        end, size, kept = 0, self.path.stat().st_size if self.path.exists() else 0, [work]
        if lines and lines[0] == work:
            for line in lines[1:]:
                try:
                    record = json.loads(line)
                    stop = max((entry["offset"] + entry["length"] for entry in record["tensors"]), default=end)
                except (ValueError, KeyError, TypeError):
                    break  # cut short
                if stop > size:
                    break
                self._known[record["key"]] = record
                end = max(end, stop)
                kept.append(line)
        self._journal_path.write_text("\n".join(kept) + "\n", encoding="utf-8")
        return end

    def _digest(self, offset: int, length: int) -> str:
        state = hashlib.blake2b(digest_size=16)
        self._data.seek(offset)
        while length > 0:
            chunk = self._data.read(min(length, _CHUNK))
            if not chunk:
                break
            state.update(chunk)
            length -= len(chunk)
        return state.hexdigest()

    def _tensor(self, entry: Mapping[str, Any]) -> Tensor:
        dtype = next(one for one in DType if one.code == entry["dtype"])
        place = ExternalLocation(self._external, entry["offset"], entry["length"])
        return Tensor(dtype, tuple(entry["shape"]), place)


def journal_of(path: Path) -> Path:
    return path.with_name(path.name + ".journal")


def discard_spool(path: Path) -> None:
    """Remove data and journal, if they are there."""
    path.unlink(missing_ok=True)
    journal_of(path).unlink(missing_ok=True)
