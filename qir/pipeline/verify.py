"""The verification instrument: after each pass the IR must obey its own rules and those of the operators."""

from __future__ import annotations

from qir.errors import VerifyError
from qir.ir import Model
from qir.pipeline.contract import Effect, Pass
from qir.pipeline.instruments import Instrument, PassRun

__all__ = ["Verification", "verify_model"]

_ANNOTATIONS = frozenset({"frozen", "kernel", "metadata", "observed", "quant", "range", "region", "type"})


def verify_model(model: Model) -> None:
    """Structure, then operators against their schema at the model's opset. Raises VerifyError."""
    from qir.ir.verifier import verify

    try:
        from qir.ops.verifier import verify_schema
    except ImportError:  # TODO: remove with the arrival of qir.ops
        verify(model)
        return
    verify(model)
    verify_schema(model)


class Verification(Instrument):
    """Checks the model before the first pass and after every pass that changed it. Raises VerifyError.

    A pass that declares itself an analysis may write annotations only; that claim is checked on the journal.
    """

    label = "verify"

    def begin(self, model: Model, passes: tuple[Pass, ...]) -> None:
        verify_model(model)

    def after_pass(self, run: PassRun) -> None:
        edits = run.journal.counts()
        if run.pass_.effect is Effect.ANALYSIS and (foreign := sorted(set(edits) - _ANNOTATIONS)):
            raise VerifyError(
                f"it declares the effect 'analysis', which may write annotations only, "
                f"but edited {', '.join(foreign)}: declare 'exact' or 'lossy'"
            )
        if run.changed:
            verify_model(run.model)
