"""What `qir opt` and `qir bisect` share around checking passes: the options, reproducers written and replayed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qir.errors import OptionError, OutputError, QirError
from qir.pipeline import Feed, Pipeline, PipelineResult

if TYPE_CHECKING:
    from qir.ir import Model
    from qir.validation.numeric_check import NumericCheck
    from qir.validation.reproducer import FailureWatch

__all__ = ["Exactness", "GoldenSamples", "LossyThreshold", "OnFailure", "numeric_check", "replay", "reproducing"]

CHECKING = "What is checked"
BUG = 70

GoldenSamples = Annotated[
    int, typer.Option(metavar="N", rich_help_panel=CHECKING, help="How many of the golden samples to run.")
]
Exactness = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        rich_help_panel=CHECKING,
        help="How far an exact pass may move an output: a share of its largest magnitude.",
    ),
]
LossyThreshold = Annotated[
    float,
    typer.Option(metavar="DB", rich_help_panel=CHECKING, help="SQNR that a lossy pass has to keep at each output."),
]


class OnFailure(Enum):
    """What happens to a pass that fails its check."""

    STOP = "stop"
    ROLLBACK = "rollback"


def numeric_check(
    golden: Path | None,
    samples: int,
    on_failure: Literal["stop", "rollback"],
    exact: float,
    lossy_db: float,
    reference: Model | None = None,
) -> NumericCheck:
    """The instrument for these options. Raises OptionError where they make no sense."""
    if golden is None:
        raise OptionError("--verify-numerics runs the model: give inputs for it with --golden DATA")
    if samples < 1:
        raise OptionError(f"--golden-samples {samples}: at least 1")
    from qir.validation.numeric_check import NumericCheck
    from qir.validation.numerics import Tolerance

    return NumericCheck(
        golden,
        on_failure=on_failure,
        tolerance=Tolerance(exact=exact, lossy_db=lossy_db),
        samples=samples,
        reference=reference,
    )


@dataclass(frozen=True, slots=True)
class Given:
    """What a pipeline run is given. ``plugins`` are the Python files that define its passes."""

    model: Model
    calibration: Iterable[Feed] | None
    target: str
    verify: bool
    reference: Model | None
    plugins: Sequence[Path]


@contextmanager
def reproducing(folder: Path | None, given: Given, watch: FailureWatch, check: NumericCheck | None) -> Iterator[None]:
    """Write a reproducer where the block, a pipeline run in place over ``given.model``, crashes or fails a check.

    ``folder`` None makes one in the current folder. That it cannot be written never hides the error itself.
    """
    if folder is not None and folder.exists():
        raise OutputError(f"{str(folder)!r} exists already: name another folder for the reproducer")
    try:
        yield
    except Exception as error:
        from qir.validation.reproducer import FailedRun, worth_reproducing, write_reproducer

        if watch.run is None or not worth_reproducing(error):
            raise
        place = folder or _fresh_folder(watch.run.pass_.name)
        failed = FailedRun(
            model=given.model,
            run=watch.run,
            error=error,
            exit_code=error.exit_code if isinstance(error, QirError) else BUG,
            target=given.target,
            verify=given.verify,
            reference=given.reference,
            calibration=given.calibration,
            numerics=None if check is None else check.numerics,
            plugins=given.plugins,
        )
        try:
            write_reproducer(place, failed)
        except QirError as second:
            print(f"warning: no reproducer: {second}", file=sys.stderr)
        else:
            print(f"to see it again: qir opt --reproduce {shlex.quote(str(place))}", file=sys.stderr)
        raise


def _fresh_folder(pass_name: str) -> Path:
    """A name in the current folder that nothing has."""
    number = 1
    while True:
        folder = Path(f"qir-reproducer-{pass_name}{'' if number == 1 else f'-{number}'}")
        if not folder.exists():
            return folder
        number += 1


def replay(folder: Path) -> PipelineResult:
    """Run what a reproducer holds: it raises what it raised then, unless that was mended."""
    from qir import __version__
    from qir.calibration.data import open_data
    from qir.calibration.specs import input_specs
    from qir.cli.options import registry_with
    from qir.validation.numeric_check import NumericCheck
    from qir.validation.reproducer import read_reproducer

    found = read_reproducer(folder)
    if found.versions.get("qir") != __version__:
        print(f"note: it was written by qir {found.versions.get('qir')}, this is {__version__}", file=sys.stderr)
    if found.stubs:
        print(f"note: {len(found.stubs)} constants were left out and are random here", file=sys.stderr)
    check = (
        []
        if found.golden is None
        else [NumericCheck(found.golden, tolerance=found.tolerance, samples=None, reference=found.reference)]
    )
    calibration = None if found.calibration is None else open_data(found.calibration, input_specs(found.model))
    return Pipeline.parse(found.pipeline, registry=registry_with(found.plugins)).run(
        found.model,
        calibration=calibration,
        target=found.target,
        reference=found.reference,
        instruments=check,
        verify=found.verify,
        in_place=True,
    )
