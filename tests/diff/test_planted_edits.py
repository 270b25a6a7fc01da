"""The reported edit is the planted edit: every kind of edit in every golden model, in hard random graphs and the zoo,
each time after everything was renamed, reordered and stored in another form."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from qir.diff import GraphDiff, diff
from qir.frontend import import_model
from qir.ir import Model
from tests.diff.edits import SINGLE, copied, graphs, respelled
from tests.diff.random_graphs import layered, tangled

ROOT = Path(__file__).parents[2]
GOLDEN = sorted(path.parent.name for path in (ROOT / "golden_models").glob("*/model.onnx"))
ZOO = ROOT.parent / "shared" / "zoo"
ZOO_NAMES = ("resnet20-cifar10", "minilm-l6-sts", "silero-vad", "stories260k-llama", "rfb320-face")


@cache
def golden(name: str) -> tuple[ModelProto, Model]:
    proto = onnx.load(ROOT / "golden_models" / name / "model.onnx")
    return proto, import_model(proto)


def counts(found: GraphDiff) -> Counter[str]:
    """The counts of what changed; parts of other counts left out."""
    parts = {"regions_replaced", "quantization_changed", "scales_changed", "notes", "ignored"}
    return Counter({name: n for name, n in found.summary.to_json().items() if n and name not in parts})


def titles(found: GraphDiff) -> list[str]:
    return [f"{change.kind.value} {change.where} {change.title}" for change in found.changes]


def check(proto: ModelProto, model: Model, edit: str, seed: str) -> None:
    rng = random.Random(seed + edit)
    edited = copied(proto)
    want = SINGLE[edit](edited, rng)
    if want is None:
        return
    found = diff(model, import_model(respelled(edited, rng)))
    assert counts(found) == want, titles(found)
    assert not found.identical


@pytest.mark.parametrize("name", GOLDEN)
def test_respelling_is_no_change(name: str) -> None:
    proto, model = golden(name)
    found = diff(model, import_model(respelled(proto, random.Random(name))))
    assert found.identical, titles(found)
    assert found.summary.to_json() == {**dict.fromkeys(found.summary.to_json(), 0), "notes": len(found.notes)}
    nodes = sum(node.op != "Constant" for node in model.walk())
    assert len(found.pairs) == nodes == len(set(found.pairs.values()))


@pytest.mark.parametrize("edit", SINGLE)
@pytest.mark.parametrize("name", GOLDEN)
def test_one_edit_in_a_golden_model(name: str, edit: str) -> None:
    check(*golden(name), edit, name)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), edit=st.sampled_from(list(SINGLE)), layers=st.integers(2, 12))
def test_one_edit_among_equal_layers(seed: int, edit: str, layers: int) -> None:
    proto = layered(seed, layers)
    check(proto, import_model(proto), edit, str(seed))


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), edit=st.sampled_from(list(SINGLE)))
def test_one_edit_in_a_tangled_graph(seed: int, edit: str) -> None:
    proto = tangled(seed)
    rng = random.Random(f"{seed}{edit}")
    edited = copied(proto)
    want = SINGLE[edit](edited, rng)
    if want is None:
        return
    found = diff(import_model(proto), import_model(respelled(edited, rng)))
    # Two exchanged weights may also be told as two exchanged readers.
    assert counts(found) == want or (edit == "swap" and 0 < counts(found).total() <= 2), titles(found)


@pytest.mark.parametrize(
    ("seed", "edit"),
    [
        (117, "remove"),  # what a body captures was made by the removed node
        (499, "remove"),  # the first of three equal nodes in a row
    ],
)
def test_edits_that_were_once_told_otherwise(seed: int, edit: str) -> None:
    proto = tangled(seed)
    check(proto, import_model(proto), edit, str(seed))


@pytest.mark.parametrize("name", ["resnet-shapes", "mobile-sounds", "vit-digits"])
@pytest.mark.parametrize("edit", ["insert", "remove", "replace"])
def test_nodes_without_names(name: str, edit: str) -> None:
    """The names of their results are permuted: those say nothing of what came from what."""
    proto = copied(golden(name)[0])
    for graph in graphs(proto.graph):
        for node in graph.node:
            node.name = ""
    check(proto, import_model(proto), edit, name)


@pytest.mark.parametrize(
    ("key", "seed", "edits"),
    [
        ("several442", 44, ["remove", "replace"]),  # neighbours: which of two was replaced, and which is gone
        ("several3220", 322, ["replace", "remove", "attribute", "weight", "permute"]),  # twins with other weights each
        ("several3841", 384, ["replace in a body", "permute"]),  # equal computations above, another weight below
    ],
)
def test_several_edits_that_were_once_told_otherwise(key: str, seed: int, edits: list[str]) -> None:
    proto, rng, want = (layered(seed, 8) if seed % 2 else tangled(seed, 60)), random.Random(key), Counter[str]()
    edited = copied(proto)
    for edit in edits:
        want += SINGLE[edit](edited, rng) or Counter()
    found = diff(import_model(proto), import_model(respelled(edited, rng)))
    assert counts(found) == want or counts(found).total() <= want.total(), (want, titles(found))


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), how_many=st.integers(2, 5), equal=st.booleans())
def test_several_edits_are_never_told_in_more(seed: int, how_many: int, equal: bool) -> None:
    """Edits may meet (one removes what another inserted), so there may be a shorter story, but never a longer one."""
    proto = layered(seed, 8) if equal else tangled(seed, 60)
    rng = random.Random(seed)
    edited, want = copied(proto), Counter[str]()
    for _ in range(how_many):
        want += SINGLE[rng.choice([name for name in SINGLE if name != "swap"])](edited, rng) or Counter()
    found = diff(import_model(proto), import_model(respelled(edited, rng)))
    assert counts(found) == want or counts(found).total() <= want.total(), (want, titles(found))


@pytest.mark.parametrize("name", ZOO_NAMES)
def test_one_edit_in_a_zoo_model(name: str) -> None:
    path = ZOO / name / "model.onnx"
    if not path.exists():
        pytest.skip("the model zoo is not beside the project")
    proto = onnx.load(path)
    model = import_model(proto)
    assert diff(model, import_model(respelled(proto, random.Random(name)))).identical
    for edit in ("insert", "remove", "attribute", "weight", "replace in a body"):
        check(proto, model, edit, name)
