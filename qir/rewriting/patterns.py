"""The pattern language: small immutable objects that say what a piece of a graph looks like.

    x = Any("x")
    Op("Mul", x, Op("Sigmoid", x))                        # x * sigmoid(x), operands in either order
    Op(("Conv", "Gemm"), Any("x"), Any("w"), Maybe(Any("b")), name="linear", attributes={"group": 1})
    Op("Add", OneOf(Op("MatMul", ...), Op("Gemm", ...)), Const("bias"))

One pattern object, or one name, that stands in two places has to match the same value in both. Matching is lazy: the
operand orders of a commutative op and alternatives are tried one after the other, and the first that fits is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import permutations
from typing import Any as Object

import numpy as np

from qir.ir import Node, Value
from qir.rewriting.edits import constant_of
from qir.rewriting.search import NOTHING_HELD, Held, Search

__all__ = ["Any", "Const", "Maybe", "OneOf", "Op", "Pattern", "Rest"]

_COMMUTATIVE = frozenset(
    ("Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Sum", "Mean", "Max", "Min")
)
_MOST_PERMUTED = 4


class Pattern:
    """What an operand looks like."""

    __slots__ = ()

    plain: bool = False
    """It fits in one way at most, so that ``hold`` can say at once."""

    def match(self, value: Value | None, search: Search) -> Iterator[None]:
        """Yield once for each way in which ``value`` fits; the bindings hold while the caller looks at them."""
        held = self.hold(value, search)
        if held is not None:
            yield
            search.let_go(held)

    def hold(self, value: Value | None, search: Search) -> Held | None:
        """Of a plain pattern: bind ``value`` until the search lets go of it; None where it does not fit."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        """How many nodes deep it reaches."""
        return 0

    def heights(self, above: int, found: dict[str, int]) -> None:
        """Note in ``found`` how many nodes of the match may stand above one of an operator, for each operator that
        the pattern names; ``above`` stand above this operand. The key ``*`` is for any operator."""
        if self.depth:
            found["*"] = max(found.get("*", 0), above + self.depth - 1)

    def describe(self) -> str:
        raise NotImplementedError


class Any(Pattern):
    """Any present operand that ``where`` accepts, bound to ``name``."""

    __slots__ = ("name", "where")

    plain = True

    def __init__(self, name: str = "", where: Callable[[Value], bool] | None = None) -> None:
        self.name = name
        self.where = where

    def hold(self, value: Value | None, search: Search) -> Held | None:
        if value is None:
            search.fail(lambda: f"{self.describe()} is missing")
        elif self.where is not None and not self.where(value):
            search.fail(lambda: f"{value.name!r} does not satisfy the condition on {self.describe()}")
        else:
            return search.hold(self, self.name, value)
        return None

    def describe(self) -> str:
        return self.name or "operand"


class Const(Pattern):
    """A constant. ``value``: the number that all its elements are, to ``tolerance`` (relative; 0 means exactly).

    ``where`` judges the array. Constants above 4096 elements never equal a number, so no weight is read for it.
    """

    __slots__ = ("name", "scalar", "tolerance", "value", "where")

    plain = True

    def __init__(
        self,
        name: str = "",
        value: float | None = None,
        *,
        where: Callable[[np.ndarray], bool] | None = None,
        scalar: bool = False,
        tolerance: float = 1e-5,
    ) -> None:
        self.name = name
        self.value = value
        self.where = where
        self.scalar = scalar
        self.tolerance = tolerance

    def hold(self, value: Value | None, search: Search) -> Held | None:
        tensor = constant_of(value)
        if value is None or tensor is None:
            search.fail(lambda: f"{'nothing' if value is None else repr(value.name)} is no constant")
        elif self.scalar and tensor.size != 1:
            search.fail(lambda: f"constant {value.name!r} has {tensor.size} elements, not one")
        elif self.value is not None and not self._equals(tensor.numpy() if tensor.size <= 4096 else None):
            search.fail(lambda: f"constant {value.name!r} is not {self.value:g}")
        elif self.where is not None and not self.where(tensor.numpy()):
            search.fail(lambda: f"constant {value.name!r} does not satisfy the condition on {self.describe()}")
        else:
            return search.hold(self, self.name, value)
        return None

    def _equals(self, array: np.ndarray | None) -> bool:
        if array is None or array.size == 0 or array.dtype.kind in "OSU":
            return False
        wanted = self.value
        assert wanted is not None
        return bool(np.all(np.abs(array.astype(np.float64) - wanted) <= self.tolerance * abs(wanted)))

    def describe(self) -> str:
        return self.name or ("a constant" if self.value is None else f"{self.value:g}")


class Maybe(Pattern):
    """An optional operand: missing, or what ``pattern`` says."""

    __slots__ = ("pattern", "plain")

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self.plain = pattern.plain

    def hold(self, value: Value | None, search: Search) -> Held | None:
        return NOTHING_HELD if value is None else self.pattern.hold(value, search)

    def match(self, value: Value | None, search: Search) -> Iterator[None]:
        if value is None:
            yield
        else:
            yield from self.pattern.match(value, search)

    @property
    def depth(self) -> int:
        return self.pattern.depth

    def heights(self, above: int, found: dict[str, int]) -> None:
        self.pattern.heights(above, found)

    def describe(self) -> str:
        return f"[{self.pattern.describe()}]"


class OneOf(Pattern):
    """The first alternative that fits."""

    __slots__ = ("alternatives",)

    def __init__(self, *alternatives: Pattern) -> None:
        self.alternatives = alternatives

    def match(self, value: Value | None, search: Search) -> Iterator[None]:
        for alternative in self.alternatives:
            yield from alternative.match(value, search)

    @property
    def depth(self) -> int:
        return max(alternative.depth for alternative in self.alternatives)

    def heights(self, above: int, found: dict[str, int]) -> None:
        for alternative in self.alternatives:
            alternative.heights(above, found)

    def describe(self) -> str:
        return " or ".join(alternative.describe() for alternative in self.alternatives)


class Rest(Pattern):
    """All remaining operands, none included, bound to ``name`` as a tuple; each must fit ``each``, in which names are
    of no use, since they would have to be the same for all."""

    __slots__ = ("each", "name")

    def __init__(self, name: str = "", each: Pattern | None = None) -> None:
        self.name = name
        self.each = each

    def match_all(self, values: Sequence[Value | None], search: Search) -> Iterator[None]:
        present = tuple(value for value in values if value is not None)
        if len(present) < len(values):
            search.fail(lambda: f"an operand of {self.describe()} is missing")
        elif self.each is None:
            yield from search.bind_rest(self.name, present)
        else:
            for _ in self._match_each(self.each, present, search):
                yield from search.bind_rest(self.name, present)

    def _match_each(self, each: Pattern, values: tuple[Value, ...], search: Search) -> Iterator[None]:
        if not values:
            yield
            return
        for _ in each.match(values[0], search):
            with search.apart():  # the next operand is matched afresh, though by the same pattern object
                yield from self._match_each(each, values[1:], search)

    @property
    def depth(self) -> int:
        return 0 if self.each is None else self.each.depth

    def heights(self, above: int, found: dict[str, int]) -> None:
        if self.each is not None:
            self.each.heights(above, found)

    def describe(self) -> str:
        return f"*{self.name}"


class Op(Pattern):
    """A node of one of ``ops`` whose operands fit ``inputs``; bound to ``name``.

    ``attributes`` maps a name to the value it must have, or to a predicate over it; an attribute that is absent has
    the value that ``defaults`` gives, else None. ``where`` judges the node. ``output`` is which result the value is.
    ``single_use``: the result has one reader. Unless ``leaks``, an inner node's results are read within the match
    only, so that nothing is computed twice after the rewrite.
    """

    __slots__ = (
        "_depth",
        "_feeders",
        "_flat",
        "_heights",
        "attributes",
        "defaults",
        "domain",
        "inputs",
        "leaks",
        "name",
        "ops",
        "output",
        "plain",
        "single_use",
        "where",
    )

    def __init__(
        self,
        ops: str | tuple[str, ...],
        *inputs: Pattern,
        name: str = "",
        domain: str = "",
        attributes: Mapping[str, Object] | None = None,
        defaults: Mapping[str, Object] | None = None,
        where: Callable[[Node], bool] | None = None,
        output: int = 0,
        single_use: bool = False,
        leaks: bool = False,
    ) -> None:
        for place, pattern in enumerate(inputs):
            if not isinstance(pattern, Pattern | Rest):
                raise TypeError(f"{ops}: operand {place} is {pattern!r}, no pattern; Any({pattern!r}) names an operand")
            if isinstance(pattern, Rest) and place < len(inputs) - 1:
                raise TypeError(f"{ops}: a Rest takes all operands that are left, so it stands last")
        self.ops = (ops,) if isinstance(ops, str) else ops
        self.inputs = inputs
        self.name = name
        self.domain = domain
        self.attributes = dict(attributes or {})
        self.defaults = dict(defaults or {})
        self.where = where
        self.output = output
        self.single_use = single_use
        self.leaks = leaks
        self._depth = 1 + max((pattern.depth for pattern in inputs), default=0)
        self._feeders = tuple((i, makers) for i, pattern in enumerate(inputs) if (makers := _makers(pattern)))
        self._flat = all(pattern.plain for pattern in inputs)
        self.plain = self._flat and _COMMUTATIVE.isdisjoint(self.ops)
        self._heights: dict[str, int] = {}
        """Of the operands; noted once, since a pattern may stand in many places of another."""
        for pattern in inputs:
            pattern.heights(1, self._heights)

    @property
    def depth(self) -> int:
        return self._depth

    def heights(self, above: int, found: dict[str, int]) -> None:
        for op in self.ops:
            found[op] = max(found.get(op, 0), above)
        for op, height in self._heights.items():
            found[op] = max(found.get(op, 0), above + height)

    def describe(self) -> str:
        return "/".join(self.ops)

    def match(self, value: Value | None, search: Search) -> Iterator[None]:
        node = self._maker(value, search)
        if node is None:
            return
        if search.seen(self) is not None:
            yield
        else:
            yield from self.match_node(node, search)

    def hold(self, value: Value | None, search: Search) -> Held | None:
        node = self._maker(value, search)
        if node is None:
            return None
        return self._hold_node(node, node.inputs, search) if search.seen(self) is None else NOTHING_HELD

    def _maker(self, value: Value | None, search: Search) -> Node | None:
        """The node that makes ``value``, where nothing but its own form may speak against it."""
        node = None if value is None else value.producer
        if node is None or value is None:
            search.fail(lambda: f"expected {self.describe()}, found {_origin(value)}")
        elif node.graph is not search.graph:
            search.fail(lambda: f"{node.op} {node.label!r} stands outside of the body")
        elif value.index != self.output:
            search.fail(lambda: f"expected result {self.output} of {node.op} {node.label!r}, found {value.index}")
        elif self.single_use and (len(value.uses) != 1 or value.is_output):
            search.fail(lambda: f"the result of {node.op} {node.label!r} has {len(value.uses)} uses")
        else:
            known = search.seen(self)
            if known is None or known is value:
                return node
            search.fail(lambda: f"{value.name!r} is not {known.name!r}")
        return None

    @property
    def makers(self) -> frozenset[str]:
        """Operators of which one has to make an operand of the node; empty where none has to."""
        return min((ops for _, ops in self._feeders), key=len, default=frozenset())

    def fed_by(self, makers: Sequence[str], node: Node) -> bool:
        """False where ``makers``, the operators that make the operands of ``node``, show that it does not fit."""
        commutes = node.op in _COMMUTATIVE
        for index, ops in self._feeders:
            if commutes:
                if ops.isdisjoint(makers):
                    return False
            elif index >= len(makers) or makers[index] not in ops:
                return False
        return True

    def match_node(self, node: Node, search: Search) -> Iterator[None]:
        """Yield once for each way in which the node itself fits."""
        if self._flat:
            for operands in self._orders(node):
                held = self._hold_node(node, operands, search)
                if held is not None:
                    yield
                    search.let_go(held)
        elif self._fits(node, search):
            key = search.enter(self, self.name, self.output, node)
            for operands in self._orders(node):
                yield from self._match_operands(operands, node, search)
            search.let_go((key, "", []))

    def _fits(self, node: Node, search: Search) -> bool:
        """Whether operator, attributes and condition are as they should be."""
        if node.op not in self.ops or (node.domain or "ai.onnx") != (self.domain or "ai.onnx"):
            search.fail(lambda: f"expected {self.describe()}, found {node.op} {node.label!r}")
            return False
        for key, wanted in self.attributes.items():
            found = node.get(key, self.defaults.get(key))
            if not (wanted(found) if callable(wanted) else wanted == found):
                search.fail(partial(_has, node, key, found))
                return False
        if self.where is not None and not self.where(node):
            search.fail(lambda: f"{node.op} {node.label!r} does not satisfy the rule's condition on it")
            return False
        return True

    def _hold_node(self, node: Node, operands: Sequence[Value | None], search: Search) -> Held | None:
        """Where all operands are plain: bind the node and them, in this order; None where that does not fit."""
        if not self._fits(node, search):
            return None
        key = search.enter(self, self.name, self.output, node)
        held: list[Held] = []
        whole: Held = (key, "", held)
        if not self._has_room(operands, len(self.inputs), node, search):
            search.let_go(whole)
            return None
        count = len(operands)
        for index, pattern in enumerate(self.inputs):
            binding = pattern.hold(operands[index] if index < count else None, search)
            if binding is None:
                search.let_go(whole)
                return None
            held.append(binding)
        return whole

    def _has_room(self, operands: Sequence[Value | None], places: int, node: Node, search: Search) -> bool:
        """Whether there are no more operands than ``places``; no pattern for them at all takes any."""
        if places and len(operands) > places and any(value is not None for value in operands[places:]):
            search.fail(lambda: f"{node.op} {node.label!r} has {len(operands)} operands, expected {places}")
            return False
        return True

    def _orders(self, node: Node) -> Iterable[tuple[Value | None, ...]]:
        operands = node.inputs
        if node.op not in _COMMUTATIVE or not 1 < len(operands) <= _MOST_PERMUTED or len(self.inputs) < 2:
            return (operands,)
        # One value in two places makes orders that are equal; trying them again would double the work at each level.
        return dict.fromkeys(permutations(operands))

    def _match_operands(self, operands: tuple[Value | None, ...], node: Node, search: Search) -> Iterator[None]:
        rest = self.inputs[-1] if self.inputs and isinstance(self.inputs[-1], Rest) else None
        fixed = self.inputs[:-1] if rest is not None else self.inputs
        if rest is None and not self._has_room(operands, len(fixed), node, search):
            return
        pairs = [(pattern, operands[i] if i < len(operands) else None) for i, pattern in enumerate(fixed)]
        for _ in _in_turn(pairs, 0, search):
            if rest is None:
                yield
            else:
                yield from rest.match_all(operands[len(fixed) :], search)


def _makers(pattern: Pattern) -> frozenset[str]:
    """The operators of which one has to make an operand that fits; empty where anything may."""
    match pattern:
        case Op():
            return frozenset(pattern.ops)
        case OneOf():
            sets = [_makers(alternative) for alternative in pattern.alternatives]
            return frozenset().union(*sets) if all(sets) else frozenset()
        case _:
            return frozenset()


def _in_turn(pairs: Sequence[tuple[Pattern, Value | None]], first: int, search: Search) -> Iterator[None]:
    """Match each value, from the ``first``, to its pattern, one within the other, so that a later failure tries the
    earlier again."""
    held: list[Held] = []
    for index in range(first, len(pairs)):
        pattern, value = pairs[index]
        if pattern.plain:
            binding = pattern.hold(value, search)
            if binding is None:
                break
            held.append(binding)
            continue
        for _ in pattern.match(value, search):
            yield from _in_turn(pairs, index + 1, search)
        break
    else:
        yield
    for binding in reversed(held):
        search.let_go(binding)


def _origin(value: Value | None) -> str:
    if value is None:
        return "nothing"
    if value.producer is not None:
        return f"{value.producer.op} {value.producer.label!r}"
    return f"{'constant' if value.const is not None else 'input'} {value.name!r}"


def _has(node: Node, key: str, found: Object) -> str:
    return f"{node.op} {node.label!r} has {key}={found!r}"
