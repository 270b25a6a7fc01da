"""The golden models: small trained networks with golden inputs, float outputs and their generator's record.

Each is a folder in ONNX's own layout (``model.onnx``, ``test_data_set_N/input_K.pb`` and ``output_K.pb``) with
``calib.npz``, ``eval.npz`` (with ``labels``) and ``golden.toml``; ``tools/make_golden_models.py`` makes them.
"""

from __future__ import annotations

from pathlib import Path

from qir.errors import OptionError, suggest

__all__ = ["names", "path"]

_ROOT = Path(__file__).resolve().parent


def names() -> list[str]:
    """The names of all golden models, sorted."""
    return sorted(found.parent.name for found in _ROOT.glob("*/golden.toml"))


def path(name: str) -> Path:
    """The folder of a golden model; raises OptionError for an unknown name and suggests the nearest."""
    known = names()
    if name not in known:
        raise OptionError(f"no golden model is called {name!r}{suggest(name, known)}; there are {', '.join(known)}")
    return _ROOT / name
