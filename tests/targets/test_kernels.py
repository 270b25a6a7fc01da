"""Annotating single nodes: what weights become, and which nodes a dynamic kernel refuses."""

from __future__ import annotations

import numpy as np
import pytest

from qir.errors import OptionError
from qir.ir import DType, DynamicQuant, StaticQuant, UseQuantMarker
from qir.quant.arithmetic import quantize
from qir.quant.pairs import PairLayout, pairs_fit
from qir.targets import Target
from qir.targets.kernels import make_dynamic, make_lookup, make_recurrent, weight_type
from qir.targets.ort_cpu import ORT_CPU, ORT_CPU_VNNI
from tests.passes.int8 import annotated, model, node

REFUSED = {
    "only MatMul and Gemm can": "%y: f32[4,4] = Add(%x, @w)",
    "its weight is not constant": "%y: f32[4,4] = MatMul(%x, %x)",
    "takes no transposed activation": "%y: f32[4,4] = Gemm(%x, @w) {transA=1}",
    "takes only alpha = beta = 1": "%y: f32[4,4] = Gemm(%x, @w) {alpha=0.5}",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_no_dynamic_kernel_takes(reason: str) -> None:
    source = model(f"graph g(%x: f32[4,4]) -> (%y) {{\n@w: f32[4,4] = #01\n{REFUSED[reason]}\n}}")
    only = source.graph.nodes.first
    assert only is not None
    with pytest.raises(OptionError, match=reason):
        make_dynamic(only, ORT_CPU)
    assert only.kernel is None and all(use is None or use.quant is UseQuantMarker.INHERIT for use in only.uses)


def test_a_static_node_becomes_dynamic_and_keeps_its_weight_type() -> None:
    source = model(
        "graph g(%x: f32[4,8]) -> (%y) {\n@w: f32[8,5] = #01\n@b: f32[5] = #02\n%y: f32[4,5] = Gemm(%x, @w, @b)\n}"
    )
    static = node(annotated(source).model, "Gemm")
    before = static.use(1)
    assert before is not None and isinstance(before.quant, StaticQuant)
    quant = before.quant
    make_dynamic(static, ORT_CPU)
    assert static.kernel == "dynamic"
    assert [use.quant for use in static.uses if use is not None] == [
        DynamicQuant(DType.UINT8),
        quant,
        UseQuantMarker.INHERIT,
    ]


def test_gates_of_both_directions_fit_in_pairs() -> None:
    source = model(
        """graph g(%x: f32[4,1,12]) -> (%y) {
        @w: f32[2,32,12] = #01
        @r: f32[2,32,8] = #02
        %y: f32[4,2,1,8], _, _ = LSTM(%x, @w, @r) {hidden_size=8, direction="bidirectional"}
    }"""
    )
    lstm = node(source, "LSTM")
    make_recurrent(lstm, ORT_CPU)
    assert lstm.kernel == "DynamicQuantizeLSTM"
    for use in (lstm.use(1), lstm.use(2)):
        assert use is not None and isinstance(use.quant, StaticQuant) and use.value.tensor is not None
        codes = quantize(use.value.tensor.numpy(), use.quant)
        assert all(pairs_fit(part, PairLayout.ROWS) for part in codes)
        assert len(use.quant.scale) == 64 and np.abs(codes).max(axis=2).min() > 60


def test_a_table_uses_every_code_of_each_row() -> None:
    source = model("graph g(%i: s64[2]) -> (%y) {\n@t: f32[40,16] = #01\n%y: f32[2,16] = Gather(@t, %i)\n}")
    gather = node(source, "Gather")
    make_lookup(gather)
    use = gather.use(0)
    assert use is not None and isinstance(use.quant, StaticQuant) and use.value.tensor is not None
    assert (np.abs(quantize(use.value.tensor.numpy(), use.quant)).max(axis=1) == 127).all()


@pytest.mark.parametrize(("target", "safe"), [(ORT_CPU, True), (ORT_CPU_VNNI, False)], ids=["any", "vnni"])
def test_full_range_only_where_the_processor_allows_it(target: Target, safe: bool) -> None:
    source = model("graph g(%x: f32[1,64]) -> (%y) {\n@w: f32[64,64] = #01\n%y: f32[1,64] = MatMul(%x, @w)\n}")
    tensor = next(iter(source.graph.initializers)).tensor
    assert tensor is not None
    quant = weight_type(node(source, "MatMul"), tensor, target)
    assert quant.axis == 1
    assert pairs_fit(quantize(tensor.numpy(), quant), PairLayout.COLUMNS) is safe
