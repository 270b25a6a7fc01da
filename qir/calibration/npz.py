"""Arrays that stream out of an `.npz` row by row, compressed or not, without pickle and without the whole in memory."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

from qir.errors import DataError

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError, ValueError)


class NpzStack:
    """One array of an archive. Only its header is read until rows are asked for."""

    def __init__(self, path: str, member: zipfile.ZipInfo) -> None:
        self._path = path
        self._member = member
        self.name = member.filename.removesuffix(".npy")
        with self._open() as stream:
            self.shape, self._fortran, self.dtype = self._read_header(stream)
            size = math.prod(self.shape) * self.dtype.itemsize
            if stream.tell() + size != member.file_size:
                raise DataError(
                    f"{path}: '{self.name}' is damaged: its header promises {size} bytes, "
                    f"{member.file_size - stream.tell()} are there"
                )

    def rows(self, step: int) -> Iterator[np.ndarray]:
        """Arrays of `step` rows (read-only), one read after the other. Raises DataError for a damaged archive."""
        if self._fortran and len(self.shape) > 1:
            yield from self._rows_of_columns(step)
            return
        shape = (step, *self.shape[1:])
        size = math.prod(shape) * self.dtype.itemsize
        with self._open() as stream:
            self._read_header(stream)
            for _ in range(self.shape[0] // step):
                raw = stream.read(size)
                if len(raw) != size:
                    raise DataError(f"{self._path}: '{self.name}' ends early; the archive is damaged")
                yield np.frombuffer(raw, self.dtype).reshape(shape)
            if self.shape[0] % step == 0:
                stream.read(1)  # reaching the end is what makes zipfile compare the checksum

    def whole(self) -> np.ndarray:
        with self._open() as stream:
            self._read_header(stream)
            array = np.frombuffer(stream.read(), self.dtype)
        return array.reshape(self.shape, order="F" if self._fortran else "C")

    def _rows_of_columns(self, step: int) -> Iterator[np.ndarray]:
        """Rows of an array stored column by column: no row is contiguous, so a temporary file is mapped."""
        with tempfile.TemporaryFile(prefix="qir-") as file:
            with self._open() as stream:
                self._read_header(stream)
                shutil.copyfileobj(stream, file)
            file.flush()
            if math.prod(self.shape) == 0:
                mapped = np.empty(self.shape, self.dtype)
            else:
                mapped = np.memmap(file, self.dtype, "r", shape=self.shape, order="F")
            for start in range(0, self.shape[0] - step + 1, step):
                yield np.array(mapped[start : start + step], order="C")

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._member) as stream:
                yield stream
        except MemoryError as error:
            size = self._member.file_size >> 20
            raise DataError(f"{self._path}: '{self.name}' unpacks to {size} MB, more than fits into memory") from error
        except _DAMAGE as error:
            raise DataError(f"{self._path}: '{self.name}' cannot be read: {' '.join(str(error).split())}") from error

    def _read_header(self, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        # numpy's format, version 1 or 2 (3 differs only for structured types); see numpy.lib.format.
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        try:
            version = np.lib.format.read_magic(stream)
            shape, fortran, dtype = readers[version](stream)
        except _DAMAGE:
            raise
        except Exception as error:  # numpy evaluates a literal there: any bytes, any exception
            raise DataError(f"{self._path}: '{self.name}' has no readable .npy header") from error
        if any(type(size) is not int or size < 0 for size in shape):
            raise DataError(f"{self._path}: '{self.name}' has no readable .npy header")
        if dtype.hasobject:
            raise DataError(
                f"{self._path}: '{self.name}' is an object array, which is never loaded (it could run code); save "
                f"samples of different shapes as '{self.name}/000000', '{self.name}/000001' ..."
            )
        return shape, fortran, dtype


def read_npz(path: str | os.PathLike[str]) -> dict[str, NpzStack]:
    """The arrays of an archive by key, in its order; reads headers only. Raises DataError for what is no `.npz`."""
    name = os.fspath(path)
    try:
        with zipfile.ZipFile(name) as archive:
            members = archive.infolist()
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error})") from error
    except _DAMAGE as error:
        raise DataError(
            f"{name}: is no .npz archive ({error}); numpy.savez(file, INPUT_NAME=array) makes one"
        ) from error
    return {stack.name: stack for stack in (NpzStack(name, m) for m in members if m.filename.endswith(".npy"))}
