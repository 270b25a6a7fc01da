"""The instrument behind `qir opt --diff-each`: after each pass, what it changed in the model, in a reviewer's words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from qir.diff.changes import GraphDiff
from qir.diff.differ import diff
from qir.pipeline import Effect, Instrument, PassRun

if TYPE_CHECKING:
    from qir.ir import Model

__all__ = ["DiffEach"]


class DiffEach(Instrument):
    """Hands the diff of every pass that changed the model to ``show(pass name, diff)``. Keeps one cheap copy of the
    model at a time; annotations (types, ranges, quantization) are no part of a diff."""

    label = "diff"

    def __init__(self, show: Callable[[str, GraphDiff], None]) -> None:
        self._show = show
        self._before: Model | None = None

    def before_pass(self, run: PassRun) -> None:
        self._before = run.model.clone() if run.pass_.effect is not Effect.ANALYSIS else None

    def after_pass(self, run: PassRun) -> None:
        if self._before is not None and run.changed:
            found = diff(self._before, run.model)
            before, after = replace(found.before, name="before"), replace(found.after, name="after")
            self._show(run.pass_.name, replace(found, before=before, after=after))
        self._before = None
