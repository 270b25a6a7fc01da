"""How an operator computes, from the notes at its operands, and what changed between two such ways."""

from __future__ import annotations

import math
from collections.abc import Hashable

import numpy as np

from qir.diff.changes import OperandQuantization, Quantization, QuantizationChange
from qir.diff.folding import Note
from qir.diff.view import Content, View, content_of
from qir.ir import DType, Node, Tensor, Value

__all__ = [
    "RESULT",
    "Notes",
    "folded_nodes",
    "form_key",
    "notes_of",
    "parameter_key",
    "quantization",
    "quantization_change",
]

RESULT = -1
"""Stands for "the result" where operands go by index."""

_SIZES = frozenset({("", "Shape", ""), ("", "Size", "")})
"""They read no numbers."""

Notes = dict[int, tuple[Value | None, Note]]
"""By operand index (or RESULT): the value without quantization (None: an attribute), and how it is stored."""


def notes_of(view: View, number: int) -> Notes:
    """The quantized operands of a node; what integer kernels store is left to their readers."""
    if not view.noted or view.ops[number] in _SIZES:
        return {}
    return {
        slot.index: (view.values[slot.value].value, slot.note) for slot in view.slots[number] if slot.note is not None
    }


def form_key(note: Note | None) -> Hashable:
    """What of a note is form: all but the numbers of its parameters."""
    if note is None:
        return None
    return (note.dtype, _granularity(note), note.axis, note.block, note.dynamic, note.integer, note.zero is None)


def parameter_key(note: Note) -> tuple[int | None, ...]:
    """Names the constants that hold a note's parameters."""
    return tuple(None if value is None else id(value) for value in (note.scale, note.zero, *note.others))


def quantization(view: View, number: int, notes: Notes) -> Quantization:
    """How a node computes."""
    operands = []
    for index in sorted(notes):
        value, note = notes[index]
        operands.append(_operand(view, number, index, value, note))
    if not operands:
        return Quantization("float", "float")
    used = [note for _, note in notes.values()]
    if any(note.dynamic for note in used):
        form = "dynamic"
    elif any(note.integer for note in used):
        form = "qoperator"
    else:
        form = "qdq" if any(operand.role in ("input", "output") for operand in operands) else "weight-only"
    return Quantization(form, _text(form, operands), tuple(operands))


def quantization_change(
    before: Quantization, after: Quantization, folded: tuple[list[int], list[int]]
) -> QuantizationChange:
    """``folded``: ids of the quantizers of either side."""
    factors = []
    others = {(operand.role, index): operand for index, operand in _by_role(after.operands)}
    for index, old in _by_role(before.operands):
        new = others.get((old.role, index))
        if new is not None and (factor := scale_factor(old, new)) is not None:
            factors.append(factor)
    return QuantizationChange(
        before, after, max(factors) - 1 if factors else None, tuple(sorted(folded[0])), tuple(sorted(folded[1]))
    )


def bias_numbers(content: Content, note: Note) -> np.ndarray | None:
    """What a stored bias stands for, float64 (channels,); None for what is no int32 bias with constant scales."""
    scales = numbers_of(note.scale)
    if note.dtype is not DType.INT32 or scales is None or not isinstance(content.constant, Tensor):
        return None
    codes = content.constant.numpy().astype(np.float64).reshape(-1)
    return codes * scales if scales.size in (1, codes.size) else None


def is_restated(old: Content, new: Content, old_note: Note, new_note: Note) -> bool:
    """Whether two stored biases stand for the same numbers, to rounding: the scale of a bias follows from others of its
    operator."""
    one, two = bias_numbers(old, old_note), bias_numbers(new, new_note)
    steps = [numbers_of(note.scale) for note in (old_note, new_note)]
    if one is None or two is None or one.shape != two.shape or steps[0] is None or steps[1] is None:
        return False
    return bool(np.all(np.abs(one - two) <= 0.505 * (steps[0] + steps[1])))


def scale_factor(old: OperandQuantization, new: OperandQuantization) -> float | None:
    """The largest of new/old and old/new over the scales of an operand; None where they do not correspond."""
    if not old.scales or len(old.scales) != len(new.scales):
        return None
    a, b = np.asarray(old.scales, np.float64), np.asarray(new.scales, np.float64)
    if not (np.all(a > 0) and np.all(b > 0)):
        return None
    return float(np.max(np.maximum(a / b, b / a)))


def _by_role(operands: tuple[OperandQuantization, ...]) -> list[tuple[int, OperandQuantization]]:
    counts: dict[str, int] = {}
    found = []
    for operand in operands:
        found.append((counts.setdefault(operand.role, 0), operand))
        counts[operand.role] += 1
    return found


def _operand(view: View, number: int, index: int, value: Value | None, note: Note) -> OperandQuantization:
    constant = None if value is None else content_of(value)
    if index == RESULT:
        role = "output"
    elif constant is None:
        role = "input"
    else:
        role = "bias" if note.dtype is DType.INT32 or len(constant.shape) <= 1 else "weight"
    scales = numbers_of(note.scale)
    zeros = numbers_of(note.zero)
    known = scales is not None and scales.size > 0 and bool(np.all(np.isfinite(scales))) and bool(np.all(scales > 0))
    zero = int(zeros[0]) if zeros is not None and zeros.size and np.all(zeros == zeros[0]) else None
    return OperandQuantization(
        role=role,
        name="" if value is None else value.name,
        dtype="?" if note.dtype is None else str(note.dtype),
        granularity=_granularity(note),
        axis=note.axis,
        block_size=note.block or None,
        scale=float(math.exp(np.mean(np.log(scales)))) if known and scales is not None else None,
        scale_min=float(scales.min()) if known and scales is not None else None,
        scale_max=float(scales.max()) if known and scales is not None else None,
        zero_point=0 if zeros is None and not note.dynamic else zero,
        scales=tuple(map(float, scales[:4096])) if known and scales is not None else (),
    )


def _granularity(note: Note) -> str:
    if note.dynamic:
        return "dynamic"
    if note.block:
        return "block"
    constant = None if note.scale is None else content_of(note.scale)
    return "channel" if constant is not None and math.prod(constant.shape) > 1 else "tensor"


def numbers_of(value: Value | None) -> np.ndarray | None:
    constant = None if value is None else content_of(value)
    if not isinstance(constant, Tensor) or constant.dtype is DType.STRING:
        return None
    return constant.numpy().astype(np.float64).reshape(-1)


_LONG = {"s8": "int8", "u8": "uint8", "s4": "int4", "u4": "uint4", "s2": "int2", "u2": "uint2", "s16": "int16"}
_PER = {"tensor": "per-tensor", "channel": "per-channel", "block": "blocked", "dynamic": "dynamic"}


def _text(form: str, operands: list[OperandQuantization]) -> str:
    """``int8 per-channel weights, u8 activations, scale 0.02``."""
    parts = []
    weights = [o for o in operands if o.role == "weight"]
    if weights:
        kinds = dict.fromkeys(
            f"{_LONG.get(w.dtype, w.dtype)} {_PER[w.granularity]}{f' ({w.block_size})' if w.block_size else ''}"
            for w in weights
        )
        parts.append(" and ".join(kinds) + " weights")
    for role, word in (("input", "activations"), ("output", "result")):
        these = [o for o in operands if o.role == role]
        if not these:
            continue
        dynamic = "dynamic " if any(o.granularity == "dynamic" for o in these) else ""
        parts.append(f"{dynamic}{' and '.join(dict.fromkeys(o.dtype for o in these))} {word}")
        scales = list(dict.fromkeys(f"{o.scale:.3g}" for o in these if o.scale is not None))
        if scales:
            parts.append(f"scale{'s' if len(scales) > 1 else ''} {' and '.join(scales[:4])}")
    if not parts:
        parts.append(" and ".join(dict.fromkeys(f"{o.dtype} {o.role}" for o in operands)))
    if form == "qoperator":
        parts.append("integer kernel")
    return ", ".join(parts)


def folded_nodes(notes: Notes) -> list[Node]:
    """The quantizers and dequantizers behind notes."""
    return list({node: None for _, note in notes.values() for node in note.nodes})
