"""How the suite runs everywhere the same: property tests try the same examples each time and have no time limit."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")
