"""What the simplifications share: the table that they stand in, and the questions and edits that most of them need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qir.ir import Node, Value
from qir.rewriting.edits import forward, ints_of, is_standard

__all__ = [
    "Rules",
    "Scope",
    "Simplifier",
    "feeder",
    "is_quantized",
    "keeps_order",
    "list_operand",
    "pass_through",
    "replace_value",
    "rule_table",
]


@dataclass(slots=True)
class Scope:
    """What a simplification must know of the graph around the node."""

    opset: int
    make_constant: Callable[[Node, np.ndarray, str], Value]
    """A constant for a node to read; an equal one that is there already is taken."""


Simplifier = Callable[[Node, Scope], bool]
"""Edits the node or its readers where that simplifies; whether it did."""
Rules = list[tuple[str, tuple[str, ...], Simplifier]]


def rule_table() -> tuple[Rules, Callable[..., Callable[[Simplifier], Simplifier]]]:
    """A table and the decorator that puts a function into it, under a statistic and for some ops."""
    table: Rules = []

    def rule(statistic: str, *ops: str) -> Callable[[Simplifier], Simplifier]:
        def register(function: Simplifier) -> Simplifier:
            table.append((statistic, ops, function))
            return function

        return register

    return table, rule


def pass_through(node: Node, source: Value | None) -> bool:
    """Let the readers of the node's only result read ``source``; True where that changed anything."""
    return source is not None and replace_value(node.output, source)


def replace_value(old: Value, new: Value) -> bool:
    """The same for one of several results."""
    if not old.uses:
        return False
    before = len(old.uses)
    forward(old, new)
    return len(old.uses) < before


def feeder(value: Value | None, *ops: str) -> Node | None:
    """The node that makes ``value`` as its first result, where it is one of ``ops``."""
    producer = None if value is None else value.producer
    if producer is None or value is not producer.output or producer.op not in ops or not is_standard(producer):
        return None
    return producer


def is_quantized(value: Value | None) -> bool:
    return value is not None and value.quant is not None


def keeps_order(node: Node) -> bool:
    """A transpose that moves only axes of size 1 leaves the elements in their order."""
    source, perm = node.input(0), node.get("perm")
    shape = None if source is None else source.shape
    if shape is None:
        return False
    moved = [axis for axis in perm or reversed(range(len(shape))) if shape[axis] != 1]
    return moved == sorted(moved)


def list_operand(node: Node, name: str, index: int, since: int, scope: Scope) -> tuple[int, ...] | None:
    """An integer list that is an attribute before opset ``since`` and an input from then on."""
    if scope.opset >= since:
        return ints_of(node.input(index))
    attribute = node.get(name)
    return None if attribute is None else tuple(attribute)
