"""Reads the IR's text form (grammar: ``qir.ir.printer``). Linear; bad text ends in ParseError with line and column."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from qir.ir.collector import collector_paused
from qir.ir.function import Function
from qir.ir.graph import Graph, _assign_inputs
from qir.ir.journal import EditState, Stale
from qir.ir.lexer import Cursor, Kind
from qir.ir.model import Model
from qir.ir.node import Node, OpId, Region
from qir.ir.parse_atoms import (
    TensorReader,
    bracketed,
    parse_interval,
    parse_metadata,
    parse_pairs,
    parse_quant,
    parse_residue,
    parse_type,
    parse_use_quant,
)
from qir.ir.parse_attributes import AttributeReader
from qir.ir.printer import default_source, recordable
from qir.ir.provenance import Provenance
from qir.ir.quant_types import UseQuantMarker
from qir.ir.tensor import Tensor
from qir.ir.types import TensorType
from qir.ir.value import Use, Value

__all__ = ["Parsed", "TensorStore", "parse_model", "parse_text"]

TensorStore = Mapping[str, Tensor]
"""Contents by the hash that the text names (``printer.stored_tensors``), or by the name of the value."""


class Parsed(NamedTuple):
    """A model, and which of its constants (``name #hash``) are seeded stubs because the store lacks them."""

    model: Model
    stubs: list[str]


def parse_model(text: str, store: TensorStore | None = None) -> Model:
    """``parse_text`` for who knows that the store is complete, or does not care for the numbers."""
    return parse_text(text, store).model


def parse_text(text: str, store: TensorStore | None = None) -> Parsed:
    """A model from its text. The ``model`` line may be missing. The structure is not verified.

    Raises ParseError (``line:column: what was expected``) for anything that is not well formed.
    """
    with collector_paused():
        parser = _Parser(text, store or {})
        return Parsed(parser.model(), parser.tensors.stubs)


class _Scope:
    """The names of one graph; what is read before its definition waits in ``pending``."""

    __slots__ = ("defined", "outer", "pending")

    def __init__(self, outer: _Scope | None) -> None:
        self.outer = outer
        self.defined: dict[str, Value] = {}
        self.pending: dict[str, tuple[Value, int]] = {}


class _Parser:
    def __init__(self, text: str, store: TensorStore) -> None:
        self.at = Cursor(text)
        self.state = EditState()
        self.tensors = TensorReader(self.at, store)
        self.attributes = AttributeReader(self.at, self.tensors, self._graph)
        at = self.at
        self.note_clauses: Mapping[str, Callable[[], Any]] = {
            "doc": at.string,
            "meta": lambda: parse_metadata(at),
            "extra": lambda: parse_residue(at),
        }
        self.value_clauses: Mapping[str, Callable[[], Any]] = {
            "range": lambda: parse_interval(at),
            "seen": self._observed,
            "q": lambda: parse_quant(at),
            "annotation": lambda: tuple(parse_pairs(at)),
            **self.note_clauses,
        }
        self.node_clauses: Mapping[str, Callable[[], Any]] = {
            "kernel": lambda: at.word("the name of a kernel"),
            "role": self._region,
            "name": lambda: at.word("the node's name in quotes"),
            "from": self._sources,
            **self.note_clauses,
        }

    # Model and functions

    def model(self) -> Model:
        at = self.at
        header: dict[str, Any] = {}
        if at.take("model"):
            self._clauses(
                header,
                {
                    "ir": at.integer,
                    "opset": self._opsets,
                    "producer": at.string,
                    "producer_version": at.string,
                    "domain": at.string,
                    "version": at.integer,
                    **self.note_clauses,
                },
                ends=("graph",),
            )
        at.need("graph")
        model = Model(self._graph(None), header.get("opset"), header.get("ir"))
        model._producer_name = header.get("producer", "")
        model._producer_version = header.get("producer_version", "")
        model._domain = header.get("domain", "")
        model._model_version = header.get("version")
        _set_notes(model, header)
        functions: dict[OpId, Function] = {}
        while at.take("function"):
            position = at.position
            function = self._function()
            if function.op_id in functions:
                at.fail(f"function {function.name!r} is defined twice", position)
            functions[function.op_id] = function
        model._functions = functions
        if at.kind != Kind.END:
            at.expected("the end of the text")
        return model

    def _opsets(self) -> dict[str, int]:
        at = self.at

        def entry() -> tuple[str, int]:
            domain = "" if at.kind == Kind.NUMBER else at.word("a domain or a version")
            return domain, at.integer("a version")

        return dict(bracketed(at, entry))

    def _function(self) -> Function:
        at = self.at
        domain, name, overload = self._op_id()
        clauses: dict[str, Any] = {}
        graph = self._graph(
            None,
            clauses,
            {
                "attributes": lambda: tuple(bracketed(at, lambda: at.word("the name of an attribute"))),
                "defaults": lambda: tuple(bracketed(at, lambda: self.attributes.read(None), "{", "}")),
                "opset": self._opsets,
                "function_extra": lambda: parse_residue(at),
            },
            anonymous=True,
        )
        return Function(
            domain,
            name,
            graph,
            overload=overload,
            attributes=clauses.get("attributes", ()),
            defaults=clauses.get("defaults", ()),
            opset_imports=clauses.get("opset"),
            extra=clauses.get("function_extra"),
        )

    # Graphs

    def _graph(
        self,
        outer: _Scope | None,
        clauses: dict[str, Any] | None = None,
        extra_clauses: Mapping[str, Callable[[], Any]] | None = None,
        anonymous: bool = False,
    ) -> Graph:
        """From behind ``graph`` or a function's name to the closing brace."""
        at = self.at
        at.deeper()
        scope = _Scope(outer)
        name = "" if anonymous or at.at("(") else at.word("the name of a graph or its inputs in ( )")
        graph = Graph(name, self.state)
        _assign_inputs(graph, tuple(bracketed(at, lambda: self._input(scope, graph), "(", ")")))
        at.need("->")
        outputs = tuple(bracketed(at, lambda: self._operand(scope, graph, 0), "(", ")"))
        graph._outputs = tuple(use for use in outputs if use is not None)
        if len(graph._outputs) != len(outputs):
            at.fail("an output of a graph cannot be left out")
        for index, use in enumerate(graph._outputs):
            use._index = index
        found: dict[str, Any] = {} if clauses is None else clauses
        self._clauses(found, {**self.note_clauses, **(extra_clauses or {})})
        _set_notes(graph, found)
        at.need("{")
        while not at.at("}") and not at.at("recorded"):
            self._statement(scope, graph)
        if at.take("recorded"):
            self._recorded(scope, graph)
        at.need("}")
        self._close(scope)
        at.shallower()
        return graph

    def _input(self, scope: _Scope, graph: Graph) -> Value:
        value = self._define(scope)
        value._graph = graph
        self._value_clauses(value)
        return value

    def _recorded(self, scope: _Scope, graph: Graph) -> None:
        at = self.at
        at.need("=")
        if at.take("all"):
            graph.recorded_types = dict.fromkeys(recordable(graph))
            return

        def value() -> Value:
            position = at.position
            name = at.name()
            found = scope.defined.get(name)
            if found is None:
                at.fail(f"{name!r} is not defined in this graph", position)
            return found

        graph.recorded_types = dict.fromkeys(bracketed(at, value))

    def _close(self, scope: _Scope) -> None:
        """What the graph reads but does not define is looked for around it."""
        outer = scope.outer
        for name, (value, position) in scope.pending.items():
            if outer is None:
                self.at.fail(f"value {name!r} is not defined", position)
            known = outer.defined.get(name) or outer.pending.get(name, (None, 0))[0]
            if known is None:
                outer.pending[name] = (value, position)
                continue
            for use in list(value._uses):
                value._uses.unlink(use)
                use._value = known
                known._uses.link(use)

    # Statements

    def _statement(self, scope: _Scope, graph: Graph) -> None:
        at = self.at
        if at.kind == Kind.NAME and at.text[0] == "@":
            self._initializer(scope, graph)
            return
        results: list[Value] = []
        if at.take("("):
            at.need(")")
        else:
            results.append(self._result(scope))
            while at.take(","):
                results.append(self._result(scope))
        at.need("=")
        domain, op, overload = self._op_id()
        node = Node(self.state, op, domain, overload)
        node._graph = graph
        node._outputs = tuple(results)
        for index, value in enumerate(results):
            value._producer = node
            value._index = index
        at.need("(")
        uses = node._uses
        while not at.take(")"):
            if uses:
                at.need(",")
            uses.append(self._operand(scope, node, len(uses)))
        if at.text == "{" and at.kind == Kind.PUNCTUATION:
            self._attributes(scope, node)
        clauses: dict[str, Any] = {}
        if at.kind == Kind.WORD:
            self._node_clauses(node, clauses)
        node._provenance = clauses["from"] if "from" in clauses else default_source(node)
        graph._nodes.link(node)

    def _result(self, scope: _Scope) -> Value:
        if self.at.kind not in (Kind.NAME, Kind.WORD):
            self.at.expected("a result such as %y, an initializer such as @w, or }")
        value = self._define(scope)
        self._value_clauses(value)
        return value

    def _initializer(self, scope: _Scope, graph: Graph) -> None:
        at = self.at
        position = at.position
        name = at.name()
        value = scope.defined.get(name)
        if value is None or value._producer is not None or value._linked:
            value = self._new_value(scope, name, position)
        value._graph = graph
        self._value_clauses(value)
        if at.kind == Kind.HASH:
            value._const = self._untyped(value, name, position)
        else:
            at.need("=")
            value._const = self._constant(value, name, position)
        if value._type is None and value._const is not None:
            value._type = TensorType(value._const.dtype, value._const.shape)
        graph._initializers.link(value)

    def _constant(self, value: Value, name: str, position: int) -> Any:
        at = self.at
        if at.take("none"):
            return None
        if at.at("sparse"):
            return self.tensors.sparse(name)
        # A word is the constant's own type; true and false are the elements of a bare bool.
        if at.kind == Kind.WORD and at.text not in ("true", "false"):
            return self.tensors.typed(name)
        return self._untyped(value, name, position)

    def _untyped(self, value: Value, name: str, position: int) -> Tensor:
        type_ = value._type
        shape = type_.static_shape if isinstance(type_, TensorType) else None
        if not isinstance(type_, TensorType) or shape is None or min(shape, default=0) < 0 or not type_.dtype.code:
            self.at.fail(f"the constant of @{name} needs a type with known sizes", position)
        return self.tensors.content(type_.dtype, shape, name, keep_name=False)

    def _node_clauses(self, node: Node, clauses: dict[str, Any]) -> None:
        self._clauses(clauses, self.node_clauses, ends=("recorded", "_"))
        node._kernel = clauses.get("kernel")
        node._region = clauses.get("role")
        node._name = clauses.get("name", "")
        _set_notes(node, clauses)

    def _region(self) -> Region:
        at = self.at
        role = at.word("a role")
        if at.kind != Kind.HASH or not at.text[1:].isdigit() or len(at.text) > 40:
            at.expected("# and the region's number")
        return Region(role, int(at.next_text()[1:]))

    def _sources(self) -> Provenance:
        at = self.at
        if at.take("none"):
            return ()
        names = [at.string("the name of a source node in quotes, or none")]
        while at.take(","):
            names.append(at.string("the name of a source node in quotes"))
        return names[0] if len(names) == 1 else tuple(names)

    def _op_id(self) -> OpId:
        """``domain.Op:overload``."""
        at = self.at
        parts: list[str] = []
        while True:
            if at.kind == Kind.WORD:
                parts += at.next_text().rsplit(".", 1)
            else:
                parts.append(at.string("an operator such as Relu or com.microsoft.Gelu"))
            if not at.take("."):
                break
        overload = at.word("an overload") if at.take(":") else ""
        return ".".join(parts[:-1]), parts[-1], overload

    # Values

    def _define(self, scope: _Scope) -> Value:
        """A value at its definition; ``_`` is one that nobody wants."""
        at = self.at
        if at.take("_"):
            return Value(self.state, "")
        position = at.position
        return self._new_value(scope, at.name(), position)

    def _new_value(self, scope: _Scope, name: str, position: int) -> Value:
        if name in scope.defined:
            self.at.fail(f"value {name!r} is defined twice in this graph", position)
        waiting = scope.pending.pop(name, None)
        value = Value(self.state, name) if waiting is None else waiting[0]
        scope.defined[name] = value
        return value

    def _operand(self, scope: _Scope, owner: Node | Graph, index: int) -> Use | None:
        at = self.at
        if at.kind != Kind.NAME:
            if at.take("_"):
                return None
            at.expected("an operand such as %x, @w or _")
        position = at.position
        use = Use(owner, index, self._lookup(scope, at.name(), position))
        use._value._uses.link(use)
        if at.take(":"):
            use._quant = parse_use_quant(at)
        else:
            use._quant = UseQuantMarker.INHERIT
        return use

    def _lookup(self, scope: _Scope, name: str, position: int) -> Value:
        inner: _Scope | None = scope
        while inner is not None:
            value = inner.defined.get(name)
            if value is not None:
                return value
            inner = inner.outer
        if name not in scope.pending:
            scope.pending[name] = (Value(self.state, name), position)
        return scope.pending[name][0]

    def _value_clauses(self, value: Value) -> None:
        at = self.at
        if at.take(":"):
            value._type = parse_type(at)
        if at.kind != Kind.WORD:
            return
        clauses: dict[str, Any] = {}
        self._clauses(clauses, self.value_clauses, flag="frozen")
        value._range = clauses.get("range")
        value._observed = clauses.get("seen")
        value._quant = clauses.get("q")
        value._frozen = "frozen" in clauses
        value._annotation = clauses.get("annotation", ())
        _set_notes(value, clauses)

    def _observed(self) -> Any:
        at = self.at
        self.state.calibrated = True
        if not at.take("stale"):
            return parse_interval(at)
        at.need("(")
        edit = at.string("what made the data stale, in quotes")
        at.need(")")
        return Stale(edit)

    # Attributes

    def _attributes(self, scope: _Scope, node: Node) -> None:
        at = self.at
        found = node._attributes
        at.need("{")
        while not at.take("}"):
            if found:
                at.need(",")
            position = at.position
            attribute = self.attributes.read(scope)
            if attribute.name in found:
                at.fail(f"attribute {attribute.name!r} is given twice", position)
            found[attribute.name] = attribute
            for graph in attribute.graphs:
                graph.owner = node

    # Clauses

    def _clauses(
        self,
        found: dict[str, Any],
        known: Mapping[str, Callable[[], Any]],
        *,
        flag: str = "",
        ends: tuple[str, ...] = (),
    ) -> None:
        """``key=value`` and the flag, each at most once, until something else than a word or one of ``ends`` comes."""
        at = self.at
        while at.kind == Kind.WORD and at.text not in ends:
            key = at.text
            read = known.get(key)
            if key in found:
                at.fail(f"{key!r} is given twice")
            if read is None and key != flag:
                at.expected(f"{', '.join(filter(None, (*known, flag, *ends)))} or what comes after these")
            at.advance()
            if read is None:
                found[key] = True
            else:
                at.need("=")
                found[key] = read()


def _set_notes(subject: Model | Graph | Node | Value, clauses: Mapping[str, Any]) -> None:
    subject._doc = clauses.get("doc", "")
    subject._metadata = clauses.get("meta")
    subject._extra = clauses.get("extra")
