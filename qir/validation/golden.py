"""Golden data: inputs with the outputs that a model must give, read from and written to ONNX's own layout.

A golden folder holds `test_data_set_N/input_K.pb` and `output_K.pb`, mostly a `model.onnx`, and `golden.toml`: where it
came from, tolerances, expected metrics by preset. An `.npz` of stacked samples holds outputs under their own names, by
the convention of `qir.calibration.stacks`.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qir.calibration.data import DataSource, open_data
from qir.calibration.images import Images
from qir.calibration.npz import read_npz
from qir.calibration.pb import find_sets, read_set, write_set
from qir.calibration.stacks import MemoryStack, Stack, feeds_from_stacks
from qir.errors import DataError, OutputError
from qir.runtime.session import Runner
from qir.runtime.specs import InputSpec, Model, Output, OutputSpec
from qir.validation.metrics import Comparison
from qir.validation.tasks import Metric

MODEL_FILE = "model.onnx"
INFO_FILE = "golden.toml"


@dataclass(frozen=True)
class GoldenCase:
    """One sample: the feed, the expected outputs (None where none are stored), the label."""

    feed: dict[str, Any]
    outputs: dict[str, Output] | None
    label: np.ndarray | None


@dataclass(frozen=True)
class GoldenSet:
    """Golden data of one model. Iterates over cases, one in memory at a time, as often as asked.

    `expected` names the outputs that are stored; empty where they have to be recorded from the float model. `info` is
    golden.toml, empty without one.
    """

    inputs: DataSource
    expected: tuple[str, ...]
    info: Mapping[str, Any] = field(default_factory=dict)
    _outputs: Callable[[], Iterator[dict[str, Output]]] | None = None

    def __iter__(self) -> Iterator[GoldenCase]:
        labels = iter(self.inputs.labels or ())
        outputs = self._outputs() if self._outputs is not None else None
        for feed in self.inputs:
            yield GoldenCase(feed, next(outputs) if outputs is not None else None, next(labels, None))

    @property
    def name(self) -> str:
        return self.inputs.name


def open_golden(
    source: object, inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec], *, images: Images | None = None
) -> GoldenSet:
    """Golden data for a model with these inputs and outputs. `source`: a golden folder, or anything `open_data` takes.

    Raises DataError when the inputs do not fit, or expected outputs are there for some samples only.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(os.fspath(source))
        if path.is_dir() and (sets := find_sets(path)):
            return _from_sets(path, sets, inputs, outputs)
        if path.is_file() and path.suffix != ".npy":
            return _from_stacks(read_npz(path), path, inputs, outputs)
    if isinstance(source, Mapping):
        stacks = {str(key): MemoryStack(np.asarray(value)) for key, value in source.items()}
        return _from_stacks(stacks, source, inputs, outputs)
    return GoldenSet(open_data(source, inputs, images=images), ())


def _from_sets(
    folder: Path, sets: Sequence[Path], inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec]
) -> GoldenSet:
    with_outputs = [one for one in sets if any(one.glob("output_*.pb"))]
    if with_outputs and len(with_outputs) != len(sets):
        raise DataError(f"{folder}: {len(with_outputs)} of {len(sets)} test data sets have outputs; give all or none")
    data, info = open_data(folder, inputs), read_info(folder)
    if not with_outputs:
        return GoldenSet(data, (), info)
    first = read_set(sets[0], "output", outputs)
    if unknown := [name for name in first if name not in {spec.name for spec in outputs}]:
        raise DataError(f"{sets[0]}: '{unknown[0]}' is no output of the model")
    return GoldenSet(data, tuple(first), info, lambda: (read_set(one, "output", outputs) for one in sets))


def _from_stacks(
    stacks: Mapping[str, Stack], source: object, inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec]
) -> GoldenSet:
    bases = {key.rpartition("/")[0] if key.rpartition("/")[2].isdigit() else key for key in stacks} | set(stacks)
    stored = [spec for spec in outputs if spec.name in bases]
    data = open_data(source, inputs, ignore={spec.name for spec in stored})
    if not stored:
        return GoldenSet(data, ())
    feeds = feeds_from_stacks(stacks, stored, data.name, ignore=set(bases) - {spec.name for spec in stored})
    if feeds.count != data.count:
        raise DataError(f"{data.name}: expected outputs for {feeds.count} samples, inputs for {data.count}")
    return GoldenSet(data, tuple(spec.name for spec in stored), {}, lambda: iter(feeds))


def check_against(
    golden: GoldenSet, model: Runner, reference: Runner | None = None, metric: Metric | None = None
) -> Comparison:
    """The model against the expected outputs; where none are stored, against `reference` run on the same feeds.

    Raises DataError when there is neither.
    """
    return check_all_against(golden, [model], reference, metric)[0]


def check_all_against(
    golden: GoldenSet,
    models: Sequence[Runner],
    reference: Runner | None = None,
    metric: Metric | None = None,
    on_sample: Callable[[], None] | None = None,
) -> list[Comparison]:
    """`check_against` for several models; the reference runs once a sample for all of them. `metric` needs labels.
    ``on_sample`` is called after each sample."""
    if metric is not None and golden.inputs.labels is None:
        raise DataError(f"{golden.name}: holds no labels, which the metric {metric.name!r} needs: add a key 'labels'")
    if golden.expected:
        names = golden.expected
    elif reference is not None:
        names = tuple(spec.name for spec in reference.outputs)
    else:
        raise DataError(f"{golden.name}: holds no expected outputs; name the float model to record them from")
    comparisons = [Comparison(names, metric) for _ in models]
    takes = [{spec.name for spec in model.inputs} for model in models]
    for case in golden:
        wanted = case.outputs
        if wanted is None:
            assert reference is not None
            wanted = reference.run(case.feed)
        for model, taken, comparison in zip(models, takes, comparisons, strict=True):
            got = model.run({name: value for name, value in case.feed.items() if name in taken})
            comparison.add(wanted, got, case.label)
        if on_sample is not None:
            on_sample()
    return comparisons


def record(
    folder: str | os.PathLike[str],
    runner: Runner,
    feeds: Iterable[Mapping[str, Any]],
    *,
    model: Model | None = None,
    info: Mapping[str, Any] | None = None,
) -> int:
    """Writes a golden folder from what `runner` gives on the feeds; returns the number of sets.

    `model` is written beside them, `info` as golden.toml. The folder appears complete or not at all. Raises OutputError
    when it exists or cannot be written.
    """
    target = Path(os.fspath(folder))
    if target.exists():
        raise OutputError(f"{target}: exists already; remove it or name another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror}") from error
    try:
        count = 0
        for feed in feeds:
            write_case(work / f"test_data_set_{count}", feed, runner.run(feed))
            count += 1
        if model is not None:
            (work / MODEL_FILE).write_bytes(model if isinstance(model, bytes) else _one_file(Path(os.fspath(model))))
        if info is not None:
            (work / INFO_FILE).write_text(to_toml(info), encoding="utf-8")
        work.chmod(0o755)
        work.rename(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return count


def _one_file(path: Path) -> bytes:
    """A model's file, its external data taken in."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    raw = path.read_bytes()
    if any(uses_external_data(tensor) for tensor in onnx.ModelProto.FromString(raw).graph.initializer):
        raw = bytes(onnx.load(path).SerializeToString())
    return raw


def write_case(folder: Path, feed: Mapping[str, Any], outputs: Mapping[str, Output]) -> None:
    """One test data set."""
    write_set(folder, "input", feed)
    write_set(folder, "output", outputs)


def read_info(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """golden.toml of a folder, empty without one. Raises DataError when it is no TOML."""
    path = Path(os.fspath(folder)) / INFO_FILE
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: is no valid TOML: {error}") from error


def to_toml(info: Mapping[str, Any]) -> str:
    """The text of a TOML document: strings, numbers, booleans, dates, lists of these, and tables within tables."""
    lines: list[str] = []
    _write_table(info, (), lines)
    return "\n".join(lines).strip() + "\n"


def _write_table(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if path and (plain or not table):
        lines += ["", f"[{'.'.join(map(_toml_key, path))}]"]
    lines += [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, Mapping):
            _write_table(value, (*path, key), lines)


def _toml_key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "a").replace("_", "a").isalnum()
    return key if bare else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON string is a TOML string but for this one character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(float(value))  # infinity and NaN too: TOML spells them as Python does
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml_value, value))}]"
    raise TypeError(f"golden.toml cannot hold a {type(value).__name__}")
