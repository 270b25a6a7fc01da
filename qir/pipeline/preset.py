"""Presets: pipelines with a name, usable wherever a pass's name is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Preset"]


@dataclass(frozen=True, slots=True)
class Preset:
    """``text`` is pipeline text; it may name other presets. ``doc`` says in a sentence or two what it is for.

    Registered by the entry-point group ``qir.passes`` like a pass, or found in a plug-in file.
    """

    name: str
    text: str
    doc: str
