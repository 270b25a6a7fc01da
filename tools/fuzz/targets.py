"""What is fuzzed: for each reader the inputs to start from, a way to change them, and the call that must survive."""

from __future__ import annotations

import io
import os
import random
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qir.api.manifest import read_manifest, replay_arguments
from qir.api.quantizing import quantize
from qir.calibration.data import open_data
from qir.calibration.images import Images, read_image
from qir.calibration.specs import input_specs
from qir.codegen import to_bytes
from qir.frontend import import_model, load
from qir.ir.parser import parse_model
from qir.ir.printer import print_model
from qir.ir.verifier import verify
from qir.ops.shape_inference import infer
from qir.passes.pipelines import INT8, INT8_DYNAMIC, INT8_FAST
from qir.pipeline import Pipeline
from qir.pipeline.registry import load_target
from qir.quant.recipe import Recipe
from qir.runtime.specs import InputSpec
from qir.targets.file import target_text
from tools.fuzz.mutate import mutate_bytes, mutate_message, mutate_text

__all__ = ["TARGETS", "Seeds", "Target"]

_LARGEST_SEED = 40_000
_GOLDEN = Path(__file__).resolve().parents[2] / "golden_models"


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


class AppliedRecipe(Text):
    """Recipes, as a pipeline of a golden model obeys them."""

    def __init__(self, seeds: Sequence[bytes], model: bytes) -> None:
        super().__init__(seeds)
        self._model = import_model(onnx.ModelProto.FromString(model))

    def call(self, data: bytes) -> None:
        Recipe.parse(data.decode("utf-8", "surrogatepass")).assign(self._model, self._model)


class Quantized(ModelMessages):
    """`lift` over quantized models that say wrong things, and what may follow it."""

    def __init__(self, seeds: Sequence[bytes], passes: str) -> None:
        super().__init__(seeds)
        self._passes = Pipeline.parse(passes)

    def call(self, data: bytes) -> None:
        to_bytes(self._passes.run(import_model(onnx.ModelProto.FromString(data))).model)


class TargetFile(Text):
    """The reader of target files."""

    def call(self, data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "target.toml"
            path.write_bytes(data)
            target_text("ort-cpu", "mine", load_target(str(path)).cost, {})


class ManifestFile(Text):
    """The reader of run manifests, with the files that they name beside them."""

    def __init__(self, seeds: Sequence[bytes], files: dict[str, bytes]) -> None:
        super().__init__(seeds)
        self._files = files

    def call(self, data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self._files.items():
                (Path(folder) / name).write_bytes(content)
            path = Path(folder) / "q.onnx.qir.json"
            path.write_bytes(data)
            replay_arguments(read_manifest(path))


class Picture(Target):
    """Images as samples, under a preprocessing line."""

    def call(self, data: bytes) -> None:
        spec = InputSpec("x", np.dtype(np.float32), (None, 3, None, None))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.png"
            path.write_bytes(data)
            for line in ("resize=32 crop=32", "resize=32x32 pad=letterbox"):
                images = Images.parse(line)
                assert images is not None
                read_image(path, images, spec)


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


class Seeds:
    """What targets start from. Models are collected once, in seconds, or read from a file that an earlier run wrote."""

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache

    @cached_property
    def models(self) -> list[bytes]:
        if self._cache is None:
            return _models()
        if not self._cache.exists():
            content = io.BytesIO()
            with zipfile.ZipFile(content, "w") as archive:
                for number, model in enumerate(_models()):
                    archive.writestr(f"{number:06}", model)
            temporary = self._cache.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(content.getvalue())
            os.replace(temporary, self._cache)
        with zipfile.ZipFile(self._cache) as archive:
            return [archive.read(name) for name in archive.namelist()]

    @cached_property
    def texts(self) -> list[bytes]:
        return [print_model(import_model(onnx.ModelProto.FromString(model))).encode() for model in self.models]

    @cached_property
    def quantized(self) -> list[bytes]:
        """Small golden models in the forms that files of other quantizers have."""
        found = []
        for name in _QUANTIZED:
            source = import_model(onnx.ModelProto.FromString(_golden(name, "model.onnx")))
            samples = str(_GOLDEN / name / "calib.npz")
            found += [to_bytes(Pipeline.parse(text).run(source, calibration=samples).model) for text in _FORMS]
        return found


def _models() -> list[bytes]:
    """Small models of the onnx package, one per operator and feature, and the golden models that are small."""
    from onnx.backend.test.case import model as model_cases
    from onnx.backend.test.case import node as node_cases

    found: dict[str, bytes] = {}
    for case in (*node_cases.collect_testcases(None), *model_cases.collect_testcases()):
        if case.model is not None:
            kind = ",".join(sorted({node.op_type for node in case.model.graph.node})) + str(case.model.functions[:1])
            found.setdefault(kind, case.model.SerializeToString())
    golden = [path.read_bytes() for path in sorted(_GOLDEN.glob("*/model.onnx"))]
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
_FORMS = (
    f"{INT8_FAST.text}",
    f"{INT8_FAST.text.replace('emit-qdq', 'emit-qoperator')}",
    f"{INT8_DYNAMIC.text}",
)
_QUANTIZED = ("mlp-digits", "cnn-digits")
_TARGETS = (
    '[target]\nbase = "ort-cpu"\nname = "mine"\n'
    "[cost]\nmacs_per_us = [43000, 88000]\n[cost.element_ns]\nAdd = [0.17, 0.18]\n",
    '[target]\nbase = "tensorrt"\n'
    '[session_options]\n"session.x64quantprecision" = "1"\n[measured]\nprocessor = "any"\n',
)
_RECIPES = (
    '[[node]]\nmatch = "layer3/*"\nprecision = "float"\n',
    '[[node]]\nmatch = "Conv"\nprecision = "int8"\n[[node]]\nmatch = "fc"\nprecision = "int8-dynamic"\n',
    '[[node]]\nmatch = ["Conv", "Gemm"]\nmethod = "mse"\n[[node]]\nmatch = "*"\nprecision = "int8"\n',
    'corrections = ["bias"]\n[[region]]\nfrom = "x"\nto = "y"\nmethod = "mse"\n'
    '[[node]]\nmatch = ["Conv", "a"]\nmethod = "entropy"\n',
)


def _golden(name: str, file: str) -> bytes:
    return (_GOLDEN / name / file).read_bytes()


def _manifest() -> ManifestFile:
    """A recorded run, and the files that it names."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("model.onnx", "calib.npz"):
            (folder / file).write_bytes(_golden("mlp-digits", file))
        quantize(
            folder / "model.onnx",
            folder / "q.onnx",
            calibration=folder / "calib.npz",
            preset="int8-fast",
            latency_seconds=0,
            manifest=True,
        )
        seed = (folder / "q.onnx.qir.json").read_bytes()
        return ManifestFile([seed], {file: (folder / file).read_bytes() for file in ("model.onnx", "calib.npz")})


def _pictures() -> list[bytes]:
    from PIL import Image

    found = []
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8)
    for form in ("png", "jpeg", "bmp", "gif", "webp", "ppm", "tiff"):
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, form)
        found.append(content.getvalue())
    strip = io.BytesIO()
    Image.new("L", (1, 5000)).save(strip, "png")
    return [*found, strip.getvalue()]


def _archive() -> Archive:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 6])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 6])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    return Archive(_archives(), onnx.helper.make_model(graph).SerializeToString())


def _encoded(texts: Sequence[str]) -> list[bytes]:
    return [text.encode() for text in texts]


TARGETS: dict[str, Callable[[Seeds], Target]] = {
    "model-bytes": lambda seeds: ModelBytes(seeds.models),
    "model-messages": lambda seeds: ModelMessages(seeds.models),
    "optimize": lambda seeds: Optimizer(seeds.models),
    "lift": lambda seeds: Quantized(seeds.quantized, "lift,dequantize"),
    "relift": lambda seeds: Quantized(seeds.quantized, "canonicalize,fold-constants,lift,emit-qdq"),
    "dynamic": lambda seeds: Quantized(seeds.models, INT8_DYNAMIC.text),
    "ir-text": lambda seeds: Text(seeds.texts),
    "pipeline-text": lambda seeds: PipelineText(_encoded(_PIPELINES)),
    "recipe": lambda seeds: RecipeText(_encoded(_RECIPES)),
    "recipe-applied": lambda seeds: AppliedRecipe(_encoded(_RECIPES), _golden("cnn-digits", "model.onnx")),
    "target-file": lambda seeds: TargetFile(_encoded(_TARGETS)),
    "manifest": lambda seeds: _manifest(),
    "image": lambda seeds: Picture(_pictures()),
    "npz": lambda seeds: _archive(),
}
"""How each target is made; those of models take seconds for collecting them."""
