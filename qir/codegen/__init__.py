"""IR to ONNX: ModelProtos, bytes and files."""

from qir.codegen.exporter import export_model, to_bytes
from qir.codegen.runnables import runnable
from qir.codegen.saving import save

__all__ = ["export_model", "runnable", "save", "to_bytes"]
