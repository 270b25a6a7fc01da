"""Whether a changed model still computes what it did: it runs on golden inputs, with the runtime's optimisations off.

Two questions, after the effect that a pass declares: an exact one may move an output by float re-association only, a
lossy one must stay close enough to the float model, in dB.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qir.calibration.feeds import family
from qir.calibration.specs import input_specs, output_specs
from qir.errors import ModelError, QirError, UnsupportedError
from qir.ir import Model, UseQuantMarker
from qir.pipeline import Effect, Feed, NoProgress, Pass, Pipeline, Progress
from qir.runtime.specs import Output
from qir.validation.metrics import Comparison

__all__ = ["Judged", "Numerics", "NumericsError", "Outputs", "Tolerance", "golden_feeds", "how_to_judge"]

Outputs = Sequence[Mapping[str, Output]]
"""The outputs of a model by name, sample by sample."""
Judged = Literal["exact", "lossy"] | None

_INERT = frozenset({"doc", "metadata", "observed", "order", "range", "region", "type"})
"""Fields whose edits leave the numbers alone."""
_QUANTIZERS = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear"})
_RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial"})


class NumericsError(QirError):
    """A pass moved the model's outputs further than it may: a check failed."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far outputs may move.

    ``exact``: the largest error of a float output as a share of its largest magnitude over all samples. float16 is
    given 100 times its rounding step instead where that is more, bfloat16 20 times; other outputs must be equal.
    ``requantized_db``: what an exact pass must keep in a model that is quantized already, where a rounding that falls
    to the other side moves an output by a whole step. ``lossy_db``: what a lossy pass must keep, against the float
    model, at the worst output.
    """

    exact: float = 1e-4
    requantized_db: float = 40.0
    lossy_db: float = 5.0


def how_to_judge(pass_: Pass, edits: Collection[str]) -> Judged:
    """By which measure to check a pass that edited these fields; None where it cannot have changed a number.

    A pass that writes quantization annotations only declares itself an analysis, and changes numbers all the same:
    running an annotated model means running it quantized.
    """
    if _INERT.issuperset(edits):
        return None
    return "exact" if pass_.effect is Effect.EXACT else "lossy"


def golden_feeds(golden: object, model: Model, samples: int | None) -> list[Feed]:
    """The first ``samples`` inputs of golden data (a path or anything that ``open_golden`` takes), in memory.

    Raises DataError where they do not fit the model.
    """
    from qir.validation.golden import open_golden

    data = open_golden(golden, input_specs(model), output_specs(model)).inputs
    return list(data if samples is None else data.take(samples))


class Numerics:
    """Golden inputs, what may move, and how often a model was run on all of them; ``progress`` advances by runs."""

    def __init__(
        self, feeds: Sequence[Feed], tolerance: Tolerance | None = None, progress: Progress | None = None
    ) -> None:
        self.feeds = feeds
        self.progress = progress or NoProgress()
        self.tolerance = tolerance or Tolerance()
        self.runs = 0

    def reference(self, model: Model) -> Outputs:
        """``outputs`` of the model that others are held against.

        Raises UnsupportedError where it gives other numbers in each run, ModelError where onnxruntime refuses it.
        """
        for node in model.walk():
            if node.op in _RANDOM and node.domain in ("", "ai.onnx") and node.get("seed") is None:
                raise UnsupportedError(f"{node.op} {node.label!r} draws random numbers: outputs cannot be compared")
        return self.outputs(model)

    def outputs(self, model: Model) -> Outputs:
        """Run the model once over all feeds. An annotated one is emitted as QDQ on a copy first.

        Raises ModelError or UnsupportedError where onnxruntime does not take the model, or where its annotations
        cannot be emitted.
        """
        return self._run(_emitted(model))

    def _run(self, model: Model) -> Outputs:
        from qir.codegen import runnable
        from qir.runtime.session import PLAIN, OrtRunner

        self.runs += 1
        with runnable(model) as source:
            runner = OrtRunner(source, PLAIN)
            takes = {spec.name for spec in runner.inputs}
            outputs = [runner.run({k: v for k, v in feed.items() if k in takes}) for feed in self.feeds]
        self.progress.advance()
        return outputs

    def fault(self, judged: Judged, model: Model, baseline: Outputs, reference: Outputs) -> tuple[Outputs, str | None]:
        """Run the model and say what is wrong with its outputs, None if nothing is.

        ``baseline`` is what an exact pass must keep, ``reference`` what the float model gives. Raises what emitting
        annotations raises: that they cannot be emitted is no fault of the numbers.
        """
        emitted = _emitted(model)
        try:
            outputs = self._run(emitted)
        except (ModelError, UnsupportedError) as error:
            return [], str(error)
        if judged == "lossy":
            return outputs, self._below(self.tolerance.lossy_db, reference, outputs)
        if is_quantized(model):
            return outputs, self._below(self.tolerance.requantized_db, baseline, outputs)
        return outputs, self._moved(baseline, outputs)

    def _below(self, wanted_db: float, reference: Outputs, outputs: Outputs) -> str | None:
        names = list(reference[0]) if reference else []
        if missing := _missing(names, outputs):
            return missing
        comparison = Comparison(names)
        for want, have in zip(reference, outputs, strict=True):
            comparison.add(want, have)
        for metrics in comparison.float_outputs:
            if not metrics.sqnr_db >= wanted_db:
                return f"output {metrics.name!r} has an SQNR of {metrics.sqnr_db:.1f} dB, {wanted_db:g} dB are wanted"
        return None

    def _moved(self, baseline: Outputs, outputs: Outputs) -> str | None:
        names = list(baseline[0]) if baseline else []
        if missing := _missing(names, outputs):
            return missing
        for name in names:
            if problem := self._output_moved([one[name] for one in baseline], [one[name] for one in outputs]):
                return f"output {name!r} {problem}"
        return None

    def _output_moved(self, wanted: Sequence[Output], got: Sequence[Output]) -> str | None:
        error = scale = 0.0
        allowed = self.tolerance.exact
        for want, have in zip(_arrays(wanted), _arrays(got), strict=False):
            if want.shape != have.shape or want.dtype != have.dtype:
                return f"is {have.dtype}{list(have.shape)}, it was {want.dtype}{list(want.shape)}"
            if family(want.dtype) != "float":
                if different := int(np.count_nonzero(want != have)):
                    return f"has {different} of {want.size} elements that differ"
                continue
            allowed = max(allowed, _LEAST_TOLERANCE.get(want.dtype.name, 0.0))
            a, b = want.astype(np.float64), have.astype(np.float64)
            finite = np.isfinite(a)
            if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
                return "is NaN or infinite in other places than before"
            a, b = a[finite], b[finite]
            error = max(error, float(np.abs(a - b).max(initial=0.0)))
            scale = max(scale, float(np.abs(a).max(initial=0.0)))
        if sum(1 for _ in _arrays(wanted)) != sum(1 for _ in _arrays(got)):
            return "has another number of elements in its sequence"
        if error <= allowed * scale:
            return None
        share = error / scale if scale else math.inf
        return f"moved by {error:.3g}, {share:.2g} of its largest magnitude; an exact pass may move it by {allowed:.2g}"


_LEAST_TOLERANCE = {"float16": 100 * 2.0**-11, "bfloat16": 20 * 2.0**-8}


def is_quantized(model: Model) -> bool:
    """Whether the model carries annotations or quantizer nodes."""
    return _is_annotated(model) or any(node.op in _QUANTIZERS for node in model.walk())


def _emitted(model: Model) -> Model:
    """The model as it is, or where it is annotated a copy with QDQ nodes."""
    if not _is_annotated(model):
        return model
    return Pipeline.parse("emit-qdq").run(model, verify=False).model


def _is_annotated(model: Model) -> bool:
    return any(
        value.quant is not None or any(use.quant is not UseQuantMarker.INHERIT for use in value.uses)
        for value in model.values()
    )


def _missing(names: Sequence[str], outputs: Outputs) -> str | None:
    gone = [name for name in names if outputs and name not in outputs[0]]
    return f"output {gone[0]!r} is gone" if gone else None


def _arrays(values: Sequence[Any]) -> Any:
    """The arrays in outputs, those of sequences and maps one by one, in an order that depends on content only."""
    for value in values:
        if isinstance(value, Mapping):
            yield np.asarray(sorted(value))
            yield from _arrays([value[key] for key in sorted(value)])
        elif isinstance(value, list | tuple):
            yield from _arrays(value)
        elif value is not None:
            yield np.asarray(value)
