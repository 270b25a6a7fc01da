"""Simplifications of arithmetic: neutral elements, functions applied twice, casts of casts."""

from __future__ import annotations

import numpy as np

from qir.ir import DType, Node, Value
from qir.passes.structure.simplifications.common import Scope, feeder, is_quantized, pass_through, rule_table
from qir.rewriting.edits import constant_of, merge_origin

__all__ = ["RULES"]

RULES, _rule = rule_table()

_MOST_ELEMENTS = 4096
"""Larger constants are not searched for a neutral element."""


def _is_all(value: Value | None, number: float | bool) -> bool:
    tensor = constant_of(value)
    if tensor is None or not 0 < tensor.size <= _MOST_ELEMENTS or tensor.dtype is DType.STRING:
        return False
    array = tensor.numpy()
    return bool(array.item(0) == number) and bool(np.all(array == number))


def _keeps_shape(source: Value | None, constant: Value | None) -> bool:
    """Broadcasting ``constant`` to ``source`` gives the shape of ``source``, whatever the open sizes turn out to be.

    A vector along the last axis is refused: ones and zeros there are weights of a norm or linear layer before training,
    and runtimes know layer norm and attention by their Mul and Add.
    """
    tensor = constant_of(constant)
    if source is None or tensor is None or tensor.shape[-1:] not in ((), (1,)):
        return False
    shape = source.shape
    if shape is None or len(tensor.shape) > len(shape):
        return tensor.shape == ()
    tail = shape[len(shape) - len(tensor.shape) :]
    return all(
        size == 1 or (isinstance(dim, int) and size == dim) for size, dim in zip(tensor.shape, tail, strict=True)
    )


_NEUTRAL: dict[str, tuple[float | bool, bool]] = {
    "Add": (0, True),
    "Sub": (0, False),
    "Mul": (1, True),
    "Div": (1, False),
    "Pow": (1, False),
    "And": (True, True),
    "Or": (False, True),
    "Xor": (False, True),
}
"""The neutral element of each op, and whether it may stand on the left too."""


@_rule("neutral-operand", *_NEUTRAL)
def _neutral(node: Node, scope: Scope) -> bool:
    number, either = _NEUTRAL[node.op]
    if scope.opset < 7:
        return False  # broadcasting had rules of its own
    for kept, other in ((0, 1), (1, 0)) if either else ((0, 1),):
        source, constant = node.input(kept), node.input(other)
        if _is_all(constant, number) and _keeps_shape(source, constant) and pass_through(node, source):
            return True
    return False


@_rule("involution", "Neg", "Not")
def _involution(node: Node, scope: Scope) -> bool:
    """Neg(Neg(x)) -> x."""
    inner = feeder(node.input(0), node.op)
    return inner is not None and not is_quantized(inner.output) and pass_through(node, inner.input(0))


@_rule("idempotent", "Abs", "Ceil", "Floor", "Relu", "Round", "Sign")
def _idempotent(node: Node, scope: Scope) -> bool:
    """Relu(Relu(x)) -> Relu(x)."""
    return feeder(node.input(0), node.op) is not None and pass_through(node, node.input(0))


@_rule("same-operands", "Where", "Max", "Min", "And", "Or")
def _same_operands(node: Node, scope: Scope) -> bool:
    """Where(c, x, x), Max(x, x) and Max(x) -> x."""
    values = node.inputs[1:] if node.op == "Where" else node.inputs
    if not values or any(value is not values[0] for value in values):
        return False
    source = values[0]
    if node.op == "Where" and (source is None or source.shape is None or source.shape != node.output.shape):
        return False
    return (node.op != "Where" or None not in (node.output.shape or ())) and pass_through(node, source)


@_rule("single-operand", "Sum", "Mean")
def _single_operand(node: Node, scope: Scope) -> bool:
    return len(node.inputs) == 1 and pass_through(node, node.input(0))


_WIDER: dict[str, tuple[str, ...]] = {
    "f16": ("f32", "f64"),
    "bf16": ("f32", "f64"),
    "f32": ("f64",),
    "bool": ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64", "f16", "f32", "f64"),
    "u8": ("u16", "s16", "u32", "s32", "u64", "s64"),
    "s8": ("s16", "s32", "s64"),
    "u16": ("u32", "s32", "u64", "s64"),
    "s16": ("s32", "s64"),
    "u32": ("u64", "s64"),
    "s32": ("s64",),
}
"""From the key, by way of these, any type is reached with the number that a direct cast gives."""


@_rule("cast-chain", "Cast")
def _cast_chain(node: Node, scope: Scope) -> bool:
    """Cast(Cast(x, wider), to) -> Cast(x, to)."""
    inner = feeder(node.input(0), "Cast")
    origin = None if inner is None else inner.input(0)
    if inner is None or origin is None or origin.dtype is None or inner.output.dtype is None:
        return False
    if is_quantized(inner.output) or inner.output.dtype.text not in _WIDER.get(origin.dtype.text, ()):
        return False
    node.set_input(0, origin)
    merge_origin(node, inner)
    return True
