"""One call that says where the error of a quantized model comes from, and what to do about it."""

from __future__ import annotations

import os
from typing import Any

from qir.api.branches import compare_views
from qir.calibration.data import open_data, spread
from qir.calibration.specs import input_specs
from qir.codegen import runnable
from qir.errors import DataError, ModelError
from qir.frontend import load
from qir.ir import Model
from qir.pipeline import NoProgress, Pipeline, Progress
from qir.pipeline.registry import load_target
from qir.quant.recipe import Recipe
from qir.report.layers import ComparisonReport
from qir.runtime.session import PLAIN, OrtRunner
from qir.validation.advice import Advice, advise
from qir.validation.golden import GoldenSet, check_all_against

__all__ = ["compare"]


def compare(
    reference: str | os.PathLike[str] | Model,
    quantized: str | os.PathLike[str] | Model,
    data: Any,
    *,
    layers: bool = False,
    target: str = "ort-cpu",
    samples: int = 32,
    lines: int = 8,
    reach: float | None = None,
    recipe: str | os.PathLike[str] | Recipe | None = None,
    progress: Progress | None = None,
) -> ComparisonReport:
    """Compare a quantized model with its float model, node by node, and say what would help.

    ``quantized`` may come from any quantizer. ``data``: whatever ``calibration=`` takes; at most ``samples`` of it are
    used for the layers, all for the outputs. ``layers`` shows every layer in order. The advice has at most ``lines``
    lines, fewer where ``reach`` dB at the worst output need fewer; ``recipe`` is what ``quantized`` was made with, and
    comes first in the report's ``recipe``. ``target`` estimates what a line costs.

    Raises ModelError, DataError or OptionError.
    """
    ours = reference if isinstance(reference, Model) else load(reference)
    theirs = _as_qdq(quantized if isinstance(quantized, Model) else load(quantized))
    _check_interface(ours, theirs)
    source = open_data(data, input_specs(ours))
    feeds = spread(source, samples)
    if not feeds:
        raise DataError(f"{source.name}: holds no sample, give at least one")
    watch = progress or NoProgress()
    with runnable(ours, annotations="drop") as float_model, runnable(theirs, annotations="drop") as their_model:
        runners = [OrtRunner(their_model), OrtRunner(their_model, PLAIN)]
        outputs, plain = check_all_against(GoldenSet(source, ()), runners, OrtRunner(float_model))
    errors, feeds = compare_views(ours, theirs, feeds, watch)
    advice = Advice()
    if lines > 0:
        earlier = Recipe.open(recipe)
        advice = advise(errors, feeds, load_target(target), most=lines, reach_db=reach, earlier=earlier, progress=watch)
    return ComparisonReport(
        reference=_name(reference),
        quantized=_name(quantized),
        data=source.name,
        outputs=outputs,
        outputs_plain=plain,
        errors=errors,
        advice=advice,
        recipe=Recipe.open(recipe).then(advice.recipe),
        show_layers=layers,
    )


def _as_qdq(model: Model) -> Model:
    """Operators on integer tensors (QLinearConv and its like) as float operators between quantizers."""
    if not any(node.op.startswith(("QLinear", "QGemm")) for node in model.walk()):
        return model
    return Pipeline.parse("lift,emit-qdq").run(model).model


def _check_interface(ours: Model, theirs: Model) -> None:
    for kind, wanted, got in (
        ("input", ours.graph.inputs, theirs.graph.inputs),
        ("output", ours.graph.outputs, theirs.graph.outputs),
    ):
        names = {value.name for value in wanted}
        other = next((value.name for value in got if value.name not in names and not value.is_initializer), None)
        if other is not None:
            raise ModelError(
                f"the quantized model has the {kind} {other!r}, which the float model lacks: give the float model "
                "that it was made from, before it"
            )


def _name(model: str | os.PathLike[str] | Model) -> str:
    return model.graph.name or "model" if isinstance(model, Model) else os.fspath(model)
