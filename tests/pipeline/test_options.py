"""Options: text and TOML round trips, and errors that name pass, option, type and the nearest names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qir.errors import OptionError
from qir.ir import Model
from qir.pipeline import Effect, Pass, PassContext, PassResult, Pipeline
from qir.pipeline.options import options_of, read_options, write_options
from tests.pipeline.toys import REGISTRY, Everything, Level, Mode

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["none", "auto", "true", "3", "1e5", '"none"', '"', "a,b", "[x]", "{", "\x7f\x00", "é"]
)
floats = st.floats(allow_nan=False)
everything = st.builds(
    Everything,
    flag=st.booleans(),
    on=st.booleans(),
    max_rounds=st.integers(-(2**62), 2**62),
    ratio=floats,
    label=texts,
    mode=st.sampled_from(Mode),
    level=st.sampled_from(Level),
    kind=st.sampled_from(["a", "b-c", 4]),
    names=st.lists(texts, max_size=3).map(tuple),
    pair=st.tuples(st.integers(-9, 9), floats),
    limit=st.none() | floats,
    text=st.none() | texts,
    count=st.integers(-5, 5) | st.just("auto"),
    maybe_names=st.none() | st.lists(texts, max_size=3).map(tuple),
)


@given(st.lists(everything, max_size=3))
def test_text_and_toml_round_trip(passes: list[Everything]) -> None:
    pipeline = Pipeline(passes)
    assert Pipeline.parse(str(pipeline), registry=REGISTRY) == pipeline
    assert Pipeline.parse_toml(pipeline.to_toml(), registry=REGISTRY) == pipeline


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("everything{}", {}),
        ("everything{flag}", {"flag": True}),
        ("everything{flag=true on=false}", {"flag": True, "on": False}),
        ("everything{ max-rounds = 7, ratio=2 }", {"max_rounds": 7, "ratio": 2.0}),
        ("everything{max_rounds=7}", {"max_rounds": 7}),
        ('everything{label="a b" mode=best}', {"label": "a b", "mode": Mode.BEST}),
        ("everything{level=high-level kind=4}", {"level": Level.HIGH_LEVEL, "kind": 4}),
        ("everything{names=[a,b] pair=[1,2.5]}", {"names": ("a", "b"), "pair": (1, 2.5)}),
        ("everything{names=conv-bn}", {"names": ("conv-bn",)}),
        ("everything{limit=none text=none}", {}),
        ('everything{text="none" count=3}', {"text": "none", "count": 3}),
        ("everything{maybe-names=[]}", {"maybe_names": ()}),
    ],
)
def test_text_means(text: str, expected: dict[str, Any]) -> None:
    assert Pipeline.parse(text, registry=REGISTRY).passes == (Everything(**expected),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "everything{max-round=3}",
            "pass 'everything' has no option 'max-round' (did you mean 'max-rounds'?); it has flag, on, max-rounds, "
            "ratio, label, mode, level, kind, names, pair, limit, text, count, maybe-names",
        ),
        ("everything{max-rounds=many}", "pass 'everything': option 'max-rounds' takes int, not 'many'"),
        ("everything{max-rounds}", "pass 'everything': option 'max-rounds' takes int, not a flag without a value"),
        ("everything{max-rounds=3.5}", "pass 'everything': option 'max-rounds' takes int, not '3.5'"),
        ("everything{flag=yes}", "pass 'everything': option 'flag' takes bool, not 'yes'"),
        (
            "everything{mode=bets}",
            "pass 'everything': option 'mode' takes 'fast' or 'best', not 'bets' (did you mean 'best'?)",
        ),
        ("everything{kind=c}", "pass 'everything': option 'kind' takes 'a' or 'b-c' or '4', not 'c'"),
        ("everything{pair=[1]}", "pass 'everything': option 'pair' takes [int, float], not [1]"),
        ("everything{limit=x}", "pass 'everything': option 'limit' takes float or none, not 'x'"),
        ("everything{label=[a,b]}", "pass 'everything': option 'label' takes str, not [a,b]"),
        ("everything{flag flag}", "pass 'everything': option 'flag' is given twice"),
        ("everything{max-rounds=1 max_rounds=2}", "pass 'everything': option 'max-rounds' is given twice"),
        ("needs", "pass 'needs' needs option 'path' (str): write needs{path=...}"),
        ("everthing", "unknown pass 'everthing' (did you mean 'everything'?): 'qir passes' lists all"),
        ("a b", "pipeline text: expected ',' between two passes but found 'b' at column 3: 'a ' >here> 'b'"),
        ("a{b=", "pipeline text: expected a value but found the end at column 5: 'a{b=' >here> ''"),
        ("a{b", "pipeline text: expected an option or '}' but found the end at column 4: 'a{b' >here> ''"),
        (
            'a{b="c}',
            "pipeline text: expected a closing quotation mark but found '\"c}' at column 5: 'a{b=' >here> '\"c}'",
        ),
        ("a,,b", "pipeline text: expected the name of a pass but found ',' at column 3: 'a,' >here> ',b'"),
    ],
)
def test_errors_say_what_and_suggest(text: str, message: str) -> None:
    with pytest.raises(OptionError) as error:
        Pipeline.parse(text, registry=REGISTRY)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[pas]]", "unknown key 'pas' (did you mean 'pass'?); a pipeline has [[pass]] tables"),
        ("pass = 3", "'pass' must be a list of tables: write [[pass]] above each"),
        ("[[pass]]\nflag = true", '[[pass]] number 1 has no name: write name = "..."'),
        (
            '[[pass]]\nname = "everything"\nmax-rounds = "3"',
            "pass 'everything': option 'max-rounds' takes int, not '3'",
        ),
        (
            '[[pass]]\nname = "everything"\nmax-rounds = true',
            "pass 'everything': option 'max-rounds' takes int, not true",
        ),
        (
            '[[pass]]\nname = "everything"\nlabel = 1979-05-27',
            "pass 'everything': option 'label' cannot be datetime.date(1979, 5, 27)",
        ),
    ],
)
def test_toml_errors(text: str, message: str) -> None:
    with pytest.raises(OptionError) as error:
        Pipeline.parse_toml(text, registry=REGISTRY)
    assert str(error.value) == message


def test_only_options_off_their_default_are_written() -> None:
    assert write_options(Everything()) == {}
    assert str(Pipeline([Everything(flag=True, on=False, ratio=0.25)])) == "everything{flag on=false ratio=0.25}"


def test_options_describe_themselves() -> None:
    shown = {option.name: (option.type_text, option.default_text) for option in options_of(Everything)}
    assert shown["max-rounds"] == ("int", "3")
    assert shown["mode"] == ("'fast' or 'best'", "fast")
    assert shown["names"] == ("list of str", "[]")
    assert shown["limit"] == ("float or none", "none")
    assert shown["label"] == ("str", '""')


def test_a_field_without_text_form_is_the_authors_error() -> None:
    @dataclass(frozen=True)
    class Odd(Pass):
        name: ClassVar[str] = "odd"
        effect: ClassVar[Effect] = Effect.EXACT
        table: dict[str, int] | None = None

        def run(self, model: Model, ctx: PassContext) -> PassResult:
            return PassResult()

    with pytest.raises(OptionError, match=r"pass 'odd': field 'table' of type .* cannot be an option"):
        options_of(Odd)


def test_a_refusal_in_post_init_names_the_pass() -> None:
    @dataclass(frozen=True)
    class Picky(Pass):
        name: ClassVar[str] = "picky"
        effect: ClassVar[Effect] = Effect.EXACT
        bits: int = 8

        def __post_init__(self) -> None:
            if self.bits not in (4, 8):
                raise ValueError(f"bits must be 4 or 8, not {self.bits}")

        def run(self, model: Model, ctx: PassContext) -> PassResult:
            return PassResult()

    with pytest.raises(OptionError, match=r"^pass 'picky': bits must be 4 or 8, not 5$"):
        read_options(Picky, {"bits": "5"})
