"""Finding the data files of a model, and refusing to follow them out of the model's folder.

A model from elsewhere may name any file of this machine as the data of a tensor; what it holds would then leave the
machine inside of the next model that is saved. So a location must be a relative path without ``..`` to a regular file
that really lies in the model's folder, links resolved; hard links are only followed if all their names lie there.

A model file may itself be a symbolic link (Hugging Face's cache links ``snapshots/REVISION/model.onnx`` to
``blobs/HASH``, and the data file likewise). Its folders are then two: the one of the link and the one of the file; data
is looked for in that order and may lie in either.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from qir.errors import ModelError
from qir.ir import ExternalFile, ExternalLocation, Stub

__all__ = ["ExternalFiles"]

_REMEDY = "only if you trust the model, load it with allow_external_outside=True"


class ExternalFiles:
    """The data files beside one model; each is opened once. ``folders`` is empty for a model without a file."""

    def __init__(self, folders: tuple[Path, ...], allow_outside: bool = False, stubs: bool = False) -> None:
        self._folders = folders
        self._stubs = stubs
        self._allow_outside = allow_outside
        self._files: dict[str, tuple[ExternalFile, int]] = {}

    @classmethod
    def beside(cls, model: Path, allow_outside: bool = False, stubs: bool = False) -> ExternalFiles:
        """For a model file; its folder and, where it is a link, that of the real file. ``stubs``: no data file is
        opened, a stub seeded by the place stands for each tensor."""
        folders = (Path(os.path.abspath(model)).parent, Path(os.path.realpath(model)).parent)
        return cls(tuple(dict.fromkeys(folders)), allow_outside, stubs)

    def locate(self, tensor: str, entries: Mapping[str, str], needed: int) -> ExternalLocation | Stub:
        """The place that a tensor's ``external_data`` names, checked to hold ``needed`` bytes. Raises ModelError."""
        location = entries.get("location", "")
        if not location:
            raise ModelError(f"tensor {tensor!r} has external data without a location: export the model again")
        offset = _number(tensor, entries, "offset", 0)
        length = _number(tensor, entries, "length", needed)
        if length != needed:
            raise ModelError(
                f"external data of tensor {tensor!r} is {length} bytes long, its type needs {needed}: "
                "the model is damaged, export it again"
            )
        if self._stubs:
            return Stub(zlib.crc32(f"{location}\0{offset}\0{length}".encode()))
        if location not in self._files:
            self._files[location] = self._open(tensor, location)
        file, size = self._files[location]
        if offset + needed > size:
            raise ModelError(
                f"external data file {location!r} has {size} bytes, tensor {tensor!r} needs bytes {offset} to "
                f"{offset + needed}: the file is truncated, copy it again"
            )
        return ExternalLocation(file, offset, needed)

    def _open(self, tensor: str, location: str) -> tuple[ExternalFile, int]:
        if not self._folders:
            raise ModelError(
                f"tensor {tensor!r} has its data in {location!r}: say where that lies (base_dir), or load the file"
            )
        if not self._allow_outside:
            parts = (PurePosixPath(location), PureWindowsPath(location))
            if any(p.is_absolute() or p.drive or p.root or ".." in p.parts for p in parts) or "\0" in location:
                raise ModelError(
                    f"external data {location!r} of tensor {tensor!r} lies outside of the model's folder: {_REMEDY}"
                )
        for folder in self._folders:
            path = folder / location
            try:
                real = Path(os.path.realpath(path, strict=True))
                status = os.stat(real)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                raise ModelError(
                    f"external data file {str(path)!r} of tensor {tensor!r} cannot be read ({error})"
                ) from error
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(f"external data {str(path)!r} of tensor {tensor!r} is no regular file")
            if not self._allow_outside:
                self._check_inside(tensor, location, real, status)
            return _mapped(tensor, real)
        raise ModelError(
            f"external data file {str(self._folders[0] / location)!r} of tensor {tensor!r} is missing: "
            "put it beside the model"
        )

    def _check_inside(self, tensor: str, location: str, real: Path, status: os.stat_result) -> None:
        folders = [Path(os.path.realpath(folder)) for folder in self._folders]
        if not any(real.is_relative_to(folder) for folder in folders):
            raise ModelError(
                f"external data {location!r} of tensor {tensor!r} is a link that leaves the model's folder "
                f"(to {str(real)!r}): {_REMEDY}"
            )
        if status.st_nlink > 1:
            inside = {
                entry.path
                for folder in {*folders, real.parent}
                for entry in os.scandir(folder)
                if entry.inode() == status.st_ino and not entry.is_symlink()
            }
            if len(inside) < status.st_nlink:
                raise ModelError(
                    f"external data {location!r} of tensor {tensor!r} has a hard link outside of the model's folder: "
                    f"copy the file, or, {_REMEDY}"
                )


def _mapped(tensor: str, path: Path) -> tuple[ExternalFile, int]:
    """The file and its size. It is mapped now, so that the model outlives the file's replacement, as by a save."""
    file = ExternalFile(path)
    try:
        return file, len(file.view())
    except OSError as error:
        raise ModelError(
            f"external data file {str(path)!r} of tensor {tensor!r} cannot be read ({error.strerror}): "
            "check its permissions"
        ) from error


def _number(tensor: str, entries: Mapping[str, str], key: str, default: int) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise ModelError(f"external data of tensor {tensor!r} has {key} {text!r}, a number of bytes is needed")
    return int(text)
