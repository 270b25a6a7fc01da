"""`qir inspect`: what a model is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from qir.analysis.cost import model_cost, node_cost, open_batch, with_symbols
from qir.analysis.liveness import peak_memory
from qir.cli.options import JsonFlag, print_json
from qir.errors import OptionError, suggest
from qir.ir import DType, Model, Node, SparseTensor, Tensor, Value, format_type
from qir.pipeline import Pipeline
from qir.pipeline.registry import load_target
from qir.quant.detect import first_quantized_node, is_quantized
from qir.targets.regions import plan_regions

__all__ = ["cost_facts", "inspect", "integer_facts", "model_facts"]

_INTEGER_WEIGHTS = frozenset({"MatMulNBits", "MatMulBnb4", "GatherBlockQuantized"})
_NARROW = frozenset({DType.INT8, DType.UINT8, DType.INT4, DType.UINT4, DType.FLOAT16, DType.BFLOAT16})
_WIDENING = frozenset(
    {"Cast", "Gather", "GatherElements", "Div", "Mod", "BitShift", "BitwiseAnd", "Unsqueeze", "Slice"}
)
"""Operators that take stored codes apart; a table of bytes that is looked up by an input is no such thing, but rare."""
_LEAST_STORED = 64


def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.", show_default=False)],
    dim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SIZE", help="The size of an axis that has a name, for costs (may be repeated)."),
    ] = None,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="Runtime of which to tell what it would run on integers.")
    ] = "ort-cpu",
    json: JsonFlag = False,
) -> None:
    """Show inputs, outputs, operators, parameters, bytes by type, multiply-accumulates, memory, the mix of precisions,
    quantization that is there already, and what a target would run on integers.

    Example: [bold]qir inspect model.onnx --json[/bold]
    """
    from qir.calibration.synthetic import parse_dims
    from qir.frontend import load

    loaded = load(model)
    facts = {"model": str(model), **model_facts(loaded), **cost_facts(loaded, parse_dims(dim or ()))}
    facts["integers"] = integer_facts(loaded, target)
    if json:
        print_json(facts)
    else:
        typer.echo(_text(facts))


def model_facts(model: Model) -> dict[str, Any]:
    """As shown by ``qir inspect --json``. ``parameters`` counts elements of all constants, shared ones once."""
    nodes = list(model.walk())
    constants = _constants(model, nodes)
    graph = model.graph
    return {
        "name": graph.name,
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "ir_version": model.ir_version,
        "opsets": {domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        "inputs": _interface(value for value in graph.inputs if not value.is_initializer),
        "outputs": _interface(graph.outputs),
        "nodes": len(nodes),
        "ops": dict(sorted(Counter(map(_op, nodes)).items(), key=lambda item: (-item[1], item[0]))),
        "bodies": sum(len(node.bodies) for node in nodes),
        "functions": [function.name for function in model.functions.values()],
        "parameters": sum(tensor.size for tensor in constants),
        "parameter_bytes": _bytes_by_dtype(constants),
        "overridable": [value.name for value in graph.inputs if value.is_initializer],
        "quantization": _quantization(nodes),
        "stored": _stored(model),
    }


def cost_facts(model: Model, dims: Mapping[str, int]) -> dict[str, Any]:
    """``macs``: multiply-accumulates of a run; ``macs_by_precision``; ``activation_peak_bytes``: the largest sum of
    activations alive at once. An open batch is one sample: ``assumed_dims`` says so. Null where another size is not
    known, ``unknown_dims`` names the axes to give. Raises OptionError for a name of no axis."""
    shapes = {v.name: v.shape for v in model.graph.inputs if v.shape is not None and not v.is_initializer}
    named = {size for shape in shapes.values() for size in shape if isinstance(size, str)}
    for name in dims:
        if name not in named:
            raise OptionError(f"no input has an axis {name!r}{suggest(name, named)}")
    assumed = open_batch(model, dims)
    sized = with_symbols(model, {**assumed, **dims})
    cost, peak = model_cost(sized), peak_memory(sized.graph)
    known = not cost.unknown
    mix: Counter[str] = Counter()
    for node in sized.walk():
        macs = node_cost(node).macs
        if macs:
            mix[_precision(node)] += macs
    return {
        "macs": cost.macs if known else None,
        "macs_by_precision": dict(sorted(mix.items(), key=lambda item: (-item[1], item[0]))) if known else None,
        "activation_peak_bytes": peak.bytes if not peak.unknown else None,
        "activation_peak_node": peak.node.label if peak.node is not None and not peak.unknown else None,
        "assumed_dims": assumed,
        "unknown_dims": sorted(named - set(dims) - set(assumed)),
    }


def _precision(node: Node) -> str:
    """In what a node that multiplies computes: integers where its kernel does, or where the runtime can make it so
    because all it reads is dequantized."""
    if node.op in _INTEGER_WEIGHTS:
        return "integer weights"
    if is_quantized(node):
        return "int8"
    makers = [value.producer for value in node.inputs[:2] if value is not None]
    dequantized = [maker is not None and maker.op == "DequantizeLinear" for maker in makers]
    if len(dequantized) > 1 and dequantized[1] and not dequantized[0]:
        return "integer weights"
    if dequantized and all(dequantized):
        return "int8"
    return _dtype(node.input(0))


def integer_facts(model: Model, target: str) -> dict[str, Any] | None:
    """What the target would run on integers, of the model as its compiler would simplify it; None for a model that is
    quantized already. ``stays_float`` gives the first reason for each operator."""
    if first_quantized_node(model) is not None:
        return None
    runtime = load_target(target)
    simplified = (
        Pipeline.parse("canonicalize,fold-constants,fuse,canonicalize,legalize").run(model, target=target).model
    )
    integer: Counter[str] = Counter()
    kept: dict[str, str] = {}
    for graph in simplified.graph.graphs():
        plan = plan_regions(graph, runtime)
        integer.update(_op(node) for node in plan.integer)
        for node, reason in plan.kept.items():
            kept.setdefault(_op(node), f"{node.label}: {reason}")
    ops = dict(sorted(integer.items(), key=lambda item: (-item[1], item[0])))
    return {"target": target, "ops": ops, "stays_float": dict(sorted(kept.items()))}


def _op(node: Node) -> str:
    return f"{node.domain}.{node.op}" if node.domain not in ("", "ai.onnx") else node.op


def _interface(values: Any) -> list[dict[str, str]]:
    return [{"name": value.name, "type": format_type(value.type)} for value in values]


def _constants(model: Model, nodes: list[Node]) -> list[Tensor]:
    """Dense tensors of initializers and attributes; a sparse one stands for its values and indices. Each once."""
    found: dict[int, Tensor] = {}

    def add(content: object) -> None:
        match content:
            case Tensor():
                found[id(content)] = content
            case SparseTensor():
                add(content.values)
                add(content.indices)
            case tuple():
                for item in content:
                    add(item)

    for each in model.graphs():
        for value in each.initializers:
            add(value.const)
    for node in nodes:
        for attribute in node.attributes.values():
            add(attribute.value)
    return list(found.values())


def _bytes_by_dtype(tensors: list[Tensor]) -> dict[str, int]:
    total: Counter[DType] = Counter()
    for tensor in tensors:
        total[tensor.dtype] += tensor.nbytes
    return {str(dtype): count for dtype, count in sorted(total.items(), key=lambda item: (-item[1], item[0].text))}


def _quantization(nodes: list[Node]) -> dict[str, Any] | None:
    """Quantized operators by name, and the integer types that quantizers store; None for a float model."""
    ops = Counter(_op(node) for node in nodes if is_quantized(node))
    if not ops:
        return None
    stored: Counter[str] = Counter()
    per_channel = 0
    for node in nodes:
        if node.op == "DequantizeLinear":
            scale, data = node.input(1), node.input(2) or node.input(0)
            stored[_dtype(data)] += 1
            per_channel += (
                scale is not None and scale.shape is not None and len(scale.shape) > 0 and scale.shape != (1,)
            )
    return {"ops": dict(sorted(ops.items())), "dequantized": dict(sorted(stored.items())), "per_channel": per_channel}


def _stored(model: Model) -> dict[str, int]:
    """Float weights that stand in few bits and are widened by nodes on constants alone, when the model is loaded."""
    found: Counter[str] = Counter()
    for graph in model.graphs():
        for value in graph.initializers:
            narrow = value.tensor is not None and value.tensor.dtype in _NARROW and value.tensor.size >= _LEAST_STORED
            if narrow and value.users and all(user.op in _WIDENING and user.domain == "" for user in value.users):
                found[_dtype(value)] += not _decodes(value)
    return dict(sorted((+found).items()))


def _decodes(value: Value) -> bool:
    """Whether a constant is a codebook's table or scales rather than a weight."""
    uses = [use for user in value.users for out in user.outputs if out is not None for use in out.uses]
    return bool(uses) and all(
        use.node is not None and (use.node.op == "Mul" or (use.node.op.startswith("Gather") and use.index == 0))
        for use in uses
    )


def _dtype(value: Value | None) -> str:
    return "?" if value is None or value.dtype is None else str(value.dtype)


def _text(facts: dict[str, Any]) -> str:
    opsets = ", ".join(f"{domain} {version}" for domain, version in facts["opsets"].items())
    producer = f", by {facts['producer']}" if facts["producer"] else ""
    lines = [f"{facts['model']}: opset {opsets}, IR {facts['ir_version'] or '?'}{producer}"]
    for kind in ("inputs", "outputs"):
        lines += [f"  {kind[:-1]:6} {value['name']}: {value['type']}" for value in facts[kind]]
    bodies = f", {facts['bodies']} bodies" if facts["bodies"] else ""
    functions = f", functions {', '.join(facts['functions'])}" if facts["functions"] else ""
    sizes = ", ".join(f"{dtype} {_size(count)}" for dtype, count in facts["parameter_bytes"].items())
    lines.append(f"{facts['nodes']} nodes{bodies}{functions}; {facts['parameters']:,} parameters: {sizes or 'none'}")
    width = max(map(len, facts["ops"]), default=0)
    lines += [f"  {op:{width}}  {count}" for op, count in facts["ops"].items()]
    if facts["overridable"]:
        lines.append(f"constants that a caller may override: {', '.join(facts['overridable'])}")
    lines += _cost_text(facts)
    lines.append(_quantization_text(facts["quantization"], facts["stored"]))
    lines += _integer_text(facts["integers"])
    return "\n".join(lines)


def _cost_text(facts: dict[str, Any]) -> list[str]:
    lines = []
    batch = ", ".join(f"{name} = {size}" for name, size in facts["assumed_dims"].items())
    with_batch = f" for {batch}" if batch else ""
    if facts["macs"] is not None:
        mix = ", ".join(f"{name} {count:,}" for name, count in facts["macs_by_precision"].items())
        lines.append(f"{facts['macs']:,} multiply-accumulates{with_batch}{f': {mix}' if mix else ''}")
    if facts["activation_peak_bytes"] is not None:
        place = f" at {facts['activation_peak_node']}" if facts["activation_peak_node"] else ""
        lines.append(f"activations need up to {_size(facts['activation_peak_bytes'])}{with_batch}{place}")
    if len(lines) < 2:
        names = " ".join(f"--dim {name}=1" for name in facts["unknown_dims"])
        lines.append(f"costs not all known: sizes are open{f', give {names}' if names else ''}")
    return lines


def _integer_text(facts: dict[str, Any] | None) -> list[str]:
    if facts is None:
        return []
    ops = ", ".join(f"{op} {count}" for op, count in facts["ops"].items())
    lines = [f"{facts['target']} would run on integers: {ops or 'nothing'}"]
    return lines + [f"  {op} stays float, {reason}" for op, reason in facts["stays_float"].items()]


def _quantization_text(quantization: dict[str, Any] | None, narrow: dict[str, int]) -> str:
    widened = ", ".join(f"{dtype} {count}" for dtype, count in narrow.items())
    at_load = f"weights stored in few bits, computed as float: {widened}" if widened else ""
    if quantization is None:
        return at_load or "not quantized"
    ops = ", ".join(f"{op} {count}" for op, count in quantization["ops"].items())
    types = ", ".join(f"{dtype} {count}" for dtype, count in quantization["dequantized"].items())
    stored = f"; dequantized from {types}, {quantization['per_channel']} per channel" if types else ""
    return f"quantized: {ops}{stored}{f'; {at_load}' if at_load else ''}"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
