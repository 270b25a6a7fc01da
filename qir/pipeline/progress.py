"""A progress bar on the terminal (rich), told by passes and by the pipeline."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from qir.ir import Model
from qir.pipeline.contract import Pass
from qir.pipeline.instruments import Instrument, PassRun

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["ProgressBar"]


class ProgressBar(Instrument):
    """Both the instrument that counts passes and the ``Progress`` that passes report their long loops to.

    A context manager: the bar is on the screen inside of the block only. Draws nothing where ``stream`` is no terminal.
    """

    label = "progress"

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(file=stream),
            transient=True,
            disable=not stream.isatty(),
        )
        self._passes: TaskID | None = None
        self._work: list[TaskID] = []

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    # Instrument

    def begin(self, model: Model, passes: tuple[Pass, ...]) -> None:
        self._passes = self._bar.add_task("passes", total=len(passes))

    def before_pass(self, run: PassRun) -> None:
        if self._passes is not None:
            self._bar.update(self._passes, description=run.pass_.name)

    def after_pass(self, run: PassRun) -> None:
        self._drop_work()
        if self._passes is not None:
            self._bar.advance(self._passes)

    def failed(self, run: PassRun, error: BaseException) -> None:
        self._drop_work()

    # Progress

    def start(self, label: str, total: int | None) -> None:
        self._work.append(self._bar.add_task(f"  {label}", total=total))

    def advance(self, steps: int = 1) -> None:
        if self._work:
            self._bar.advance(self._work[-1], steps)

    def finish(self) -> None:
        if self._work:
            self._bar.remove_task(self._work.pop())

    def _drop_work(self) -> None:
        while self._work:
            self.finish()
