"""Model files and ModelProtos to IR models."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from qir.errors import ModelError
from qir.frontend.external import ExternalFiles
from qir.frontend.graphs import GraphReader
from qir.frontend.infos import opsets_of
from qir.frontend.residue import make_residue, metadata_of
from qir.frontend.tensors import Span
from qir.frontend.wire import Buffer, Damaged, Field, fields, read_varint, signed
from qir.ir import Graph, Model
from qir.ir.collector import collector_paused
from qir.ir.journal import EditState

if TYPE_CHECKING:
    import onnx

__all__ = ["import_model", "load"]

_SMALL = 32 << 20
"""Files up to this size are read at once, because a single byte is fetched faster from bytes than from a map."""
# Keys of ModelProto's fields.
_KNOWN_KEYS = frozenset({0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72, 0xA2, 0xCA, 0xD2})
_FOREIGN = {
    b"version https://git-lfs": "it is a git-lfs pointer; fetch the real file with 'git lfs pull'",
    b"PK\x03\x04": "it looks like a zip archive or a PyTorch checkpoint; export the model to ONNX",
    b"\x93NUMPY": "it is a numpy array; give the model file",
    b"\x89HDF": "it is an HDF5 file; convert the model to ONNX",
    b"<": "it looks like a web page or XML; was the download complete?",
    b"{": "it looks like JSON; give the binary .onnx file",
}


def load(path: str | os.PathLike[str], *, allow_external_outside: bool = False, external_stubs: bool = False) -> Model:
    """Read an ONNX file. Weights in external data files are mapped when they are first read.

    Raises ModelError where the file is absent, damaged or not ONNX, or its external data is missing, too short or
    outside of the model's folder; the latter is allowed by ``allow_external_outside``. ``external_stubs`` reads no data
    file: a stub stands for each of their tensors, equal for the same place in a file of the same name.
    """
    path = Path(path)
    buffer = _open(path)
    external = ExternalFiles.beside(path, allow_external_outside, external_stubs)
    return _read_model(buffer, external, repr(str(path)))


def import_model(proto: onnx.ModelProto, base_dir: str | os.PathLike[str] | None = None) -> Model:
    """The IR of a ModelProto, which is not kept. ``base_dir`` is where its external data lies. Raises ModelError."""
    folders = () if base_dir is None else (Path(base_dir),)
    try:
        buffer = proto.SerializeToString()
    except Exception as error:  # protobuf raises an error of its own above 2 GB
        raise ModelError(f"the model cannot be serialized ({error}): keep its weights as external data") from error
    return _read_model(buffer, ExternalFiles(folders), "the ModelProto")


def _open(path: Path) -> Buffer:
    name = repr(str(path))
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ModelError(f"{name} is a folder: give the .onnx file inside")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{name} is no regular file: give a .onnx file")
        if status.st_size == 0:
            raise ModelError(f"{name} is empty: export or copy the model again")
        with open(path, "rb") as file:
            if status.st_size <= _SMALL:
                return file.read()
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelError(f"there is no file {name}: check the path") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{name} cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _read_model(buffer: Buffer, external: ExternalFiles, name: str) -> Model:
    top = _top_level(buffer, name)
    with collector_paused():
        try:
            return _model(buffer, top, external)
        except (Damaged, IndexError, UnicodeDecodeError, DecodeError) as error:
            reason = f" ({error})" if str(error) else ""
            raise ModelError(f"{name} is damaged inside{reason}: export or copy the model again") from error
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from error


def _top_level(buffer: Buffer, name: str) -> list[Field]:
    """The fields of the ModelProto; this is where files that are no ONNX, or cut short, are told."""
    found: list[Field] = []
    try:
        found.extend(fields(buffer, 0, len(buffer)))
    except Damaged:
        # A file that was cut ends inside its last field, nearly always the graph.
        if found and all(field[0] in _KNOWN_KEYS for field in found) and found[0][0] in (0x08, 0x12, 0x42):
            raise ModelError(f"{name} is truncated or damaged: copy or export the model again") from None
        raise ModelError(f"{name} is not an ONNX file: {_guess(buffer)}") from None
    if not any(field[0] == 0x3A for field in found):
        if any(field[0] in _KNOWN_KEYS for field in found) and found[0][0] in (0x08, 0x12, 0x42):
            raise ModelError(f"{name} holds no graph, it is truncated or damaged: copy or export the model again")
        raise ModelError(f"{name} is not an ONNX file: {_guess(buffer)}")
    return found


def _guess(buffer: Buffer) -> str:
    start = buffer[:64]
    if start[4:8] == b"TFL3":
        return "it is a TensorFlow Lite model; convert it to ONNX"
    if start[4:8] == b"ORTM":
        return "it is an onnxruntime .ort file; give the .onnx file that it was made from"
    for magic, reason in _FOREIGN.items():
        if start.lstrip().startswith(magic):
            return reason
    return "give a binary .onnx file"


def _model(buffer: Buffer, top: list[Field], external: ExternalFiles) -> Model:
    reader = GraphReader(EditState(), external)
    graph: Graph | None = None
    ir_version: int | None = None
    model_version: int | None = None
    texts = {0x12: "", 0x1A: "", 0x22: "", 0x32: ""}
    functions: list[Span] = []
    opsets: list[bytes] = []
    metadata: list[bytes] = []
    opset_fields: list[bytes] = []
    metadata_fields: list[bytes] = []
    verbatim: list[bytes] = []
    for key, head, begin, end in top:
        match key:
            case 0x3A:
                graph = reader.graph(buffer, Span(begin, end))
            case 0xCA:
                functions.append(Span(begin, end))
            case 0x08:
                ir_version = signed(read_varint(buffer, begin)[0])
            case 0x28:
                model_version = signed(read_varint(buffer, begin)[0])
            case 0x42:
                opsets.append(buffer[begin:end])
                opset_fields.append(buffer[head:end])
            case 0x72:
                metadata.append(buffer[begin:end])
                metadata_fields.append(buffer[head:end])
            case 0x12 | 0x1A | 0x22 | 0x32 if end > begin:
                texts[key] = buffer[begin:end].decode()
            case _:
                verbatim.append(buffer[head:end])
    assert graph is not None, "checked by _top_level"
    imports, exact = opsets_of(opsets)
    if not exact:
        verbatim += opset_fields
    mapping, exact = metadata_of(metadata)
    if not exact:
        verbatim += metadata_fields
    model = Model(graph, imports, ir_version)
    model._producer_name, model._producer_version = texts[0x12], texts[0x1A]
    model._domain, model._doc = texts[0x22], texts[0x32]
    model._model_version = model_version
    model._metadata = mapping or None
    for span in functions:
        function = reader.function(buffer, span)
        if function.op_id in model.functions:
            raise ModelError(f"function {function.domain}.{function.name} is defined twice: export the model again")
        model.add_function(function)
    model._extra = make_residue(verbatim, () if ir_version is not None else (1,))
    return model
