"""What all renderers say in the same words: the headline, the facts of both models, sections, weight statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from qir.diff.changes import Change, ChangeKind, GraphDiff, ModelFacts, Summary
from qir.diff.sentences import say
from qir.diff.weights import Histogram, WeightStats

__all__ = [
    "SIGNS",
    "FactRow",
    "Section",
    "count_of",
    "counts",
    "detail_lines",
    "fact_rows",
    "headline",
    "sections",
    "sketch",
    "weight_lines",
]

SIGNS: dict[ChangeKind, str] = {
    ChangeKind.NODE_ADDED: "+",
    ChangeKind.FUNCTION_ADDED: "+",
    ChangeKind.NODE_REMOVED: "-",
    ChangeKind.FUNCTION_REMOVED: "-",
}
"""How an entry is marked; all others get ``~``."""

_INTERFACE = (ChangeKind.INPUT_CHANGED, ChangeKind.OUTPUT_CHANGED)
_FUNCTIONS = (ChangeKind.FUNCTION_ADDED, ChangeKind.FUNCTION_REMOVED, ChangeKind.FUNCTION_CHANGED)
_NODES = (ChangeKind.NODE_ADDED, ChangeKind.NODE_REMOVED, ChangeKind.NODE_CHANGED, ChangeKind.REGION_REPLACED)
_SECTIONS: tuple[tuple[str, tuple[ChangeKind, ...]], ...] = (
    ("Inputs and outputs", _INTERFACE),
    ("Functions", _FUNCTIONS),
    ("Nodes", (*_NODES, ChangeKind.TYPE_CHANGED)),
    ("Quantization", (ChangeKind.QUANTIZATION_CHANGED,)),
)
_REST = "Model"
_FEW_WEIGHTS = 4
_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class FactRow:
    """One property of both models, as text."""

    name: str
    before: str
    after: str

    @property
    def same(self) -> bool:
        return self.before == self.after


@dataclass(frozen=True, slots=True)
class Section:
    """Entries that belong together."""

    title: str
    changes: tuple[Change, ...]
    note: str = ""
    """What can be said of all of them."""


def headline(diff: GraphDiff) -> str:
    """One sentence: what is different, counted."""
    if diff.identical:
        suffix = f" ({count_of(diff.summary.ignored, 'ignored difference')})" if diff.summary.ignored else ""
        return f"The models are identical{suffix}."
    return ", ".join(counts(diff.summary)) + "."


def counts(summary: Summary) -> list[str]:
    """The counts that are not zero, in words."""
    parts = [
        _verb(summary.inputs_changed, "input", "changed"),
        _verb(summary.outputs_changed, "output", "changed"),
        _verb(summary.nodes_added, "node", "added"),
        _verb(summary.nodes_removed, "node", "removed"),
        _verb(summary.nodes_changed, "node", "changed") + _of_these(summary),
        _verb(summary.weights_changed, "weight", "changed") + _scales(summary),
        _verb(summary.types_changed, "type", "changed"),
        _verb(summary.functions_changed, "function", "changed"),
        _verb(summary.opsets_changed, "opset", "changed"),
        _verb(summary.metadata_changed, "metadata entry", "changed"),
    ]
    return [part for part in parts if part]


def _of_these(summary: Summary) -> str:
    """Which of the changed nodes were rewritten and which compute in another precision."""
    regions, quantized = summary.regions_replaced, summary.quantization_changed
    parts = [count_of(regions, "region") + " replaced"] * bool(regions)
    parts += [f"{quantized:,} in another precision"] * bool(quantized)
    return f" ({', '.join(parts)})" if parts else ""


def _scales(summary: Summary) -> str:
    """How many of the changed weights are scales and zero points."""
    scales = summary.scales_changed
    if not scales:
        return ""
    if scales == summary.weights_changed > 1:
        return " (all quantization parameters)"
    return f" ({count_of(scales, 'quantization parameter')})"


def count_of(number: int, noun: str) -> str:
    """``1 node``, ``2 nodes``, ``2 entries``."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun[:-1]}ies" if noun.endswith("y") else f"{number:,} {noun}s"


def sections(diff: GraphDiff) -> list[Section]:
    """The entries by what they concern, in the order of the list, weights last and the least alike first; empty
    sections are left out."""
    found = [Section(title, tuple(diff.of_kind(*kinds))) for title, kinds in _SECTIONS]
    named = {ChangeKind.WEIGHT_CHANGED, *(kind for _, kinds in _SECTIONS for kind in kinds)}
    found.append(Section(_REST, tuple(change for change in diff.changes if change.kind not in named)))
    weights = diff.of_kind(ChangeKind.WEIGHT_CHANGED)
    found.append(Section("Weights", tuple(sorted(weights, key=_likeness)), weights_note(weights)))
    return [section for section in found if section.changes]


def _likeness(change: Change) -> float:
    """Other shapes first, then by signal to noise."""
    stats = None if change.weight is None else change.weight.stats
    if stats is None:
        return -math.inf
    return math.inf if stats.sqnr_db is None else stats.sqnr_db


def weights_note(changes: Sequence[Change]) -> str:
    """``42 weights: f32 -> f16, SQNR 69.1 to 75.3 dB (median 73.6), least alike first``; nothing for a few."""
    records = [change.weight for change in changes if change.weight is not None]
    if len(records) < _FEW_WEIGHTS:
        return ""
    said = []
    types = {(r.type_before.partition("[")[0], r.type_after.partition("[")[0]) for r in records}
    shapes = sum(r.type_before.partition("[")[2] != r.type_after.partition("[")[2] for r in records)
    if len(types) == 1 and len(set(*types)) == 2:
        said.append(" -> ".join(*types))
    if shapes:
        said.append(f"{'all' if shapes == len(records) else f'{shapes:,}'} of another shape")
    noise = sorted(r.stats.sqnr_db for r in records if r.stats is not None and r.stats.sqnr_db is not None)
    if noise:
        least, median, most = (f"{noise[place]:.1f}" for place in (0, len(noise) // 2, -1))
        said.append(f"SQNR {least} dB" if least == most else f"SQNR {least} to {most} dB (median {median})")
        said.append("least alike first")
    return f"{count_of(len(records), 'weight')}: {', '.join(said)}" if said else ""


def fact_rows(diff: GraphDiff) -> list[FactRow]:
    """The properties of both models, summary first."""
    before, after = diff.before.facts, diff.after.facts
    rows = [
        FactRow("nodes", f"{before.nodes:,}", f"{after.nodes:,}"),
        FactRow("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
        FactRow("weights", _bytes(before.bytes), _bytes(after.bytes)),
        FactRow("of which", _dtypes(before), _dtypes(after)),
        FactRow("MACs", _macs(before), _macs(after)),
        FactRow("precision", _mix(before), _mix(after)),
        FactRow("opset", _opsets(before), _opsets(after)),
    ]
    ops = _changed_ops(before, after)
    if ops:
        rows.append(FactRow("operators", *ops))
    return rows


def detail_lines(change: Change, most_places: int | None = None) -> Iterator[str]:
    """Aspect by aspect, for the lines under an entry's title, which repeat nothing that the title says; of an entry
    that stands for several at most ``most_places`` of their places."""
    if change.where:
        yield f"in {change.where}"
    places = [detail for detail in change.details if detail.aspect == "place"]
    if len(places) > 3 or change.kind is not ChangeKind.REGION_REPLACED:  # else the title names them
        for detail in places[:most_places]:
            text = detail.before or detail.after or ""
            yield detail.name if change.kind is ChangeKind.REGION_REPLACED else text
        if most_places is not None and len(places) > most_places:
            yield f"and {len(places) - most_places} more"
    for detail in change.details:
        short = f"{detail.name} {_or_none(detail.before)} -> {_or_none(detail.after)}"
        if detail.aspect in ("place", "version") or say(detail) in change.title or short in change.title:
            continue
        name = f" {detail.name}" if detail.name and detail.name != detail.aspect else ""
        yield f"{detail.aspect}{name}: {_or_none(detail.before)} -> {_or_none(detail.after)}"


def weight_lines(stats: WeightStats) -> Iterator[str]:
    """Statistics of a changed weight in a line or two, then its histograms."""
    if stats.elements == 0:
        return
    if stats.same_multiset:
        yield "the same numbers in another order"
    parts = [f"{stats.changed:,} of {stats.elements:,} elements", f"max error {stats.max_error:.3g}"]
    parts.append(f"mean {stats.mean_error:.3g}")
    if stats.sqnr_db is not None:
        parts.append(f"SQNR {stats.sqnr_db:.1f} dB")
    yield ", ".join(parts)
    more = []
    if stats.sparsity_before != stats.sparsity_after:
        more.append(f"zeros {stats.sparsity_before:.1%} -> {stats.sparsity_after:.1%}")
    if stats.sign_flips:
        more.append(count_of(stats.sign_flips, "sign flip"))
    if more:
        yield ", ".join(more)
    if stats.histogram is not None:
        yield sketch(stats.histogram)


def sketch(histogram: Histogram) -> str:
    """Both histograms as bars of text between their limits."""
    low, high = f"{histogram.low:.3g}", f"{histogram.high:.3g}"
    return f"{low} |{_bars(histogram.before)}| -> |{_bars(histogram.after)}| {high}"


def _bars(numbers: Iterable[int]) -> str:
    # Neighbouring bins are joined in pairs: 16 characters a side fit into 80 columns.
    bins = list(numbers)
    pairs = [sum(bins[i : i + 2]) for i in range(0, len(bins), 2)] if len(bins) > 16 else bins
    most = max(pairs, default=0)
    if not most:
        return ""
    return "".join(_BARS[-(-number * (len(_BARS) - 1) // most)] for number in pairs)


def _verb(number: int, noun: str, verb: str) -> str:
    return f"{count_of(number, noun)} {verb}" if number else ""


def _or_none(text: str | None) -> str:
    return "none" if text is None else text


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def _macs(facts: ModelFacts) -> str:
    if facts.macs is None:
        return "unknown"
    size, unit = float(facts.macs), ""
    for larger in ("k", "M", "G", "T"):
        if size < 1000:
            break
        size, unit = size / 1000, f" {larger}"
    unknown = f" + {count_of(facts.macs_unknown, 'node')} of unknown shape" if facts.macs_unknown else ""
    batch = f" ({', '.join(f'{name} = {size}' for name, size in facts.macs_batch.items())})" if facts.macs_batch else ""
    return (f"{facts.macs}" if not unit else f"{size:.1f}{unit}") + batch + unknown


def _dtypes(facts: ModelFacts) -> str:
    return ", ".join(f"{name} {_bytes(size)}" for name, size in facts.bytes_by_dtype.items()) or "none"


def _mix(facts: ModelFacts) -> str:
    return ", ".join(f"{count} in {name}" for name, count in facts.precision.items()) or "none"


def _opsets(facts: ModelFacts) -> str:
    return ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in facts.opsets.items())


def _changed_ops(before: ModelFacts, after: ModelFacts) -> tuple[str, str] | None:
    """Operators whose number differs: how many on either side."""
    names = [op for op in {**before.ops, **after.ops} if before.ops.get(op, 0) != after.ops.get(op, 0)]
    if not names:
        return None
    old, new = (", ".join(f"{facts.ops.get(op, 0)} {op}" for op in names) for facts in (before, after))
    return old, new
