"""The progress bar: drawn on a terminal, absent in a pipe, tidy after a failure."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar

import pytest

from qir.errors import ModelError
from qir.ir import Model
from qir.pipeline import Effect, NoProgress, Pass, PassContext, PassResult, Pipeline
from qir.pipeline.progress import ProgressBar, progress_bar
from tests.pipeline.toys import chain


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass(frozen=True)
class Slow(Pass):
    """Reports a loop."""

    name: ClassVar[str] = "slow"
    effect: ClassVar[Effect] = Effect.EXACT
    fail: bool = False

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        ctx.progress.start("samples", 3)
        for _ in range(3):
            ctx.progress.advance()
        assert isinstance(ctx.progress, ProgressBar)
        loop = ctx.progress._drawn.tasks[-1]
        assert (loop.description, loop.completed, loop.total) == ("  samples", 3, 3)
        if self.fail:
            raise ModelError("no")
        ctx.progress.finish()
        return PassResult()


def test_passes_and_their_loops_move_the_bar() -> None:
    with progress_bar(Terminal()) as (progress, bars):
        Pipeline([Slow(), Slow()]).run(chain(), progress=progress, instruments=bars)
        assert isinstance(progress, ProgressBar)
        (task,) = progress._drawn.tasks
        assert (task.description, task.completed, task.total) == ("slow", 2, 2)


def test_a_failure_leaves_no_bar_of_its_loop() -> None:
    with progress_bar(Terminal()) as (progress, bars):
        with pytest.raises(ModelError):
            Pipeline([Slow(fail=True)]).run(chain(), progress=progress, instruments=bars)
        assert isinstance(progress, ProgressBar) and len(progress._drawn.tasks) == 1


def test_a_pipe_gets_nothing() -> None:
    stream = io.StringIO()
    with progress_bar(stream) as (progress, bars):
        progress.start("samples", 3)
        progress.advance()
        progress.finish()
    assert isinstance(progress, NoProgress) and bars == [] and stream.getvalue() == ""
