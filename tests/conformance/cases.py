"""Every model that the installed onnx package can produce, with the inputs that come with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from onnx.backend.test.case import model as model_cases
from onnx.backend.test.case import node as node_cases
from onnx.backend.test.loader import load_model_tests

SOURCES = ("node", "model", "simple", "pytorch-converted", "pytorch-operator", "light")


class Case(NamedTuple):
    name: str
    model: onnx.ModelProto
    feeds: dict[str, Any] | None
    """The first data set by input name; None where the package ships no inputs."""


def cases(source: str) -> Iterator[Case]:
    if source == "light":
        # Known nets with made-up weights; their inputs are not shipped.
        for path in sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx")):
            yield Case(path.stem, onnx.load(path), None)
    elif source in ("node", "model"):
        found = node_cases.collect_testcases(None) if source == "node" else model_cases.collect_testcases()
        for case in found:
            if case.model is not None:
                yield Case(case.name, case.model, _feeds(case.model, case.data_sets[0][0] if case.data_sets else None))
    else:
        for case in load_model_tests(kind=source):
            folder = Path(case.model_dir)
            model = onnx.load(folder / "model.onnx")
            yield Case(case.name, model, _feeds(model, _stored_inputs(model, folder / "test_data_set_0")))


def _feeds(model: onnx.ModelProto, inputs: Sequence[Any] | None) -> dict[str, Any] | None:
    if inputs is None:
        return None
    constants = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in constants]
    arrays = [onnx.numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else x for x in inputs]
    return dict(zip(names, arrays, strict=False))


def _stored_inputs(model: onnx.ModelProto, folder: Path) -> list[Any] | None:
    if not folder.is_dir():
        return None
    types = [value.type for value in model.graph.input]
    inputs: list[Any] = []
    for index in range(len(list(folder.glob("input_*.pb")))):
        raw = (folder / f"input_{index}.pb").read_bytes()
        match types[index].WhichOneof("value"):
            case "sequence_type":
                inputs.append(onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(raw)))
            case "optional_type":
                inputs.append(onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(raw)))
            case _:
                inputs.append(onnx.numpy_helper.to_array(onnx.TensorProto.FromString(raw)))
    return inputs
