"""The one-call quantizer: load, compile, save, measure, report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from qir.api.opaque import first_opaque_node, split
from qir.calibration.data import DataSource, hold_out, open_data
from qir.calibration.specs import input_specs
from qir.codegen import runnable, save
from qir.errors import DataError, OutputError, UnsupportedError
from qir.frontend import load
from qir.ir import Model, Node
from qir.passes.cluster_weights import ClusterWeights
from qir.passes.convert_float import ConvertFloat
from qir.passes.mixed_precision import MixedPrecision
from qir.passes.quantize import Quantize
from qir.passes.quantize_dynamic import QuantizeDynamic
from qir.passes.quantize_log import QuantizeLog
from qir.passes.quantize_static import QuantizeStatic
from qir.pipeline import Instrument, NoProgress, Pass, Pipeline, Progress, Remark, RemarkKind
from qir.quant.detect import first_quantized_node
from qir.report.quantization import QuantizationReport
from qir.runtime.latency import LatencyComparison, compare_latency
from qir.runtime.session import PLAIN, OrtRunner
from qir.runtime.specs import Model as Serialized
from qir.targets.audit import audit
from qir.validation.golden import GoldenSet, check_all_against, open_golden
from qir.validation.metrics import Comparison

__all__ = ["quantize"]

_LATENCY_SAMPLES = 8
_SQNR_MARGIN = 1.0
"""dB more than asked for: what is reached on calibration samples is a little less on others."""
_MIN_OPSET = 13  # what the int8 preset converts to, per-channel DequantizeLinear


def quantize(
    model: str | os.PathLike[str] | Model,
    output: str | os.PathLike[str] | None = None,
    *,
    calibration: Any = None,
    golden: Any = None,
    preset: str = "int8",
    target: str = "ort-cpu",
    keep_float: Sequence[str] = (),
    recipe: str | os.PathLike[str] | None = None,
    settings: Sequence[str] = (),
    min_sqnr: float | None = None,
    latency_seconds: float = 2.0,
    progress: Progress | None = None,
    instruments: Sequence[Instrument] = (),
) -> QuantizationReport:
    """Quantize a float model, write it to ``output`` and measure it against the float model.

    ``calibration`` and ``golden``: an ``.npz`` path, a folder, a dict of arrays, an iterable of feeds, a function that
    returns one, or a ``CalibrationDataReader``. Without ``golden``, of 16 calibration samples or more every 8th is kept
    out of calibration and measured on. Presets that look at no data run without ``calibration``; with no data at all
    nothing is measured, and the report says so. ``preset``: a pipeline by name; ``settings``: options of its passes,
    ``PASS.OPTION=VALUE``. ``keep_float``: names, globs or operators that stay float; ``recipe``: a TOML file of such
    choices. ``min_sqnr`` in dB: below it the report says so and nothing is
    written. ``latency_seconds`` 0 leaves the timing out.

    Raises ModelError, DataError, OptionError, UnsupportedError (an already quantized model) or OutputError; nothing is
    written then.
    """
    output = None if output is None else Path(output)
    if output is not None:
        _check_writable(output)
        _check_inputs_survive(output, model, calibration, golden)
    pipeline = Pipeline.parse(preset).with_settings(settings)
    if calibration is None and golden is None and min_sqnr is not None:
        raise DataError("min_sqnr needs samples to measure on: give --golden or --calib")
    source = model if isinstance(model, Model) else load(model)
    quantized = first_quantized_node(source)
    if quantized is not None:
        raise UnsupportedError(
            f"the model is quantized already ({quantized.op} {quantized.label!r}): give the float model that it is from"
        )
    parts = split(source, _MIN_OPSET) if first_opaque_node(source) is not None else None
    whole, source = source, source if parts is None else parts.part
    pipeline = _with_options(pipeline, keep_float, recipe, min_sqnr)
    calibration_data, held_out = _samples(pipeline, preset, calibration, source, hold_some_out=golden is None)
    watch = progress or NoProgress()
    result = pipeline.run(
        source,
        calibration=calibration_data,
        target=target,
        reference=source,
        progress=watch,
        instruments=instruments,
    )
    measured = _measure(source, result.model, golden, held_out, calibration_data, latency_seconds, watch)
    if parts is not None:
        result.model = parts.join(result.model)
        result.first_remarks += [_opaque_remark(node) for node in parts.opaque]
        measured.on += ", up to the operators that the runtime does not know"
    report = QuantizationReport(
        source=model.graph.name or "model" if isinstance(model, Model) else os.fspath(model),
        output=None if output is None else os.fspath(output),
        preset=preset,
        target=target,
        compilation=result,
        accuracy=measured.accuracy,
        accuracy_plain=measured.plain,
        measured_on=measured.on,
        calibration_samples=0 if calibration_data is None else calibration_data.count or 0,
        size_before=_size(whole),
        size_after=_size(result.model),
        executed_integer=measured.integer,
        executed_float=measured.float_heavy,
        latency=measured.latency,
        min_sqnr=min_sqnr,
        versions=_versions(),
    )
    if output is not None:
        if report.passed:
            save(result.model, output)
        else:
            report.output = None
    return report


def _opaque_remark(node: Node) -> Remark:
    message = (
        f"{node.domain}.{node.op} is unknown to the runtime: it and what depends on it stay as they are, unmeasured"
    )
    return Remark(RemarkKind.MISSED, "quantize", message, node.label, tuple(node.sources))


def _with_options(
    pipeline: Pipeline,
    keep_float: Sequence[str],
    recipe: str | os.PathLike[str] | None,
    min_sqnr: float | None,
) -> Pipeline:
    """The same pipeline with the user's choices in the passes that they concern."""

    def adapt(pass_: Pass) -> Pass:
        if isinstance(pass_, Quantize | QuantizeDynamic):
            return replace(
                pass_,
                keep_float=(*pass_.keep_float, *keep_float),
                recipe=pass_.recipe if recipe is None else os.fspath(recipe),
            )
        if isinstance(pass_, ClusterWeights | QuantizeLog | QuantizeStatic | ConvertFloat):
            return replace(pass_, keep_float=(*pass_.keep_float, *keep_float))
        if isinstance(pass_, MixedPrecision) and min_sqnr is not None:
            return replace(pass_, min_sqnr=min_sqnr + _SQNR_MARGIN)
        return pass_

    return Pipeline([adapt(pass_) for pass_ in pipeline.passes])


def _samples(
    pipeline: Pipeline, preset: str, calibration: Any, model: Model, hold_some_out: bool
) -> tuple[DataSource | None, DataSource | None]:
    """What to calibrate on, and what is kept out of that to measure on."""
    needing = pipeline.needs_calibration
    if calibration is None:
        if needing is not None:
            raise DataError(
                f"preset {preset!r} looks at samples (pass {needing.name!r}): give some with --calib FILE, "
                "or calibration=... from Python"
            )
        return None, None
    data = open_data(calibration, input_specs(model))
    fitted, held_out = hold_out(data) if hold_some_out else (data, None)
    if needing is not None and fitted.count == 0:
        raise DataError(f"{fitted.name}: holds no sample, give at least one")
    return fitted, held_out


@dataclass(slots=True)
class _Measured:
    """What running both models showed; nothing of accuracy and speed where there were no samples."""

    on: str
    accuracy: Comparison | None = None
    plain: Comparison | None = None
    latency: LatencyComparison | None = None
    integer: dict[str, int] = field(default_factory=dict)
    float_heavy: dict[str, int] = field(default_factory=dict)


def _measure(
    source: Model,
    quantized: Model,
    golden: Any,
    held_out: DataSource | None,
    calibration: DataSource | None,
    latency_seconds: float,
    watch: Progress,
) -> _Measured:
    """Run the emitted model beside the float model. Without samples it is only loaded, to see what it executes."""
    with runnable(quantized) as int_model:
        executed = audit(quantized, int_model)
        measured = _Measured(
            "no data",
            integer=dict(sorted(executed.integer.items())),
            float_heavy=dict(sorted(executed.float_heavy.items())),
        )
        if golden is None and calibration is None:
            return measured
        with runnable(source) as float_model:
            golden_set, kind = _check_set(golden, held_out, calibration, float_model)
            watch.start("validating", None)
            runners = [OrtRunner(int_model), OrtRunner(int_model, PLAIN)]
            measured.accuracy, measured.plain = check_all_against(golden_set, runners, OrtRunner(float_model))
            watch.finish()
            measured.on = f"{measured.accuracy.samples} {kind}"
            measured.latency = _latency(float_model, int_model, golden_set, latency_seconds)
    return measured


def _check_set(
    golden: Any, held_out: DataSource | None, calibration: DataSource | None, float_model: Serialized
) -> tuple[GoldenSet, str]:
    """What is measured on, and how the report calls it."""
    if golden is not None:
        runner = OrtRunner(float_model)
        opened = open_golden(golden, runner.inputs, runner.outputs)
        return opened, f"golden samples of {opened.name}"
    if held_out is not None:
        return GoldenSet(held_out, ()), "samples kept out of calibration"
    assert calibration is not None
    return GoldenSet(calibration, ()), "calibration samples: too few to keep any out, so this is optimistic"


def _latency(
    float_model: Serialized, int_model: Serialized, samples: GoldenSet, seconds: float
) -> LatencyComparison | None:
    if seconds <= 0:
        return None
    feeds = [case.feed for case in islice(samples, _LATENCY_SAMPLES)]
    return compare_latency(float_model, int_model, feeds, threads=1, seconds=seconds)


def _check_writable(path: Path) -> None:
    """Find out before the work, not after it, that the result has nowhere to go."""
    folder = path.parent
    if path.is_dir():
        raise OutputError(f"{str(path)!r} is a folder: name a file to write")
    if not folder.is_dir():
        raise OutputError(f"{str(path)!r} cannot be written: there is no folder {str(folder)!r}")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise OutputError(f"{str(path)!r} cannot be written: permission denied")


def _check_inputs_survive(output: Path, *sources: Any) -> None:
    for source in sources:
        if isinstance(source, (str, os.PathLike)) and output.exists() and Path(source).exists():
            if output.samefile(source):
                raise OutputError(f"{str(output)!r} would overwrite what it is made from: name another file to write")


def _size(model: Model) -> int:
    """Bytes of the model in files, external data included."""
    from qir.codegen.exporter import model_message

    return model_message(model).size


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    from qir import __version__

    packages: Iterable[str] = ("onnx", "onnxruntime", "numpy")
    return {"qir": __version__, "python": platform.python_version(), **{name: version(name) for name in packages}}
