"""NVIDIA TensorRT, explicit quantization, from its documentation; it does not run here."""

from __future__ import annotations

from qir.ir import DType
from qir.targets.target import Constraints, Form, OpRule, Target, WeightRange

__all__ = ["TENSORRT"]

# Quantizers stand on what weighted layers read; their results stay float unless the next one quantizes them. Biases
# stay float, so no rule names one.
_WEIGHTED = OpRule(Form.LINEAR, weight_input=1)

TENSORRT = Target(
    name="tensorrt",
    title="NVIDIA TensorRT 8 to 11, Q/DQ: symmetric s8 everywhere, biases float; from its documentation, not run here",
    runtime_versions="TensorRT >=8.5",
    rules={"Conv": _WEIGHTED, "ConvTranspose": _WEIGHTED, "MatMul": _WEIGHTED, "Gemm": _WEIGHTED},
    merged=frozenset(),
    float_only={
        "LSTM": "TensorRT has no Q/DQ form of it",
        "GRU": "TensorRT has no Q/DQ form of it",
        "RNN": "TensorRT has no Q/DQ form of it",
    },
    activation=DType.INT8,
    weight=DType.INT8,
    weight_range=WeightRange.FULL,
    symmetric=True,
    runs_here=False,
    constraints=Constraints(
        sources=(
            "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html",
            "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/"
            "quantized-types-explicit-quantization.html",
        ),
        formats=frozenset({"qdq"}),
        activations=frozenset({DType.INT8, DType.FLOAT8E4M3FN}),
        weights=frozenset({DType.INT8, DType.FLOAT8E4M3FN}),
        per_channel=frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"}),
        blocked=frozenset({DType.INT4, DType.FLOAT4E2M1}),
        symmetric_activations=True,
        symmetric_weights=True,
        biases=frozenset({DType.FLOAT}),
    ),
    notes=(
        "quantization is symmetric: zero points are 0, activations have one scale a tensor",
        "weights have one scale, or one for each output channel; 4-bit ones stand in blocks",
        "biases are float: their dequantizer would be a layer of its own",
        "the builder moves quantizers over layers that commute with them, pooling and reshaping among them",
    ),
)
