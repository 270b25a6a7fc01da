"""The contract of a pass: what it is, what it is given, what it answers."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np

from qir.ir import Model, Node, Value
from qir.pipeline.timing import Timer
from qir.rewriting import Numbering, Rule

__all__ = ["Effect", "Feed", "NoProgress", "Pass", "PassContext", "PassResult", "Progress", "Remark", "RemarkKind"]

Feed = Mapping[str, np.ndarray]
"""One sample: an array for each input of the model, batch axis included."""


class Effect(enum.Enum):
    """What a pass may do to the function that the model computes; a pipeline can check the claim."""

    EXACT = "exact"
    """Nothing, up to the re-association of float sums."""
    LOSSY = "lossy"
    """Changes numbers on purpose."""
    ANALYSIS = "analysis"
    """Writes annotations only."""


class RemarkKind(enum.Enum):
    APPLIED = "applied"
    MISSED = "missed"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Remark:
    """What was done, or why not: about a node or value of the user's model."""

    kind: RemarkKind
    pass_name: str
    message: str
    subject: str = ""
    """Name of the node or value that the message is about."""
    sources: tuple[str, ...] = ()
    """The nodes of the imported model that it came from, at most 16."""

    def __str__(self) -> str:
        where = f"{self.subject}: " if self.subject else ""
        return f"[{self.pass_name}] {self.kind.value}: {where}{self.message}"


@dataclass(slots=True)
class PassResult:
    """What a pass run did. ``statistics`` are counts or measures by name, e.g. ``{"conv-bn": 12}``."""

    changed: bool = False
    statistics: dict[str, int | float] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)

    def count(self, name: str, by: int | float = 1) -> None:
        """Add to a statistic."""
        self.statistics[name] = self.statistics.get(name, 0) + by


class Progress(Protocol):
    """Receives how far long work has come; the command line draws a bar from it."""

    def start(self, label: str, total: int | None) -> None: ...

    def advance(self, steps: int = 1) -> None: ...

    def finish(self) -> None: ...


class NoProgress:
    """Nobody is watching."""

    def start(self, label: str, total: int | None) -> None: ...

    def advance(self, steps: int = 1) -> None: ...

    def finish(self) -> None: ...


@dataclass(slots=True)
class PassContext:
    """What a pass may use beside the model.

    ``reference`` is the untouched float model (a clone: tensors are shared). ``calibration`` yields feeds and can be
    iterated again; None where the user gave none. ``target`` is the name of the runtime to compile for. A pass that
    wants its parts in the timing tree writes ``with ctx.timer.scope("weights"):``. ``numbering`` counts rewrites, and
    lets bisection stop after some of them: hand it to ``apply_rules``, or ask ``ctx.numbering.allow(rule, node)``.
    ``executor``: workers that may run shards of the samples; None: this thread alone.
    """

    reference: Model | None = None
    calibration: Iterable[Feed] | None = None
    target: str = "ort-cpu"
    progress: Progress = field(default_factory=NoProgress)
    timer: Timer = field(default_factory=Timer)
    numbering: Numbering = field(default_factory=Numbering)
    executor: Executor | None = None


@dataclass(frozen=True)
class Pass(ABC):
    """A transformation or analysis. Subclasses are frozen dataclasses whose fields are their options.

    The class docstring says what it does, with a before/after in IR text. ``run`` edits the model in place; it runs
    inside a transaction, so it need not clean up when it raises.
    """

    name: ClassVar[str]
    """kebab-case, unique in the registry."""
    effect: ClassVar[Effect]
    keeps_observed: ClassVar[bool] = False
    """Every value that remains holds the same numbers as before, so calibration data stays true."""

    @property
    def needs_calibration(self) -> bool:
        """Whether ``run``, with these options, is of no use without samples; a pipeline asks before it starts.

        A pass that does without them, or only looks at what is there, leaves it at false.
        """
        return False

    @abstractmethod
    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Edit the model and say what was done. Raises QirError where the options or the model make that impossible."""

    def rules(self, model: Model) -> Sequence[Rule]:
        """The rewriting rules that the pass applies to this model, for ``qir explain``; none where it has no rules."""
        return ()

    def remark(self, kind: RemarkKind, about: Node | Value | None, message: str) -> Remark:
        """A remark in this pass's name about a node or value."""
        match about:
            case Node():
                return Remark(kind, self.name, message, about.label, tuple(about.sources[:16]))
            case Value():
                producer = about.producer
                sources = tuple(producer.sources[:16]) if producer is not None else ()
                return Remark(kind, self.name, message, about.name, sources)
            case None:
                return Remark(kind, self.name, message)

    def applied(self, about: Node | Value | None, message: str) -> Remark:
        return self.remark(RemarkKind.APPLIED, about, message)

    def missed(self, about: Node | Value | None, message: str) -> Remark:
        return self.remark(RemarkKind.MISSED, about, message)

    def note(self, about: Node | Value | None, message: str) -> Remark:
        return self.remark(RemarkKind.NOTE, about, message)
