"""IR to ONNX: ModelProtos, bytes and files."""

from qir.codegen.exporter import export_model, to_bytes
from qir.codegen.runnables import runnable
from qir.codegen.saving import save
from qir.codegen.versions import needed_ir_version

__all__ = ["export_model", "needed_ir_version", "runnable", "save", "to_bytes"]
