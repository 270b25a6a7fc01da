"""Every error that a user can cause: one clear line saying what, where, and what to do about it.

The command line prints `str(error)` and leaves with `exit_code`; a traceback means a bug of ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class QirError(Exception):
    """Base of all errors caused by input, options or the machine rather than by a bug."""

    exit_code: ClassVar[int] = 2


class ModelError(QirError):
    """The model file is absent, damaged, unsafe, or not ONNX."""


class DataError(QirError):
    """Calibration, golden or other sample data does not fit the model or holds bad numbers."""


class OptionError(QirError):
    """A pass, pipeline, target or command option has an unknown name or an impossible value."""


class ParseError(QirError):
    """IR text is not well formed; the message starts with ``line:column:``."""


class VerifyError(QirError):
    """The IR breaks one of its own rules; the message shows the offending node."""


class UnsupportedError(QirError):
    """A valid request that this version, the target or the runtime cannot fulfil."""


class OutputError(QirError):
    """A result cannot be written where it was asked for."""


class StaleError(QirError):
    """An annotation was read after an edit had made it untrue; the message names the edit."""


def suggest(name: str, candidates: Iterable[str], cutoff: float = 0.6) -> str:
    """A fragment to append to "unknown NAME": `" (did you mean 'fuse' or 'fold'?)"`, empty when nothing is near.

    Letter case is ignored; at most three names, nearest first, ties in alphabetical order. ``cutoff``: how alike, from
    0 to 1, a name must be to count as near.
    """
    from difflib import SequenceMatcher

    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(name.lower())
    near: list[tuple[float, str]] = []
    for candidate in set(candidates):
        matcher.set_seq1(candidate.lower())
        # The two cheap upper bounds spare the real comparison for nearly all of a large model's names.
        if min(matcher.real_quick_ratio(), matcher.quick_ratio()) >= cutoff and matcher.ratio() >= cutoff:
            near.append((-matcher.ratio(), candidate))
    nearest = [repr(candidate) for _, candidate in sorted(near)[:3]]
    return f" (did you mean {' or '.join(nearest)}?)" if nearest else ""
