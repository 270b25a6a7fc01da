"""ONNX to IR. Importing, then exporting, gives an equal model, field by field; only the storage of tensors may change.

Files are read in protobuf's wire format (protobuf.dev/programming-guides/encoding), not through onnx's Python classes:
what a message holds that the IR does not model is then kept by copying its bytes, and a graph of 100,000 nodes loads in
a fraction of the time.
"""

from qir.frontend.importer import import_model, load

__all__ = ["import_model", "load"]
