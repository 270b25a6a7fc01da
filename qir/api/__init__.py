"""What `import qir` shows: load, save, quantize, and the names that pass authors need. Loaded when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qir.pipeline import (
    Effect,
    Instrument,
    Pass,
    PassContext,
    PassResult,
    Pipeline,
    PipelineResult,
    Preset,
    Remark,
    RemarkKind,
    RewritePass,
    Verdict,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Collection

    from qir.diff.changes import GraphDiff
    from qir.ir import Model
    from qir.report.bench import BenchReport
    from qir.report.check import CheckReport
    from qir.report.layers import ComparisonReport
    from qir.report.quantization import QuantizationReport
    from qir.report.ranges import RangesReport

__all__ = [
    "Effect",
    "Instrument",
    "Pass",
    "PassContext",
    "PassResult",
    "Pipeline",
    "PipelineResult",
    "Preset",
    "Remark",
    "RemarkKind",
    "RewritePass",
    "Verdict",
    "bench",
    "check",
    "compare",
    "diff",
    "load",
    "quantize",
    "ranges",
    "save",
]


def load(path: str | os.PathLike[str], *, allow_external_outside: bool = False) -> Model:
    """Read an ONNX file into the IR; weights in external data files are mapped when they are first read.

    Raises ModelError where the file is absent, damaged or not ONNX, or where its external data is missing or leaves the
    model's folder (``allow_external_outside`` permits that).
    """
    from qir.frontend import load as load_file

    return load_file(path, allow_external_outside=allow_external_outside)


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    external_data: bool | None = None,
    external_threshold: int = 1024,
    strip_provenance: bool = False,
) -> None:
    """Write a model as an ONNX file, whole or not at all.

    ``external_data`` puts weights of at least ``external_threshold`` bytes into ``PATH.data``; None decides as the
    model was loaded and as its size demands. ``strip_provenance`` leaves out which source node each node came from.
    Raises OutputError where the path cannot be written, and where quantization annotations are left that no emit pass
    has turned into nodes.
    """
    from qir.codegen import save as save_file

    save_file(
        model,
        path,
        external_data=external_data,
        external_threshold=external_threshold,
        strip_provenance=strip_provenance,
    )


def quantize(
    model: str | os.PathLike[str] | Model,
    output: str | os.PathLike[str] | None = None,
    **options: Any,
) -> QuantizationReport:
    """Quantize a float model, write it to ``output`` and measure it; ``qir.api.quantizing.quantize`` has all options.

    ``calibration=``, which most presets need: an ``.npz`` path, a folder, a dict of arrays, an iterable of feeds ...
    """
    from qir.api.quantizing import quantize as run

    return run(model, output, **options)


def check(model: str | os.PathLike[str], golden: Any, **options: Any) -> CheckReport:
    """Compare a model file with golden outputs, the runtime's optimisations on and off.

    See ``qir.api.checking.check`` for all options: ``against=`` the float model, ``min_sqnr=`` in dB.
    """
    from qir.api.checking import check as run

    return run(model, golden, **options)


def diff(
    old: Model | str | os.PathLike[str],
    new: Model | str | os.PathLike[str],
    *,
    weights: bool = True,
    ignore: Collection[str] = (),
) -> GraphDiff:
    """What differs between two models or ONNX files, whatever was renamed, reordered or stored in another form.

    ``weights``: whether statistics of changed weights can be asked for; ``ignore``: kinds of changes to leave out
    (``qir.diff.ChangeKind``). Raises ModelError for a file that cannot be read and OptionError for an unknown kind.
    """
    from qir.diff.differ import diff as run

    return run(old, new, weights=weights, ignore=ignore)


def compare(
    reference: str | os.PathLike[str] | Model, quantized: str | os.PathLike[str] | Model, data: Any, **options: Any
) -> ComparisonReport:
    """Compare a quantized model with its float model node by node, and say what would help.

    See ``qir.api.comparing.compare`` for all options: ``layers=``, ``lines=``, ``reach=`` in dB, ``recipe=``.
    """
    from qir.api.comparing import compare as run

    return run(reference, quantized, data, **options)


def bench(a: str | os.PathLike[str], b: str | os.PathLike[str], data: Any = None, **options: Any) -> BenchReport:
    """Time two model files side by side, and node by node.

    See ``qir.api.benching.bench`` for all options: ``random=``, ``dims=``, ``threads=``, ``seconds=``.
    """
    from qir.api.benching import bench as run

    return run(a, b, data, **options)


def ranges(model: str | os.PathLike[str] | Model, **options: Any) -> RangesReport:
    """What every value can be, is declared to be, and was seen to be.

    See ``qir.api.observing.ranges`` for all options: ``input_range=``, ``data=``.
    """
    from qir.api.observing import ranges as run

    return run(model, **options)
