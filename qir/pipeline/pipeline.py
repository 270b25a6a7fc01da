"""Pipelines: a sequence of passes, read from text, TOML or objects, printed back, and run over a model."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

from qir.errors import OptionError, QirError, suggest
from qir.ir import Model
from qir.ir.collector import collector_relaxed
from qir.pipeline.contract import Effect, Feed, NoProgress, Pass, PassContext, PassResult, Progress, Remark, RemarkKind
from qir.pipeline.instruments import Instrument, PassRun, Verdict
from qir.pipeline.options import read_options, write_options
from qir.pipeline.preset import Preset
from qir.pipeline.registry import Registry, check_pass_class, default_registry
from qir.pipeline.result import PassReport, PipelineResult
from qir.pipeline.text import Quoted, Raw, Step, format_steps, parse_steps
from qir.pipeline.timing import Timer
from qir.rewriting import Numbering
from qir.runtime.blas import one_blas_thread

__all__ = ["Pipeline"]


Item: TypeAlias = "Pass | type[Pass] | Pipeline | str"


class Pipeline:
    """An immutable sequence of passes with their options.

    >>> Pipeline.parse("optimize,quantize{preset=int8}")  # doctest: +SKIP
    >>> Pipeline(["canonicalize", MyPass(limit=3)])  # doctest: +SKIP

    Where a pass's name can stand, the name of a preset or pipeline text can; it is expanded at once, so ``passes`` is
    flat and ``str`` shows what will run. Two pipelines are equal when their passes and options are.
    """

    __slots__ = ("passes",)
    passes: tuple[Pass, ...]

    def __init__(self, items: Item | Iterable[Item] = (), *, registry: Registry | None = None) -> None:
        """From passes, pass classes (with default options), pipelines and pipeline text, several or one.

        Raises OptionError for anything else.
        """
        if isinstance(items, Pass | Pipeline | str | type) or not isinstance(items, Iterable):
            items = [items]
        self.passes = tuple(pass_ for item in items for pass_ in _resolve(item, registry))

    @classmethod
    def parse(cls, text: str, *, registry: Registry | None = None) -> Pipeline:
        """From pipeline text, e.g. ``canonicalize,fuse{only=conv-bn max-rounds=3}``; ``str`` is the inverse.

        Raises OptionError for wrong syntax, unknown passes and options, impossible values.
        """
        return cls([text], registry=registry)

    @classmethod
    def from_toml(cls, path: str | Path, *, registry: Registry | None = None) -> Pipeline:
        """From a TOML file with one table ``[[pass]]`` a pass, its options as keys beside ``name``.

        Raises OptionError, naming the file.
        """
        try:
            return cls.parse_toml(Path(path).read_text(encoding="utf-8"), registry=registry)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise OptionError(f"pipeline file {str(path)!r} cannot be read: {reason}") from error
        except OptionError as error:
            raise OptionError(f"pipeline file {str(path)!r}: {error}") from error

    @classmethod
    def parse_toml(cls, text: str, *, registry: Registry | None = None) -> Pipeline:
        """From the text of such a file; ``to_toml`` is the inverse."""
        try:
            content = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise OptionError(f"not valid TOML: {error}") from error
        unknown = [key for key in content if key != "pass"]
        if unknown:
            raise OptionError(
                f"unknown key {unknown[0]!r}{suggest(unknown[0], ['pass'])}; a pipeline has [[pass]] tables"
            )
        tables = content.get("pass", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise OptionError("'pass' must be a list of tables: write [[pass]] above each")
        return cls(
            [
                Pipeline(_from_step(_toml_step(t, i), registry or default_registry(), toml=True))
                for i, t in enumerate(tables)
            ]
        )

    def to_toml(self) -> str:
        """The text of a TOML file that ``from_toml`` reads. Options that have their default are left out."""
        tables = []
        for pass_ in self.passes:
            options = write_options(pass_, toml=True)
            lines = [f"name = {_toml(pass_.name)}", *(f"{key} = {_toml(value)}" for key, value in options.items())]
            tables.append("\n".join(["[[pass]]", *lines, ""]))
        return "\n".join(tables)

    def __str__(self) -> str:
        return format_steps(Step(pass_.name, write_options(pass_)) for pass_ in self.passes)

    def __repr__(self) -> str:
        return f"Pipeline.parse({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pipeline) and self.passes == other.passes

    def __hash__(self) -> int:
        return hash(self.passes)

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __len__(self) -> int:
        return len(self.passes)

    def __add__(self, other: Pipeline) -> Pipeline:
        return Pipeline([self, other])

    @property
    def needs_calibration(self) -> Pass | None:
        """The first pass that cannot do without samples; None where the pipeline runs without any."""
        return next((pass_ for pass_ in self.passes if pass_.needs_calibration), None)

    def with_settings(self, settings: Iterable[str]) -> Pipeline:
        """The same passes with other options. A setting is ``PASS.OPTION=VALUE``, the value as in pipeline text; it
        holds for every pass of that name.

        Raises OptionError for text that is none, a pass that is not in the pipeline, an unknown option or value.
        """
        passes = list(self.passes)
        for setting in settings:
            target, equals, value = setting.partition("=")
            name, dot, option = target.partition(".")
            if not (name and dot and option and equals):
                raise OptionError(f"{setting!r} is no setting: write PASS.OPTION=VALUE")
            places = [index for index, pass_ in enumerate(passes) if pass_.name == name]
            if not places:
                names = dict.fromkeys(pass_.name for pass_ in passes)
                raise OptionError(f"no pass {name!r} to set{suggest(name, names)}: the pipeline has {', '.join(names)}")
            given = parse_steps(f"{name}{{{option.replace('_', '-')}={value}}}")[0].options
            for index in places:
                passes[index] = read_options(type(passes[index]), {**write_options(passes[index]), **given})
        return Pipeline(passes)

    def run(
        self,
        model: Model,
        *,
        calibration: Iterable[Feed] | None = None,
        target: str = "ort-cpu",
        reference: Model | None = None,
        instruments: Sequence[Instrument] = (),
        verify: bool = True,
        progress: Progress | None = None,
        in_place: bool = False,
        numbering: Numbering | None = None,
        executor: Executor | None = None,
    ) -> PipelineResult:
        """Run the passes over a copy of ``model`` (tensors are shared), or over ``model`` itself with ``in_place``.

        ``calibration`` yields feeds and must be iterable again. ``reference`` is the float model that passes compare
        with; by default ``model`` as given (with ``in_place`` a copy of it, made only where a pass is not exact).
        ``verify`` checks the IR before the first and after every pass. ``numbering`` counts the rewrites of all passes
        and may limit them. ``executor``: workers (threads or processes) among which calibration divides the samples;
        the result is the same to the last bit.

        A pass that raises is undone. Its QirError comes out with the pass's name in front, anything else (a bug) with
        a note. What the passes before it did stays in an ``in_place`` model.
        """
        if not isinstance(model, Model):
            raise OptionError(f"a pipeline runs over a Model, not over {model!r}: qir.load reads one from a file")
        if odd := [watcher for watcher in instruments if not isinstance(watcher, Instrument)]:
            raise OptionError(f"{odd[0]!r} is no Instrument object")
        work = model if in_place else model.clone()
        if reference is None:
            exact = all(pass_.effect is Effect.EXACT for pass_ in self.passes)
            reference = model if not in_place else None if exact else model.clone()
        timer = Timer()
        context = PassContext(
            reference, calibration, target, progress or NoProgress(), timer, numbering or Numbering(), executor
        )
        watchers: list[Instrument] = [*_verification(verify), *instruments]
        result = PipelineResult(work, str(self), timing=timer.root)
        with collector_relaxed(), one_blas_thread(), timer.new_scope("pipeline") as result.timing:
            with timer.scope("shape inference"):
                result.first_remarks += _first_types(work)
            for watcher in watchers:
                with timer.scope(_label(watcher)):
                    watcher.begin(work, self.passes)
            for index, pass_ in enumerate(self.passes):
                report, verdict = _run_pass(index, pass_, work, context, watchers)
                result.passes.append(report)
                if Verdict.STOP in verdict:
                    result.stopped = True
                    break
        for watcher in watchers:
            watcher.end(result)
        return result


def _run_pass(
    index: int, pass_: Pass, model: Model, context: PassContext, watchers: Sequence[Instrument]
) -> tuple[PassReport, Verdict]:
    """One pass in its own transaction, watched; commits or rolls back."""
    timer = context.timer
    run = PassRun(index, pass_, model, context, model.begin(pass_.name))
    verdict = Verdict.KEEP
    with timer.new_scope(pass_.name) as timing:
        try:
            for watcher in watchers:
                watcher.before_pass(run)
            with timer.scope("run") as own:
                run.result = pass_.run(model, context)
            if not isinstance(run.result, PassResult):
                raise OptionError(f"run returned {run.result!r} where a PassResult is due")
            if odd := [remark for remark in run.result.remarks if not isinstance(remark, Remark)]:
                raise OptionError(f"{odd[0]!r} is no remark: self.applied, self.missed and self.note make one")
            edits = run.journal.counts()
            changed = run.changed
            with timer.scope("shape inference") if _needs_types(run) else nullcontext():
                _infer_types(run)
            for watcher in watchers:
                with timer.scope(_label(watcher)):
                    answer = watcher.after_pass(run)
                if not isinstance(answer, Verdict | None):
                    raise OptionError(f"instrument {_label(watcher)!r} answered {answer!r}, no Verdict and not None")
                verdict |= answer or Verdict.KEEP
        except BaseException as error:
            try:
                for watcher in watchers:
                    watcher.failed(run, error)
            finally:
                model.rollback()
            _name_pass(error, pass_, index)
            raise
        if Verdict.ROLLBACK in verdict:
            model.rollback()
        else:
            model.commit(keeps_observed=pass_.keeps_observed)
    report = PassReport(
        name=pass_.name,
        options=write_options(pass_),
        changed=changed and Verdict.ROLLBACK not in verdict,
        rolled_back=Verdict.ROLLBACK in verdict,
        seconds=own.seconds,
        statistics=run.result.statistics,
        remarks=tuple(run.result.remarks),
        edits=dict(sorted(edits.items())),
        timing=timing,
    )
    return report, verdict


def _needs_types(run: PassRun) -> bool:
    return run.pass_.effect is not Effect.ANALYSIS and run.journal.mark() > 0


def _first_types(model: Model) -> list[Remark]:
    """Infer the types that the file leaves out; what that could not do, or found wrong in the file."""
    from qir.ops.shape_inference import infer

    if all(value.type is not None for node in model.walk() for value in node.outputs if value.name):
        return []
    report = infer(model)
    name = "shape-inference"
    return [
        *(
            Remark(RemarkKind.MISSED, name, f"no shape inference for operator {op} ({count} nodes)")
            for op, count in sorted(report.unknown_ops.items())
        ),
        *(Remark(RemarkKind.NOTE, name, str(wrong), wrong.value) for wrong in report.contradictions),
        *(Remark(RemarkKind.NOTE, name, reason, label) for label, reason in report.problems.items()),
    ]


def _infer_types(run: PassRun) -> None:
    """Types and shapes of what the pass touched, and downstream as far as they change."""
    if _needs_types(run):
        from qir.ops.shape_inference import infer_after

        infer_after(run.model, run.journal.touched_nodes(retyped=True))


def _name_pass(error: BaseException, pass_: Pass, index: int) -> None:
    if isinstance(error, QirError):
        error.args = (f"pass {pass_.name!r}: {error}",)
    else:
        error.add_note(f"in pass {pass_.name!r}, number {index + 1} of the pipeline")


def _verification(verify: bool) -> list[Instrument]:
    if not verify:
        return []
    from qir.pipeline.verify import Verification

    return [Verification()]


def _label(watcher: Instrument) -> str:
    return watcher.label or type(watcher).__name__


# Reading and writing


def _resolve(item: Item, registry: Registry | None) -> Iterator[Pass]:
    match item:
        case Pass():
            check_pass_class(type(item), f"object {item!r}")
            yield item
        case type() if issubclass(item, Pass):
            check_pass_class(item, f"class {item.__qualname__}")
            yield read_options(item, {})
        case Pipeline():
            yield from item.passes
        case str():
            for step in parse_steps(item):
                yield from _from_step(step, registry or default_registry())
        case _:
            raise OptionError(
                f"a pipeline is made of passes, pass classes, pipelines and names, not of {item!r} (qir.interop makes "
                "passes of what onnx-ir, onnxscript and onnx-graphsurgeon run)"
            )


def _from_step(step: Step, registry: Registry, *, toml: bool = False, within: tuple[str, ...] = ()) -> Iterator[Pass]:
    """The pass that a step names, or the passes of the preset."""
    found = registry.get(step.name)
    if not isinstance(found, Preset):
        yield read_options(found, step.options, toml=toml)
        return
    if step.options:
        raise OptionError(
            f"preset {step.name!r} takes no options; print it with 'qir passes {step.name}', copy and edit its passes"
        )
    if step.name in within:
        raise OptionError(f"preset {step.name!r} contains itself: {' -> '.join((*within, step.name))}")
    for inner in parse_steps(found.text):
        yield from _from_step(inner, registry, within=(*within, step.name))


def _toml_step(table: Mapping[str, Any], index: int) -> Step:
    name = table.get("name")
    if not isinstance(name, str):
        raise OptionError(f'[[pass]] number {index + 1} has no name: write name = "..."')
    options: dict[str, Raw] = {}
    for key, value in table.items():
        if key == "name":
            continue
        if not _is_raw(value):
            raise OptionError(f"pass {name!r}: option {key!r} cannot be {value!r}")
        options[key] = value
    return Step(name, options)


def _is_raw(value: object) -> bool:
    return isinstance(value, bool | int | float | str) or (isinstance(value, list) and all(map(_is_raw, value)))


def _toml(value: Raw) -> str:
    """A TOML value (toml.io, v1.0): strings as basic strings, which JSON's are but for the DEL character."""
    match value:
        case bool():
            return "true" if value else "false"
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case Quoted():
            return _toml(value.text)
        case _:
            return repr(value)
