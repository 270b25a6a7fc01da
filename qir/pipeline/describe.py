"""What a pass says about itself, taken from its class: docstring, before/after, options with their own docstrings."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import dataclass

from qir.pipeline.contract import Effect, Pass
from qir.pipeline.options import options_of

__all__ = ["OptionDoc", "PassDoc", "describe_pass"]


@dataclass(frozen=True, slots=True)
class OptionDoc:
    """``default`` is pipeline text; None where the option must be given. ``text`` may be empty."""

    name: str
    type_text: str
    default: str | None
    text: str


@dataclass(frozen=True, slots=True)
class PassDoc:
    """``text`` is the docstring, ``summary`` its first sentence, ``before`` and ``after`` the IR in it, or empty."""

    name: str
    effect: Effect
    source: str
    summary: str
    text: str
    before: str
    after: str
    options: tuple[OptionDoc, ...]


def describe_pass(cls: type[Pass], source: str) -> PassDoc:
    """``source`` is where the pass comes from, as the registry says."""
    own_doc = vars(cls).get("__doc__") or ""
    # A dataclass without a docstring gets its signature for one.
    text = "" if own_doc.startswith(f"{cls.__name__}(") else inspect.cleandoc(own_doc)
    texts = _field_docs(cls)
    options = tuple(
        OptionDoc(option.name, option.type_text, option.default_text, texts.get(option.field, ""))
        for option in options_of(cls)
    )
    return PassDoc(
        cls.name, cls.effect, source, _summary(text), text, _block(text, "Before"), _block(text, "After"), options
    )


def _summary(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[0].split())
    sentence = re.match(r".*?[.:;](?=\s|$)", paragraph)
    return (sentence[0] if sentence else paragraph).rstrip(".:;")


def _block(text: str, title: str) -> str:
    """The indented lines below ``Title::`` or ``Title, where ...::``."""
    match = re.search(rf"^{title}\b[^\n]*::\n\n((?:(?:[ ]+.*)?\n?)*)", text, re.MULTILINE)
    return textwrap.dedent(match[1]).strip() if match else ""


def _field_docs(cls: type[Pass]) -> dict[str, str]:
    """The string under each field in the source; nothing where Python has no source to show."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not (issubclass(base, Pass) and base is not Pass):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found
