"""Run manifests: ``OUT.qir.json`` says what made a model, so exactly that making it again gives the same bytes.

It names every file that went in with its digest (paths relative to the manifest's folder), the arguments, the versions,
and the digests of what came out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qir.errors import DataError, OptionError
from qir.frontend import load
from qir.ir import ExternalLocation, Tensor

__all__ = ["Manifest", "manifest_path", "read_manifest", "replay_arguments", "write_manifest"]

FORMAT = 1
_FILES = ("model", "calibration", "golden", "recipe", "metric")
"""Arguments that may name a file or a folder."""
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """``arguments`` of ``qir.quantize``, files aside; ``files``: argument -> (path, digest); ``outputs``: file name ->
    digest. Digests are SHA-256 in hexadecimal."""

    folder: Path
    arguments: Mapping[str, Any]
    files: Mapping[str, tuple[str, str]]
    outputs: Mapping[str, str]
    versions: Mapping[str, str]
    pipeline: str

    def changed(self, path: Path) -> list[str]:
        """The output files whose bytes are not those of the recorded run, given the model that a replay wrote."""
        made = _outputs(path)
        recorded = list(self.outputs.values())
        return [name for (name, digest), old in zip(made.items(), recorded, strict=False) if digest != old] + (
            [path.name] if len(made) != len(recorded) else []
        )


def manifest_path(output: Path) -> Path:
    return output.with_name(output.name + ".qir.json")


def write_manifest(output: Path, arguments: Mapping[str, Any], pipeline: str, versions: Mapping[str, str]) -> Path:
    """Write the manifest of a run beside its output. Raises DataError where an argument is an object of Python's, which
    no file can name."""
    folder = output.parent.resolve()
    files: dict[str, dict[str, str]] = {}
    plain: dict[str, Any] = {}
    for name, value in arguments.items():
        path = _path_of(name, value)
        if path is not None:
            rest = str(value)[len(str(path)) :]  # FILE.py:FUNCTION
            files[name] = {"path": Path(os.path.relpath(path.resolve(), folder)).as_posix() + rest}
            files[name]["sha256"] = _digest(path, is_model=name == "model")
        elif value is None or isinstance(value, str | int | float | list | tuple):
            plain[name] = list(value) if isinstance(value, tuple) else value
        else:
            raise DataError(f"a run with {name}={type(value).__name__} cannot be replayed: give files, or no manifest")
    content = {
        "format": FORMAT,
        "files": files,
        "arguments": plain,
        "pipeline": pipeline,
        "versions": dict(versions),
        "outputs": _outputs(output),
    }
    path = manifest_path(output)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def read_manifest(path: Path) -> Manifest:
    """Raises OptionError for what is no manifest."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise OptionError(f"{str(path)!r} is a manifest of format {content['format']}: it needs another qir")
        files = {name: (str(entry["path"]), str(entry["sha256"])) for name, entry in content["files"].items()}
        return Manifest(
            path.parent,
            dict(content["arguments"]),
            files,
            dict(content["outputs"]),
            dict(content["versions"]),
            str(content["pipeline"]),
        )
    except OSError as error:
        raise OptionError(f"manifest {str(path)!r} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OptionError(f"{str(path)!r} is no run manifest: give the .qir.json beside a quantized model") from error


def replay_arguments(manifest: Manifest) -> dict[str, Any]:
    """What to call ``qir.quantize`` with. Raises DataError where a file is gone, or not what it was."""
    arguments = dict(manifest.arguments)
    for name, (text, digest) in manifest.files.items():
        value = str(manifest.folder / text)
        path = _path_of(name, value)
        if path is None:
            raise DataError(f"{name} {value!r} of the recorded run is not there: put it back")
        if _digest(path, is_model=name == "model") != digest:
            raise DataError(f"{name} {str(path)!r} is not the file of the recorded run: its content has changed")
        arguments[name] = value
    return arguments


def _path_of(name: str, value: Any) -> Path | None:
    """The file or folder that an argument names, None where it names none (``random:64``, ``accuracy``)."""
    if name not in _FILES or not isinstance(value, str | os.PathLike):
        return None
    path = Path(value)
    try:
        if name == "metric" and not path.exists():
            path = Path(str(value).rpartition(":")[0])
        return path if str(path) != "." and path.exists() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _outputs(path: Path) -> dict[str, str]:
    """Digests of a model file and of its data files."""
    return {file.name: _digest_of([file]) for file in (path, *sorted(_data_files(path)))}


def _digest(path: Path, is_model: bool) -> str:
    if path.is_dir():
        return _digest_of(sorted(entry for entry in path.rglob("*") if entry.is_file()), path)
    return _digest_of([path, *sorted(_data_files(path))] if is_model else [path])


def _data_files(path: Path) -> set[Path]:
    constants = (
        value.const for graph in load(path).graph.graphs() for value in graph.initializers if value.const is not None
    )
    locations = (tensor.location for tensor in constants if isinstance(tensor, Tensor))
    return {location.file.path for location in locations if isinstance(location, ExternalLocation)}


def _digest_of(files: Iterable[Path], root: Path | None = None) -> str:
    """Of the contents, and below a root of the names too."""
    digest = hashlib.sha256()
    for file in files:
        if root is not None:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        with open(file, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
