"""Tokens of the IR text form, and a cursor over them that knows lines and columns. See ``qir.ir.printer``."""

from __future__ import annotations

import re
from typing import Final, NoReturn

from qir.errors import ParseError
from qir.ir.literals import parse_float, unquote

__all__ = ["Cursor", "Kind"]


class Kind:
    """Kinds of tokens: the numbers of the groups in ``_TOKEN`` (plain ints, since they are compared for each token)."""

    PUNCTUATION: Final = 1
    NAME: Final = 2
    WORD: Final = 3
    NUMBER: Final = 4
    STRING: Final = 5
    HASH: Final = 6
    HEX: Final = 7
    BAD: Final = 8
    END: Final = 9


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

    __slots__ = ("_depth", "_match", "_next", "_source", "kind", "text")

    kind: int
    text: str

    def __init__(self, source: str) -> None:
        self._source = source
        self._next = _TOKEN.finditer(source).__next__
        self._depth = 0
        self.advance()

    @property
    def position(self) -> int:
        """Where the current token starts, in characters from the start of the text."""
        return self._match.start(self.kind)

    def advance(self) -> None:
        """Go to the next token; not beyond the end, which nothing takes."""
        match = self._match = self._next()
        self.kind = kind = match.lastindex or Kind.BAD
        self.text = match[kind]
        if kind == 8:
            unclosed = self.text == '"' or self._source.startswith(('%"', '@"', 'b"'), self.position)
            self.fail("this string does not end on its line" if unclosed else f"no token starts with {self.text!r}")

    def fail(self, problem: str, position: int | None = None) -> NoReturn:
        """Raise ParseError at the current token, or at a position."""
        at = self.position if position is None else position
        line = self._source.count("\n", 0, at) + 1
        column = at - (self._source.rfind("\n", 0, at) + 1) + 1
        raise ParseError(f"{line}:{column}: {problem}")

    def expected(self, what: str) -> NoReturn:
        found = "the end of the text" if self.kind == Kind.END else repr(self.text[:40])
        hint = ""
        if self.text == "...":
            hint = "; shortened IR text cannot be read back, print it in full"
        elif self.text in ("[", "(") and self._source[self.position - 1 : self.position].isalnum():
            hint = "; a type stands after ': ' with a space, since names may hold ':'"
        self.fail(f"expected {what}, found {found}{hint}")

    def at(self, text: str) -> bool:
        """The current token is this punctuation or word."""
        return self.text == text and (self.kind == 1 or self.kind == 3)

    def take(self, text: str) -> bool:
        """Pass over this punctuation or word if it is the current token."""
        if self.text == text and (self.kind == 1 or self.kind == 3):
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
