"""What recurrent weights are multiplied with, held against what the layers make of it."""

from __future__ import annotations

import numpy as np
import pytest

from qir.calibration.recurrent import can_observe, observed_operands, recurrent_inputs
from qir.codegen import to_bytes
from qir.ir import Model, Node
from qir.runtime.session import OrtRunner
from tests.passes.int8 import model

STEPS, BATCH, COLUMNS, HIDDEN = 6, 3, 4, 5
LENGTHS = np.array([6, 2, 4], np.int32)
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def layer(op: str, direction: str, *, attributes: str = "", lengths: str = "_", first: str = "_") -> Model:
    d, rows, state = 2 if direction == "bidirectional" else 1, GATES[op] * HIDDEN, f"{BATCH},{HIDDEN}"
    return model(
        f"""graph g(%x: f32[{STEPS},{BATCH},{COLUMNS}], %n: s32[{BATCH}], %h: f32[{d},{state}]) -> (%y, %n, %h) {{
          @w: f32[{d},{rows},{COLUMNS}] #51
          @r: f32[{d},{rows},{HIDDEN}] #52
          @b: f32[{d},{2 * rows}] #53
          %y: f32[{STEPS},{d},{BATCH},{HIDDEN}] = {op}(%x, @w, @r, @b, {lengths}, {first})
            {{hidden_size={HIDDEN}, direction="{direction}"{attributes}}}
        }}
        """
    )


def feed(source: Model) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    state = source.graph.inputs[2].shape
    assert state is not None
    return {
        "x": draw.normal(size=(STEPS, BATCH, COLUMNS)).astype(np.float32),
        "n": LENGTHS,
        "h": draw.normal(size=tuple(int(size) for size in state)).astype(np.float32),
    }


def observed(source: Model, sample: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    node = the_layer(source)
    arrays = {value: [sample[value.name]] for value in observed_operands(node)}
    (data,), (states,) = (recurrent_inputs(node, index, source, node, arrays) for index in (1, 2))
    return data.astype(np.float64), states.astype(np.float64)


def the_layer(source: Model) -> Node:
    return next(node for node in source.graph.nodes if node.op in GATES)


def results(source: Model, sample: dict[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
    """(directions, rows, H): what all steps end in, in the order of the rows that are observed."""
    states = np.asarray(OrtRunner(to_bytes(source)).run(sample)["y"], np.float64)
    return np.concatenate([states[:length, :, index] for index, length in enumerate(lengths)]).swapaxes(0, 1)


def weights(source: Model) -> list[np.ndarray]:
    tensors = [the_layer(source).input(index) for index in (1, 2, 3)]
    return [value.tensor.numpy().astype(np.float64) for value in tensors if value is not None and value.tensor]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", ["_", "%n"])
@pytest.mark.parametrize("first", ["_", "%h"])
def test_rows_of_a_plain_layer_give_its_results(direction: str, lengths: str, first: str) -> None:
    source = layer("RNN", direction, lengths=lengths, first=first)
    sample = feed(source)
    data, states = observed(source, sample)
    counted = LENGTHS if lengths == "%n" else np.full(BATCH, STEPS)
    assert data.shape == (len(states), counted.sum(), COLUMNS)
    w, r, b = weights(source)
    totals = data @ w.swapaxes(1, 2) + states @ r.swapaxes(1, 2) + (b[:, :HIDDEN] + b[:, HIDDEN:])[:, None]
    np.testing.assert_allclose(np.tanh(totals), results(source, sample, counted), atol=1e-6)


@pytest.mark.parametrize("reset_after", [0, 1])
def test_rows_of_a_gru_give_its_results(reset_after: int) -> None:
    source = layer("GRU", "bidirectional", attributes=f", linear_before_reset={reset_after}", first="%h")
    sample = feed(source)
    data, states = observed(source, sample)
    w, r, b = weights(source)
    w_bias, r_bias = (part.reshape(2, 3, 1, HIDDEN) for part in np.split(b, 2, axis=1))
    rows = states.reshape(2, -1, *states.shape[1:])  # a group, or three of them, a direction
    assert rows.shape[1] == (1 if reset_after else 3)
    by_data = np.einsum("dnk,dghk->dgnh", data, w.reshape(2, 3, HIDDEN, COLUMNS)) + w_bias
    rows = np.broadcast_to(rows, (2, 3, *rows.shape[2:]))
    by_state = np.einsum("dgnk,dghk->dgnh", rows, r.reshape(2, 3, HIDDEN, HIDDEN)) + r_bias
    update, reset = (1 / (1 + np.exp(-by_data[:, gate] - by_state[:, gate])) for gate in (0, 1))
    hidden = np.tanh(by_data[:, 2] + by_state[:, 2] * (reset if reset_after else 1))
    wanted = results(source, sample, np.full(BATCH, STEPS))
    np.testing.assert_allclose((1 - update) * hidden + update * rows[:, 0], wanted, atol=1e-6)


def test_states_are_known_where_nobody_reads_them() -> None:
    source = layer("LSTM", "forward")
    sample = feed(source)
    _, wanted = observed(source, sample)
    node = the_layer(source)
    states = node.outputs[0]
    last = node.add_output("last", states.type)
    states.replace_all_uses(last)
    states.name = ""
    np.testing.assert_array_equal(observed(source, sample)[1], wanted)
    assert not states.name and wanted.any()


def test_layers_that_cannot_be_observed() -> None:
    plain = the_layer(layer("GRU", "forward"))
    assert can_observe(plain, 1) and can_observe(plain, 2) and not can_observe(plain, 3)
    other = the_layer(layer("GRU", "forward", attributes=', activations=["HardSigmoid", "Tanh"]'))
    assert can_observe(other, 1) and not can_observe(other, 2)
    other.set("linear_before_reset", 1)
    assert can_observe(other, 2)
    other.set_input(2, other.input(0))
    assert not can_observe(other, 1)
