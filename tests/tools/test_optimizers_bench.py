"""The pure parts of tools/bench/optimizers.py: how nodes are counted, who is best, how a row reads."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from tools.bench import optimizers
from tools.bench.optimizers import Result

MODEL = """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1, "my": 1]>
g (float[2] x, bool c) => (float[2] y) {
    k = Constant <value = float {1}> ()
    a = Add(x, k)
    b = com.microsoft.QuickGelu(a)
    y = If(c) < then_branch = t () => (p) { p = my.F(b) }, else_branch = e () => (q) { q = Exp(b) } >
}
<domain: "my", opset_import: ["": 17]> F (a) => (b) { b = Log(a) }"""


def test_bodies_and_functions_count_and_constants_do_not() -> None:
    counts = optimizers.op_counts(onnx.parser.parse_model(MODEL))
    assert counts == {"Add": 1, "If": 1, "Exp": 1, "Log": 1, "com.microsoft::QuickGelu": 1, "my::F": 1}
    result = Result("qir", ops=counts)
    assert (result.nodes, result.contrib) == (4, 2)


def test_a_peer_that_changes_the_opset_or_the_domain_does_not_compete() -> None:
    results = [
        Result("qir", opset=13, ops={"Conv": 1}),
        Result("newer", opset=18, ops={"Conv": 2}),
        Result("contrib", opset=13, ops={"Conv": 2, "com.microsoft::Gelu": 1}),
        Result("failed", error="fails"),
        Result("fit", opset=13, ops={"Conv": 3}),
    ]
    best = optimizers.best_peer(results, 13)
    assert best is not None
    assert best.by == "fit"
    assert [result.cell(13) for result in results[1:4]] == ["2, opset 18", "2 + 1 contrib", "fails"]
    assert optimizers.missing(results[0], results[4:]) == ["  qir against fit: -2 Conv"]


def test_difference_is_relative_to_the_output_and_infinite_for_another_shape() -> None:
    a = [{"y": np.array([1.0, -4.0])}]
    assert optimizers.difference(a, [{"y": np.array([1.0, -4.4])}]) == pytest.approx(0.1)
    assert optimizers.difference(a, [{"y": np.zeros(3)}]) == float("inf")


def test_what_is_not_installed_is_said_so(tmp_path: Path) -> None:
    complaint = optimizers.run_optimizer("import no_such_optimizer", sys.executable, tmp_path / "a", tmp_path / "b")
    assert complaint == "not installed"
