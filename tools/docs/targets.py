"""The page of targets: what each one runs, takes and refuses, from the data that the compiler asks, and the sources."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from qir.pipeline.registry import load_target, target_names
from qir.targets.describe import FORMS, cost_lines, dynamic, target_json
from qir.targets.target import Form, Target

__all__ = ["target_page"]


def target_page() -> Iterator[str]:
    yield (
        "# Targets\n\nWhat `qir targets NAME` knows, with where it stands written. The compiler asks these tables, and "
        "`qir targets lint NAME MODEL` checks them; [Choose and tune a target](../targets.md) says which to take.\n"
    )
    for name, source in target_names().items():
        if source == "qir":
            yield from _target(load_target(name))


def _target(target: Target) -> Iterator[str]:
    found = target_json(target)
    rules = found["constraints"]
    yield f"## {target.name}\n\n{target.title}. Versions: {target.runtime_versions}.\n"
    yield from _table(("constraint", ""), _constraints(found, rules).items())
    yield from _table(
        ("runs on integers", "with"),
        [
            *((", ".join(operators), FORMS[Form(form)]) for form, operators in found["integer"].items()),
            *(text.split(": ", 1) for text in dynamic(target).values()),
        ],
    )
    reasons: dict[str, list[str]] = {}
    for op, reason in target.float_only.items():
        reasons.setdefault(reason, []).append(op)
    yield from _table(("stays float", "because"), [(", ".join(ops), reason) for reason, ops in reasons.items()])
    if target.notes:
        yield "To know:\n\n" + "\n".join(f"- {note}" for note in target.notes) + "\n"
    if target.runs_here:
        yield "Costs, float / integer, one thread:\n\n```\n" + "\n".join(cost_lines(target)) + "\n```\n"
    yield "Sources:\n\n" + "\n".join(f"- {_link(source)}" for source in rules["sources"]) + "\n"


def _constraints(found: Mapping[str, Any], rules: Mapping[str, Any]) -> dict[str, str]:
    zero = ", zero point 0" if rules["symmetric_activations"] else ""
    weight_zero = ", zero point 0" if rules["symmetric_weights"] else ""
    activation = found["activation"]["dtype"]
    options = ", ".join(f"`{key}={value}`" for key, value in found["session_options"].items())
    rows = {
        "formats": f"{', '.join(rules['formats'])}; {found['format']} by default",
        "activations": f"{_either(rules['activations'])}, a scale a tensor{zero}; {activation} by default",
        "weights": f"{_either(rules['weights'])}{weight_zero}; {found['weight']['dtype']} by default, range "
        f"{found['weight']['range']}",
        "a scale a channel": ", ".join(rules["per_channel"]) or "nowhere",
        "weights in blocks": _either(rules["blocked"]),
        "biases": _either(rules["biases"]),
        "shapes": "fixed: no symbolic axes" if rules["fixed_shapes"] else "fixed or symbolic",
        "looked at after emission": "yes, the fusion audit" if found["runs_here"] else "no, linted",
        "also linted": ", ".join(f"`{trap}`" for trap in rules["traps"]),
        "session options": options,
    }
    return {name: text for name, text in rows.items() if text}


def _table(head: tuple[str, str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    if found := list(rows):
        cells = [head, ("---", "---"), *found]
        yield "\n".join(f"| {left} | {right} |" for left, right in cells) + "\n"


def _either(types: list[str]) -> str:
    return " or ".join(types)


def _link(source: str) -> str:
    address, space, rest = source.partition(" ")
    return f"<{address}>{space}{rest}" if address.startswith("http") else source
