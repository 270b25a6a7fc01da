"""Doors: passes of onnx-ir, rules of onnxscript and functions over onnx-graphsurgeon graphs as passes of a pipeline;
the graph as a networkx graph."""

from qir.interop.foreign import GraphSurgeon, OnnxIrPass, OnnxscriptRules
from qir.interop.graphs import to_networkx

__all__ = ["GraphSurgeon", "OnnxIrPass", "OnnxscriptRules", "to_networkx"]
