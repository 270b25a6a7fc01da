"""Running a pipeline: transactions, failures, instruments and what is reported."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from qir.errors import ModelError, OptionError, QirError, VerifyError
from qir.ir import DType, Interval, Model, TensorType, Value
from qir.ir.collector import collector_relaxed
from qir.ir.parser import parse_model
from qir.pipeline import Effect, Instrument, Pass, PassContext, PassResult, PassRun, Pipeline, RemarkFilter, Verdict
from qir.pipeline.remarks import format_remarks
from qir.pipeline.rewriting import RewritePass
from qir.pipeline.timing import format_timing
from qir.rewriting import Op, Rule
from tests.pipeline.toys import DropIdentity, Everything, Fails, chain, ops


def test_the_given_model_stays_as_it_is_unless_in_place() -> None:
    model = chain()
    result = Pipeline([DropIdentity()]).run(model)
    assert ops(model) == ["Identity", "Identity", "Identity", "Relu"]
    assert ops(result.model) == ["Relu"]
    result = Pipeline([DropIdentity()]).run(model, in_place=True)
    assert result.model is model and ops(model) == ["Relu"]
    assert model.journal is None


def test_the_report_says_what_each_pass_did() -> None:
    result = Pipeline([DropIdentity(), DropIdentity(), Everything(flag=True)]).run(chain())
    first, second, third = result.passes
    assert (first.name, first.changed, first.statistics) == ("drop-identity", True, {"removed": 3})
    assert first.edits == {"erased": 3, "inputs": 3, "unlinked": 3}
    assert first.summary() == "removed 3; nodes +0 -3"
    assert (second.changed, second.edits, second.summary()) == (False, {}, "no change")
    assert third.options == {"flag": True}
    assert [remark.subject for remark in result.remarks] == ["id0", "id1", "id2"]
    assert str(result).splitlines()[0] == "drop-identity  removed 3; nodes +0 -3"
    assert result.pipeline == "drop-identity,drop-identity,everything{flag}"
    assert json.loads(json.dumps(result.to_json()))["passes"][2]["options"] == {"flag": "true"}


def test_timing_is_a_tree_with_scopes_of_the_pass_inside() -> None:
    result = Pipeline([DropIdentity(), DropIdentity()]).run(chain())
    names = [part.name for part in result.timing.parts]
    assert names == ["shape inference", "verify", "drop-identity", "drop-identity"]
    first = result.timing.parts[2]
    run = first.part("run")
    assert [part.name for part in run.parts] == ["replace"]
    assert result.timing.seconds >= first.seconds >= run.seconds >= run.parts[0].seconds > 0
    assert "  drop-identity" in format_timing(result.timing)
    without = Pipeline([DropIdentity()]).run(chain(), verify=False)
    assert "verify" not in [part.name for part in without.timing.parts]


def test_a_failing_pass_is_undone_and_named() -> None:
    model = chain()
    with pytest.raises(ModelError) as error:
        Pipeline([DropIdentity(), Fails()]).run(model, in_place=True)
    assert str(error.value) == "pass 'fails': node 'x' is odd: make it even"
    assert ops(model) == ["Relu"] and model.journal is None


def test_a_bug_keeps_its_type_and_gets_a_note() -> None:
    model = chain()
    with pytest.raises(ZeroDivisionError) as error:
        Pipeline([DropIdentity(), Fails(bug=True)]).run(model, in_place=True)
    assert error.value.__notes__ == ["in pass 'fails', number 2 of the pipeline"]
    assert ops(model) == ["Relu"] and model.journal is None


def test_a_pass_that_answers_nothing_is_an_error() -> None:
    class Mute(Pass):
        name = "mute"
        effect = Effect.EXACT

        def run(self, model: Model, ctx: PassContext) -> PassResult:
            return None  # type: ignore[return-value]

    with pytest.raises(OptionError, match=r"^pass 'mute': run returned None where a PassResult is due$"):
        Pipeline([Mute]).run(chain())


class Spoil(Pass):
    name = "spoil"
    effect = Effect.EXACT

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        next(iter(model.graph.nodes)).set_op("NoSuchOp")
        return PassResult(changed=True)


def test_verification_stops_at_the_pass_that_broke_the_model() -> None:
    model = chain()
    with pytest.raises(VerifyError, match=r"^pass 'spoil': node 'id0': .*NoSuchOp"):
        Pipeline([Spoil()]).run(model, in_place=True)
    assert ops(model)[0] == "Identity"
    Pipeline([Spoil()]).run(model, in_place=True, verify=False)
    assert ops(model)[0] == "NoSuchOp"
    with pytest.raises(VerifyError, match=r"^the model is not valid as given; export it again, or run without"):
        Pipeline([DropIdentity()]).run(model)


def test_one_pass_makes_a_pipeline() -> None:
    for one in (DropIdentity(), DropIdentity, Pipeline([DropIdentity()])):
        assert str(Pipeline(one)) == "drop-identity"
    assert str(Pipeline("canonicalize,fuse")) == "canonicalize,fuse"
    with pytest.raises(OptionError, match="names, not of 3"):
        Pipeline(3)  # type: ignore[arg-type]


def test_what_is_no_model_no_instrument_and_no_verdict_is_told() -> None:
    class Loud(Instrument):
        def after_pass(self, run: PassRun) -> Verdict | None:
            return "ROLLBACK"  # type: ignore[return-value]

    pipeline = Pipeline(DropIdentity)
    with pytest.raises(OptionError, match=r"runs over a Model, not over 'a.onnx': qir.load reads one"):
        pipeline.run("a.onnx")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="is no Instrument object"):
        pipeline.run(chain(), instruments=[Loud])  # type: ignore[list-item]
    with pytest.raises(OptionError, match="instrument 'Loud' answered 'ROLLBACK', no Verdict and not None"):
        pipeline.run(chain(), instruments=[Loud()])


@pytest.mark.parametrize("answer", [None, [1], Rule("r", Op("Relu"), lambda match: None)])
def test_rules_that_are_none_are_told(answer: object) -> None:
    class Odd(RewritePass):
        name = "odd"
        effect = Effect.EXACT

        def rules(self, model: Model) -> list[Rule]:
            return answer  # type: ignore[return-value]

    with pytest.raises(OptionError, match=r"^pass 'odd': rules answered .* where a list of Rules is due$"):
        Pipeline([Odd]).run(chain())


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda y: setattr(y, "name", "z"), "the graph's output 'y' is gone"),
        (lambda y: setattr(y, "type", TensorType(DType.FLOAT, (2, 2))), "output 'y' was f32[4] and is f32[2,2]"),
        (lambda y: setattr(y, "type", TensorType(DType.FLOAT, ("N",))), None),
    ],
)
def test_an_exact_pass_keeps_the_outputs(edit: Callable[[Value], None], complaint: str | None) -> None:
    class Edit(Pass):
        name = "edit"
        effect = Effect.EXACT

        def run(self, model: Model, ctx: PassContext) -> PassResult:
            (y,) = model.graph.outputs
            edit(y)
            return PassResult(changed=True)

    model = parse_model("model ir=8 opset=[17 , my 1]\ngraph (%x: f32[4]) -> (%y) {\n%y: f32[4] = my.F(%x)\n}")
    if complaint is None:
        Pipeline([Edit()]).run(model)
    else:
        with pytest.raises(VerifyError, match=re.escape(complaint)):
            Pipeline([Edit()]).run(model)


def test_a_remark_that_is_none_is_told() -> None:
    class Chatty(Pass):
        name = "chatty"
        effect = Effect.EXACT

        def run(self, model: Model, ctx: PassContext) -> PassResult:
            return PassResult(remarks=["done"])  # type: ignore[list-item]

    with pytest.raises(OptionError, match=r"^pass 'chatty': 'done' is no remark: self.applied"):
        Pipeline([Chatty]).run(chain())


def test_verification_looks_at_structure_too() -> None:
    class Tangle(Pass):
        name = "tangle"
        effect = Effect.EXACT

        def run(self, model: Model, ctx: PassContext) -> PassResult:
            first, second, *_ = model.graph.nodes
            model.graph.move(second, first)
            return PassResult(changed=True)

    with pytest.raises(VerifyError, match=r"^pass 'tangle': "):
        Pipeline([Tangle()]).run(chain())


def test_an_operator_that_nobody_knows_is_kept_and_reported() -> None:
    model = chain()
    next(iter(model.graph.nodes)).set_op("Mystery", "com.example")
    model.opset_imports = {**model.opset_imports, "com.example": 1}
    result = Pipeline([Everything()]).run(model)
    assert ops(result.model)[0] == "Mystery"
    assert [str(remark) for remark in result.remarks] == [
        "[verify] note: nothing is known of domain 'com.example' (1 node): kept as it is, not checked"
    ]


def test_an_analysis_that_edits_the_graph_is_caught() -> None:
    class Sly(DropIdentity):
        name = "sly"
        effect = Effect.ANALYSIS

    model = chain()
    with pytest.raises(VerifyError, match=r"^pass 'sly': it declares the effect 'analysis'.*edited erased, inputs"):
        Pipeline([Sly()]).run(model, in_place=True)
    assert len(ops(model)) == 4


@dataclass(frozen=True)
class Observe(Pass):
    """Writes calibration data on every value."""

    name: ClassVar[str] = "observe"
    effect: ClassVar[Effect] = Effect.ANALYSIS

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        for value in model.values():
            value.observed = Interval(0.0, 1.0)
        return PassResult(changed=True)


class Keeper(DropIdentity):
    name = "keeper"
    keeps_observed = True


@pytest.mark.parametrize(("pass_", "stale"), [(DropIdentity(), True), (Keeper(), False)])
def test_calibration_data_survives_only_a_pass_that_vouches_for_it(pass_: Pass, stale: bool) -> None:
    result = Pipeline([Observe(), pass_]).run(chain())
    assert result.model.graph.outputs[0].is_stale is stale


class Spy(Instrument):
    label = "spy"

    def __init__(self, answers: dict[int, Verdict] | None = None) -> None:
        self.answers = answers or {}
        self.seen: list[str] = []

    def begin(self, model: Model, passes: tuple[Pass, ...]) -> None:
        self.seen.append(f"begin {len(passes)}")

    def before_pass(self, run: PassRun) -> None:
        self.seen.append(f"before {run.pass_.name}")

    def after_pass(self, run: PassRun) -> Verdict | None:
        self.seen.append(f"after {run.pass_.name} {run.changed}")
        return self.answers.get(run.index)

    def failed(self, run: PassRun, error: BaseException) -> None:
        self.seen.append(f"failed {run.pass_.name} {ops(run.model)[0]} {type(error).__name__}")

    def end(self, result: object) -> None:
        self.seen.append("end")


def test_hooks_run_in_order() -> None:
    spy = Spy()
    Pipeline([DropIdentity()]).run(chain(), instruments=[spy])
    assert spy.seen == ["begin 1", "before drop-identity", "after drop-identity True", "end"]
    spy = Spy()
    with pytest.raises(QirError):
        Pipeline([Fails()]).run(chain(), instruments=[spy])
    assert spy.seen == ["begin 1", "before fails", "failed fails Broken ModelError"]


def test_rollback_undoes_one_pass_and_goes_on() -> None:
    result = Pipeline([DropIdentity(), Everything()]).run(chain(), instruments=[Spy({0: Verdict.ROLLBACK})])
    assert ops(result.model) == ["Identity", "Identity", "Identity", "Relu"]
    assert [(r.changed, r.rolled_back) for r in result.passes] == [(False, True), (False, False)]
    assert result.remarks == [] and result.passes[0].summary() == "rolled back"


def test_stop_keeps_what_was_done_and_verdicts_unite() -> None:
    result = Pipeline([DropIdentity(), Everything()]).run(chain(), instruments=[Spy({0: Verdict.STOP}), Spy()])
    assert ops(result.model) == ["Relu"] and len(result.passes) == 1 and result.stopped
    both = [Spy({0: Verdict.STOP}), Spy({0: Verdict.ROLLBACK})]
    result = Pipeline([DropIdentity(), Everything()]).run(chain(), instruments=both)
    assert len(ops(result.model)) == 4 and len(result.passes) == 1 and result.stopped


def test_the_reference_is_the_untouched_model() -> None:
    seen: list[Model | None] = []

    class Look(Pass):
        name = "look"
        effect = Effect.LOSSY

        def run(self, model: Model, ctx: PassContext) -> PassResult:
            seen.append(ctx.reference)
            return PassResult()

    model = chain()
    Pipeline([DropIdentity, Look]).run(model)
    assert seen.pop() is model
    Pipeline([DropIdentity, Look]).run(model, in_place=True)
    reference = seen.pop()
    assert reference is not None and reference is not model and len(ops(reference)) == 4


@pytest.mark.parametrize(
    ("text", "subjects"),
    [
        ("", ["id0", "id1", "id2"]),
        ("all", ["id0", "id1", "id2"]),
        ("missed", []),
        ("applied subject=id[12]", ["id1", "id2"]),
        ("pass=fuse,drop-identity subject=id0", ["id0"]),
        ("pass=fuse", []),
    ],
)
def test_remarks_are_filtered(text: str, subjects: list[str]) -> None:
    remarks = Pipeline([DropIdentity()]).run(chain()).remarks
    assert [remark.subject for remark in RemarkFilter.parse(text).select(remarks)] == subjects


def test_remarks_print_one_a_line_and_bad_filters_are_explained() -> None:
    remarks = Pipeline([DropIdentity()]).run(chain(2)).remarks
    assert format_remarks(remarks) == "[drop-identity] applied: id0: removed\n[drop-identity] applied: id1: removed"
    with pytest.raises(OptionError, match=r"unknown kind 'mised' \(did you mean 'missed'\?\); there are applied"):
        RemarkFilter.parse("mised")
    with pytest.raises(OptionError, match="unknown key 'subjects'"):
        RemarkFilter.parse("subjects=a")


def test_the_collector_is_left_as_it_was() -> None:
    counts = []

    class Look(Pass):
        name = "look"
        effect = Effect.EXACT

        def run(self, model: Model, ctx: PassContext) -> PassResult:
            counts.append(gc.get_freeze_count())
            if not counts[1:]:
                Pipeline([Look]).run(model.clone())
                counts.append(gc.get_freeze_count())
            return PassResult()

    gc.unfreeze()
    Pipeline([Look]).run(chain())
    assert min(counts) > 0 and len(counts) == 3
    assert gc.get_freeze_count() == 0 and gc.isenabled()


@dataclass(frozen=True)
class Hessian(Pass):
    """Multiplies a matrix whose product has other bits on two threads than on one."""

    name: ClassVar[str] = "hessian"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        inputs = np.random.default_rng(0).standard_normal((3000, 384)).astype(np.float32)
        result = PassResult()
        result.statistics["digest"] = hash((inputs.T @ inputs).tobytes())
        return result


def test_products_do_not_depend_on_the_number_of_threads() -> None:
    digests = set()
    for threads in (1, 2):
        with threadpool_limits(limits=threads, user_api="blas"):
            before = threadpool_info()
            digests.add(Pipeline([Hessian()]).run(chain()).passes[0].statistics["digest"])
            assert threadpool_info() == before
    assert len(digests) == 1


def test_cloning_in_a_pass_never_counts_the_frozen_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain()
    with collector_relaxed():
        monkeypatch.setattr(gc, "get_freeze_count", lambda: pytest.fail("walked over all that is frozen"))
        model.clone()
        with collector_relaxed():
            model.clone()
        monkeypatch.undo()
