"""How each hard case of quantization is written in the IR: printed, parsed, verified, cloned and undone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qir.ir import DerivedQuant, DType, DynamicQuant, Model, Node, StaticQuant, UseQuantMarker
from qir.ir.parser import parse_model
from qir.ir.printer import print_model
from qir.ir.verifier import verify

U8 = StaticQuant.per_tensor(DType.UINT8, 0.02, 3)
S8 = StaticQuant.per_tensor(DType.INT8, 0.25)


def channels(axis: int, *scales: float) -> StaticQuant:
    return StaticQuant(DType.INT8, scales, axis=axis)


def node(model: Model, name: str) -> Node:
    return next(node for node in model.walk() if node.name == name)


def quantize_use(model: Model, name: str, index: int, quant: StaticQuant | DerivedQuant | UseQuantMarker) -> None:
    use = node(model, name).use(index)
    assert use is not None
    use.quant = quant


def quantize_result(model: Model, name: str, quant: StaticQuant) -> None:
    node(model, name).output.quant = quant


def two_precisions(model: Model) -> None:
    """A LayerNorm's output feeds an int8 MatMul and the float residual."""
    quantize_result(model, "norm", U8)
    quantize_use(model, "add", 0, UseQuantMarker.FLOAT)


def requantized_add(model: Model) -> None:
    """An Add reads its operands with scales of its own."""
    quantize_result(model, "a", U8)
    quantize_result(model, "b", U8)
    quantize_use(model, "add", 1, StaticQuant.per_tensor(DType.UINT8, 0.0625, 7))


def requantized_concat(model: Model) -> None:
    """A Concat's operands share the parameters of its result."""
    for name in ("a", "b"):
        quantize_result(model, name, U8)
    shared = StaticQuant.per_tensor(DType.UINT8, 0.125, 0)
    quantize_result(model, "concat", shared)
    for index in (0, 1):
        quantize_use(model, "concat", index, shared)


def float_matmul_output(model: Model) -> None:
    """No quantizer stands on the output of a MatMul."""
    matmul = node(model, "matmul")
    matmul.kernel = "integer"
    quantize_use(model, "matmul", 0, U8)
    quantize_use(model, "matmul", 1, channels(1, 0.5, 0.25))
    assert matmul.output.quant is None


def shared_weight(model: Model) -> None:
    """A square weight read along either axis: one type a use, one integer copy a type."""
    quantize_use(model, "plain", 1, channels(1, 0.5, 0.25))
    quantize_use(model, "transposed", 1, channels(0, 0.125, 0.75))


def tied_embedding(model: Model) -> None:
    """The table is gathered by rows and read as the head's weight."""
    quantize_use(model, "embed", 0, channels(0, 0.5, 0.25, 0.125))
    quantize_use(model, "head", 1, channels(0, 0.5, 0.25, 0.125))
    node(model, "head").kernel = "dynamic"
    use = node(model, "head").use(0)
    assert use is not None
    use.quant = DynamicQuant(DType.UINT8)


def lstm_gates(model: Model) -> None:
    """Gates inside of a kernel have no value: the kernel is named, the results are quantized."""
    lstm = node(model, "lstm")
    lstm.kernel = "DynamicQuantizeLSTM"
    lstm.outputs[0].quant = S8
    quantize_use(model, "lstm", 1, channels(1, 0.5, 0.25, 0.5, 0.25, 0.5, 0.25, 0.5, 0.25))


def qoperator_output(model: Model) -> None:
    """QLinearSigmoid: integer kernel, quantized result."""
    node(model, "sigmoid").kernel = "integer"
    quantize_result(model, "sigmoid", StaticQuant.per_tensor(DType.UINT8, 1 / 256))


def graph_interface(model: Model) -> None:
    """Inputs and outputs are quantized as values; the output itself stays float."""
    model.graph.inputs[0].quant = U8
    quantize_result(model, "relu", S8)
    model.graph.output_uses[0].quant = UseQuantMarker.FLOAT


def captured(model: Model) -> None:
    """A body's use of an outer value carries its own type; the outer use stays float."""
    quantize_use(model, "inner", 0, U8)
    quantize_use(model, "inner", 1, channels(1, 0.5, 0.25))
    quantize_use(model, "outer", 0, UseQuantMarker.FLOAT)
    use = node(model, "inner").use(0)
    assert use is not None and use.is_capture


def shared_bias(model: Model) -> None:
    """Two convolutions share a bias: its scale follows from each one's own operands."""
    for name, scale in (("left", 0.5), ("right", 0.25)):
        quantize_use(model, name, 0, StaticQuant.per_tensor(DType.UINT8, scale))
        quantize_use(model, name, 1, channels(0, scale))
        quantize_use(model, name, 2, DerivedQuant(0, 1))


def blocked_weight(model: Model) -> None:
    """4-bit codes in blocks of two along the rows, each with a scale and a zero point."""
    blocks = StaticQuant(DType.UINT4, (0.5, 0.25, 0.125, 1.0), (8, 7, 8, 9), axis=0, block_size=2)
    quantize_use(model, "matmul", 1, blocks)
    node(model, "matmul").kernel = "weight-only"


CASES: list[tuple[Callable[[Model], None], str, list[str]]] = [
    (
        two_precisions,
        """graph (%x: f32[N,4]) -> (%y, %z) {
             @w: f32[4,1] = [1, 2, 3, 4]
             %h: f32[N,4] = LayerNormalization(%x) name="norm"
             %y: f32[N,1] = MatMul(%h, @w) name="matmul"
             %z: f32[N,4] = Add(%h, %x) name="add"
           }""",
        ["%h: f32[N,4] q=u8(0.02, 3) = LayerNorm", "MatMul(%h, @w)", "Add(%h : float, %x)"],
    ),
    (
        requantized_add,
        """graph (%x: f32[4]) -> (%y) {
             %p: f32[4] = Relu(%x) name="a"
             %q: f32[4] = Sigmoid(%x) name="b"
             %y: f32[4] = Add(%p, %q) name="add"
           }""",
        ["%q: f32[4] q=u8(0.02, 3) = Sigmoid", "Add(%p, %q : u8(0.0625, 7))"],
    ),
    (
        requantized_concat,
        """graph (%x: f32[4]) -> (%y) {
             %p: f32[4] = Relu(%x) name="a"
             %q: f32[4] = Sigmoid(%x) name="b"
             %y: f32[8] = Concat(%p, %q) {axis=0} name="concat"
           }""",
        ["%y: f32[8] q=u8(0.125, 0) = Concat(%p : u8(0.125, 0), %q : u8(0.125, 0))"],
    ),
    (
        float_matmul_output,
        """graph (%x: f32[N,2]) -> (%y) {
             @w: f32[2,2] = [1, 2, 3, 4]
             %y: f32[N,2] = MatMul(%x, @w) name="matmul"
           }""",
        ["%y: f32[N,2] = MatMul(%x : u8(0.02, 3), @w : s8[axis=1]([0.5, 0.25], 0)) kernel=integer"],
    ),
    (
        shared_weight,
        """graph (%x: f32[N,2]) -> (%y, %z) {
             @w: f32[2,2] = [1, 2, 3, 4]
             %y: f32[N,2] = Gemm(%x, @w) name="plain"
             %z: f32[N,2] = Gemm(%x, @w) {transB=1} name="transposed"
           }""",
        ["@w : s8[axis=1]([0.5, 0.25], 0))", "@w : s8[axis=0]([0.125, 0.75], 0)) {transB=1}"],
    ),
    (
        tied_embedding,
        """graph (%ids: s64[N]) -> (%y) {
             @table: f32[3,2] = [1, 2, 3, 4, 5, 6]
             %e: f32[N,2] = Gather(@table, %ids) name="embed"
             %y: f32[N,3] = Gemm(%e, @table) {transB=1} name="head"
           }""",
        ["Gather(@table : s8[axis=0]([0.5, 0.25, 0.125], 0), %ids)", "Gemm(%e : dynamic(u8), @table : s8[axis=0]("],
    ),
    (
        lstm_gates,
        """graph (%x: f32[T,1,2]) -> (%y) {
             @w: f32[1,8,2] #77
             @r: f32[1,8,2] #78
             %y: f32[T,1,1,2], _, %c: f32[1,1,2] = LSTM(%x, @w, @r) {hidden_size=2} name="lstm"
           }""",
        ["%y: f32[T,1,1,2] q=s8(0.25, 0), _, %c", "{hidden_size=2} kernel=DynamicQuantizeLSTM"],
    ),
    (
        qoperator_output,
        """graph (%x: f32[4]) -> (%y) {
             %y: f32[4] = Sigmoid(%x) name="sigmoid"
           }""",
        ["%y: f32[4] q=u8(0.00390625, 0) = Sigmoid(%x) kernel=integer"],
    ),
    (
        graph_interface,
        """graph (%x: f32[4]) -> (%y) {
             %y: f32[4] = Relu(%x) name="relu"
           }""",
        ["graph (%x: f32[4] q=u8(0.02, 3)) -> (%y : float) {", "%y: f32[4] q=s8(0.25, 0) = Relu"],
    ),
    (
        captured,
        """graph (%c: bool[], %x: f32[N,2]) -> (%y, %z) {
             @w: f32[2,2] = [1, 2, 3, 4]
             %y: f32[N,2] = If(%c) {then_branch=graph then() -> (%t) {
               %t: f32[N,2] = MatMul(%x, @w) name="inner"
             }, else_branch=graph else() -> (%e) {
               %e: f32[N,2] = Neg(%x)
             }} name="if"
             %z: f32[N,2] = Relu(%x) name="outer"
           }""",
        ["    %t: f32[N,2] = MatMul(%x : u8(0.02, 3), @w : s8[axis=1]", "Neg(%x)\n", "Relu(%x : float)"],
    ),
    (
        shared_bias,
        """graph (%x: f32[1,1,3,3]) -> (%y, %z) {
             @w: f32[1,1,1,1] = [2]
             @v: f32[1,1,1,1] = [3]
             @b: f32[1] = [0.5]
             %y: f32[1,1,3,3] = Conv(%x, @w, @b) name="left"
             %z: f32[1,1,3,3] = Conv(%x, @v, @b) name="right"
           }""",
        ['@b : derived(s32, 0, 1)) name="left"', "Conv(%x : u8(0.25, 0), @v : s8[axis=0]([0.25], 0), @b : derived"],
    ),
    (
        blocked_weight,
        """graph (%x: f32[N,4]) -> (%y) {
             @w: f32[4,2] = [1, 2, 3, 4, 5, 6, 7, 8]
             %y: f32[N,2] = MatMul(%x, @w) name="matmul"
           }""",
        ["@w : u4[axis=0, block=2]([0.5, 0.25, 0.125, 1], [8, 7, 8, 9])) kernel=weight-only"],
    ),
]


@pytest.mark.parametrize(("annotate", "text", "expected"), CASES, ids=[case[0].__name__ for case in CASES])
def test_case(annotate: Callable[[Model], None], text: str, expected: list[str]) -> None:
    model = parse_model(text)
    verify(model)
    plain = print_model(model)

    with model.transaction("annotate"):
        annotate(model)
    verify(model)
    annotated = print_model(model)
    for part in expected:
        assert part in annotated
    assert annotated != plain

    again = parse_model(annotated)
    verify(again)
    assert print_model(again) == annotated

    clone = model.clone()
    verify(clone)
    assert print_model(clone) == annotated

    undone = parse_model(plain)
    undone.begin("annotate")
    annotate(undone)
    assert print_model(undone) == annotated
    undone.rollback()
    verify(undone)
    assert print_model(undone) == plain


def test_effective_quant_resolves_what_a_use_inherits() -> None:
    model = parse_model(CASES[0][1])
    two_precisions(model)
    quants = [node(model, name).use(0) for name in ("matmul", "add")]
    assert [use.effective_quant for use in quants if use is not None] == [U8, None]


def test_a_clone_keeps_its_own_annotations() -> None:
    model = parse_model(CASES[1][1])
    requantized_add(model)
    before = print_model(model)
    clone = model.clone()
    quantize_use(clone, "add", 1, UseQuantMarker.FLOAT)
    node(clone, "a").output.quant = None
    assert print_model(model) == before
