"""The layer contract holds for this tree, and planted violations are found where they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import layers

TREE = Path(__file__).resolve().parent.parent


def lint(module: str, source: str, is_package: bool = False) -> list[str]:
    return layers.violations(layers.imports_in(source, "f.py", module, is_package))


def test_this_tree_imports_downhill_only() -> None:
    assert layers.main([]) == 0


def test_every_room_is_a_package_in_the_contract() -> None:
    folders = [p for p in (TREE / "qir").iterdir() if p.is_dir() and any(p.glob("*.py"))]
    assert {p.name for p in folders} <= set(layers.LEVEL)
    assert [p.name for p in folders if not (p / "__init__.py").is_file()] == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        (
            "qir.ir.graph",
            "import os\n\ndef f():\n    from qir.ops import schema\n",
            "f.py:4: ir imports ops, which is above it",
        ),
        ("qir.ir.graph", "from qir import runtime", "f.py:1: ir imports runtime; the two are independent"),
        ("qir.ir.graph", "import onnx.helper", "f.py:1: ir must not import onnx"),
        ("qir.quant.scheme", "from ..passes import fuse", "f.py:1: quant imports passes, which is above it"),
        (
            "qir.pipeline.registry",
            "import importlib\nimportlib.import_module('qir.passes.structure.fuse')",
            "f.py:2: pipeline imports passes",
        ),
        (
            "qir.passes.structure.fuse",
            "from qir import quantize",
            "f.py:1: passes imports qir.quantize, which is no room",
        ),
        ("qir.attic.x", "import os", "f.py:1: room 'attic' is not in the contract"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str, complaint: str) -> None:
    lines = lint(module, source)
    assert len(lines) == 1
    assert lines[0].startswith(complaint)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("qir.passes.structure.fuse", "from qir.pipeline import Pass\nfrom qir.errors import QirError\nimport numpy\n"),
        ("qir.cli.main", "from qir import __version__\n"),
        ("qir.ir.graph", "from .types import TensorType\nfrom ..errors import QirError\n"),
        ("qir.quant.scheme", "from qir.analysis import interval\n"),
        ("qir", "import qir.api\n"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert lint(module, source) == []


def test_relative_imports_of_a_package_start_at_the_package_itself() -> None:
    assert lint("qir.ir", "from .graph import Graph", is_package=True) == []
    assert lint("qir.ir", "from ..ops import schema", is_package=True) == ["f.py:1: ir imports ops, which is above it"]


def test_a_circle_between_rooms_of_one_level_names_every_edge() -> None:
    edges = [
        *layers.imports_in("from qir.analysis import a", "q.py", "qir.quant.q", False),
        *layers.imports_in("\nfrom qir.rewriting import r", "a.py", "qir.analysis.a", False),
        *layers.imports_in("\n\nfrom qir.quant import q", "r.py", "qir.rewriting.r", False),
    ]
    lines = layers.violations(edges)
    assert [line.partition(": ")[0] for line in lines] == ["a.py:2", "q.py:1", "r.py:3"]
    assert layers.violations(edges[:2]) == []
