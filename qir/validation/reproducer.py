"""Reproducers: a folder that holds all it takes to see one pass fail again, on another machine too.

``reproducer.toml`` says what ran and how it ended, ``model.qir`` is the IR before the failing pass, ``weights.onnx``
the constants that the text names by hash, ``golden`` and ``calibration`` hold inputs, ``plugins`` the Python files.
What would be large is left out: missing constants are replaced by random ones (the hash is their seed), and the file
says so.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qir.errors import DataError, OutputError, QirError, VerifyError
from qir.ir import Model, Tensor
from qir.ir.parser import parse_text
from qir.ir.printer import print_model, stored_tensors
from qir.pipeline import Feed, Instrument, PassRun, Pipeline
from qir.rewriting import EndlessRewriteError, RewriteError
from qir.validation.numerics import Numerics, NumericsError, Tolerance

__all__ = ["FailedRun", "FailureWatch", "Reproducer", "read_reproducer", "worth_reproducing", "write_reproducer"]

MOST_WEIGHT_BYTES = 64 << 20
MOST_INPUT_BYTES = 16 << 20
_INFO, _MODEL, _REFERENCE, _WEIGHTS = "reproducer.toml", "model.qir", "reference.qir", "weights.onnx"
_PACKAGES = ("numpy", "onnx", "onnxruntime")


def worth_reproducing(error: BaseException) -> bool:
    """Whether an error speaks of a pass that is wrong: a crash or a failed check, not wrong input or options."""
    if isinstance(error, QirError):
        return isinstance(error, NumericsError | VerifyError | EndlessRewriteError | RewriteError)
    return isinstance(error, Exception)


class FailureWatch(Instrument):
    """Remembers in which pass a run failed."""

    label = "failure watch"

    def __init__(self) -> None:
        self.run: PassRun | None = None

    def failed(self, run: PassRun, error: BaseException) -> None:
        self.run = run


@dataclass(frozen=True, slots=True)
class FailedRun:
    """A pass that failed, and what it was given. ``model`` is as it was before the pass.

    ``numerics`` has the inputs and the tolerance of the numeric check, where there was one.
    """

    model: Model
    run: PassRun
    error: BaseException
    exit_code: int
    target: str
    verify: bool
    reference: Model | None = None
    calibration: Iterable[Feed] | None = None
    numerics: Numerics | None = None
    plugins: Sequence[Path] = ()


@dataclass(frozen=True, slots=True)
class Reproducer:
    """What a folder holds. ``stubs`` names the constants whose numbers were left out."""

    folder: Path
    model: Model
    reference: Model | None
    pipeline: str
    target: str
    verify: bool
    golden: Path | None
    calibration: Path | None
    tolerance: Tolerance
    plugins: tuple[Path, ...]
    versions: dict[str, str]
    stubs: tuple[str, ...]
    failure: str


def write_reproducer(folder: Path, failed: FailedRun) -> None:
    """Make the folder. Raises OutputError where it exists already or cannot be written."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise OutputError(f"{str(folder)!r} exists already: name another folder for the reproducer") from None
    except OSError as error:
        raise OutputError(f"{str(folder)!r} cannot be made: {error.strerror}") from error
    try:
        _fill(folder, failed)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise OutputError(f"the reproducer {str(folder)!r} cannot be written: {error.strerror}") from error
        raise


def _fill(folder: Path, failed: FailedRun) -> None:
    from qir.validation.golden import to_toml

    models = {_MODEL: failed.model, **({} if failed.reference is None else {_REFERENCE: failed.reference})}
    for name, model in models.items():
        (folder / name).write_text(print_model(model), encoding="utf-8")
    missing = _write_weights(folder / _WEIGHTS, list(models.values()))
    pass_ = failed.run.pass_
    run: dict[str, Any] = {"pipeline": str(Pipeline([pass_])), "target": failed.target, "verify": failed.verify}
    if missing:
        run["stubs"] = missing
    if failed.plugins:
        run["plugins"] = _copy_plugins(folder / "plugins", failed.plugins)
    info: dict[str, Any] = {
        "failure": {"pass": pass_.name, "number": failed.run.index + 1, "exit_code": failed.exit_code},
        "run": run,
        "versions": {"python": platform.python_version(), "platform": platform.platform(), **_versions()},
    }
    info["failure"]["error"] = str(failed.error) or type(failed.error).__name__
    if failed.numerics is not None:
        tolerance = failed.numerics.tolerance
        info["check"] = {name: getattr(tolerance, name) for name in tolerance.__slots__}
        info["check"]["samples_left_out"] = _write_feeds(folder / "golden", failed.numerics.feeds)
    if failed.calibration is not None:
        info["calibration"] = {"samples_left_out": _write_feeds(folder / "calibration", failed.calibration)}
    text = f"# Run it again: qir opt --reproduce {folder.name}\n"
    if missing:
        text += "# The constants under 'stubs' were left out: random ones stand for them, and each hash is the seed.\n"
    text += f"\n{to_toml(info)}"
    (folder / _INFO).write_text(text, encoding="utf-8")


def read_reproducer(folder: Path) -> Reproducer:
    """Raises DataError where the folder is no reproducer or is damaged, ParseError for damaged IR text."""
    from qir.frontend import load

    try:
        info = tomllib.loads((folder / _INFO).read_text(encoding="utf-8"))
        text = (folder / _MODEL).read_text(encoding="utf-8")
        other = folder / _REFERENCE
        reference = other.read_text(encoding="utf-8") if other.is_file() else None
    except OSError as error:
        raise DataError(f"{str(folder)!r} is no reproducer: {error.filename!r}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{str(folder)!r} holds a damaged {_INFO}: {error}") from error
    store: dict[str, Tensor] = {}
    if (folder / _WEIGHTS).is_file():
        stored = load(folder / _WEIGHTS).graph.initializers
        store = {value.name: value.const for value in stored if isinstance(value.const, Tensor)}
    parsed = parse_text(text, store)
    try:
        run, check = info["run"], info.get("check")
        return Reproducer(
            folder=folder,
            model=parsed.model,
            reference=None if reference is None else parse_text(reference, store).model,
            pipeline=run["pipeline"],
            target=run["target"],
            verify=run["verify"],
            golden=None if check is None else folder / "golden",
            calibration=folder / "calibration" if "calibration" in info else None,
            tolerance=Tolerance(**{name: check[name] for name in Tolerance.__slots__} if check else {}),
            plugins=tuple(folder / "plugins" / Path(name).name for name in run.get("plugins", [])),
            versions=info["versions"],
            stubs=tuple(parsed.stubs),
            failure=info["failure"]["error"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{str(folder / _INFO)!r} lacks something or holds the wrong type: {error}") from error


def _write_weights(path: Path, models: Sequence[Model]) -> list[str]:
    """Store the constants by hash, the small ones first, as far as the budget goes; the hashes of those left out."""
    from qir.codegen import save

    tensors: dict[str, Tensor] = {}
    for model in models:
        tensors |= stored_tensors(model)
    holder = Model(opset_imports={"": 17}, ir_version=10)
    missing = []
    left = MOST_WEIGHT_BYTES
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].nbytes, item[0])):
        left -= tensor.nbytes
        if left < 0:
            missing.append(name)
        else:
            holder.graph.add_initializer(name, tensor)
    save(holder, path, external_data=False)
    return missing


def _write_feeds(folder: Path, feeds: Iterable[Feed]) -> int:
    """Store samples in ONNX's own layout, the first and more as far as the budget goes; how many were left out."""
    from qir.calibration.pb import write_set

    left = MOST_INPUT_BYTES
    left_out = 0
    folder.mkdir()
    for index, feed in enumerate(feeds):
        left -= sum(_bytes(value) for value in feed.values())
        if left < 0 and index > 0:
            left_out += 1
        else:
            write_set(folder / f"test_data_set_{index}", "input", feed)
    return left_out


def _bytes(value: Any) -> int:
    """Of an array, or of all arrays in a sequence."""
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else int(np.asarray(value).nbytes)


def _copy_plugins(folder: Path, plugins: Sequence[Path]) -> list[str]:
    folder.mkdir()
    names: list[str] = []
    for path in plugins:
        name, number = path.name, 1
        while name in names:
            number += 1
            name = f"{path.stem}_{number}{path.suffix}"
        shutil.copyfile(path, folder / name)
        names.append(name)
    return names


def _versions() -> dict[str, str]:
    """Of qir, of what it computes with, and of installed plug-in packages."""
    from qir import __version__

    plugins = {point.dist.name for point in importlib.metadata.entry_points(group="qir.passes") if point.dist}
    found = {"qir": __version__}
    for package in (*_PACKAGES, *sorted(plugins - {"qir"})):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
