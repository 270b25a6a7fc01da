"""Models with operators that no runtime here knows: compile the part before them, keep the rest as it is.

What such an operator computes, and so everything behind it, cannot be calibrated or measured. ``split`` cuts the model
at the values that go into that rest; ``join`` puts the compiled part and the untouched rest together again.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx.helper

from qir.codegen import export_model
from qir.errors import UnsupportedError
from qir.frontend import import_model
from qir.ir import Model, Node, Value
from qir.ops.shape_inference import infer
from qir.passes.structure.convert_opset import ConvertOpset
from qir.pipeline import Pipeline

__all__ = ["Split", "first_opaque_node", "split"]

# The domains of which onnxruntime has operators. Source: onnxruntime/core/graph/constants.h
_RUNTIME_DOMAINS = frozenset(
    {
        *("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training"),
        *("com.microsoft", "com.microsoft.experimental", "com.microsoft.nchwc", "com.ms.internal.nhwc"),
    }
)


@dataclass(frozen=True)
class Split:
    """``part``: what can be run, its outputs the values that leave it. ``opaque``: the nodes
    of unknown operators."""

    part: Model
    opaque: tuple[Node, ...]
    _whole: onnx.ModelProto
    _rest: tuple[onnx.NodeProto, ...]

    def join(self, compiled: Model) -> Model:
        """The compiled part followed by the rest, or the whole model where there was nothing to compile.

        Raises UnsupportedError where a new name is one of the rest's."""
        if len(self._rest) == len(self._whole.graph.node):
            return import_model(self._whole)
        joined = export_model(compiled)
        graph, whole = joined.graph, self._whole.graph
        made = {name for node in graph.node for name in node.output} | {tensor.name for tensor in graph.initializer}
        own = {name for node in self._rest for name in node.output if name}
        if clash := sorted(own & made):
            raise UnsupportedError(
                f"the compiled model makes {clash[0]!r}, which the rest of the model makes too: rename it"
            )
        known = made | {value.name for value in graph.input}
        wanted = {name for node in self._rest for name in _reads(node)} | {value.name for value in whole.output}
        graph.initializer.extend(t for t in whole.initializer if t.name in wanted - known)
        graph.sparse_initializer.extend(t for t in whole.sparse_initializer if t.values.name in wanted - known)
        graph.node.extend(self._rest)
        del graph.output[:]
        graph.output.extend(whole.output)
        domains = {entry.domain for entry in joined.opset_import}
        joined.opset_import.extend(entry for entry in self._whole.opset_import if entry.domain not in domains)
        functions = {(f.domain, f.name, f.overload) for f in joined.functions}
        joined.functions.extend(f for f in self._whole.functions if (f.domain, f.name, f.overload) not in functions)
        return import_model(joined)


def first_opaque_node(model: Model) -> Node | None:
    """The first node, bodies and functions included, whose operator neither the runtime nor the model defines."""
    return next(iter(_opaque_nodes(model)), None)


def _opaque_nodes(model: Model) -> list[Node]:
    own = {(function.domain, function.name) for function in model.functions.values()}
    return [n for n in model.walk() if n.domain not in _RUNTIME_DOMAINS and (n.domain, n.op) not in own]


def split(model: Model, opset: int) -> Split:
    """Cut a model in front of its opaque operators; one below ``opset`` is converted to it first.

    Raises what the conversion raises, and UnsupportedError for a model over 2 GB.
    """
    whole = Pipeline([ConvertOpset(to=opset)]).run(model).model if (model.opset() or opset) < opset else model.clone()
    infer(whole)
    opaque = tuple(_opaque_nodes(whole))
    tainted = _depending(whole, opaque)
    proto = export_model(whole)
    outputs = {value.name for node in tainted for value in node.outputs if value.name}
    read = {value for node in tainted for value in _operands(node)} | set(whole.graph.outputs)
    for value in whole.graph.values():
        if value in read and value.name not in outputs and not value.is_constant and not value.is_output:
            if not value.is_input:
                whole.graph.add_output(value)
    part = export_model(whole)
    kept = [node for node in part.graph.node if not outputs & set(node.output)]
    rest = tuple(node for node in proto.graph.node if outputs & set(node.output))
    results = [value for value in part.graph.output if value.name not in outputs]
    del part.graph.node[:], part.graph.output[:]
    part.graph.node.extend(kept)
    part.graph.output.extend(results)
    if not kept:
        _let_the_inputs_through(part.graph)
    read_names = {name for node in part.graph.node for name in _reads(node)} | {value.name for value in results}
    needed = [tensor for tensor in part.graph.initializer if tensor.name in read_names]
    del part.graph.initializer[:]
    part.graph.initializer.extend(needed)
    return Split(import_model(part), opaque, proto, rest)


def _let_the_inputs_through(graph: onnx.GraphProto) -> None:
    """Something to run where the opaque operators come first: the runtime loads no graph without nodes."""
    for value in graph.input:
        name = f"{value.name}_as_it_is"
        graph.node.append(onnx.helper.make_node("Identity", [value.name], [name]))
        graph.output.append(value)
        graph.output[-1].name = name


def _depending(model: Model, opaque: tuple[Node, ...]) -> list[Node]:
    """The nodes of the main graph that are opaque, hold an opaque one in a body, or read what such a node makes."""
    unknown = set(opaque)
    functions = {
        (function.domain, function.name)
        for function in model.functions.values()
        if any(node in unknown for node in function.graph.walk())
    }
    tainted: dict[Node, None] = {}
    for node in model.graph.nodes:
        inner = [node, *(found for body in node.bodies for found in body.walk())]
        if any(found in unknown or (found.domain, found.op) in functions for found in inner) or any(
            value.producer in tainted for value in _operands(node)
        ):
            tainted[node] = None
    return list(tainted)


def _operands(node: Node) -> list[Value]:
    """What a node reads, captures of its bodies included."""
    inner = [node, *(found for body in node.bodies for found in body.walk())]
    ends = [use.value for body in node.bodies for graph in body.graphs() for use in graph.output_uses]
    return [value for found in inner for value in found.inputs if value is not None] + ends


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, inside of its bodies too."""
    names = set(node.input)
    for attribute in node.attribute:
        for body in [attribute.g, *attribute.graphs]:
            names.update(value.name for value in body.output)
            for inner in body.node:
                names |= _reads(inner)
    return names
