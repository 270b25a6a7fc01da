"""Presets: the pipelines that have a name."""

from __future__ import annotations

from qir.pipeline.preset import Preset

__all__ = ["INT8", "OPTIMIZE"]

OPTIMIZE = Preset(
    "optimize",
    "canonicalize,fold-constants,fuse,canonicalize",
    "Exact clean-up and fusion: the same function in fewer nodes.",
)

INT8 = Preset(
    "int8",
    "widen-float16,canonicalize,convert-opset{to=13},fold-constants,fuse,canonicalize,legalize,analyze-ranges,"
    "calibrate,quantize,rescue,mixed-precision,place,correct-bias,emit-qdq",
    "Static int8 with u8 activations and per-channel s8 weights, placed where the target runs integers fast.",
)
