"""Instruments watch a pipeline run without being part of it: they print, check, count, and may undo a pass.

Subclass ``Instrument`` and define the hooks you need. Hooks run while the pass's transaction is open: they see its
journal, and must not edit the model themselves.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qir.ir import Journal, Model
from qir.pipeline.contract import Pass, PassContext, PassResult

if TYPE_CHECKING:
    from qir.pipeline.result import PipelineResult

__all__ = ["Instrument", "PassRun", "Verdict"]


class Verdict(enum.Flag):
    """What is to happen after a pass; the answers of all instruments are united."""

    KEEP = 0
    ROLLBACK = enum.auto()
    """Undo this pass."""
    STOP = enum.auto()
    """Run no further pass."""


@dataclass(slots=True)
class PassRun:
    """One run of one pass, as instruments see it. ``result`` is there after the pass."""

    index: int
    """Position in the pipeline, from 0."""
    pass_: Pass
    model: Model
    context: PassContext
    journal: Journal
    result: PassResult = field(default_factory=PassResult)

    @property
    def changed(self) -> bool:
        """The pass says so, or the journal has an edit."""
        return self.result.changed or self.journal.mark() > 0


class Instrument:
    """Does nothing; base of all. ``label`` is its name in the timing tree."""

    label: str = ""

    def begin(self, model: Model, passes: tuple[Pass, ...]) -> None:
        """Before the first pass."""

    def before_pass(self, run: PassRun) -> None:
        """The transaction is open, the pass has not run."""

    def after_pass(self, run: PassRun) -> Verdict | None:
        """The pass has run and types are inferred; None keeps it. An exception undoes the pass and ends the run."""

    def failed(self, run: PassRun, error: BaseException) -> None:
        """The pass, or an instrument after it, raised; the model is as that left it and is rolled back next."""

    def end(self, result: PipelineResult) -> None:
        """After the last pass, also where one was stopped; not after an error."""
