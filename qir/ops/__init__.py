"""What is known of each op: schemas, traits, type and shape inference, opset conversion, schema verification.

The modules are imported by name (``qir.ops.schema``, ``qir.ops.traits``, ...): most of them load onnx.
"""
