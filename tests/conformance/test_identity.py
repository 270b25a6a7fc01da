"""Import, then export, is the identity on models that no one here wrote, and the results of running them stay equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qir.codegen import export_model, save
from qir.errors import QirError
from qir.frontend import import_model, load
from qir.runtime.reference import ReferenceRunner
from qir.runtime.session import PLAIN, OrtRunner
from tests.conformance.cases import SOURCES, Case, cases
from tests.protos import difference, stored_alike

LEAST = {"node": 1800, "model": 25, "simple": 20, "pytorch-converted": 80, "pytorch-operator": 30, "light": 9}
"""How many cases there are at least, so that a loader that finds nothing does not pass."""
SAMPLE = 25
"""One in so many is run although its export equals it to the last bit."""
EXCEPTIONS: dict[str, str] = {}
"""Case name to the reason why its export may differ. Aim: none."""
ZOO = Path(__file__).parents[3] / "shared" / "zoo"


@pytest.mark.parametrize("source", SOURCES)
def test_onnx_cases_come_back(source: str) -> None:
    failures: list[str] = []
    seen = run = unrunnable = 0
    for case in cases(source):
        seen += 1
        if case.name in EXCEPTIONS:
            continue
        try:
            exported = export_model(import_model(case.model))
        except QirError as error:
            failures.append(f"{case.name}: {error}")
            continue
        if found := difference(case.model, exported, "model"):
            failures.append(f"{case.name}: {found}")
        elif case.feeds is not None and (seen % SAMPLE == 0 or not stored_alike(case.model, exported)):
            try:
                found = _run_difference(case, exported)
            except QirError:
                unrunnable += 1  # no runtime here runs the original
                continue
            run += 1
            if found:
                failures.append(f"{case.name}: {found}")
    print(f"{source}: {seen} cases, {run} run, {unrunnable} that nothing here runs")
    assert unrunnable <= seen // 20
    assert run >= seen // SAMPLE // 2 or source == "light"
    assert not failures, f"{len(failures)} of {seen} cases ({run} run):\n" + "\n".join(failures[:40])
    assert seen >= LEAST[source]


@pytest.mark.parametrize("path", sorted(ZOO.glob("*/*.onnx")) or [None], ids=lambda p: p.parent.name if p else "none")
def test_zoo_models_come_back(path: Path | None, tmp_path: Path) -> None:
    if path is None:
        pytest.skip("no ../shared/zoo beside the project")
    original = onnx.load(path)
    save(load(path), tmp_path / "m.onnx")
    exported = onnx.load(tmp_path / "m.onnx")
    assert difference(original, exported, "model") is None
    OrtRunner((tmp_path / "m.onnx").read_bytes(), PLAIN)


def _run_difference(case: Case, exported: onnx.ModelProto) -> str | None:
    """What differs when both are run, on onnxruntime, or on onnx.reference where it refuses the original.

    Raises QirError where both refuse the original.
    """
    assert case.feeds is not None
    for runner in (_on_onnxruntime, ReferenceRunner):
        try:
            expected = runner(case.model.SerializeToString()).run(case.feeds)
        except QirError:
            if runner is ReferenceRunner:
                raise
            continue
        try:
            got = runner(exported.SerializeToString()).run(case.feeds)
        except QirError as error:
            return f"only the original runs: {error}"
        return next((f"output {n!r} differs" for n, output in expected.items() if not _equal(output, got[n])), None)
    return None


def _on_onnxruntime(model: bytes) -> OrtRunner:
    """Under the newest file version that onnxruntime loads; the cases are written in onnx's newest."""
    proto = onnx.ModelProto.FromString(model)
    proto.ir_version = min(proto.ir_version, 13)
    return OrtRunner(proto.SerializeToString(), PLAIN)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_equal, a, b))
    if a is None or b is None:
        return a is b
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(a.dtype == object and (a == b).all()) or a.tobytes() == b.tobytes()
