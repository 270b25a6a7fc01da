"""Advice about the processor at hand, and the rates of processors with VNNI."""

from __future__ import annotations

from pathlib import Path

import pytest

from qir.targets.ort_cpu import ORT_CPU, ORT_CPU_VNNI
from qir.targets.processor import better_target
from tests.passes.int8 import model, node


@pytest.mark.parametrize(
    ("line", "better"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni", "ort-cpu-vnni"),
        ("flags\t\t: fpu avx2 avx_vnni", "ort-cpu-vnni"),
        ("flags\t\t: fpu avx2", None),
        ("Features\t: fp asimd asimddp", "ort-cpu-arm64"),
        ("model name\t: avx512_vnni", None),
    ],
)
def test_the_target_made_for_a_processor(line: str, better: str | None, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\n{line}\n")
    assert better_target("ort-cpu", info) == better
    assert better_target("ort-cpu-vnni", info) is None
    assert better_target("ort-cpu", tmp_path / "absent") is None


def test_vnni_rates_give_back_what_was_timed() -> None:
    """Milliseconds of one node, float and integer, on a machine with AVX512-VNNI."""
    measured = {
        "Conv(%x, @w) {pads=[1, 1, 1, 1]}": (1.16, 0.275),
        "Conv(%x, @v)": (0.12, 0.0475),
        "Conv(%x, @d) {group=64, pads=[1, 1, 1, 1]}": (0.04, 0.0625),
    }
    weights = "@w: f32[64,64,3,3] #01\n@v: f32[64,64,1,1] #02\n@d: f32[64,1,3,3] #03"
    for text, (slow, quick) in measured.items():
        conv = node(model(f"graph g(%x: f32[1,64,56,56]) -> (%y) {{\n{weights}\n%y = {text}\n}}"), "Conv")
        assert ORT_CPU_VNNI.cost.node_us_as(conv, False) == pytest.approx(1000 * slow, rel=0.1)
        assert ORT_CPU_VNNI.cost.node_us_as(conv, True) == pytest.approx(1000 * quick, rel=0.1)
        assert ORT_CPU.cost.node_us_as(conv, True) > ORT_CPU_VNNI.cost.node_us_as(conv, True)
