"""``calibrate``: run samples through the float model and note the range of every value that will be quantized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qir.calibration.collect import collect
from qir.calibration.data import open_data
from qir.calibration.specs import input_specs
from qir.errors import DataError
from qir.ir import Model, Value
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.pipeline.registry import load_target
from qir.targets import Target
from qir.targets.regions import plan_regions

__all__ = ["Calibrate"]


@dataclass(frozen=True)
class Calibrate(Pass):
    """Stream the calibration samples through the model, once, and store the exact minimum and maximum of each value
    that the target's integer regions need. Memory does not depend on the number of samples.

    Before::

        %y: f32[1,8] = Relu(%x)

    After::

        %y: f32[1,8] seen=[0, 11.2] = Relu(%x)
    """

    name: ClassVar[str] = "calibrate"
    effect: ClassVar[Effect] = Effect.ANALYSIS
    keeps_observed: ClassVar[bool] = True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError where there are no samples or they do not fit the model."""
        if ctx.calibration is None:
            raise DataError("no calibration data: give samples with --calib, or calibration=... from Python")
        result = PassResult()
        values, planned = _watched(model, load_target(ctx.target))
        if not planned:
            result.remarks.append(self.missed(None, "the target has no integer form for any node of this model"))
            return result
        if not values:
            return result
        feeds = open_data(ctx.calibration, input_specs(model))
        for value, seen in collect(model, values, feeds, progress=ctx.progress).items():
            value.observed = seen.interval
            result.count("values")
            if seen.nonfinite:
                result.remarks.append(
                    self.note(value, f"{seen.nonfinite} of {seen.count} numbers seen are infinite or NaN, left out")
                )
            outside = (
                value.range is not None
                and not seen.interval.is_empty
                and not value.range.contains(seen.interval, 1e-5 * seen.interval.magnitude)
            )
            if outside:
                result.remarks.append(
                    self.note(value, f"observed {seen.interval} lies outside of what is possible, {value.range}")
                )
        result.changed = True
        return result


def _watched(model: Model, target: Target) -> tuple[list[Value], bool]:
    """The values that parameters depend on, bodies included, and whether any node is to run on integers.

    In a body also an operand or result of what needs no parameters: it tells whether any sample ran the body.
    """
    values: dict[Value, None] = {}
    planned = False
    for graph in model.graph.graphs():
        plan = plan_regions(graph, target)
        planned |= bool(plan.integer)
        values.update(dict.fromkeys(plan.quantized_values()))
        if graph.owner is not None:
            for node in plan.integer:
                first = node.input(0)
                inside = first is not None and first.graph is graph and not first.is_constant
                values[first if inside and first is not None else node.output] = None
    return list(values), planned
