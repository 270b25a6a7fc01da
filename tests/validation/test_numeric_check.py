"""The instrument that runs the model after each pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qir.errors import DataError, UnsupportedError
from qir.ir import DType, Model, StaticQuant
from qir.ir.parser import parse_model
from qir.pipeline import Effect, Pipeline
from qir.validation.numeric_check import NumericCheck
from qir.validation.numerics import Numerics, NumericsError, Tolerance, how_to_judge
from tests.pipeline.toys import DropIdentity
from tests.validation.sloppy import chain, feeds, pipeline


def ops(model: Model) -> list[str]:
    return [node.op for node in model.walk()]


def test_a_pass_that_breaks_the_model_stops_the_run_and_is_undone(tmp_path: Path) -> None:
    model = chain([1.0, 1.5])
    with pytest.raises(
        NumericsError, match=r"^pass 'drop-ones': broke the model: output 'y' moved by .* of its"
    ) as found:
        pipeline("canonicalize,drop-ones", tmp_path).run(model, instruments=[NumericCheck(feeds())], in_place=True)
    assert found.value.exit_code == 1
    assert ops(model).count("Mul") == 1  # x * 1 is gone, x * 1.5 is there again


def test_or_it_is_undone_and_the_run_goes_on(tmp_path: Path) -> None:
    check = NumericCheck(feeds(), on_failure="rollback")
    result = pipeline("drop-ones,canonicalize", tmp_path).run(chain([1.0, 1.5]), instruments=[check])
    assert [report.rolled_back for report in result.passes] == [True, False]
    assert ops(result.model).count("Mul") == 1 and "Identity" not in ops(result.model)
    assert [(failure.index, failure.pass_name) for failure in check.failures] == [(0, "drop-ones")]
    assert [str(remark)[:59] for remark in result.remarks[:1]] == [
        "[drop-ones] missed: rolled back, because it broke the model"
    ]


def test_a_sound_pass_passes_and_one_that_does_nothing_is_not_run(tmp_path: Path) -> None:
    check = NumericCheck(feeds())
    result = pipeline('drop-ones,drop-ones,analyze-ranges{input-range=["x=0:1"]}', tmp_path).run(
        chain([1.0, 2.0]), instruments=[check]
    )
    assert [report.changed for report in result.passes] == [True, False, True]
    assert check.numerics.runs == 2
    assert str(check) == f"verified on {len(feeds()['x'])} samples: drop-ones"
    idle = NumericCheck(feeds())
    pipeline("drop-ones", tmp_path).run(chain([2.0]), instruments=[idle])
    assert str(idle) == "verified: no pass changed what is computed"


def test_a_lossy_pass_is_held_to_its_threshold_and_the_next_exact_one_to_what_it_left(tmp_path: Path) -> None:
    lossy = pipeline("halve,canonicalize", tmp_path)
    lossy.run(chain([1.05]), instruments=[NumericCheck(feeds())])
    with pytest.raises(NumericsError, match=r"SQNR of 26\.4 dB, 30 dB are wanted"):
        lossy.run(chain([1.05]), instruments=[NumericCheck(feeds(), tolerance=Tolerance(lossy_db=30))])


def test_expected_outputs_in_the_data_are_not_needed_and_not_used() -> None:
    data = {**feeds(), "y": np.zeros((2, 4), np.float32)}
    Pipeline([DropIdentity()]).run(chain([2.0]), instruments=[NumericCheck(data)])


def test_data_that_does_not_fit_is_an_error_before_the_first_pass() -> None:
    with pytest.raises(DataError, match="no data for input x"):
        Pipeline([DropIdentity()]).run(chain([2.0]), instruments=[NumericCheck({"z": np.zeros((2, 4))})])


def test_random_ops_cannot_be_checked() -> None:
    model = parse_model("model ir=8 opset=[17]\ngraph g(%x: f32[4]) -> (%y) { %y: f32[4] = RandomNormalLike(%x) }")
    with pytest.raises(UnsupportedError, match="RandomNormalLike 'y' draws random numbers"):
        Pipeline([DropIdentity()]).run(model, instruments=[NumericCheck(feeds())])


def test_an_annotated_model_runs_as_it_will_be_emitted() -> None:
    model = chain([1.0])
    numerics = Numerics([{"x": np.array([0.1, 0.26, 0.4, 9.0], np.float32)}])
    model.graph.inputs[0].quant = StaticQuant.per_tensor(DType.UINT8, 0.25)
    (outputs,) = numerics.outputs(model)
    assert (-outputs["y"]).tolist() == [0.0, 0.25, 0.5, 9.0]
    assert "QuantizeLinear" not in ops(model) and model.graph.inputs[0].quant is not None


def test_annotations_that_cannot_be_emitted_are_an_error_with_its_remedy_and_no_broken_model() -> None:
    model = chain([1.0])
    model.opset_imports = {"": 12}
    numerics = Numerics([{"x": np.zeros(4, np.float32)}])
    reference = numerics.reference(model)
    model.graph.inputs[0].quant = StaticQuant.per_axis(DType.UINT8, np.ones(4, np.float32), 0)
    with pytest.raises(UnsupportedError, match="run 'convert-opset' first"):
        numerics.fault("lossy", model, reference, reference)


@pytest.mark.parametrize(
    ("want", "have", "complaint"),
    [
        (np.float32([1, 2]), np.float32([1, 2.0001]), None),
        (np.float32([1, 2]), np.float32([1, 2.001]), "moved by 0.001"),
        (np.float32([0, 0]), np.float32([0, 1e-9]), "moved by 1e-09"),
        (np.float16([1, 2]), np.float16([1, 2.05]), None),
        (np.float32([1, np.nan]), np.float32([1, np.nan]), None),
        (np.float32([1, np.inf]), np.float32([1, np.inf]), None),
        (np.float32([1, 2]), np.float32([1, np.nan]), "NaN or infinite in other places"),
        (np.float32([np.nan, 2]), np.float32([1, 2]), "NaN or infinite in other places"),
        (np.float32([1, 2]), np.float32([[1, 2]]), "is float32[1, 2], it was float32[2]"),
        (np.float32([1, 2]), np.float64([1, 2]), "is float64"),
        (np.int64([1, 2]), np.int64([1, 3]), "has 1 of 2 elements that differ"),
        ([np.float32([1])], [np.float32([1]), np.float32([1])], "another number of elements"),
    ],
)
def test_what_counts_as_moved(want: object, have: object, complaint: str | None) -> None:
    found = Numerics([])._moved([{"y": want}], [{"y": have}])
    assert (found is None) == (complaint is None)
    assert complaint is None or complaint in str(found)


def test_an_output_that_is_gone_is_told() -> None:
    numerics = Numerics([])
    assert numerics._moved([{"y": np.zeros(1)}], [{"z": np.zeros(1)}]) == "output 'y' is gone"
    assert numerics._below(10.0, [{"y": np.zeros(1)}], [{"z": np.zeros(1)}]) == "output 'y' is gone"


def test_how_a_pass_is_judged() -> None:
    assert how_to_judge(DropIdentity(), {"range", "observed", "type"}) is None
    assert how_to_judge(DropIdentity(), {"erased", "inputs"}) == "exact"
    annotating = type("Annotate", (DropIdentity,), {"effect": Effect.ANALYSIS})()
    assert how_to_judge(annotating, {"quant", "kernel"}) == "lossy"
    assert how_to_judge(annotating, set()) is None
