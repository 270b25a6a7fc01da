"""fold-constants where sizes are open: what Reshape, Expand and Slice can say without computing them."""

from __future__ import annotations

from tests.textual import CheckPass


def test_a_reshape_copies_the_axes_that_stay_and_works_out_one(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[N,L,8]) -> (%y) {
          @z: s64[] = 0
          @o: s64[] = 1
          @a: s64[1] = [0]
          @h: s64[2] = [4, 2]
          %s = Shape(%x)
          %b = Gather(%s, @z)
          %l = Gather(%s, @o)
          %bu = Unsqueeze(%b, @a)
          %lu = Unsqueeze(%l, @a)
          %t = Concat(%bu, %lu, @h) {axis=0}
          %r = Reshape(%x, %t)
          %p = Mul(%b, %l)
          %pu = Unsqueeze(%p, @a)
          %m = Concat(%pu, @h) {axis=0}
          %y = Reshape(%r, %m)
        }
        """,
        "fold-constants",
        """
        graph (%x: f32[N,L,8]) -> (%y) {
          @t_1: s64[4] = [0, 0, 4, 2]
          @m_1: s64[3] = [-1, 4, 2]
          %r: f32[N,L,4,2] = Reshape(%x, @t_1)
          %y: f32["L*N",4,2] = Reshape(%r, @m_1)
        }
        """,
    )


def test_a_reshape_with_two_open_sizes_of_other_axes_keeps_its_arithmetic(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[N,L,8]) -> (%y) {
          @i: s64[3] = [2, 0, 1]
          %s = Shape(%x)
          %t = Gather(%s, @i)
          %y = Reshape(%x, %t)
        }
        """,
        "fold-constants",
        """
        graph (%x: f32[N,L,8]) -> (%y) {
          @i: s64[3] = [2, 0, 1]
          %s: s64[3] = Shape(%x)
          %t: s64[3] = Gather(%s, @i)
          %y: f32[8,N,L] = Reshape(%x, %t)
        }
        """,
    )


def test_zero_in_a_target_is_a_size_where_allowzero_is_set(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[N,8]) -> (%y) {
          @h: s64[1] = [8]
          @b: s64[1] = [0]
          %s = Shape(%x)
          %n = Gather(%s, @b)
          %t = Concat(%n, @h) {axis=0}
          %y = Reshape(%x, %t) {allowzero=1}
        }
        """,
        "fold-constants",
        """
        graph (%x: f32[N,8]) -> (%y) {
          %s: s64[2] = Shape(%x)
          %y: f32[N,8] = Reshape(%x, %s) {allowzero=1}
        }
        """,
    )


def test_an_expand_to_the_sizes_it_has_keeps_them(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[N,8]) -> (%y) {
          @o: s64[1] = [1]
          %s = Shape(%x)
          %t = Concat(@o, %s) {axis=0}
          %y = Expand(%x, %t)
        }
        """,
        "fold-constants",
        """
        graph (%x: f32[N,8]) -> (%y) {
          @t_1: s64[3] = [1, 1, 8]
          %y: f32[1,N,8] = Expand(%x, @t_1)
        }
        """,
    )


def test_the_pattern_by_which_exporters_expand_to_minus_one(check_pass: CheckPass) -> None:
    """Where(shape == -1, 1, shape), written for sizes that are never -1."""
    check_pass(
        """
        graph (%x: f32[N,8], %c: f32[1,8]) -> (%y) {
          @r: s64[1] = [2]
          @m: s64[] = -1
          %s = Shape(%x)
          %o = ConstantOfShape(@r) {value=s64[1] [1]}
          %n = Mul(%o, @m)
          %e = Equal(%s, %n)
          %w = Where(%e, %o, %s)
          %y = Expand(%c, %w)
        }
        """,
        "fold-constants",
        """
        graph (%x: f32[N,8], %c: f32[1,8]) -> (%y) {
          %s: s64[2] = Shape(%x)
          %y: f32[N,8] = Expand(%c, %s)
        }
        """,
    )


def test_a_slice_to_the_axis_own_size_goes_to_the_end(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[N,8]) -> (%y) {
          @a: s64[1] = [0]
          @two: s64[1] = [2]
          %s = Shape(%x)
          %e = Gather(%s, @a)
          %y = Slice(%x, @two, %e, @a)
        }
        """,
        "fold-constants",
        """
        graph (%x: f32[N,8]) -> (%y) {
          @a: s64[1] = [0]
          @two: s64[1] = [2]
          @e_1: s64[1] = [9223372036854775807]
          %y: f32[?,8] = Slice(%x, @two, @e_1, @a)
        }
        """,
    )


def test_sizes_of_one_name_are_computed_once(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[N,8]) -> (%y) {
          @z: s64[] = 0
          %r = Relu(%x)
          %s = Shape(%r)
          %a = Gather(%s, @z)
          %q = Shape(%x)
          %b = Gather(%q, @z)
          %y = Add(%a, %b)
        }
        """,
        "fold-constants",
        """
        graph (%x: f32[N,8]) -> (%y) {
          @z: s64[] = 0
          %r: f32[N,8] = Relu(%x)
          %s: s64[2] = Shape(%r)
          %a: s64[] = Gather(%s, @z)
          %y: s64[] = Add(%a, %a)
        }
        """,
    )


def test_a_size_without_a_name_is_not_taken_for_another(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[?,8], %z: f32[?,8]) -> (%y) {
          @z0: s64[] = 0
          %s = Shape(%x)
          %a = Gather(%s, @z0)
          %q = Shape(%z)
          %b = Gather(%q, @z0)
          %y = Add(%a, %b)
        }
        """,
        "fold-constants",
        """
        graph (%x: f32[?,8], %z: f32[?,8]) -> (%y) {
          @z0: s64[] = 0
          %s: s64[2] = Shape(%x)
          %a: s64[] = Gather(%s, @z0)
          %q: s64[2] = Shape(%z)
          %b: s64[] = Gather(%q, @z0)
          %y: s64[] = Add(%a, %b)
        }
        """,
    )


def test_a_size_without_a_name_is_known_to_be_its_own(check_pass: CheckPass) -> None:
    check_pass(
        """
        graph (%x: f32[?,?,8]) -> (%y, %z) {
          @h: s64[2] = [4, 2]
          @first: s64[1] = [0]
          @second: s64[1] = [1]
          %s = Shape(%x)
          %n = Gather(%s, @first)
          %l = Gather(%s, @second)
          %t = Concat(%n, %l, @h) {axis=0}
          %y = Reshape(%x, %t)
          %u = Concat(%l, %n, @h) {axis=0}
          %z = Reshape(%x, %u)
        }
        """,
        "fold-constants",
        """
        graph (%x: f32[?,?,8]) -> (%y, %z) {
          @h: s64[2] = [4, 2]
          @first: s64[1] = [0]
          @second: s64[1] = [1]
          @t_1: s64[4] = [0, 0, 4, 2]
          %s: s64[3] = Shape(%x)
          %n: s64[1] = Gather(%s, @first)
          %l: s64[1] = Gather(%s, @second)
          %y: f32[?,?,4,2] = Reshape(%x, @t_1)
          %u: s64[4] = Concat(%l, %n, @h) {axis=0}
          %z: f32[?,?,4,2] = Reshape(%x, %u)
        }
        """,
    )
