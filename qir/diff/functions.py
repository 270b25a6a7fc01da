"""Local functions that only have another name: which of the new model's is which of the old one's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import NamedTuple, Self

from qir.diff.folding import Folding
from qir.diff.hashing import body_signature
from qir.diff.view import Interner, ViewMaker, attribute_key
from qir.ir import Function, Model, OpId

__all__ = ["renamed_functions"]

_ALIKE = 0.5
"""Share of the operators that a renamed function which was edited too has in common with the old one."""


def renamed_functions(a: Model, b: Model, foldings: tuple[Folding, Folding], intern: Interner) -> dict[OpId, OpId]:
    """Names of ``b``'s functions to those of ``a``'s, for functions that one of them has under another name: those that
    compute the same (also by what they call), then those that are mostly alike."""
    left_a = {op_id: function for op_id, function in a.functions.items() if op_id not in b.functions}
    left_b = {op_id: function for op_id, function in b.functions.items() if op_id not in a.functions}
    names: dict[OpId, OpId] = {}
    found = True
    while found and left_a and left_b:
        found = False
        keys_a = _signatures(ViewMaker(a, foldings[0], intern), left_a, intern)
        keys_b = _signatures(ViewMaker(b, foldings[1], intern, names), left_b, intern)
        same: dict[Hashable, list[OpId]] = {}
        for old, key in reversed(keys_a.items()):
            same.setdefault(key, []).append(old)
        for new, key in keys_b.items():
            if candidates := same.get(key):
                old = names[new] = candidates.pop()
                del left_a[old], left_b[new]
                found = True
    profiles = {old: _Profile.of(function) for old, function in left_a.items()}
    for new, function in left_b.items():
        profile = _Profile.of(function)
        likeness, old = max(((profiles[old].likeness(profile), old) for old in left_a), default=(0.0, ("", "", "")))
        if likeness >= _ALIKE:
            names[new] = old
            del left_a[old]
    return names


def _signatures(maker: ViewMaker, functions: Mapping[OpId, Function], intern: Interner) -> dict[OpId, Hashable]:
    return {
        op_id: (
            body_signature(maker.view(function.graph), intern)[0],
            function.attributes,
            tuple((default.name, attribute_key(default)) for default in function.defaults),
        )
        for op_id, function in functions.items()
    }


class _Profile(NamedTuple):
    """What tells how much two functions are alike."""

    name: str
    interface: tuple[int, int]
    ops: Counter[OpId]

    @classmethod
    def of(cls, function: Function) -> Self:
        graph = function.graph
        return cls(function.name, (len(graph.inputs), len(graph.outputs)), Counter(node.op_id for node in graph.nodes))

    def likeness(self, other: _Profile) -> float:
        """0 for functions that cannot be called alike, else the share of equal operators; a little more for one
        name."""
        if self.interface != other.interface:
            return 0.0
        both = (self.ops & other.ops).total()
        return both / max(self.ops.total(), other.ops.total(), 1) + 0.01 * (self.name == other.name)
