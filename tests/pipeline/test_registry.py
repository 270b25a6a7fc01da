"""The registry: one table in pyproject.toml, plug-in files, clashes, and what a plug-in can get wrong."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import qir.pipeline.registry as registry_module
from qir.cli import main
from qir.errors import OptionError
from qir.pipeline import Pass, Pipeline, Preset, Registry, default_registry
from qir.pipeline.registry import Entry, discover, load_plugin, load_target
from tests.pipeline.toys import REGISTRY, DropIdentity, Everything

TREE = Path(__file__).resolve().parents[2]
GOOD = '''
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
from qir.pipeline import Effect, Pass, PassContext, PassResult, Preset

@dataclass(frozen=True)
class Mine(Pass):
    """Does nothing."""
    name: ClassVar[str] = "mine"
    effect: ClassVar[Effect] = Effect.EXACT
    rounds: int = 2

    def run(self, model, ctx):
        return PassResult()

TWICE = Preset("twice", "mine,mine{rounds=3}", "Mine, two times.")
'''


def plugin(folder: Path, text: str, name: str = "my_pass.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_every_entry_point_loads_and_is_called_what_its_class_is() -> None:
    registry = default_registry()
    for name in registry:
        found = registry.get(name)
        assert found.name == name
        if isinstance(found, Preset):
            assert len(Pipeline.parse(found.text)) > 0, name


def test_the_tables_are_those_of_pyproject() -> None:
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    for group in ("qir.passes", "qir.targets"):
        assert [entry.name for entry in discover(group) if entry.source == "qir"] == list(
            project["entry-points"][group]
        )


def test_every_pass_in_the_tree_is_registered() -> None:
    """A built-in pass that somebody forgot to list would be invisible."""
    listed = set(tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["entry-points"]["qir.passes"].values())
    defined = {
        f"qir.{'.'.join(file.relative_to(TREE).with_suffix('').parts)}:{name}"
        for file in (TREE / "passes").rglob("*.py")
        for name in re.findall(r"^class (\w+)\((?:Rewrite)?Pass\):", file.read_text(), re.MULTILINE)
    }
    assert "qir.passes.structure.fuse:Fuse" in defined
    assert defined - listed == set()


def test_a_plugin_file_adds_passes_and_presets(tmp_path: Path) -> None:
    registry = REGISTRY.with_plugin(plugin(tmp_path, GOOD))
    assert str(Pipeline.parse("twice,drop-identity", registry=registry)) == "mine,mine{rounds=3},drop-identity"
    assert "mine" not in REGISTRY
    assert registry.source("mine") == f"plug-in '{tmp_path / 'my_pass.py'}'"


def test_a_name_clash_names_both_sources(tmp_path: Path) -> None:
    first = plugin(tmp_path, GOOD)
    second = plugin(tmp_path, GOOD, "other.py")
    with pytest.raises(OptionError) as error:
        REGISTRY.with_plugin(first).with_plugin(second)
    assert str(error.value) == (
        f"two sources define the pass or preset 'mine': plug-in '{first}' and plug-in '{second}'; rename one"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", " defines no pass: a pass is a frozen dataclass derived from qir.Pass"),
        ("def f(:\n", ", line 1: invalid syntax"),
        ("x = 1\ny = nothing_here\n", ", line 2: NameError: name 'nothing_here' is not defined"),
        (
            GOOD.replace("@dataclass(frozen=True)\n", ""),
            ": pass class 'Mine' has options but is no dataclass: decorate it with @dataclass(frozen=True)",
        ),
        (GOOD.replace('    name: ClassVar[str] = "mine"\n', ""), ": pass class 'Mine' has no 'name'"),
        (GOOD.replace("    effect: ClassVar[Effect] = Effect.EXACT\n", ""), ": pass class 'Mine' has no 'effect'"),
        (GOOD.replace("= Effect.EXACT", "= 'x'"), ": pass class 'Mine' has effect 'x': use Effect.EXACT or another"),
        (GOOD.replace('= "mine"', '= "My Pass"'), ": pass class 'Mine' has the name 'My Pass': use kebab-case"),
        (
            GOOD.replace("@dataclass(frozen=True)", "@dataclass"),
            ", line 7: TypeError: cannot inherit non-frozen dataclass from a frozen one",
        ),
    ],
)
def test_what_is_wrong_with_a_plugin_is_said_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = plugin(tmp_path, text)
    with pytest.raises(OptionError) as error:
        load_plugin(path)
    assert str(error.value) == f"plug-in '{path}'{message}"


def test_a_missing_plugin(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"absent.py': no such file$"):
        REGISTRY.with_plugin(tmp_path / "absent.py")


def test_an_imported_pass_is_not_the_plugins_own(tmp_path: Path) -> None:
    path = plugin(
        tmp_path,
        "from tests.pipeline.toys import DropIdentity\n" + GOOD.replace("from __future__ import annotations\n", ""),
    )
    assert sorted(entry.name for entry in load_plugin(path)) == ["mine", "twice"]


def test_two_files_of_one_name_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    registry = REGISTRY.with_plugin(plugin(tmp_path / "a", GOOD)).with_plugin(
        plugin(
            tmp_path / "b",
            GOOD.replace('"mine"', '"yours"').replace("TWICE =", "other =").replace('"twice"', '"thrice"'),
        )
    )
    mine, yours = registry.get("mine"), registry.get("yours")
    assert isinstance(mine, type) and isinstance(yours, type)
    assert mine.__module__ != yours.__module__


def test_an_entry_point_that_does_not_load_names_its_package() -> None:
    from qir.pipeline.registry import _entry_from

    point = EntryPoint("gone", "no_such_module_at_all:Pass", "qir.passes")
    with pytest.raises(OptionError) as error:
        Registry([_entry_from(point, "some-package")]).get("gone")
    assert str(error.value).startswith(
        "some-package: entry point 'gone' (no_such_module_at_all:Pass) does not load: No module named"
    )


def test_an_entry_under_another_name_is_refused() -> None:
    with pytest.raises(OptionError, match="registers 'drop-identity' under the name 'drop'"):
        Registry([Entry("drop", "package p", lambda: DropIdentity)]).get("drop")
    with pytest.raises(OptionError, match="'thing' is neither a Pass class nor a Preset but 3"):
        Registry([Entry("thing", "package p", lambda: 3)]).get("thing")


def test_a_registry_is_closed() -> None:
    assert not hasattr(Registry(), "__dict__")
    assert list(REGISTRY.with_passes()) == list(REGISTRY)
    assert default_registry() is default_registry()


@pytest.mark.parametrize(
    ("held", "complaint"),
    [("json:dumps", "target 'mine' is no qir.targets.Target"), ("qir.targets.ort_cpu:ORT_CPU", "registers 'ort-cpu'")],
)
def test_an_entry_point_that_holds_no_such_target_is_told(
    held: str, complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = discover("qir.targets")
    entry = registry_module._entry_from(EntryPoint("mine", held, "qir.targets"), "my-package")
    monkeypatch.setattr(registry_module, "discover", lambda group: [*ours, entry])
    with pytest.raises(OptionError, match=f"^my-package: {complaint}"):
        load_target("mine")
    assert main(["targets"]) == 0
    shown = capsys.readouterr()
    assert "warning: my-package: " in shown.err and "ort-cpu-vnni" in shown.out


def test_an_unknown_target_is_an_error() -> None:
    with pytest.raises(OptionError, match=r"^unknown target 'abacus'"):
        load_target("abacus")


def test_presets_nest_and_may_not_contain_themselves() -> None:
    registry = REGISTRY.with_passes(
        Preset("inner", "drop-identity,everything{flag}", "."),
        Preset("outer", "inner,drop-identity", "."),
        Preset("left", "right", "."),
        Preset("right", "left", "."),
    )
    assert str(Pipeline.parse("outer", registry=registry)) == "drop-identity,everything{flag},drop-identity"
    with pytest.raises(OptionError, match="preset 'left' contains itself: left -> right -> left"):
        Pipeline.parse("left", registry=registry)
    with pytest.raises(OptionError, match="preset 'inner' takes no options; print it with 'qir passes inner'"):
        Pipeline.parse("inner{flag}", registry=registry)


def test_pipelines_are_built_of_anything() -> None:
    class Bare(Pass):
        name = "bare"
        effect = Everything.effect
        run = DropIdentity.run

    pipeline = Pipeline([Everything(flag=True), DropIdentity, Pipeline([Bare()]), "everything"], registry=REGISTRY)
    assert str(pipeline) == "everything{flag},drop-identity,bare,everything"
    assert len(pipeline + pipeline) == 8
    assert hash(pipeline) == hash(Pipeline(pipeline)) and pipeline == Pipeline(pipeline)
    with pytest.raises(OptionError, match="a pipeline is made of passes, pass classes, pipelines and names, not of 3"):
        Pipeline([3])  # type: ignore[list-item]


def test_from_toml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[[pass]]\nname = "everything"\nnames = ["a", "b"]\n')
    assert Pipeline.from_toml(path, registry=REGISTRY).passes == (Everything(names=("a", "b")),)
    path.write_text("[[pass]\n")
    with pytest.raises(OptionError, match=r"^pipeline file '.*p\.toml': not valid TOML: "):
        Pipeline.from_toml(path, registry=REGISTRY)
    with pytest.raises(
        OptionError, match=r"^pipeline file '.*absent\.toml' cannot be read: No such file or directory$"
    ):
        Pipeline.from_toml(tmp_path / "absent.toml", registry=REGISTRY)
