"""Chains of like operators become one: constants that follow one another, bounds, slices, concatenations."""

from __future__ import annotations

import math

import numpy as np

from qir.ir import Node, Value
from qir.rewriting import Any, Const, Match, Maybe, OneOf, Op, Rest, Rule
from qir.rewriting.edits import constant_of, ints_of, is_annotated, is_standard, merge_origin, scalar_of

__all__ = ["RULES"]

_CANCELLED = 0.01
"""Two offsets that leave less than this part of the larger one are not merged: somebody rounds by adding them."""


# Constants


def _float64(value: Value) -> np.ndarray | None:
    tensor = constant_of(value)
    if tensor is None or not tensor.dtype.is_float or tensor.dtype.bits < 16:
        return None
    return tensor.numpy().astype(np.float64)


def _remember(match: Match, name: str, array: np.ndarray, largest: int) -> str | None:
    """Keep ``array`` in the type of the constant ``a``; why not."""
    tensor = constant_of(match["a"])
    assert tensor is not None, "the pattern asks for a constant"
    with np.errstate(over="ignore"):
        stored = array.astype(tensor.dtype.numpy)
    if not np.isfinite(stored.astype(np.float64)).all():
        return f"the merged constant would overflow {tensor.dtype}"
    if array.size > largest:
        return "the merged constant would be larger than either"
    match.memo[name] = stored
    return None


def _check_factors(match: Match) -> str | None:
    a, b = _float64(match["a"]), _float64(match["b"])
    if a is None or b is None:
        return "its constants are no floats"
    inner, outer = match.node("inner").op, match.root.op
    if (inner == "Div" and not a.all()) or (outer == "Div" and not b.all()):
        return "a constant divides by zero"
    try:
        # Two divisions stay one, so that whole divisors give what they gave.
        both = inner == outer == "Div"
        merged = a * b if both else (1 / a if inner == "Div" else a) * (1 / b if outer == "Div" else b)
    except ValueError:
        return "its constants do not broadcast"
    match.memo["op"] = "Div" if both else "Mul"
    return _remember(match, "c", merged, max(a.size, b.size))


def _rewrite_with_constant(match: Match) -> Value:
    constant = match.constant(match.memo["c"], f"{match['a'].name}_merged")
    return match.add(match.memo["op"], [match["x"], constant]).output


_SCALE = ("Mul", "Div")
_OFFSET = ("Add", "Sub")
_factors = Rule(
    "mul-mul",
    Op(_SCALE, Op(_SCALE, Any("x"), Const("a"), name="inner"), Const("b")),
    _rewrite_with_constant,
    _check_factors,
)


def _check_offsets(match: Match) -> str | None:
    a, b = _float64(match["a"]), _float64(match["b"])
    if a is None or b is None:
        return "its constants are no floats"
    try:
        signed = a if match.node("inner").op == "Add" else -a, b if match.root.op == "Add" else -b
        merged = signed[0] + signed[1]
        if np.any(np.abs(merged) < _CANCELLED * np.maximum(*np.abs(np.broadcast_arrays(*signed)))):
            return "its constants cancel, which may be there to round"
    except ValueError:
        return "its constants do not broadcast"
    match.memo["op"] = "Add"
    return _remember(match, "c", merged, max(a.size, b.size))


_offsets = Rule(
    "add-add",
    Op(_OFFSET, Op(_OFFSET, Any("x"), Const("a"), name="inner"), Const("b")),
    _rewrite_with_constant,
    _check_offsets,
)


def _check_affine(match: Match) -> str | None:
    a, b, c = (_float64(match[name]) for name in ("a", "b", "c"))
    if a is None or b is None or c is None:
        return "its constants are no floats"
    if (match.node("inner").op == "Div" and not a.all()) or (match.root.op == "Div" and not c.all()):
        return "a constant divides by zero"
    outer = 1 / c if match.root.op == "Div" else c
    try:
        factor = (1 / a if match.node("inner").op == "Div" else a) * outer
        offset = (b if match.node("middle").op == "Add" else -b) * outer
    except ValueError:
        return "its constants do not broadcast"
    largest = max(a.size, b.size, c.size)
    return _remember(match, "factor", factor, largest) or _remember(match, "offset", offset, largest)


def _rewrite_affine(match: Match) -> Value:
    factor = match.constant(match.memo["factor"], f"{match['a'].name}_merged")
    offset = match.constant(match.memo["offset"], f"{match['b'].name}_merged")
    types = [match.node("middle").output.type]
    scaled = match.add("Mul", [match["x"], factor], types=types).output
    return match.add("Add", [scaled, offset]).output


_affine = Rule(
    "mul-add-mul",
    Op(_SCALE, Op(_OFFSET, Op(_SCALE, Any("x"), Const("a"), name="inner"), Const("b"), name="middle"), Const("c")),
    _rewrite_affine,
    _check_affine,
)


def _check_product_scale(match: Match) -> str | None:
    """(x @ w) * c with c a number, or one a column."""
    w, c = _float64(match["a"]), _float64(match["c"])
    if w is None or c is None or w.ndim < 2:
        return "its constants are no float matrix and floats"
    if c.size != 1 and (c.shape[-1:] != w.shape[-1:] or c.size != c.shape[-1]):
        return f"constant {match['c'].name!r} is not one number a column"
    if c.ndim > w.ndim:
        return f"constant {match['c'].name!r} adds an axis"
    if match.root.op == "Div" and not c.all():
        return "a constant divides by zero"
    if len(match["a"].uses) > 1:
        return f"{match['a'].name!r} is shared, a scaled copy would take memory"
    factor = c.reshape(-1) if match.root.op == "Mul" else 1 / c.reshape(-1)
    return _remember(match, "w", w * factor, w.size)


_product_scale = Rule(
    "matmul-scale",
    Op(_SCALE, Op("MatMul", Any("x"), Const("a")), Const("c")),
    lambda match: match.add("MatMul", [match["x"], match.constant(match.memo["w"], match["a"].name)]).output,
    _check_product_scale,
)


# Bounds


def _bounds(node: Node, opset: int) -> tuple[float, float] | None:
    """What a Relu, Clip, Max or Min by constants cuts to; None where it is not known."""
    low, high = -math.inf, math.inf
    match node.op:
        case "Relu":
            return 0.0, high
        case "Clip" if opset < 11:
            return node.get("min", low), node.get("max", high)
        case "Clip":
            found = [
                default if v is None else scalar_of(v) for v, default in ((node.input(1), low), (node.input(2), high))
            ]
        case _:
            constant = next((value for value in node.inputs if constant_of(value) is not None), None)
            number = scalar_of(constant)
            if constant is None or number is None or len(node.inputs) != 2 or constant.shape not in ((), (1,)):
                return None
            found = [number, high] if node.op == "Max" else [low, number]
    if found[0] is None or found[1] is None or math.isnan(found[0]) or math.isnan(found[1]):
        return None
    return found[0], found[1]


def _check_clips(match: Match) -> str | None:
    x = match["x"]
    if match.opset < 6 or x.dtype is None or not x.dtype.is_float or not x.shape:
        return f"{x.name!r} is no float tensor of known rank"
    inner, outer = _bounds(match.node("inner"), match.opset), _bounds(match.root, match.opset)
    if inner is None or outer is None or inner[0] > inner[1] or outer[0] > outer[1]:
        return "its bounds are no constant numbers in order"
    match.memo["low"], match.memo["high"] = (min(max(bound, outer[0]), outer[1]) for bound in inner)
    return None


def _rewrite_clips(match: Match) -> Value:
    low, high = match.memo["low"], match.memo["high"]
    if (low, high) == (0.0, math.inf):
        return match.add("Relu", [match["x"]]).output
    finite = {name: bound for name, bound in (("min", low), ("max", high)) if math.isfinite(bound)}
    if match.opset < 11:
        return match.add("Clip", [match["x"]], finite).output
    dtype = match["x"].dtype
    assert dtype is not None, "the check has seen it"
    values = [
        match.constant(np.array(finite[name], dtype.numpy), f"{match.root.label}_{name}") if name in finite else None
        for name in ("min", "max")
    ]
    return match.add("Clip", [match["x"], *(values if values[1] is not None else values[:1])]).output


def _clip(x: Any | OneOf, name: str) -> tuple[Op, ...]:
    return (
        Op("Relu", x, name=name),
        Op("Clip", x, Maybe(Any()), Maybe(Any()), name=name),
        Op(("Max", "Min"), x, Const(scalar=True), name=name),
    )


_clips = Rule("clip-chain", OneOf(*_clip(OneOf(*_clip(Any("x"), "inner")), "outer")), _rewrite_clips, _check_clips)


# Slices and concatenations


def _slice_parts(node: Node, opset: int) -> list[tuple[int, int, int, int]] | None:
    """(axis, start, end, step) of each sliced axis; None where they are no constants, or axes count from the back."""
    if opset < 10:
        starts, ends, axes, steps = node.get("starts"), node.get("ends"), node.get("axes"), None
    else:
        given = [node.input(index) for index in range(1, 5)]
        lists = [ints_of(value) for value in given]
        if any(found is None and value is not None for found, value in zip(lists, given, strict=True)):
            return None
        starts, ends, axes, steps = lists
    if starts is None or ends is None:
        return None
    axes = axes or tuple(range(len(starts)))
    steps = steps or (1,) * len(starts)
    return list(zip(axes, starts, ends, steps, strict=True)) if min(axes) >= 0 else None


def _check_slices(match: Match) -> str | None:
    others = [user for user in match["inner"].users if user.op != "Slice" or not is_standard(user)]
    if others or match["inner"].is_output:
        return "what it slices is read by more than slices"
    inner, outer = _slice_parts(match.node("inner"), match.opset), _slice_parts(match.root, match.opset)
    if inner is None or outer is None:
        return "they are not constant, or count axes from the back"
    merged = {part[0]: part for part in inner}
    for axis, start, end, step in outer:
        if axis not in merged:
            merged[axis] = (axis, start, end, step)
            continue
        _, first, last, stride = merged[axis]
        if min(first, last, start, end) < 0 or not stride == step == 1:
            return "they cut the same axis, from its end or in steps"
        merged[axis] = (axis, first + start, min(last, first + end), 1)
    match.memo["parts"] = sorted(merged.values())
    return None


def _rewrite_slices(match: Match) -> Value:
    axes, starts, ends, steps = zip(*match.memo["parts"], strict=True)
    if match.opset < 10:
        return match.add("Slice", [match["x"]], {"axes": axes, "starts": starts, "ends": ends}).output
    lists = [starts, ends, axes] + ([steps] if set(steps) != {1} else [])
    names = ("starts", "ends", "axes", "steps")
    constants = [
        match.constant(np.array(items, np.int64), f"{match.root.label}_{name}")
        for name, items in zip(names, lists, strict=False)
    ]
    return match.add("Slice", [match["x"], *constants]).output


def _slice(x: Any | Op, name: str) -> Op:
    return Op("Slice", x, *(Maybe(Any()) for _ in range(4)), name=name, leaks=True)


_slices = Rule(
    "slice-slice",
    _slice(_slice(Any("x"), "inner"), "outer"),
    _rewrite_slices,
    _check_slices,
)


def _nested(node: Node) -> list[Node]:
    """The Concats along the same axis that nobody reads but ``node``."""
    rank = node.output.shape
    found = []
    for value in node.inputs:
        inner = None if value is None else value.producer
        if inner is None or value is None or inner.op != "Concat" or not is_standard(inner):
            continue
        if inner.graph is not node.graph or len(value.uses) != 1 or is_annotated(inner):
            continue
        axes = {inner.get("axis", 1), node.get("axis", 1)}
        if len(axes) == 1 or (rank is not None and len({axis % len(rank) for axis in axes}) == 1):
            found.append(inner)
    return found


def _flatten_concat(match: Match) -> None:
    node = match.root
    nested = _nested(node)
    operands: list[Value | None] = []
    for value in node.inputs:
        inner = None if value is None else value.producer
        operands += inner.inputs if inner in nested and inner is not None else (value,)
    node.set_inputs(operands)
    for inner in nested:
        merge_origin(node, inner)
        inner.erase()


_concats = Rule("concat-concat", Op("Concat", Rest(), where=lambda node: bool(_nested(node))), _flatten_concat)

RULES = (_affine, _factors, _offsets, _product_scale, _clips, _slices, _concats)
