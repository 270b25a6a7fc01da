"""Opset conversion of the default domain, upwards, on the IR.

Our own adapters are the only path. onnx.version_converter (1.23) works on whole ModelProtos, so it would need stub
weights; it loses node metadata and all local functions, whose calls it leaves behind, and it changes numbers without a
word: a Resize of opset 10 comes out with the coordinates of opset 11. An adapter here edits the one node that it is
about, so nothing else can get lost, and what has no adapter is an error.

What a node needs for a step is decided by comparing the op's two schemas. The same inputs, outputs and attributes with
wider types, new optional ones allowed, need nothing; a changed default is written out; everything else needs an
adapter (``opset_adapters``), and so do the changes of meaning that no schema shows. A node that has none is an error.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import onnx.defs
import onnx.helper

from qir.errors import UnsupportedError
from qir.ir import Function, Model, Node
from qir.ops.opset_adapters import ADAPTERS, UNSUPPORTED, CannotConvert
from qir.ops.schema import OpSchema, find_schema
from qir.ops.shape_inference import infer, infer_after

__all__ = ["Conversion", "Step", "convert_opset", "newest_opset", "step_of", "steps"]

_HIGHEST_IR_VERSION = 13
"""onnxruntime 1.31 refuses 14."""


@dataclass(slots=True)
class Conversion:
    """What was converted: nodes by ``Op before->after``, where an adapter or a written-out default was needed."""

    before: int
    after: int
    adapted: Counter[str] = field(default_factory=Counter)
    nodes: list[Node] = field(default_factory=list)
    """The nodes that were adapted, and those that adapters added, in order."""


@dataclass(frozen=True, slots=True)
class Step:
    """What an op needs to come to the version that was introduced in opset ``version``.

    ``kind`` is "same", "defaults" (write out ``defaults``), "adapter" or "unsupported" (``reason``).
    """

    version: int
    kind: str
    defaults: tuple[tuple[str, Any], ...] = ()
    reason: str = ""


def newest_opset() -> int:
    """The newest opset that the installed onnx knows."""
    return int(onnx.defs.onnx_opset_version())


def convert_opset(model: Model, to: int) -> Conversion:
    """Bring the default domain to opset ``to``, in place: the main graph, bodies and local functions.

    Names of values and nodes stay; what an adapter adds carries the provenance of the node it came from.
    ``ir_version`` is raised where the opset needs it, and initializers that are inputs stay inputs. Raises
    UnsupportedError for a lower or unknown ``to``, and for a node that cannot be converted, naming it; the model is
    then partly converted, so run this inside a transaction.
    """
    version = model.opset()
    if version is None:
        if any(node.domain in ("", "ai.onnx") for node in model.graph.walk()):
            raise UnsupportedError("the model imports no opset of the default domain: export it again")
        version = to
    if to > newest_opset():
        raise UnsupportedError(f"opset {to} is unknown to the installed onnx: choose at most {newest_opset()}")
    conversion = Conversion(version, to)
    if version > to:
        raise UnsupportedError(f"the model is at opset {version}, which cannot be lowered to {to}")
    if version < to and _needs_adapters(model, version, to):
        infer(model)  # some adapters ask for ranks and element types
    if version < to:
        for node in list(model.graph.walk()):
            _convert_node(model, node, version, to, conversion)
        _import(model, to)
    for function in model.functions.values():
        _convert_function(model, function, to, conversion)
    if conversion.nodes:
        infer_after(model, conversion.nodes)
    _raise_ir_version(model, to)
    return conversion


def _convert_function(model: Model, function: Function, to: int, conversion: Conversion) -> None:
    spelling = "ai.onnx" if "ai.onnx" in function.opset_imports else ""
    version = function.opset_imports.get(spelling)
    if version is None or version >= to:
        return
    for node in list(function.graph.walk()):
        _convert_node(model, node, version, to, conversion)
    # Function's imports are a plain field: replaced whole, so that a clone which shares the dict is not changed.
    function.opset_imports = {**function.opset_imports, spelling: to}


def _needs_adapters(model: Model, version: int, to: int) -> bool:
    ops = {node.op for node in model.walk() if node.domain in ("", "ai.onnx")}
    return any(step.kind == "adapter" for op in ops for step in steps(op, version, to))


def _convert_node(model: Model, node: Node, version: int, to: int, conversion: Conversion) -> None:
    if node.domain not in ("", "ai.onnx") or node.op_id in model.functions:
        return
    current = version
    first, graph = node.op, node.graph
    before, previous, following = _form(node), node.previous, node.next
    assert graph is not None
    while True:
        todo = [step for step in steps(node.op, current, to) if step.version > current]
        if not todo:
            break
        step = todo[0]
        if step.kind == "unsupported":
            raise UnsupportedError(
                f"{node.op} {node.label!r} cannot be converted from opset {current} to {step.version}: {step.reason}"
            )
        if step.kind == "defaults":
            for name, value in step.defaults:
                if name not in node.attributes:
                    node.set(name, value)
        elif step.kind == "adapter":
            try:
                ADAPTERS[node.op, step.version](node)
            except CannotConvert as error:
                raise UnsupportedError(
                    f"{node.op} {node.label!r} cannot be converted from opset {current} to {step.version}: {error}"
                ) from None
        current = step.version
        if node.graph is None:  # replaced by a node that is at ``step.version`` and needs no more here
            break
    if node.graph is None or _form(node) != before:
        conversion.adapted[f"{first} {version}->{to}"] += 1
        # The node, or what replaced it, and all that was put beside it.
        beside = graph.nodes.first if previous is None else previous.next
        while beside is not following and beside is not None:
            if to < 12 and "value_ints" in beside.attributes:
                raise UnsupportedError(
                    f"{first} {node.label!r} cannot be converted to opset {to}: an attribute of the enclosing function "
                    "becomes an input, which needs opset 12 at least"
                )
            conversion.nodes.append(beside)
            beside = beside.next


def _form(node: Node) -> tuple[Any, ...]:
    return node.op, node.inputs, tuple(node.attributes.items())


@cache
def steps(op: str, version: int, to: int) -> tuple[Step, ...]:
    """What an op needs from opset ``version`` up to ``to``, in order."""
    found = []
    for step in range(version + 1, to + 1):
        if (op, step) in ADAPTERS:
            found.append(Step(step, "adapter"))
            continue
        schema = find_schema("", op, step)
        if schema is not None and schema.since_version == step:
            found.append(step_of(op, step))
    return tuple(found)


@cache
def step_of(op: str, version: int) -> Step:
    """What an op needs to come from the opset before ``version``, in which it changed, to ``version``."""
    if (op, version) in ADAPTERS:
        return Step(version, "adapter")
    if (op, version) in UNSUPPORTED:
        return Step(version, "unsupported", reason=UNSUPPORTED[op, version])
    old, new = find_schema("", op, version - 1), find_schema("", op, version)
    if new is None or new.deprecated:
        return Step(version, "unsupported", reason="the op was removed")
    if old is None:
        return Step(version, "same")
    reason = _incompatibility(old, new)
    if reason:
        return Step(version, "unsupported", reason=reason)
    defaults = tuple(
        (name, spec.default)
        for name, spec in old.attributes.items()
        if spec.default is not None and spec.default != new.attributes[name].default
    )
    return Step(version, "defaults" if defaults else "same", defaults)


def _incompatibility(old: OpSchema, new: OpSchema) -> str:
    """Why a node of the old schema is no node of the new one; empty where it is."""
    for what, before, after in (("input", old.inputs, new.inputs), ("output", old.outputs, new.outputs)):
        if len(before) > len(after):
            return f"{what} {before[len(after)].name!r} was removed"
        for mine, theirs in zip(before, after, strict=False):
            if mine.name.lower() != theirs.name.lower():
                return f"{what} {mine.name!r} became {theirs.name!r}"
            if not mine.types <= theirs.types:
                return f"{what} {mine.name!r} no longer takes {', '.join(sorted(mine.types - theirs.types))}"
            if mine.optional and not theirs.optional:
                return f"{what} {mine.name!r} is required now"
        if any(not (formal.optional or formal.variadic) for formal in after[len(before) :]):
            return f"{what} {after[len(before)].name!r} is new"
    for name, spec in old.attributes.items():
        if name not in new.attributes:
            return f"attribute {name!r} was removed"
        if spec.kind != new.attributes[name].kind:
            return f"attribute {name!r} changed its kind"
    for name, spec in new.attributes.items():
        if spec.required and name not in old.attributes:
            return f"attribute {name!r} is new"
    return ""


def _import(model: Model, to: int) -> None:
    spelling = "ai.onnx" if "ai.onnx" in model.opset_imports and "" not in model.opset_imports else ""
    model.opset_imports = {**model.opset_imports, spelling: to}


def _raise_ir_version(model: Model, opset: int) -> None:
    if model.ir_version is None:
        return
    needed = onnx.helper.OP_SET_ID_VERSION_MAP.get(("ai.onnx", opset), _HIGHEST_IR_VERSION)
    needed = min(needed, _HIGHEST_IR_VERSION)
    if model.ir_version < needed:
        model.ir_version = needed
