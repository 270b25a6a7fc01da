"""The tables name ops that exist, and the claims that can be tried on numbers hold."""

from __future__ import annotations

import numpy as np
import onnx.defs
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from qir.ir import DType, Graph, Model, Node, Tensor, TensorType
from qir.ops import traits

NAMES = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}


def evaluate(op: str, *arrays: np.ndarray) -> np.ndarray:
    inputs = [f"x{i}" for i in range(len(arrays))]
    schema = onnx.defs.get_schema(op)
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"])],
        "g",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in zip(inputs, arrays, strict=True)
        ],
        [helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)],
    )
    del schema
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    result: np.ndarray = ReferenceEvaluator(model).run(None, dict(zip(inputs, arrays, strict=True)))[0]
    return result


def test_tables_name_real_ops() -> None:
    tables = [
        *(traits.COMMUTATIVE, traits.ASSOCIATIVE, traits.ELEMENTWISE_UNARY, traits.ELEMENTWISE_BINARY),
        *(traits.DATA_MOVEMENT, traits.KEEPS_RANGE, traits.MONOTONE_INCREASING, traits.MONOTONE_DECREASING),
        *(traits.IDEMPOTENT, traits.NONDETERMINISTIC, set(traits.SHAPE_INPUTS), set(traits.HEAVY)),
    ]
    for table in tables:
        assert set(table) <= NAMES


@pytest.mark.parametrize("op", sorted(traits.COMMUTATIVE))
def test_commutative(op: str) -> None:
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 9, (2, 20))
    if op in ("And", "Or", "Xor"):
        a, b = a > 4, b > 4
    elif not op.startswith("Bitwise"):
        a, b = a.astype(np.float32), b.astype(np.float32)
    np.testing.assert_array_equal(evaluate(op, a, b), evaluate(op, b, a))


@pytest.mark.parametrize("op", sorted(traits.MONOTONE_INCREASING | traits.MONOTONE_DECREASING))
def test_monotone(op: str) -> None:
    domain = (0.01, 9) if op in ("Log", "Sqrt") else (-1, 1) if op == "Acos" else (-9, 9)
    x = np.linspace(*domain, 400).astype(np.float32)
    slope = np.diff(evaluate(op, x).astype(np.float64))
    assert (slope >= -1e-6).all() if op in traits.MONOTONE_INCREASING else (slope <= 1e-6).all()


@pytest.mark.parametrize("op", sorted(traits.IDEMPOTENT))
def test_idempotent(op: str) -> None:
    x = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32) * 3
    once = evaluate(op, x)
    np.testing.assert_array_equal(evaluate(op, once), once)


def node(op: str, weight: tuple[int, ...], index: int = 1, **attributes: object) -> Node:
    graph = Graph("g")
    x = graph.add_input("x", TensorType(DType.FLOAT, None))
    w = graph.add_constant(Tensor.of(np.zeros(weight, np.float32)))
    model = Model(graph, {"": 17})
    made = graph.add_node(op, [x, w] if index else [w, x], attributes)
    assert made.graph is model.graph
    return made


@pytest.mark.parametrize(
    ("op", "shape", "index", "attributes", "axis", "reduced"),
    [
        ("Conv", (8, 4, 3, 3), 1, {}, 0, (1, 2, 3)),
        ("ConvTranspose", (8, 4, 3, 3), 1, {}, 1, (0, 2, 3)),
        ("MatMul", (5, 6), 1, {}, 1, (0,)),
        ("MatMul", (2, 5, 6), 1, {}, 2, (1,)),
        ("MatMul", (5, 6), 0, {}, 0, (1,)),
        ("MatMul", (5,), 1, {}, None, (0,)),
        ("Gemm", (5, 6), 1, {}, 1, (0,)),
        ("Gemm", (6, 5), 1, {"transB": 1}, 0, (1,)),
        ("Gemm", (5, 6), 0, {}, 0, (1,)),
        ("LSTM", (1, 32, 6), 1, {"hidden_size": 8}, 1, (2,)),
        ("Gather", (100, 6), 0, {}, 0, ()),
    ],
)
def test_weight_axes(
    op: str,
    shape: tuple[int, ...],
    index: int,
    attributes: dict[str, object],
    axis: int | None,
    reduced: tuple[int, ...],
) -> None:
    made = node(op, shape, index, **attributes)
    uses = traits.weight_uses(made)
    assert [(u.index, u.axis, u.reduced) for u in uses] == [(index, axis, reduced)]
    if op != "Gather":
        assert traits.activation_inputs(made) == [1 - index]


def test_shape_operands_are_no_data() -> None:
    made = node("Reshape", (2,))
    assert traits.is_shape_input(made, 1)
    assert traits.data_inputs(made) == [0]
    assert traits.is_data_movement(made)
    assert traits.is_deterministic(made)
    assert not traits.is_deterministic(node("RandomNormalLike", (2,)))
