"""``diff``: two models in, a ``GraphDiff`` out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from qir.diff.changes import Change, ChangeKind, Detail, GraphDiff, ModelSide, Summary
from qir.diff.compare import Comparison
from qir.diff.describe import MOST_INFERRED, Describer
from qir.diff.facts import model_facts
from qir.diff.folding import fold_model
from qir.diff.functions import renamed_functions
from qir.diff.grouping import group
from qir.diff.pairs import metadata_details
from qir.diff.view import Interner, View, ViewMaker, attribute_key
from qir.errors import OptionError, suggest
from qir.frontend.residue import absent_fields
from qir.frontend.wire import fields
from qir.ir import Function, Model, OpId, Tensor
from qir.ir.collector import collector_paused
from qir.ops.shape_inference import infer

__all__ = ["NOTES", "diff", "diff_own"]

NOTES = frozenset(
    {
        ChangeKind.IR_VERSION_CHANGED,
        ChangeKind.PRODUCER_CHANGED,
        ChangeKind.DOC_CHANGED,
        ChangeKind.IMPORT_CHANGED,
        ChangeKind.RESPELLED,
        ChangeKind.UNUSED_CHANGED,
    }
)
"""Kinds of differences that leave two models identical."""


def diff(
    old: Model | str | os.PathLike[str],
    new: Model | str | os.PathLike[str],
    *,
    weights: bool = True,
    ignore: Collection[str] = (),
) -> GraphDiff:
    """What differs between two models (or ONNX files), whatever was renamed, reordered or stored in another form.

    ``weights``: whether statistics of changed weights can be asked for. ``ignore``: kinds of changes to leave out, by
    the names of ``ChangeKind`` ("weight-changed"). Raises ModelError for a file that cannot be read, OptionError for an
    unknown kind.
    """
    ignored = _kinds(ignore)
    with collector_paused():
        models, names = [], []
        for given in (old, new):
            model, name = _load(given)
            models.append(model)
            names.append(name)
        ours = [model for model, given in zip(models, (old, new), strict=True) if not isinstance(given, Model)]
        return _diff(models[0], models[1], names, weights, ignored, ours)


def diff_own(old: Model, new: Model, names: tuple[str, str]) -> GraphDiff:
    """``diff`` of models that the caller made for it: types are inferred in them, for the facts."""
    with collector_paused():
        return _diff(old, new, list(names), True, frozenset(), [old, new])


def _diff(
    a: Model, b: Model, names: list[str], weights: bool, ignored: frozenset[ChangeKind], ours: list[Model]
) -> GraphDiff:
    intern = Interner()
    foldings = fold_model(a), fold_model(b)
    renamed = renamed_functions(a, b, foldings, intern) if a.functions and b.functions else {}
    makers = [ViewMaker(a, foldings[0], intern), ViewMaker(b, foldings[1], intern, renamed)]
    views = [maker.view(maker.model.graph) for maker in makers]
    functions: list[dict[OpId, View]] = [
        {
            maker.names.get(op_id, op_id): maker.view(function.graph, _scope(function))
            for op_id, function in maker.model.functions.items()
        }
        for maker in makers
    ]
    comparison = Comparison(Describer(a), Describer(b), intern, weights=weights)
    comparison.graphs(views[0], views[1], {})
    for op_id, view in functions[0].items():
        if (other := functions[1].get(op_id)) is not None:
            comparison.graphs(view, other, {})
    found = [
        *comparison.interface,
        *_function_changes(a, b, renamed),
        *group(comparison.nodes, comparison.passing, comparison.pieces),
        *comparison.quantized,
        *comparison.parameter_changes(),
        *comparison.weight_changes(),
        *_opset_changes(a, b, renamed),
        *_metadata_changes(a, b, comparison),
        *_notes(a, b, comparison, renamed),
    ]
    kept = [change for change in found if change.kind not in ignored]
    changes = tuple(change for change in kept if change.kind not in NOTES)
    notes = tuple(change for change in kept if change.kind in NOTES)
    for model in ours:  # what was compared are the types that the files state; the facts want all shapes
        if len(model.graph.nodes) <= MOST_INFERRED:
            infer(model)
    sides = [
        ModelSide(name, model_facts(model, [view, *inner.values()]), model)
        for name, model, view, inner in zip(names, (a, b), views, functions, strict=True)
    ]
    summary = _summary(changes, len(notes), len(found) - len(kept))
    return GraphDiff(summary, changes, sides[0], sides[1], notes, comparison.pairs)


def _summary(changes: tuple[Change, ...], notes: int, ignored: int) -> Summary:
    kinds: Counter[ChangeKind] = Counter()
    for change in changes:
        kinds[change.kind] += change.count
    requantized = [change for change in changes if change.kind is ChangeKind.QUANTIZATION_CHANGED]
    scales = sum(_only_parameters(change) for change in requantized)
    quantization = len(requantized) - scales
    return Summary(
        nodes_added=kinds[ChangeKind.NODE_ADDED],
        nodes_removed=kinds[ChangeKind.NODE_REMOVED],
        nodes_changed=kinds[ChangeKind.NODE_CHANGED] + kinds[ChangeKind.REGION_REPLACED] + quantization,
        weights_changed=kinds[ChangeKind.WEIGHT_CHANGED] + scales,
        inputs_changed=kinds[ChangeKind.INPUT_CHANGED],
        outputs_changed=kinds[ChangeKind.OUTPUT_CHANGED],
        types_changed=kinds[ChangeKind.TYPE_CHANGED],
        functions_changed=sum(
            kinds[kind]
            for kind in (ChangeKind.FUNCTION_ADDED, ChangeKind.FUNCTION_REMOVED, ChangeKind.FUNCTION_CHANGED)
        ),
        regions_replaced=kinds[ChangeKind.REGION_REPLACED],
        quantization_changed=quantization,
        scales_changed=scales,
        opsets_changed=kinds[ChangeKind.OPSET_CHANGED],
        metadata_changed=kinds[ChangeKind.METADATA_CHANGED] + kinds[ChangeKind.OTHER_CHANGED],
        notes=notes,
        ignored=ignored,
    )


def _only_parameters(change: Change) -> bool:
    return bool(change.details) and all(detail.aspect == "content" for detail in change.details)


def _function_changes(a: Model, b: Model, renamed: Mapping[OpId, OpId]) -> Iterator[Change]:
    others = {renamed.get(op_id, op_id): function for op_id, function in b.functions.items()}
    for op_id, function in a.functions.items():
        other = others.get(op_id)
        name = _function_name(function)
        if other is None:
            yield Change(ChangeKind.FUNCTION_REMOVED, f"function {name} removed", _scope(function), name, None)
            continue
        details = _signature_details(function, other, _moved(renamed))
        if details:
            yield Change(
                ChangeKind.FUNCTION_CHANGED, f"function {name}: {', '.join(d.name for d in details)}", _scope(function),
                name, name, details=tuple(details),
            )  # fmt: skip
    for op_id, function in others.items():
        if op_id not in a.functions:
            name = _function_name(function)
            yield Change(ChangeKind.FUNCTION_ADDED, f"function {name} added", _scope(function), None, name)


def _moved(renamed: Mapping[OpId, OpId]) -> set[str]:
    """Domains of renamed functions."""
    return {name[0] for pair in renamed.items() for name in pair}


def _signature_details(old: Function, new: Function, moved: set[str]) -> list[Detail]:
    """``moved``: domains whose import by one of them is that of renamed functions."""
    imports = [
        sorted(f"{domain} {version}" for domain, version in function.opset_imports.items() if domain not in moved)
        for function in (old, new)
    ]
    defaults = [{a.name: repr(attribute_key(a)) for a in function.defaults} for function in (old, new)]
    pairs = (
        ("inputs", str(len(old.graph.inputs)), str(len(new.graph.inputs))),
        ("outputs", str(len(old.graph.outputs)), str(len(new.graph.outputs))),
        ("attributes", ", ".join(sorted(old.attributes)), ", ".join(sorted(new.attributes))),
        ("defaults", str(sorted(defaults[0].items())), str(sorted(defaults[1].items()))),
        ("imports", ", ".join(imports[0]), ", ".join(imports[1])),
    )
    return [Detail("content", name, one, two) for name, one, two in pairs if one != two]


def _function_name(function: Function) -> str:
    overload = f":{function.overload}" if function.overload else ""
    return f"{function.domain}:{function.name}{overload}"


def _scope(function: Function) -> str:
    return f"function {_function_name(function)}"


def _opset_changes(a: Model, b: Model, renamed: Mapping[OpId, OpId]) -> Iterator[Change]:
    moved = _moved(renamed)
    old, new = (
        {domain if domain != "ai.onnx" else "": version for domain, version in model.opset_imports.items()}
        for model in (a, b)
    )
    for domain in sorted(old.keys() | new.keys()):
        one, two = (None if domain not in side else str(side[domain]) for side in (old, new))
        if one != two and not (domain in moved and None in (one, two)):
            name = domain or "ai.onnx"
            title = f"opset {name}: {one or 'not imported'} -> {two or 'not imported'}"
            kind = ChangeKind.IMPORT_CHANGED if _follows(domain, a, b) else ChangeKind.OPSET_CHANGED
            yield Change(kind, title, "", one, two, details=(Detail("version", name, one, two),))


def _follows(domain: str, a: Model, b: Model) -> bool:
    """Whether nodes that only one of the models has are why it alone imports the domain."""
    imports = [domain in model.opset_imports for model in (a, b)]
    return imports[0] != imports[1] and any(node.domain == domain for node in (b if imports[1] else a).walk())


def _metadata_changes(a: Model, b: Model, comparison: Comparison) -> Iterator[Change]:
    details = metadata_details(a.metadata, b.metadata)
    details += metadata_details(a.graph.metadata, b.graph.metadata, "graph ")
    if details:
        keys = ", ".join(detail.name for detail in details)
        yield Change(ChangeKind.METADATA_CHANGED, f"metadata of the model: {keys}", details=tuple(details))
    if comparison.metadata:
        keys = ", ".join(sorted({d.name for _, _, found in comparison.metadata for d in found}))
        yield Change(
            ChangeKind.METADATA_CHANGED,
            f"metadata of {_count(len(comparison.metadata), 'node')}: {keys}",
            old=tuple(old for old, _, _ in comparison.metadata),
            new=tuple(new for _, new, _ in comparison.metadata),
            details=tuple(
                Detail("metadata", f"{new.name}: {detail.name}", detail.before, detail.after)
                for _, new, found in comparison.metadata
                for detail in found
            ),
        )
    if any(_said(one) != _said(two) for one, two in ((a.extra, b.extra), (a.graph.extra, b.graph.extra))):
        yield Change(ChangeKind.OTHER_CHANGED, "parts of the file that qir only carries along")


def _said(extra: bytes | None) -> list[bytes]:
    """The fields of a residue that hold something, in any order; how opsets are written down is none of them."""
    rest = absent_fields(extra or b"")[1]
    return sorted(rest[head:end] for key, head, begin, end in fields(rest, 0, len(rest)) if end > begin and key != 0x42)


def _notes(a: Model, b: Model, comparison: Comparison, renamed: Mapping[OpId, OpId]) -> Iterator[Change]:
    if a.ir_version != b.ir_version:
        one, two = (None if model.ir_version is None else str(model.ir_version) for model in (a, b))
        yield Change(ChangeKind.IR_VERSION_CHANGED, f"IR version {one} -> {two}", "", one, two)
    fields = ("producer_name", "producer_version", "domain", "model_version")
    details = [
        Detail("content", name.replace("_", " "), _text(getattr(a, name)), _text(getattr(b, name)))
        for name in fields
        if getattr(a, name) != getattr(b, name)
    ]
    if a.graph.name != b.graph.name:
        details.append(Detail("name", "graph", a.graph.name, b.graph.name))
    if details:
        said = ", ".join(f"{detail.name} {detail.before or 'none'} -> {detail.after or 'none'}" for detail in details)
        yield Change(ChangeKind.PRODUCER_CHANGED, said, details=tuple(details))
    yield from _respelled(comparison)
    for new_id, old_id in renamed.items():
        old, new = _function_name(a.functions[old_id]), _function_name(b.functions[new_id])
        yield Change(ChangeKind.RESPELLED, f"function {old} renamed to {new}", "", old, new)
    yield from _unused_changes(a, b)
    docs = [
        Detail("doc", what, _text(one), _text(two))
        for what, one, two in (("model", a.doc, b.doc), ("graph", a.graph.doc, b.graph.doc))
        if one != two
    ]
    if docs or comparison.docs:
        parts = [detail.name for detail in docs]
        if comparison.docs:
            parts.append(_count(len(comparison.docs), "node"))
        yield Change(
            ChangeKind.DOC_CHANGED,
            f"doc strings of {', '.join(parts)}",
            old=tuple(old for old, _ in comparison.docs),
            new=tuple(new for _, new in comparison.docs),
            details=tuple(docs),
        )


def _unused_changes(a: Model, b: Model) -> Iterator[Change]:
    """Constants that nothing reads, which one model has and the other has not."""
    sides = [
        Counter(
            (value.name, value.const.nbytes if isinstance(value.const, Tensor) else 0)
            for graph in model.graphs()
            for value in graph.initializers
            if not value.uses and not value.is_output and not value.is_input
        )
        for model in (a, b)
    ]
    for verb, found in (("removed", sides[0] - sides[1]), ("added", sides[1] - sides[0])):
        if found:
            names = ", ".join(name for name, _ in list(found)[:3]) + (", ..." if len(found) > 3 else "")
            size = sum(size * count for (_, size), count in found.items())
            said = f"{_count(found.total(), 'constant')} that nothing reads {verb}: {names} ({size:,} bytes)"
            yield Change(ChangeKind.UNUSED_CHANGED, said, count=found.total())


def _respelled(comparison: Comparison) -> Iterator[Change]:
    for said, pairs in comparison.respelled.items():
        names = ", ".join(f"{new.op} {new.name}" for _, new in pairs[:3])
        more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
        yield Change(
            ChangeKind.RESPELLED,
            f"{said}: {names}{more}",
            old=tuple(old for old, _ in pairs),
            new=tuple(new for _, new in pairs),
            count=len(pairs),
        )


def _text(value: object) -> str | None:
    return None if value in (None, "") else str(value)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _kinds(ignore: Collection[str]) -> frozenset[ChangeKind]:
    """Kinds by their names, or by what they are about: ``nodes``, ``weights``, ``metadata`` ..."""
    known: dict[str, set[ChangeKind]] = {kind.value: {kind} for kind in ChangeKind}
    for kind in ChangeKind:
        about = kind.value.rpartition("-")[0]
        for word in (about, f"{about}s"):
            known.setdefault(word, set()).add(kind)
    for word in ("node", "nodes"):
        known[word].add(ChangeKind.REGION_REPLACED)
    names = [ignore] if isinstance(ignore, str) else list(ignore)
    for name in names:
        if name not in known:
            raise OptionError(
                f"no kind of change is called {name!r}{suggest(name, known)}; there are {', '.join(ChangeKind)}"
            )
    return frozenset(kind for name in names for kind in known[name])


def _load(given: Model | str | os.PathLike[str]) -> tuple[Model, str]:
    if isinstance(given, Model):
        return given, given.graph.name
    from qir.frontend import load

    return load(given), Path(given).name
