"""share-weights: equal, transposed and nearly equal constants stored once."""

from __future__ import annotations

import numpy as np
import pytest

from qir.codegen import to_bytes
from qir.errors import OptionError
from qir.ir import Model, Tensor
from qir.pipeline import Pipeline, PipelineResult
from qir.runtime.optimized import optimized_model
from qir.runtime.session import OrtRunner
from qir.validation.metrics import sqnr_db
from tests.passes.int8 import feeds, model

SAME = "graph g(%x: f32[N,16]) -> (%y) { @v: f32[16,16] #1 @w: f32[16,16] #2 %a = MatMul(%x, @v) %y = MatMul(%a, @w) }"


def with_second(text: str, change: float = 0.0) -> Model:
    """The second constant is the first, with noise of ``change`` of its magnitude."""
    source = model(text)
    first, second = list(source.graph.initializers)[:2]
    assert first.tensor is not None
    array = first.tensor.numpy().copy()
    first.const = Tensor.of(array)
    noise = np.random.default_rng(99).normal(size=array.shape) * array.std() * change
    second.const = Tensor.of((array + noise).astype(np.float32))
    return source


def shared(source: Model, options: str = "") -> PipelineResult:
    return Pipeline.parse(f"share-weights{{{options}}}").run(source)


def quality(source: Model, result: PipelineResult) -> float:
    runners = [OrtRunner(to_bytes(one)) for one in (source, result.model)]
    wanted, got = ([runner.run(feed)["y"] for feed in feeds(source)] for runner in runners)
    return sqnr_db(wanted, got)


def test_equal_constants() -> None:
    source = with_second(SAME)
    result = shared(source)
    assert len(list(result.model.graph.initializers)) == 1
    assert result.passes[0].statistics == {"equal": 1, "bytes": 1024}
    assert quality(source, result) == float("inf")
    assert not shared(result.model).passes[0].changed


def test_small_and_different_ones_stay() -> None:
    assert not shared(model(SAME)).passes[0].changed
    assert not shared(with_second(SAME), "min-size=257").passes[0].changed
    assert not shared(with_second(SAME, 0.01)).passes[0].changed


def test_alike_constants_become_their_mean() -> None:
    source = with_second(SAME, 0.01)
    result = shared(source, "tolerance=1e-3")
    assert result.passes[0].statistics == {"alike": 1, "bytes": 1024}
    (kept,) = result.model.graph.initializers
    first, second = (value.tensor.numpy() for value in source.graph.initializers if value.tensor is not None)
    assert kept.tensor is not None
    np.testing.assert_allclose(kept.tensor.numpy(), (first + second) / 2, rtol=1e-5, atol=1e-7)
    assert 35 < quality(source, result) < 60
    assert not shared(with_second(SAME, 0.2), "tolerance=1e-3").passes[0].changed


def test_a_tied_embedding_and_head() -> None:
    source = model(
        "graph g(%i: s64[M]) -> (%y) { @e: f32[40,16] #1 @h: f32[16,40] #2 %a = Gather(@e, %i) %y = MatMul(%a, @h) }"
    )
    table, head = source.graph.initializers
    assert table.tensor is not None
    head.const = Tensor.of(np.ascontiguousarray(table.tensor.numpy().T))
    result = shared(source)
    assert [value.name for value in result.model.graph.initializers] == ["e"]
    assert quality(source, result) == float("inf")
    assert "Transpose" not in optimized_model(to_bytes(result.model)).op_counts
    assert not shared(source, "transposed=false").passes[0].changed


def test_across_bodies() -> None:
    source = model(
        "graph g(%c: bool[], %x: f32[2,8]) -> (%y) { %y = If(%c) {"
        "then_branch=graph yes () -> (%a) { @v: f32[8,8] #1 %a = MatMul(%x, @v) },"
        "else_branch=graph no () -> (%b) { @w: f32[8,8] #2 %n = Neg(%x) %b = MatMul(%n, @w) }} }"
    )
    values = [value for graph in source.graph.graphs() for value in graph.initializers]
    assert values[0].tensor is not None
    array = values[0].tensor.numpy()
    for value in values:
        value.const = Tensor.of(array.copy())
    result = shared(source)
    graphs = list(result.model.graph.graphs())
    assert [len(list(graph.initializers)) for graph in graphs] == [1, 0, 0]
    for flag in (True, False):
        feed = {"c": np.array(flag), "x": np.ones((2, 8), np.float32)}
        wanted, got = (OrtRunner(to_bytes(one)).run(feed)["y"] for one in (source, result.model))
        np.testing.assert_array_equal(got, wanted)


def test_options_are_checked() -> None:
    with pytest.raises(OptionError, match="tolerance"):
        Pipeline.parse("share-weights{tolerance=2}")
