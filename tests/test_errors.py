"""The helper that proposes near names, and the exit code that all user errors share."""

from __future__ import annotations

from qir import errors


def test_suggest_names_the_nearest_first() -> None:
    assert errors.suggest("canonicalise", ["fuse", "canonicalize"]) == " (did you mean 'canonicalize'?)"
    assert errors.suggest("fuze", ["fuse", "fuzz", "place"]) == " (did you mean 'fuse' or 'fuzz'?)"


def test_suggest_keeps_silent_when_nothing_is_near() -> None:
    assert errors.suggest("xyzzy", ["fuse", "place"]) == ""
    assert errors.suggest("fuse", []) == ""


def test_suggest_ignores_case_and_the_order_of_candidates() -> None:
    names = ["Conv_1", "Conv_2", "Gemm_1"]
    assert errors.suggest("conv_1", names) == errors.suggest("conv_1", reversed(names))
    assert errors.suggest("CONV_1", ["conv_1"]) == " (did you mean 'conv_1'?)"


def test_all_user_errors_leave_with_exit_code_2() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert errors.ModelError in kinds
    assert all(issubclass(kind, errors.QirError) and kind.exit_code == 2 for kind in kinds)
