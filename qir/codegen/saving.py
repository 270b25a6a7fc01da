"""IR models to files: whole or not at all, weights streamed, in the file or beside it."""

from __future__ import annotations

import filecmp
import itertools
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from qir.codegen.exporter import MOST_BYTES, model_message
from qir.codegen.graphs import Annotations
from qir.codegen.tensors import ExternalEntry
from qir.codegen.wire import data_of
from qir.errors import OutputError
from qir.ir import DType, Model, Tensor, Value

__all__ = ["save"]

_ALIGNMENT = 4096
_SMALL_ALIGNMENT = 64
_LARGE = 1 << 16
_CHUNK = 1 << 24
_unique = itertools.count()


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    external_data: bool | None = None,
    external_threshold: int = 1024,
    annotations: Annotations = "error",
    strip_provenance: bool = False,
) -> None:
    """Write an ONNX file.

    ``external_data``: put weights of at least ``external_threshold`` bytes into ``NAME.data`` beside the model (into
    ``NAME.2.data`` where a model that is replaced has other data in the former, which goes when the new one is there
    whole); None does so where a weight already stands in a data file, or where the model would pass 2 GB. Files are
    written under temporary names and then renamed: whenever that is interrupted, the old model or the new one is there.
    The model may be saved over the one it was loaded from. Raises OutputError where that fails, and QirError as
    ``to_bytes`` does.
    """
    path = Path(path)
    _check_target(path)
    if external_data is None:
        external_data = _wants_external(model)
    first = path.with_name(path.name + ".data")
    layout = _layout(model, external_threshold, first.name) if external_data else {}
    message = model_message(model, external=layout, annotations=annotations, strip_provenance=strip_provenance)
    if message.size > MOST_BYTES:
        remedy = "save it with external data" if not external_data else "lower external_threshold"
        raise OutputError(f"{str(path)!r} would be {message.size / 1e9:.1f} GB, one ONNX file holds 2 GB: {remedy}")
    used = _data_of(path)
    with _temporary(path) as model_file, ExitStack() as data_files:
        if layout:
            _check_target(first)
            data_file = data_files.enter_context(_temporary(first))
            _write_data(data_file, layout)
            data_file.flush()
            data_path = first
            if first in used and not filecmp.cmp(first, data_file.name, shallow=False):
                data_path = path.with_name(path.name + ".2.data")
                layout = {value: (data_path.name, offset, size) for value, (_, offset, size) in layout.items()}
                message = model_message(
                    model, external=layout, annotations=annotations, strip_provenance=strip_provenance
                )
            _write(model_file, message.chunks())
            used.discard(data_path)
            os.replace(data_file.name, data_path)
        else:
            _write(model_file, message.chunks())
        model_file.close()
        os.replace(model_file.name, path)
    for replaced in used:
        with suppress(OSError):
            replaced.unlink()


def _data_of(path: Path) -> set[Path]:
    """The data files, of names that ``save`` gives, of the model that stands there now."""
    places = (path.with_name(path.name + ".data"), path.with_name(path.name + ".2.data"))
    return {place for place in places if place.exists() and _mentions(path, place.name)}


def _mentions(path: Path, name: str) -> bool:
    """Whether the file, an older model, holds this name."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(name.encode()) >= 0
    except (OSError, ValueError):  # absent, empty
        return False


def _wants_external(model: Model) -> bool:
    inside = 0
    for _, tensor in _candidates(model):
        if tensor.location is not None:
            return True
        inside += tensor.nbytes
    return inside > MOST_BYTES - MOST_BYTES // 32


def _candidates(model: Model) -> Iterator[tuple[Value, Tensor]]:
    """Initializers that may stand outside: dense, not strings, of the main graph and its bodies."""
    for graph in model.graph.graphs():
        for value in graph.initializers:
            if isinstance(value.const, Tensor) and value.const.dtype is not DType.STRING:
                yield value, value.const


def _layout(model: Model, threshold: int, location: str) -> dict[Value, ExternalEntry]:
    """A place for each weight; those that share their data (tied embedding and head) share the place."""
    layout: dict[Value, ExternalEntry] = {}
    places: dict[object, ExternalEntry] = {}
    end = 0
    for value, tensor in _candidates(model):
        size = tensor.nbytes
        if size < max(threshold, 1):
            continue
        source = tensor.location or id(tensor)
        entry = places.get(source)
        if entry is None:
            alignment = _ALIGNMENT if size >= _LARGE else _SMALL_ALIGNMENT
            offset = -(-end // alignment) * alignment
            entry = places[source] = (location, offset, size)
            end = offset + size
        layout[value] = entry
    return layout


def _write_data(file: BinaryIO, layout: dict[Value, ExternalEntry]) -> None:
    written: set[int] = set()
    for value, (_, offset, _) in layout.items():
        assert isinstance(value.const, Tensor)
        if offset not in written:
            written.add(offset)
            file.seek(offset)
            _write(file, [data_of(value.const)])
            value.const.release()


def _write(file: BinaryIO, chunks: Iterator[bytes | memoryview] | list[memoryview]) -> None:
    for chunk in chunks:
        for start in range(0, len(chunk), _CHUNK):
            file.write(chunk[start : start + _CHUNK])


def _check_target(path: Path) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if stat.S_ISDIR(mode):
        raise OutputError(f"{str(path)!r} is a folder: give the name of a file to write")
    if not stat.S_ISREG(mode):
        raise OutputError(f"{str(path)!r} is no regular file: give the name of a file to write")


@contextmanager
def _temporary(path: Path) -> Iterator[BinaryIO]:
    """A file to write beside ``path``, for the block to rename; it vanishes where that does not happen."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{next(_unique)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
    except OSError as error:
        raise OutputError(f"{str(path)!r} cannot be written ({error.strerror}): choose another place") from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(temporary)
