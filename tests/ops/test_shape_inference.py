"""Shape inference: symbols, shape arithmetic, bodies, functions, edits, and what the report says."""

from __future__ import annotations

import numpy as np
import pytest

from qir.ir import DType, ExternalFile, ExternalLocation, Model, Tensor, TensorType, format_type
from qir.ir.parser import parse_model
from qir.ops.shape_inference import infer, infer_after


def types(model: Model) -> dict[str, str]:
    return {value.name: format_type(value.type) for value in model.values()}


class Net:
    """A model under construction, for graphs that are quicker built than written."""

    def __init__(self, opset: int = 17) -> None:
        self.model = Model(None, {"": opset}, 8)
        self.graph = self.model.graph

    def input(self, name: str, *shape: int | str | None, dtype: DType = DType.FLOAT):  # type: ignore[no-untyped-def]
        return self.graph.add_input(name, TensorType(dtype, shape))

    def const(self, *values: int):  # type: ignore[no-untyped-def]
        return self.graph.add_constant(np.array(values, np.int64))

    def add(self, op: str, *inputs, outputs=1, **attributes):  # type: ignore[no-untyped-def]
        node = self.graph.add_node(op, inputs, attributes, outputs=outputs)
        return node.output if outputs == 1 else node.outputs


def test_symbols_flow_through_shape_arithmetic() -> None:
    net = Net()
    x = net.input("x", "batch", "seq", 64)
    shape = net.add("Shape", x)
    batch = net.add("Gather", shape, net.const(0), axis=0)
    seq = net.add("Slice", shape, net.const(1), net.const(2))
    heads = net.add("Concat", batch, seq, net.const(4), net.const(-1), axis=0)
    split = net.add("Reshape", x, heads)
    swapped = net.add("Transpose", split, perm=[0, 2, 1, 3])
    rows = net.add("Mul", batch, net.const(4))
    flat = net.add("Reshape", swapped, net.add("Concat", rows, seq, net.const(16), axis=0))
    back = net.add("Reshape", flat, net.add("Concat", batch, net.const(-1), seq, net.const(16), axis=0))
    double = net.add("Concat", x, x, axis=1)
    made = net.add("Expand", net.add("ConstantOfShape", seq), net.add("Concat", batch, seq, axis=0))
    positions = net.add(
        "Range", net.graph.add_constant(np.array(0)), net.add("Squeeze", seq), net.graph.add_constant(np.array(1))
    )
    report = infer(net.model)
    assert report.complete, str(report)
    assert split.shape == ("batch", "seq", 4, 16)
    assert swapped.shape == ("batch", 4, "seq", 16)
    assert flat.shape == ("4*batch", "seq", 16)
    assert back.shape == ("batch", 4, "seq", 16)
    assert double.shape == ("batch", "2*seq", 64)
    assert made.shape == ("batch", "seq")
    assert positions.shape == ("seq",)


def test_the_expand_pattern_of_exporters() -> None:
    """Where(shape == -1, 1, shape) before Expand: a symbol is a size, so it is not -1."""
    net = Net()
    x = net.input("x", "N", 1)
    shape = net.add("Concat", net.add("Gather", net.add("Shape", x), net.const(0)), net.const(8), axis=0)
    ones = net.add("ConstantOfShape", net.const(2), value=Tensor.of(np.array([1], np.int64)))
    minus = net.add("Mul", ones, net.const(-1))
    y = net.add("Expand", x, net.add("Where", net.add("Equal", shape, minus), ones, shape))
    infer(net.model)
    assert y.shape == ("N", 8)


def test_convolutions_keep_symbolic_sizes() -> None:
    net = Net()
    x = net.input("x", "N", 3, "H", "W")
    w = net.graph.add_constant(np.zeros((8, 3, 3, 3), np.float32))
    same = net.add("Conv", x, w, pads=[1, 1, 1, 1])
    half = net.add("Conv", x, w, pads=[1, 1, 1, 1], strides=[2, 2])
    pooled = net.add("MaxPool", half, kernel_shape=[2, 2], strides=[2, 2])
    up = net.add("Resize", pooled, None, net.graph.add_constant(np.array([1, 1, 2, 2], np.float32)))
    infer(net.model)
    assert same.shape == ("N", 8, "H", "W")
    assert half.shape == ("N", 8, "floor((H+1)/2)", "floor((W+1)/2)")
    assert pooled.shape == ("N", 8, "floor((H+1)/4)", "floor((W+1)/4)")
    assert up.shape == ("N", 8, "2*floor((H+1)/4)", "2*floor((W+1)/4)")


@pytest.mark.parametrize(
    ("size", "start", "end", "step"),
    [
        (7, 0, 3, 1),
        (7, -3, 2**63 - 1, 1),
        (7, 6, -8, -2),
        (7, 10, -(2**62), -1),
        (7, 5, 2, 1),
        (7, -9, 4, 3),
        (0, 0, 5, 1),
    ],
)
def test_slice_takes_what_numpy_takes(size: int, start: int, end: int, step: int) -> None:
    from qir.ops.shape_movement import slice_length

    stop = None if step < 0 and end < -size else end
    assert slice_length(size, start, end, step) == len(np.arange(size)[start:stop:step])


def test_branches_join_and_a_known_condition_decides() -> None:
    text = """model ir=8 opset=[17]
    graph g(%x: f32[N,4], %c: bool[]) -> (%y, %z) {
      %y = If(%c) {
        then_branch=graph then_or_else() -> (%a) { %a = Relu(%x) },
        else_branch=graph then_or_else() -> (%b) { %b = Concat(%x, %x) {axis=1} }
      }
      %t = Constant() {value_int=1}
      %k = Cast(%t) {to=9}
      %z = If(%k) {
        then_branch=graph then_or_else() -> (%d) { %d = Relu(%x) },
        else_branch=graph then_or_else() -> (%e) { %e = Concat(%x, %x) {axis=1} }
      }
    }
    """
    model = parse_model(text)
    report = infer(model)
    found = types(model)
    assert report.complete, str(report)
    assert (found["y"], found["z"]) == ("f32[N,?]", "f32[N,4]")
    assert (found["a"], found["b"]) == ("f32[N,4]", "f32[N,8]")


def test_a_loop_generalises_what_grows() -> None:
    net = Net()
    trips, go = net.input("n", dtype=DType.INT64), net.input("go", dtype=DType.BOOL)
    x, fixed = net.input("x", 2, 3), net.input("fixed", "N", 5)
    from qir.ir import Graph

    body = Graph("body")
    body.add_input("i", TensorType(DType.INT64, ()))
    cond = body.add_input("cond", TensorType(DType.BOOL, ()))
    grow, keep = body.add_input("grow"), body.add_input("keep")
    for value in (
        cond,
        body.add_node("Concat", [grow, x], {"axis": 0}).output,
        body.add_node("Relu", [keep]).output,
        body.add_node("Neg", [keep]).output,
    ):
        body.add_output(body.add_node("Identity", [value]).output)
    loop = net.graph.add_node("Loop", [trips, go, x, fixed], {"body": body}, outputs=3)
    report = infer(net.model)
    assert report.complete, str(report)
    assert [format_type(v.type) for v in loop.outputs] == ["f32[?,3]", "f32[N,5]", "f32[?,?,5]"]
    assert keep.shape == ("N", 5)


def test_functions_are_inferred_for_each_call() -> None:
    from qir.ir import Attribute, AttrKind, Function, Graph

    net = Net()
    body = Graph("f")
    a = body.add_input("a")
    made = body.add_node("Concat", [a, a], {"axis": Attribute("axis", AttrKind.INT, None, ref="where")}).output
    body.add_output(made)
    net.model.add_function(Function("local", "Twice", body, attributes=("where",), opset_imports={"": 17}))
    x = net.input("x", "N", 4)
    y = net.graph.add_node("Twice", [x], {"where": 1}, domain="local").output
    z = net.graph.add_node("Twice", [y], {"where": 0}, domain="local").output
    report = infer(net.model)
    assert report.complete, str(report)
    assert (y.shape, z.shape) == (("N", 8), ("2*N", 8))
    assert made.shape == (None, 8)  # what both calls agree on
    node = made.producer
    assert node is not None
    node.set_input(1, None)
    node.set_inputs([a])
    infer_after(net.model, [node])
    assert (y.shape, z.shape, made.shape) == (("N", 4), ("N", 4), ("N", 4))


def test_the_report_lists_what_is_unknown_wrong_or_contradicted() -> None:
    net = Net()
    x = net.input("x", 2, 3)
    odd = net.graph.add_node("Odd", [x], domain="com.example")
    odd.output.type = TensorType(DType.FLOAT, (2, 9))
    kept = net.add("Relu", odd.output)
    wrong = net.graph.add_node("Relu", [x], name="liar")
    wrong.output.type = TensorType(DType.FLOAT, (2, 4))
    net.graph.add_node("Add", [x, net.graph.add_constant(np.zeros((2, 4), np.float32))], name="misfit")
    report = infer(net.model)
    assert report.unknown_ops == {"com.example.Odd": 1}
    assert kept.shape == (2, 9)  # what the file says of an unknown op is all there is
    assert wrong.output.shape == (2, 3)
    assert [str(c) for c in report.contradictions] == [
        f"value {wrong.output.name!r} is recorded as f32[2,4], but node 'liar' makes f32[2,3]"
    ]
    assert "sizes 3 and 4 do not broadcast" in report.problems["misfit"]
    assert not report.complete
    assert "misfit" in str(report)


def test_recorded_knowledge_is_kept_and_merged() -> None:
    net = Net()
    x = net.input("x", None, 3)
    node = net.graph.add_node("Relu", [x])
    node.output.type = TensorType(DType.FLOAT, ("N", 3), "IMAGE", ("DATA_BATCH", ""))
    infer(net.model)
    assert node.output.type == TensorType(DType.FLOAT, ("N", 3), "IMAGE", ("DATA_BATCH", ""))


def test_weights_are_never_read(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A 6 GB weight in a file that does not exist."""
    net = Net()
    x = net.input("x", "N", 40000)
    location = ExternalLocation(ExternalFile(tmp_path / "absent.bin"), 0, 40000 * 40000 * 4)
    w = net.graph.add_initializer("w", Tensor(DType.FLOAT, (40000, 40000), location))
    y = net.add("MatMul", x, w)
    found = net.add("Unique", y)  # inferred by onnx, as it has no rule of ours
    assert infer(net.model).complete
    assert y.shape == ("N", 40000)
    assert found.type == TensorType(DType.FLOAT, (None,))


def test_after_an_edit_only_what_is_downstream_is_visited() -> None:
    net = Net()
    x = net.input("x", "N", 8)
    y = x
    for _ in range(50):
        y = net.add("Relu", y)
    w = net.graph.add_constant(np.zeros((8, 4), np.float32))
    product = net.graph.add_node("MatMul", [y, w])
    end = net.add("Neg", net.add("Abs", product.output))
    infer(net.model)
    assert end.shape == ("N", 4)
    with net.model.transaction("edit") as journal:
        product.set_input(1, net.graph.add_constant(np.zeros((8, 6), np.float32)))
    report = infer_after(net.model, journal.touched_nodes())
    assert end.shape == ("N", 6)
    assert report.visited == 3
    assert infer_after(net.model, [product]).visited == 1


def test_an_edit_of_shape_arithmetic_reaches_the_reshape() -> None:
    net = Net()
    x = net.input("x", "N", 24)
    head = net.add("Concat", net.const(-1), net.const(4), axis=0)
    y = net.add("Reshape", x, net.add("Concat", head, net.const(3), axis=0))
    infer(net.model)
    assert y.shape == ("2*N", 4, 3)
    node = head.producer
    assert node is not None
    node.set_input(1, net.const(8))
    infer_after(net.model, [node])
    assert y.shape == ("N", 8, 3)


def test_edited_nodes_may_come_in_any_order() -> None:
    """While its operand is not inferred again yet, a node may seem not to fit: that is not reported."""
    net = Net()
    x = net.input("x", "N", 8)
    first = net.graph.add_node("Transpose", [x], {"perm": [0, 1]})
    product = net.graph.add_node("MatMul", [first.output, net.graph.add_constant(np.zeros((8, 4), np.float32))])
    infer(net.model)
    first.set_input(0, net.input("wide", "N", 9))
    product.set_input(1, net.graph.add_constant(np.zeros((9, 5), np.float32)))
    report = infer_after(net.model, [product, first])
    assert report.complete, str(report)
    assert product.output.shape == ("N", 5)


def test_a_wide_diamond_ladder_stays_linear_after_an_edit() -> None:
    net = Net()
    y = net.input("x", "N", 8)
    first = net.graph.add_node("Reshape", [y, net.const(-1, 8)])
    y = first.output
    for _ in range(200):
        y = net.add("Add", net.add("Relu", y), net.add("Neg", y))
    infer(net.model)
    first.set_input(1, net.const(-1, 4))
    report = infer_after(net.model, [first])
    assert y.shape == ("2*N", 4)
    assert report.visited < 10 * len(net.graph.nodes)


def test_types_are_written_through_the_journal() -> None:
    net = Net()
    y = net.add("Relu", net.input("x", 2))
    net.model.begin("infer")
    infer(net.model)
    assert y.shape == (2,)
    net.model.rollback()
    assert y.type is None


def test_attributes_that_break_their_schema_are_the_nodes_fault() -> None:
    net = Net()
    x = net.input("x", 1, 8, 2)
    net.graph.add_node("LSTM", [x, x, x], {"hidden_size": [3, 3]}, outputs=3, name="lstm")
    net.graph.add_node("Conv", [net.graph.add_input("any", TensorType(DType.FLOAT, None)), net.input("w")], name="conv")
    problems = infer(net.model).problems
    assert "hidden_size" in problems["lstm"]
    assert "weight of rank 0" in problems["conv"]
    for said, wanted in (
        ("num_scan_inputs=123456789012", "with 1 inputs"),
        ("num_scan_inputs=1, scan_input_axes=[0, 0]", "2 scan_input_axes for 1 inputs"),
    ):
        scan = parse_model(SCAN.replace("num_scan_inputs=1", said))
        assert wanted in infer(scan).problems["scan"]


SCAN = """model ir=8 opset=[17]
graph g(%x: f32[3,2]) -> (%y)
{
  %y: f32[3,2] = Scan(%x) {
    num_scan_inputs=1,
    body = graph b(%a: f32[2]) -> (%n) {
      %n: f32[2] = Neg(%a)
    }
  } name="scan"
}"""
