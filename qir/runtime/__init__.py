"""Bytes to outputs: running ONNX models and looking at what the runtime made of them. Knows nothing of the IR.

A model is a path (external data beside it is found) or its serialized bytes; feeds and outputs are numpy arrays.
"""
