"""Bisection: which pass broke a model, and which of its rewrites.

Runs of the model are what costs, so there are O(log n) of them: a binary search over the passes that changed anything,
then one over the numbered rewrites of the guilty pass, and one or two for each lossy pass, since each sets a measure of
its own. The searches take it that what is broken stays broken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qir.errors import QirError, VerifyError
from qir.ir import Model
from qir.pipeline import Feed, NoProgress, Pass, Pipeline, Progress
from qir.rewriting import Application, Numbering
from qir.validation.numerics import Judged, Numerics, Outputs, Tolerance, golden_feeds, how_to_judge

__all__ = ["BisectReport", "Culprit", "bisect"]


@dataclass(frozen=True, slots=True)
class Culprit:
    """What broke the model. ``application`` is None where the pass does not number its rewrites, or did the damage
    outside of them; ``applications`` is how many it numbered."""

    index: int
    """Position of the pass in the pipeline, from 0."""
    pass_name: str
    fault: str
    applications: int
    application: Application | None


@dataclass(frozen=True, slots=True)
class BisectReport:
    """``culprit`` is None where the outputs stay within the tolerance. ``model_runs`` counts runs over all samples."""

    pipeline: str
    samples: int
    model_runs: int
    culprit: Culprit | None

    def __str__(self) -> str:
        cost = f"{self.model_runs} model runs over {self.samples} samples"
        culprit = self.culprit
        if culprit is None:
            return f"no pass breaks the model ({cost})"
        lines = [f"pass {culprit.pass_name!r}, number {culprit.index + 1} of the pipeline, breaks the model"]
        made = culprit.application
        if made is not None:
            lines.append(f"  rewrite {made.number + 1} of {culprit.applications}: rule {made.rule!r} at {made.node!r}")
            lines.append(f"  source nodes: {', '.join(made.sources) or 'none, the node was made by the compiler'}")
        elif culprit.applications:
            lines.append(f"  outside of its {culprit.applications} numbered rewrites")
        else:
            lines.append("  it made no numbered rewrite; one that asks ctx.numbering.allow(rule, node) can be searched")
        return "\n".join([*lines, f"  {culprit.fault}", f"  found with {cost}"])

    def to_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "pipeline": self.pipeline,
            "broken": self.culprit is not None,
            "samples": self.samples,
            "model_runs": self.model_runs,
        }
        culprit = self.culprit
        if culprit is not None:
            made = culprit.application
            told |= {
                "pass": culprit.pass_name,
                "pass_number": culprit.index + 1,
                "applications": culprit.applications,
                "application": None if made is None else made.number + 1,
                "rule": None if made is None else made.rule,
                "node": None if made is None else made.node,
                "sources": [] if made is None else list(made.sources),
                "fault": culprit.fault,
            }
        return told


def bisect(
    model: Model,
    pipeline: Pipeline,
    golden: object,
    *,
    calibration: Iterable[Feed] | None = None,
    target: str = "ort-cpu",
    tolerance: Tolerance | None = None,
    samples: int | None = 16,
    progress: Progress | None = None,
) -> BisectReport:
    """Find the pass and the rewrite after which the model's outputs leave the tolerance, or that fails.

    ``golden`` is anything that ``open_golden`` takes. ``model`` is not changed. Passes must be deterministic. A pass
    that raises (a bug, or a VerifyError after it) counts as broken; other QirErrors come through.
    """
    valid = Pipeline().run(model).model  # a copy with its types inferred, verified
    progress = progress or NoProgress()
    numerics = Numerics(golden_feeds(golden, valid, samples), tolerance, progress)
    progress.start("model runs", None)
    culprit = _Search(valid, pipeline, numerics, calibration, target).culprit()
    progress.finish()
    return BisectReport(str(pipeline), len(numerics.feeds), numerics.runs, culprit)


@dataclass(frozen=True, slots=True)
class _Step:
    """What a pass did in the run over the whole pipeline."""

    judged: Judged
    applications: int
    crash: str | None = None


class _Search:
    def __init__(
        self,
        model: Model,
        pipeline: Pipeline,
        numerics: Numerics,
        calibration: Iterable[Feed] | None,
        target: str,
    ) -> None:
        self.model = model
        self.passes = pipeline.passes
        self.numerics = numerics
        self.calibration = calibration
        self.target = target
        self.steps: list[_Step] = []
        self.outputs: dict[int, Outputs] = {}
        """Of the model after the pass of that index; -1 is the model as it came."""
        self.good = (-1, model)
        """The latest state that is known to be good."""

    def culprit(self) -> Culprit | None:
        self.outputs[-1] = self.numerics.reference(self.model)
        self.steps = self._run_all()
        suspects = [index for index, step in enumerate(self.steps) if step.judged is not None]
        if not suspects:
            return None
        for index in self._checkpoints(suspects):
            if fault := self._fault_after(index):
                break
        else:
            return None
        low = suspects.index(self.good[0]) if self.good[0] >= 0 else -1
        high = suspects.index(index)
        while high - low > 1:
            middle = (low + high) // 2
            found = self._fault_after(suspects[middle])
            if found is None:
                low = middle
            else:
                high, fault = middle, found
        return self._rewrite(suspects[high], fault)

    def _checkpoints(self, suspects: Sequence[int]) -> Iterator[int]:
        """Where to look first, in order: after and before each lossy pass, and at the end. What an exact pass did wrong
        before a lossy one could hide in the room that the lossy one is given."""
        for index, following in zip(suspects, [*suspects[1:], None], strict=True):
            if following is None or "lossy" in (self.steps[index].judged, self.steps[following].judged):
                yield index

    def _run_all(self) -> list[_Step]:
        """Run all passes once, for what they do, and not the model."""
        steps: list[_Step] = []
        model = self.model.clone()
        for pass_ in self.passes:
            step = self._apply(pass_, model, Numbering())
            steps.append(step)
            if step.crash is not None:
                break
        return steps

    def _apply(self, pass_: Pass, model: Model, numbering: Numbering) -> _Step:
        """Run one pass in place; a crash is rolled back."""
        try:
            result = Pipeline([pass_]).run(
                model,
                calibration=self.calibration,
                target=self.target,
                reference=self.model,
                in_place=True,
                numbering=numbering,
            )
        except VerifyError as error:
            return _Step("exact", numbering.used, str(error))
        except QirError:
            raise
        except Exception as error:
            notes = [f", {note}" for note in getattr(error, "__notes__", ()) if not note.startswith("in pass")]
            return _Step("exact", numbering.used, f"{type(error).__name__}: {error}{''.join(notes)}")
        return _Step(how_to_judge(pass_, result.passes[0].edits), numbering.used)

    def _after(self, index: int) -> Model:
        """A copy of the model as the pass of that index leaves it."""
        start, model = self.good if self.good[0] <= index else (-1, self.model)
        model = model.clone()
        for pass_ in self.passes[start + 1 : index + 1]:
            self._apply(pass_, model, Numbering())
        return model

    def _fault_after(self, index: int) -> str | None:
        step = self.steps[index]
        if step.crash is not None:
            return step.crash
        anchor = self._anchor(index)
        model = self._after(index)
        outputs, fault = self.numerics.fault(step.judged, model, self.outputs[anchor], self.outputs[-1])
        if fault is None:
            self.outputs[index] = outputs
            self.good = max(self.good, (index, model), key=lambda state: state[0])
        return fault

    def _anchor(self, index: int) -> int:
        """The state that the pass of that index is compared with: for an exact one what the last lossy one left."""
        if self.steps[index].judged == "lossy":
            return -1
        return max((i for i in range(index) if self.steps[i].judged == "lossy"), default=-1)

    def _rewrite(self, index: int, fault: str) -> Culprit:
        """Search the rewrites of the guilty pass."""
        pass_, step = self.passes[index], self.steps[index]
        before = self._after(index - 1)
        low, high = 0, step.applications
        while high - low > 1:
            middle = (low + high) // 2
            found = self._fault_with(before, index, middle)
            if found is None:
                low = middle
            else:
                high, fault = middle, found
        application = None
        if high and not (low == 0 and self._fault_with(before, index, 0)):
            numbering = Numbering(limit=high)
            self._apply(pass_, before.clone(), numbering)
            application = numbering.last
        return Culprit(index, pass_.name, fault, step.applications, application)

    def _fault_with(self, before: Model, index: int, limit: int) -> str | None:
        """What is wrong after the first ``limit`` rewrites of a pass."""
        model = before.clone()
        step = self._apply(self.passes[index], model, Numbering(limit=limit))
        if step.crash is not None or step.judged is None:
            return step.crash
        judged, anchor = self.steps[index].judged, self._anchor(index)
        return self.numerics.fault(judged, model, self.outputs[anchor], self.outputs[-1])[1]
