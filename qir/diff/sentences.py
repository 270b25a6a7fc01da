"""Details of a change as sentences; inputs and outputs of a model as changes."""

from __future__ import annotations

from qir.diff.changes import Change, ChangeKind, Detail
from qir.diff.describe import content_text
from qir.ir import SparseTensor, Tensor, TensorType, Value, format_type

__all__ = ["say", "short", "types_conflict", "value_change", "value_details"]


def say(detail: Detail) -> str:
    match detail.aspect:
        case "op":
            return f"{detail.before} -> {detail.after}"
        case "name":
            return f"renamed to {detail.after}"
    name = f" {detail.name}" if detail.name else ""
    if detail.before is None:
        return f"{detail.aspect}{name} added: {detail.after}"
    if detail.after is None:
        return f"{detail.aspect}{name} removed: {detail.before}"
    return f"{detail.aspect}{name}: {detail.before} -> {detail.after}"


def short(constant: Tensor | SparseTensor | None) -> str | None:
    return None if constant is None else content_text(constant, values=True)


def types_conflict(old: Value, new: Value, *, interface: bool = False) -> bool:
    """Both are known and cannot be the same. Names of symbols are no difference; a size against a symbol or nothing is
    one in a declared ``interface`` only."""
    a, b = old.type, new.type
    if not isinstance(a, TensorType) or not isinstance(b, TensorType):
        return a != b if interface else a is not None and b is not None and type(a) is not type(b)
    if a.dtype is not b.dtype:
        return True
    if a.shape is None or b.shape is None:
        return interface and (a.shape is None) != (b.shape is None)
    if len(a.shape) != len(b.shape):
        return True
    sizes = [(p, q) for p, q in zip(a.shape, b.shape, strict=True) if isinstance(p, int) or isinstance(q, int)]
    return any(p != q and (interface or (isinstance(p, int) and isinstance(q, int))) for p, q in sizes)


def value_details(old: Value, new: Value, places: tuple[int, int] | None) -> list[Detail]:
    details = []
    if old.name != new.name:
        details.append(Detail("name", "", old.name, new.name))
    if types_conflict(old, new, interface=True):
        details.append(Detail("type", "", format_type(old.type), format_type(new.type)))
    if places is not None:
        details.append(Detail("position", "", str(places[0]), str(places[1])))
    return details


def value_change(
    kind: ChangeKind, word: str, old: Value | None, new: Value | None, details: list[Detail], where: str = ""
) -> Change:
    """One of them is None where the interface gained or lost the value."""
    texts = [None if value is None else f"{value.name}: {format_type(value.type)}" for value in (old, new)]
    if old is None:
        assert new is not None
        title = f"{word} {new.name} added"
    elif new is None:
        title = f"{word} {old.name} removed"
    else:
        title = f"{word} {old.name}: {'; '.join(say(detail) for detail in details)}"
    return Change(kind, title, where, texts[0], texts[1], details=tuple(details))
