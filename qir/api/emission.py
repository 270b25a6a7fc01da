"""What the user says of the emitted form: the spelling of quantization, integer inputs and outputs, metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from qir.errors import ModelError, OptionError, suggest
from qir.ir import Model
from qir.passes.emission.emit_dynamic import EmitDynamic
from qir.passes.emission.emit_qdq import EmitQdq
from qir.passes.emission.emit_qoperator import EmitQoperator
from qir.passes.emission.integer_io import IntegerIo
from qir.pipeline import Pass, Pipeline
from qir.targets import Target

__all__ = ["FORMATS", "OPTIONS_KEY", "read_session_options", "with_format", "with_integer_io", "write_session_options"]

FORMATS = ("qdq", "qoperator", "contrib")
"""QuantizeLinear and DequantizeLinear around float operators; standard integer operators; onnxruntime's as well."""

OPTIONS_KEY = "qir.session_options"
"""The metadata property that holds the recommended session options, a JSON object of strings."""


def with_format(pipeline: Pipeline, wanted: str | None, target: Target) -> Pipeline:
    """The same pipeline with its emission in a format; None: what is best for the target.

    Raises OptionError for an unknown format, one that the target does not read, or a pipeline without an emission that
    has formats.
    """
    if wanted is not None and wanted not in FORMATS:
        raise OptionError(f"unknown format {wanted!r}{suggest(wanted, FORMATS)}: use {', '.join(FORMATS)}")
    allowed = target.constraints.formats
    chosen = wanted or target.format
    if chosen not in allowed:
        raise OptionError(f"{target.name} reads {' and '.join(sorted(allowed))}, not {chosen}")
    if wanted is None and chosen == "qdq":
        return pipeline
    kinds: tuple[type[Pass], ...] = (EmitQdq, EmitQoperator, EmitDynamic)
    if not any(isinstance(pass_, kinds) for pass_ in pipeline.passes):
        raise OptionError(f"the preset has no emission in formats, so it cannot emit {chosen!r}")
    return Pipeline([_emission(pass_, chosen) for pass_ in pipeline.passes])


def _emission(pass_: Pass, chosen: str) -> Pass:
    if isinstance(pass_, EmitDynamic):
        return EmitDynamic(contrib=chosen == "contrib")
    if not isinstance(pass_, EmitQdq | EmitQoperator):
        return pass_
    return EmitQdq() if chosen == "qdq" else EmitQoperator(contrib=chosen == "contrib")


def with_integer_io(pipeline: Pipeline, types: Sequence[str]) -> Pipeline:
    """The same pipeline with integer inputs and outputs at its end (see the pass ``integer-io``)."""
    return Pipeline([*pipeline.passes, IntegerIo(tuple(types))]) if types else pipeline


def read_session_options(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """The session options that a model's metadata recommends. Raises ModelError where they are damaged."""
    text = (metadata or {}).get(OPTIONS_KEY)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ModelError(f"the model's metadata property {OPTIONS_KEY!r} is no JSON: emit it again") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ModelError(f"the model's metadata property {OPTIONS_KEY!r} is no object of texts: emit it again")
    return found


def write_session_options(model: Model, target: Target) -> dict[str, str]:
    """Put the session options that the target recommends into the model's metadata, and return them."""
    options = dict(target.session_options)
    if options:
        model.metadata = {**(model.metadata or {}), OPTIONS_KEY: json.dumps(options, sort_keys=True)}
    return options
