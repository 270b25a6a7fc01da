"""ONNX's own test data: `test_data_set_N/input_K.pb` and `output_K.pb`, one serialized tensor (or sequence) a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from qir.errors import DataError
from qir.runtime.specs import InputSpec

_SET = re.compile(r"test_data_set_(\d+)")


def find_sets(folder: Path) -> list[Path]:
    """The sets in a folder in numeric order; the folder itself where it is a set."""
    found = sorted((int(m[1]), p) for p in folder.iterdir() if (m := _SET.fullmatch(p.name)) and p.is_dir())
    if found:
        return [path for _, path in found]
    return [folder] if (folder / "input_0.pb").is_file() else []


def read_set(folder: Path, side: str, specs: Sequence[InputSpec]) -> dict[str, Any]:
    """The values of `side` (`input` or `output`) by name: the name in the file where the model has it, else place K.

    Raises DataError for a file that is no such protobuf or keeps its data elsewhere.
    """
    by_name = {spec.name: spec for spec in specs}
    files = sorted((int(p.stem.rpartition("_")[2]), p) for p in folder.glob(f"{side}_*.pb") if p.stem[-1:].isdigit())
    values: dict[str, Any] = {}
    for index, path in files:
        place = specs[index] if index < len(specs) else None
        raw = path.read_bytes()
        # A sequence carries no tensor fields, so what the place wants decides how the bytes are read.
        proto = _parse(raw, path, place.kind if place else "tensor")
        name = proto.name if proto.name in by_name else place.name if place else proto.name
        if name in values:
            raise DataError(f"{path}: a second value for '{name}'")
        values[name] = _value(proto, path)
    return values


def write_set(folder: Path, side: str, values: Mapping[str, Any]) -> None:
    """Writes `side_0.pb` ... in the mapping's order, each with its name inside."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, (name, value) in enumerate(values.items()):
        (folder / f"{side}_{index}.pb").write_bytes(_proto(value, name).SerializeToString())


def _parse(raw: bytes, path: Path, kind: str) -> Any:
    proto: Any = {"sequence": onnx.SequenceProto, "optional": onnx.OptionalProto}.get(kind, onnx.TensorProto)()
    try:
        proto.ParseFromString(raw)
    except Exception as error:  # protobuf's DecodeError, whose home moves between versions
        raise DataError(f"{path}: is no {type(proto).__name__}: {' '.join(str(error).split())}") from error
    return proto


def _value(proto: Any, path: Path) -> Any:
    if isinstance(proto, onnx.TensorProto) and proto.data_location == onnx.TensorProto.EXTERNAL:
        raise DataError(f"{path}: keeps its data in another file, which sample data may not")
    try:
        if isinstance(proto, onnx.SequenceProto):
            return numpy_helper.to_list(proto)
        if isinstance(proto, onnx.OptionalProto):
            return numpy_helper.to_optional(proto)
        return numpy_helper.to_array(proto)
    except Exception as error:  # anything that numpy or onnx say about inconsistent bytes
        raise DataError(f"{path}: does not hold what it says: {' '.join(str(error).split())}") from error


def _proto(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return numpy_helper.from_list(value, name)
    if value is None:
        return numpy_helper.from_optional(None, name)
    return numpy_helper.from_array(np.asarray(value), name)
