"""``legalize``: bring constants into the shapes that the target's kernels fuse with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qir.ir import DType, Model, Node, Tensor, Value
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.pipeline.registry import load_target
from qir.rewriting.edits import import_domain

__all__ = ["Legalize"]

_CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class Legalize(Pass):
    """Reshape constant operands so that integer kernels form around them; the function stays the same.

    A Gemm's bias becomes one number a column, a private copy where others use it too. The bias that is added to a
    MatMul becomes a row, [1, N]: as a vector, onnxruntime merges the pair into a Gemm whose float bias then keeps the
    integer kernel away, and the weight is dequantized on every run. x * Sigmoid(x) becomes QuickGelu(alpha = 1), which
    between quantizers is one kernel instead of the four that the runtime leaves of the pair, where the target has it.

    Before::

        %m: f32[2,8,4] = MatMul(%x, @w)
        %y: f32[2,8,4] = Add(%m, @b)          // @b: f32[4]

    After::

        %m: f32[2,8,4] = MatMul(%x, @w)
        %y: f32[2,8,4] = Add(%m, @b_row)      // @b_row: f32[1,4]
    """

    name: ClassVar[str] = "legalize"
    effect: ClassVar[Effect] = Effect.EXACT
    keeps_observed: ClassVar[bool] = True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        result = PassResult()
        contrib = "contrib" in load_target(ctx.target).constraints.formats
        for node in list(model.walk()):
            if node.domain != "" or ctx.numbering.exhausted:
                continue
            done = ""
            if node.op == "Gemm" and _flatten_gemm_bias(node):
                done = "gemm-bias"
            elif node.op == "Add" and _bias_as_row(node):
                done = "bias-row"
            elif contrib and node.op == "Mul" and node.graph is not None and _silu_as_quick_gelu(model, node):
                done = "silu"
            if done:
                ctx.numbering.allow(done, node)
                result.count(done)
        result.changed = bool(result.statistics)
        return result


def _flatten_gemm_bias(node: Node) -> bool:
    bias, weight = node.input(2), node.input(1)
    tensor = bias.tensor if bias is not None else None
    if bias is None or tensor is None or weight is None or weight.tensor is None or len(weight.tensor.shape) != 2:
        return False
    columns = weight.tensor.shape[0 if node.get("transB", 0) else 1]
    if tensor.shape == (columns,) or tensor.size not in (1, columns) or tensor.shape[-1:] not in ((columns,), (1,), ()):
        return False
    array = tensor.numpy().reshape(-1)
    _replace_operand(node, 2, bias, Tensor.of(array.repeat(columns) if array.size < columns else array), "vector")
    return True


def _bias_as_row(node: Node) -> bool:
    for index in (0, 1):
        product, bias = node.input(index), node.input(1 - index)
        if product is None or bias is None or bias.tensor is None or len(bias.tensor.shape) != 1:
            continue
        producer = product.producer
        if producer is None or producer.op != "MatMul" or producer.domain != "":
            continue
        shape = product.shape
        if shape is None or len(shape) < 2:
            continue
        _replace_operand(node, 1 - index, bias, Tensor.of(bias.tensor.numpy().reshape(1, -1)), "row")
        return True
    return False


def _silu_as_quick_gelu(model: Model, node: Node) -> bool:
    if node.output.dtype is not DType.FLOAT:
        return False  # the kernel knows no other
    for index in (0, 1):
        x, gate = node.input(index), node.input(1 - index)
        sigmoid = gate.producer if gate is not None else None
        if x is None or gate is None or sigmoid is None or sigmoid.op != "Sigmoid" or sigmoid.domain != "":
            continue
        graph = node.graph
        if sigmoid.input(0) is not x or len(gate.uses) != 1 or sigmoid.graph is not graph or graph is None:
            continue
        import_domain(model, graph, _CONTRIB)
        made = graph.insert_before(
            node,
            "QuickGelu",
            [x],
            attributes={"alpha": 1.0},
            domain=_CONTRIB,
            types=[node.output.type],
            source=[sigmoid, node],
        )
        node.output.replace_all_uses(made.output)
        node.erase()
        sigmoid.erase()
        return True
    return False


def _replace_operand(node: Node, index: int, old: Value, tensor: Tensor, suffix: str) -> None:
    graph = old.graph
    assert graph is not None
    node.set_input(index, graph.add_initializer(f"{old.name}_{suffix}", tensor))
    if not old.uses:
        graph.remove_initializer(old)
