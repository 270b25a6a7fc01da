"""Reads attributes from IR text. See ``qir.ir.printer`` for the grammar."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from qir.ir.attribute import Attribute, AttrKind
from qir.ir.graph import Graph
from qir.ir.lexer import Cursor, Kind
from qir.ir.parse_atoms import TensorReader, bracketed, parse_residue, parse_type

__all__ = ["AttributeReader"]

_KINDS = {kind.name.lower(): kind for kind in AttrKind}
_EMPTY_LISTS = {name: kind for name, kind in _KINDS.items() if kind.is_list}


class AttributeReader:
    """``read_graph`` reads a body from behind the word ``graph``."""

    def __init__(self, at: Cursor, tensors: TensorReader, read_graph: Callable[[Any], Graph]) -> None:
        self._at = at
        self._tensors = tensors
        self._read_graph = read_graph

    def read(self, scope: Any) -> Attribute:
        """``name=value``; ``scope`` goes to the reader of graphs."""
        at = self._at
        name = at.word("the name of an attribute")
        at.need("=")
        ref = ""
        value: Any = None
        if at.kind == Kind.NAME and at.text[0] == "@":
            ref = at.name()
            at.need(":")
            kind = self._kind()
        elif at.take("none"):
            at.need(":")
            kind = self._kind()
        elif at.at("["):
            items = bracketed(at, lambda: self._item(scope, name))
            kind, value = self._list(name, items)
        elif at.kind == Kind.WORD and (listed := _EMPTY_LISTS.get(at.text)) is not None:
            at.advance()
            at.need("[")
            at.need("]")
            kind, value = listed, ()
        else:
            kind, value = self._item(scope, name)
        notes: dict[str, Any] = {}
        if at.take("("):
            while not at.take(")"):
                if notes:
                    at.need(",")
                if at.take("doc"):
                    at.need("=")
                    notes["doc"] = at.string()
                else:
                    at.need("extra")
                    at.need("=")
                    notes["extra"] = parse_residue(at)
        return Attribute(name, kind, value, ref, **notes)

    def _kind(self) -> AttrKind:
        at = self._at
        kind = _KINDS.get(at.text)
        if kind is None:
            at.expected("a kind of attribute such as int, floats or tensor")
        at.advance()
        return kind

    def _list(self, name: str, items: list[tuple[AttrKind, Any]]) -> tuple[AttrKind, Any]:
        kinds = {kind for kind, _ in items}
        if not kinds:
            self._at.fail(f"the empty list of {name!r} needs its kind, such as ints[]")
        if len(kinds) > 1:
            self._at.fail(f"the list of {name!r} mixes {' and '.join(sorted(kind.name.lower() for kind in kinds))}")
        return AttrKind[f"{kinds.pop().name}S"], tuple(item for _, item in items)

    def _item(self, scope: Any, owner: str) -> tuple[AttrKind, Any]:
        at = self._at
        if at.kind == Kind.NUMBER:
            if at.text.lstrip("-").isdigit():
                return AttrKind.INT, at.integer()
            return AttrKind.FLOAT, self._float()
        if at.kind == Kind.STRING:
            position = at.position
            content = at.content("a string")
            try:
                return AttrKind.STRING, content if isinstance(content, bytes) else content.encode()
            except UnicodeEncodeError:
                at.fail("a string that is no Unicode (a lone surrogate)", position)
        if at.take("graph"):
            return AttrKind.GRAPH, self._read_graph(scope)
        if at.take("type"):
            return AttrKind.TYPE, parse_type(at)
        if at.at("sparse"):
            return AttrKind.SPARSE_TENSOR, self._tensors.sparse(owner)
        if at.kind == Kind.WORD:
            return AttrKind.TENSOR, self._tensors.typed(owner)
        at.expected("an attribute's value")

    def _float(self) -> float:
        at = self._at
        value = at.number()
        if value == value or not at.take("("):
            return value
        if at.kind != Kind.HEX or len(at.text) != 18:
            at.expected("the 16 hex digits of a NaN")
        (bits,) = struct.unpack(">d", bytes.fromhex(at.next_text()[2:]))
        at.need(")")
        return float(bits)
