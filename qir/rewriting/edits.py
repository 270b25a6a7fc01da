"""Small sound edits and questions that every rewrite needs: constants, forwarding, merging, dead nodes, purity."""

from __future__ import annotations

from collections.abc import Callable, Container

import numpy as np

from qir.ir import AttrKind, Graph, Model, Node, OpId, SparseTensor, Tensor, TensorType, UseQuantMarker, Value

__all__ = [
    "add_constant",
    "constant_node_content",
    "constant_of",
    "erase_dead",
    "forward",
    "import_domain",
    "ints_of",
    "is_annotated",
    "is_pure",
    "is_standard",
    "merge_origin",
    "opset_of",
    "scalar_of",
]

_STANDARD = frozenset(("", "ai.onnx"))
_WELL_KNOWN = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
_RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)


def is_standard(node: Node) -> bool:
    """Whether the op belongs to ONNX's own default domain."""
    return node.domain in _STANDARD


def opset_of(model: Model, graph: Graph) -> int:
    """The default domain's version in ``graph`` (a function has imports of its own); 0 where there is none."""
    while graph.outer is not None:
        graph = graph.outer
    if graph.function is None:
        return model.opset() or 0
    imports = graph.function.opset_imports
    return imports.get("", imports.get("ai.onnx", 0))


def import_domain(model: Model, graph: Graph, domain: str, version: int = 1) -> None:
    """Make the operators of ``domain`` usable in ``graph``: imported by the model, and by the function it is part of.

    A version that is imported already stays.
    """
    if model.opset(domain) is None:
        model.opset_imports = {**model.opset_imports, domain: version}
    while graph.outer is not None:
        graph = graph.outer
    function = graph.function
    if function is not None and domain not in function.opset_imports:
        function.opset_imports = {**function.opset_imports, domain: model.opset(domain) or version}


def is_pure(node: Node, functions: Container[OpId] = ()) -> bool:
    """Whether equal inputs give equal outputs and nothing else happens, as far as ONNX says.

    False for random ops, Dropout that trains, ops of domains that ONNX does not define, calls of ``functions``, and
    nodes with bodies (whose nodes would have to be asked one by one).
    """
    if node.domain not in ("", "ai.onnx", "ai.onnx.ml") or node.op in _RANDOM or node.op_id in functions:
        return False
    if node.op == "Dropout" and node.input(2) is not None:
        return False
    return not node.bodies


def constant_of(value: Value | None) -> Tensor | None:
    """The content of an initializer that nobody can override, or of a Constant node's output; else None."""
    if value is None:
        return None
    producer = value.producer
    if producer is None:
        return value.tensor
    if producer.op == "Constant" and producer.domain in _STANDARD:
        content = constant_node_content(producer)
        return content if isinstance(content, Tensor) else None
    return None


def constant_node_content(node: Node) -> Tensor | SparseTensor | None:
    """What a Constant node yields; None where its attribute refers to one of the enclosing function."""
    for attribute in node.attributes.values():
        if attribute.ref:
            return None
        match attribute.kind, attribute.name:
            case (AttrKind.TENSOR, "value") | (AttrKind.SPARSE_TENSOR, "sparse_value"):
                content: Tensor | SparseTensor = attribute.value
                return content
            case (AttrKind.FLOAT | AttrKind.FLOATS, "value_float" | "value_floats"):
                return Tensor.of(np.array(attribute.value, np.float32))
            case (AttrKind.INT | AttrKind.INTS, "value_int" | "value_ints"):
                return Tensor.of(np.array(attribute.value, np.int64))
            case (AttrKind.STRING | AttrKind.STRINGS, "value_string" | "value_strings"):
                return Tensor.of(np.array(attribute.value, object))
    return None


def ints_of(value: Value | None, limit: int = 1024) -> tuple[int, ...] | None:
    """The elements of a constant integer tensor of at most ``limit`` elements, flattened; else None."""
    tensor = constant_of(value)
    if tensor is None or not tensor.dtype.is_integer or tensor.size > limit:
        return None
    return tuple(tensor.numpy().reshape(-1).tolist())


def scalar_of(value: Value | None) -> float | None:
    """The only element of a constant real or integer tensor; None for anything else."""
    tensor = constant_of(value)
    if tensor is None or tensor.size != 1 or not (tensor.dtype.is_float or tensor.dtype.is_integer):
        return None
    return float(tensor.item())


def add_constant(anchor: Node, array: np.ndarray | Tensor, hint: str) -> Value:
    """A constant that ``anchor`` can read: an initializer, or a Constant node inside of a function, which has none."""
    graph = anchor.graph
    assert graph is not None, "an erased node reads nothing"
    tensor = array if isinstance(array, Tensor) else Tensor.of(array)
    root = graph
    while root.outer is not None:
        root = root.outer
    if root.function is None:
        return graph.add_initializer(hint, tensor)
    type_ = TensorType(tensor.dtype, tensor.shape)
    return graph.insert_before(anchor, "Constant", attributes={"value": tensor}, types=[type_]).output


def is_annotated(node: Node) -> bool:
    """Whether a quantization annotation stands on the node, its results or its operands' uses."""
    if node.kernel is not None:
        return True
    for value in node.outputs:
        if value.quant is not None:
            return True
    inherit = UseQuantMarker.INHERIT
    for use in node.uses:
        if use is not None and use.quant is not inherit:
            return True
    return False


def merge_origin(kept: Node, gone: Node) -> None:
    """Let ``kept`` stand for ``gone`` too: provenance merged, metadata united (what ``kept`` says wins)."""
    if gone.provenance != () and gone.provenance is not kept.provenance:
        old = kept.provenance
        if old == ():
            kept.provenance = gone.provenance
        elif isinstance(old, str):
            kept.provenance = (old, gone.provenance)
        else:
            # The first source stays on top, so that a label is found at once however much was merged.
            kept.provenance = (old[0], (old[1:], gone.provenance))
    if gone.metadata:
        kept.metadata = {**gone.metadata, **(kept.metadata or {})}


def forward(old: Value, new: Value) -> bool:
    """Let the readers of ``old`` read ``new`` in its place; returns whether all of them do.

    A graph output stays with ``old`` unless ``new`` is made by a node of the same graph and is no output yet; then it
    takes over the output's name. So no graph ever hands an input, a captured value or a constant straight out. Nothing
    happens where the two are stored differently quantized.
    """
    if old.quant != new.quant and old.quant is not None:
        return False
    if new.quant is not None and old.quant is None:
        return False
    keep = False
    if old.is_output:
        outputs = [use for use in old.uses if use.is_graph_output]
        keep = len(outputs) > 1 or new.producer is None or new.graph is not outputs[0].graph or new.is_output
    if keep:
        old.replace_all_uses(new, lambda use: not use.is_graph_output)
    else:
        old.replace_all_uses(new)
    _adopt_knowledge(old, new)
    return not keep


def _adopt_knowledge(old: Value, new: Value) -> None:
    if new.type is None or (isinstance(new.type, TensorType) and new.type.shape is None and old.shape is not None):
        new.type = old.type
    if new.range is None and old.range is not None:
        new.range = old.range


def erase_dead(graph: Graph, on_erase: Callable[[Node], None] | None = None) -> int:
    """Erase the nodes of ``graph`` and its bodies whose results nobody reads; returns how many.

    Linear: one walk from the end to the start. Nodes of domains that nobody here knows stay, as do nodes without
    results: they may act by other means.
    """
    erased = 0
    for node in reversed(graph.nodes):
        if not node.is_read and node.outputs and node.domain in _WELL_KNOWN:
            if on_erase is not None:
                on_erase(node)
            node.erase()
            erased += 1
            continue
        for body in node.bodies:
            erased += erase_dead(body, on_erase)
    return erased
