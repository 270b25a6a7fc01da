"""The verification instrument: after each pass the IR must obey its own rules and those of the operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qir.errors import VerifyError
from qir.ir import Model
from qir.pipeline.contract import Effect, Pass, Remark, RemarkKind
from qir.pipeline.instruments import Instrument, PassRun

if TYPE_CHECKING:
    from qir.ops.verifier import SchemaReport
    from qir.pipeline.result import PipelineResult

__all__ = ["Verification", "verify_model"]

_ANNOTATIONS = frozenset({"frozen", "kernel", "metadata", "observed", "quant", "range", "region", "type"})


def verify_model(model: Model) -> SchemaReport:
    """Structure, then operators against their schema at the model's opset. Raises VerifyError."""
    from qir.ir.verifier import verify
    from qir.ops.verifier import verify_schemas

    verify(model)
    return verify_schemas(model)


class Verification(Instrument):
    """Checks the model before the first pass and after every pass that changed it. Raises VerifyError.

    A pass that declares itself an analysis may write annotations only; that claim is checked on the journal.
    """

    label = "verify"

    def __init__(self) -> None:
        self._opaque: Mapping[str, int] = {}

    def begin(self, model: Model, passes: tuple[Pass, ...]) -> None:
        try:
            self._opaque = verify_model(model).opaque
        except VerifyError as error:
            raise VerifyError(
                f"the model is not valid as given; export it again, or run without verification: {error}"
            ) from error

    def after_pass(self, run: PassRun) -> None:
        edits = run.journal.counts()
        if run.pass_.effect is Effect.ANALYSIS and (foreign := sorted(set(edits) - _ANNOTATIONS)):
            raise VerifyError(
                f"it declares the effect 'analysis', which may write annotations only, "
                f"but edited {', '.join(foreign)}: declare 'exact' or 'lossy'"
            )
        if run.changed:
            verify_model(run.model)

    def end(self, result: PipelineResult) -> None:
        for domain, count in sorted(self._opaque.items()):
            nodes = "1 node" if count == 1 else f"{count} nodes"
            result.first_remarks.append(
                Remark(
                    RemarkKind.NOTE,
                    self.label,
                    f"nothing is known of domain {domain!r} ({nodes}): kept as it is, not checked",
                )
            )
