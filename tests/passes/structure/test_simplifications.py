"""canonicalize: arithmetic and data movement that can go, and the near misses that stay."""

from __future__ import annotations

import pytest

from qir.passes.structure.canonicalize import Canonicalize
from tests.passes.support import apply, ir
from tests.textual import CheckPass


def left(lines: str, inputs: str = "%x: f32[2,3]", opset: int = 17) -> list[str]:
    """The ops that canonicalize leaves of ``lines``, which make %y."""
    model = ir(f"graph g({inputs}) -> (%y) {{\n{lines}\n}}\n", opset)
    apply(Canonicalize(), model)
    return [node.op for node in model.walk()]


@pytest.mark.parametrize(
    ("line", "goes"),
    [
        ("@c: f32[] = 1.0\n%a = Mul(%x, @c)", True),
        ("@c: f32[2,1] = [1, 1]\n%a = Mul(@c, %x)", True),
        ("@c: f32[3] = [1, 1, 1]\n%a = Mul(@c, %x)", False),  # weights of a norm, not yet trained
        ("@c: f32[1,1] = [1]\n%a = Div(%x, @c)", True),
        ("@c: f32[] = 0.0\n%a = Add(@c, %x)", True),
        ("@c: f32[] = 0.0\n%a = Sub(%x, @c)", True),
        ("@c: f32[] = 1.0\n%a = Pow(%x, @c)", True),
        ("@c: f32[] = 0.0\n%a = Sub(@c, %x)", False),
        ("@c: f32[] = 1.0\n%a = Div(@c, %x)", False),
        ("@c: f32[3] = [1, 1, 2]\n%a = Mul(%x, @c)", False),
        ("@c: f32[1,1,1] = [1]\n%a = Mul(%x, @c)", False),  # adds an axis
        ("%b = Neg(%x)\n%a = Neg(%b)", True),
        ("%a = Max(%x)", True),
        ("%a = Max(%x, %x)", True),
        ("%a = Sum(%x)", True),
        ("%a = Sum(%x, %x)", False),
    ],
)
def test_arithmetic_that_changes_nothing_goes(line: str, goes: bool) -> None:
    assert (left(f"{line}\n%y = Exp(%a)") == ["Exp"]) is goes


def test_what_would_broadcast_an_open_axis_stays() -> None:
    assert left("@c: f32[3] = [0, 0, 0]\n%y = Add(%x, @c)", "%x: f32[N]") == ["Add"]
    assert left("@c: f32[1] = [0]\n%a = Add(%x, @c)\n%y = Exp(%a)", "%x: f32[N]") == ["Exp"]


@pytest.mark.parametrize("op", ["Relu", "Abs", "Floor", "Sign"])
def test_twice_is_once(op: str) -> None:
    assert left(f"%a = {op}(%x)\n%b = {op}(%a)\n%y = Exp(%b)") == [op, "Exp"]


def test_casts_of_casts(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%i: s32[4], %h: f16[4]) -> (%a, %b, %c) {
          %wide: s64[4] = Cast(%i) {to=7}
          %a: f32[4] = Cast(%wide) {to=1}
          %single: f32[4] = Cast(%h) {to=1}
          %b: s32[4] = Cast(%single) {to=6}
          %rounded: f32[4] = Cast(%i) {to=1}
          %c: s64[4] = Cast(%rounded) {to=7}
        }
        """,
        "canonicalize",
        """
        graph (%i: s32[4], %h: f16[4]) -> (%a, %b, %c) {
          %a: f32[4] = Cast(%i) {to=1}
          %b: s32[4] = Cast(%h) {to=6}
          %c: s64[4] = Cast(%a) {to=7}
        }
        """,
    )


def test_reshapes_of_reshapes_keep_the_last(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[N,8,1,1]) -> (%y, %z) {
          @axes: s64[2] = [2, 3]
          @first: s64[1] = [1]
          %a: f32[N,8] = Squeeze(%x, @axes)
          %y: f32[N,1,8] = Unsqueeze(%a, @first)
          %t: f32[N,1,1,8] = Transpose(%x) {perm=[0, 2, 3, 1]}
          %z: f32[N,8] = Flatten(%t) {axis=1}
        }
        """,
        "canonicalize",
        """
        graph (%x: f32[N,8,1,1]) -> (%y, %z) {
          @Unsqueeze_shape: s64[3] = [0, 1, 8]
          @Flatten_shape: s64[2] = [0, 8]
          %y: f32[N,1,8] = Reshape(%x, @Unsqueeze_shape)
          %z: f32[N,8] = Reshape(%x, @Flatten_shape)
        }
        """,
    )


def test_two_unsqueezes_in_a_row_stay_as_attention_masks_have_them() -> None:
    lines = "@a: s64[1] = [1]\n@b: s64[1] = [2]\n%m = Unsqueeze(%x, @a)\n%y = Unsqueeze(%m, @b)"
    assert left(lines, "%x: f32[N,L]") == ["Unsqueeze", "Unsqueeze"]


def test_slices_of_a_concat_are_its_operands(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%a: f32[2,3], %b: f32[2,N]) -> (%x, %y, %z) {
          @zero: s64[1] = [0]
          @two: s64[1] = [2]
          @three: s64[1] = [3]
          @end: s64[1] = [9223372036854775807]
          @one: s64[1] = [1]
          %c: f32[2,?] = Concat(%a, %b) {axis=1}
          %p: f32[2,3] = Slice(%c, @zero, @three, @one)
          %q: f32[2,N] = Slice(%c, @three, @end, @one)
          %r: f32[2,2] = Slice(%c, @zero, @two, @one)
          %x: f32[2,3] = Exp(%p)
          %y: f32[2,N] = Exp(%q)
          %z: f32[2,2] = Exp(%r)
        }
        """,
        "canonicalize",
        """
        graph (%a: f32[2,3], %b: f32[2,N]) -> (%x, %y, %z) {
          @zero: s64[1] = [0]
          @two: s64[1] = [2]
          @one: s64[1] = [1]
          %c: f32[2,?] = Concat(%a, %b) {axis=1}
          %r: f32[2,2] = Slice(%c, @zero, @two, @one)
          %x: f32[2,3] = Exp(%a)
          %y: f32[2,N] = Exp(%b)
          %z: f32[2,2] = Exp(%r)
        }
        """,
    )


def test_parts_that_are_put_together_again(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[2,6]) -> (%y, %z) {
          @zero: s64[1] = [0]
          @two: s64[1] = [2]
          @six: s64[1] = [6]
          @one: s64[1] = [1]
          @halves: s64[2] = [3, 3]
          %a: f32[2,3], %b: f32[2,3] = Split(%x, @halves) {axis=1}
          %c: f32[2,6] = Concat(%a, %b) {axis=1}
          %y: f32[2,6] = Relu(%c)
          %p: f32[2,2] = Slice(%x, @zero, @two, @one)
          %q: f32[2,4] = Slice(%x, @two, @six, @one)
          %d: f32[2,6] = Concat(%p, %q) {axis=1}
          %e: f32[2,6] = Concat(%q, %p) {axis=1}
          %z: f32[2,6] = Sub(%d, %e)
        }
        """,
        "canonicalize",
        """
        graph (%x: f32[2,6]) -> (%y, %z) {
          @zero: s64[1] = [0]
          @two: s64[1] = [2]
          @six: s64[1] = [6]
          @one: s64[1] = [1]
          %y: f32[2,6] = Relu(%x)
          %p: f32[2,2] = Slice(%x, @zero, @two, @one)
          %q: f32[2,4] = Slice(%x, @two, @six, @one)
          %e: f32[2,6] = Concat(%q, %p) {axis=1}
          %z: f32[2,6] = Sub(%x, %e)
        }
        """,
    )


def test_a_split_of_a_concat(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%a: f32[2,3], %b: f32[2,4]) -> (%x, %y) {
          @parts: s64[2] = [3, 4]
          %c: f32[2,7] = Concat(%a, %b) {axis=1}
          %p: f32[2,3], %q: f32[2,4] = Split(%c, @parts) {axis=1}
          %x: f32[2,3] = Exp(%p)
          %y: f32[2,4] = Exp(%q)
        }
        """,
        "canonicalize",
        """
        graph (%a: f32[2,3], %b: f32[2,4]) -> (%x, %y) {
          %x: f32[2,3] = Exp(%a)
          %y: f32[2,4] = Exp(%b)
        }
        """,
    )


def test_one_element_of_a_concat(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%a: s64[], %b: s64[1]) -> (%x, %y) {
          @axis: s64[1] = [0]
          @first: s64[] = 0
          @second: s64[1] = [1]
          %u: s64[1] = Unsqueeze(%a, @axis)
          %c: s64[2] = Concat(%u, %b) {axis=0}
          %p: s64[] = Gather(%c, @first)
          %q: s64[1] = Gather(%c, @second)
          %x: s64[] = Neg(%p)
          %y: s64[1] = Neg(%q)
        }
        """,
        "canonicalize",
        """
        graph (%a: s64[], %b: s64[1]) -> (%x, %y) {
          %x: s64[] = Neg(%a)
          %y: s64[1] = Neg(%b)
        }
        """,
    )


def test_operators_broadcast_by_themselves(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[N,8,4], %s: f32[N,8,1], %n: s64[3]) -> (%y, %z, %w) {
          %e: f32[N,8,4] = Expand(%s, %n)
          %y: f32[N,8,4] = Mul(%x, %e)
          %f: f32[N,8,4] = ConstantOfShape(%n) {value=f32[1] [2]}
          %z: f32[N,8,4] = Mul(%f, %x)
          %w: f32[N,8,4] = Mul(%e, %s)
        }
        """,
        "canonicalize",
        """
        graph (%x: f32[N,8,4], %s: f32[N,8,1], %n: s64[3]) -> (%y, %z, %w) {
          @ConstantOfShape_fill: f32[] = 2
          %e: f32[N,8,4] = Expand(%s, %n)
          %y: f32[N,8,4] = Mul(%x, %s)
          %z: f32[N,8,4] = Mul(@ConstantOfShape_fill, %x)
          %w: f32[N,8,4] = Mul(%e, %s)
        }
        """,
    )


def test_initial_states_of_zeros_are_left_out(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[5,N,4], %n: s64[3], %c: f32[1,N,2], %w: f32[1,8,4], %r: f32[1,8,2]) -> (%y) {
          %h: f32[1,N,2] = ConstantOfShape(%n)
          %y: f32[5,1,N,2] = LSTM(%x, %w, %r, _, _, %h, %c) {hidden_size=2}
        }
        """,
        "canonicalize",
        """
        graph (%x: f32[5,N,4], %n: s64[3], %c: f32[1,N,2], %w: f32[1,8,4], %r: f32[1,8,2]) -> (%y) {
          %y: f32[5,1,N,2] = LSTM(%x, %w, %r, _, _, _, %c) {hidden_size=2}
        }
        """,
    )
