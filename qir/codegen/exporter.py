"""IR models to ModelProtos and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qir.codegen.graphs import Annotations, GraphWriter, opset_fields
from qir.codegen.residue import metadata_fields
from qir.codegen.tensors import ExternalEntry
from qir.codegen.versions import needed_ir_version
from qir.codegen.wire import Message, bytes_field, text_field, varint_field
from qir.errors import OutputError
from qir.frontend.residue import absent_fields
from qir.ir import Model, Value

if TYPE_CHECKING:
    import onnx

__all__ = ["MOST_BYTES", "export_model", "model_message", "to_bytes"]

MOST_BYTES = (1 << 31) - 1
"""protobuf reads no larger message."""


def export_model(
    model: Model, *, annotations: Annotations = "error", strip_provenance: bool = False
) -> onnx.ModelProto:
    """The ModelProto, weights inside of it as raw_data. Raises QirError as ``to_bytes`` does."""
    import onnx

    proto = onnx.ModelProto()
    proto.ParseFromString(to_bytes(model, annotations=annotations, strip_provenance=strip_provenance))
    return proto


def to_bytes(model: Model, *, annotations: Annotations = "error", strip_provenance: bool = False) -> bytes:
    """The serialized ModelProto, weights inside of it.

    ``annotations="drop"`` leaves quantization annotations out, which gives the float model; by default they are an
    error. ``strip_provenance`` leaves out which nodes of the source model each node stands for. Raises QirError, and
    OutputError where the model passes 2 GB.
    """
    message = model_message(model, annotations=annotations, strip_provenance=strip_provenance)
    if message.size > MOST_BYTES:
        raise OutputError(
            f"the model takes {message.size / 1e9:.1f} GB, one ONNX message at most 2 GB: save it with external data"
        )
    return message.to_bytes()


def model_message(
    model: Model,
    *,
    external: Mapping[Value, ExternalEntry] | None = None,
    annotations: Annotations = "error",
    strip_provenance: bool = False,
) -> Message:
    """The ModelProto in pieces; ``external`` says which initializers' data is in a file."""
    writer = GraphWriter(external or {}, annotations, strip_provenance)
    message = Message()
    absent, rest = absent_fields(model.extra or b"")
    rest, metadata = metadata_fields(14, rest, model.metadata)
    rest, opsets = opset_fields(8, rest, model.opset_imports)
    message.add(rest)
    if model.ir_version is not None:
        message.add(varint_field(1, model.ir_version))
    elif 1 not in absent:
        message.add(varint_field(1, needed_ir_version(model)))
    message.add(text_field(2, model.producer_name))
    message.add(text_field(3, model.producer_version))
    message.add(text_field(4, model.domain))
    if model.model_version is not None:
        message.add(varint_field(5, model.model_version))
    message.add(text_field(6, model.doc))
    message.add_message(7, writer.graph(model.graph))
    message.add(opsets)
    message.add(metadata)
    for function in model.functions.values():
        message.add(bytes_field(25, writer.function(function)))
    return message
