"""tune and mixed-precision decide alike whatever samples they are given, and spend no more than they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qir
from qir import golden_models
from qir.calibration.data import open_data
from qir.calibration.specs import input_specs
from qir.ir import Model, Node
from qir.passes.accuracy.mixed_precision import MixedPrecision
from qir.passes.accuracy.tune import Tune
from qir.passes.annotation.calibrate import Calibrate, ranges_of_each
from qir.pipeline.contract import PassContext, PassResult
from tests.passes.int8 import annotated, feeds, model


def golden(name: str, count: int) -> tuple[Model, dict[str, np.ndarray]]:
    folder: Path = golden_models.path(name)
    with np.load(folder / "calib.npz") as archive:
        samples = {key: archive[key][:count] for key in archive if key != "labels"}
    return qir.load(folder / "model.onnx"), samples


def test_one_run_gives_what_each_calibration_would() -> None:
    source, samples = golden("cnn-digits", 20)
    methods = [
        Calibrate(),
        Calibrate(method="mse"),
        Calibrate(method="percentile", percentile=99.5),
        Calibrate(method="moving-average", keep=0.98),
    ]
    ctx = PassContext(calibration=open_data(samples, input_specs(source)))
    together = ranges_of_each(source, methods, ctx)
    for one, found in zip(methods, together, strict=True):
        alone = source.clone_with_map()
        one.run(alone.model, ctx)
        assert found and found == {value: alone.values[value].observed for value in found}
    assert together[0] != together[2]


class Steps:
    """Gains that a variant is given, a part of the samples each."""

    def __init__(self, *parts: list[float]) -> None:
        self.parts = parts
        self.asked = 0

    def trials(self) -> Any:
        return [Part(self, np.array(part)) for part in self.parts]


class Part:
    def __init__(self, owner: Steps, gains: np.ndarray) -> None:
        self.owner, self.gains = owner, gains

    def score(self, prepared: object, method: object) -> np.ndarray:
        self.owner.asked += 1
        return self.gains

    def known(self, prepared: object, method: object) -> np.ndarray:
        return np.zeros_like(self.gains)


@pytest.mark.parametrize(
    ("parts", "kept", "asked"),
    [
        ([[0.9, 1.0, 1.1, 1.0, 0.9]] * 3, True, 1),  # clear at once
        ([[-5.0, 5.5, -4.0, 4.5, 0.2]] * 3, False, 1),  # hardly a gain
        ([[-1.0, 3.0, 2.0, -0.5, 3.0], [1.0, 1.5, 1.0, 0.5, 1.0], [9.0] * 5], True, 3),  # clear in the end
        ([[-9.0, 12.0, 4.0, -2.0, 3.0]] * 3, False, 3),  # never
    ],
)
def test_more_samples_are_asked_while_a_gain_is_unclear(parts: list[list[float]], kept: bool, asked: int) -> None:
    steps, result = Steps(*parts), PassResult()
    assert Tune()._better("equalize", ([], "a"), ([], "b"), steps.trials(), result) == kept
    assert steps.asked == asked


def test_thresholds_are_not_tried_where_everything_quantizes_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(model: Model, methods: list[Calibrate], ctx: PassContext) -> Any:
        asked.append(len(methods))
        return ranges_of_each(model, methods, ctx)

    monkeypatch.setattr("qir.passes.accuracy.tune.ranges_of_each", counted)
    lines = "@w: f32[64,64] #01\n%t = Tanh(%x)\n%m = MatMul(%t, @w)\n%y = Tanh(%m)"
    source = model("graph g(%x: f32[8,64]) -> (%y) {\n" + lines + "\n}")
    text = "legalize,analyze-ranges,calibrate,tune{prepare=[]},quantize"
    found = annotated(source, feeds(source, 12), f"{text}{{linear=auto}}")
    assert [node.kernel for node in found.model.walk() if node.op == "MatMul"] == ["dynamic"]
    assert asked == [1]
    said = [remark.message for remark in found.remarks if remark.pass_name == "tune"]
    assert len(said) == 3 and all("left out: +0.00 dB" in message for message in said)


def test_equal_blame_on_several_nodes_is_seen() -> None:
    nodes = [Node("Conv", []) for _ in range(12)]
    noise = {node: {"y": 1e-2 if index < 3 else 1e-5} for index, node in enumerate(nodes)}
    chosen = MixedPrecision(db_per_percent=3.0)._choose(noise, dict.fromkeys(nodes, 1.0))
    assert chosen == nodes[:3]  # the first alone would win 1.8 dB for a percent


@pytest.mark.parametrize(
    ("limits", "kernel"),
    [
        ("max-share=0.6 max-win=100", "integer"),  # most weights
        ("max-share=1 max-win=0.01", "integer"),  # most of what integers win
        ("max-share=1 max-win=100", "float"),
    ],
)
def test_accuracy_never_takes_most_of_what_integers_give(limits: str, kernel: str) -> None:
    lines = ["@w: f32[64,64,3,3] #01", "@v: f32[8,64,1,1] #02", "%a = Conv(%x, @w) {pads=[1, 1, 1, 1]}"]
    source = model("graph g(%x: f32[1,64,28,28]) -> (%y) {\n" + "\n".join(lines) + "\n%y = Conv(%a, @v)\n}")
    passes = "legalize,analyze-ranges,calibrate,quantize"
    search = f"mixed-precision{{max-percent=1000 db-per-percent=0 {limits}}}"
    searched = annotated(source, feeds(source, 20), f"{passes},{search}").model
    assert {n.output.name: n.kernel for n in searched.walk()}["a"] == kernel
