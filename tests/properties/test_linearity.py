"""Every pass that needs no data does work in proportion to the graph: counted in calls, never timed.

``tools/bench/structural.py`` measures seconds on graphs that are a hundred times larger.
"""

from __future__ import annotations

import cProfile
from collections.abc import Callable

import onnx
import pytest

from qir.diff import diff
from qir.errors import DataError, OptionError
from qir.frontend import import_model
from qir.ir.parser import parse_model
from qir.ir.printer import print_model
from qir.ops.shape_inference import infer
from tools.bench import structural
from tools.bench.graphs import SHAPES, make_graph

SMALL, LARGE = 200, 800
MOST = 1.35
"""Calls for a further node over those for one of the small graph: 1 is linear, walking the graph for each node is 5."""
NAMES = [name for name in structural.measured() if name != "place"]


def calls(work: Callable[[], object]) -> int:
    profile = cProfile.Profile()
    profile.enable()
    work()
    profile.disable()
    return sum(entry.callcount for entry in profile.getstats())


def growth(shape: str, style: str, work: Callable[[bytes], Callable[[], object]]) -> float:
    small, large = (calls(work(make_graph(shape, size, style).SerializeToString())) for size in (SMALL, LARGE))
    return (large - small) / small / (LARGE - SMALL) * SMALL


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("name", [*NAMES, "optimize"])
def test_passes_are_linear(name: str, shape: str) -> None:
    def work(data: bytes) -> Callable[[], object]:
        return structural.prepared(name, structural.model_of(data))

    try:
        work(make_graph(shape, 40, structural.STYLE.get(name, "float")).SerializeToString())()  # fills caches
    except (DataError, OptionError) as need:
        pytest.skip(str(need))
    assert growth(shape, structural.STYLE.get(name, "float"), work) < MOST


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_the_steps_around_them_are_linear(shape: str) -> None:
    def infers(data: bytes) -> Callable[[], object]:
        model = import_model(onnx.ModelProto.FromString(data))
        return lambda: infer(model)

    def prints(data: bytes) -> Callable[[], object]:
        model = structural.model_of(data)
        return lambda: parse_model(print_model(model))

    def compares(data: bytes) -> Callable[[], object]:
        old, new = structural.model_of(data), structural.model_of(data)
        for index, node in enumerate(new.walk()):
            node.name = f"other{index}"
        return lambda: diff(old, new)

    for work in (infers, prints, compares):
        work(make_graph(shape, 40).SerializeToString())()
        assert growth(shape, "float", work) < MOST
