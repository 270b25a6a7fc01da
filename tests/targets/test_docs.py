"""What docs/formats.md and docs/targets.md say works, and says all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

import qir
from qir import golden_models
from qir.pipeline.registry import load_target, target_names
from qir.quant.arithmetic import quantize
from qir.quant.integer_io import read_io
from qir.runtime.session import OrtRunner
from qir.targets import lint

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def test_every_target_and_every_rule_is_on_the_page() -> None:
    page = (DOCS / "targets.md").read_text()
    assert all(f"{name} " in page and load_target(name).title in page for name in target_names())
    rules = set(re.findall(r'"([a-z]+(?:-[a-z]+)+|format|movement|table)"', Path(lint.__file__).read_text()))
    assert {rule for rule in rules if f"`{rule}`" not in page} == set()


def test_the_target_file_is_one(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text(blocks("targets.md", "toml")[0])
    target = load_target(str(path))
    assert target.cost.macs_per_us == (38010, 80160)
    assert target.session_options == {"session.intra_op.allow_spinning": "0"}


def test_callers_find_options_and_scales(tmp_path: Path) -> None:
    folder, out = golden_models.path("cnn-digits"), tmp_path / "out.onnx"
    qir.quantize(
        folder / "model.onnx", out, calibration=folder / "calib.npz", preset="int8-fast", latency_seconds=0,
        target="ort-cpu-vnni", io_dtype=["uint8"],
    )  # fmt: skip
    scope: dict[str, Any] = {}
    exec(blocks("targets.md", "python")[0], scope)
    exec(blocks("formats.md", "python")[0], scope)
    session = scope["session"](str(out))
    types = read_io(qir.load(out).metadata)
    name = OrtRunner(out).inputs[0].name
    sample = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    np.testing.assert_array_equal(scope["to_codes"](session, name, sample), quantize(sample, types[name]))
