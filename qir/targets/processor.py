"""What the processor at hand can do: for advice in reports only, never for what is emitted."""

from __future__ import annotations

from pathlib import Path

__all__ = ["better_target"]

_FEATURES = {
    "ort-cpu-vnni": frozenset({"avx512_vnni", "avx_vnni"}),
    "ort-cpu-arm64": frozenset({"asimddp"}),
}
"""Targets, and what /proc/cpuinfo says of processors that multiply u8 by s8 without saturation."""


def better_target(target: str, info: Path = Path("/proc/cpuinfo")) -> str | None:
    """The target that is made for this processor where ``target`` is the one for all of them; None where that is it, or
    where nothing is known."""
    if target != "ort-cpu" or not info.is_file():
        return None
    words = {
        word
        for line in info.read_text(errors="replace").splitlines()
        if line.lower().startswith(("flags", "features"))
        for word in line.partition(":")[2].split()
    }
    return next((name for name, features in _FEATURES.items() if features & words), None)
