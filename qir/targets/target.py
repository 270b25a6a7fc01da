"""A target as data: which operators a runtime executes on integers, in which form, and what is a trap."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from qir.ir import DType
from qir.targets.cost import CostTable

__all__ = ["Constraints", "Form", "OpRule", "Target", "WeightRange"]


class Form(enum.Enum):
    """How an operator takes part in an integer region."""

    CONVOLUTION = "convolution"
    """Constant weight; the result, after a merged activation, has exactly one quantizer."""
    LINEAR = "linear"
    """Constant weight; the quantizer stands on the use of the activation, the result may stay float."""
    ELEMENTWISE = "elementwise"
    """All operands are integers with parameters of their own (constants too), and so is the result."""
    UNARY = "unary"
    """Integer in, integer out, each with parameters of its own."""
    MOVEMENT = "movement"
    """Rearranges or selects elements: in and out share their parameters."""
    RECURRENT = "recurrent"
    """Constant weights; the kernel quantizes its activations itself, step by step; the results are floats."""
    LOOKUP = "lookup"
    """Rows of a constant table, stored as integers with a scale each; the result is float."""


class WeightRange(enum.Enum):
    """How much of s8 the weights may use."""

    FULL = "full"
    """-127..127: right where the processor multiplies u8 by s8 without saturation (VNNI, ARM dot product)."""
    PAIR_SAFE = "pair-safe"
    """As much as can be used with no saturation of two adjacent products in 16 bits (vpmaddubsw, x64 without VNNI)."""
    REDUCED = "reduced"
    """-64..64, the field's usual remedy for the same."""


@dataclass(frozen=True, slots=True)
class OpRule:
    """What the target does with one operator.

    ``data_inputs``: indices of the operands that are quantized (None: all). ``weight_input``/``bias_input``: where
    the constants of convolutions and linear operators stand.
    """

    form: Form
    data_inputs: tuple[int, ...] | None = (0,)
    weight_input: int | None = None
    bias_input: int | None = None


@dataclass(frozen=True)
class Constraints:
    """What a quantized model must keep to so that the runtime takes it and runs it on integers; see ``lint``.

    ``formats``: spellings that it reads (qdq, qoperator, contrib). ``activations``, ``weights``: storage types, weights
    per tensor or, of the operators in ``per_channel``, a scale an output channel; ``blocked``: types of weights in
    blocks. ``symmetric_activations``/``symmetric_weights``: zero point 0 (of u8 and u16 the middle code).
    ``biases``: their types, f32 for those without quantizer. ``fixed_shapes``: no symbolic axes.
    ``traps``: names of checks that are this target's own. ``sources``: where all that stands written.
    """

    sources: tuple[str, ...] = ()
    formats: frozenset[str] = frozenset({"qdq", "qoperator", "contrib"})
    activations: frozenset[DType] = frozenset({DType.UINT8})
    weights: frozenset[DType] = frozenset({DType.INT8, DType.UINT8})
    per_channel: frozenset[str] = frozenset({"Conv", "MatMul", "Gemm"})
    blocked: frozenset[DType] = frozenset()
    symmetric_activations: bool = False
    symmetric_weights: bool = False
    biases: frozenset[DType] = frozenset({DType.INT32, DType.FLOAT})
    fixed_shapes: bool = False
    traps: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Target:
    """A runtime on a kind of processor, for a range of its versions.

    ``merged``: activations that a convolution or linear operator absorbs together with the quantizer after them.
    ``float_only``: operators that stay float, with the reason that a remark gives. ``barriers``: operators that the
    runtime turns into integer ones by itself, slower or less accurate, when they stand between a dequantizer and a
    quantizer; an operator in between prevents that. ``passed_by_quantizers``: float operators before which the
    runtime moves the quantizer of their result although they are slow on integers there. ``slow_fusions``: kernels
    that it makes of float operators although those are faster. ``dynamic_linear``: linear
    operators that quantize their input at run time are no slower than static ones. ``lookup``: how a Gather from a
    constant table of at least ``min_table_bytes`` runs. ``recurrent_kernels``: the target's name of the kernel for an
    operator of that form; with fewer than ``min_recurrent_weights`` weights, float is faster.
    ``min_dynamic_conv_channels``: from how many input channels on a convolution that quantizes its input at run time
    is faster than float; None: never; with fewer than ``min_dynamic_conv_macs`` multiply-accumulates it is not.
    ``cost``: what nodes cost.
    ``min_conv_channels``: a convolution of fewer input channels (depthwise ones aside) at an input of the model
    stays float. ``session_options``: entries that the runtime should be configured with. ``symmetric``: activations
    have zero point 0. ``per_tensor_weights``: operators whose weight has one scale. ``runs_here``: the runtime is
    the one that qir runs models with, so what it makes of a model can be looked at. ``format``: how quantization is
    spelled by default. ``notes``: what to know besides, for readers.
    """

    name: str
    title: str
    runtime_versions: str
    rules: Mapping[str, OpRule]
    merged: frozenset[str]
    float_only: Mapping[str, str]
    lookup: OpRule | None = None
    dynamic_linear: bool = False
    recurrent_kernels: Mapping[str, str] = field(default_factory=dict)
    min_recurrent_weights: int = 0
    min_dynamic_conv_channels: int | None = None
    min_dynamic_conv_macs: int = 0
    min_table_bytes: int = 0
    barriers: frozenset[str] = frozenset()
    passed_by_quantizers: frozenset[str] = frozenset()
    slow_fusions: frozenset[str] = frozenset()
    activation: DType = DType.UINT8
    weight: DType = DType.INT8
    weight_range: WeightRange = WeightRange.PAIR_SAFE
    min_opset: int = 13
    max_ir_version: int = 13
    session_options: Mapping[str, str] = field(default_factory=dict)
    cost: CostTable = field(default_factory=CostTable)
    min_conv_channels: int = 1
    symmetric: bool = False
    per_tensor_weights: frozenset[str] = frozenset()
    runs_here: bool = True
    format: str = "qdq"
    constraints: Constraints = field(default_factory=Constraints)
    notes: tuple[str, ...] = ()

    def rule(self, domain: str, op: str) -> OpRule | None:
        """The rule for an operator of the standard domain; None where it stays float."""
        return self.rules.get(op) if domain in ("", "ai.onnx") else None

    def reason_for_float(self, domain: str, op: str) -> str:
        """Why the target has no integer form for an operator."""
        if domain not in ("", "ai.onnx"):
            return f"operator {domain}.{op} is opaque to qir"
        return self.float_only.get(op, f"{self.name} has no integer kernel for {op}")
