"""Recipes: what the file may say, what it means on a model, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from qir.errors import OptionError
from qir.ir import Model, Node
from qir.pipeline import Pipeline
from qir.quant.recipe import Choice, Recipe, Region
from tests.passes.int8 import model

BRANCHED = """graph g(%x: f32[1,4,8,8]) -> (%out, %side)
{
  %a: f32[1,4,8,8] = Relu(%x) name="stem"
  %b: f32[1,4,8,8] = Sigmoid(%a) name="left"
  %c: f32[1,4,8,8] = Tanh(%a) name="right"
  %d: f32[1,4,8,8] = Add(%b, %c) name="join"
  %out: f32[1,4,8,8] = Relu(%d) name="tail"
  %side: f32[1,4,8,8] = Neg(%c) name="apart"
}"""


def named(nodes: dict[Node, Choice]) -> dict[str, str | None]:
    return {node.name: choice.precision for node, choice in nodes.items()}


def floats(source: Model, start: str | None, end: str | None) -> set[str]:
    return set(named(Recipe((), (Region(start, end, "float"),)).assign(source)))


def test_a_region_holds_the_nodes_on_the_ways_between_two_values() -> None:
    source = model(BRANCHED)
    assert floats(source, "a", "d") == {"left", "right", "join"}
    assert floats(source, "b", "out") == {"join", "tail"}
    assert floats(source, None, "b") == {"stem", "left"}
    assert floats(source, "c", None) == {"join", "tail", "apart"}


def test_a_region_is_meant_in_the_imported_model_whatever_became_of_its_values() -> None:
    text = """graph g(%x: f32[1,4,8,8]) -> (%out)
{
  %c: f32[1,4,8,8] = Conv(%x, @w) name="conv"
  %n: f32[1,4,8,8] = BatchNormalization(%c, @s, @b, @m, @v) name="norm"
  %out: f32[1,4,8,8] = Relu(%n) name="act"
  @w: f32[4,4,1,1] #00000001
  @s: f32[4] = [1, 1, 1, 1]
  @b: f32[4] = [0, 0, 0, 0]
  @m: f32[4] = [0, 0, 0, 0]
  @v: f32[4] = [1, 1, 1, 1]
}"""
    source = model(text)
    fused = Pipeline.parse("fuse").run(source).model
    assert [node.op for node in fused.walk()] == ["Conv", "Relu"]
    until_conv = Recipe((), (Region(None, "c", "float"),))
    after_conv = Recipe((), (Region("c", None, "float"),))
    assert [node.op for node in until_conv.assign(fused, source)] == ["Conv"]
    assert [node.op for node in after_conv.assign(fused, source)] == ["Relu"]


def test_nodes_win_over_regions_and_later_over_earlier_precision_and_method_apart() -> None:
    recipe = Recipe.parse(
        """
        [[node]]
        match = ["left", "right"]
        method = "mse"
        [[node]]
        match = "ri*"
        precision = "int8"
        [[region]]
        to = "out"
        precision = "float"
        """
    )
    found = {node.name: (one.precision, one.method) for node, one in recipe.assign(model(BRANCHED)).items()}
    assert found == {
        "stem": ("float", None),
        "left": ("float", "mse"),
        "right": ("int8", "mse"),
        "join": ("float", None),
        "tail": ("float", None),
    }


def test_text_and_recipe_are_inverses(tmp_path: Path) -> None:
    recipe = Recipe(
        (
            Choice('odd "name"/\\x\n', "float", why="two\nlines"),
            Choice("b", "int8", method="entropy"),
            Choice("c", "int8", method="entropy"),
            Choice("d", None, method="mse"),
        ),
        (Region("from", None, "float"), Region(None, "to", None, method="percentile")),
    )
    text = recipe.to_toml()
    assert Recipe.parse(text) == recipe
    assert text.count("[[node]]") == 3  # b and c share a table
    (tmp_path / "r.toml").write_text(text)
    assert Recipe.open(tmp_path / "r.toml") == Recipe.open(text) == recipe


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[[nod]]\nmatch = "a"', "unknown table 'nod' (did you mean 'node'?)"),
        ('[node]\nmatch = "a"', "write each choice as a table [[node]]"),
        ('[[node]]\nmatch = "stem"\nprecison = "float"', "unknown key 'precison' (did you mean 'precision'?)"),
        ('[[node]]\nmatch = "stem"\nprecision = "int"', "'precision' must be one of float, int8, int8-dynamic"),
        ('[[node]]\nmatch = "stem"\nprecision = 8', "'precision' must be one of"),
        ('[[node]]\nmatch = "stem"\nmethod = "mser"', "(did you mean 'mse'?)"),
        ('[[node]]\nmatch = "stem"', "'precision' must be one of"),
        ('[[node]]\nmatch = ["stem", 3]\nprecision = "float"', "'match' must be a name"),
        ('[[node]]\nmatch = []\nprecision = "float"', "'match' must be a name"),
        ('[[node]]\nmatch = "sten"\nprecision = "float"', "'sten' matches no node (did you mean 'stem'"),
        ('[[region]]\nprecision = "float"', "give 'from', 'to' or both"),
        ('[[region]]\nfrom = 3\nprecision = "float"', "'from' must be the name of a value"),
        ('[[region]]\nfrom = "sidee"\nprecision = "float"', "no value 'sidee' (did you mean 'side'"),
        ('[[region]]\nfrom = "out"\nto = "a"\nprecision = "float"', "no node lies between 'out' and 'a'"),
        ("[[node", "is no TOML"),
    ],
)
def test_mistakes_get_one_line(text: str, expected: str) -> None:
    with pytest.raises(OptionError) as caught:
        Recipe.parse(text, "recipe 'r.toml'").assign(model(BRANCHED))
    assert expected in str(caught.value)
    assert "r.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_corrections_stand_above_the_tables_and_are_read_back() -> None:
    recipe = Recipe.parse('corrections = ["bias"]\n[[node]]\nmatch = "*"\nmethod = "mse"\n')
    assert recipe.corrections == ("bias",) and recipe.to_toml().startswith('corrections = ["bias"]\n')
    assert Recipe.parse(recipe.to_toml()) == recipe
    assert recipe.then(Recipe(corrections=("bias",))).corrections == ("bias",)
    with pytest.raises(OptionError, match="'corrections' must be a list of bias, not 'bais'"):
        Recipe.parse('corrections = ["bais"]')


def test_a_pattern_that_no_name_is_as_long_as_is_refused() -> None:
    with pytest.raises(OptionError, match="longer than 4000 characters"):
        Recipe.parse('[[node]]\nmatch = "' + "[" * 5000 + '"\nprecision = "float"\n')
