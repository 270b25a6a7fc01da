"""docs/examples/qir-plugin-example installs, is found by its entry points, and its own tests pass."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qir
from tests.validation.sloppy import chain, feeds

TREE = Path(__file__).resolve().parents[2]
QIR = [sys.executable, "-c", "import sys; from qir.cli import main; sys.exit(main(sys.argv[1:]))"]


def run(*command: str | Path, cwd: Path, site: Path | None = None) -> str:
    path = os.pathsep.join(str(folder) for folder in (TREE, site) if folder is not None)
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, installed into the folder ``site`` beside it."""
    folder = tmp_path_factory.mktemp("plugin")
    copy = folder / "qir-plugin-example"
    shutil.copytree(TREE / "docs" / "examples" / "qir-plugin-example", copy)
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "install", *flags, "--target", folder / "site", ".", cwd=copy)
    return copy


def test_its_own_tests_pass(package: Path) -> None:
    site = package.parent / "site"
    assert "2 passed" in run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=package, site=site)


def test_the_command_line_knows_it(package: Path, tmp_path: Path) -> None:
    site = package.parent / "site"
    described = run(*QIR, "passes", "div-to-mul", cwd=tmp_path, site=site)
    assert described.startswith("div-to-mul  (exact, from qir-plugin-example)\n\nMultiply by the reciprocal")
    model = chain([2.0, 3.0])
    for node in model.walk():
        if node.op == "Mul":
            node.set_op("Div")
    qir.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "golden.npz", x=feeds()["x"])
    check = ["--verify-numerics", "--golden", "golden.npz", "-o", "out.onnx"]
    told = run(*QIR, "opt", "m.onnx", "--passes", "optimize-more", *check, cwd=tmp_path, site=site)
    assert "div-by-constant 2; nodes +2 -2\n" in told
    assert [node.op for node in qir.load(tmp_path / "out.onnx").walk()].count("Mul") == 2
    explained = run(*QIR, "explain", "div-by-constant", "mul0", "m.onnx", cwd=tmp_path, site=site)
    assert explained == "rule 'div-by-constant' at Div 'mul0': matches\n"


def test_without_it_the_name_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(qir.QirError, match="unknown pass 'div-to-mul'"):
        qir.Pipeline(["div-to-mul"])
