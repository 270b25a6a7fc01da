"""A target for readers and for programs: what it runs in integers, its traps, costs and session options."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qir.targets.target import Form, Target

__all__ = ["FORMS", "cost_lines", "dynamic", "machine", "target_json", "target_lines"]

FORMS = {
    Form.CONVOLUTION: "one quantizer on the result",
    Form.LINEAR: "a quantizer on each use of the input, the result may stay float",
    Form.ELEMENTWISE: "all operands and the result quantized",
    Form.UNARY: "operand and result quantized",
    Form.MOVEMENT: "operand and result share their parameters",
    Form.RECURRENT: "quantizes its activations itself",
    Form.LOOKUP: "rows of codes",
}
"""How an operator of a form runs on integers, in words."""


def target_json(target: Target) -> dict[str, Any]:
    """All that a program may want; keys are added, never changed."""
    rules = target.constraints
    return {
        "name": target.name,
        "title": target.title,
        "runtime_versions": target.runtime_versions,
        "runs_here": target.runs_here,
        "integer": {form.value: operators for form, operators in _by_form(target).items()},
        "dynamic": dynamic(target),
        "float": dict(target.float_only),
        "activation": {"dtype": str(target.activation), "symmetric": target.symmetric},
        "weight": {
            "dtype": str(target.weight),
            "range": target.weight_range.value,
            "per_tensor": sorted(target.per_tensor_weights),
        },
        "format": target.format,
        "constraints": {
            "formats": sorted(rules.formats),
            "activations": sorted(map(str, rules.activations)),
            "weights": sorted(map(str, rules.weights)),
            "per_channel": sorted(rules.per_channel),
            "blocked": sorted(map(str, rules.blocked)),
            "symmetric_activations": rules.symmetric_activations,
            "symmetric_weights": rules.symmetric_weights,
            "biases": sorted(map(str, rules.biases)),
            "fixed_shapes": rules.fixed_shapes,
            "traps": sorted(rules.traps),
            "sources": list(rules.sources),
        },
        "cost": asdict(target.cost) if target.runs_here else None,
        "session_options": dict(target.session_options),
        "notes": list(target.notes),
    }


def target_lines(target: Target) -> list[str]:
    rules = target.constraints
    lines = [f"{target.name}  ({target.runtime_versions})", "", target.title, "", "Runs on integers"]
    for form, operators in _by_form(target).items():
        lines.append(f"  {', '.join(operators)}")
        lines.append(f"      {FORMS[form]}")
    lines += [f"  {text}" for text in dynamic(target).values()]
    symmetric = ", zero point 0" if target.symmetric else ""
    lines += [
        "",
        "Types",
        f"  activations  {target.activation}, a scale a tensor{symmetric}; it takes {_texts(rules.activations)}",
        f"  weights      {target.weight}, {target.weight_range.value}; by channel for {_texts(rules.per_channel)}",
        f"  biases       {_texts(rules.biases)}",
        f"  formats      {', '.join(sorted(rules.formats))}; {target.format} by default",
    ]
    if rules.blocked:
        lines.append(f"  in blocks    {_texts(rules.blocked)} weights")
    lines += ["", "Stays float, and why"]
    reasons: dict[str, list[str]] = {}
    for op, reason in target.float_only.items():
        reasons.setdefault(reason, []).append(op)
    lines += [f"  {', '.join(operators)}: {reason}" for reason, operators in reasons.items()]
    lines += ["", "To know", *(f"  - {note}" for note in target.notes)]
    if target.runs_here:
        lines += ["", "Costs, float / integer, one thread", *cost_lines(target)]
    options = ", ".join(f"{key}={value}" for key, value in sorted(target.session_options.items()))
    lines += ["", f"Session options  {options or 'the defaults'}"]
    lines += ["", "Sources", *(f"  {source}" for source in rules.sources)]
    return lines


def machine() -> dict[str, str]:
    """What was measured on: processor, cores, runtime."""
    from importlib.metadata import version

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = (line for line in info.read_text(errors="replace").splitlines() if line.startswith("model name"))
        model = next(named, f": {model}").partition(":")[2].strip()
    return {"processor": model, "cores": str(os.cpu_count() or 1), "onnxruntime": version("onnxruntime")}


def cost_lines(target: Target) -> list[str]:
    """The cost table as lines of text."""
    cost = target.cost
    pairs = {
        "products": cost.macs_per_us,
        "products of few rows": cost.vector_macs_per_us,
        "depthwise convolutions": cost.depthwise_macs_per_us,
    }
    unit = "billion multiply-adds a second"
    lines = [f"  {name:24} {a / 1000:.1f} / {b / 1000:.1f} {unit}" for name, (a, b) in pairs.items()]
    light = ", ".join(f"{op} {pair[0]:.2g}/{pair[1]:.2g}" for op, pair in list(cost.element_ns.items())[:6])
    lines.append(f"  {'ns an element':24} {light}; converting {cost.convert_ns:.2g}")
    lines.append(f"  {'us a node':24} {cost.node_us:.2g}; an integer product {cost.integer_node_us:.2g}")
    return lines


def _by_form(target: Target) -> dict[Form, list[str]]:
    found: dict[Form, list[str]] = {}
    for op, rule in target.rules.items():
        found.setdefault(rule.form, []).append(op)
    return found


def dynamic(target: Target) -> Mapping[str, str]:
    """What quantizes at run time or has a kernel of its own, in words."""
    found: dict[str, str] = {}
    if target.dynamic_linear:
        found["linear"] = "MatMul, Gemm: quantize their input at run time where it stands as float"
    if target.min_dynamic_conv_channels is not None:
        found["conv"] = (
            f"Conv: at run time from {target.min_dynamic_conv_channels} input channels and "
            f"{target.min_dynamic_conv_macs / 1e6:g} million products on (preset int8-dynamic)"
        )
    found.update({op: f"{op}: as {kernel}" for op, kernel in target.recurrent_kernels.items()})
    if target.lookup is not None:
        found["lookup"] = f"Gather: tables of {target.min_table_bytes // 1024} KiB and more as rows of codes"
    return found


def _texts(items: object) -> str:
    assert isinstance(items, frozenset)
    return " or ".join(sorted(map(str, items)))
