"""Options: the fields of a pass's dataclass, read from pipeline text or TOML and written back, by one function each.

A field may be a bool, int, float, str, an Enum, a Literal, a tuple of those (of any or of fixed length), and a union,
`X | None` above all. The field `max_rounds` is the option `max-rounds`. An enum member is written by its value where
all values are texts, else by its name in kebab-case.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from qir.errors import OptionError, suggest
from qir.pipeline.text import Quoted, Raw, format_value, is_word

__all__ = ["Option", "options_of", "read_options", "write_options"]


class HasOptions(Protocol):
    """A dataclass with a name: a pass."""

    name: typing.ClassVar[str]
    __dataclass_fields__: typing.ClassVar[dict[str, dataclasses.Field[Any]]]


T = TypeVar("T", bound=HasOptions)
_REQUIRED: Any = object()
_UNFIT: Any = object()


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a pass. ``hint`` is the Python type of the field; ``default`` what it has when not given."""

    name: str
    field: str
    hint: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is _REQUIRED

    @property
    def type_text(self) -> str:
        """For messages and help: ``int``, ``list of str``, ``'a' or 'b'``, ``float or none``."""
        return _describe(self.hint)

    @property
    def default_text(self) -> str | None:
        """As it would stand in pipeline text; None where the option must be given."""
        return None if self.required else format_value(_write(self.hint, self.default, _text_reader))


def options_of(cls: type[HasOptions]) -> tuple[Option, ...]:
    """The options of a pass class in the order of its fields.

    Raises OptionError where a field has a type that has no text form: a mistake of the pass's author.
    """
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise OptionError(
            f"pass {cls.name!r}: the types of its options cannot be read ({error}): "
            "import them outside of TYPE_CHECKING"
        ) from error
    options = []
    for field in dataclasses.fields(typing.cast(Any, cls)):
        if not field.init:
            continue
        hint = hints[field.name]
        if not _is_supported(hint):
            raise OptionError(
                f"pass {cls.name!r}: field {field.name!r} of type {hint} cannot be an option: "
                "use bool, int, float, str, Enum, Literal, tuple or a union of them"
            )
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        options.append(
            Option(
                field.name.replace("_", "-"),
                field.name,
                hint,
                _REQUIRED if default is dataclasses.MISSING else default,
            )
        )
    return tuple(options)


def read_options(cls: type[T], given: Mapping[str, Raw], *, toml: bool = False) -> T:
    """An instance of a pass from options as written. ``toml``: values have TOML's types instead of being words.

    Raises OptionError naming the pass, the option, its type, and for an unknown option the nearest names.
    """
    options = {option.name: option for option in options_of(cls)}
    reader = _toml_reader if toml else _text_reader
    arguments: dict[str, Any] = {}
    for name, raw in given.items():
        option = options.get(name.replace("_", "-"))
        if option is None:
            has = f"it has {', '.join(options)}" if options else "it has none"
            raise OptionError(f"pass {cls.name!r} has no option {name!r}{suggest(name, options)}; {has}")
        if option.field in arguments:
            raise OptionError(f"pass {cls.name!r}: option {option.name!r} is given twice")
        value = _read(option.hint, raw, reader)
        if value is _UNFIT:
            raise OptionError(
                f"pass {cls.name!r}: option {option.name!r} takes {option.type_text}, not {_show(raw, toml)}"
                + (suggest(str(raw), _choices(option.hint)) if isinstance(raw, str) else "")
            )
        arguments[option.field] = value
    missing = [option for option in options.values() if option.required and option.field not in arguments]
    if missing:
        raise OptionError(
            f"pass {cls.name!r} needs option {missing[0].name!r} ({missing[0].type_text}): "
            f"write {cls.name}{{{missing[0].name}=...}}"
        )
    try:
        return cls(**arguments)
    except ValueError as error:  # a __post_init__ that refuses a combination of values
        raise OptionError(f"pass {cls.name!r}: {error}") from error
    except OptionError as error:
        if repr(cls.name) in str(error):
            raise
        raise OptionError(f"pass {cls.name!r}: {error}") from error


def write_options(instance: HasOptions, *, toml: bool = False) -> dict[str, Raw]:
    """The options of a pass that differ from their defaults, as ``read_options`` takes them."""
    written: dict[str, Raw] = {}
    for option in options_of(type(instance)):
        value = getattr(instance, option.field)
        if option.required or not _same(value, option.default):
            written[option.name] = _write(option.hint, value, _toml_reader if toml else _text_reader)
    return written


# Reading: a hint and a raw value give a value, or _UNFIT. A reader takes one scalar.

_Reader = Callable[[Any, Raw], Any]


def _read(hint: Any, raw: Raw, reader: _Reader) -> Any:
    if _is_union(hint):
        # A text is the last resort, so that `none`, numbers and choices are not swallowed by it.
        for member in sorted(typing.get_args(hint), key=lambda m: m is str):
            value = _read(member, raw, reader if typing.get_origin(member) is tuple else _unquoting(reader))
            if value is not _UNFIT:
                return value
        return _UNFIT
    if typing.get_origin(hint) is tuple:
        return _read_tuple(typing.get_args(hint), raw, reader)
    if isinstance(raw, list):
        return _UNFIT
    return reader(hint, raw)


def _read_tuple(hints: tuple[Any, ...], raw: Raw, reader: _Reader) -> Any:
    # A single word may stand for a list of one: `only=conv-bn`.
    items = raw if isinstance(raw, list) else [raw]
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(items)
    elif len(items) != len(hints):
        return _UNFIT
    values = tuple(_read(hint, item, reader) for hint, item in zip(hints, items, strict=True))
    return _UNFIT if any(value is _UNFIT for value in values) else values


def _text_reader(hint: Any, raw: Raw) -> Any:
    """A scalar from a word of pipeline text, a Quoted, or True (a flag)."""
    if isinstance(raw, Quoted):
        return _choice(hint, raw.text) if hint is str or typing.get_origin(hint) is Literal else _UNFIT
    if raw is True:
        return True if hint is bool else _UNFIT
    assert isinstance(raw, str)
    if hint is bool:
        return {"true": True, "false": False}.get(raw, _UNFIT)
    if hint in (int, float):
        try:
            return hint(raw)
        except ValueError:
            return _UNFIT
    return _choice(hint, raw)


def _toml_reader(hint: Any, raw: Raw) -> Any:
    """A scalar of one of TOML's types."""
    if isinstance(raw, Quoted):
        return raw.text if hint is str else _UNFIT
    if hint is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if hint in (bool, int, float):
        return raw if type(raw) is hint else _UNFIT
    if typing.get_origin(hint) is Literal and not isinstance(raw, str):
        return next((arg for arg in typing.get_args(hint) if type(arg) is type(raw) and arg == raw), _UNFIT)
    return _choice(hint, raw) if isinstance(raw, str) else _UNFIT


def _unquoting(reader: _Reader) -> _Reader:
    """Within a union a TOML text in quotation marks of its own is a text and nothing else: '"none"'."""
    if reader is not _toml_reader:
        return reader

    def read(hint: Any, raw: Raw) -> Any:
        if isinstance(raw, str) and len(raw) > 1 and raw[0] == raw[-1] == '"':
            try:
                return _toml_reader(hint, Quoted(json.loads(raw, strict=False)))
            except json.JSONDecodeError:
                return _UNFIT
        return _toml_reader(hint, raw)

    return read


def _choice(hint: Any, word: str) -> Any:
    """A str, None, an enum member or a Literal from its text."""
    if hint is str:
        return word
    if hint is types.NoneType:
        return None if word == "none" else _UNFIT
    if typing.get_origin(hint) is Literal:
        return next((arg for arg in typing.get_args(hint) if _literal_text(arg) == word), _UNFIT)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return next((member for text, member in _members(hint).items() if text == word), _UNFIT)
    return _UNFIT


# Writing


def _write(hint: Any, value: Any, reader: _Reader) -> Raw:
    """The raw form that ``_read`` with this hint turns into ``value``."""
    if typing.get_origin(hint) is tuple:
        hints = typing.get_args(hint)
        if len(hints) == 2 and hints[1] is Ellipsis:
            hints = (hints[0],) * len(value)
        return [_write(inner, item, reader) for inner, item in zip(hints, value, strict=True)]
    if _is_union(hint):
        return _write_member(hint, value, reader)
    return _write_scalar(hint, value, reader)


def _write_scalar(hint: Any, value: Any, reader: _Reader) -> Raw:
    if value is None:
        return "none"
    if isinstance(value, enum.Enum):
        return next(text for text, member in _members(type(value)).items() if member is value)
    if reader is _toml_reader:
        plain: Raw = value
        return float(plain) if hint is float and isinstance(plain, int) else plain
    if isinstance(value, bool):
        return value if hint is bool else _literal_text(value)
    if isinstance(value, str):
        return value if is_word(value) else Quoted(value)
    return repr(float(value) if hint is float else value)


def _write_member(hint: Any, value: Any, reader: _Reader) -> Raw:
    for member in typing.get_args(hint):
        try:
            raw = _write(member, value, reader)
        except (TypeError, ValueError):
            continue  # a tuple member and a scalar value
        if _same(_read(hint, raw, reader), value):
            return raw
    # A text that reads as something else, such as 'none' or '3'.
    return json.dumps(value, ensure_ascii=False) if reader is _toml_reader else Quoted(value)


# Types


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _is_supported(hint: Any) -> bool:
    if _is_union(hint):
        return all(map(_is_supported, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        inner = [arg for arg in typing.get_args(hint) if arg is not Ellipsis]
        return all(_is_supported(arg) and typing.get_origin(arg) is not tuple for arg in inner)
    if typing.get_origin(hint) is Literal:
        return all(isinstance(arg, str | int) for arg in typing.get_args(hint))
    return hint in (bool, int, float, str, types.NoneType) or (isinstance(hint, type) and issubclass(hint, enum.Enum))


def _members(cls: type[enum.Enum]) -> dict[str, enum.Enum]:
    members = list(cls)
    if all(isinstance(member.value, str) for member in members):
        return {member.value: member for member in members}
    return {member.name.lower().replace("_", "-"): member for member in members}


def _literal_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _choices(hint: Any) -> list[str]:
    """The words that a type takes, for suggestions."""
    if _is_union(hint) or typing.get_origin(hint) is tuple:
        return [text for arg in typing.get_args(hint) for text in _choices(arg)]
    if typing.get_origin(hint) is Literal:
        return [_literal_text(arg) for arg in typing.get_args(hint)]
    return list(_members(hint)) if isinstance(hint, type) and issubclass(hint, enum.Enum) else []


def _describe(hint: Any) -> str:
    if _is_union(hint):
        return " or ".join(_describe(arg) for arg in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return f"list of {_describe(inner[0])}"
        return f"[{', '.join(map(_describe, inner))}]"
    if choices := _choices(hint):
        return " or ".join(map(repr, choices))
    return "none" if hint is types.NoneType else str(hint.__name__)


def _show(raw: Raw, toml: bool) -> str:
    if raw is True and not toml:
        return "a flag without a value"
    return format_value(raw) if isinstance(raw, list | bool) else repr(raw.text if isinstance(raw, Quoted) else raw)


def _same(a: Any, b: Any) -> bool:
    """Equal in value and type, so that 1, 1.0 and True differ."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(a == b)
