"""The dump of the optimised graph shows what was fused, inside bodies too, and stays light."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from qir.runtime.optimized import op_name, optimized_model, walk
from qir.runtime.session import PLAIN, SessionConfig
from tests.runtime.models import build, mlp, tensor


def test_fusion_shows_in_the_counts() -> None:
    model = mlp().SerializeToString()
    assert optimized_model(model, PLAIN).op_counts == {"MatMul": 1, "Add": 1, "Relu": 1}
    fused = optimized_model(model).op_counts
    assert fused["MatMul"] == 0 and sum(fused.values()) < 3


def test_a_disabled_optimizer_does_not_run() -> None:
    config = SessionConfig(disabled_optimizers=("MatMulAddFusion",))
    assert optimized_model(mlp().SerializeToString(), config).op_counts["MatMul"] == 1


def test_bodies_are_counted_and_their_place_is_named() -> None:
    def branch(name: str, op: str) -> object:
        return helper.make_graph([helper.make_node(op, ["x"], [name])], name, [], [tensor(name, 1, None)])

    node = helper.make_node(
        "If", ["c"], ["y"], name="choose", then_branch=branch("t", "Exp"), else_branch=branch("e", "Neg")
    )
    inputs = [tensor("c", TensorProto.BOOL, []), tensor("x", 1, ["N"])]
    dumped = optimized_model(build([node], inputs, [tensor("y", 1, None)]).SerializeToString())
    assert dumped.op_counts == {"If": 1, "Exp": 1, "Neg": 1}
    places = {node.op_type: path for path, node in walk(dumped.proto.graph)}
    assert places["If"] == () and places["Exp"] == ("choose.then_branch",) and places["Neg"] == ("choose.else_branch",)


def test_large_weights_are_not_loaded_and_small_ones_are() -> None:
    dumped = optimized_model(mlp(256).SerializeToString(), PLAIN)
    by_name = {t.name: t for t in dumped.proto.graph.initializer}
    assert by_name["w"].data_location == TensorProto.EXTERNAL and not by_name["w"].raw_data
    assert by_name["b"].data_location == TensorProto.DEFAULT
    assert dumped.proto.ByteSize() < 8192


def test_contrib_ops_carry_their_domain() -> None:
    assert op_name(helper.make_node("Conv", [], [])) == "Conv"
    assert op_name(helper.make_node("QGemm", [], [], domain="com.microsoft")) == "com.microsoft::QGemm"


def test_constants_stay_readable_for_an_audit() -> None:
    from onnx import numpy_helper

    model = mlp()
    dumped = optimized_model(model.SerializeToString(), PLAIN)
    by_name = {t.name: numpy_helper.to_array(t) for t in dumped.proto.graph.initializer}
    np.testing.assert_array_equal(by_name["b"], numpy_helper.to_array(model.graph.initializer[1]))
