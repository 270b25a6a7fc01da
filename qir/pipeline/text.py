"""The syntax of pipelines: `fuse{only=conv-bn max-rounds=3},calibrate{names=[a,b]}`. Knows no passes and no types.

    pipeline := [step ("," step)*]          step  := word ["{" option* "}"]
    option   := word ["=" value]            value := item | "[" [item ("," item)*] "]"
    item     := word | a JSON string

A word is anything without white space and without any of `{}[]=,"`. An option without a value is a flag.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from qir.errors import OptionError

__all__ = ["Quoted", "Raw", "Step", "format_steps", "format_value", "is_word", "parse_steps"]


@dataclass(frozen=True, slots=True)
class Quoted:
    """A text in quotation marks: never a number, a choice or `none`."""

    text: str


Raw = bool | int | float | str | Quoted | list["Raw"]
"""The value of an option before its type is known. From pipeline text: a word, Quoted, a list, or True for a flag."""


@dataclass(slots=True)
class Step:
    """One name of a pipeline with its options as written."""

    name: str
    options: dict[str, Raw] = field(default_factory=dict)


_TOKEN = re.compile(r'\s*(?:(?P<mark>[{}\[\]=,])|(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<word>[^\s{}\[\]=,"]+))')
_WORD = re.compile(r'[^\s{}\[\]=,"]+')


def is_word(text: str) -> bool:
    """Can stand without quotation marks."""
    return _WORD.fullmatch(text) is not None


def parse_steps(text: str) -> list[Step]:
    """The steps of a pipeline; a trailing comma is allowed. Raises OptionError, showing where in the text it is."""
    return _Parser(text).pipeline()


def format_steps(steps: Iterable[Step]) -> str:
    """The inverse of ``parse_steps``."""
    return ",".join(step.name + _format_options(step.options) for step in steps)


def format_value(value: Raw) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case list():
            return f"[{','.join(map(format_value, value))}]"
        case Quoted():
            return json.dumps(value.text, ensure_ascii=False)
        case str():
            return value if is_word(value) else json.dumps(value, ensure_ascii=False)
        case _:
            return repr(value)


def _format_options(options: Mapping[str, Raw]) -> str:
    if not options:
        return ""
    parts = [name if value is True else f"{name}={format_value(value)}" for name, value in options.items()]
    return f"{{{' '.join(parts)}}}"


class _Parser:
    """Recursive descent over the tokens, one ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._kind: str | None = None
        self._token = ""
        self._start = 0
        self._advance()

    def pipeline(self) -> list[Step]:
        steps: list[Step] = []
        while self._kind is not None:
            steps.append(self._step())
            if self._kind is not None:
                self._take(",", "',' between two passes")
        return steps

    def _step(self) -> Step:
        step = Step(self._word("the name of a pass"))
        if self._token == "{" and self._kind == "mark":
            self._advance()
            while not self._at("}"):
                name = self._word("an option or '}'")
                if name in step.options:
                    raise OptionError(f"pass {step.name!r}: option {name!r} is given twice")
                step.options[name] = self._value() if self._skip("=") else True
                self._skip(",")
            self._advance()
        return step

    def _value(self) -> Raw:
        if not self._skip("["):
            return self._item()
        items: list[Raw] = []
        while not self._at("]"):
            items.append(self._item())
            if not self._at("]"):
                self._take(",", "',' or ']'")
        self._advance()
        return items

    def _item(self) -> Raw:
        if self._kind == "quoted":
            token = self._token
            try:
                text = json.loads(token, strict=False)
            except json.JSONDecodeError as error:
                raise self._error(f"a valid escape ({error.msg})") from None
            self._advance()
            return Quoted(text)
        return self._word("a value")

    def _word(self, expected: str) -> str:
        if self._kind != "word":
            raise self._error(expected)
        word = self._token
        self._advance()
        return word

    def _at(self, mark: str) -> bool:
        return self._kind == "mark" and self._token == mark

    def _skip(self, mark: str) -> bool:
        if found := self._at(mark):
            self._advance()
        return found

    def _take(self, mark: str, expected: str) -> None:
        if not self._skip(mark):
            raise self._error(expected)

    def _advance(self) -> None:
        match = _TOKEN.match(self._text, self._position)
        if match is None:
            self._start = len(self._text) - len(self._text[self._position :].lstrip())
            self._kind, self._token = None, ""
            if self._start < len(self._text):
                raise self._error("a closing quotation mark")
            return
        self._kind = match.lastgroup
        assert self._kind is not None
        self._token = match[self._kind]
        self._start = match.start(self._kind)
        self._position = match.end()

    def _error(self, expected: str) -> OptionError:
        before = self._text[max(0, self._start - 30) : self._start]
        after = self._text[self._start : self._start + 10]
        found = f"{self._token!r}" if self._kind else "the end" if self._start >= len(self._text) else repr(after)
        return OptionError(
            f"pipeline text: expected {expected} but found {found} at column {self._start + 1}: "
            f"{before!r} >here> {after!r}"
        )
