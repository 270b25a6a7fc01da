"""Schema verifier: every node fits the schema of its op at the opset that the model imports.

The structural rules (dominance, use lists, names) are checked by ``qir.ir.verifier``. Linear; what depends only on an
op's form (arity pattern, attribute names and kinds) is checked once for all nodes of that form.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from qir.errors import VerifyError
from qir.ir import (
    Attribute,
    AttrKind,
    DType,
    Function,
    Graph,
    Model,
    Node,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
)
from qir.ir.printer import print_node
from qir.ops.schema import Formal, OpSchema, find_schema, known_domain, schema_of

__all__ = ["SchemaReport", "form_problem", "verify_schemas"]


@dataclass(slots=True)
class SchemaReport:
    """What was checked. ``opaque`` counts nodes of domains that nothing is known of: they were not checked."""

    checked: int = 0
    opaque: Counter[str] = field(default_factory=Counter)


def verify_schemas(model: Model) -> SchemaReport:
    """Check every node of the main graph, bodies and local functions.

    Raises VerifyError at the first node whose op is not in the imported opset or is deprecated there, or whose arity,
    attributes or input types break its schema; the message ends with the node in IR text.
    """
    run = _Run(model)
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        run.graph(graph, graph.function)
    return run.report


def form_problem(model: Model, node: Node) -> str | None:
    """What keeps one node from fitting its schema (see ``verify_schemas``), in one line; None where it fits."""
    try:
        _Run(model).node(node, None)
    except VerifyError as error:
        return str(error).partition("\n")[0]
    return None


class _Run:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.report = SchemaReport()
        self.forms: dict[tuple[object, ...], OpSchema | None] = {}
        self.types: set[tuple[object, ...]] = set()

    def graph(self, graph: Graph, function: Function | None) -> None:
        for node in graph.nodes:
            self.node(node, function)
            for body in node.bodies:
                self.graph(body, function)

    def node(self, node: Node, function: Function | None) -> None:
        form = (
            function,
            node.op_id,
            tuple([use is None for use in node.uses]),
            tuple([value.name == "" for value in node.outputs]),
            tuple([(a.name, a.kind, a.value is None) for a in node._attributes.values()]),
        )
        if form in self.forms:
            schema = self.forms[form]
        else:
            schema = self.forms[form] = self.checked_form(node)
        if schema is None:
            self.report.opaque[node.domain] += 1
            return
        for name in _ELEMENT_TYPES:
            if name in node._attributes:
                self.check_element_type(node, name)
        self.report.checked += 1
        self.check_types(node, schema)

    def checked_form(self, node: Node) -> OpSchema | None:
        """The schema that the node's form obeys; None for an op of an unknown domain."""
        schema = schema_of(node, self.model)
        if schema is None:
            self.check_opaque(node)
            return None
        if schema.deprecated:
            raise _error(node, f"{node.op} is deprecated in opset {self.model.opset(node.domain)}, run 'convert-opset'")
        self.check_arity(node, schema)
        self.check_attributes(node, schema)
        return schema

    def check_opaque(self, node: Node) -> None:
        if not known_domain(node.domain) or node.domain == "com.microsoft":
            # The table of onnxruntime's ops holds those that the compiler knows, not all.
            return
        version = self.model.opset(node.domain)
        domain = node.domain or "ai.onnx"
        if version is None:
            raise _error(node, f"the model imports no opset of domain {domain!r}")
        if find_schema(node.domain, node.op, 2**30) is not None:
            raise _error(node, f"opset {version} of domain {domain!r} has no {node.op} yet: run 'convert-opset'")
        raise _error(node, f"domain {domain!r} has no op {node.op!r}")

    def check_arity(self, node: Node, schema: OpSchema) -> None:
        inputs, outputs = len(node.uses), len(node.outputs)
        if not schema.min_inputs <= inputs <= schema.max_inputs:
            raise _error(node, f"{inputs} inputs, {node.op} takes {_span(schema.min_inputs, schema.max_inputs)}")
        if not schema.min_outputs <= outputs <= schema.max_outputs:
            raise _error(node, f"{outputs} outputs, {node.op} gives {_span(schema.min_outputs, schema.max_outputs)}")
        for index, use in enumerate(node.uses):
            formal = schema.input(index)
            if use is None and formal is not None and not formal.optional and not formal.variadic:
                raise _error(node, f"input {index} ({formal.name!r}) of {node.op} is missing")

    def _unknown_attribute(self, node: Node, name: str) -> str:
        text = f"{node.op} has no attribute {name!r} at opset {self.model.opset(node.domain)}"
        newest = find_schema(node.domain, node.op, 2**30)
        if newest is None or name not in newest.attributes:
            return text
        return (
            f"{text}, only in later ones: the tool that wrote it should have raised the opset; convert the model that "
            "it was made from to a later opset, then run that tool again"
        )

    def check_attributes(self, node: Node, schema: OpSchema) -> None:
        for name, spec in schema.attributes.items():
            if spec.required and name not in node.attributes:
                raise _error(node, f"attribute {name!r} of {node.op} is missing")
        for name, attribute in node.attributes.items():
            if attribute.value is None and not attribute.ref:
                raise _error(node, f"attribute {name!r} has no value")
            spec_or_none = schema.attributes.get(name)
            if spec_or_none is None:
                if not schema.any_attributes and not _tolerated(name):
                    raise _error(node, self._unknown_attribute(node, name))
            elif AttrKind.UNDEFINED not in (spec_or_none.kind, attribute.kind) and spec_or_none.kind != attribute.kind:
                raise _error(node, f"attribute {name!r} is {_kind(attribute)}, not {spec_or_none.kind.name.lower()}")

    def check_element_type(self, node: Node, name: str) -> None:
        code = node._attributes[name].value
        if isinstance(code, int):
            try:
                DType.from_code(code)
            except KeyError:
                raise _error(node, f"attribute {name!r} is {code}, which is no element type") from None

    def check_types(self, node: Node, schema: OpSchema) -> None:
        texts = [None if use is None else _type_text(use._value._type) for use in node._uses]
        key = (schema, *texts)
        if key in self.types:
            return
        bound: dict[str, str] = {}
        for index, text in enumerate(texts):
            formal = schema.input(index)
            if text is None or formal is None or not formal.types:
                continue
            if text not in formal.types:
                raise _error(node, f"input {index} ({formal.name!r}) is {text}, {node.op} takes {_allowed(formal)}")
            if not formal.homogeneous or formal.variable in formal.types:
                continue
            first = bound.setdefault(formal.variable, text)
            if first != text:
                raise _error(node, f"inputs of one type are {first} and {text} (type variable {formal.variable})")
        self.types.add(key)


_ELEMENT_TYPES = ("to", "dtype")
"""Attributes that hold a TensorProto.DataType."""


def _error(node: Node, message: str) -> VerifyError:
    return VerifyError(f"node {node.label!r}: {message}\n  {print_node(node, brief=True).strip()}")


def _span(least: int, most: int) -> str:
    if most > 2**20:
        return f"{least} or more"
    return str(least) if least == most else f"{least} to {most}"


def _allowed(formal: Formal) -> str:
    names = sorted(formal.types)
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def _kind(attribute: Attribute) -> str:
    return attribute.kind.name.lower()


def _tolerated(name: str) -> bool:
    """Attributes of opset 1 that old exporters still write; onnx's checker lets them pass."""
    return name == "consumed_inputs"


def _type_text(type_: Type | None) -> str | None:
    """ONNX's spelling of a type, ``tensor(float)``; None where it is not wholly known."""
    match type_:
        case TensorType():
            return _TENSOR_TEXTS.get(type_.dtype)
        case SequenceType() | OptionalType():
            element = _type_text(type_.element)
            prefix = "seq" if isinstance(type_, SequenceType) else "optional"
            return None if element is None else f"{prefix}({element})"
        case _:
            return None


_TENSOR_TEXTS: dict[DType, str] = {
    dtype: f"tensor({dtype.name.lower()})" for dtype in DType if dtype is not DType.UNDEFINED
}
