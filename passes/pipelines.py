"""Presets: the pipelines that have a name."""

from __future__ import annotations

from qir.pipeline.preset import Preset

__all__ = [
    "BF16",
    "CODEBOOK4",
    "CODEBOOK8",
    "FP8",
    "FP16",
    "FP16_WEIGHTS",
    "INT4_WEIGHTS",
    "INT8",
    "INT8_BEST",
    "INT8_DYNAMIC",
    "INT8_FAST",
    "INT8_FP16",
    "INT8_WEIGHTS",
    "INT16",
    "LOG4",
    "LOG8",
    "OPTIMIZE",
]

OPTIMIZE = Preset(
    "optimize",
    # Twice at first: what is plain lets more sizes be known, and the other way round.
    "inline-functions,canonicalize,fold-constants{unroll=16},canonicalize,fold-constants,fuse,flatten-matmul,"
    "canonicalize,avoid-slow-fusions",
    "Exact clean-up and fusion: the same function in fewer nodes.",
)

_PREPARE = "inline-functions,widen-float16,canonicalize,convert-opset{to=13},fold-constants,fuse,canonicalize,legalize"

INT8 = Preset(
    "int8",
    f"{_PREPARE},analyze-ranges,calibrate,tune,quantize,partition,rescue,mixed-precision,partition,place,"
    "round-weights{samples=16},avoid-slow-fusions,emit-qdq",
    "Static int8 with u8 activations and per-channel s8 weights, placed where the target runs integers fast.",
)

INT8_FAST = Preset(
    "int8-fast",
    f"{_PREPARE},analyze-ranges,calibrate,quantize,partition,place,correct-bias,avoid-slow-fusions,emit-qdq",
    "int8 without the search for what should stay float.",
)

INT8_DYNAMIC = Preset(
    "int8-dynamic",
    # What is faster in float computes in float, from weights that are stored in 8 bits and widened at load.
    f"{_PREPARE},quantize-dynamic,place,avoid-slow-fusions,emit-dynamic,"
    "quantize-weights{bits=8 block-size=none symmetric},emit-weight-only{form=fold}",
    "Integer weights, activations quantized at run time where that is fast: needs no calibration data.",
)

# What the default tries, in its order, then more: a choice of the default is left only for one that is surely better.
_THOROUGH = (
    'prepare=[smooth,"smooth{scope=products}",equalize,split-outliers,"smooth{scope=all}","equalize{clip=observed}"]'
)
_ROUND_DEFAULT, _ROUND_LONG = "round-weights{samples=16}", "round-weights{sweeps=2}"

INT8_BEST = Preset(
    "int8-best",
    f"{_PREPARE},analyze-ranges,calibrate,tune{{{_THOROUGH}}},quantize,partition,rescue,mixed-precision,partition,place,"
    f'choose{{of=["{_ROUND_DEFAULT}","{_ROUND_LONG}"]}},avoid-slow-fusions,emit-qdq',
    "int8 with more preparations tried and more rounding sweeps: minutes, not seconds.",
)

_STORED = (
    "inline-functions,canonicalize,convert-opset{to=13},fold-constants,fuse,canonicalize,share-weights,"
    "avoid-slow-fusions"
)
_WIDENED = f"widen-float16,{_STORED}"

CODEBOOK4 = Preset(
    "codebook4",
    # 0.16 of float's size is what 4 bits take with a scale for each 32 weights: what tables leave of it pays for bits.
    f"{_WIDENED},cluster-weights{{overhead=0.02 budget=0.156}},emit-codebook",
    "Weights as 4-bit indices into learned tables, more bits where the results feel it: float's speed.",
)

CODEBOOK8 = Preset(
    "codebook8",
    f"{_WIDENED},cluster-weights{{bits=8 overhead=0.1}},emit-codebook",
    "Weights as 8-bit indices into learned tables, decoded when the model is loaded.",
)

LOG4 = Preset(
    "log4",
    f"{_WIDENED},quantize-log,emit-codebook",
    "Weights as a sign and an exponent of 3 bits, decoded when the model is loaded.",
)

LOG8 = Preset(
    "log8",
    f"{_WIDENED},quantize-log{{bits=8}},emit-codebook",
    "Weights as a sign and an exponent of 7 bits, decoded when the model is loaded.",
)

_CLEAN = "inline-functions,canonicalize,fold-constants,fuse,canonicalize,share-weights"

FP16 = Preset(
    "fp16",
    f"{_CLEAN},analyze-ranges,convert-float",
    "Computed in f16 where that is safe, inputs and outputs f32: for runtimes with f16 kernels.",
)

FP16_WEIGHTS = Preset(
    "fp16-weights",
    f"{_CLEAN},avoid-slow-fusions,convert-float{{form=storage}}",
    "Weights stored as f16 and widened when the model is loaded: half the size, float's speed and accuracy.",
)

BF16 = Preset(
    "bf16",
    f"{_STORED},convert-float{{dtype=bf16 form=storage}}",
    "Weights stored as bf16 and widened when the model is loaded; form=compute is for runtimes with bf16 kernels.",
)

INT8_FP16 = Preset(
    "int8-fp16",
    "int8,convert-float",
    "int8, and what stays float computed in f16: for runtimes with kernels for both.",
)

FP8 = Preset(
    "fp8",
    "inline-functions,widen-float16,canonicalize,convert-opset{to=19},fold-constants,fuse,canonicalize,"
    "quantize-static,emit-qdq",
    "e4m3 operands of convolutions and matrix products, for runtimes with fp8 kernels; emulated on ort-cpu.",
)

INT16 = Preset(
    "int16",
    "inline-functions,widen-float16,canonicalize,convert-opset{to=21},fold-constants,fuse,canonicalize,"
    "quantize-static{activation=u16 weight=s8 results=true},emit-qdq",
    "16-bit activations and 8-bit weights, results too, for NPUs that run them; emulated on ort-cpu.",
)

_WEIGHTS = (
    "inline-functions,widen-float16,canonicalize,convert-opset{to=21},fold-constants,fuse,canonicalize,"
    "share-weights,avoid-slow-fusions"
)

INT8_WEIGHTS = Preset(
    "int8-weights",
    f"{_WEIGHTS},quantize-weights{{bits=8 block-size=128 symmetric}},emit-weight-only",
    "Weights in 8 bits, activations float: a quarter of the size, nearly float's accuracy; samples are optional.",
)

INT4_WEIGHTS = Preset(
    "int4-weights",
    f"{_WEIGHTS},quantize-weights,emit-weight-only",
    "Weights in 4 bits, activations float: a sixth of the size; samples are optional and make it more accurate.",
)
