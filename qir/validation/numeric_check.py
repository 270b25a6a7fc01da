"""The instrument behind ``--verify-numerics``: after each pass the model runs on golden inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qir.ir import Model
from qir.pipeline import Instrument, Pass, PassRun, Remark, RemarkKind, Verdict
from qir.validation.numerics import Numerics, NumericsError, Outputs, Tolerance, golden_feeds, how_to_judge

if TYPE_CHECKING:
    from qir.pipeline import PipelineResult

__all__ = ["Failure", "NumericCheck"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A pass that was undone because it broke the model."""

    index: int
    pass_name: str
    fault: str


class NumericCheck(Instrument):
    """Holds every pass to the effect that it declares.

    An exact pass is compared with the model as the last lossy one left it (or as it came), a lossy one with
    ``reference``, the model as it came where none is given. A pass that edited nothing which computes is not run.
    ``on_failure="stop"`` raises NumericsError, which undoes the pass; ``"rollback"`` undoes it and goes on, and
    ``failures`` tells. ``passed`` names those that ran and kept what they declare; ``str`` says it in a line.
    ``golden`` is anything that ``open_golden`` takes; its first ``samples`` inputs are used, None for all. Expected
    outputs stored there are not: what counts is what the model gave before.
    """

    label = "verify numerics"

    def __init__(
        self,
        golden: object,
        *,
        on_failure: Literal["stop", "rollback"] = "stop",
        tolerance: Tolerance | None = None,
        samples: int | None = 16,
        reference: Model | None = None,
    ) -> None:
        self._golden = golden
        self._samples = samples
        self._stop = on_failure == "stop"
        self._tolerance = tolerance
        self._reference_model = reference
        self._reference: Outputs = []
        self._baseline: Outputs = []
        self.numerics = Numerics([], tolerance)
        self.failures: list[Failure] = []
        self.passed: list[str] = []

    def __str__(self) -> str:
        if not self.passed:
            return "verified: no pass changed what is computed"
        return f"verified on {len(self.numerics.feeds)} samples: {', '.join(dict.fromkeys(self.passed))}"

    def begin(self, model: Model, passes: tuple[Pass, ...]) -> None:
        """Raises DataError where the golden data does not fit, ModelError where onnxruntime refuses the model."""
        self.numerics = Numerics(golden_feeds(self._golden, model, self._samples), self._tolerance)
        self._baseline = self.numerics.reference(model)
        other = self._reference_model
        self._reference = self._baseline if other is None else self.numerics.reference(other)

    def after_pass(self, run: PassRun) -> Verdict | None:
        judged = how_to_judge(run.pass_, run.journal.counts())
        if judged is None:
            return None
        outputs, fault = self.numerics.fault(judged, run.model, self._baseline, self._reference)
        if fault is None:
            self.passed.append(run.pass_.name)
            if judged == "lossy":
                self._baseline = outputs
            return None
        if self._stop:
            raise NumericsError(f"broke the model: {fault}")
        self.failures.append(Failure(run.index, run.pass_.name, fault))
        return Verdict.ROLLBACK

    def end(self, result: PipelineResult) -> None:
        for failure in self.failures:
            text = f"rolled back, because it broke the model: {failure.fault}"
            result.first_remarks.append(Remark(RemarkKind.MISSED, failure.pass_name, text))
