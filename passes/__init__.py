"""The built-in passes, imported as `qir.passes`: one file a pass or fusion family.

- `structure`: clean-up, folding, fusion, opsets; the function stays the same
- `annotation`: ranges, calibration, which types and kernels, placement
- `accuracy`: equalization, thresholds, rounding, corrections, mixed precision
- `emission`: annotations become nodes
- `floats`: other floating-point types
- `lifting`: quantized models read back
- `pipelines`: the presets

They use only what a plug-in can use, and are found the way a plug-in is found: by the entry-point group `qir.passes`.
"""
