"""Tokens of the IR text form, and a cursor over them that knows lines and columns. See ``qir.ir.printer``."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from typing import NoReturn

from qir.errors import ParseError
from qir.ir.literals import parse_float, unquote

__all__ = ["Cursor", "Kind"]


class Kind(enum.IntEnum):
    """Kinds of tokens; the numbers are those of the groups in ``_TOKEN`` (its last group is the end)."""

    END = 0
    PUNCTUATION = 1
    NAME = 2
    WORD = 3
    NUMBER = 4
    STRING = 5
    HASH = 6
    HEX = 7
    BAD = 8


# Possessive everywhere: no input makes it go back, so lexing is linear.
_STRING = r'"(?:[^"\\\n]|\\[^\n])*+"'
_TOKEN = re.compile(
    rf"""(?:\s++|//[^\n]*+)*+ (?:
      (->|\.\.\.|[()\[\]{{}},:=.?*!])
    | ([%@](?:(?!:)(?:[\w./]++|-(?!>)|:++(?=[\w./\-]))++|{_STRING}))
    | ((?!(?:inf|nan)(?!\w))[A-Za-z_]\w*+(?:[.\-]\w++)*+(?!"))
    | (-?+(?:inf|nan)(?!\w)|-?+(?!0x)\d++(?:\.\d*+)?+(?:[eE][+-]?+\d++)?+d?+(?!\w))
    | (b?+{_STRING})
    | (\#[0-9a-f]++)
    | (0x[0-9a-f]*+)
    | (.)
    | (\Z)
    )""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_MAX_DEPTH = 64


class Cursor:
    """One token at a time: ``kind`` and ``text`` are those of the current one."""

    __slots__ = ("_depth", "_position", "_source", "_tokens", "kind", "text")

    kind: Kind | int
    text: str

    def __init__(self, source: str) -> None:
        self._source = source
        self._tokens: Iterator[re.Match[str]] = _TOKEN.finditer(source)
        self._depth = 0
        self._position = 0
        self.advance()

    @property
    def position(self) -> int:
        """Where the current token starts, in characters from the start of the text."""
        return self._position

    def advance(self) -> None:
        match = next(self._tokens, None)
        kind = None if match is None else match.lastindex
        if match is None or kind is None or kind > 8:
            self.kind, self.text, self._position = Kind.END, "", len(self._source)
            return
        self.kind = kind
        self.text = match[kind]
        self._position = match.start(kind)
        if kind == 8:
            unclosed = self.text == '"' or self._source.startswith(('%"', '@"', 'b"'), self._position)
            self.fail(
                "a string that does not end on its line" if unclosed else f"character {self.text!r} means nothing"
            )

    def fail(self, problem: str, position: int | None = None) -> NoReturn:
        """Raise ParseError at the current token, or at a position."""
        at = self._position if position is None else position
        line = self._source.count("\n", 0, at) + 1
        column = at - (self._source.rfind("\n", 0, at) + 1) + 1
        raise ParseError(f"{line}:{column}: {problem}")

    def expected(self, what: str) -> NoReturn:
        found = "the end of the text" if self.kind == Kind.END else repr(self.text[:40])
        hint = ""
        if self.text == "...":
            hint = "; shortened IR text cannot be read back, print it in full"
        elif self.text in ("[", "(") and self._source[: self._position].endswith(tuple("0123456789")):
            hint = "; a type stands after ': ' with a space, since names may hold ':'"
        self.fail(f"expected {what}, found {found}{hint}")

    def at(self, text: str) -> bool:
        """The current token is this punctuation or word."""
        return self.text == text and self.kind in (Kind.PUNCTUATION, Kind.WORD)

    def take(self, text: str) -> bool:
        """Pass over this punctuation or word if it is the current token."""
        if self.text == text and self.kind in (Kind.PUNCTUATION, Kind.WORD):
            self.advance()
            return True
        return False

    def need(self, text: str) -> None:
        if not self.take(text):
            self.expected(repr(text))

    def deeper(self) -> None:
        """Count one level of nesting; ``shallower`` ends it. Raises ParseError where there are too many."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self.fail(f"nested more than {_MAX_DEPTH} levels deep")

    def shallower(self) -> None:
        self._depth -= 1

    # Tokens with a content

    def next_text(self) -> str:
        text = self.text
        self.advance()
        return text

    def string(self, what: str = "a string in double quotes") -> str:
        content = self.content(what)
        if isinstance(content, bytes):
            self.fail(f'expected {what}, found bytes b"..."')
        return content

    def content(self, what: str) -> str | bytes:
        """Of a ``"..."`` or ``b"..."`` token."""
        if self.kind != Kind.STRING:
            self.expected(what)
        try:
            content = unquote(self.text)
        except ValueError as error:
            self.fail(str(error))
        self.advance()
        return content

    def word(self, what: str) -> str:
        """A bare word or a string."""
        if self.kind == Kind.STRING:
            return self.string(what)
        if self.kind != Kind.WORD:
            self.expected(what)
        return self.next_text()

    def name(self, what: str = "a value such as %x or @w") -> str:
        if self.kind != Kind.NAME:
            self.expected(what)
        text = self.text[1:]
        if text[0] == '"':
            try:
                text = str(unquote(text))
            except ValueError as error:
                self.fail(str(error))
        self.advance()
        return text

    def integer(self, what: str = "an integer") -> int:
        if self.kind != Kind.NUMBER or not self.text.lstrip("-").isdigit():
            self.expected(what)
        if len(self.text) > 40:
            self.fail("an integer of more than 40 digits")
        return int(self.next_text())

    def number(self, what: str = "a number") -> float:
        """float32, or double where it ends in ``d``."""
        if self.kind != Kind.NUMBER:
            self.expected(what)
        try:
            value = parse_float(self.text)
        except ValueError as error:
            self.fail(str(error))
        self.advance()
        return value
