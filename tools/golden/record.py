"""From a trained model to its golden folder: check it, record float outputs, measure the task, write the files."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import sklearn
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from qir.golden_models import tasks

Array = NDArray[Any]
Feed = dict[str, Array]

SETS = 4
TOLERANCE = 1e-4  # of onnxruntime against torch, relative to the largest value of an output (at least 1)
SIZE_LIMIT = 1_000_000


@dataclass(frozen=True)
class Golden:
    """A trained model before it is written: everything that its folder will hold.

    ``calibration`` and ``evaluation`` follow the archive convention: a key is an input's name, the first axis the
    samples (which are also the model's batch axis, except for inputs that have none); ragged samples are
    ``name/000000`` and so on, each a whole feed. ``reference`` runs torch on one feed.
    """

    name: str
    description: str
    source: tuple[str, str]
    model: onnx.ModelProto
    reference: Callable[[Feed], list[Array]]
    calibration: Mapping[str, Array]
    evaluation: Mapping[str, Array]
    labels: Array
    metric: str
    seed: int
    training: Mapping[str, float | int]


def feeds(arrays: Mapping[str, Array], model: onnx.ModelProto) -> Iterator[Feed]:
    """One feed per sample, batch 1, in order."""
    weights = {item.name for item in model.graph.initializer}
    ranks = {item.name: len(item.type.tensor_type.shape.dim) for item in model.graph.input if item.name not in weights}
    ragged = any("/" in key for key in arrays)
    keys = [key for key in arrays if key.split("/")[0] in ranks]
    count = len(keys) // len(ranks) if ragged else len(arrays[keys[0]])
    for index in range(count):
        if ragged:
            yield {name: arrays[f"{name}/{index:06d}"] for name in ranks}
        else:
            yield {
                name: arrays[name][index : index + 1] if rank else np.asarray(arrays[name][index])
                for name, rank in ranks.items()
            }


def write(golden: Golden, root: Path) -> str:
    """Write ``root/<name>`` (replacing what was there) and return a line about it. Fails before it writes anything."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(golden.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    samples = list(feeds(golden.evaluation, golden.model))
    outputs = [list(session.run(None, feed)) for feed in samples]
    error = max(_disagreement(got, golden.reference(feed)) for got, feed in zip(outputs, samples, strict=True))
    if error > TOLERANCE:
        raise RuntimeError(f"{golden.name}: onnxruntime and torch differ by {error:.2e}")
    for feed in feeds(golden.calibration, golden.model):
        session.run(None, feed)
    value = tasks.score(golden.metric, outputs, golden.labels)
    size = golden.model.ByteSize()
    if size >= SIZE_LIMIT:
        raise RuntimeError(f"{golden.name}: {size} bytes, the limit is {SIZE_LIMIT}")

    folder = root / golden.name
    expected = _expected(folder / "golden.toml")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(golden.model.SerializeToString(deterministic=True))
    for index in range(SETS):
        _write_set(folder / f"test_data_set_{index}", session, samples[index], outputs[index])
    np.savez_compressed(folder / "calib.npz", **golden.calibration)  # type: ignore[arg-type]
    np.savez_compressed(folder / "eval.npz", **golden.evaluation, labels=golden.labels)  # type: ignore[arg-type]
    (folder / "golden.toml").write_text(_toml(golden, value, len(samples), error) + expected, encoding="utf-8")
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    sizes = f"model {size // 1000} kB, folder {total // 1000} kB"
    return f"{golden.name}: {golden.metric} {value:.4f}, torch differs by {error:.1e}, {sizes}"


def _disagreement(got: list[Array], wanted: list[Array]) -> float:
    """Largest difference over all outputs, relative to the largest value of each (at least 1)."""
    if [item.shape for item in got] != [item.shape for item in wanted]:
        raise RuntimeError(f"shapes {[item.shape for item in got]} differ from {[item.shape for item in wanted]}")
    return max(float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) for a, b in zip(got, wanted, strict=True))


def _write_set(folder: Path, session: ort.InferenceSession, feed: Feed, outputs: list[Array]) -> None:
    """One test data set in ONNX's layout."""
    folder.mkdir()
    for index, item in enumerate(session.get_inputs()):
        tensor = numpy_helper.from_array(np.asarray(feed[item.name]), item.name)
        (folder / f"input_{index}.pb").write_bytes(tensor.SerializeToString())
    for index, (item, array) in enumerate(zip(session.get_outputs(), outputs, strict=True)):
        (folder / f"output_{index}.pb").write_bytes(numpy_helper.from_array(array, item.name).SerializeToString())


def _expected(path: Path) -> str:
    """The part of golden.toml that people fill in: taken over from an existing file, else a lower bound."""
    if path.exists() and "\n[expected." in (text := path.read_text(encoding="utf-8")):
        return text[text.index("\n[expected.") + 1 :]
    return """\
[expected.int8]
min_sqnr = 10.0  # dB; a lower bound that any usable int8 model passes, not yet what this model should reach
"""


def _initializer_elements(graph: onnx.GraphProto) -> int:
    """How many numbers all initializers hold, those of bodies and branches included."""
    own = sum(int(np.prod(item.dims)) for item in graph.initializer)
    bodies = (attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g"))
    return own + sum(_initializer_elements(body) for body in bodies)


def _toml(golden: Golden, value: float, samples: int, error: float) -> str:
    """The text of golden.toml. A JSON string is also a TOML string."""
    text = json.dumps
    opset = golden.model.opset_import[0].version
    parameters = _initializer_elements(golden.model.graph)
    training = "\n".join(f"{key} = {number!r}" for key, number in golden.training.items())
    return f"""\
# Written by tools/make_golden_models.py. Expected numbers under [expected.*] are set by hand and kept by the tool.
name = {text(golden.name)}
description = {text(golden.description)}
opset = {opset}
parameters = {parameters}

[data]
source = {text(golden.source[0])}
licence = {text(golden.source[1])}

[record]
generator = "tools/make_golden_models.py"
licence = "Apache-2.0"
seed = {golden.seed}
python = {text(platform.python_version())}
torch = {text(torch.__version__)}
onnx = {text(onnx.__version__)}
onnxruntime = {text(ort.__version__)}
numpy = {text(np.__version__)}
scikit-learn = {text(sklearn.__version__)}
torch_difference = {error:.1e}  # onnxruntime against torch: the largest over eval.npz, relative to the output's size

[training]
{training}

[task]
metric = {text(golden.metric)}  # qir.golden_models.tasks computes it from eval.npz
value = {value!r}
samples = {samples}

[tolerance]  # of a float run against the stored outputs
relative = 1e-3
absolute = 1e-4

"""
