"""Reductions and what stands around them: global pooling, axes kept or dropped, log-softmax, gathered axes."""

from __future__ import annotations

import numpy as np

from qir.ir import Node, Value
from qir.rewriting import Any, Const, Match, Maybe, Op, Rule
from qir.rewriting.edits import ints_of
from qir.rewriting.rule import Rewrite

__all__ = ["RULES"]

_REDUCTIONS = tuple(f"Reduce{kind}" for kind in "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split())


def _axes(node: Node, index: int = 1) -> tuple[int, ...] | None:
    """The axes of a reduction, Squeeze or Unsqueeze, from its attribute or its operand."""
    found = node.get("axes")
    return tuple(found) if found is not None else ints_of(node.input(index))


def _normal(axes: tuple[int, ...] | None, rank: int) -> list[int] | None:
    return None if not axes else sorted(axis % rank for axis in axes)


# Means over all of an image


def _check_pool(match: Match) -> str | None:
    x = match["x"]
    if x.shape is None or len(x.shape) < 4 or x.dtype is None or not x.dtype.is_float:
        return f"{x.name!r} is no float image of known rank"
    if _normal(_axes(match.root), len(x.shape)) != list(range(2, len(x.shape))):
        return "it does not take the mean of exactly the spatial axes"
    return None


_kept = {"keepdims": 1}
_pool = Rule(
    "global-average-pool",
    Op("ReduceMean", Any("x"), Maybe(Const()), attributes=_kept, defaults=_kept),
    lambda match: match.add("GlobalAveragePool", [match["x"]]).output,
    _check_pool,
)


# Axes that are kept and squeezed out, or dropped and put back


def _check_axes(match: Match) -> str | None:
    outer, inner = match.root, match.node("reduce")
    shape = match["x"].shape
    if shape is None:
        return f"the rank of {match['x'].name!r} is unknown"
    reduced, changed = _normal(_axes(inner), len(shape)), _normal(_axes(outer), len(shape))
    if reduced is None or changed != reduced:
        return f"{outer.op} is not of the axes that {inner.op} {inner.label!r} reduces"
    return None


def _set_keep(keep: int) -> Rewrite:
    def rewrite(match: Match) -> Value:
        node = match.node("reduce")
        attributes = {**node.attributes, "keepdims": keep}
        return match.add(node.op, node.inputs, attributes).output

    return rewrite


_squeezed = Rule(
    "reduce-squeeze",
    Op(
        "Squeeze",
        Op(_REDUCTIONS, Any("x"), Maybe(Const()), name="reduce", attributes=_kept, defaults=_kept),
        Maybe(Const()),
    ),
    _set_keep(0),
    _check_axes,
)
_unsqueezed = Rule(
    "reduce-unsqueeze",
    Op(
        "Unsqueeze",
        Op(_REDUCTIONS, Any("x"), Maybe(Const()), name="reduce", attributes={"keepdims": 0}, defaults=_kept),
        Maybe(Const()),
    ),
    _set_keep(1),
    _check_axes,
)


# Log(Softmax)


def _log_softmax(match: Match) -> Value:
    axis = match.node("softmax").get("axis")
    return match.add("LogSoftmax", [match["x"]], {} if axis is None else {"axis": axis}).output


_logs = Rule("log-softmax", Op("Log", Op("Softmax", Any("x"), name="softmax")), _log_softmax)


# A Gather that drops an axis which is then put back


def _check_gather(match: Match) -> str | None:
    node, shape = match.node("gather"), match["x"].shape
    index = match["index"].shape
    if shape is None:
        return f"the rank of {match['x'].name!r} is unknown"
    axis, changed = node.get("axis", 0) % len(shape), _axes(match.root)
    wanted = () if match.root.op == "Unsqueeze" else (1,)
    if index != wanted:
        return "its index is no scalar" if wanted == () else "its index is not a list of one"
    if _normal(changed, len(shape)) != [axis]:
        return f"{match.root.op} is not of the axis that is gathered"
    match.memo["axis"] = axis
    return None


def _rewrite_gather(match: Match) -> Value:
    indices = ints_of(match["index"])
    assert indices is not None, "the pattern asks for a constant index"
    array = np.array(indices, np.int64)
    if match.root.op == "Squeeze":
        array = array.reshape(())
    constant = match.constant(array, match["index"].name)
    return match.add("Gather", [match["x"], constant], {"axis": match.memo["axis"]}).output


_gathers = Rule(
    "gather-axis",
    Op(
        ("Unsqueeze", "Squeeze"),
        Op("Gather", Any("x"), Const("index", where=lambda a: a.dtype.kind == "i"), name="gather"),
        Maybe(Const()),
    ),
    _rewrite_gather,
    _check_gather,
)


# Transpose of a matrix into Gemm


def _transposed(index: int) -> Op:
    operand = Op("Transpose", Any("x"), name="transpose", where=lambda node: tuple(node.get("perm", (1, 0))) == (1, 0))
    operands = [operand, Any("w")] if index == 0 else [Any("w"), operand]
    return Op("Gemm", *operands, Maybe(Any("bias")))


def _check_matrix(match: Match) -> str | None:
    shape = match["x"].shape
    return None if shape is not None and len(shape) == 2 else f"{match['x'].name!r} is not known to be a matrix"


def _absorb(index: int, flag: str) -> Rewrite:
    def rewrite(match: Match) -> None:
        match.root.set(flag, 1 - match.root.get(flag, 0))
        match.root.set_input(index, match["x"])

    return rewrite


_gemm_a = Rule("transpose-gemm", _transposed(0), _absorb(0, "transA"), _check_matrix)
_gemm_b = Rule("transpose-gemm", _transposed(1), _absorb(1, "transB"), _check_matrix)

RULES = (_squeezed, _unsqueezed, _pool, _logs, _gathers, _gemm_a, _gemm_b)
