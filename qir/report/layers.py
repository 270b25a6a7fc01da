"""The result of comparing a quantized model with its float model layer by layer, as text and JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from qir.quant.recipe import Recipe
from qir.report.check import task_lines
from qir.report.columns import middle, name_width
from qir.validation.advice import Advice
from qir.validation.layers import EXACT, Layer, LayerErrors
from qir.validation.metrics import Comparison, finite_db

__all__ = ["COLUMNS", "ComparisonReport"]

COLUMNS = ("node", "op", "own dB", "all dB", "cosine", "LSB", "clip %", "levels")
_WIDTHS = (24, 9, 6, 6, 7, 6, 6, 7)
_SHOWN = 12


@dataclass(slots=True)
class ComparisonReport:
    """What ``qir.compare`` returns; ``str`` gives the text that the command line prints in a pipe.

    ``outputs`` and ``outputs_plain``: the outputs against the float model's, the runtime's optimisations on and off.
    ``errors``: every layer. ``advice``: what to do. ``recipe``: the recipe to start from, and its lines.
    """

    reference: str
    quantized: str
    data: str
    outputs: Comparison
    outputs_plain: Comparison
    errors: LayerErrors
    advice: Advice
    recipe: Recipe
    show_layers: bool = False

    @property
    def predicted_db(self) -> float | None:
        """SQNR in dB at the worst output with the advice taken: what was measured, plus what the injection gained."""
        if not self.advice.suggestions:
            return None
        return self.outputs.sqnr_min_db + self.advice.predicted_db - self.advice.injected_db

    def to_json(self) -> dict[str, Any]:
        """For ``--json``; keys are added, never changed."""
        predicted = self.predicted_db
        return {
            "reference": self.reference,
            "quantized": self.quantized,
            "data": self.data,
            "samples": self.errors.samples,
            "sqnr_db": finite_db(self.outputs.sqnr_db),
            "sqnr_min_db": finite_db(self.outputs.sqnr_min_db),
            "predicted_min_db": None if predicted is None else finite_db(predicted),
            "injected_min_db": finite_db(self.advice.injected_db),
            "accuracy": self.outputs.as_dict(),
            "accuracy_optimizations_off": self.outputs_plain.as_dict(),
            "layers": [
                {**layer.as_dict(), "path": self.errors.paths.get(layer.node), "harm_db": _harm(self.advice, layer)}
                for layer in ([*self.errors.layers, *self.errors.elsewhere] if self.show_layers else self.ranked())
            ],
            "not_aligned": [node.label for node in self.errors.alignment.lost],
            "advice": [suggestion.as_dict() for suggestion in self.advice.suggestions],
            "recipe": self.recipe.to_toml(),
        }

    def ranked(self) -> list[Layer]:
        """Quantized nodes, those that harm the outputs most first."""
        harm = self.advice.harm
        return sorted(self.errors.ranked(), key=lambda layer: (harm.get(layer.node, math.inf), layer.own_db))

    def table(self) -> list[tuple[str, ...]]:
        """The rows under COLUMNS: all layers in order where that was asked for, else the most harmful ones."""
        every = [*self.errors.layers, *self.errors.elsewhere]
        layers = every if self.show_layers else self.ranked()[:_SHOWN]
        return [_row(layer, self.errors.place(layer)) for layer in layers]

    @property
    def title(self) -> str:
        total = len(self.errors.ranked())
        if self.show_layers:
            return "all layers, in order"
        shown = f", {_SHOWN} of {total}" if total > _SHOWN else ""
        return f"quantized layers, the most harmful first{shown}"

    def __str__(self) -> str:
        rows = [COLUMNS, *self.table()]
        widths = (name_width((row[0] for row in rows), _WIDTHS[0]), *_WIDTHS[1:])
        table = ["  " + " ".join(map(_fitted, row, widths, range(len(row)))).rstrip() for row in rows]
        return "\n".join([*self.head(), f"  {self.title}", *table, *self.tail()])

    def head(self) -> list[str]:
        return [
            f"{self.quantized} against {self.reference}",
            f"  {self.errors.samples} samples of {self.data}",
            *self._outputs(),
            *task_lines(self.outputs),
        ]

    def _outputs(self) -> list[str]:
        lines = []
        for name, one in self.outputs.outputs.items():
            same = "" if one.agreement is None else f", {one.agreement:.2%} same decisions"
            if one.is_float:
                off = self.outputs_plain.outputs[name].sqnr_db
                lines.append(f"    {name}: {one.sqnr_db:.2f} dB ({off:.2f} with optimisations off){same}")
            elif same:
                lines.append(f"    {name}{same.replace(',', ':', 1)}")
        return lines

    def tail(self) -> list[str]:
        """What the columns mean, what could not be compared, and the advice."""
        lines = [
            "  own: this node alone, fed with float values; all: with what came before it;",
            "  LSB: largest error in steps of its grid; clip: beyond the grid; levels: used",
        ]
        if any(layer.scaled for layer in self.errors.layers):
            lines.append("  * equalised by a factor a channel, which is divided out before comparing")
        if self.errors.alignment.lost:
            named = ", ".join(node.label for node in self.errors.alignment.lost[:3])
            lines.append(f"  not compared, no value of the float model belongs to them: {named}")
        if self.errors.alignment.bodies:
            lines.append(f"  {self.errors.alignment.bodies} nodes in bodies count as part of the node that holds them")
        return [*lines, *self._advice()]

    def _advice(self) -> list[str]:
        if not self.advice.suggestions:
            return ["  no line that would gain much: no correction, other range, or node in float"]
        now, then = self.outputs.sqnr_min_db, self.predicted_db
        assert then is not None
        lines = [f"  advice: {now:.1f} dB -> {_promise(then)} at the worst output, by these recipe lines"]
        for one in self.advice.suggestions:
            lines.append(f"    # {one.op}: {_gain(one.gain_db)} predicted, {one.price}")
            lines += [f"    {line}" for line in one.recipe.to_toml().splitlines() if not line.startswith("#")]
        return lines


_FLAWLESS = 100.0
"""dB from which on there is no error worth a number."""


def _promise(db: float) -> str:
    return "next to no error" if db > _FLAWLESS else f"about {db:.1f} dB"


def _gain(db: float) -> str:
    return "the rest" if db > _FLAWLESS else f"{db:+.1f} dB"


def _harm(advice: Advice, layer: Layer) -> float | None:
    return finite_db(advice.harm[layer.node]) if layer.node in advice.harm else None


def _row(layer: Layer, name: str) -> tuple[str, ...]:
    grid = next((grid for grid in layer.grids if grid.quantizer.is_result), layer.grids[0] if layer.grids else None)
    return (
        name + ("*" if layer.scaled else ""),
        layer.unit.node.op,
        "" if layer.own is None else _db(layer.own_db),
        _db(layer.total.sqnr_db),
        f"{layer.total.cosine:.5f}",
        "" if layer.max_lsb is None else _short(layer.max_lsb),
        "" if grid is None else f"{100 * grid.clipped_share:.2f}",
        "" if grid is None else f"{grid.used_levels}/{grid.levels}" if grid.levels <= 256 else f"{grid.used_levels}",
    )


def _db(value: float) -> str:
    return "exact" if value > EXACT else f"{max(value, -999):.1f}"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0e}"


def _fitted(cell: str, width: int, column: int) -> str:
    """Text columns to the left, numbers to the right; long names lose their middle."""
    cell = middle(cell, width)
    return cell.ljust(width) if column < 2 else cell.rjust(width)
