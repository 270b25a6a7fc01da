"""What single channels of a value look like on calibration data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from qir.calibration.collect import collect
from qir.calibration.data import open_data, spread
from qir.calibration.specs import input_specs
from qir.calibration.statistics import ChannelStatistics
from qir.errors import DataError
from qir.ir import Model, Value
from qir.pipeline.contract import PassContext

__all__ = ["observe_channels"]


def observe_channels(
    model: Model, axes: Mapping[Value, int], ctx: PassContext, samples: int
) -> dict[Value, ChannelStatistics]:
    """Statistics of each value's channels along the axis that ``axes`` gives, over at most ``samples`` feeds.

    Raises DataError without calibration data.
    """
    if ctx.calibration is None:
        raise DataError("no calibration data to look at channels: give samples with --calib, or calibration=...")
    feeds = spread(open_data(ctx.calibration, input_specs(model)), samples)

    observers = {value: partial(ChannelStatistics.of, axis=axis) for value, axis in axes.items()}
    return collect(model, list(axes), feeds, observers=observers, progress=ctx.progress, executor=ctx.executor)
