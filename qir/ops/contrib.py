"""onnxruntime's own ops (domain ``com.microsoft``) that the compiler emits or meets: arities and attributes.

onnx has no schema for them. Source: onnxruntime's docs/ContribOperators.md, version 1.31.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qir.ir import AttrKind

__all__ = ["CONTRIB", "ContribOp"]


@dataclass(frozen=True, slots=True)
class ContribOp:
    """Names of inputs and outputs; ``?`` marks an optional one, ``*`` a variadic one (at least one actual).

    ``attributes`` maps to the default, or to the kind where there is none; those in ``required`` must be given.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int | float | str | AttrKind] = field(default_factory=dict)
    required: frozenset[str] = frozenset()


def _op(
    signature: str, attributes: Mapping[str, int | float | str | AttrKind] | None = None, required: str = ""
) -> ContribOp:
    inputs, outputs = signature.split("->")
    return ContribOp(tuple(inputs.split()), tuple(outputs.split()), attributes or {}, frozenset(required.split()))


_BINARY = "A A_scale A_zero_point? B B_scale B_zero_point? C_scale C_zero_point? -> C"
_UNARY = "X X_scale X_zero_point? Y_scale Y_zero_point? -> Y"
_WINDOW: dict[str, int | float | str | AttrKind] = {
    "auto_pad": "NOTSET",
    "ceil_mode": 0,
    "kernel_shape": AttrKind.INTS,
    "pads": AttrKind.INTS,
    "strides": AttrKind.INTS,
}
_CONV: dict[str, int | float | str | AttrKind] = {
    "auto_pad": "NOTSET",
    "dilations": AttrKind.INTS,
    "group": 1,
    "kernel_shape": AttrKind.INTS,
    "pads": AttrKind.INTS,
    "strides": AttrKind.INTS,
}
_LSTM: dict[str, int | float | str | AttrKind] = {
    "activation_alpha": AttrKind.FLOATS,
    "activation_beta": AttrKind.FLOATS,
    "activations": AttrKind.STRINGS,
    "clip": AttrKind.FLOAT,
    "direction": "forward",
    "hidden_size": AttrKind.INT,
    "input_forget": 0,
}
_ACTIVATION: dict[str, int | float | str | AttrKind] = {
    "activation": AttrKind.STRING,
    "activation_alpha": AttrKind.FLOAT,
    "activation_beta": AttrKind.FLOAT,
    "activation_gamma": AttrKind.FLOAT,
}
_GEMM: dict[str, int | float | str | AttrKind] = {"alpha": 1.0, "transA": 0, "transB": 0}

CONTRIB: Mapping[str, ContribOp] = {
    "BiasGelu": _op("A B -> C"),
    "DequantizeLinear": _op("x x_scale x_zero_point? -> y", {"axis": AttrKind.INT}),
    "DynamicQuantizeLSTM": _op(
        "X W R B? sequence_lens? initial_h? initial_c? P? W_scale W_zero_point R_scale R_zero_point -> Y? Y_h? Y_c?",
        _LSTM,
    ),
    "DynamicQuantizeMatMul": _op("A B b_scale b_zero_point? bias? -> Y"),
    "FastGelu": _op("X bias? -> Y"),
    "FusedConv": _op("X W B? Z? -> Y", {**_CONV, "activation": AttrKind.STRING, "activation_params": AttrKind.FLOATS}),
    "FusedGemm": _op("A B C? -> Y", {**_GEMM, "beta": 1.0, **_ACTIVATION}),
    "FusedMatMul": _op("A B -> Y", {"alpha": 1.0, "transA": 0, "transB": 0, "transBatchA": 0, "transBatchB": 0}),
    "GatherBlockQuantized": _op(
        "data indices scales zero_points? -> output",
        {"bits": 4, "block_size": 128, "gather_axis": 0, "quantize_axis": 1},
    ),
    "Gelu": _op("X -> Y"),
    "MatMulIntegerToFloat": _op("A B a_scale b_scale a_zero_point? b_zero_point? bias? -> Y"),
    "MatMulNBits": _op(
        "A B scales zero_points? g_idx? bias? -> Y",
        {
            "K": AttrKind.INT,
            "N": AttrKind.INT,
            "bits": 4,
            "block_size": AttrKind.INT,
            "accuracy_level": 0,
            "weight_prepacked": 0,
        },
        required="K N block_size",
    ),
    "QAttention": _op(
        "input weight bias input_scale weight_scale mask_index? input_zero_point? weight_zero_point? past? "
        "-> output present?",
        {
            "num_heads": AttrKind.INT,
            "unidirectional": 0,
            "past_present_share_buffer": 0,
            "do_rotary": 0,
            "mask_filter_value": -10000.0,
            "scale": AttrKind.FLOAT,
        },
        required="num_heads",
    ),
    "QGemm": _op("A a_scale a_zero_point B b_scale b_zero_point C? y_scale? y_zero_point? -> Y", _GEMM),
    "QLinearAdd": _op(_BINARY),
    "QLinearAveragePool": _op(_UNARY, {**_WINDOW, "channels_last": 0, "count_include_pad": 0}, required="kernel_shape"),
    "QLinearConcat": _op("Y_scale Y_zero_point inputs* -> Y", {"axis": AttrKind.INT}, required="axis"),
    "QLinearConv": _op(
        "x x_scale x_zero_point w w_scale w_zero_point y_scale y_zero_point B? -> y", {**_CONV, "channels_last": 0}
    ),
    "QLinearGlobalAveragePool": _op("X x_scale x_zero_point y_scale y_zero_point -> Y", {"channels_last": 0}),
    "QLinearLeakyRelu": _op(_UNARY, {"alpha": 0.01}),
    "QLinearMul": _op(_BINARY),
    "QLinearReduceMean": _op(
        "data data_scale data_zero_point? reduced_scale reduced_zero_point? -> reduced",
        {"axes": AttrKind.INTS, "keepdims": AttrKind.INT},
        required="axes keepdims",
    ),
    "QLinearSigmoid": _op(_UNARY),
    "QLinearSoftmax": _op(
        "X X_scale x_zero_point? y_scale y_zero_point -> Y", {"axis": -1, "opset": AttrKind.INT}, required="opset"
    ),
    "QLinearWhere": _op(
        "condition X x_scale x_zero_point Y y_scale y_zero_point z_scale z_zero_point -> Z",
    ),
    "QuantizeLinear": _op("x y_scale y_zero_point? -> y", {"axis": AttrKind.INT}),
    "QuickGelu": _op("X -> Y", {"alpha": 1.702}),
    "SkipLayerNormalization": _op(
        "input skip gamma beta? bias? -> output mean? inv_std_var? input_skip_bias_sum?", {"epsilon": 1e-12}
    ),
}
