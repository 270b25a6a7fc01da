"""The report's charts, as SVG that needs nothing else: errors by layer, values against their grid, use of the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from qir.calibration.histogram import Histogram
from qir.validation.layers import Grid, Layer

__all__ = ["grid_chart", "layer_chart", "range_chart"]

_MOST_DB = 60.0
_BARS = 72


def layer_chart(layers: Sequence[Layer]) -> str:
    """A row a layer, in the order of computation: a bar to the SQNR that it has with all errors before it, a mark at
    the SQNR of its own error. Short bars are the bad ones."""
    label, width, row = 300, 420, 17
    height = len(layers) * row + 24
    scale = width / _MOST_DB
    parts = [_open("layers", label + width + 60, height, "signal to noise by layer, in dB")]
    for tick in range(0, int(_MOST_DB) + 1, 10):
        x = label + tick * scale
        parts.append(f'<line class="grid" x1="{x:.0f}" y1="14" x2="{x:.0f}" y2="{height}"/>')
        parts.append(f'<text class="tick" x="{x:.0f}" y="10" text-anchor="middle">{tick} dB</text>')
    for index, layer in enumerate(layers):
        y = 20 + index * row
        total, own = _clamped(layer.total.sqnr_db), _clamped(layer.own_db)
        text = f"{layer.unit.node.op} {_tail(layer.node, 34)}"
        title = f"{layer.node}: {_db(layer.total.sqnr_db)} with all errors before it, {_db(layer.own_db)} by itself"
        level = "bad" if total < 10 else "low" if total < 20 else "good"
        parts.append(f"<g><title>{escape(title)}</title>")
        parts.append(f'<text x="{label - 8}" y="{y + 10}" text-anchor="end">{escape(text)}</text>')
        width_now = max(total * scale, 1)
        parts.append(f'<rect class="{level}" x="{label}" y="{y}" width="{width_now:.1f}" height="{row - 5}"/>')
        if layer.own is not None:
            x = label + own * scale
            parts.append(f'<line class="own" x1="{x:.1f}" y1="{y - 1}" x2="{x:.1f}" y2="{y + row - 4}"/>')
        parts.append(f'<text class="tick" x="{label + width + 8}" y="{y + 10}">{_db(layer.total.sqnr_db)}</text></g>')
    return "".join([*parts, "</svg>"])


def grid_chart(grid: Grid) -> str:
    """The float values of a tensor as a histogram over what the grid can hold: outside of the shaded part they clip.
    Heights are the square roots of the counts, else one peak would hide the rest."""
    width, height = 360, 96
    low, high = _grid_ends(grid)
    seen = grid.histogram.interval
    if seen.is_empty:
        return ""
    left, right = min(low, seen.lower), max(high, seen.upper)
    margin = (right - left) * 0.02 or 1.0
    left, right = left - margin, right + margin
    scale = width / (right - left)
    counts = _binned(grid.histogram, left, right)
    most = math.sqrt(max(counts.max(), 1))
    parts = [_open("values", width, height + 16, f"values of {grid.value} over its grid")]
    parts.append(
        f'<rect class="range" x="{(low - left) * scale:.1f}" y="0" width="{(high - low) * scale:.1f}" '
        f'height="{height}"/>'
    )
    step = width / _BARS
    for index, count in enumerate(counts):
        if count:
            centre = left + (index + 0.5) * (right - left) / _BARS
            kind = "inside" if low <= centre <= high else "outside"
            tall = max(math.sqrt(count) / most * height, 1)
            parts.append(
                f'<rect class="{kind}" x="{index * step:.1f}" y="{height - tall:.1f}" '
                f'width="{step - 0.5:.1f}" height="{tall:.1f}"/>'
            )
    for x, text, anchor in ((low, f"{low:.3g}", "start"), (high, f"{high:.3g}", "end")):
        parts.append(
            f'<text class="tick" x="{(x - left) * scale:.1f}" y="{height + 12}" text-anchor="{anchor}">{text}</text>'
        )
    return "".join([*parts, "</svg>"])


def range_chart(grids: Sequence[Grid]) -> str:
    """A row a quantized value: the full row is what its grid can hold, the bar what was seen. A short bar wastes
    levels, one over the edge clips."""
    label, width, row, over = 300, 360, 17, 40
    height = len(grids) * row + 8
    parts = [_open("ranges", label + width + 2 * over + 110, height, "what was seen of what each grid can hold")]
    for index, grid in enumerate(grids):
        low, high = _grid_ends(grid)
        seen = grid.histogram.interval
        y = 4 + index * row
        text = f"{_tail(grid.value, 38)} {grid.quantizer.quant.dtype}"
        parts.append(f'<text x="{label - 8}" y="{y + 10}" text-anchor="end">{escape(text)}</text>')
        parts.append(f'<rect class="range" x="{label + over}" y="{y}" width="{width}" height="{row - 5}"/>')
        if not seen.is_empty:
            share = [min(max((x - low) / (high - low), -0.1), 1.1) for x in (seen.lower, seen.upper)]
            x0, x1 = (label + over + part * width for part in share)
            kind = "outside" if share[0] < -0.005 or share[1] > 1.005 else "inside"
            parts.append(
                f'<rect class="{kind}" x="{x0:.1f}" y="{y + 2}" width="{max(x1 - x0, 1):.1f}" height="{row - 9}">'
                f"<title>{escape(grid.value)}: seen {seen.lower:.4g} to {seen.upper:.4g}, grid {low:.4g} to {high:.4g}"
                "</title></rect>"
            )
        note = f"{grid.used_levels} of {grid.levels} levels"
        parts.append(f'<text class="tick" x="{label + width + 2 * over}" y="{y + 10}">{note}</text>')
    return "".join([*parts, "</svg>"])


def _grid_ends(grid: Grid) -> tuple[float, float]:
    quant = grid.quantizer.quant
    scale, zero = quant.scale[0], quant.zero_point[0]
    return (quant.dtype.qmin - zero) * scale, (quant.dtype.qmax - zero) * scale


def _binned(histogram: Histogram, left: float, right: float) -> np.ndarray:
    """The counts in bins of equal width over [left, right], int64, shape (bars,)."""
    width = math.ldexp(1.0, histogram.k)
    centres = (histogram.first + np.arange(histogram.counts.size) + 0.5) * width
    index = np.clip(((centres - left) / (right - left) * _BARS).astype(np.int64), 0, _BARS - 1)
    return np.bincount(index, histogram.counts, minlength=_BARS)


def _open(kind: str, width: float, height: float, label: str) -> str:
    return (
        f'<svg class="chart {kind}" role="img" aria-label="{escape(label)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" xmlns="http://www.w3.org/2000/svg">'
    )


def _clamped(db: float) -> float:
    return 0.0 if math.isnan(db) else min(max(db, 0.0), _MOST_DB)


def _db(db: float) -> str:
    return "exact" if db == math.inf else "no number" if math.isnan(db) else f"{db:.1f} dB"


def _tail(text: str, most: int) -> str:
    return text if len(text) <= most else "…" + text[1 - most :]
