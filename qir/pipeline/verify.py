"""The verification instrument: after each pass the IR must obey its own rules and those of the operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qir.errors import VerifyError
from qir.ir import Model, TensorType, Type
from qir.ir.types import format_type
from qir.pipeline.contract import Effect, Pass, Remark, RemarkKind
from qir.pipeline.instruments import Instrument, PassRun

if TYPE_CHECKING:
    from qir.ops.verifier import SchemaReport
    from qir.pipeline.result import PipelineResult

__all__ = ["Verification", "verify_model"]

_ANNOTATIONS = frozenset({"frozen", "kernel", "metadata", "observed", "quant", "range", "region", "type"})


def _may_be(before: Type | None, after: Type | None) -> bool:
    """Whether a value of the one type may be one of the other; symbols and unknown sizes may be anything."""
    if not isinstance(before, TensorType) or not isinstance(after, TensorType):
        return True
    if before.dtype is not after.dtype:
        return False
    if before.shape is None or after.shape is None:
        return True
    pairs = zip(before.shape, after.shape, strict=False)
    return len(before.shape) == len(after.shape) and not any(
        isinstance(old, int) and isinstance(new, int) and old != new for old, new in pairs
    )


def verify_model(model: Model) -> SchemaReport:
    """Structure, then operators against their schema at the model's opset. Raises VerifyError."""
    from qir.ir.verifier import verify
    from qir.ops.verifier import verify_schemas

    verify(model)
    return verify_schemas(model)


class Verification(Instrument):
    """Checks the model before the first pass and after every pass that changed it. Raises VerifyError.

    A pass that declares itself an analysis may write annotations only; that claim is checked on the journal. An exact
    one keeps the outputs: their names, element types and sizes.
    """

    label = "verify"

    def __init__(self) -> None:
        self._opaque: Mapping[str, int] = {}
        self._outputs: dict[str, Type | None] = {}

    def begin(self, model: Model, passes: tuple[Pass, ...]) -> None:
        try:
            self._opaque = verify_model(model).opaque
        except VerifyError as error:
            raise VerifyError(
                f"the model is not valid as given; export it again, or run without verification: {error}"
            ) from error

    def before_pass(self, run: PassRun) -> None:
        self._outputs = {value.name: value.type for value in run.model.graph.outputs}

    def after_pass(self, run: PassRun) -> None:
        edits = run.journal.counts()
        if run.pass_.effect is Effect.ANALYSIS and (foreign := sorted(set(edits) - _ANNOTATIONS)):
            raise VerifyError(
                f"it declares the effect 'analysis', which may write annotations only, "
                f"but edited {', '.join(foreign)}: declare 'exact' or 'lossy'"
            )
        if run.changed:
            verify_model(run.model)
            if run.pass_.effect is Effect.EXACT:
                self._same_outputs(run.model)

    def _same_outputs(self, model: Model) -> None:
        types = {value.name: value.type for value in model.graph.outputs}
        for name, before in self._outputs.items():
            if name not in types:
                raise VerifyError(f"it declares the effect 'exact', but the graph's output {name!r} is gone")
            after = types[name]
            if not _may_be(before, after):
                raise VerifyError(
                    f"it declares the effect 'exact', but the graph's output {name!r} was {format_type(before)} and is "
                    f"{format_type(after)}"
                )

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
