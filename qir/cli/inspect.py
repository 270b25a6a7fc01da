"""`qir inspect`: what a model is made of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from qir.cli.options import JsonFlag, print_json
from qir.ir import DType, Model, Node, SparseTensor, Tensor, Value, format_type

__all__ = ["inspect", "model_facts"]

# Operators that mean that (part of) a model is quantized already.
_QUANTIZED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "MatMulNBits"}
)
_QUANTIZED_PREFIXES = ("QLinear", "DynamicQuantize", "QAttention", "QGemm", "QEmbed", "QMoE", "GatherBlockQuantized")


def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.", show_default=False)],
    json: JsonFlag = False,
) -> None:
    """Show inputs, outputs, operators, parameters, bytes by type, bodies, and quantization that is there already.

    Example: [bold]qir inspect model.onnx --json[/bold]
    """
    from qir.frontend import load

    facts = {"model": str(model), **model_facts(load(model))}
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
    }


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
    ops = Counter(_op(node) for node in nodes if node.op in _QUANTIZED or node.op.startswith(_QUANTIZED_PREFIXES))
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
    lines.append(_quantization_text(facts["quantization"]))
    return "\n".join(lines)


def _quantization_text(quantization: dict[str, Any] | None) -> str:
    if quantization is None:
        return "not quantized"
    ops = ", ".join(f"{op} {count}" for op, count in quantization["ops"].items())
    types = ", ".join(f"{dtype} {count}" for dtype, count in quantization["dequantized"].items())
    stored = f"; dequantized from {types}, {quantization['per_channel']} per channel" if types else ""
    return f"quantized: {ops}{stored}"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
