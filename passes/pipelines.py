"""Presets: the pipelines that have a name."""

from __future__ import annotations

from qir.pipeline.preset import Preset

__all__ = ["INT8", "INT8_BEST", "INT8_FAST", "OPTIMIZE"]

OPTIMIZE = Preset(
    "optimize",
    "canonicalize,fold-constants,fuse,canonicalize",
    "Exact clean-up and fusion: the same function in fewer nodes.",
)

_PREPARE = "widen-float16,canonicalize,convert-opset{to=13},fold-constants,fuse,canonicalize,legalize"

INT8 = Preset(
    "int8",
    f"{_PREPARE},analyze-ranges,calibrate,tune,quantize,rescue,mixed-precision,place,round-weights{{samples=16}},emit-qdq",
    "Static int8 with u8 activations and per-channel s8 weights, placed where the target runs integers fast.",
)

INT8_FAST = Preset(
    "int8-fast",
    f"{_PREPARE},analyze-ranges,calibrate,quantize,place,correct-bias,emit-qdq",
    "int8 without the search for what should stay float.",
)

_THOROUGH = 'prepare=[smooth,"smooth{scope=all}",equalize,"equalize{clip=observed}"]'

INT8_BEST = Preset(
    "int8-best",
    f"{_PREPARE},analyze-ranges,calibrate,tune{{{_THOROUGH}}},quantize,rescue,mixed-precision,place,"
    "round-weights{sweeps=2},emit-qdq",
    "int8 with more preparations tried and more rounding sweeps: minutes, not seconds.",
)
