"""`qir.passes` and `qir.golden_models` import however and wherever qir is installed, and `import qir` stays cheap."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent
HEAVY = ("onnx", "onnxruntime", "networkx", "rich", "torch", "numpy", "typer")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build needs, so that no build leftovers land in the working tree."""
    folder = tmp_path_factory.mktemp("clone") / "qir-clone"
    folder.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy2(TREE / name, folder / name)
    for name in ("qir", "passes", "golden_models"):
        shutil.copytree(TREE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def environment(folder: Path) -> Path:
    """A new environment's interpreter; it borrows this one's packages, but not a qir installed here."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for place in sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}):
        for entry in Path(place).iterdir():
            if not entry.name.startswith(("qir", "__editable__")) and entry.suffix != ".pth":
                (borrowed / entry.name).symlink_to(entry)
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    return python


@pytest.mark.parametrize("editable", [False, True], ids=["plain", "editable"])
def test_rooms_outside_the_core_import_from_everywhere(clone: Path, tmp_path: Path, editable: bool) -> None:
    python = environment(tmp_path / "env")
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    run(python, "-m", "pip", "install", *flags, *(["-e"] if editable else []), ".", cwd=clone)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "passes.py").write_text("raise SystemExit('a folder of the user must not be picked up')")
    probe = "import qir, qir.passes, qir.golden_models; print(qir.passes.__file__); print(qir.golden_models.__file__)"
    for place in (clone, elsewhere):
        found = [Path(line).resolve() for line in run(python, "-c", probe, cwd=place).splitlines()]
        from_tree = editable or place == clone
        expected = clone.resolve() if from_tree else None
        for file, name in zip(found, ("passes", "golden_models"), strict=True):
            if expected is not None:
                assert file == expected / name / "__init__.py"
            else:
                assert file.parent.parent.name == "qir" and tmp_path.resolve() in file.parents

    # The registry finds the same passes by package metadata as by the tree's pyproject.toml.
    names = "from qir.pipeline import default_registry as r; print(*((n, r().source(n), r().get(n).name) for n in r()))"
    assert run(python, "-c", names, cwd=elsewhere) == run(python, "-c", names, cwd=clone) != "\n"

    version = run(python, "-c", "import importlib.metadata as m; print(m.version('qir'))", cwd=elsewhere).strip()
    assert version == run(python, "-c", "import qir; print(qir.__version__)", cwd=elsewhere).strip()
    assert (tmp_path / "env" / "bin" / "qir").is_file()


def test_a_plain_install_carries_every_module_and_data_file(clone: Path, tmp_path: Path) -> None:
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "install", *flags, "--target", tmp_path / "flat", ".", cwd=clone)
    for source, name in (("qir", "."), ("passes", "passes"), ("golden_models", "golden_models")):
        files = {p.relative_to(clone / source) for p in (clone / source).rglob("*") if p.is_file()}
        installed = tmp_path / "flat" / "qir" / name
        missing = {str(f) for f in files if not (installed / f).is_file()}
        assert missing == set(), f"{source}: not packaged (setup.py, package-data)"
    assert not (tmp_path / "flat" / "passes").exists()


def test_import_qir_loads_nothing_heavy() -> None:
    probe = f"import sys, qir; dir(qir); print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run(sys.executable, "-c", probe, cwd=TREE).strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    import qir

    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = qir.quantise


def test_every_public_name_is_where_the_table_says() -> None:
    probe = "import qir; [getattr(qir, name) for name in qir.__all__]; print('ok')"
    assert run(sys.executable, "-c", probe, cwd=TREE).strip() == "ok"


def test_what_the_api_offers_is_what_import_qir_shows() -> None:
    import qir
    from qir import api

    assert set(api.__all__) == {name for name in qir.__all__ if name not in ("QirError", "__version__")}
