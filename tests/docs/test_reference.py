"""Reference pages are written from the code: everything that a user can name has its entry."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from qir.cli import COMMANDS
from qir.pipeline import Pipeline, Preset, default_registry
from qir.pipeline.registry import load_target, target_names
from qir.targets.describe import FORMS
from tools.docs.reference import calls, pages


@cache
def written() -> dict[str, str]:
    return pages()


def test_every_command_and_sub_command_has_its_help() -> None:
    page = written()["reference/commands.md"]
    found = calls()
    assert {words[0] for words in found} == set(COMMANDS)
    for words in (("golden", "record"), ("golden", "show"), ("git", "enable"), ("git", "disable"), ("git", "status")):
        assert words in found
    for sub_command in ("show", "tune", "lint"):
        assert ("targets", sub_command) in found
    for words in found:
        level = "#" * (1 + len(words))
        heading, _, entry = page.partition(f"\n{level} qir {' '.join(words)}\n")[2].partition("```\n")
        assert heading.strip(), f"nothing says what {words} does"
        assert f"Usage: qir {' '.join(words)}" in entry.partition("\n```")[0]


@pytest.mark.parametrize("name", sorted(target_names()))
def test_every_target_has_its_constraints_and_sources(name: str) -> None:
    section = written()["reference/targets.md"].partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    target = load_target(name)
    rules = target.constraints
    assert target.title in section
    for words in (*rules.traps, *map(str, rules.activations), *map(str, rules.weights), *target.notes):
        assert words in section
    for words in (*rules.per_channel, *target.rules, *target.float_only, *target.session_options):
        assert words in section
    for one in {rule.form for rule in target.rules.values()}:
        assert FORMS[one] in section
    assert all(source.split()[0] in section for source in rules.sources)
    assert rules.sources, "a constraint without a source is a rumour"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (Path(__file__).parents[2] / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(f": {path}\n" in navigation for path in written())


def test_every_pass_and_preset_has_its_entry() -> None:
    page = written()["reference/passes.md"]
    registry = default_registry()
    assert all(f"\n### {name}\n" in page for name in registry)
    for name in registry:
        if isinstance(preset := registry.get(name), Preset):
            shown = page.partition(f"\n### {name}\n")[2].split("```")[1]
            assert str(Pipeline.parse(shown)) == str(Pipeline.parse(preset.text)), "broken lines that parse"
