"""What is fuzzed: for each reader the inputs to start from, a way to change them, and the call that must survive."""

from __future__ import annotations

import io
import random
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qir.calibration.data import open_data
from qir.calibration.specs import input_specs
from qir.codegen import to_bytes
from qir.frontend import import_model, load
from qir.ir.parser import parse_model
from qir.ir.printer import print_model
from qir.ir.verifier import verify
from qir.ops.shape_inference import infer
from qir.passes.pipelines import INT8
from qir.pipeline import Pipeline
from qir.quant.recipe import Recipe
from tools.fuzz.mutate import mutate_bytes, mutate_message, mutate_text

__all__ = ["Target", "make_targets"]

_LARGEST_SEED = 40_000
_SAMPLE = "input=[[1, 2], [3, 4]]"


class Target(ABC):
    """A reader. ``seeds``: well-formed inputs, as bytes."""

    def __init__(self, seeds: Sequence[bytes]) -> None:
        self.seeds = list(seeds)

    def mutate(self, rng: random.Random) -> bytes:
        return mutate_bytes(rng, rng.choice(self.seeds), self.seeds)

    @abstractmethod
    def call(self, data: bytes) -> None:
        """Read the input and use what comes out. Only QirError may be raised."""


class ModelBytes(Target):
    """The importer over damaged files."""

    def call(self, data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.onnx"
            path.write_bytes(data)
            to_bytes(load(path))


class ModelMessages(Target):
    """The importer, shape inference, verifier and exporter over well-formed protobuf that says wrong things."""

    def __init__(self, seeds: Sequence[bytes]) -> None:
        super().__init__(seeds)
        self._messages = [onnx.ModelProto.FromString(seed) for seed in seeds]

    def mutate(self, rng: random.Random) -> bytes:
        message = onnx.ModelProto()
        message.CopyFrom(rng.choice(self._messages))
        mutate_message(rng, message, self._messages)
        return message.SerializeToString()

    def call(self, data: bytes) -> None:
        model = import_model(onnx.ModelProto.FromString(data))
        infer(model)
        verify(model)
        to_bytes(model)


class Optimizer(ModelMessages):
    """The exact passes over models of which the verifier thinks well."""

    def call(self, data: bytes) -> None:
        model = import_model(onnx.ModelProto.FromString(data))
        Pipeline.parse("optimize,legalize,analyze-ranges").run(model)


class Text(Target):
    """The parser of IR text, and the printer of what it takes."""

    def mutate(self, rng: random.Random) -> bytes:
        texts = [seed.decode() for seed in self.seeds]
        return mutate_text(rng, rng.choice(texts), texts).encode("utf-8", "surrogatepass")

    def call(self, data: bytes) -> None:
        print_model(parse_model(data.decode("utf-8", "surrogatepass")))


class PipelineText(Text):
    """The parser of pipelines."""

    def call(self, data: bytes) -> None:
        str(Pipeline.parse(data.decode("utf-8", "surrogatepass")))


class RecipeText(Text):
    """The reader of recipes."""

    def call(self, data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "recipe.toml"
            path.write_bytes(data)
            Recipe.load(path)


class Archive(Target):
    """The reader of `.npz` samples."""

    def __init__(self, seeds: Sequence[bytes], model: bytes) -> None:
        super().__init__(seeds)
        self._specs = input_specs(import_model(onnx.ModelProto.FromString(model)))

    def call(self, data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "samples.npz"
            path.write_bytes(data)
            for feed in open_data(path, self._specs):
                sum(array.size for array in feed.values())


def _models() -> list[bytes]:
    """Small models of the onnx package, one per operator and feature, and the golden models that are small."""
    from onnx.backend.test.case import model as model_cases
    from onnx.backend.test.case import node as node_cases

    found: dict[str, bytes] = {}
    for case in (*node_cases.collect_testcases(None), *model_cases.collect_testcases()):
        if case.model is not None:
            kind = ",".join(sorted({node.op_type for node in case.model.graph.node})) + str(case.model.functions[:1])
            found.setdefault(kind, case.model.SerializeToString())
    root = Path(__file__).resolve().parents[2]
    golden = [path.read_bytes() for path in sorted((root / "golden_models").glob("*/model.onnx"))]
    return [data for data in (*found.values(), *golden) if len(data) < _LARGEST_SEED]


def _archives() -> list[bytes]:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    contents: list[dict[str, Any]] = [
        {"x": x},
        {"x": np.asfortranarray(x)},
        {"x": x.astype(np.float64), "labels": np.arange(4)},
        {f"x/{i:06}": x[i : i + 1] for i in range(3)},
        {"x": np.array([object()] * 4)},
    ]
    seeds = []
    for content in contents:
        for write in (np.savez, np.savez_compressed):
            buffer = io.BytesIO()
            write(buffer, **content)
            seeds.append(buffer.getvalue())
    return seeds


_PIPELINES = (
    "optimize",
    INT8.text,
    "fuse{only=conv-bn max-rounds=3}",
    'canonicalize,tune{prepare=[smooth,"smooth{scope=all}"]},convert-opset{to=17}',
)
_RECIPES = (
    '[[node]]\nmatch = "layer3/*"\nprecision = "float"\n',
    '[[node]]\nmatch = "Conv"\nprecision = "int8"\n[[node]]\nmatch = "fc"\nprecision = "int8-dynamic"\n',
)


def make_targets() -> dict[str, Target]:
    """All targets by name. Collecting their seeds takes seconds."""
    models = _models()
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 6])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 6])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    texts = [print_model(import_model(onnx.ModelProto.FromString(model))).encode() for model in models]
    return {
        "model-bytes": ModelBytes(models),
        "model-messages": ModelMessages(models),
        "optimize": Optimizer(models),
        "ir-text": Text(texts),
        "pipeline-text": PipelineText([text.encode() for text in _PIPELINES]),
        "recipe": RecipeText([text.encode() for text in _RECIPES]),
        "npz": Archive(_archives(), onnx.helper.make_model(graph).SerializeToString()),
    }
