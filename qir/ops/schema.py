"""Schemas: what an op's inputs, outputs and attributes are at one version of its domain.

``onnx.defs`` knows the standard domains, ``qir.ops.contrib`` those of onnxruntime's ``com.microsoft`` ops that
the compiler emits or meets, and a model's local functions describe themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import onnx
import onnx.defs

from qir.ir import AttrKind, Function, Graph, Model, Node
from qir.ops.contrib import CONTRIB, ContribOp

__all__ = [
    "AttributeSpec",
    "Formal",
    "OpSchema",
    "attribute",
    "find_schema",
    "function_of",
    "has_op",
    "known_domain",
    "opset_of",
    "schema_of",
]

_UNLIMITED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Formal:
    """A formal input or output. ``types`` are ONNX type strings such as ``tensor(float)``; empty means any.

    ``variable`` is the type variable ("T") that formals share. A variadic formal is always the last one; its actual
    ones share a type where ``homogeneous``.
    """

    name: str
    optional: bool = False
    variadic: bool = False
    homogeneous: bool = True
    variable: str = ""
    types: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class AttributeSpec:
    """``default`` is a Python value (strings decoded), None where there is none."""

    name: str
    kind: AttrKind
    required: bool = False
    default: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class OpSchema:
    """One op as it is since ``since_version`` of its domain. ``origin`` is onnx's own object, where onnx defines it."""

    domain: str
    name: str
    since_version: int
    inputs: tuple[Formal, ...]
    outputs: tuple[Formal, ...]
    attributes: Mapping[str, AttributeSpec]
    min_inputs: int
    max_inputs: int
    min_outputs: int
    max_outputs: int
    deprecated: bool = False
    any_attributes: bool = False
    """Attributes beyond those listed are fine (local functions and contrib ops, whose tables may lag)."""
    origin: onnx.defs.OpSchema | None = field(default=None, repr=False)

    def input(self, index: int) -> Formal | None:
        """The formal of an actual input, the variadic one for those beyond the end."""
        return _formal(self.inputs, index)

    def output(self, index: int) -> Formal | None:
        return _formal(self.outputs, index)


def _formal(formals: tuple[Formal, ...], index: int) -> Formal | None:
    if index < len(formals):
        return formals[index]
    return formals[-1] if formals and formals[-1].variadic else None


def known_domain(domain: str) -> bool:
    """Whether ops of this domain can be checked; an unknown domain is opaque."""
    return _canonical(domain) in _onnx_domains() or domain == "com.microsoft"


LARGEST_VERSION = 2**31 - 1
"""onnx keeps versions in 32 bits; a file may name any 64-bit number."""


@cache
def find_schema(domain: str, op: str, version: int) -> OpSchema | None:
    """The schema of an op at a version of its domain; None where it does not exist there."""
    domain = _canonical(domain)
    if domain == "com.microsoft":
        contrib = CONTRIB.get(op)
        return None if contrib is None else _from_contrib(op, contrib)
    try:
        found = onnx.defs.get_schema(op, min(version, LARGEST_VERSION), domain)
    except onnx.defs.SchemaError:
        return None
    return _from_onnx(found)


def schema_of(node: Node, model: Model) -> OpSchema | None:
    """The schema of a node's op at the opset that its graph (the model's or a local function's) imports.

    A local function goes before an op of the same name. None where nothing is known.
    """
    function = function_of(node, model)
    if function is not None:
        return _from_function(function)
    version = opset_of(node, model)
    if version is None:
        return None
    return find_schema(node.domain, node.op, version)


def function_of(node: Node, model: Model) -> Function | None:
    """The local function that a node calls."""
    functions = model.functions
    return functions.get(node.op_id) if functions else None


def opset_of(node: Node, model: Model) -> int | None:
    """The version of the node's domain that is imported where it stands; None where none is.

    onnxruntime's own domain counts as version 1 when a model forgets to import it.
    """
    imports = _scope_function(node.graph)
    if imports is not None and (version := imports.opset_imports.get(_canonical(node.domain))) is not None:
        return version
    version = model.opset(node.domain)
    return 1 if version is None and node.domain == "com.microsoft" else version


def attribute(node: Node, name: str, model: Model) -> Any:
    """An attribute's Python value, else the default of its schema at the model's opset, else None.

    None too where it refers to an attribute of the enclosing function, which only a call knows.
    """
    present = node.attributes.get(name)
    if present is not None:
        return None if present.ref else present.python
    schema = schema_of(node, model)
    spec = None if schema is None else schema.attributes.get(name)
    return None if spec is None else spec.default


def has_op(model: Model, op: str, domain: str = "") -> bool:
    """Whether the opset that the model imports has the op (deprecated ones do not count)."""
    version = model.opset(domain)
    if version is None:
        return False
    schema = find_schema(domain, op, version)
    return schema is not None and not schema.deprecated


def _scope_function(graph: Graph | None) -> Function | None:
    while graph is not None and graph.function is None:
        graph = graph.outer
    return None if graph is None else graph.function


def _canonical(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


@lru_cache(maxsize=1)
def _onnx_domains() -> frozenset[str]:
    return frozenset(schema.domain for schema in onnx.defs.get_all_schemas())


def _from_onnx(found: onnx.defs.OpSchema) -> OpSchema:
    return OpSchema(
        domain=found.domain,
        name=found.name,
        since_version=found.since_version,
        inputs=tuple(map(_formal_of, found.inputs)),
        outputs=tuple(map(_formal_of, found.outputs)),
        attributes={name: _attribute_of(spec) for name, spec in found.attributes.items()},
        min_inputs=found.min_input,
        max_inputs=found.max_input,
        min_outputs=found.min_output,
        max_outputs=found.max_output,
        deprecated=found.deprecated,
        origin=found,
    )


def _formal_of(parameter: onnx.defs.OpSchema.FormalParameter) -> Formal:
    option = onnx.defs.OpSchema.FormalParameterOption
    return Formal(
        parameter.name,
        optional=parameter.option == option.Optional,
        variadic=parameter.option == option.Variadic,
        homogeneous=parameter.is_homogeneous,
        variable=parameter.type_str,
        types=frozenset(parameter.types),
    )


def _attribute_of(spec: onnx.defs.OpSchema.Attribute) -> AttributeSpec:
    default = None
    if spec.default_value.type:
        default = onnx.helper.get_attribute_value(spec.default_value)
        if isinstance(default, bytes):
            default = default.decode()
        elif not isinstance(default, int | float):
            default = tuple(v.decode() if isinstance(v, bytes) else v for v in default)
    return AttributeSpec(
        spec.name, AttrKind[str(spec.type).rpartition(".")[2].removesuffix("_PROTO")], spec.required, default
    )


def _from_contrib(name: str, op: ContribOp) -> OpSchema:
    inputs = tuple(Formal(i.rstrip("?*"), i.endswith("?"), i.endswith("*")) for i in op.inputs)
    outputs = tuple(Formal(o.rstrip("?*"), o.endswith("?"), o.endswith("*")) for o in op.outputs)
    attributes = {}
    for key, value in op.attributes.items():
        if isinstance(value, AttrKind):
            attributes[key] = AttributeSpec(key, value, required=key in op.required)
        else:
            kind = AttrKind.INT if isinstance(value, int) else AttrKind.FLOAT
            attributes[key] = AttributeSpec(key, AttrKind.STRING if isinstance(value, str) else kind, False, value)
    return OpSchema(
        domain="com.microsoft",
        name=name,
        since_version=1,
        inputs=inputs,
        outputs=outputs,
        attributes=attributes,
        min_inputs=_needed(inputs),
        max_inputs=_UNLIMITED if inputs and inputs[-1].variadic else len(inputs),
        min_outputs=_needed(outputs),
        max_outputs=_UNLIMITED if outputs and outputs[-1].variadic else len(outputs),
        any_attributes=True,
    )


def _needed(formals: tuple[Formal, ...]) -> int:
    """How many actuals a list must at least have: up to the last one that is not optional."""
    return max((index + 1 for index, formal in enumerate(formals) if not formal.optional), default=0)


def _from_function(function: Function) -> OpSchema:
    graph = function.graph
    attributes = {name: AttributeSpec(name, AttrKind.UNDEFINED, True) for name in function.attributes}
    attributes |= {a.name: AttributeSpec(a.name, a.kind, False, a.python) for a in function.defaults}
    return OpSchema(
        domain=function.domain,
        name=function.name,
        since_version=1,
        inputs=tuple(Formal(value.name, optional=True) for value in graph.inputs),
        outputs=tuple(Formal(value.name, optional=True) for value in graph.outputs),
        attributes=attributes,
        min_inputs=0,
        max_inputs=len(graph.inputs),
        min_outputs=0,
        max_outputs=len(graph.outputs),
        any_attributes=True,
    )
