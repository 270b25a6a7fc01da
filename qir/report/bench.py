"""Two models timed side by side: the ratio with its interval, and which nodes became faster or slower."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qir.ir import Model, Node
from qir.report.columns import middle, name_width
from qir.runtime.latency import LatencyComparison
from qir.runtime.profile import OpTime

__all__ = ["BenchReport", "NodeTime", "node_times"]

_SHOWN = 20
_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_quant|/\w+Fusion/?)+$")
_MERGED = (
    *("Relu", "Clip", "QuantizeLinear", "DequantizeLinear", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid"),
    *("BatchNormalization", "Mul", "Add"),
)
_HEAVY = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class NodeTime:
    """What one source node takes of a run of its model, in microseconds, and the runtime's operators for it."""

    us: float
    ops: tuple[str, ...]


@dataclass(slots=True)
class BenchReport:
    """What ``qir.bench`` returns. ``latency.ratio`` over 1: the second model is faster. ``a_nodes`` and ``b_nodes``:
    by source node; what the runtime put in by itself stands under its operator in round brackets. Profiles cost some
    microseconds a node, so their sums are larger than the latency."""

    a: str
    b: str
    data: str
    threads: int
    samples: int
    latency: LatencyComparison
    a_nodes: dict[str, NodeTime]
    b_nodes: dict[str, NodeTime]

    def rows(self) -> list[tuple[str, NodeTime, NodeTime]]:
        """Every node with its times in both, the largest difference first."""
        nothing = NodeTime(0.0, ())
        names = dict.fromkeys([*self.a_nodes, *self.b_nodes])
        rows = [(name, self.a_nodes.get(name, nothing), self.b_nodes.get(name, nothing)) for name in names]
        return sorted(rows, key=lambda row: (-abs(row[1].us - row[2].us), row[0]))

    def to_json(self) -> dict[str, Any]:
        """For ``--json``; keys are added, never changed."""
        return {
            "a": self.a,
            "b": self.b,
            "data": self.data,
            "threads": self.threads,
            "samples": self.samples,
            "a_ms": self.latency.a_ms,
            "b_ms": self.latency.b_ms,
            "ratio": self.latency.ratio,
            "low": self.latency.low,
            "high": self.latency.high,
            "rounds": self.latency.rounds,
            "nodes": [
                {"node": name, "a_us": a.us, "b_us": b.us, "a_ops": list(a.ops), "b_ops": list(b.ops)}
                for name, a, b in self.rows()
            ],
        }

    def __str__(self) -> str:
        one = self.latency
        if one.low > 1:
            verdict = "B is faster"
        elif one.high < 1:
            verdict = "B is SLOWER"
        else:
            verdict = "no difference that shows"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        rows = self.rows()
        width = name_width((name for name, _, _ in rows[:_SHOWN]), 24)
        lines = [
            f"A {self.a}",
            f"B {self.b}",
            f"  {self.samples} samples of {self.data}, {threads}, {one.rounds} rounds, interleaved",
            f"  {one.a_ms:.3f} ms -> {one.b_ms:.3f} ms: {one.ratio:.2f}x, "
            f"95 % interval {one.low:.2f} to {one.high:.2f}; {verdict}",
            f"  {'node':{width}} {'A us':>8} {'B us':>8} {'change':>8}  operators of B (A)",
        ]
        for name, a, b in rows[:_SHOWN]:
            ops = ", ".join(b.ops) or "none"
            if a.ops != b.ops:
                ops += f" ({', '.join(a.ops) or 'none'})"
            times = f"{a.us:8.1f} {b.us:8.1f} {b.us - a.us:+8.1f}"
            lines.append(f"  {middle(name, width):{width}} {times}  {ops[:60]}".rstrip())
        if len(rows) > _SHOWN:
            lines.append(f"  ... and {len(rows) - _SHOWN} more nodes (--json lists all)")
        return "\n".join(lines)


def node_times(rows: Sequence[OpTime], model: Model, runs: int) -> dict[str, NodeTime]:
    """Medians of profile rows, summed by source node, in microseconds a run of the model."""
    by_name: dict[str, Node] = {}
    by_output: dict[str, Node] = {}
    for node in model.walk():
        by_name.setdefault(node.name, node)
        by_output.update((value.name, node) for value in node.outputs if value.name)
    total: dict[str, float] = {}
    ops: dict[str, dict[str, None]] = {}
    for row in rows:
        bare = _SUFFIX.sub("", row.node).removeprefix("fused ").rstrip("/")
        found = by_name.get(row.node) or by_name.get(bare) or by_output.get(bare)
        name = f"({row.op})" if found is None or not bare else _source(_meant(found, row.op))
        total[name] = total.get(name, 0.0) + row.calls * row.median_us / runs
        ops.setdefault(name, {})[row.op] = None
    return {name: NodeTime(us, tuple(sorted(ops[name]))) for name, us in total.items()}


def _meant(node: Node, op: str) -> Node:
    """A fused operator carries the name of the last node that went into it: the heavy one before that is meant."""
    stem = next((heavy for heavy in _HEAVY if heavy in op), None)
    reached = [node]
    for _ in range(5):
        found = next((one for one in reached if stem is not None and stem in one.op), None)
        if found is not None:
            return found
        operands = [value for one in reached if one.op in _MERGED for value in one.inputs if value is not None]
        reached = [value.producer for value in operands if value.producer is not None]
    return node


def _source(node: Node) -> str:
    sources = node.sources
    return node.name if not sources or node.name in sources else sources[0]
