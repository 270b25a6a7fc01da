"""The quantization report as an HTML page or Markdown: what came out, where the error is, why, how to repeat it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import PurePath

from qir.diff.changes import GraphDiff
from qir.diff.render.wording import headline, sections
from qir.pipeline import Remark, RemarkKind
from qir.report.charts import grid_chart, layer_chart, range_chart
from qir.report.quantization import NOISE, RANDOM_WARNING, QuantizationReport, size_in_words, speed_in_words
from qir.targets.audit import Island
from qir.validation.layers import Grid, Layer, LayerErrors
from qir.validation.metrics import Comparison

__all__ = ["Evidence", "to_html", "to_markdown"]

_FOLDERS = re.compile(r"(?<= of )\S*[/\\]")
"""Of the path at the end of ``100 golden samples of /data/check.npz``."""
_MOST_HISTOGRAMS = 60
_MOST_CHANGES = 400
_WORST = 12
_STATE = {True: "passed", False: "failed"}


@dataclass(slots=True)
class Evidence:
    """What a report shows beside the numbers of the run. ``layers`` and ``diff`` are None where nothing could be
    compared; ``missing`` says why."""

    layers: LayerErrors | None = None
    diff: GraphDiff | None = None
    islands: tuple[Island, ...] = ()
    missing: str = ""

    @property
    def unmeasured(self) -> str:
        """Why no layer has an error of its own, for readers; empty where some have."""
        if self.layers is None or self.layers.noisy():
            return self.missing
        if bodies := self.layers.alignment.bodies:
            return (
                f"The quantized layers stand in bodies of If, Loop or Scan ({bodies} nodes): they run as part of the "
                "node that holds them, so their error is told at the outputs alone."
            )
        return self.missing or "No layer that could be compared is quantized."


@dataclass(frozen=True, slots=True)
class Card:
    """One number at the head of the page. ``state``: ``good``, ``bad``, or nothing."""

    title: str
    value: str
    note: str
    state: str = ""


@dataclass(slots=True)
class _Page:
    cards: list[Card]
    verdict: str
    layers: list[Layer] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)


def to_html(report: QuantizationReport, evidence: Evidence) -> str:
    """One page that needs nothing but itself, on a screen and in print."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("qir.report", "template"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = _page(report, evidence)
    worst = sorted(page.layers, key=lambda layer: layer.own_db)[:_WORST]
    diff = evidence.diff
    return environment.get_template("report.html.j2").render(
        report=report,
        page=page,
        missing=evidence.unmeasured,
        source=PurePath(report.source).name,
        output=PurePath(report.output).name if report.output else "",
        random_warning=RANDOM_WARNING if report.synthetic else "",
        layer_chart=layer_chart(page.layers) if page.layers else "",
        range_chart=range_chart(page.grids) if page.grids else "",
        worst=[(layer, [(grid, grid_chart(grid)) for grid in layer.grids]) for layer in worst],
        histograms=[(grid, grid_chart(grid)) for grid in page.grids[:_MOST_HISTOGRAMS]],
        left_out=max(len(page.grids) - _MOST_HISTOGRAMS, 0),
        samples=evidence.layers.samples if evidence.layers else 0,
        islands=evidence.islands,
        reasons=[(remark, _kind(remark)) for remark in report.remarks if remark.kind is RemarkKind.MISSED],
        others=[(remark, _kind(remark)) for remark in report.remarks if remark.kind is not RemarkKind.MISSED],
        verdict_state="" if report.min_sqnr is None and report.max_drop is None else _STATE[report.passed],
        diff_headline="" if diff is None else headline(diff),
        diff_sections=[]
        if diff is None
        else [(s.title, len(s.changes), s.changes[:_MOST_CHANGES]) for s in sections(diff)],
        base_style=(files("qir.diff.render") / "page" / "page.css").read_text(encoding="utf-8"),
        style=(files("qir.report") / "template" / "report.css").read_text(encoding="utf-8"),
        script=(files("qir.report") / "template" / "report.js").read_text(encoding="utf-8"),
    )


def to_markdown(report: QuantizationReport, evidence: Evidence) -> str:
    """The same in Markdown, charts as tables."""
    page = _page(report, evidence)
    lines = [f"# `{report.source}` → `{report.output or 'nothing written'}`", "", f"**{page.verdict}**", ""]
    if report.synthetic:
        lines += [f"**{RANDOM_WARNING}**", ""]
    lines += ["| | | |", "|---|---|---|"]
    lines += [f"| {card.title} | **{_cell(card.value)}** | {_cell(card.note)} |" for card in page.cards]
    if page.layers:
        lines += [
            "",
            "## Where the error is",
            "",
            "| layer | own | with all before | clipped | levels |",
            "|---|---|---|---|---|",
        ]
        for layer in sorted(page.layers, key=lambda layer: layer.own_db)[: 2 * _WORST]:
            grid = next(iter(layer.grids), None)
            clipped = "" if grid is None else f"{grid.clipped_share:.2%}"
            levels = "" if grid is None else f"{grid.used_levels} of {grid.levels}"
            own, total = _db(layer.own_db), _db(layer.total.sqnr_db)
            lines.append(f"| {layer.unit.node.op} `{_cell(layer.node)}` | {own} | {total} | {clipped} | {levels} |")
    if evidence.unmeasured:
        lines += ["", f"_{evidence.unmeasured}_"]
    lines += ["", "## What runs how", ""]
    lines += [f"- integers: {count} {op}" for op, count in report.executed_integer.items()]
    lines += [f"- float: {count} {op}" for op, count in report.executed_float.items()]
    lines += [
        f"- island: {island.op} `{_cell(island.node.label)}`: {_cell(island.reason)}" for island in evidence.islands
    ]
    kept = report.kept_float
    if kept:
        lines += ["", "## What stayed float, and why", ""]
        lines += [f"- `{_cell(remark.subject)}`: {_cell(remark.message)}" for remark in kept]
    if evidence.diff is not None:
        lines += ["", "## What changed", "", headline(evidence.diff), ""]
        lines += [f"- {_cell(change.title)}" for change in evidence.diff.changes[:_MOST_CHANGES]]
    lines += ["", "## How to repeat it", "", "```", report.compilation.pipeline, "```", ""]
    lines += [", ".join(f"{name} {version}" for name, version in report.versions.items())]
    return "\n".join(lines) + "\n"


def _page(report: QuantizationReport, evidence: Evidence) -> _Page:
    page = _Page(_cards(report), _verdict(report))
    if evidence.layers is not None:
        page.layers = evidence.layers.noisy()
        grids = {grid.value: grid for layer in page.layers for grid in layer.grids if grid.elements}
        page.grids = sorted(grids.values(), key=lambda grid: -grid.clipped_share)
    return page


def _cards(report: QuantizationReport) -> list[Card]:
    ratio = report.size_before / max(report.size_after, 1)
    cards = [
        Card(
            "size",
            size_in_words(report.size_before, report.size_after),
            f"{report.size_before / 1e6:.2f} to {report.size_after / 1e6:.2f} MB",
            "good" if ratio > 1.05 else "bad",
        )
    ]
    accuracy = report.accuracy
    if accuracy is None:
        cards.append(Card("accuracy", "not measured", "no data were given", "bad"))
    else:
        worst = report.sqnr_min_db
        samples = _FOLDERS.sub("", report.measured_on)
        cards.append(Card("SQNR", _db(accuracy.sqnr_db), f"worst output {_db(worst)}; {samples}"))
        if accuracy.agreement is not None:
            cards.append(Card("same decisions", f"{accuracy.agreement:.2%}", "as the float model"))
        cards += _task(report, accuracy)
    if report.latency is not None:
        one = report.latency
        cards.append(
            Card(
                "latency",
                speed_in_words(one.ratio),
                f"{one.a_ms:.3f} to {one.b_ms:.3f} ms, 95 % interval {one.low:.2f} to {one.high:.2f}",
                "good" if one.ratio >= 1 else "bad" if one.ratio < 1 - NOISE else "",
            )
        )
    return cards


def _task(report: QuantizationReport, accuracy: Comparison) -> list[Card]:
    """The task metric by labels; nothing without labels, where the share of same decisions says it all."""
    state = ""
    if report.max_drop is not None and report.drop is not None:
        state = "good" if report.drop <= report.max_drop else "bad"
    if accuracy.metric is not None and accuracy.metric_values is not None:
        before, after = accuracy.metric_values
        return [Card(accuracy.metric.name, f"{after:.4g}", f"float {before:.4g}", state)]
    if accuracy.task_output is None:
        return []
    before, after = accuracy.reference_task.accuracy, accuracy.task.accuracy
    return [Card("accuracy", f"{after:.2%}", f"float {before:.2%}, {accuracy.task.count} labels", state)]


def _verdict(report: QuantizationReport) -> str:
    limits = []
    if report.min_sqnr is not None:
        limits.append(f"at least {report.min_sqnr:g} dB at every output")
    if report.max_drop is not None:
        limits.append(f"a drop of at most {report.max_drop:g} points")
    if not limits:
        return "No thresholds were given (--min-sqnr, --max-drop)."
    return f"{'Passed' if report.passed else 'FAILED'}: {' and '.join(limits)}."


def _kind(remark: Remark) -> str:
    return {RemarkKind.APPLIED: "done", RemarkKind.MISSED: "not done"}.get(remark.kind, "note")


def _db(db: float | None) -> str:
    if db is None or math.isnan(db):
        return "no number"
    return "exact" if db == math.inf else f"{db:.1f} dB"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("`", "'")
