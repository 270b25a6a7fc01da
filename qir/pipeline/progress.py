"""A progress bar on the terminal (rich), told by passes and by the pipeline.

A stage that knows how many steps it has shows the time that is left, from the rate of its own last steps; one that does
not shows a spinner and the time that has passed. So does the line of all passes, whose steps are not alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from qir.ir import Model
from qir.pipeline.contract import NoProgress, Pass, Progress
from qir.pipeline.instruments import Instrument, PassRun

if TYPE_CHECKING:
    import rich.progress

__all__ = ["ProgressBar", "progress_bar"]


@contextmanager
def progress_bar(stream: TextIO) -> Iterator[tuple[Progress, list[Instrument]]]:
    """What to hand to ``Pipeline.run`` for a bar on this stream while the block runs; nothing is drawn in a pipe."""
    if not stream.isatty():
        yield NoProgress(), []
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as RichProgress

    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        _time_column(),
    )
    with RichProgress(*columns, console=Console(file=stream), transient=True) as drawn:
        bar = ProgressBar(drawn)
        yield bar, [bar]


def _time_column() -> rich.progress.ProgressColumn:
    """`0:12 left` for a loop whose rate is known, else the time that has passed."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class TimeColumn(ProgressColumn):
        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            left = task.time_remaining if task.fields.get("alike") and task.completed else None
            if left is not None:
                return Text(f"{_clock(left)} left", style="progress.remaining")
            return Text(_clock(task.elapsed or 0), style="progress.elapsed")

    return TimeColumn()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class ProgressBar(Instrument):
    """Both the instrument that counts passes and the ``Progress`` that passes report their long loops to."""

    label = "progress"

    def __init__(self, drawn: rich.progress.Progress) -> None:
        self._drawn = drawn
        self._passes = drawn.add_task("load", total=None)
        self._work: list[rich.progress.TaskID] = []

    # Instrument

    def begin(self, model: Model, passes: tuple[Pass, ...]) -> None:
        self._drawn.update(self._passes, total=len(passes))

    def before_pass(self, run: PassRun) -> None:
        self._drawn.update(self._passes, description=run.pass_.name)

    def after_pass(self, run: PassRun) -> None:
        self._drop_work()
        self._drawn.advance(self._passes)

    def failed(self, run: PassRun, error: BaseException) -> None:
        self._drop_work()

    # Progress

    def start(self, label: str, total: int | None) -> None:
        self._work.append(self._drawn.add_task(f"  {label}", total=total, alike=total is not None))

    def advance(self, steps: int = 1) -> None:
        if self._work:
            self._drawn.advance(self._work[-1], steps)

    def finish(self) -> None:
        if self._work:
            self._drawn.remove_task(self._work.pop())

    def _drop_work(self) -> None:
        """A pass that raised has not finished what it started."""
        while self._work:
            self.finish()
