"""tools/bench/int8_audit.py on small graphs: what counts as an island, and what has no reason."""

from __future__ import annotations

import onnx
import onnx.helper as oh
import pytest

from qir.frontend import import_model
from qir.pipeline import Remark, RemarkKind
from qir.pipeline.registry import load_target
from tools.bench.int8_audit import Fusion, audit_graph, reason_class

FLOAT = onnx.TensorProto.FLOAT


def node(op: str, source: str, result: str, domain: str = "") -> onnx.NodeProto:
    inputs = [source, "w"] if op in ("MatMul", "Add") else [source]
    return oh.make_node(op, inputs, [result], name=f"{op}-{result}", domain=domain)


def audited(executed: list[onnx.NodeProto], *remarks: Remark) -> Fusion:
    """The audit of a graph from x to y, of which the float nodes are the emitted model's too."""
    ends = [oh.make_tensor_value_info(name, FLOAT, [1, 4]) for name in ("x", "w", "y")]
    plain, last = [], "x"
    for one in executed:
        if one.op_type in ("MatMul", "Add", "Softmax"):
            plain.append(oh.make_node(one.op_type, [last, *one.input[1:]], one.output, name=one.name))
            last = one.output[0]
    emitted = oh.make_graph([*plain, oh.make_node("Identity", [last], ["end"])], "g", ends[:2], [])
    emitted.output.append(oh.make_tensor_value_info("end", FLOAT, [1, 4]))
    model = import_model(oh.make_model(emitted, opset_imports=[oh.make_opsetid("", 17)]))
    return audit_graph(oh.make_graph(executed, "g", ends[:2], ends[2:]), model, remarks, load_target("ort-cpu"))


def quantized(source: str, result: str) -> onnx.NodeProto:
    return node("QLinearConv", source, result)


def missed(subject: str, message: str) -> Remark:
    return Remark(RemarkKind.MISSED, "partition", message, subject, (subject,))


def test_a_heavy_float_operator_needs_a_remark() -> None:
    graph = [node("MatMul", "x", "y")]
    assert audited(graph).unexplained == ["MatMul 'MatMul-y': float, and nobody says why"]
    found = audited(graph, missed("MatMul-y", "MatMul stays float: its region would be slower on integers"))
    assert found.unexplained == [] and found.reasons == {"slower on integers": 1} and found.heavy == {"MatMul": 1}


def test_an_island_is_what_is_dequantized_and_quantized_again() -> None:
    ends = [node("QuantizeLinear", "x", "a"), quantized("a", "b"), node("DequantizeLinear", "b", "c")]
    beyond = [node("QuantizeLinear", "d", "e"), quantized("e", "f"), node("DequantizeLinear", "f", "y")]
    without_form = audited([*ends, node("Softmax", "c", "d"), *beyond])
    assert (without_form.islands, without_form.integer, without_form.unexplained) == (1, 2, [])
    assert (without_form.quantize, without_form.dequantize) == (2, 2)
    could_be_integers = audited([*ends, node("Add", "c", "d"), *beyond])
    assert could_be_integers.unexplained == ["Add 'Add-d': float, and nobody says why"]
    assert audited([*ends, node("Softmax", "c", "y")]).islands == 0


def test_quantizers_that_are_left_for_nothing_are_unexplained() -> None:
    pair = audited([node("QuantizeLinear", "x", "a"), node("DequantizeLinear", "a", "y")])
    assert len(pair.unexplained) == 2 and "undoes a quantizer" in pair.unexplained[1]
    again = audited(
        [
            *(node("QuantizeLinear", "x", "a"), quantized("a", "b"), node("DequantizeLinear", "b", "c")),
            *(node("QuantizeLinear", "c", "d"), quantized("d", "e"), node("DequantizeLinear", "e", "y")),
        ]
    )
    assert again.unexplained == ["dequantizer 'DequantizeLinear-c': its result is quantized again"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Conv stays float: as the first layer, with 3 input channels, it is as fast in float", "first layer"),
        ("MatMul stays float: its weight is not constant", "two activations"),
        ("Foo stays float: for a reason of its own", "for a reason of its own"),
    ],
)
def test_reasons_fall_into_classes(message: str, expected: str) -> None:
    assert reason_class(message) == expected
