"""Arithmetic on dimensions: integers, symbols, and polynomials of symbols with canonical names.

``2*N`` plus 1 is the dimension named ``2*N+1``; ``floor((H+1)/2)`` names what does not divide. Equal results get equal
names, so two branches of a graph that compute the same size are seen to agree. A negative coefficient is written
``+-1*N``, so that a model's own symbol ``past-seq`` is never taken for a difference; any name that is no such
expression is a symbol. Names longer than 60 characters and numbers beyond 64 bits become unknown.
"""

from __future__ import annotations

import re
from functools import lru_cache

from qir.ir import Dim, Shape

__all__ = [
    "add",
    "broadcast",
    "ceil_divide",
    "divide",
    "floor_divide",
    "join",
    "least",
    "merge",
    "multiply",
    "nonnegative",
]

_LONGEST = 60
_ATOM = re.compile(r"[A-Za-z_][\w.]*(\(.*\))?")
_FLOOR = re.compile(r"floor\((.*)/(\d+)\)")

Monomial = tuple[str, ...]
Polynomial = dict[Monomial, int]


def add(a: Dim, b: Dim, sign: int = 1) -> Dim:
    """a + sign * b."""
    if isinstance(a, int) and isinstance(b, int):
        return _in_64_bits(a + sign * b)
    if a is None or b is None:
        return None
    total = dict(_parse(a))
    for monomial, coefficient in _parse(b).items():
        total[monomial] = total.get(monomial, 0) + sign * coefficient
    return _format(total)


def _in_64_bits(size: int) -> int | None:
    """A file's sizes have 64 bits; what goes beyond them is a size that nothing has."""
    return size if -(1 << 63) <= size < 1 << 63 else None


def multiply(a: Dim, b: Dim) -> Dim:
    """a * b."""
    if isinstance(a, int) and isinstance(b, int):
        return _in_64_bits(a * b)
    if a == 1:
        return b
    if b == 1:
        return a
    if a == 0 or b == 0:
        return 0
    if a is None or b is None:
        return None
    product: Polynomial = {}
    for left, x in _parse(a).items():
        for right, y in _parse(b).items():
            monomial = tuple(sorted(left + right))
            product[monomial] = product.get(monomial, 0) + x * y
    return _format(product)


def divide(a: Dim, b: Dim) -> Dim:
    """a / b where that is exact for all sizes (they are taken to be positive), else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    if a is None or b is None or b == 0:
        return None
    if a == b:
        return 1
    divisor = _parse(b)
    if len(divisor) != 1:
        return None
    ((symbols, factor),) = divisor.items()
    quotient: Polynomial = {}
    for monomial, coefficient in _parse(a).items():
        rest = list(monomial)
        for symbol in symbols:
            if symbol not in rest:
                return None
            rest.remove(symbol)
        if coefficient % factor:
            return None
        quotient[tuple(rest)] = coefficient // factor
    return _format(quotient)


def floor_divide(a: Dim, by: int) -> Dim:
    """floor(a / by), by > 0."""
    if isinstance(a, int):
        return a // by
    if a is None or by <= 0:
        return None
    exact = divide(a, by)
    if exact is not None:
        return exact
    # floor((floor(p/q)+c)/by) is floor((p+c*q)/(q*by)); then whole parts come out of the fraction, so that
    # floor((H+3)/2) and floor((H+1)/2)+1 get the same name.
    polynomial = dict(_parse(a))
    constant = polynomial.pop((), 0)
    if len(polynomial) == 1 and next(iter(polynomial.values())) == 1:
        ((symbols, _),) = polynomial.items()
        inner = _FLOOR.fullmatch(symbols[0]) if len(symbols) == 1 else None
        if inner is not None:
            fraction = inner[1].removeprefix("(").removesuffix(")") if inner[1].startswith("(") else inner[1]
            return floor_divide(add(fraction, constant * int(inner[2])), int(inner[2]) * by)
    name = _format({**polynomial, (): constant % by})
    if not isinstance(name, str):
        return None
    plain = name.isidentifier()
    return _bounded(add(f"floor({name if plain else f'({name})'}/{by})", constant // by))


def least(a: Dim, b: Dim) -> Dim:
    """min(a, b)."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    if a == b:
        return a
    return None if a is None or b is None else _bounded(f"min({a},{b})")


def _bounded(dim: Dim) -> Dim:
    return None if isinstance(dim, str) and len(dim) > _LONGEST else dim


def ceil_divide(a: Dim, by: int) -> Dim:
    """ceil(a / by), by > 0."""
    return floor_divide(add(a, by - 1), by)


def nonnegative(dim: Dim) -> bool:
    """Surely not below zero: symbols are sizes."""
    return dim >= 0 if isinstance(dim, int) else dim is not None and all(c >= 0 for c in _parse(dim).values())


def broadcast(a: Dim, b: Dim) -> Dim:
    """The size of two axes broadcast together; None where it is unknown. Raises ValueError where they do not fit."""
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int):
        if isinstance(b, int):
            raise ValueError(f"sizes {a} and {b} do not broadcast")
        return a
    if isinstance(b, int):
        return b
    # A table cut to min(n,512) rows fits an axis of n only where it has n rows (or both have 1).
    if a is not None and b is not None:
        if b.startswith(f"min({a},"):
            return a
        if a.startswith(f"min({b},"):
            return b
    return None


def merge(recorded: Shape | None, inferred: Shape | None) -> Shape | None:
    """What both shapes say together: sizes over symbols over nothing, the inferred symbol over the recorded one.

    Raises ValueError where they contradict each other.
    """
    if recorded is None or recorded == inferred:
        return inferred
    if inferred is None:
        return recorded
    if len(recorded) != len(inferred):
        raise ValueError("different ranks")
    return tuple(map(_merge_dim, recorded, inferred))


def _merge_dim(recorded: Dim, inferred: Dim) -> Dim:
    if isinstance(inferred, int):
        if isinstance(recorded, int) and recorded != inferred:
            raise ValueError("different sizes")
        return inferred
    if isinstance(recorded, int) or inferred is None:
        return recorded
    # A plain symbol of the user's is better to read than an expression of ours.
    return recorded if isinstance(recorded, str) and not inferred.isidentifier() else inferred


def join(a: Shape | None, b: Shape | None) -> Shape | None:
    """What is true of both shapes."""
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(x if x == y else None for x, y in zip(a, b, strict=True))


@lru_cache(maxsize=65536)
def _parse(dim: int | str) -> Polynomial:
    if isinstance(dim, int):
        return {(): dim} if dim else {}
    if dim.isidentifier():
        return {(dim,): 1}
    polynomial: Polynomial = {}
    text, minus, constant = dim.rpartition("-")
    if minus and constant.isdigit() and text and text[-1] not in "+*":
        polynomial[()] = -int(constant)
    else:
        text = dim
    for term in _split(text, "+"):
        if term.isdigit():
            polynomial[()] = polynomial.get((), 0) + int(term)
            continue
        factors = _split(term, "*")
        coefficient = int(factors.pop(0)) if factors[0].removeprefix("-").isdigit() else 1
        if not factors or not all(map(_ATOM.fullmatch, factors)):
            return {(dim,): 1}
        monomial = tuple(sorted(factors))
        polynomial[monomial] = polynomial.get(monomial, 0) + coefficient
    return polynomial


def _split(text: str, separator: str) -> list[str]:
    """Split outside of parentheses."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == separator and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def _format(polynomial: Polynomial) -> Dim:
    constant = polynomial.get((), 0)
    terms = []
    for monomial in sorted(m for m, c in polynomial.items() if m and c):
        coefficient = polynomial[monomial]
        name = "*".join(monomial)
        terms.append(name if coefficient == 1 else f"{coefficient}*{name}")
    if not terms:
        return constant
    text = "+".join(terms) + (f"+{constant}" if constant > 0 else str(constant) if constant else "")
    return text if len(text) <= _LONGEST else None
