"""Every golden model becomes int8 with defaults: valid, accurate, really executed on integers, the same each time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qir
from qir import golden_models
from qir.report.quantization import QuantizationReport
from qir.runtime.session import PLAIN, OrtRunner
from qir.validation.golden import read_info
from qir.validation.metrics import compare

TREE = Path(__file__).resolve().parents[1]
EVALUATED = 40  # samples, for the sake of time; tools/golden/expect.py looks at all


def first_samples(path: Path, count: int) -> dict[str, np.ndarray]:
    """The start of an archive of samples, stacked or ragged."""
    with np.load(path) as archive:
        return {
            key: archive[key] if "/" in key else archive[key][:count]
            for key in archive
            if "/" not in key or int(key.rpartition("/")[2]) < count
        }


def quantize(name: str, output: Path) -> QuantizationReport:
    folder = golden_models.path(name)
    samples = first_samples(folder / "eval.npz", EVALUATED)
    return qir.quantize(
        folder / "model.onnx", output, calibration=folder / "calib.npz", golden=samples, latency_seconds=0
    )


@pytest.fixture(scope="module", params=golden_models.names())
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name, report and file of one golden model after another."""
    output = tmp_path_factory.mktemp(request.param) / "int8.onnx"
    return request.param, quantize(request.param, output), output


def expectation(name: str) -> float:
    return float(read_info(golden_models.path(name))["expected"]["int8"]["min_sqnr"])


def test_accuracy_reaches_what_golden_toml_expects(quantized: tuple[str, QuantizationReport, Path]) -> None:
    name, report, _ = quantized
    wanted = expectation(name)
    assert wanted >= 10
    assert report.accuracy.sqnr_min_db >= wanted
    assert report.accuracy_plain.sqnr_min_db >= wanted
    # Four samples are few: the stored outputs are allowed half of the margin that the expectation leaves.
    assert qir.check(report.output or "", golden_models.path(name), min_sqnr=wanted - 1).passed


FLOAT_IS_FASTER = ("mobile-sounds",)
"""Depthwise convolutions between hard-swishes."""


def test_integers_are_executed(quantized: tuple[str, QuantizationReport, Path]) -> None:
    name, report, output = quantized
    if name in FLOAT_IS_FASTER:
        assert report.stays_float and "they would be slower than float here" in str(report)
        source = qir.load(golden_models.path(name) / "model.onnx")
        assert [node.op for node in qir.load(output).walk()] == [node.op for node in source.walk()]
        return
    assert sum(report.executed_integer.values()) > 0
    assert "QuantizeLinear" not in report.executed_integer


def test_optimisations_on_and_off_agree(quantized: tuple[str, QuantizationReport, Path]) -> None:
    name, report, output = quantized
    if report.stays_float:
        assert report.accuracy.sqnr_min_db > 100
        return
    optimized, plain = OrtRunner(str(output)), OrtRunner(str(output), PLAIN)
    # Integer kernels may round the other way: a fraction of what quantization itself costs.
    assert compare(plain, optimized, _feeds(name, plain)).sqnr_min_db >= expectation(name) - 3
    assert abs(report.accuracy.sqnr_min_db - report.accuracy_plain.sqnr_min_db) < 1


def _feeds(name: str, runner: OrtRunner) -> list[Mapping[str, Any]]:
    from qir.calibration.data import open_data

    return list(open_data(golden_models.path(name), runner.inputs))


def test_a_second_run_gives_the_same_bytes(quantized: tuple[str, QuantizationReport, Path], tmp_path: Path) -> None:
    name, _, output = quantized
    folder = golden_models.path(name)
    if name in FLOAT_IS_FASTER:
        quantize(name, tmp_path / "again.onnx")
    else:
        result = qir.Pipeline.parse("int8").run(qir.load(folder / "model.onnx"), calibration=folder / "calib.npz")
        qir.save(result.model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == output.read_bytes()


SCRIPT = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[4])])
import qir
qir.quantize(sys.argv[1] + "/model.onnx", sys.argv[2], calibration=sys.argv[1] + "/calib.npz",
             golden=sys.argv[3], latency_seconds=0)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the thread count is set by processor affinity")
def test_other_processes_hash_seeds_and_thread_counts_give_the_same_bytes(tmp_path: Path) -> None:
    folder = golden_models.path("cnn-digits")
    digests = set()
    for seed, threads in (("0", 1), ("1", 2), ("4711", 2)):
        output = tmp_path / f"{seed}.onnx"
        environment = {**os.environ, "PYTHONPATH": str(TREE), "PYTHONHASHSEED": seed}
        arguments = [str(folder), str(output), str(folder), str(threads)]
        subprocess.run([sys.executable, "-c", SCRIPT, *arguments], env=environment, check=True)
        digests.add(hashlib.sha256(output.read_bytes()).hexdigest())
    assert len(digests) == 1
