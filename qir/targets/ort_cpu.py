"""onnxruntime's CPU provider, from what its graph optimizer fuses and its kernels cost (measured on 1.31)."""

from __future__ import annotations

from dataclasses import replace

from qir.ir import DType
from qir.targets.cost import CostTable
from qir.targets.target import Constraints, Form, OpRule, Target, WeightRange

__all__ = ["ORT_CPU", "ORT_CPU_ARM64", "ORT_CPU_VNNI"]

_MOVEMENT = OpRule(Form.MOVEMENT)
_UNARY = OpRule(Form.UNARY)
_ELEMENTWISE = OpRule(Form.ELEMENTWISE, data_inputs=None)

_RULES = {
    "Conv": OpRule(Form.CONVOLUTION, weight_input=1, bias_input=2),
    "MatMul": OpRule(Form.LINEAR, weight_input=1),
    "Gemm": OpRule(Form.LINEAR, weight_input=1, bias_input=2),
    "Add": _ELEMENTWISE,
    "Mul": _ELEMENTWISE,
    "Concat": _ELEMENTWISE,
    "GlobalAveragePool": _UNARY,
    "LeakyRelu": _UNARY,
    "Sigmoid": _UNARY,
    "MaxPool": _MOVEMENT,
    "Reshape": _MOVEMENT,
    "Transpose": _MOVEMENT,
    "Flatten": _MOVEMENT,
    "Squeeze": _MOVEMENT,
    "Unsqueeze": _MOVEMENT,
    "Slice": _MOVEMENT,
    "Gather": _MOVEMENT,
    "Expand": _MOVEMENT,
    "Tile": _MOVEMENT,
    "Split": _MOVEMENT,
    "DepthToSpace": _MOVEMENT,
    "LSTM": OpRule(Form.RECURRENT, data_inputs=(), weight_input=1),
}

_NEVER_FUSED = "onnxruntime does not fuse quantizers into it"
_FLOAT_ONLY = {
    "Softmax": "the integer kernel is 6 times slower than the float one",
    "AveragePool": "the integer kernel is over 10 times slower than the float one",
    "ConvTranspose": "onnxruntime has no integer kernel for it",
    # A Scan around MatMulIntegerToFloat, 16 steps: 0.2 of the GRU's speed with 64 hidden units, 0.4 with 128, 0.9 with
    # 256, 1.7 with 512.
    "GRU": "onnxruntime has no integer kernel for it, and a loop around integer products is slower up to 256 units",
    "RNN": "onnxruntime has no integer kernel for it",
    **dict.fromkeys(
        (
            *("Tanh", "HardSigmoid", "HardSwish", "Gelu", "Erf", "Exp", "Sqrt", "Elu", "PRelu", "Softplus", "Mish"),
            *("ReduceMean", "ReduceSum", "LayerNormalization", "InstanceNormalization", "BatchNormalization"),
            *("Pad", "CumSum", "GlobalMaxPool", "Resize", "Sub", "Div", "Max", "Min", "Pow"),
        ),
        _NEVER_FUSED,
    ),
}

_CONSTRAINTS = Constraints(
    sources=(
        "onnxruntime 1.31: core/optimizer/qdq_transformer (selectors and actions), contrib_ops/cpu/quantization",
        "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html",
    ),
    activations=frozenset({DType.UINT8}),
    weights=frozenset({DType.INT8, DType.UINT8}),
    blocked=frozenset({DType.INT8, DType.UINT8, DType.INT4, DType.UINT4, DType.INT2, DType.UINT2}),
    traps=frozenset({"one-quantizer", "bias-scale", "float-weight", "table", "slow-kernel", "movement", "mixed-zeros"}),
)

ORT_CPU = Target(
    name="ort-cpu",
    title="onnxruntime on any CPU: weights that no x64 without VNNI saturates on, the same numbers everywhere",
    runtime_versions=">=1.20",
    rules=_RULES,
    merged=frozenset({"Relu", "Clip"}),
    float_only=_FLOAT_ONLY,
    lookup=OpRule(Form.LOOKUP, data_inputs=(), weight_input=0),
    # us on AVX2 with a bias, float / static / dynamic: 65x64x256: 45 / 41 / 35; 64x384x1536: 1249 / 739 / 679;
    # 64x1536x384: 1331 / 749 / 676; 1x1024x1024: 114 / 53 / 47.
    dynamic_linear=True,
    min_table_bytes=64 * 1024,
    recurrent_kernels={"LSTM": "DynamicQuantizeLSTM"},
    # Speed over float, 16 steps, batch 1 (AVX2): hidden and input size 32: 0.9, 48: 1.05, 64: 1.2, 128: 2.3, 512: 3.4.
    min_recurrent_weights=2 * 4 * 64 * 64,
    # Speed over float of DynamicQuantizeLinear, ConvInteger (u8), Cast, Mul, Add on AVX2: 16 channels 3x3 at 32x32:
    # 0.91; 64 3x3 at 56x56: 1.06; 64 1x1 at 56x56: 0.95; 256 1x1 at 14x14: 1.17, 3x3: 1.03; 512 3x3 at 7x7: 1.18.
    min_dynamic_conv_channels=256,
    # Inside of a MobileNetV2 all of 1 to 6.5 million products (384x64 at 16x16, 960x320 and 320x1280 at 4x4) lose 50 to
    # 90 us each, as the blocked float layout is left and entered again; in a SqueezeNet 512x1000 at 13x13 wins 130.
    min_dynamic_conv_macs=12_000_000,
    # QLinearAveragePool and QLinearSoftmax are slower than float; WeightBiasQuantization makes the float weights of
    # convolutions and Gemms per-tensor integers.
    # A 3x3 stem of 3 channels runs at 0.6 of float's speed on AVX2, and its input needs a quantizer besides; the
    # first layer's noise passes through all others.
    min_conv_channels=5,
    barriers=frozenset({"AveragePool", "Softmax", "Conv", "ConvTranspose", "Gemm"}),
    passed_by_quantizers=frozenset({"MaxPool"}),
    # A sentence encoder of 6 layers, 384 wide, with its 12 residual sums fused and apart: 16.3 / 15.0 ms.
    slow_fusions=frozenset({"SkipLayerNormalization"}),
    constraints=_CONSTRAINTS,
    notes=(
        "s8 activations do not fuse where a value has several readers, and have no fast kernel on x64",
        "a convolution fuses only where one quantizer alone reads its result (Relu and Clip may stand between)",
        "a bias fuses only as int32 at exactly the product of the scales of input and weight",
        "a float weight between a dequantizer and a quantizer is quantized per tensor by the runtime itself",
        "fused kernels round differently by 1 or 2 steps: compare with optimisations on and off",
    ),
)

# From timing on one thread of an x64 with AVX512-VNNI, onnxruntime 1.31.1, float / integer:
# four 3x3 convolutions, 64 channels, 56x56: 3.9 to 5.4 / 1.1 ms; 1x1: 0.48 / 0.19; depthwise 3x3: 0.16 / 0.25;
# products of 128x1024x1024: 1.13 / 0.32 ms; 128x512x512 with a bias: 0.30 / 0.097; 1x1024x1024: 0.047 / 0.017;
# of 64x56x56 numbers: Add 27 / 22 us, Mul 27 / 41, Sigmoid 52 / 54, LeakyRelu 41 / 52, Concat 32 / 8, Transpose 23 / 8,
# MaxPool between convolutions 11 / 10; quantizing 13, dequantizing 20.
# Both convolutions fit 460 MACs a ns, 0.08 ns a result and 3 ns a pixel. What was not timed there is as on AVX2.
_VNNI_COST = replace(
    CostTable(),
    macs_per_us=(108_000.0, 440_000.0),
    vector_macs_per_us=(22_500.0, 65_000.0),
    depthwise_macs_per_us=(46_000.0, 35_000.0),
    pixel_us=0.003,
    store_ns=0.08,
    convert_ns=0.083,
    element_ns={
        **CostTable().element_ns,
        "Add": (0.135, 0.11),
        "Mul": (0.135, 0.204),
        "Concat": (0.16, 0.04),
        "Sigmoid": (0.26, 0.27),
        "LeakyRelu": (0.204, 0.26),
        "Transpose": (0.115, 0.04),
        "DepthToSpace": (0.115, 0.04),
        "MaxPool": (0.22, 0.2),
    },
)

ORT_CPU_VNNI = replace(
    ORT_CPU,
    name="ort-cpu-vnni",
    cost=_VNNI_COST,
    title="onnxruntime on x64 with VNNI or ARM with dot products: weights use all of s8; saturates on older x64",
    weight_range=WeightRange.FULL,
    # Where the processor saturates all the same, the runtime then widens the weights to u8 (slower, but right).
    session_options={"session.x64quantprecision": "1"},
)

ORT_CPU_ARM64 = replace(
    ORT_CPU,
    name="ort-cpu-arm64",
    title="onnxruntime on 64-bit ARM: weights use all of s8, u8 and s8 activations run alike; costs not measured",
    weight_range=WeightRange.FULL,
    constraints=replace(
        _CONSTRAINTS,
        sources=(
            *_CONSTRAINTS.sources,
            "onnxruntime: include/onnxruntime/core/session/onnxruntime_session_options_config_keys.h "
            "(session.qdqisint8allowed is on by default on ARM64)",
        ),
        activations=frozenset({DType.UINT8, DType.INT8}),
    ),
    notes=(
        "the dot-product instructions add into 32 bits: products of u8 and s8 saturate nowhere",
        "s8 activations fuse too (session.qdqisint8allowed is on by default); u8 gives the same numbers as on x64",
        *ORT_CPU.notes[1:],
    ),
)
