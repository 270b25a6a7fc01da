"""Remarks for people and programs: a filter, text lines, JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

from qir.errors import OptionError, suggest
from qir.pipeline.contract import Remark, RemarkKind

__all__ = ["RemarkFilter", "format_remarks", "remark_to_json"]


@dataclass(frozen=True, slots=True)
class RemarkFilter:
    """Which remarks to show; an empty part lets everything through.

    ``kinds``, ``passes``: any of these. ``subject``: a glob that the subject or one of its source nodes matches.
    """

    kinds: frozenset[RemarkKind] = frozenset()
    passes: frozenset[str] = frozenset()
    subject: str = ""

    @classmethod
    def parse(cls, text: str) -> RemarkFilter:
        """From words such as ``kind=missed pass=quantize,fuse subject=layer3/*``; a bare kind stands for ``kind=``.

        ``all`` and the empty text let everything through. Raises OptionError.
        """
        kinds: set[RemarkKind] = set()
        passes: set[str] = set()
        subject = ""
        for word in text.split():
            key, equals, value = word.partition("=")
            if not equals:
                key, value = "kind", word
            if word == "all":
                continue
            if key == "kind":
                kinds |= {_kind(name) for name in value.split(",")}
            elif key == "pass":
                passes |= set(value.split(","))
            elif key == "subject":
                subject = value
            else:
                raise OptionError(
                    f"remark filter: unknown key {key!r}{suggest(key, ('kind', 'pass', 'subject'))}; "
                    "there are kind, pass and subject"
                )
        return cls(frozenset(kinds), frozenset(passes), subject)

    def select(self, remarks: Iterable[Remark]) -> list[Remark]:
        """Those that pass, in their order."""
        matches = re.compile(translate(self.subject)).match if self.subject else None
        return [
            remark
            for remark in remarks
            if (not self.kinds or remark.kind in self.kinds)
            and (not self.passes or remark.pass_name in self.passes)
            and (matches is None or any(map(matches, (remark.subject, *remark.sources))))
        ]


def format_remarks(remarks: Iterable[Remark]) -> str:
    """One line a remark."""
    return "\n".join(map(str, remarks))


def remark_to_json(remark: Remark) -> dict[str, Any]:
    return {
        "kind": remark.kind.value,
        "pass": remark.pass_name,
        "subject": remark.subject,
        "message": remark.message,
        "sources": list(remark.sources),
    }


def _kind(name: str) -> RemarkKind:
    try:
        return RemarkKind(name)
    except ValueError:
        names = [kind.value for kind in RemarkKind]
        raise OptionError(
            f"remark filter: unknown kind {name!r}{suggest(name, names)}; there are {', '.join(names)}"
        ) from None
