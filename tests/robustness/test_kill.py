"""A killed command leaves the old model or the new one, never half of one. ``tools/kill.py`` kills many more times,
and more commands."""

from __future__ import annotations

import sys

import pytest

from tools.kill import kill


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_command_leaves_whole_models() -> None:
    found = kill(6, seed=1, names=["quantize", "opt-external-data"])
    assert sum(found.values()) == 6
    assert not [what for what in found if "broken" in what], found
