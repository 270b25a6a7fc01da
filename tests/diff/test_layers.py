"""Layers of a stack that come and go: which one it was, and that it is told as one thing."""

from __future__ import annotations

import random

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from qir.diff import GraphDiff, diff
from qir.diff.changes import ChangeKind
from qir.frontend import import_model
from tests.diff.edits import rename_inside, reorder

WIDTH = 16


def stack(layers: list[int], *, trained: float = 0.0, dtype: type[np.floating] = np.float32) -> ModelProto:
    """Residual layers, each with weights of its own; ``trained``: how far from where they began."""
    nodes, weights, x = [], [], "x"
    for layer in layers:
        rng, drift = np.random.default_rng(layer), np.random.default_rng(100 + layer)
        for name, shape in (("up", (WIDTH, 2 * WIDTH)), ("down", (2 * WIDTH, WIDTH))):
            array = rng.standard_normal(shape) + trained * drift.standard_normal(shape)
            weights.append(numpy_helper.from_array(array.astype(dtype), f"{layer}.{name}"))
        steps = (("up", "MatMul", x, f"{layer}.up"), ("act", "Relu", f"{layer}/up"))
        steps += (("down", "MatMul", f"{layer}/act", f"{layer}.down"), ("add", "Add", x, f"{layer}/down"))
        for step, op, *inputs in steps:
            nodes.append(helper.make_node(op, inputs, [f"{layer}/{step}"], f"{layer}/{step}_node"))
        x = f"{layer}/add"
    nodes.append(helper.make_node("Identity", [x], ["y"], "out"))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    infos = [helper.make_tensor_value_info(name, kind, ["N", WIDTH]) for name in "xy"]
    graph = helper.make_graph(nodes, "stack", infos[:1], infos[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def removed(found: GraphDiff) -> set[str]:
    return {ref.name for change in found.of_kind(ChangeKind.NODE_REMOVED) for ref in change.old}


def layer_nodes(*layers: int) -> set[str]:
    return {f"{layer}/{step}_node" for layer in layers for step in ("up", "act", "down", "add")}


@pytest.mark.parametrize("gone", [(0,), (5,), (11,), (2, 8), (4, 5)])
@pytest.mark.parametrize("trained", [0.0, 0.05])
def test_the_layer_that_is_gone(gone: tuple[int, ...], trained: float) -> None:
    left = [layer for layer in range(12) if layer not in gone]
    found = diff(import_model(stack(list(range(12)))), import_model(stack(left, trained=trained)))
    assert removed(found) == layer_nodes(*gone)
    summary = found.summary
    assert (summary.nodes_removed, summary.nodes_added, summary.nodes_changed) == (4 * len(gone), 0, 0)
    assert summary.weights_changed == (2 * len(left) if trained else 0)
    # Layers in a row are one piece.
    assert len(found.of_kind(ChangeKind.NODE_REMOVED)) == (1 if gone == (4, 5) else len(gone))


@pytest.mark.parametrize("trained", [0.0, 0.05])
def test_whatever_the_layers_are_called(trained: float) -> None:
    new = stack([layer for layer in range(12) if layer != 5], trained=trained)
    rename_inside(new, random.Random(1))
    reorder(new, random.Random(2))
    found = diff(import_model(stack(list(range(12)))), import_model(new))
    assert found.summary.nodes_removed == 4 and found.summary.nodes_changed == 0
    weights = [change.weight for change in found.of_kind(ChangeKind.WEIGHT_CHANGED)]
    assert len(weights) == (22 if trained else 0)
    assert all(weight and weight.stats and (weight.stats.sqnr_db or 0) > 20 for weight in weights)


def test_a_layer_more_is_one_entry() -> None:
    found = diff(import_model(stack([0, 1])), import_model(stack([0, 7, 1])))
    (change,) = found.changes
    assert (change.kind, change.count, found.summary.nodes_added) == (ChangeKind.NODE_ADDED, 4, 4)
    assert change.title == "4 connected nodes added, 7/up_node to 7/add_node: 2 MatMul, 1 Relu, 1 Add"
    assert [detail.name for detail in change.details] == [f"7/{step}_node" for step in ("up", "act", "down", "add")]


def test_many_weights_are_summed_up_first() -> None:
    old, new = stack(list(range(12))), stack(list(range(12)), dtype=np.float16)
    text = diff(import_model(old), import_model(new)).to_text()
    assert "  24 weights: f32 -> f16, SQNR 7" in text and "least alike first" in text
    assert "and 4 more weights, none less alike" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "more weights" not in diff(import_model(old), import_model(new)).to_text(max_changes=100)
    markdown = diff(import_model(old), import_model(new)).to_markdown()
    assert "24 weights: f32 -\\> f16, SQNR 7" in markdown
