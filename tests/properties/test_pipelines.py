"""Random models through random pipelines of exact passes. ``tools/fuzz_passes.py`` runs the same for longer."""

from __future__ import annotations

import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.properties import checks
from tests.properties.graphs import Sample, models

few = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@few
@given(models())
def test_random_models_are_valid(sample: Sample) -> None:
    onnx.checker.check_model(sample.model, full_check=True)


@few
@given(models(), checks.pipelines())
def test_outputs_stay(sample: Sample, text: str) -> None:
    checks.keeps_outputs(sample, text)


@few
@given(models(), checks.pipelines(), st.integers(0, 12))
def test_outputs_stay_wherever_the_rewrites_stop(sample: Sample, text: str, limit: int) -> None:
    checks.prefix_keeps_outputs(sample, text, limit)


@few
@given(models(), checks.pipelines())
def test_undo_restores_the_exact_graph(sample: Sample, text: str) -> None:
    checks.undoes(sample, text)


@few
@given(models(), checks.pipelines())
def test_print_then_parse_is_the_identity(sample: Sample, text: str) -> None:
    checks.prints_and_parses(sample, text)


@few
@given(models(), checks.pipelines())
def test_export_then_import_is_the_identity(sample: Sample, text: str) -> None:
    checks.round_trips(sample, text)
