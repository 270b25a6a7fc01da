"""IR graphs, nodes and functions to GraphProtos, NodeProtos and FunctionProtos.

The hot loop of saving: what repeats (types, attributes, names of ops) is serialized once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from qir.codegen.attributes import attribute_bytes
from qir.codegen.residue import metadata_fields
from qir.codegen.tensors import ExternalEntry, sparse_tensor_message, tensor_message
from qir.codegen.wire import Message, bytes_field, text_field, varint, varint_field
from qir.errors import QirError
from qir.frontend.infos import annotations_of, opsets_of
from qir.frontend.residue import take
from qir.frontend.types import decode_type, encode_type
from qir.frontend.wire import fields
from qir.ir import Attribute, Function, Graph, Node, SparseTensor, Type, UseQuantMarker, Value
from qir.ir.provenance import Provenance, format_sources, parse_sources

__all__ = ["Annotations", "GraphWriter", "opset_fields"]

Annotations = Literal["error", "drop"]
_SOURCE = "qir.source"
_INHERIT = UseQuantMarker.INHERIT


class GraphWriter:
    """Writes the graphs of one model.

    ``external`` says which initializers have their data in a file. ``annotations``: what to do with quantization that
    no pass turned into nodes.
    """

    def __init__(
        self, external: Mapping[Value, ExternalEntry], annotations: Annotations, strip_provenance: bool
    ) -> None:
        self._external = external
        self._check = annotations == "error"
        self._strip = strip_provenance
        self._types: dict[Type, bytes] = {}
        self._attributes: dict[int, bytes] = {}
        self._texts: dict[tuple[int, str], bytes] = {}

    def graph(self, graph: Graph) -> Message:
        """The GraphProto. Raises QirError where annotations must not be there but are."""
        message = Message()
        annotated: list[Value] = []
        nodes = self._nodes(graph, annotated)
        extra, metadata = metadata_fields(16, graph.extra, graph.metadata)
        annotations, extra = take(extra, 0x72) if extra else ([], b"")
        verbatim, extra = take(extra, 0x62) if extra else ([], b"")
        message.add(extra)
        message.add(b"".join(nodes))
        # A body must have a name (onnxruntime refuses it otherwise), and IR text and passes may leave it out.
        message.add(text_field(2, graph.name or ("body" if graph.outer is not None else "")))
        for value in graph.initializers:
            const = value.const
            if const is not None and not isinstance(const, SparseTensor):
                message.add_message(5, tensor_message(const, value.name, self._external.get(value)))
        message.add(text_field(10, graph.doc))
        message.add(b"".join([bytes_field(11, self._info(value)) for value in graph.inputs]))
        message.add(b"".join(self._outputs(graph, verbatim)))
        message.add(
            b"".join([bytes_field(13, self._info(value)) for value in graph.recorded_types if _is_listed(value)])
        )
        annotated += [v for v in graph.inputs if v.annotation]
        annotated += [v for v in graph.initializers if v.annotation and v not in graph.input_set]
        message.add(_annotation_fields(graph, annotations, annotated))
        for value in graph.initializers:
            if isinstance(value.const, SparseTensor):
                message.add_message(15, sparse_tensor_message(value.const, value.name))
        message.add(metadata)
        if self._check:
            self._check_values(graph)
        return message

    def function(self, function: Function) -> bytes:
        """The FunctionProto."""
        graph = function.graph
        extra, metadata = metadata_fields(14, function.extra, graph.metadata)
        extra, opsets = opset_fields(9, extra, function.opset_imports)
        parts = [
            extra,
            text_field(1, function.name),
            *[bytes_field(4, value.name.encode()) for value in graph.inputs],
            *[bytes_field(5, value.name.encode()) for value in graph.outputs],
            *[bytes_field(6, name.encode()) for name in function.attributes],
        ]
        nodes = b"".join(self._nodes(graph, [], 7))
        return b"".join(
            [
                *parts,
                nodes,
                text_field(8, graph.doc),
                opsets,
                text_field(10, function.domain),
                *[bytes_field(11, attribute_bytes(a, self._body)) for a in function.defaults],
                *[bytes_field(12, self._info(value)) for value in graph.recorded_types if _is_listed(value)],
                text_field(13, function.overload),
                metadata,
            ]
        )

    def _body(self, graph: Graph) -> bytes:
        return self.graph(graph).to_bytes()

    # Nodes

    def _nodes(self, graph: Graph, annotated: list[Value], number: int = 1) -> list[bytes]:
        key = varint(number << 3 | 2)
        check = self._check
        made: list[bytes] = []
        for node in graph._nodes:
            parts: list[bytes] = []
            metadata = b""
            extra = node._extra
            if extra is not None or node._metadata is not None or node._provenance is not node._name:
                extra, metadata = metadata_fields(9, extra, self._metadata(node))
                parts.append(extra)
            for use in node._uses:
                if use is None:
                    parts.append(b"\x0a\x00")
                    continue
                if check and use._quant is not _INHERIT:
                    _refuse(f"input {use._index} of node {node.label!r} reads {use._value._name!r} quantized")
                name = use._value._name.encode()
                size = len(name)
                parts.append((b"\x0a%c" % size if size < 128 else b"\x0a" + varint(size)) + name)
            for value in node._outputs:
                name = value._name.encode()
                size = len(name)
                parts.append((b"\x12%c" % size if size < 128 else b"\x12" + varint(size)) + name)
                if value._annotation:
                    annotated.append(value)
                if check and value._quant is not None:
                    _refuse(f"value {value._name!r} is quantized")
            if node._name:
                parts.append(text_field(3, node._name))
            parts.append(self._text(4, node._op))
            for attribute in node._attributes.values():
                parts.append(self._attribute(attribute))
            if node._doc:
                parts.append(text_field(6, node._doc))
            if node._domain:
                parts.append(self._text(7, node._domain))
            if metadata:
                parts.append(metadata)
            if node._overload:
                parts.append(text_field(8, node._overload))
            payload = b"".join(parts)
            made.append(key + varint(len(payload)) + payload)
        return made

    def _text(self, number: int, text: str) -> bytes:
        """``text_field`` for texts that repeat."""
        known = self._texts.get((number, text))
        if known is None:
            known = self._texts[number, text] = text_field(number, text)
        return known

    def _attribute(self, attribute: Attribute) -> bytes:
        known = self._attributes.get(id(attribute))
        if known is None:
            known = bytes_field(5, attribute_bytes(attribute, self._body))
            if not attribute.graphs:
                self._attributes[id(attribute)] = known
        return known

    def _metadata(self, node: Node) -> Mapping[str, str] | None:
        """The node's metadata with its sources, where these are not what the reader would assume anyway."""
        metadata = node._metadata
        sources = node._provenance
        stated = metadata.get(_SOURCE) if metadata else None
        if self._strip or sources == ():
            wanted: str | None = "" if stated == "" and not self._strip else None
        elif stated is not None and _parse(stated) == sources:
            wanted = stated
        elif sources == (node._name or (node._outputs[0]._name if node._outputs else "")):
            wanted = None
        else:
            wanted = format_sources(sources)
        if wanted == stated:
            return metadata
        rest = {key: text for key, text in (metadata or {}).items() if key != _SOURCE}
        return rest if wanted is None else {**(metadata or {}), _SOURCE: wanted}

    # Values

    def _info(self, value: Value) -> bytes:
        """The ValueInfoProto."""
        extra, metadata = value._extra, b""
        type_field = None
        if extra is not None or value._metadata is not None:
            extra, metadata = metadata_fields(4, extra, value._metadata)
            spelled, extra = take(extra, 0x12) if extra else ([], b"")
            if spelled and decode_type(spelled[-1])[0] == value._type:
                type_field = b"".join([bytes_field(2, payload) for payload in spelled])
        if type_field is None:
            type_field = b"" if value._type is None else self._type(value._type)
        return (extra or b"") + text_field(1, value._name) + type_field + text_field(3, value._doc) + metadata

    def _type(self, type_: Type) -> bytes:
        known = self._types.get(type_)
        if known is None:
            known = self._types[type_] = bytes_field(2, encode_type(type_))
        return known

    def _outputs(self, graph: Graph, verbatim: list[bytes]) -> list[bytes]:
        """The list of outputs; where the file's list says more than the values do, its entries, by place and name."""
        made = []
        for index, value in enumerate(graph.outputs):
            if index < len(verbatim) and _name_of(verbatim[index]) == value.name:
                made.append(bytes_field(12, verbatim[index]))
            else:
                made.append(bytes_field(12, self._info(value)))
        return made

    def _check_values(self, graph: Graph) -> None:
        for use in graph.output_uses:
            if use.quant is not _INHERIT:
                _refuse(f"graph output {use.value.name!r} is quantized")
        for value in (*graph.inputs, *graph.initializers):
            if value.quant is not None:
                _refuse(f"value {value.name!r} is quantized")


def opset_fields(number: int, extra: bytes, imports: Mapping[str, int]) -> tuple[bytes, bytes]:
    """(residue without opset imports, the imports), spelled as in the file while that means the same."""
    verbatim, extra = take(extra, number << 3 | 2) if extra else ([], b"")
    if verbatim and opsets_of(verbatim)[0] == dict(imports):
        return extra, b"".join([bytes_field(number, entry) for entry in verbatim])
    entries = [bytes_field(1, domain.encode()) + varint_field(2, version) for domain, version in imports.items()]
    return extra, b"".join([bytes_field(number, entry) for entry in entries])


def _annotation_fields(graph: Graph, verbatim: list[bytes], values: list[Value]) -> bytes:
    """``quantization_annotation``, spelled as in the file (with entries for no value) while that means the same."""
    wanted = {value.name: dict(value.annotation) for value in values}
    if verbatim:
        names = {value.name for value in graph.values()}
        stated = {name: pairs for name, pairs in annotations_of(verbatim).items() if pairs and name in names}
        if stated == wanted:
            return b"".join([bytes_field(14, entry) for entry in verbatim])
    made = []
    for name, pairs in wanted.items():
        entries = [bytes_field(2, text_field(1, key) + text_field(2, value)) for key, value in pairs.items()]
        made.append(bytes_field(14, text_field(1, name) + b"".join(entries)))
    return b"".join(made)


def _is_listed(value: Value) -> bool:
    """Still there, or an entry that never belonged to a value of the graph."""
    if value._producer is not None:
        return value._producer._graph is not None and value._name != ""
    return value._graph is None or value._linked or value.is_input


def _name_of(info: bytes) -> str:
    names = [info[begin:end] for key, _, begin, end in fields(info, 0, len(info)) if key == 0x0A]
    return names[-1].decode() if names else ""


def _parse(stated: str) -> Provenance:
    return parse_sources(stated) if stated else ()


def _refuse(what: str) -> None:
    raise QirError(f"{what} by annotation only, which no file can say: run the pass 'emit-qdq' before saving")
