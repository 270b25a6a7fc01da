"""A model with integer inputs and outputs, seen as the float model that it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qir.ir import StaticQuant
from qir.quant.arithmetic import dequantize, quantize
from qir.quant.integer_io import read_io
from qir.runtime.session import OrtRunner, Runner

__all__ = ["FloatView", "float_view", "to_codes"]


class FloatView:
    """Takes and gives floats: quantizes what goes in and dequantizes what comes out, by name, under ``types``."""

    def __init__(self, runner: Runner, types: Mapping[str, StaticQuant]) -> None:
        self._runner = runner
        self._types = types
        real = np.dtype(np.float32)
        self.inputs = tuple(replace(s, dtype=real) if s.name in types else s for s in runner.inputs)
        self.outputs = tuple(replace(s, dtype=real) if s.name in types else s for s in runner.outputs)

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        given = self._runner.run(to_codes([feeds], self._types)[0], outputs)
        return {name: dequantize(a, self._types[name]) if name in self._types else a for name, a in given.items()}


def to_codes(feeds: Sequence[Mapping[str, Any]], types: Mapping[str, StaticQuant]) -> list[dict[str, Any]]:
    """Float feeds as a model with inputs of these types takes them."""
    return [
        {name: quantize(np.asarray(a), types[name]) if name in types else a for name, a in feed.items()}
        for feed in feeds
    ]


def float_view(runner: OrtRunner) -> Runner:
    """The runner itself where the model says nothing of integer inputs and outputs."""
    types = read_io(runner.session.get_modelmeta().custom_metadata_map)
    return FloatView(runner, types) if types else runner
