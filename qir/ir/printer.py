r"""Prints the IR as text; ``qir.ir.parser`` reads it back, and nothing that the IR models is lost on the way.

::

    model ir=10 opset=[17, com.microsoft 1] producer="pytorch" meta={"author": "me"}
    graph main(%x: f32[N,64] range=[0, 1]) -> (%y) {
      @w: f32[64,64] #4bb1d2c8a90e7f13                       // 17 elements or more: a hash of the content
      @b: f32[2] = [0.5, -0.0]                               // at most 16: the elements
      %h: f32[N,64] seen=[0, 11.2] q=u8(0.0439, 0) = Relu(%x) name="relu"
      %y: f32[N,64] = Gemm(%h : float, @w : s8(0.1, 0), _) {alpha=0.5, transB=1} kernel=integer name="fc" from="a", "b"
      () = com.microsoft.Log:verbose(%y)
    }
    function my.domain.Double(%a) -> (%b) attributes=[k] defaults={e=1.0} opset=[17] {
      %b = Mul(%a, %a) {axis=@k : int} role=double#3
    }

Layout means nothing (one node a line is how it is printed); ``//`` starts a comment.

*Names.* ``%value``, ``@initializer``: one namespace, the sigil says which kind it is. Letters, digits and
``_ / . : -`` stand bare (not ``:`` at an end, not ``->``), anything else in quotes: ``%"my value"``. So the ``:``
before a type needs a space behind it. ``_`` is an operand that is left out or a result that nobody wants.

*Strings* stand in double quotes: ``\" \ \n \r \t \u{hex}``; ``b"..."`` with ``\xNN`` is bytes that are no UTF-8.

*Numbers.* A float is the nearest float32, with a ``d`` behind it the nearest double. In attributes ``1`` is an int,
``1.0`` a float; in ranges and scales both are floats. ``inf``, ``-inf``, ``nan``, ``nan(0xBITS)``.

*Values*: ``%name: type`` and then, where set, ``range= seen= q= frozen annotation={} doc="" meta={} extra=""``.
``seen=stale("pass")`` is dropped calibration data. Types and quantization types: see ``print_atoms``; a denotation
follows its type or dimension behind ``!``. ``extra`` is base64.

*Initializers*: the value, then ``#hash`` or ``= content``, where content is ``[elements]``, one bare element (rank 0),
or ``0xHEX`` (packed bytes), with its own type in front where the value's differs: ``= f32[2] [1, 2]``. Sparse:
``= sparse[100](f32[3] [...], s64[3] [...])``. In braces what else a TensorProto carries:
``{name="", doc="", meta={}, extra=""}``. The tensor of an initializer has no name of its own.

*Nodes*: ``results = domain.Op:overload(operands) {attributes}`` and then, where set, ``kernel= role=NAME#NUMBER name=
from= doc= meta= extra=``. A missing ``from`` means the node's own name, or its first result's where it has
none; ``from=none``: made by the compiler. An operand's own quantization follows behind `` : ``; ``float`` bypasses
the quantizer.

*Attributes*: int, float, string, ``f32[2] [1, 2]``, ``type f32[N]``, ``graph (...) -> (...) {...}``,
``sparse[...](...)``, lists of one of these in brackets; an empty list names its kind: ``ints[]``. ``@name : kind``
refers to an attribute of the function, and ``none : kind`` has no value. Notes may follow in parentheses:
``axis=1 (doc="", extra="")``.

*Graphs* end in ``recorded=[%a, @b]``, the values whose types the file records, or ``recorded=all`` (all typed results
but the outputs).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qir.ir.attribute import Attribute, AttrKind
from qir.ir.function import Function
from qir.ir.graph import Graph
from qir.ir.journal import Stale
from qir.ir.literals import bytes_text, float_text, is_word, quote, residue_text, value_name, word
from qir.ir.model import Model
from qir.ir.node import Node
from qir.ir.print_atoms import (
    interval_text,
    is_inline,
    metadata_text,
    quant_text,
    sparse_text,
    tensor_text,
    type_text,
)
from qir.ir.provenance import Provenance, flatten
from qir.ir.quant_types import UseQuantMarker
from qir.ir.tensor import SparseTensor, Tensor
from qir.ir.types import TensorType, Type
from qir.ir.value import Use, Value

__all__ = [
    "default_source",
    "print_graph",
    "print_model",
    "print_node",
    "print_signature",
    "print_value",
    "recordable",
    "stored_tensors",
]

_INDENT = "  "
_LINE_WIDTH = 110
_BRIEF_SOURCES = 4


def print_model(model: Model, *, brief: bool = False) -> str:
    """The whole model; ``brief`` shortens long lists and leaves out documentation and hashes (not parsed back).

    Reads every constant of more than 16 elements for its hash, unless brief. Linear.
    """
    lines = [_model_header(model)]
    lines += _graph_lines(model.graph, f"graph{_spaced(model.graph.name)}", "", brief)
    for function in model.functions.values():
        lines += _function_lines(function, brief)
    return "\n".join(lines) + "\n"


def print_graph(graph: Graph, *, brief: bool = False) -> str:
    """``graph name(...) -> (...) { ... }``."""
    return "\n".join(_graph_lines(graph, f"graph{_spaced(graph.name)}", "", brief)) + "\n"


def print_signature(graph: Graph) -> str:
    """``graph name(...) -> (...) {``, shortened, for messages."""
    return "\n".join(_signature_lines(graph, f"graph{_spaced(graph.name)}", "", True))


def print_node(node: Node, *, brief: bool = False) -> str:
    """One line, and the lines of its bodies; without a line break at the end. Works for an erased node too."""
    return "\n".join(_node_lines(node, "", brief))


def print_value(value: Value, *, brief: bool = False) -> str:
    """``%name: type range=...`` as at its definition."""
    return _definition(value, "@" if value.is_initializer else "%", brief)


def stored_tensors(model: Model) -> dict[str, Tensor]:
    """The tensors that the model's text names by hash, under that hash: the store that lets it be parsed whole."""
    store: dict[str, Tensor] = {}
    for tensor in _tensors(model):
        if not is_inline(tensor) and not tensor.is_stub:
            store[tensor.digest()[:8].hex()] = tensor
    return store


def recordable(graph: Graph) -> Iterator[Value]:
    """What ``recorded=all`` stands for: typed, named results of nodes that are no outputs of the graph."""
    outputs = set(graph.outputs)
    for node in graph.nodes:
        for value in node.outputs:
            if value.type is not None and value.name and value not in outputs:
                yield value


def _tensors(model: Model) -> Iterator[Tensor]:
    def parts(content: Any) -> Iterator[Tensor]:
        if isinstance(content, Tensor):
            yield content
        elif isinstance(content, SparseTensor):
            yield from (content.values, content.indices)

    for graph in model.graphs():
        for value in graph.initializers:
            yield from parts(value.const)
    attributes = [attribute for node in model.walk() for attribute in node.attributes.values()]
    for function in model.functions.values():
        attributes += function.defaults
    for attribute in attributes:
        for content in attribute.value if attribute.kind.is_list and attribute.value else (attribute.value,):
            yield from parts(content)


# Model, functions, graphs


def _model_header(model: Model) -> str:
    words = ["model"]
    if model.ir_version is not None:
        words.append(f"ir={model.ir_version}")
    words.append(f"opset={_opsets(model.opset_imports)}")
    for key, text in (
        ("producer", model.producer_name),
        ("producer_version", model.producer_version),
        ("domain", model.domain),
    ):
        if text:
            words.append(f"{key}={quote(text)}")
    if model.model_version is not None:
        words.append(f"version={model.model_version}")
    return " ".join(words + _notes(model, brief=False))


def _opsets(imports: Mapping[str, int]) -> str:
    return "[" + ", ".join(f"{_domain(d)} {version}" if d else str(version) for d, version in imports.items()) + "]"


def _notes(subject: Model | Graph | Node | Value, brief: bool) -> list[str]:
    if brief or (subject._metadata is None and not subject._doc and subject._extra is None):
        return []
    words = []
    if subject.doc:
        words.append(f"doc={quote(subject.doc)}")
    if subject.metadata is not None:
        words.append(f"meta={metadata_text(subject.metadata)}")
    if subject.extra is not None:
        words.append(f"extra={residue_text(subject.extra)}")
    return words


def _function_lines(function: Function, brief: bool) -> list[str]:
    name = _op_name(function.domain, function.name, function.overload)
    words = []
    if function.attributes:
        words.append(f"attributes=[{', '.join(map(word, function.attributes))}]")
    if function.defaults:
        defaults = ", ".join("\n".join(_attribute_lines(default, "", brief)) for default in function.defaults)
        words.append(f"defaults={{{defaults}}}")
    words.append(f"opset={_opsets(function.opset_imports)}")
    if function.extra is not None:
        words.append(f"function_extra={residue_text(function.extra)}")
    return _graph_lines(function.graph, f"function {name}", "", brief, words)


def _graph_lines(graph: Graph, head: str, indent: str, brief: bool, clauses: Sequence[str] = ()) -> list[str]:
    inner = indent + _INDENT
    lines = _signature_lines(graph, head, indent, brief, clauses)
    lines += [inner + _initializer(value, brief) for value in graph.initializers]
    for node in graph.nodes:
        lines += _node_lines(node, inner, brief)
    if graph.recorded_types and not brief:
        recorded = _recorded(graph)
        lines += [inner + recorded] if recorded else []
    lines.append(indent + "}")
    return lines


def _signature_lines(graph: Graph, head: str, indent: str, brief: bool, clauses: Sequence[str] = ()) -> list[str]:
    inner = indent + _INDENT
    inputs = [_definition(value, "%", brief) for value in graph.inputs]
    results = f") -> ({', '.join(_operand(use, brief) for use in graph.output_uses)})"
    tail = " ".join([results, *clauses, *_notes(graph, brief), "{"])
    if len(inputs) < 2 or len(head) + sum(map(len, inputs)) + len(tail) < _LINE_WIDTH:
        return [f"{head}({', '.join(inputs)}{tail}"]
    return [f"{head}(", *(f"{inner}{text}," for text in inputs[:-1]), inner + inputs[-1], indent + tail]


def _recorded(graph: Graph) -> str:
    values = [value for value in graph.recorded_types if value.graph is graph]
    if values and values == list(recordable(graph)):
        return "recorded=all"
    return f"recorded=[{', '.join(map(_reference, values))}]" if values else ""


def _spaced(name: str) -> str:
    return f" {word(name)}" if name else " "


# Values


def _reference(value: Value) -> str:
    return ("@" if value._linked else "%") + value_name(value._name)


def _definition(value: Value, sigil: str, brief: bool) -> str:
    text = sigil + value_name(value._name) if value._name else "_"
    if value._type is not None:
        text += f": {type_text(value._type)}"
    if value._range is not None:
        text += f" range={interval_text(value._range, brief)}"
    observed = value._observed
    if isinstance(observed, Stale):
        text += f" seen=stale({quote(observed.edit)})"
    elif observed is not None:
        text += f" seen={interval_text(observed, brief)}"
    if value._quant is not None:
        text += f" q={quant_text(value._quant, brief)}"
    if value._frozen:
        text += " frozen"
    if value._annotation:
        pairs = ", ".join(f"{quote(key)}: {quote(name)}" for key, name in value._annotation)
        text += f" annotation={{{pairs}}}"
    notes = _notes(value, brief)
    return " ".join([text, *notes]) if notes else text


def _initializer(value: Value, brief: bool) -> str:
    text = ("@" + value_name(value.name) if value.is_input else _definition(value, "@", brief)) if value.name else '@""'
    const = value.const
    if const is None:
        return f"{text} = none"
    if isinstance(const, SparseTensor):
        return f"{text} = {sparse_text(const, brief, name=False)}"
    typed = not _same_type(value.type, const) or value.is_input
    content = tensor_text(const, brief, name=False, typed=typed)
    return f"{text} {content}" if not typed and content[0] == "#" else f"{text} = {content}"


def _same_type(type_: Type | None, tensor: Tensor) -> bool:
    return isinstance(type_, TensorType) and type_.dtype is tensor.dtype and type_.shape == tensor.shape


def _operand(use: Use | None, brief: bool) -> str:
    if use is None:
        return "_"
    text = _reference(use._value)
    return text if use._quant is UseQuantMarker.INHERIT else f"{text} : {quant_text(use._quant, brief)}"


# Nodes and attributes


def _node_lines(node: Node, indent: str, brief: bool) -> list[str]:
    outputs = node._outputs
    results = ", ".join([_definition(value, "%", brief) for value in outputs]) if outputs else "()"
    operands = ", ".join([_operand(use, brief) for use in node._uses])
    lines = [f"{indent}{results} = {_op_name(node._domain, node._op, node._overload)}({operands})"]
    if node._attributes:
        lines[-1] += " {"
        for position, attribute in enumerate(node._attributes.values()):
            first, *rest = _attribute_lines(attribute, indent, brief)
            lines[-1] += (", " if position else "") + first
            lines += rest
        lines[-1] += "}"
    if node._kernel is not None:
        lines[-1] += f" kernel={word(node._kernel)}"
    if node._region is not None:
        lines[-1] += f" role={word(node._region.role)}#{node._region.number}"
    if node._name:
        lines[-1] += f" name={quote(node._name)}"
    if node._provenance != default_source(node):
        lines[-1] += f" from={_sources(node, brief)}"
    notes = _notes(node, brief)
    if notes:
        lines[-1] += " " + " ".join(notes)
    return lines


def default_source(node: Node) -> Provenance:
    """What a missing ``from`` means: what the importer calls the node."""
    return node._name or (node._outputs[0]._name if node._outputs else "") or ()


def _sources(node: Node, brief: bool) -> str:
    if node._provenance == ():
        return "none"
    names = [quote(name) for name in flatten(node._provenance, _BRIEF_SOURCES + 1 if brief else None)]
    if brief and len(names) > _BRIEF_SOURCES:
        names[-1] = "..."
    return ", ".join(names)


def _op_name(domain: str, op: str, overload: str) -> str:
    text = op if is_word(op) else quote(op)
    if domain:
        text = f"{_domain(domain)}.{text}"
    return f"{text}:{word(overload)}" if overload else text


def _domain(domain: str) -> str:
    return domain if all(map(is_word, domain.split("."))) else quote(domain)


def _attribute_lines(attribute: Attribute, indent: str, brief: bool) -> list[str]:
    """``name=value``; of several lines where it holds graphs, the first and the last not indented or ended."""
    kind = attribute.kind
    if attribute.ref:
        text = f"@{value_name(attribute.ref)} : {kind.name.lower()}"
    elif attribute.value is None:
        text = f"none : {kind.name.lower()}"
    elif kind.is_list and not attribute.value:
        text = f"{kind.name.lower()}[]"
    elif kind.is_list:
        shown = attribute.value[:8] if brief and kind is not AttrKind.GRAPHS else attribute.value
        items = [_item(kind, item, indent, brief) for item in shown]
        text = f"[{', '.join(items)}{', ...' if len(shown) < len(attribute.value) else ''}]"
    else:
        text = _item(kind, attribute.value, indent, brief)
    if (attribute.doc or attribute.extra is not None) and not brief:
        notes = [f"doc={quote(attribute.doc)}"] if attribute.doc else []
        notes += [f"extra={residue_text(attribute.extra)}"] if attribute.extra is not None else []
        text += f" ({', '.join(notes)})"
    return f"{word(attribute.name)}={text}".split("\n")


def _item(kind: AttrKind, item: Any, indent: str, brief: bool) -> str:
    match kind:
        case AttrKind.INT | AttrKind.INTS:
            return str(int(item))
        case AttrKind.FLOAT | AttrKind.FLOATS:
            text = float_text(item)
            return text if not text.lstrip("-").isdigit() else f"{text}.0"
        case AttrKind.STRING | AttrKind.STRINGS:
            text = bytes_text(item)
            return f'{text[:60]}..."' if brief and len(text) > 64 else text
        case AttrKind.TENSOR | AttrKind.TENSORS:
            return tensor_text(item, brief)
        case AttrKind.SPARSE_TENSOR | AttrKind.SPARSE_TENSORS:
            return sparse_text(item, brief)
        case AttrKind.GRAPH | AttrKind.GRAPHS:
            return "\n".join(_graph_lines(item, f"graph{_spaced(item.name)}", indent, brief))
        case _:
            return f"type {type_text(item)}"
