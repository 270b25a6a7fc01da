"""Qualcomm's Hexagon tensor processor by onnxruntime's QNN provider, from the documentation; it does not run here."""

from __future__ import annotations

from qir.ir import DType
from qir.targets.target import Constraints, Form, OpRule, Target, WeightRange

__all__ = ["QNN_HTP"]

# The provider takes a node with the dequantizers before and the quantizers behind it: results are quantized always.
_CONV = OpRule(Form.CONVOLUTION, weight_input=1, bias_input=2)
_PRODUCT = OpRule(Form.CONVOLUTION, weight_input=1)
_MOVEMENT = OpRule(Form.MOVEMENT)
_UNARY = OpRule(Form.UNARY)
_ELEMENTWISE = OpRule(Form.ELEMENTWISE, data_inputs=None)
_NOT_WRITTEN = "its scale and bias would have to be integers too, which qir does not write"

QNN_HTP = Target(
    name="qnn-htp",
    title="Qualcomm HTP by onnxruntime's QNN provider, QDQ: u8 or u16 activations, fixed shapes; not run here",
    runtime_versions="onnxruntime-qnn >=1.18",
    rules={
        "Conv": _CONV,
        "ConvTranspose": _CONV,
        "Gemm": _CONV,
        "MatMul": _PRODUCT,
        **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Concat"), _ELEMENTWISE),
        **dict.fromkeys(
            (
                *("Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Gelu", "Elu", "Softmax"),
                *("GlobalAveragePool", "AveragePool"),
            ),
            _UNARY,
        ),
        **dict.fromkeys(
            (
                *("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand"),
                *("Tile", "Split", "DepthToSpace", "SpaceToDepth"),
            ),
            _MOVEMENT,
        ),
    },
    merged=frozenset({"Relu", "Clip"}),
    float_only={
        "LayerNormalization": _NOT_WRITTEN,
        "InstanceNormalization": _NOT_WRITTEN,
        "BatchNormalization": _NOT_WRITTEN,
        "LSTM": "qir has no quantized form of it for this provider",
        "GRU": "qir has no quantized form of it for this provider",
    },
    activation=DType.UINT8,
    weight=DType.INT8,
    weight_range=WeightRange.FULL,
    per_tensor_weights=frozenset({"MatMul", "Gemm"}),
    runs_here=False,
    constraints=Constraints(
        sources=(
            "https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html",
            "https://github.com/microsoft/onnxruntime/pull/18465 (its quantization configuration)",
            "https://github.com/microsoft/onnxruntime/pull/21171 (4-bit weights)",
            "https://github.com/microsoft/onnxruntime/pull/17015 (16-bit activations)",
        ),
        formats=frozenset({"qdq"}),
        activations=frozenset({DType.UINT8, DType.UINT16}),
        weights=frozenset({DType.INT8, DType.UINT8, DType.INT4}),
        per_channel=frozenset({"Conv", "ConvTranspose"}),
        symmetric_weights=False,
        biases=frozenset({DType.INT32}),
        fixed_shapes=True,
        traps=frozenset({"one-quantizer", "bias-scale", "symmetric-channels"}),
    ),
    notes=(
        "shapes are fixed: set symbolic axes before quantizing",
        "every operator reads dequantizers and is read by a quantizer; what is not runs on the CPU provider",
        "weights with a scale a channel are symmetric; convolutions only",
        "biases are int32 at the product of the scales of input and weight",
        "for more accuracy use u16 activations with s8 weights",
    ),
)
