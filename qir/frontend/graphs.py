"""GraphProto, NodeProto and FunctionProto to IR graphs.

Two phases a graph: first everything that defines a name, then the operands; so a graph that is out of order loads.
This is the hot loop of loading, hence the calls spared and the tables of what was seen before.
"""

from __future__ import annotations

from qir.errors import ModelError
from qir.frontend.attributes import read_attribute
from qir.frontend.external import ExternalFiles
from qir.frontend.infos import Info, InfoReader, annotations_of, describe, describes, opsets_of
from qir.frontend.residue import make_residue, metadata_of
from qir.frontend.tensors import Span, read_sparse_tensor, read_tensor
from qir.frontend.wire import Buffer, Damaged, fields
from qir.ir import Attribute, AttrKind, DType, Function, Graph, Node, SparseTensor, Tensor, TensorType, Use, Value
from qir.ir.graph import _assign_inputs
from qir.ir.journal import EditState
from qir.ir.provenance import parse_sources

__all__ = ["GraphReader"]

Scope = dict[bytes, Value]
_BODIES = (AttrKind.GRAPH, AttrKind.GRAPHS)
_SHARED_KINDS = frozenset(
    {AttrKind.FLOAT, AttrKind.INT, AttrKind.STRING, AttrKind.FLOATS, AttrKind.INTS, AttrKind.STRINGS}
)


_Pending = tuple[Node, list[bytes], list[bytes]]
"""A node, and its operands and attributes, which are still to be read."""


class GraphReader:
    """Reads the graphs of one model, all with the same edit state."""

    def __init__(self, state: EditState, external: ExternalFiles) -> None:
        self._state = state
        self._external = external
        self._info = InfoReader().read
        self._tensor_types: dict[tuple[DType, tuple[int, ...]], TensorType] = {}
        self._attributes: dict[bytes, Attribute] = {}
        self._texts: dict[bytes, str] = {b"": ""}
        self._residues: dict[bytes, bytes | None] = {}
        """By what is left over of a node: most have nothing, or the same (fields that are there and empty)."""
        self._scopes: list[Scope] = []

    def graph(self, buffer: Buffer, span: Span) -> Graph:
        """A main graph, or a body within the scopes that are being read. Raises ModelError, Damaged."""
        graph = Graph("", self._state)
        nodes: list[tuple[int, int]] = []
        inputs: list[bytes] = []
        outputs: list[bytes] = []
        infos: list[bytes] = []
        annotations: list[bytes] = []
        metadata: list[bytes] = []
        annotation_fields: list[bytes] = []
        metadata_fields: list[bytes] = []
        output_fields: list[bytes] = []
        verbatim: list[bytes] = []
        initializers: list[Tensor] = []
        sparse: list[SparseTensor] = []
        for key, head, begin, end in fields(buffer, *span):
            if key == 0x0A:
                nodes.append((begin, end))
            elif key == 0x6A:
                infos.append(buffer[begin:end])
            elif key == 0x2A:
                initializers.append(read_tensor(buffer, Span(begin, end), self._external))
            elif key == 0x7A:
                sparse.append(read_sparse_tensor(buffer, Span(begin, end), self._external))
            elif key == 0x5A:
                inputs.append(buffer[begin:end])
            elif key == 0x62:
                outputs.append(buffer[begin:end])
                output_fields.append(buffer[head:end])
            elif key == 0x12 and end > begin:
                graph._name = buffer[begin:end].decode()
            elif key == 0x52 and end > begin:
                graph._doc = buffer[begin:end].decode()
            elif key == 0x72:
                annotations.append(buffer[begin:end])
                annotation_fields.append(buffer[head:end])
            elif key == 0x82:
                metadata.append(buffer[begin:end])
                metadata_fields.append(buffer[head:end])
            else:
                verbatim.append(buffer[head:end])
        scope: Scope = {}
        self._scopes.append(scope)
        described: set[Value] = set()
        self._define_inputs(graph, [self._info(raw) for raw in inputs], scope, described)
        self._define_initializers(graph, [*initializers, *sparse], scope)
        pending = self._define_results(graph, buffer, nodes, scope)
        output_infos = [self._info(raw) for raw in outputs]
        if not self._describe_outputs(graph, output_infos, described):
            verbatim += output_fields
        self._record_types(graph, infos, scope, described)
        if annotations:
            self._annotate(annotations, scope)
            verbatim += annotation_fields
        mapping, exact = metadata_of(metadata)
        graph._metadata = mapping or None
        if not exact:
            verbatim += metadata_fields
        self._connect(pending)
        graph._outputs = tuple(self._output_use(graph, index, info.name) for index, info in enumerate(output_infos))
        graph._extra = make_residue(verbatim) if verbatim else None
        self._scopes.pop()
        return graph

    def function(self, buffer: Buffer, span: Span) -> Function:
        """A local function. Raises ModelError, Damaged."""
        graph = Graph("", self._state)
        texts = {0x0A: "", 0x52: "", 0x6A: "", 0x42: ""}
        nodes: list[tuple[int, int]] = []
        infos: list[bytes] = []
        inputs: list[bytes] = []
        outputs: list[bytes] = []
        attributes: list[str] = []
        defaults: list[Attribute] = []
        opsets: list[bytes] = []
        opset_fields: list[bytes] = []
        metadata: list[bytes] = []
        metadata_fields: list[bytes] = []
        verbatim: list[bytes] = []
        for key, head, begin, end in fields(buffer, *span):
            match key:
                case 0x3A:
                    nodes.append((begin, end))
                case 0x22:
                    inputs.append(buffer[begin:end])
                case 0x2A:
                    outputs.append(buffer[begin:end])
                case 0x32:
                    attributes.append(buffer[begin:end].decode())
                case 0x5A:
                    defaults.append(read_attribute(buffer, Span(begin, end), self._external, self.graph))
                case 0x62:
                    infos.append(buffer[begin:end])
                case 0x4A:
                    opsets.append(buffer[begin:end])
                    opset_fields.append(buffer[head:end])
                case 0x72:
                    metadata.append(buffer[begin:end])
                    metadata_fields.append(buffer[head:end])
                case 0x0A | 0x52 | 0x6A | 0x42 if end > begin:
                    texts[key] = buffer[begin:end].decode()
                    if key == 0x52 and texts[key] == "ai.onnx":
                        texts[key] = ""
                        verbatim.append(buffer[head:end])
                case _:
                    verbatim.append(buffer[head:end])
        outer, self._scopes = self._scopes, [{}]
        scope = self._scopes[0]
        self._define_inputs(graph, [Info(name, None, "", None, None) for name in inputs], scope, set())
        pending = self._define_results(graph, buffer, nodes, scope)
        self._record_types(graph, infos, scope, set())
        self._connect(pending)
        graph._outputs = tuple(self._output_use(graph, index, name) for index, name in enumerate(outputs))
        self._scopes = outer
        mapping, exact = metadata_of(metadata)
        graph._metadata, graph._doc = mapping or None, texts[0x42]
        if not exact:
            verbatim += metadata_fields
        imports, exact = opsets_of(opsets)
        if not exact:
            verbatim += opset_fields
        return Function(
            texts[0x52],
            texts[0x0A],
            graph,
            overload=texts[0x6A],
            attributes=tuple(attributes),
            defaults=tuple(defaults),
            opset_imports=imports,
            extra=make_residue(verbatim),
        )

    # What defines names

    def _define_inputs(self, graph: Graph, infos: list[Info], scope: Scope, described: set[Value]) -> None:
        values = []
        for info in infos:
            value = Value(self._state, info.name.decode(), info.type)
            value._graph = graph
            describe(value, info)
            if info.name in scope:
                raise ModelError(f"graph input {value.name!r} is listed twice: rename one, or export the model again")
            scope[info.name] = value
            described.add(value)
            values.append(value)
        _assign_inputs(graph, tuple(values))

    def _define_initializers(self, graph: Graph, tensors: list[Tensor | SparseTensor], scope: Scope) -> None:
        for tensor in tensors:
            name = tensor.name.encode()
            value = scope.get(name)
            if value is None:
                value = scope[name] = Value(self._state, tensor.name, self._tensor_type(tensor))
                value._graph = graph
            elif value._const is not None:
                raise ModelError(f"initializer {tensor.name!r} is defined twice: remove one, or export the model again")
            value._const = tensor
            graph._initializers.link(value)

    def _tensor_type(self, tensor: Tensor | SparseTensor) -> TensorType:
        key = (tensor.dtype, tensor.shape)
        type_ = self._tensor_types.get(key)
        if type_ is None:
            type_ = self._tensor_types[key] = TensorType(*key)
        return type_

    def _define_results(
        self, graph: Graph, buffer: Buffer, spans: list[tuple[int, int]], scope: Scope
    ) -> list[_Pending]:
        state = self._state
        texts = self._texts
        link = graph._nodes.link
        pending: list[_Pending] = []
        for begin, end in spans:
            raw = buffer[begin:end]
            inputs: list[bytes] = []
            outputs: list[bytes] = []
            attributes: list[bytes] = []
            op = domain = name = overload = doc = b""
            metadata: list[bytes] = []
            verbatim: list[bytes] = []
            at, size = 0, len(raw)
            while at < size:
                head = at
                key = raw[at]
                if key & 0x87 == 2 and (stop := at + 1) < size and (length := raw[stop]) < 0x80:
                    at = stop + 1 + length
                    if at > size:
                        raise Damaged
                    payload = raw[stop + 1 : at]
                else:
                    key, _, start, at = next(fields(raw, head, size))
                    payload = raw[start:at]
                if key == 0x0A:
                    inputs.append(payload)
                elif key == 0x12:
                    outputs.append(payload)
                elif key == 0x2A:
                    attributes.append(payload)
                elif not payload:
                    verbatim.append(raw[head:at])
                elif key == 0x22:
                    op = payload
                elif key == 0x1A:
                    name = payload
                elif key == 0x32:
                    doc = payload
                elif key == 0x3A:
                    domain = payload
                    if domain == b"ai.onnx":
                        domain = b""
                        verbatim.append(raw[head:at])
                elif key == 0x6A:
                    overload = payload
                elif key == 0x4A:
                    metadata.append(raw[head:at])
                else:
                    verbatim.append(raw[head:at])
            op_text = texts.get(op)
            if op_text is None:
                op_text = texts[op] = op.decode()
            node = Node(state, op_text, "", "", name.decode())
            if domain:
                node._domain = texts.setdefault(domain, domain.decode())
            if overload:
                node._overload = overload.decode()
            if doc:
                node._doc = doc.decode()
            link(node)
            node._graph = graph
            results = []
            for index, output in enumerate(outputs):
                value = Value(state, output.decode(), None)
                value._producer = node
                value._index = index
                results.append(value)
                if output:
                    if output in scope:
                        raise ModelError(
                            f"node {node.name or op_text!r} defines {value._name!r}, which is defined already: "
                            "names must be unique, export the model again"
                        )
                    scope[output] = value
            node._outputs = tuple(results)
            node._provenance = node._name or (results[0]._name if results else "")
            if metadata:
                _read_node_metadata(node, metadata, verbatim)
            if verbatim:
                rest = b"".join(verbatim)
                extra = self._residues.get(rest)
                if extra is None:
                    if any(field[0] < 8 for field in verbatim):  # there is no field 0; the fast path above let it pass
                        raise Damaged
                    extra = self._residues[rest] = make_residue(verbatim)
                node._extra = extra
            pending.append((node, inputs, attributes))
        return pending

    # What uses names

    def _connect(self, pending: list[_Pending]) -> None:
        scope = self._scopes[-1]
        known = self._attributes
        for node, inputs, attributes in pending:
            uses = node._uses
            for index, name in enumerate(inputs):
                value = scope.get(name)
                if value is None:
                    if not name:
                        uses.append(None)
                        continue
                    value = self._captured(node, index, name)
                use = Use(node, index, value)
                users = value._uses  # LinkedList.link, written out
                use._prev = last = users._last
                if last is None:
                    users._first = use
                else:
                    last._next = use
                users._last = use
                users._count += 1
                use._linked = True
                uses.append(use)
            if attributes:
                table = node._attributes
                for raw in attributes:
                    attribute = known.get(raw) or self._attribute(node, raw)
                    if attribute.name in table:
                        raise ModelError(
                            f"node {node.label!r} has attribute {attribute.name!r} twice: export the model again"
                        )
                    table[attribute.name] = attribute

    def _captured(self, node: Node, index: int, name: bytes) -> Value:
        value = self._lookup(name)
        if value is None:
            raise ModelError(
                f"input {index} of node {node.label!r} ({node.op}) is {name.decode()!r}, which nothing defines: "
                "the model is damaged, export it again"
            )
        return value

    def _lookup(self, name: bytes) -> Value | None:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        return None

    def _attribute(self, node: Node, raw: bytes) -> Attribute:
        attribute = read_attribute(raw, Span(0, len(raw)), self._external, self.graph)
        if attribute.kind in _SHARED_KINDS:
            self._attributes[raw] = attribute
        elif attribute.kind in _BODIES:
            for body in attribute.graphs:
                body.owner = node
        return attribute

    def _output_use(self, graph: Graph, index: int, name: bytes) -> Use:
        value = self._lookup(name)
        if value is None:
            raise ModelError(
                f"output {name.decode()!r} of graph {graph.name!r} is defined by no node: "
                "the model is damaged, export it again"
            )
        use = Use(graph, index, value)
        value._uses.link(use)
        return use

    # What describes values

    def _describe_outputs(self, graph: Graph, infos: list[Info], described: set[Value]) -> bool:
        """Give types to the outputs' values; whether the values then say all that the list of outputs says."""
        exact = True
        for info in infos:
            value = self._lookup(info.name)
            if value is None:
                continue  # reported when the outputs are connected
            if value in described or value.graph is not graph:
                exact = exact and describes(value, info)
            elif value._const is not None and value._type != info.type:
                exact = False
            else:
                described.add(value)
                value._type = info.type
                describe(value, info)
        return exact

    def _record_types(self, graph: Graph, infos: list[bytes], scope: Scope, described: set[Value]) -> None:
        """Types from ``value_info``; an entry that fits no value of the graph stays as a value on its own."""
        recorded = graph.recorded_types
        for raw in infos:
            info = self._info(raw)
            value = scope.get(info.name)
            fits = value is not None and value not in recorded
            if fits and value is not None:
                if value in described or value._const is not None:
                    fits = describes(value, info)
                else:
                    value._type = info.type
                    describe(value, info)
            if not fits or value is None:
                value = Value(self._state, info.name.decode(), info.type)
                describe(value, info)
            recorded[value] = None

    def _annotate(self, annotations: list[bytes], scope: Scope) -> None:
        for name, pairs in annotations_of(annotations).items():
            value = scope.get(name.encode())
            if value is not None:
                value._annotation = tuple(pairs.items())


def _read_node_metadata(node: Node, raw_fields: list[bytes], verbatim: list[bytes]) -> None:
    entries = [raw[begin:end] for raw in raw_fields for _, _, begin, end in fields(raw, 0, len(raw))]
    mapping, exact = metadata_of(entries)
    node._metadata = mapping
    if not exact:
        verbatim += raw_fields
    sources = mapping.get("qir.source")
    if sources is not None:
        node._provenance = parse_sources(sources) if sources else ()
