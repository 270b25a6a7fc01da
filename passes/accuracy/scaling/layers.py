"""Linear layers with constant weights in one form: who scales outputs or inputs need not know the operator."""

from __future__ import annotations

import numpy as np

from qir.ir import Node, Tensor, Value
from qir.rewriting.edits import add_constant, constant_of, is_standard

__all__ = ["LINEAR_OPS", "Layer", "layer_of", "replace_constant"]

LINEAR_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


class Layer:
    """A Conv, ConvTranspose, Gemm or MatMul. ``weight`` has shape (groups, outputs / group, inputs / group, taps),
    float64; ``bias`` (outputs,) or None. Edits stay here until ``write``."""

    __slots__ = ("_edited", "bias", "node", "weight")

    def __init__(self, node: Node, weight: np.ndarray, bias: np.ndarray | None) -> None:
        self.node = node
        self.weight = weight
        self.bias = bias
        self._edited = False

    @property
    def outputs(self) -> int:
        return int(self.weight.shape[0] * self.weight.shape[1])

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[0] * self.weight.shape[2])

    def output_range(self) -> np.ndarray:
        """max|w| of each output channel, (outputs,)."""
        return np.asarray(np.abs(self.weight).max(axis=(2, 3)).reshape(-1))

    def input_range(self) -> np.ndarray:
        """max|w| of each input channel, (inputs,)."""
        return np.asarray(np.abs(self.weight).max(axis=(1, 3)).reshape(-1))

    def scale_outputs(self, factor: np.ndarray) -> None:
        """Multiply output channel i, its bias too, by factor[i]."""
        groups, size = self.weight.shape[:2]
        self.weight = self.weight * factor.reshape(groups, size, 1, 1)
        if self.bias is not None:
            self.bias = self.bias * factor
        self._edited = True

    def scale_inputs(self, factor: np.ndarray) -> None:
        """Multiply the weights of input channel j by factor[j]."""
        groups, size = self.weight.shape[0], self.weight.shape[2]
        self.weight = self.weight * factor.reshape(groups, 1, size, 1)
        self._edited = True

    def fits(self) -> bool:
        """Whether the edited numbers can be stored in the model's type."""
        tensor = constant_of(self.node.input(1))
        assert tensor is not None
        with np.errstate(over="ignore"):
            stored = [array.astype(tensor.dtype.numpy) for array in (self.weight, self.bias) if array is not None]
        return all(np.isfinite(array.astype(np.float64)).all() for array in stored)

    def write(self) -> None:
        """Store the edits; a constant that others read too is copied."""
        if not self._edited:
            return
        old = constant_of(self.node.input(1))
        assert old is not None
        weight = _to_operator(self.node, self.weight).reshape(old.shape)
        replace_constant(self.node, 1, weight.astype(old.dtype.numpy))
        bias = constant_of(self.node.input(2))
        if self.bias is not None and bias is not None:
            replace_constant(self.node, 2, self.bias.reshape(_bias_shape(bias, self.outputs)).astype(bias.dtype.numpy))
        self._edited = False


def layer_of(node: Node) -> Layer | str:
    """The layer, or why the node is none whose weights can be edited."""
    if not is_standard(node) or node.op not in LINEAR_OPS:
        return f"{node.op} is no linear operator with constant weights"
    weight = constant_of(node.input(1))
    if weight is None:
        return f"the weight of {node.op} {node.label!r} is not constant"
    if not weight.dtype.is_float or weight.size == 0:
        return f"the weight of {node.op} {node.label!r} is no float tensor with elements"
    if any(value is not None and value.frozen for value in node.inputs):
        return f"the weight of {node.op} {node.label!r} is frozen on its quantization grid"
    if node.op in ("MatMul", "Gemm") and (len(weight.shape) != 2 or node.get("transA", 0)):
        return f"{node.op} {node.label!r} does not have the form rows times matrix"
    array = weight.numpy().astype(np.float64)
    if not np.isfinite(array).all():
        return f"the weight of {node.op} {node.label!r} holds infinities or NaN"
    canonical = _from_operator(node, array)
    bias = None
    if node.op != "MatMul" and node.input(2) is not None:
        tensor = constant_of(node.input(2))
        if tensor is None:
            return f"the bias of {node.op} {node.label!r} is not constant"
        outputs = canonical.shape[0] * canonical.shape[1]
        if tensor.size not in (1, outputs) or (tensor.size == outputs and tensor.shape[-1:] not in ((outputs,), ())):
            return f"the bias of {node.op} {node.label!r} is not one number an output channel"
        bias = np.broadcast_to(tensor.numpy().astype(np.float64).reshape(-1), (outputs,)).copy()
    return Layer(node, canonical, bias)


def replace_constant(node: Node, index: int, array: np.ndarray) -> Value:
    """Let operand ``index`` read ``array`` in place of the constant that it reads now, which others may share."""
    old = node.input(index)
    assert old is not None
    tensor = Tensor.of(np.ascontiguousarray(array))
    if old.is_initializer and not old.is_input and len(old.uses) == 1 and tensor.shape == old.shape:
        old.const, old.range = tensor.renamed(old.name), None
        return old
    new = add_constant(node, tensor, old.name)
    node.set_input(index, new)
    if not old.uses and old.is_initializer and not old.is_input and old.graph is not None:
        old.graph.remove_initializer(old)
    return new


def _from_operator(node: Node, weight: np.ndarray) -> np.ndarray:
    groups = node.get("group", 1)
    match node.op:
        case "Conv":
            return weight.reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:], dtype=int)))
        case "ConvTranspose":
            parts = weight.reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:], dtype=int)))
            return parts.swapaxes(1, 2)
        case _:
            return (weight if node.get("transB", 0) else weight.T)[None, :, :, None]


def _to_operator(node: Node, canonical: np.ndarray) -> np.ndarray:
    match node.op:
        case "Conv":
            return canonical
        case "ConvTranspose":
            return canonical.swapaxes(1, 2)
        case _:
            matrix = canonical[0, :, :, 0]
            return matrix if node.get("transB", 0) else matrix.T


def _bias_shape(bias: Tensor, outputs: int) -> tuple[int, ...]:
    return bias.shape if bias.size == outputs and bias.shape else (outputs,)
