"""The one-call quantizer: load, compile, save, measure, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from qir.api.emission import with_format, with_integer_io, write_session_options
from qir.api.manifest import write_manifest
from qir.api.opaque import first_opaque_node, split
from qir.api.report_page import check_page_name, written_page
from qir.api.streaming import streaming, streams
from qir.calibration.data import DataSource, hold_out, is_random, open_data
from qir.calibration.images import Images
from qir.calibration.specs import input_specs
from qir.codegen import runnable, save
from qir.codegen.exporter import model_message
from qir.codegen.runnables import MOST_IN_MEMORY
from qir.codegen.spool import discard_spool
from qir.errors import DataError, OptionError, OutputError, UnsupportedError
from qir.frontend import load
from qir.ir import Model, Node, TensorType
from qir.passes.accuracy.correct_bias import CorrectBias
from qir.passes.accuracy.mixed_precision import MixedPrecision
from qir.passes.accuracy.round_weights import RoundWeights
from qir.passes.annotation.analyze_ranges import AnalyzeRanges
from qir.passes.annotation.placement import PlacementRecorder
from qir.pipeline import Instrument, NoProgress, Pass, Pipeline, PipelineResult, Progress, Remark, RemarkKind
from qir.pipeline.registry import load_target
from qir.quant.detect import first_quantized_node
from qir.quant.integer_io import read_io
from qir.quant.recipe import Recipe
from qir.report.quantization import QuantizationReport
from qir.runtime.latency import LatencyComparison, compare_latency
from qir.runtime.session import PLAIN, OrtRunner, SessionConfig
from qir.runtime.specs import Model as Serialized
from qir.targets import Target
from qir.targets.audit import Audit, Island, audit
from qir.targets.processor import better_target
from qir.validation.float_view import float_view, to_codes
from qir.validation.golden import GoldenSet, check_all_against, open_golden
from qir.validation.metrics import Comparison
from qir.validation.tasks import Metric, UserFunction, open_metric

__all__ = ["current_versions", "quantize"]

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
    recipe: str | os.PathLike[str] | Recipe | None = None,
    settings: Sequence[str] = (),
    input_range: Sequence[str] = (),
    min_sqnr: float | None = None,
    max_drop: float | None = None,
    metric: str | UserFunction | None = None,
    preprocess: str | None = None,
    labels: str | None = None,
    format: str | None = None,
    io_dtype: Sequence[str] = (),
    latency_seconds: float = 2.0,
    manifest: bool = False,
    report_to: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    instruments: Sequence[Instrument] = (),
    executor: Executor | None = None,
) -> QuantizationReport:
    """Quantize a float model, write it to ``output`` and measure it against the float model.

    ``calibration`` and ``golden``: an ``.npz`` path, a folder, a dict of arrays, an iterable of feeds, a function that
    returns one, or a ``CalibrationDataReader``. Without ``golden``, of 16 calibration samples or more every 8th is kept
    out of calibration and measured on. Presets that look at no data run without ``calibration``; with no data at all
    nothing is measured, and the report says so. ``preset``: a pipeline by name; ``settings``: options of its passes,
    ``PASS.OPTION=VALUE``. ``keep_float``: names, globs or operators that stay float; ``recipe``: a TOML file of such
    choices. ``input_range``: what inputs can hold, ``NAME=LO:HI``. ``min_sqnr`` in dB of the worst output, and
    ``max_drop`` in points of the task metric (of ``metric``, by default accuracy, where ``golden`` has labels; else of
    agreement with the float model): the search leaves as much in float as they need, and where they are not reached
    the report says so and nothing is written. ``metric``: see ``qir.validation.tasks``. ``preprocess`` and ``labels``
    are for folders of images, see ``qir.calibration.images``. ``format``: how quantization is spelled, ``qdq``,
    ``qoperator`` or ``contrib`` (see docs/formats.md); by default what is best for the target. ``io_dtype``: integer
    inputs and outputs, ``uint8`` for all or ``NAME=uint8``; their scales are in the report and in the model's metadata.
    ``report_to``: write the report as a page, ``.html`` or ``.md``; a run that misses its thresholds has one too.
    ``manifest``: write ``OUTPUT.qir.json`` too, with which ``qir quantize --replay`` makes the same file again.
    ``latency_seconds`` 0 leaves the timing out. ``executor``: threads or processes that share the calibration samples;
    the result is the same to the last byte.

    Raises ModelError, DataError, OptionError, UnsupportedError (an already quantized model) or OutputError; nothing is
    written then.
    """
    arguments = {
        "model": model,
        "calibration": calibration,
        "golden": golden,
        "preset": preset,
        "target": target,
        "keep_float": tuple(keep_float),
        "recipe": recipe,
        "settings": tuple(settings),
        "input_range": tuple(input_range),
        "min_sqnr": min_sqnr,
        "max_drop": max_drop,
        "metric": metric,
        "preprocess": preprocess,
        "labels": labels,
        "format": format,
        "io_dtype": tuple(io_dtype),
    }
    output = None if output is None else Path(output)
    if report_to is not None:
        check_page_name(Path(report_to))
    for target_file in (output, None if report_to is None else Path(report_to)):
        if target_file is not None:
            _check_writable(target_file)
            _check_inputs_survive(target_file, model, calibration, golden)
    pipeline = with_format(Pipeline.parse(preset).with_settings(settings), format, load_target(target))
    pipeline = with_integer_io(pipeline, io_dtype)
    if calibration is None and golden is None and (min_sqnr is not None or max_drop is not None):
        threshold = "min_sqnr" if min_sqnr is not None else "max_drop"
        raise DataError(f"{threshold} needs samples to measure on: give --golden or --calib")
    task = None if metric is None else open_metric(metric)
    source = model if isinstance(model, Model) else load(model)
    quantized = first_quantized_node(source)
    if quantized is not None:
        raise UnsupportedError(
            f"the model is quantized already ({quantized.op} {quantized.label!r}): give the float model that "
            "it is from, or 'qir opt MODEL --passes lift,dequantize -o FLOAT.onnx' makes one of it"
        )
    parts = split(source, _MIN_OPSET) if first_opaque_node(source) is not None else None
    if parts is not None and io_dtype:
        raise UnsupportedError(
            f"integer inputs and outputs do not go with {parts.opaque[0].domain}.{parts.opaque[0].op}, which the "
            "runtime does not know: leave --io-dtype out"
        )
    whole, source = source, source if parts is None else parts.part
    pipeline = _with_options(pipeline, keep_float, recipe, input_range)
    spool = None
    if output is not None and calibration is None and golden is None and streams(pipeline, source):
        spool = output.with_name(output.name + ".partial")
        pipeline = streaming(pipeline, spool)
    images = Images.parse(preprocess, labels)
    calibration_data, held_out = _samples(pipeline, preset, calibration, source, golden is None, images)
    watch = progress or NoProgress()
    recorder = PlacementRecorder()

    def compile_for(threshold: float | None) -> PipelineResult:
        recorder.recipe = None
        return _with_threshold(pipeline, threshold).run(
            source,
            calibration=calibration_data,
            target=target,
            reference=source,
            progress=watch,
            executor=executor,
            instruments=[*instruments, recorder],
        )

    result = compile_for(min_sqnr)
    if max_drop is not None and calibration_data is not None:
        result = _search(source, result, compile_for, max_drop, calibration_data, task)
    result.model = _as_given(source, result)
    _declare_outputs(source, result.model)
    measured = _measure(
        load_target(target),
        source,
        result.model,
        golden,
        held_out,
        calibration_data,
        latency_seconds,
        watch,
        task,
        images,
        load=spool is None,
    )
    if not measured.loaded:
        result.first_remarks.append(_unloaded_remark())
    if max_drop is not None and measured.accuracy is not None and measured.accuracy.drop is None:
        raise DataError("max_drop needs labels, or an output that decides between classes: give --min-sqnr instead")
    compiled = result.model
    if parts is not None:
        result.model = parts.join(result.model)
        result.first_remarks += [_opaque_remark(node) for node in parts.opaque]
        measured.on += ", up to the operators that the runtime does not know"
    better = better_target(target)
    if better is not None and measured.integer:
        result.first_remarks.append(_target_remark(target, better))
    options = write_session_options(result.model, load_target(target))
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
        max_drop=max_drop,
        placement=recorder.recipe,
        synthetic=is_random(calibration) or is_random(golden),
        session_options=options,
        integer_io=read_io(result.model.metadata),
        versions=current_versions(),
    )
    if not report.passed:
        report.output = None
    with ExitStack() as page:
        if report_to is not None:
            samples = open_data(golden, input_specs(source), images=images) if golden is not None else held_out
            samples = samples or calibration_data
            page.enter_context(
                written_page(Path(report_to), report, source, compiled, samples, measured.islands, watch)
            )
        if output is not None and report.passed:
            save(result.model, output)
            if spool is not None:
                discard_spool(spool)
            if manifest:
                write_manifest(output, arguments, result.pipeline, report.versions)
    return report


def _as_given(source: Model, result: PipelineResult) -> Model:
    """The result of a pipeline; where its placement left everything in float, the model as it was given.

    What prepares a model for integers (a newer opset, f16 widened, other fusions) is exact, but no faster for certain.
    """
    names = {run.name for run in result.passes}
    placed = "partition" in names and "convert-float" not in names
    return source.clone() if placed and first_quantized_node(result.model) is None else result.model


def _declare_outputs(source: Model, model: Model) -> None:
    """Keep the sizes that the source gives its outputs: what passes found out beyond is no part of the interface."""
    declared = {value.name: value.type for value in source.graph.outputs}
    for value in model.graph.outputs:
        said, found = declared.get(value.name), value.type
        if isinstance(said, TensorType) and isinstance(found, TensorType) and said.dtype == found.dtype:
            value.type = said if said.shape is not None else found


def _target_remark(target: str, better: str) -> Remark:
    message = (
        f"{target} gives one file for all processors; for this one, '--target {better}' uses all codes of weights and "
        "places by what integers cost here"
    )
    return Remark(RemarkKind.NOTE, "quantize", message)


def _unloaded_remark() -> Remark:
    message = (
        "not loaded in the runtime, so what it executes was not looked at: there all weights take memory at once; "
        "'qir bench' does it where there is enough"
    )
    return Remark(RemarkKind.NOTE, "quantize", message)


def _opaque_remark(node: Node) -> Remark:
    message = (
        f"{node.domain}.{node.op} is unknown to the runtime: it and what depends on it stay as they are, unmeasured"
    )
    return Remark(RemarkKind.MISSED, "quantize", message, node.label, tuple(node.sources))


def _with_options(
    pipeline: Pipeline,
    keep_float: Sequence[str],
    recipe: str | os.PathLike[str] | Recipe | None,
    input_range: Sequence[str],
) -> Pipeline:
    """The same pipeline with the user's choices in every pass that has an option for them."""
    chosen = recipe.to_toml() if isinstance(recipe, Recipe) else None if recipe is None else os.fspath(recipe)

    def adapt(pass_: Pass) -> Pass:
        options: dict[str, Any] = {}
        if keep_float and hasattr(pass_, "keep_float"):
            options["keep_float"] = (*pass_.keep_float, *keep_float)
        if chosen is not None and hasattr(pass_, "recipe"):
            options["recipe"] = chosen
        if input_range and isinstance(pass_, AnalyzeRanges):
            options["input_range"] = (*pass_.input_range, *input_range)
        return replace(pass_, **options) if options else pass_

    adapted = _with_corrections([adapt(pass_) for pass_ in pipeline.passes], Recipe.open(recipe))
    if input_range and not any(isinstance(pass_, AnalyzeRanges) for pass_ in adapted):
        raise OptionError("input_range: no pass of this preset looks at ranges (analyze-ranges would)")
    return Pipeline(adapted)


def _with_corrections(passes: list[Pass], recipe: Recipe) -> list[Pass]:
    """The passes with those that the recipe's corrections ask for, before emission; rounding corrects biases too."""
    first = next((i for i, one in enumerate(passes) if one.name.startswith("emit-")), len(passes))
    if "bias" not in recipe.corrections or any(isinstance(one, CorrectBias | RoundWeights) for one in passes):
        return passes
    return [*passes[:first], CorrectBias(), *passes[first:]]


def _with_threshold(pipeline: Pipeline, min_sqnr: float | None) -> Pipeline:
    """The same pipeline, searching for a placement that reaches so many dB."""
    if min_sqnr is None:
        return pipeline
    wanted = min_sqnr + _SQNR_MARGIN
    passes = [replace(one, min_sqnr=wanted) if isinstance(one, MixedPrecision) else one for one in pipeline.passes]
    return Pipeline(passes)


_SEARCH_ROUNDS, _SEARCH_STEP = 4, 4.0


def _search(
    source: Model,
    result: PipelineResult,
    compile_for: Callable[[float], PipelineResult],
    max_drop: float,
    calibration: DataSource,
    metric: Metric | None,
) -> PipelineResult:
    """Ask for more dB until the metric on the calibration samples drops by no more than allowed, a few times.

    The samples to check on are not looked at. Where calibration samples have no labels, agreement stands for them.
    """
    labelled = metric if calibration.labels is not None else None
    with runnable(source) as float_model:
        for _ in range(_SEARCH_ROUNDS):
            with runnable(result.model) as int_model:
                golden = GoldenSet(calibration, ())
                comparison = check_all_against(
                    golden, [float_view(OrtRunner(int_model))], OrtRunner(float_model), labelled
                )[0]
            if comparison.drop is None or comparison.drop <= max_drop or comparison.sqnr_min_db == float("inf"):
                break
            result = compile_for(comparison.sqnr_min_db + _SEARCH_STEP)
    return result


def _samples(
    pipeline: Pipeline, preset: str, calibration: Any, model: Model, hold_some_out: bool, images: Images | None
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
    data = open_data(calibration, input_specs(model), images=images)
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
    islands: tuple[Island, ...] = ()
    loaded: bool = True
    """Whether the runtime was asked what it executes."""


def _measure(
    target: Target,
    source: Model,
    quantized: Model,
    golden: Any,
    held_out: DataSource | None,
    calibration: DataSource | None,
    latency_seconds: float,
    watch: Progress,
    metric: Metric | None,
    images: Images | None,
    *,
    load: bool,
) -> _Measured:
    """Run the emitted model beside the float model. Without samples it is only loaded, to see what it executes, and not
    even that where it is large or ``load`` is false: the runtime would hold all its weights, folded ones as float."""
    if golden is None and calibration is None and not (load and model_message(quantized).size <= MOST_IN_MEMORY):
        return _Measured("no data", loaded=False)
    with runnable(quantized) as int_model:
        executed = audit(quantized, int_model) if target.runs_here else Audit()
        measured = _Measured(
            "no data",
            integer=dict(sorted(executed.integer.items())),
            float_heavy=dict(sorted(executed.float_heavy.items())),
            islands=executed.islands,
        )
        if golden is None and calibration is None:
            return measured
        with runnable(source) as float_model:
            golden_set, kind = _check_set(golden, held_out, calibration, float_model, images)
            watch.start("validating", golden_set.inputs.count)
            runners = [float_view(OrtRunner(int_model, config)) for config in (_recommended(target), PLAIN)]
            measured.accuracy, measured.plain = check_all_against(
                golden_set, runners, OrtRunner(float_model), metric, watch.advance
            )
            watch.finish()
            measured.on = f"{measured.accuracy.samples} {kind}"
            if target.runs_here:
                watch.start("timing both models", None)
                measured.latency = _latency(float_model, int_model, golden_set, latency_seconds, quantized, target)
                watch.finish()
            else:
                measured.on += f"; computed by onnxruntime in place of {target.name}, which is not here"
    return measured


def _check_set(
    golden: Any,
    held_out: DataSource | None,
    calibration: DataSource | None,
    float_model: Serialized,
    images: Images | None,
) -> tuple[GoldenSet, str]:
    """What is measured on, and how the report calls it."""
    if golden is not None:
        runner = OrtRunner(float_model)
        opened = open_golden(golden, runner.inputs, runner.outputs, images=images)
        return opened, f"golden samples of {opened.name}"
    if held_out is not None:
        return GoldenSet(held_out, ()), "samples kept out of calibration"
    assert calibration is not None
    return GoldenSet(calibration, ()), "calibration samples: too few to keep any out, so this is optimistic"


def _latency(
    float_model: Serialized, int_model: Serialized, samples: GoldenSet, seconds: float, quantized: Model, target: Target
) -> LatencyComparison | None:
    if seconds <= 0:
        return None
    feeds = [case.feed for case in islice(samples, _LATENCY_SAMPLES)]
    codes = to_codes(feeds, read_io(quantized.metadata))
    chosen = _recommended(target)
    return compare_latency(float_model, int_model, feeds, config_b=chosen, threads=1, seconds=seconds, feeds_b=codes)


def _recommended(target: Target) -> SessionConfig:
    """As the target's runtime should be configured; of one that is not here only the plain arithmetic can be run."""
    return SessionConfig(entries=target.session_options) if target.runs_here else PLAIN


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


def current_versions() -> dict[str, str]:
    """What a report and a manifest name: qir, Python, and the packages that compute."""
    import platform
    from importlib.metadata import version

    from qir import __version__

    packages: Iterable[str] = ("onnx", "onnxruntime", "numpy")
    return {"qir": __version__, "python": platform.python_version(), **{name: version(name) for name in packages}}
