"""What must hold for every random model: the properties that the tests and ``tools/fuzz_passes.py`` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from hypothesis import assume, reject
from hypothesis import strategies as st

from qir.codegen import export_model, to_bytes
from qir.errors import ModelError
from qir.frontend import import_model
from qir.ir import Model
from qir.ir.parser import parse_text
from qir.ir.printer import print_model, stored_tensors
from qir.ir.verifier import verify
from qir.ops.shape_inference import infer
from qir.pipeline import Pipeline, default_registry
from qir.pipeline.contract import PassContext
from qir.rewriting import Numbering
from qir.runtime.session import PLAIN, OrtRunner
from tests.properties.graphs import Sample, feeds_of
from tests.protos import difference

__all__ = ["keeps_outputs", "pipelines", "prefix_keeps_outputs", "prints_and_parses", "round_trips", "undoes"]

Outputs = Mapping[str, np.ndarray]
TOLERANCE = 1e-3
"""Share of an output's largest magnitude."""
STEPS = (
    "canonicalize",
    "fold-constants",
    "fuse",
    "fold-constants{max-bytes=16}",
    "legalize",
    "equalize",
    "analyze-ranges",
    "convert-opset{to=17}",
    "convert-opset{to=21}",
    "inline-functions",
    "optimize",
)
"""The passes that keep the function and need no data, with options."""


def pipelines() -> st.SearchStrategy[str]:
    """Pipeline text."""
    known = default_registry()
    steps = [step for step in STEPS if step.partition("{")[0] in known]
    return st.lists(st.sampled_from(steps), min_size=1, max_size=4).map(",".join)


def loaded(sample: Sample) -> Model:
    model = import_model(sample.model)
    infer(model)
    return model


def runs(data: bytes, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[Outputs]:
    runner = OrtRunner(data, PLAIN)
    wanted = {spec.name for spec in runner.inputs}
    return [runner.run({name: array for name, array in feed.items() if name in wanted}) for feed in feeds]


def some_feeds(sample: Sample) -> list[dict[str, np.ndarray]]:
    return [feeds_of(sample, 1, True), feeds_of(sample, 3, False)]


def assert_same(got: Sequence[Outputs], expected: Sequence[Outputs]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        assert list(ours) == list(theirs)
        for name, array in theirs.items():
            assert ours[name].shape == array.shape and ours[name].dtype == array.dtype, name
            scale = float(np.abs(array).max(initial=1.0))
            np.testing.assert_allclose(ours[name], array, rtol=TOLERANCE, atol=TOLERANCE * scale, err_msg=name)


def reference_outputs(sample: Sample, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[Outputs]:
    """What the model computes as it came; an example whose numbers leave the range of floats is not taken."""
    try:
        expected = runs(sample.model.SerializeToString(), feeds)
    except ModelError:
        reject()  # the runtime itself fails, e.g. 1.31 where bodies capture a cast to double and back
    assume(all(np.abs(array).max(initial=0.0) < 1e6 for run in expected for array in run.values()))
    return expected


def keeps_outputs(sample: Sample, text: str) -> None:
    """The pipeline, verified after each pass, leaves the interface and the results as they were."""
    feeds = some_feeds(sample)
    expected = reference_outputs(sample, feeds)
    result = Pipeline.parse(text).run(import_model(sample.model))
    assert_same(runs(to_bytes(result.model), feeds), expected)


def prefix_keeps_outputs(sample: Sample, text: str, limit: int) -> None:
    """Stopped after any number of rewrites, as bisection stops it, the model is still valid and computes the same."""
    feeds = some_feeds(sample)
    expected = reference_outputs(sample, feeds)
    result = Pipeline.parse(text).run(import_model(sample.model), numbering=Numbering(limit))
    assert_same(runs(to_bytes(result.model), feeds), expected)


def undoes(sample: Sample, text: str) -> None:
    """Rolling back a transaction around a whole pipeline restores the graph: its text, and what is exported."""
    model = loaded(sample)
    text_before, exported = print_model(model), export_model(model)
    model.begin("undone")
    for pass_ in Pipeline.parse(text):
        pass_.run(model, PassContext(reference=model))
        infer(model)
    model.rollback()
    assert print_model(model) == text_before
    assert difference(exported, export_model(model), "model") is None
    verify(model)


def prints_and_parses(sample: Sample, text: str) -> None:
    """Printed and parsed, the model prints and exports the same, before and after a pipeline."""
    model = import_model(sample.model)
    for step in (None, text):
        if step is not None:
            Pipeline.parse(step).run(model, in_place=True)
        printed = print_model(model)
        parsed = parse_text(printed, stored_tensors(model))
        assert not parsed.stubs
        assert print_model(parsed.model) == printed
        assert difference(export_model(model), export_model(parsed.model), "model") is None


def round_trips(sample: Sample, text: str) -> None:
    """Import after export gives the same model, for the model as it came and after a pipeline."""
    model = import_model(sample.model)
    assert difference(sample.model, export_model(model), "model") is None
    Pipeline.parse(text).run(model, in_place=True)
    exported = export_model(model)
    assert difference(exported, export_model(import_model(exported)), "model") is None
