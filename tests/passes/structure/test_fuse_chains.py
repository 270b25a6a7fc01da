"""fuse: chains of operators, reductions, norms before convolutions, SiLU, RMSNorm; outputs stay what they were."""

from __future__ import annotations

import numpy as np
import pytest

from qir.ir import Model
from qir.passes.structure.fuse import Fuse
from qir.pipeline.contract import PassResult
from tests.passes.support import apply, assert_close, ir, outputs


def fused(
    lines: str, inputs: str = "%x: f32[2,3,4,4]", opset: int = 17, output: str = "%y", tolerance: float = 1e-5
) -> tuple[list[str], PassResult, Model]:
    """Fuse ``lines``; the outputs must be what they were on random numbers. The ops left, the result, the model."""
    model = ir(f"graph g({inputs}) -> ({output}) {{\n{lines}\n}}\n", opset)
    rng = np.random.default_rng(0)
    feed = {}
    for value in model.graph.inputs:
        shape = [size if isinstance(size, int) else 2 for size in value.shape or ()]
        assert value.dtype is not None
        feed[value.name] = (rng.standard_normal(shape) * 3).astype(value.dtype.numpy)
    expected = outputs(model, feed)
    result = apply(Fuse(), model)
    assert_close(outputs(model, feed), expected, tolerance)
    return [node.op for node in model.walk()], result, model


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        ("Mul(%x, @a)", "Mul(@b, %t)", ["Mul"]),
        ("Div(%x, @a)", "Div(%t, @b)", ["Div"]),
        ("Mul(%x, @a)", "Div(%t, @b)", ["Mul"]),
        ("Div(%x, @a)", "Mul(%t, @b)", ["Mul"]),
        ("Div(@a, %x)", "Mul(%t, @b)", ["Div", "Mul"]),
        ("Add(%x, @a)", "Add(%t, @b)", ["Add"]),
        ("Sub(%x, @a)", "Add(%t, @b)", ["Add"]),
        ("Add(@a, %x)", "Sub(%t, @b)", ["Add"]),
        ("Sub(@a, %x)", "Add(%t, @b)", ["Sub", "Add"]),
        ("Add(%x, @a)", "Mul(%t, @b)", ["Add", "Mul"]),
    ],
)
def test_constants_that_follow_one_another(first: str, second: str, left: list[str]) -> None:
    ops, _, _ = fused(f"@a: f32[3,1,1] = [0.5, 2, 4]\n@b: f32[] = 0.3\n%t = {first}\n%y = {second}")
    assert ops == left


def test_constants_are_not_merged_where_that_takes_memory_or_changes_more_than_rounding() -> None:
    outer = "@a: f32[3,1,1] = [1, 2, 3]\n@b: f32[1,4] = [4, 5, 6, 7]\n%t = Mul(%x, @a)\n%y = Mul(%t, @b)"
    assert fused(outer)[0] == ["Mul", "Mul"]
    rounding = "@a: f32[] = 12582912.0\n%t = Add(%x, @a)\n%y = Sub(%t, @a)"
    ops, result, _ = fused(rounding)
    assert ops == ["Add", "Sub"]
    assert "cancel" in str(result.remarks[0])
    assert fused("@a: f32[] = 1e30\n%t = Mul(%x, @a)\n%y = Mul(%t, @a)")[0] == ["Mul", "Mul"]
    read_twice = "@a: f32[] = 2.0\n@b: f32[] = 3.0\n%t = Mul(%x, @a)\n%u = Mul(%t, @b)\n%y = Sub(%u, %t)"
    assert fused(read_twice)[0] == ["Mul", "Mul", "Sub"]


def test_scale_offset_scale_is_one_scale_and_one_offset() -> None:
    ops, result, _ = fused(
        "@a: f32[] = 255\n@m: f32[3,1,1] = [0.4, 0.5, 0.6]\n@s: f32[3,1,1] = [0.2, 0.3, 0.4]\n"
        "%t = Div(%x, @a)\n%u = Sub(%t, @m)\n%y = Div(%u, @s)"
    )
    assert ops == ["Mul", "Add"]
    assert result.statistics == {"mul-add-mul": 1}


def test_a_number_goes_into_the_matrix_before_it() -> None:
    inputs = "%x: f32[2,5,2]"
    matrix = "@w: f32[2,3] = [1, 2, 3, 4, 5, 6]\n%t = MatMul(%x, @w)\n"
    assert fused(matrix + "@c: f32[] = 0.25\n%y = Mul(%t, @c)", inputs)[0] == ["MatMul"]
    assert fused(matrix + "@c: f32[3] = [1, 2, 4]\n%y = Div(%t, @c)", inputs)[0] == ["MatMul"]
    assert fused(matrix + "@c: f32[5,1] = [1, 2, 4, 8, 16]\n%y = Mul(%t, @c)", inputs)[0] == ["MatMul", "Mul"]


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize(
    ("first", "second", "left", "bounds"),
    [
        ("Relu", (-1, 2), "Clip", (0, 2)),
        ((-1, 2), "Relu", "Clip", (0, 2)),
        ((0, 4), (1, 9), "Clip", (1, 4)),
        ((0, 1), (2, 3), "Clip", (2, 2)),
    ],
)
def test_bounds_of_bounds(
    opset: int, first: str | tuple[int, int], second: str | tuple[int, int], left: str, bounds: tuple[int, int]
) -> None:
    def line(what: str | tuple[int, int], source: str, result: str) -> str:
        if isinstance(what, str):
            return f"{result} = {what}({source})"
        if opset < 11:
            return f"{result} = Clip({source}) {{max={what[1]}.0, min={what[0]}.0}}"
        low, high = f"@l{result[1:]}", f"@h{result[1:]}"
        return f"{low}: f32[] = {what[0]}\n{high}: f32[] = {what[1]}\n{result} = Clip({source}, {low}, {high})"

    ops, _, model = fused(f"{line(first, '%x', '%t')}\n{line(second, '%t', '%y')}", opset=opset)
    assert ops == [left]
    (node,) = model.graph.nodes
    if opset < 11:
        found = node.get("min"), node.get("max")
    else:
        found = tuple(
            value.tensor.item() for value in node.inputs[1:] if value is not None and value.tensor is not None
        )
    assert found == bounds


def test_max_and_min_by_numbers_are_bounds_too() -> None:
    assert fused("@six: f32[] = 6\n%r = Relu(%x)\n%y = Min(@six, %r)")[0] == ["Clip"]
    assert fused("@zero: f32[] = 0\n@six: f32[1] = [6]\n%r = Max(%x, @zero)\n%y = Min(%r, @six)")[0] == ["Clip"]
    assert fused("@zero: f32[] = 0\n%r = Relu(%x)\n%y = Max(%r, @zero)")[0] == ["Relu"]
    assert fused("@two: f32[3,1,1] = [1, 2, 3]\n%r = Relu(%x)\n%y = Min(%r, @two)")[0] == ["Relu", "Min"]


def test_bounds_that_others_read_stay() -> None:
    lines = "@l: f32[] = -1\n@h: f32[] = 2\n%r = Relu(%x)\n%c = Clip(%r, @l, @h)\n%y = Add(%c, %r)"
    assert fused(lines)[0] == ["Relu", "Clip", "Add"]


def test_slices_of_slices() -> None:
    lines = (
        "@z: s64[1] = [0]\n@one: s64[1] = [1]\n@two: s64[1] = [2]\n@three: s64[1] = [3]\n"
        "@end: s64[1] = [9223372036854775807]\n"
    )
    apart = "%t = Slice(%x, @one, @three, @one)\n%y = Slice(%t, @z, @end, @two, @two)"
    assert fused(lines + apart)[0] == ["Slice"]
    same = "%t = Slice(%x, @one, @end, @two)\n%y = Slice(%t, @one, @two, @two)"
    assert fused(lines + same)[0] == ["Slice"]
    stepped = "%t = Slice(%x, @z, @end, @two, @two)\n%y = Slice(%t, @one, @two, @two)"
    assert fused(lines + stepped)[0] == ["Slice", "Slice"]
    shared = apart + "\n%u = Slice(%t, @z, @one, @three)\n%v = Shape(%u)\n%w = Cast(%v) {to=1}\n%q = Shape(%w)"
    assert fused(lines + shared)[0].count("Slice") == 2
    old = "%t = Slice(%x) {axes=[1], ends=[3], starts=[1]}\n%y = Slice(%t) {axes=[2], ends=[2], starts=[0]}"
    assert fused(old, opset=9)[0] == ["Slice"]


def test_concats_of_concats_along_the_same_axis() -> None:
    inner = "%t = Concat(%x, %x) {axis=1}\n%y = Concat(%x, %t, %x) {axis=-3}"
    assert fused(inner)[0] == ["Concat"]
    assert fused("%t = Concat(%x, %x) {axis=1}\n%u = Concat(%t, %t) {axis=2}\n%y = Exp(%u)")[0][:2] == ["Concat"] * 2
    read_twice = (
        "%t = Concat(%x, %x) {axis=1}\n%u = Concat(%t, %x) {axis=1}\n%v = Concat(%u, %t) {axis=1}\n%y = Exp(%v)"
    )
    assert fused(read_twice)[0] == ["Concat", "Concat", "Exp"]


@pytest.mark.parametrize("opset", [11, 17, 18])
def test_the_mean_of_an_image_is_a_pool(opset: int) -> None:
    def mean(axes: list[int], keep: int) -> str:
        if opset < 18:
            return f"%y = ReduceMean(%x) {{axes={axes}, keepdims={keep}}}"
        return f"@a: s64[{len(axes)}] = {axes}\n%y = ReduceMean(%x, @a) {{keepdims={keep}}}"

    assert fused(mean([2, 3], 1), opset=opset)[0] == ["GlobalAveragePool"]
    assert fused(mean([-1, -2], 1), opset=opset)[0] == ["GlobalAveragePool"]
    assert fused(mean([2, 3], 0), opset=opset)[0] == ["ReduceMean"]
    assert fused(mean([1, 2], 1), opset=opset)[0] == ["ReduceMean"]
    assert fused(mean([2], 1), "%x: f32[2,3,4]", opset=opset)[0] == ["ReduceMean"]  # might be a part of a norm


def test_an_axis_that_is_dropped_and_put_back() -> None:
    axes = "@a: s64[2] = [2, 3]\n"
    assert fused(axes + "%t = ReduceMean(%x) {axes=[2, 3], keepdims=0}\n%y = Unsqueeze(%t, @a)")[0] == [
        "GlobalAveragePool"
    ]
    assert fused(axes + "%t = ReduceMax(%x) {axes=[-1, 2], keepdims=1}\n%y = Squeeze(%t, @a)")[0] == ["ReduceMax"]
    other = "@b: s64[2] = [0, 1]\n%t = ReduceMax(%x) {axes=[2, 3], keepdims=0}\n%y = Unsqueeze(%t, @b)"
    assert fused(other)[0] == ["ReduceMax", "Unsqueeze"]


def test_a_gathered_axis_that_is_put_back() -> None:
    one = "@i: s64[] = 1\n@l: s64[1] = [1]\n@first: s64[1] = [0]\n"
    assert fused(one + "%t = Gather(%x, @i) {axis=1}\n%y = Unsqueeze(%t, @l)")[0] == ["Gather"]
    assert fused(one + "%t = Gather(%x, @l) {axis=1}\n%y = Squeeze(%t, @l)")[0] == ["Gather"]
    assert fused(one + "%t = Gather(%x, @i) {axis=1}\n%y = Unsqueeze(%t, @first)")[0] == ["Gather", "Unsqueeze"]


@pytest.mark.parametrize("opset", [11, 13])
def test_log_softmax(opset: int) -> None:
    ops, _, model = fused("%s = Softmax(%x) {axis=1}\n%y = Log(%s)", "%x: f32[2,5]", opset)
    assert ops == ["LogSoftmax"]
    assert next(iter(model.graph.nodes)).get("axis") == 1


def test_a_transposed_matrix_goes_into_gemm() -> None:
    inputs = "%x: f32[4,2], %b: f32[3,4]"
    ops, _, model = fused("%t = Transpose(%x)\n%u = Transpose(%b) {perm=[1, 0]}\n%y = Gemm(%t, %u)", inputs)
    assert ops == ["Gemm"]
    (node,) = model.graph.nodes
    assert (node.get("transA"), node.get("transB")) == (1, 1)


NORM = "@g: f32[3] = [1, 2, 0.5]\n@m: f32[3] = [0.1, 0.2, 0.3]\n@v: f32[3] = [1, 4, 0.25]\n"
KERNEL = "@w: f32[2,3,1,1] = [1, 2, 3, 4, 5, 6]\n"


def test_a_norm_before_a_convolution_that_pads_nothing() -> None:
    offset = "@b: f32[3] = [1, -1, 2]\n"
    norm = "%n = BatchNormalization(%x, @g, @b, @m, @v)\n"
    ops, result, _ = fused(NORM + KERNEL + offset + norm + "%y = Conv(%n, @w)")
    assert ops == ["Conv"]
    assert result.statistics == {"bn-conv": 1}
    padded = NORM + KERNEL + offset + norm + "%y = Conv(%n, @w) {pads=[1, 1, 1, 1]}"
    ops, result, _ = fused(padded)
    assert ops == ["BatchNormalization", "Conv"]
    assert any("pads with zeros" in str(remark) for remark in result.remarks)


def test_a_norm_without_offset_goes_past_padding() -> None:
    lines = "@g: f32[3] = [1, 2, 0.5]\n@b: f32[3] = [0, 0, 0]\n@v: f32[3] = [1, 4, 0.25]\n" + KERNEL
    lines += "%n = BatchNormalization(%x, @g, @b, @b, @v)\n%y = Conv(%n, @w) {pads=[1, 1, 1, 1]}"
    assert fused(lines)[0] == ["Conv"]


@pytest.mark.parametrize("form", ["Mul(%x, %s)", "Mul(%s, %x)"])
def test_silu_is_a_region(form: str) -> None:
    ops, result, model = fused(f"%s = Sigmoid(%x)\n%y = {form}")
    assert ops == ["Sigmoid", "Mul"]  # two nodes that the runtime knows as one
    assert result.statistics == {"silu": 1}
    assert {node.region.role for node in model.walk() if node.region} == {"silu"}


def test_what_is_no_silu() -> None:
    assert not fused("%s = Sigmoid(%x)\n%y = Mul(%s, %s)")[1].changed
    assert not fused("%s = Sigmoid(%z)\n%y = Mul(%x, %s)", "%x: f32[2], %z: f32[2]")[1].changed


RMS = """@two: f32[] = 2
@e: f32[] = 1e-6
@w: f32[4] = [1, 2, 3, 4]
@one: f32[] = 1
@last: s64[1] = [-1]
%q = {square}
%v = {mean}
%d = Add(%v, @e)
%r = Sqrt(%d)
{end}
%y = Mul(%n, @w)"""
ROOTS = ["%n = Div(%x, %r)", "%i = Reciprocal(%r)\n%n = Mul(%x, %i)", "%i = Div(@one, %r)\n%n = Mul(%i, %x)"]


@pytest.mark.parametrize("end", ROOTS)
@pytest.mark.parametrize("square", ["Pow(%x, @two)", "Mul(%x, %x)"])
def test_rms_norm_in_its_forms(square: str, end: str) -> None:
    old = RMS.format(square=square, mean="ReduceMean(%q) {axes=[-1]}", end=end)
    ops, result, model = fused(old)
    assert result.statistics == {"rms-norm": 1}
    assert "RMSNormalization" not in ops
    assert {node.region.role for node in model.walk() if node.region} == {"rms-norm"}
    new = RMS.format(square=square, mean="ReduceMean(%q, @last)", end=end)
    ops, _, model = fused(new, opset=23)
    assert ops == ["RMSNormalization"]
    assert next(iter(model.graph.nodes)).get("axis") == -1
